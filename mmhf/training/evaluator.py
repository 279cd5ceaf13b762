"""Trainers that only evaluate, and read stored features where there are some."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader, Dataset
from transformers import Trainer

from mmhf.features.stage import StageFeatures


class ReadsFeatures(Trainer):
    """A Trainer that gives stored features to the data sets that it evaluates."""

    features: StageFeatures | None = None

    def read_features(self, features: StageFeatures | None) -> None:
        """Read these from now on.

        Args:
            features ([`StageFeatures`], *optional*): Of one stage, in which nothing trains.
        """
        self.features = features
        if features is not None:
            args = self.args
            features.use(self.accelerator, num_workers=args.dataloader_num_workers, with_bar=not args.disable_tqdm)
            features.enter(0)

    def get_test_dataloader(self, test_dataset: Dataset[Any]) -> DataLoader[Any]:
        if self.features is not None:
            self.features.attach(test_dataset, self.data_collator, is_training=False)
        return super().get_test_dataloader(test_dataset)


class Evaluator(ReadsFeatures):
    """A Trainer that only evaluates."""
