"""The task image-captioning: prefix captioners."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from transformers import PreTrainedModel, Trainer, TrainingArguments

from mmhf.conventions import Processor
from mmhf.data.bad_examples import BadExample
from mmhf.data.caption_collators import CaptioningCollator
from mmhf.data.caption_datasets import CaptionDataset, find_long_captions
from mmhf.data.loading import LoadedData
from mmhf.data.streams.captions import StreamedCaptions
from mmhf.data.table import extra_column
from mmhf.evaluation.baselines import CPU_SECONDS
from mmhf.evaluation.captions import CAPTION_PROTOCOLS, CaptionEvaluation, caption_metrics, evaluate_captions
from mmhf.evaluation.captions.baselines import (
    best_constant_caption,
    frequent_answers,
    nearest_answers,
    nearest_neighbour_captions,
)
from mmhf.evaluation.captions.clip_score import ClipScorer
from mmhf.evaluation.captions.metrics import ANSWER_NUMBERS
from mmhf.evaluation.report.captions import MeasuredCaptions, scores_of_image, spread_rows, write_captions_report
from mmhf.evaluation.report.page import CaptionExample, small_image
from mmhf.evaluation.report.sections import RunFacts
from mmhf.features.choice import PartChoice
from mmhf.models.building import check_same_resize
from mmhf.models.captioner import CaptionerProcessor, PrefixCaptionerForConditionalGeneration
from mmhf.models.captioner.building import (
    build_captioner_model,
    build_captioner_processor,
    generation_config,
    load_captioner_model,
    set_prompt,
)
from mmhf.recipe.captioner_recipe import CaptioningRecipe
from mmhf.recipe.prompt_template import PromptTemplate
from mmhf.tasks.base import Baselines, Task
from mmhf.tasks.frozen_features import MOST_ROWS, FrozenFeatures, SplitFeatures
from mmhf.tasks.joined_data import training_captions
from mmhf.tasks.neighbours import NeighboursStart, neighbour_values, refuse_neighbours_without_features
from mmhf.tasks.subgroup_tables import subgroup_values, tables_by_value
from mmhf.training.captioning import CaptioningTrainer, run_captioner
from mmhf.training.evaluator import ReadsFeatures
from mmhf.training.stages import StagePlan
from mmhf.training.trainer import MMTrainer

logger = logging.getLogger(__name__)

_NEAREST = "nearest neighbour"


class ImageCaptioning(Task[CaptioningRecipe, MeasuredCaptions]):
    """Prefix captioners."""

    protocols = CAPTION_PROTOCOLS
    collator_class = CaptioningCollator
    trainer_class = CaptioningTrainer
    refers_to_frozen = True

    def __init__(self, recipe: CaptioningRecipe) -> None:
        if not recipe.evaluation.answers:
            self.protocols = {name: text for name, text in CAPTION_PROTOCOLS.items() if name not in ANSWER_NUMBERS}
        super().__init__(recipe)

    def build_processor(self, data: LoadedData, *, parent: Path | None = None) -> CaptionerProcessor:
        if parent is not None:
            processor = CaptionerProcessor.from_pretrained(parent)
            check_same_resize(processor.image_processor, self.recipe.data, parent)
            processor.max_length = self.recipe.data.max_length
            set_prompt(processor, self.recipe.model)
        else:
            captions = [text for of_image in _captions(data, "train") for text in of_image]
            processor = build_captioner_processor(self.recipe.model, self.recipe.data, captions)
        rows = data.splits.get("train")
        if isinstance(rows, datasets.Dataset):
            assert processor.max_length is not None
            cut = find_long_captions(rows, processor.count_tokens, processor.max_length, split="train")
            data.bad_examples.extend(cut)
            if cut:
                limit = processor.max_length
                logger.warning("%d training captions are longer than data.max_length (%d) and cut", len(cut), limit)
        for split, table in data.splits.items():
            if isinstance(table, datasets.Dataset) and (names := self.prompt_columns()):
                data.bad_examples.extend(_long_prompts(table, names, processor, split))
        return processor

    def load_data(self, **options: Any) -> LoadedData:
        data = super().load_data(**options)
        data.read_columns = self.prompt_columns()
        return data

    def extra_columns(self) -> list[str]:
        section = self.recipe.model.neighbours
        apart = [section.apart] if section is not None and section.apart is not None else []
        return list(dict.fromkeys([*super().extra_columns(), *self.prompt_columns(), *apart]))

    def prompt_columns(self) -> list[str]:
        """The columns that prompts name."""
        return self.recipe.model.prompt_template().names

    def required_columns(self) -> list[str]:
        return self.prompt_columns() if self.recipe.model.prompt_missing is None else []

    def collator_options(self, *, is_training: bool) -> dict[str, Any]:
        return {
            "columns": self.prompt_columns(),
            "tells_images": is_training and self.recipe.model.neighbours is not None,
        }

    def plan_facts(self, num_rows: int | None) -> dict[str, str]:
        section = self.recipe.model.neighbours
        if section is None:
            return {}
        known = "the training images" if num_rows is None else f"{min(num_rows, MOST_ROWS):,} training images"
        apart = "" if section.apart is None else f"; in training, none of the same {section.apart}"
        how = "" if section.whiten is None else ", by whitened features"
        return {"neighbours": f"captions of {section.count} of {known}{how}, which the model keeps{apart}"}

    def check_features(self, plan: StagePlan, choices: Sequence[Sequence[PartChoice]]) -> None:
        if self.recipe.model.neighbours is not None:
            refuse_neighbours_without_features(plan, choices)

    def stored_parts(self) -> set[str]:
        return set() if self.recipe.model.neighbours is None else {"vision"}

    def make_trainer(self, data: LoadedData, **options: Any) -> MMTrainer:
        trainer = super().make_trainer(data, **options)
        section = self.recipe.model.neighbours
        if section is not None:
            trainer.stages.starts = NeighboursStart(section, trainer, data, options["processor"])
        return trainer

    def build_model(
        self,
        data: LoadedData | None,
        *,
        processor: Processor | None = None,
        parent: Path | None = None,
        device: str | None = None,
    ) -> PrefixCaptionerForConditionalGeneration:
        assert processor is None or isinstance(processor, CaptionerProcessor)
        section = self.recipe.model
        if parent is None:
            image_size = self.recipe.data.image_size
            model = build_captioner_model(section, processor=processor, image_size=image_size, device=device)
        else:
            model = load_captioner_model(parent, section, device=device)
        neighbours = section.neighbours
        model.keep_neighbours(None if neighbours is None else neighbour_values(neighbours, data, processor))
        if processor is not None:
            model.generation_config = generation_config(self.recipe.generation, processor)
        return model

    def num_train_rows(self, data: LoadedData) -> int | None:
        rows = data.splits.get("train")
        if isinstance(rows, datasets.Dataset) and self.recipe.data.captions == "all":
            return sum(len(of_image) for of_image in rows["captions"])
        return super().num_train_rows(data)

    def torch_dataset(self, data: LoadedData, split: str) -> Any:
        rows: Any = data.splits[split]
        if split != "train":
            return CaptionDataset(rows)
        return training_captions(self.recipe.data, rows, seed=self.recipe.training.get("seed", 42))

    def trainer_options(self, data: LoadedData, processor: Processor) -> dict[str, Any]:
        section, rows = self.recipe.evaluation, data.splits.get("validation")
        if not section.generate or not isinstance(rows, datasets.Dataset):
            return {}
        numbers = np.random.default_rng(section.generate_seed).permutation(len(rows))[: section.generate_rows]
        chosen = rows.select(sorted(numbers.tolist()))
        references: list[list[str]] = chosen["captions"][:]

        def measure(captions: Sequence[str], rows_of: Sequence[int]) -> dict[str, float]:
            return caption_metrics(captions, [references[row] for row in rows_of], answers=section.answers)

        return {"written_rows": CaptionDataset(chosen), "measure": measure}

    def measure(self, trainer: Trainer, data: LoadedData, split: str) -> MeasuredCaptions:
        rows = data.splits[split]
        assert isinstance(rows, datasets.Dataset)
        collator: Any = trainer.data_collator
        loader = trainer.get_test_dataloader(self.torch_dataset(data, split))
        written = run_captioner(trainer, loader, collator.processor)
        usable = [number for number, is_usable in enumerate(written.is_usable) if is_usable]
        captions, of_captions = [written.captions[number] for number in usable], rows.select(usable)
        references = of_captions["captions"][:]
        clip, clip_scores = self.recipe.evaluation.clip, None
        if clip is not None and captions:
            clip_scores = ClipScorer.from_pretrained(clip).score(of_captions["image"][:], captions)
        evaluation = evaluate_captions(
            captions,
            references,
            clip_scores=clip_scores,
            answers=self.recipe.evaluation.answers,
            loss=written.loss,
            resamples=self.recipe.evaluation.bootstrap,
        )
        prompt = self.recipe.model.prompt_template()
        examples = _examples(evaluation, of_captions, captions, prompt)

        def measure(places: np.ndarray) -> dict[str, float]:
            written_of, expected = [captions[place] for place in places], [references[place] for place in places]
            return caption_metrics(written_of, expected, answers=self.recipe.evaluation.answers)

        tables = tables_by_value(subgroup_values(self.recipe, of_captions), measure)
        return MeasuredCaptions(evaluation, examples=examples, tables=tables)

    def write_report(self, run: RunFacts, measured: Mapping[str, MeasuredCaptions]) -> None:
        decoding = ", ".join(f"{key} {value}" for key, value in self.recipe.generation.model_dump().items())
        write_captions_report(replace(run, trained={**run.trained, "decoding": decoding}), measured)

    def make_evaluator(self, model: PreTrainedModel, args: TrainingArguments, collator: Any) -> ReadsFeatures:
        """A trainer that only evaluates; it writes captions as the recipe says, which may not be the model's way."""
        model.generation_config = generation_config(self.recipe.generation, collator.processor)
        return super().make_evaluator(model, args, collator)

    def example_inputs(self, batch_size: int, device: str) -> Mapping[str, torch.Tensor]:
        tokens = torch.ones(batch_size, self.recipe.data.max_length, dtype=torch.long, device=device)
        inputs = {**super().example_inputs(batch_size, device), "input_ids": tokens, "labels": tokens}
        if self.prompt_columns() or self.recipe.model.neighbours is not None:
            # As for captions: as long as they may be.
            inputs |= {"prompt_ids": tokens, "prompt_mask": tokens}
        return inputs

    def baselines(self, frozen: FrozenFeatures, data: LoadedData) -> Baselines:
        """What the best constant caption scores, or the most frequent answer to each question, and, by frozen
        features, the caption or answer of the most similar training image."""
        train = data.splits.get("train")
        if self.recipe.evaluation.baselines == "off" or not isinstance(train, datasets.Dataset):
            return {}
        found: dict[str, dict[str, dict[str, float]]] = {}
        constant: str | None = None
        for split in self.recipe.evaluation.splits:
            rows, features = data.splits.get(split), frozen.splits.get(split)
            if split == "train" or not isinstance(rows, datasets.Dataset):
                continue
            references = _captions_of(rows, np.arange(len(rows)) if features is None else features.rows)
            begun = time.process_time()
            of_train, answers = frozen.splits.get("train"), self.recipe.evaluation.answers
            if answers:
                named = self._plain_answers(train, rows, of_train, features)
            else:
                constant = best_constant_caption(train["captions"][:]) if constant is None else constant
                named = {"best constant caption": [constant] * len(references)}
                if of_train is not None and features is not None:
                    known = _captions_of(train, of_train.rows)
                    named[_NEAREST] = nearest_neighbour_captions(of_train.images, known, features.images)
            for name, captions in named.items():
                scores = caption_metrics(captions, references, answers=answers) if captions else {}
                found.setdefault(split, {})[name] = {**scores, CPU_SECONDS: time.process_time() - begun}
                begun = time.process_time()
        return found

    def _plain_answers(
        self,
        train: datasets.Dataset,
        rows: datasets.Dataset,
        of_train: SplitFeatures | None,
        features: SplitFeatures | None,
    ) -> dict[str, list[str]]:
        """Answers to the questions of a split, of those rows that have features where there are some."""
        prompt = self.recipe.model.prompt_template()
        known, asked = (
            [prompt.fill(row) for row in _row_values(table, prompt.names)]
            for table in (train, rows if features is None else rows.select(features.rows))
        )
        named = {"most frequent answer to the question": frequent_answers(known, train["captions"][:], asked)}
        if of_train is not None and features is not None:
            answers, of_rows = _captions_of(train, of_train.rows), [known[row] for row in of_train.rows]
            named[_NEAREST] = nearest_answers(of_train.images, of_rows, answers, features.images, asked)
        return named


def _captions(data: LoadedData, split: str) -> list[list[str]]:
    rows = data.splits.get(split)
    if isinstance(rows, StreamedCaptions):
        return list(rows.read_captions())
    return rows["captions"][:] if isinstance(rows, datasets.Dataset) else []


def _long_prompts(
    table: datasets.Dataset, names: Sequence[str], processor: CaptionerProcessor, split: str
) -> list[BadExample]:
    """The rows of a split whose prompts are cut; also counted in the log."""
    assert processor.max_length is not None
    columns = table.select_columns(["row", "id"])[:]
    counts = processor.count_prompt_tokens(_row_values(table, names))
    reason = "the prompt has {} tokens; it is cut at its beginning to {}"
    found = [
        BadExample(split, row, name, reason.format(count, processor.max_length))
        for row, name, count in zip(columns["row"], columns["id"], counts, strict=True)
        if count > processor.max_length
    ]
    if found:
        logger.warning("%d prompts of %s are longer than data.max_length and cut", len(found), split)
    return found


def _row_values(table: datasets.Dataset, names: Sequence[str]) -> list[dict[str, Any]]:
    """What the rows have in the columns that a prompt names."""
    columns = table.select_columns([extra_column(name) for name in names])[:]
    values = zip(*(columns[extra_column(name)] for name in names), strict=True)
    return [dict(zip(names, row, strict=True)) for row in values]


def _captions_of(table: datasets.Dataset, rows: np.ndarray) -> list[list[str]]:
    captions = table.select_columns("captions")[:]["captions"]
    return [captions[row] for row in rows]


def _examples(
    evaluation: CaptionEvaluation, rows: datasets.Dataset, captions: Sequence[str], prompt: PromptTemplate
) -> list[CaptionExample]:
    if not captions:
        return []
    examples = []
    for number in spread_rows(evaluation.per_image["rougeL"]):
        row = rows[number]
        asked = prompt.fill({name: row[extra_column(name)] for name in prompt.names}) if prompt.names else ""
        examples.append(
            CaptionExample(
                id=f"{row['id']} · {asked}" if asked else row["id"],
                image=small_image(row["image"]),
                generated=captions[number],
                references=row["captions"],
                scores=scores_of_image(evaluation, number),
            )
        )
    return examples
