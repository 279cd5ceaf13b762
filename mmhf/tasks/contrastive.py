"""The task contrastive: dual encoders."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader
from transformers import EvalPrediction, PreTrainedModel, Trainer, TrainingArguments

from mmhf.conventions import IGNORED_IMAGE, TEACHER_EMBEDS, Processor
from mmhf.data.bad_examples import BadExampleLog
from mmhf.data.caption_collators import ContrastiveCollator
from mmhf.data.caption_datasets import CaptionDataset
from mmhf.data.clip_benchmark import ClipBenchmarkData
from mmhf.data.collators import ImageCollator
from mmhf.data.datasets import RowDataset
from mmhf.data.loading import LoadedData, load_data
from mmhf.data.streams.captions import caption_dataset
from mmhf.errors import InputError
from mmhf.evaluation.linear_maps import DIMS, LinearMapsSearch, Pairs, frozen_projections
from mmhf.evaluation.report.page import small_image
from mmhf.evaluation.report.retrieval import (
    MeasuredRetrieval,
    RetrievalExample,
    worst_captions,
    write_retrieval_report,
)
from mmhf.evaluation.report.sections import RunFacts
from mmhf.evaluation.retrieval import (
    RETRIEVAL_PROTOCOLS,
    UNIQUE_TEXT_PROTOCOLS,
    ZERO_SHOT_PROTOCOLS,
    EmbeddingView,
    RetrievalEvaluation,
    embedding_view,
    evaluate_retrieval,
    fill_templates,
    prefix_protocols,
    prefix_recalls,
    retrieval_metrics,
    templates_of,
    zero_shot_class_embeddings,
    zero_shot_metrics,
)
from mmhf.evaluation.retrieval.clip_benchmark import MeasuredBenchmark
from mmhf.features.choice import PartChoice
from mmhf.features.parts import TEXT, VISION, FeaturePart
from mmhf.models.building import check_same_resize
from mmhf.models.dual_encoder import DualEncoderModel, DualEncoderProcessor
from mmhf.models.dual_encoder.building import build_dual_encoder, build_dual_encoder_processor, load_dual_encoder
from mmhf.recipe.dual_encoder_recipe import ContrastiveRecipe
from mmhf.tasks.base import Baselines, Collator, Task
from mmhf.tasks.frozen_features import FrozenFeatures, by_split
from mmhf.tasks.joined_data import training_captions
from mmhf.tasks.linear_probe import LinearMapsStart, refuse_probes_without_features
from mmhf.tasks.subgroup_tables import subgroup_values, tables_by_value
from mmhf.training.contrastive import ContrastiveEvaluator, ContrastiveTrainer
from mmhf.training.evaluator import ReadsFeatures
from mmhf.training.stages import StagePlan
from mmhf.training.trainer import MMTrainer

_LOSS_PROTOCOL = "Contrastive loss of the recipe among the pairs of each evaluation batch, averaged over batches."


@dataclass(frozen=True)
class SplitEmbeddings:
    """The embeddings of a split, each image once.

    Attributes:
        images (`NDArray` of shape `(I, D)`): In the order of `rows`.
        texts (`NDArray` of shape `(T, D)`): One row a caption.
        owners (`NDArray` of shape `(T,)`): Number of each caption's image; -1 = its image could not be read.
        rows (`NDArray` of shape `(I,)`): Rows of the images in the table.
    """

    images: NDArray[np.float32]
    texts: NDArray[np.float32]
    owners: NDArray[np.int64]
    rows: NDArray[np.int64]

    @classmethod
    def of(cls, predictions: Any, image_index: Any) -> SplitEmbeddings:
        """From what a trainer predicts: the embeddings of the text and of the image of each pair."""
        texts, images = (np.asarray(each, dtype=np.float32) for each in predictions)
        index = np.asarray(image_index)
        owners = np.full(len(index), IGNORED_IMAGE, dtype=np.int64)
        readable = np.flatnonzero(index >= 0)
        rows, first, owners[readable] = np.unique(index[readable], return_index=True, return_inverse=True)
        return cls(images[readable[first]], texts, owners, rows)

    def measure(self, places: NDArray[np.int64]) -> dict[str, float] | None:
        """Recalls among the images in some rows of the table and their captions; None where none can be read."""
        images = np.flatnonzero(np.isin(self.rows, places))
        number = np.full(len(self.rows) + 1, IGNORED_IMAGE, dtype=np.int64)
        number[images] = np.arange(len(images))
        owners = number[self.owners]
        texts = owners >= 0
        return retrieval_metrics(self.images[images], self.texts[texts], owners[texts]) if len(images) else None

    def view(self, columns: Mapping[str, Sequence[str]]) -> EmbeddingView | None:
        """The embeddings in two dimensions, with the values of columns of the table."""
        of_images = {name: [values[row] for row in self.rows.tolist()] for name, values in columns.items()}
        return embedding_view(self.images, self.texts, self.owners, columns=of_images)


class Contrastive(Task[ContrastiveRecipe, MeasuredRetrieval]):
    """Dual encoders."""

    collator_class = ContrastiveCollator
    asked_of_teacher = {
        "image": FeaturePart("teacher", VISION.inputs, TEACHER_EMBEDS[0]),
        "text": FeaturePart("teacher", TEXT.inputs, TEACHER_EMBEDS[1]),
    }
    trainer_class = ContrastiveTrainer

    def __init__(self, recipe: ContrastiveRecipe) -> None:
        self._searched: LinearMapsSearch | None = None
        self._prefix_sizes = (recipe.contrastive.matryoshka or [])[:-1]
        of_prefixes = prefix_protocols(self._prefix_sizes)
        self.protocols = {"loss": _LOSS_PROTOCOL, **RETRIEVAL_PROTOCOLS, **of_prefixes, **ZERO_SHOT_PROTOCOLS}
        super().__init__(recipe)

    def build_processor(self, data: LoadedData, *, parent: Path | None = None) -> DualEncoderProcessor:
        if parent is not None:
            processor = DualEncoderProcessor.from_pretrained(parent)
            check_same_resize(processor.image_processor, self.recipe.data, parent)
            processor.max_length = min(self.recipe.data.max_length, processor.tokenizer.model_max_length)
            return processor
        text = self.recipe.model.text
        captions = self._training_captions(data) if text.backbone is None and text.tokenizer is None else []
        return build_dual_encoder_processor(self.recipe.model, self.recipe.data, captions)

    def build_model(
        self,
        data: LoadedData | None,
        *,
        processor: Processor | None = None,
        parent: Path | None = None,
        device: str | None = None,
    ) -> DualEncoderModel:
        if parent is not None:
            return load_dual_encoder(parent, self.recipe, device=device)
        assert processor is None or isinstance(processor, DualEncoderProcessor)
        tokenizer = None if processor is None else processor.tokenizer
        return build_dual_encoder(self.recipe, tokenizer, device=device)

    def num_train_rows(self, data: LoadedData) -> int | None:
        return len(self.torch_dataset(data, "train"))

    def torch_dataset(self, data: LoadedData, split: str) -> Any:
        rows: Any = data.splits[split]
        if split != "train":
            return caption_dataset(rows, "all")
        return training_captions(self.recipe.data, rows, seed=self.recipe.training.get("seed", 42))

    def trainer_options(self, data: LoadedData, processor: Processor) -> dict[str, Any]:
        assert isinstance(processor, DualEncoderProcessor)
        probe = self._probe(processor)
        more = None if probe is None else functools.partial(probe.measure, split="validation")
        metrics = functools.partial(_training_metrics, sizes=self._prefix_sizes)
        return {"compute_metrics": metrics, "more_metrics": more}

    def plan_facts(self, num_rows: int | None) -> dict[str, str]:
        section = self.recipe.contrastive.hard_negatives
        if section is None:
            return {}
        count = "the" if num_rows is None else f"{num_rows:,}"
        often = "each epoch" if section.every_epochs == 1 else f"every {section.every_epochs} epochs"
        cost = f"{count} samples pass through the model without gradients, and each is compared with all"
        when = f"{often} from epoch {section.first_epoch + 1} on, and where a stage begins"
        return {"hard negatives": f"{section.per_sample} beside each sample; {when}, {cost}"}

    def make_evaluator(self, model: PreTrainedModel, args: TrainingArguments, collator: Collator) -> ReadsFeatures:
        return _Evaluator(model=model, args=args, data_collator=collator)

    def measure(self, trainer: Trainer, data: LoadedData, split: str) -> MeasuredRetrieval:
        dataset = CaptionDataset(_table(data, split), "all")
        output = trainer.predict(dataset, metric_key_prefix=split)
        assert output.metrics is not None
        found = SplitEmbeddings.of(output.predictions, output.label_ids)
        captions = [text or "" for text in dataset.texts(np.arange(len(found.texts)))]
        evaluation = evaluate_retrieval(found.images, found.texts, found.owners, captions=captions)
        collator: Any = trainer.data_collator
        probe = self._probe(collator.processor)
        columns = subgroup_values(self.recipe, data.splits[split])
        return MeasuredRetrieval(
            evaluation=evaluation,
            loss=output.metrics[f"{split}_loss"],
            examples=_examples(evaluation, found, dataset),
            prefixes=prefix_recalls(found.images, found.texts, found.owners, self._prefix_sizes),
            zero_shot={} if probe is None else probe.measure(trainer, split),
            tables=tables_by_value(columns, found.measure),
            view=found.view(columns),
        )

    def measure_clip_benchmark(
        self, trainer: Trainer, data: ClipBenchmarkData, processor: Processor
    ) -> MeasuredBenchmark:
        split = "test"
        if data.is_retrieval:
            dataset: Any = CaptionDataset(data.rows, "all")
            output = trainer.predict(dataset, metric_key_prefix=split)
            found = SplitEmbeddings.of(output.predictions, output.label_ids)
            recalls = retrieval_metrics(found.images, found.texts, found.owners)
            return MeasuredBenchmark.of_retrieval(recalls, len(data.rows))
        assert isinstance(processor, DualEncoderProcessor)
        collator: Any = trainer.data_collator
        rows = LoadedData({split: data.rows}, data.class_names)
        probe = ZeroShotProbe(data.templates, rows, processor, bad_examples=collator.bad_examples)
        accuracies = probe.measure(trainer, split)
        return MeasuredBenchmark.of_classes(accuracies, len(data.rows), num_classes=len(data.class_names))

    def check_features(self, plan: StagePlan, choices: Sequence[Sequence[PartChoice]]) -> None:
        refuse_probes_without_features(plan, choices)

    def make_trainer(self, data: LoadedData, **options: Any) -> MMTrainer:
        trainer = super().make_trainer(data, **options)
        if any(stage.section.start is not None for stage in trainer.plan.stages):
            trainer.stages.starts = LinearMapsStart(trainer, data, self.search_linear_maps)
        return trainer

    def baselines(self, frozen: FrozenFeatures, data: LoadedData) -> Baselines:
        pairs = {split: found for split, each in frozen.splits.items() if (found := each.pairs()) is not None}
        if "train" not in pairs:
            return {}
        evaluated: list[str] = list(self.recipe.evaluation.splits)
        tested = {split: pairs[split] for split in evaluated if split in pairs and split != "train"}
        search = self.search_linear_maps(pairs["train"], pairs.get("validation"))
        return by_split({"frozen projections": frozen_projections(search, tested)})

    def search_linear_maps(self, train: Pairs, validation: Pairs | None) -> LinearMapsSearch:
        """The linear maps of features; once, where a stage starts from those that are the baseline, too."""
        if self._searched is None or not self._searched.is_of(train, validation):
            dims = (*DIMS, self.recipe.model.embedding_dim)
            self._searched = LinearMapsSearch(train, validation, dims=dims)
        return self._searched

    def write_report(self, run: RunFacts, measured: Mapping[str, MeasuredRetrieval]) -> None:
        write_retrieval_report(run, measured, protocols={**self.protocols, **UNIQUE_TEXT_PROTOCOLS})

    def example_inputs(self, batch_size: int, device: str) -> Mapping[str, torch.Tensor]:
        tokens = torch.ones(batch_size, self.recipe.data.max_length, dtype=torch.long, device=device)
        return {**super().example_inputs(batch_size, device), "input_ids": tokens}

    def _check_metric_names(self) -> None:
        super()._check_metric_names()
        best = str(self.recipe.training.get("metric_for_best_model", "")).removeprefix("eval_")
        if best in ZERO_SHOT_PROTOCOLS and self.recipe.evaluation.zero_shot is None:
            raise InputError(f"training.metric_for_best_model: {best} needs `evaluation.zero_shot`, which is absent")

    def _probe(self, processor: DualEncoderProcessor) -> ZeroShotProbe | None:
        section = self.recipe.evaluation.zero_shot
        if section is None:
            return None
        return ZeroShotProbe(section.templates, self._labelled_data, processor, on_bad_image=section.data.on_bad_image)

    @functools.cached_property
    def _labelled_data(self) -> LoadedData:
        assert self.recipe.evaluation.zero_shot is not None
        return load_data(self.recipe.evaluation.zero_shot.data, task="image-classification")

    def _training_captions(self, data: LoadedData) -> list[str]:
        rows: Any = data.splits["train"]
        if not isinstance(rows, datasets.Dataset):
            raise InputError(
                "model.text.tokenizer: none is named, and one cannot be learnt from a stream; name a tokenizer"
            )
        return [caption for captions in rows["captions"] for caption in captions]


class _Evaluator(ReadsFeatures, ContrastiveEvaluator):
    """Measures what is trained already."""


def _table(data: LoadedData, split: str) -> datasets.Dataset:
    rows = data.splits[split]
    if not isinstance(rows, datasets.Dataset):
        raise InputError(f"{split}: a stream cannot be searched; give the split as a table")
    return rows


def _training_metrics(prediction: EvalPrediction, *, sizes: Sequence[int]) -> dict[str, float]:
    found = SplitEmbeddings.of(prediction.predictions, prediction.label_ids)
    return {
        **retrieval_metrics(found.images, found.texts, found.owners),
        **prefix_recalls(found.images, found.texts, found.owners, sizes),
    }


def _examples(
    evaluation: RetrievalEvaluation, found: SplitEmbeddings, dataset: CaptionDataset
) -> list[RetrievalExample]:
    examples = []
    for row, rank in worst_captions(evaluation):
        wanted = dataset[row]
        nearest = int((found.images @ found.texts[row]).argmax())
        image = small_image(wanted["image"])
        instead = dataset.table[int(found.rows[nearest])]["captions"][0]
        examples.append(
            RetrievalExample(id=wanted["id"], image=image, caption=wanted["caption"], rank=rank, found_instead=instead)
        )
    return examples


class ZeroShotProbe:
    """Measures a trainer's dual encoder on labelled images.

    Args:
        templates (`str` or `Sequence[str]`): The prompts, or their name in `NAMED_TEMPLATES`.
        data (`LoadedData`): The images, and the names of their classes.
        processor (`DualEncoderProcessor`): Makes the model's inputs.
        on_bad_image (`str`, defaults to `"skip"`): What becomes of an image that cannot be read.
        bad_examples (`BadExampleLog`, *optional*): Where it is listed.

    Raises:
        InputError: A template has no place for the class.
    """

    def __init__(
        self,
        templates: str | Sequence[str],
        data: LoadedData,
        processor: DualEncoderProcessor,
        *,
        on_bad_image: Literal["skip", "blank", "mask", "raise"] = "skip",
        bad_examples: BadExampleLog | None = None,
    ) -> None:
        self.templates = templates_of(templates)
        fill_templates("class", self.templates)
        self.data = data
        self.processor = processor
        self.on_bad_image = on_bad_image
        self.bad_examples = bad_examples

    def measure(self, trainer: Trainer, split: str) -> dict[str, float]:
        """The numbers that `ZERO_SHOT_PROTOCOLS` defines; none when the labelled data has no such split.

        Raises:
            InputError: The split is a stream.
        """
        rows = self.data.splits.get(split)
        if rows is None:
            return {}
        if not isinstance(rows, datasets.Dataset):
            raise InputError("evaluation.zero_shot.data: a stream cannot be measured; set streaming: false")
        assert isinstance(trainer.model, torch.nn.Module)
        was_training = trainer.model.training
        trainer.model.eval()
        try:
            classes = zero_shot_class_embeddings(
                functools.partial(self._embed_texts, trainer), self.data.label_names, self.templates
            )
            images, labels = self._embed_images(trainer, rows, split)
        finally:
            trainer.model.train(was_training)
        return zero_shot_metrics(images, classes, labels)

    def _embed_texts(self, trainer: Trainer, texts: Sequence[str]) -> torch.Tensor:
        inputs = self.processor(text=list(texts)).to(trainer.args.device)
        embeds: torch.Tensor = _model(trainer)(**inputs).text_embeds
        return embeds

    @torch.no_grad()
    def _embed_images(self, trainer: Trainer, rows: datasets.Dataset, split: str) -> tuple[torch.Tensor, torch.Tensor]:
        collator = ImageCollator(
            self.processor.image_processor,
            on_bad_image=self.on_bad_image,
            bad_examples=self.bad_examples,
            split=f"zero-shot {split}",
        )
        loader = DataLoader(
            RowDataset(rows),
            batch_size=trainer.args.per_device_eval_batch_size,
            num_workers=trainer.args.dataloader_num_workers,
            collate_fn=collator,
        )
        images, labels = [], []
        for batch in trainer.accelerator.prepare_data_loader(loader):
            embeds = _model(trainer)(pixel_values=batch["pixel_values"]).image_embeds
            found = trainer.accelerator.gather_for_metrics((embeds.float(), batch["labels"]))
            images.append(found[0].cpu())
            labels.append(found[1].cpu())
        return torch.cat(images), torch.cat(labels)


def _model(trainer: Trainer) -> torch.nn.Module:
    model = trainer.model_wrapped
    assert isinstance(model, torch.nn.Module)
    return model
