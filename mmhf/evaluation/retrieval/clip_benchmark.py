"""Zero-shot numbers by CLIP_benchmark's names, and the JSON that it writes (github.com/LAION-AI/CLIP_benchmark)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

CLASSIFICATION, RETRIEVAL = "zeroshot_classification", "zeroshot_retrieval"
"""The tasks."""
_TOP = 5
_NAMES = {
    CLASSIFICATION: {
        "acc1": "zero_shot_accuracy",
        "acc5": "zero_shot_accuracy@5",
        "mean_per_class_recall": "zero_shot_mean_per_class_recall",
    },
    RETRIEVAL: {
        f"{theirs}_recall@{k}": f"{ours}_recall@{k}"
        for k in (1, 5, 10)
        for theirs, ours in (("image_retrieval", "text_to_image"), ("text_retrieval", "image_to_text"))
    },
}
"""Task → CLIP_benchmark's name → ours."""


@dataclass(frozen=True)
class MeasuredBenchmark:
    """What a data set gave.

    Attributes:
        task (`str`): `CLASSIFICATION` or `RETRIEVAL`.
        metrics (`dict[str, float]`): By CLIP_benchmark's names; what is not defined is left out.
        num_rows (`int`): Images.
        baselines (`Mapping`): None are measured.
    """

    task: str
    metrics: dict[str, float]
    num_rows: int
    baselines: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @classmethod
    def of_retrieval(cls, metrics: Mapping[str, float], num_rows: int) -> MeasuredBenchmark:
        """From what `retrieval_metrics` gives."""
        return cls(RETRIEVAL, _renamed(metrics, RETRIEVAL), num_rows)

    @classmethod
    def of_classes(cls, metrics: Mapping[str, float], num_rows: int, *, num_classes: int) -> MeasuredBenchmark:
        """From what `zero_shot_metrics` gives; of five classes, all are among the five most similar."""
        named = {"zero_shot_accuracy@5": 1.0, **metrics} if num_classes == _TOP else metrics
        return cls(CLASSIFICATION, _renamed(named, CLASSIFICATION), num_rows)

    def as_json(self, dataset: str, *, model: str, pretrained: str) -> dict[str, Any]:
        """What CLIP_benchmark writes; null stands for a number that is not defined."""
        return {
            "dataset": f"wds/{dataset}",
            "model": model,
            "pretrained": pretrained,
            "task": self.task,
            "metrics": {name: self.metrics.get(name) for name in _NAMES[self.task]},
            "language": "en",
        }


def _renamed(metrics: Mapping[str, float], task: str) -> dict[str, float]:
    return {theirs: metrics[ours] for theirs, ours in _NAMES[task].items() if ours in metrics}
