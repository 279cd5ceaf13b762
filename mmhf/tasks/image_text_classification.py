"""The task image-text-classification: fusion classifiers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from torch.distributed.fsdp import register_fsdp_forward_method
from transformers import PreTrainedModel, Trainer

from mmhf.conventions import TEACHER_ANSWERS, Processor
from mmhf.data.collators import ImageCollator, ImageTextCollator
from mmhf.data.loading import LoadedData
from mmhf.data.modalities import ModalityMasking
from mmhf.data.text_embeddings import (
    TextEmbeddingTable,
    TextTableProcessor,
    look_up_texts,
    read_table_encoder,
)
from mmhf.errors import InputError
from mmhf.evaluation.baselines import PairFeatures, Rows, learnt_rows
from mmhf.evaluation.modalities import ModalityEvaluation, evaluate_modalities, other_rows
from mmhf.features.parts import TEXT, VISION, FeaturePart
from mmhf.models.building import check_same_resize, text_values
from mmhf.models.classification_loss import LossSettings
from mmhf.models.fusion import FusionForImageTextClassification, FusionProcessor
from mmhf.models.fusion.building import (
    build_fusion_model,
    build_fusion_processor,
    check_same_columns,
    check_same_table,
    load_fusion_model,
)
from mmhf.models.fusion.column_features import ColumnFeatures
from mmhf.models.text_tables import TableEncoder
from mmhf.recipe.data_sections import FilteredDataSection
from mmhf.recipe.fusion_recipe import FusionRecipe
from mmhf.tasks.base import Baselines
from mmhf.tasks.classification import ClassificationTask
from mmhf.tasks.frozen_features import MOST_ROWS, FrozenFeatures, SplitFeatures, by_split
from mmhf.tasks.table_columns import check_numbers, column_matrix, fit_columns, name_unmet, planned_columns
from mmhf.tasks.targets import Predicted
from mmhf.training.distillation import Teaching

_ROWS_AT_ONCE = 1024
_ROW_INPUTS = (*VISION.inputs, *TEXT.inputs, "columns", "image_mask", "text_mask", "columns_mask")


class ImageTextClassification(ClassificationTask[FusionRecipe]):
    """Fusion classifiers: pairs of an image and a text, with columns of the table where the recipe names them."""

    collator_class = ImageTextCollator
    asked_of_teacher = {"row": FeaturePart("teacher", _ROW_INPUTS, TEACHER_ANSWERS)}

    def build_processor(self, data: LoadedData, *, parent: Path | None = None) -> FusionProcessor:
        if parent is not None:
            released: FusionProcessor = FusionProcessor.from_pretrained(parent)
            check_same_resize(released.image_processor, self.recipe.data, parent)
            check_same_columns(released.columns, self.recipe.model, parent)
            if released.column_features is not None:
                data.bad_examples += name_unmet(released.column_features, data, splits=list(data.splits))
            return released
        columns = None if self.recipe.model.columns is None else fit_columns(self.recipe.model.columns, data)
        processor = build_fusion_processor(
            self.recipe.model, self.recipe.data, text_table=self.text_encoder, columns=columns
        )
        if columns is not None:
            others = [split for split in data.splits if split != "train"]
            data.bad_examples += name_unmet(columns, data, splits=others)
        processor.image_processor = self.normalised_by_data(processor.image_processor, data)
        return processor

    @property
    def embeddings_path(self) -> Path | None:
        """The table of text embeddings, with the data's version in its name."""
        name, data = self.recipe.model.text.embeddings, self.recipe.data
        if name is None:
            return None
        return Path(data.versioned(name) if isinstance(data, FilteredDataSection) else name)

    @functools.cached_property
    def text_table(self) -> TextEmbeddingTable | None:
        """The table of text embeddings that stands for a text encoder."""
        return None if self.embeddings_path is None else TextEmbeddingTable.open(self.embeddings_path)

    @functools.cached_property
    def text_encoder(self) -> TableEncoder | None:
        """What made that table.

        Raises:
            InputError: Not what the recipe says.
        """
        path, section = self.embeddings_path, self.recipe.model.text
        if path is None:
            return None
        table = TableEncoder.from_dict(read_table_encoder(path))
        if section.backbone not in (table.backbone, table.source):
            raise InputError(f"model.text.backbone: {section.backbone}, but {path} was made with {table.backbone}")
        if section.pooling != table.pooling:
            raise InputError(f"model.text.pooling: {section.pooling}, but {path} was made with {table.pooling}")
        if self.recipe.data.max_length != table.max_length:
            raise InputError(
                f"data.max_length: {self.recipe.data.max_length}, but {path} was made with texts of at most "
                f"{table.max_length} tokens; set it so, or make the table anew with mmhf embed --text --max-length"
            )
        return table

    def load_data(self, *, model: PreTrainedModel | None = None, **options: Any) -> LoadedData:
        if model is not None and self.text_encoder is not None:
            config: Any = model.config
            check_same_table(config, self.text_encoder, "the model")
        data = super().load_data(model=model, **options)
        if (section := self.recipe.model.columns) is not None:
            data.read_columns = self.recipe.model.column_names()
            check_numbers(section, data)
            if model is not None:
                features = ColumnFeatures.from_dict(model.config.columns)
                data.bad_examples += name_unmet(
                    features, data, splits=[each for each in data.splits if each != "train"]
                )
            elif "train" in data.splits and self.recipe.init_from is None:
                fit_columns(section, data)  # what is wrong with the columns is said before anything is built
        if self.text_table is None or self.recipe.model.modalities.mask == "text":
            return data
        return look_up_texts(data, self.text_table, may_lack=self.recipe.data.on_empty_text == "mask")

    def extra_columns(self) -> list[str]:
        return list(dict.fromkeys([*super().extra_columns(), *self.recipe.model.column_names()]))

    def model_options(self, data: LoadedData | None) -> dict[str, Any]:
        section = self.recipe.model.columns
        if section is None or self.recipe.init_from is not None:
            return {}
        return {"columns": planned_columns(section) if data is None else fit_columns(section, data)}

    def collator(self, processor: Processor, **options: Any) -> ImageCollator:
        if self.text_table is not None:
            processor = TextTableProcessor(processor, self.text_table)
        return super().collator(processor, **options)

    def teaching(self, data: LoadedData) -> Teaching | None:
        teaching = super().teaching(data)
        if teaching is not None and self.teacher is not None:
            read, known = _columns_read(self.teacher.config), self.recipe.model.column_names()
            if lacking := [name for name in read if name not in known]:
                raise InputError(
                    f"teacher {self.teacher}: it reads the columns {', '.join(lacking)}, which model.columns does not "
                    "name; name them there, too"
                )
        return teaching

    def teacher_collator(self, processor: Processor, config: Any) -> ImageCollator:
        """See [`Task`]; of a row, the teacher sees what it was trained on, as far as the row has it."""
        on_bad_image, on_empty_text = self.recipe.data.on_bad_image, self.recipe.data.on_empty_text
        masking = ModalityMasking(
            mask=config.mask, missing_image=on_bad_image == "mask", missing_text=on_empty_text == "mask"
        )
        columns = _columns_read(config)
        return ImageTextCollator(processor, masking=masking, on_bad_image=on_bad_image, columns=columns)

    def example_inputs(self, batch_size: int, device: str) -> Mapping[str, torch.Tensor]:
        images = super().example_inputs(batch_size, device)
        table = self._encoder_of_table(device)
        if table is not None:
            return {**images, "text_features": torch.zeros(batch_size, table.width, device=device)}
        tokens = torch.ones(batch_size, self.recipe.data.max_length, dtype=torch.long, device=device)
        return {**images, "input_ids": tokens, "attention_mask": tokens}

    def measure_modalities(
        self, model: PreTrainedModel, predicted: Predicted, label_names: list[str]
    ) -> ModalityEvaluation | None:
        if not self._evaluates_by_modality:
            return None
        assert isinstance(model, FusionForImageTextClassification)
        *embeds, modalities = predicted.others
        names, seen = model.config.fused_modalities, self.recipe.model.fused_modalities()
        known = self.target.is_known(predicted.labels)
        rows = np.flatnonzero(modalities[:, [name in seen for name in names]].all(axis=1) & known)
        given, labels = dict(zip(names, (each[rows] for each in embeds), strict=True)), predicted.labels[rows]
        partners = other_rows(len(rows))
        # (Averages over views of an image are not compared with what one view of it says.)
        both = predicted.logits[rows] if model.config.views is None else _classify_view(model, given, seen)
        views = {"both": both}
        views |= {f"{name}_only": _classify_view(model, given, [name]) for name in seen}
        if "columns" in seen and len(seen) > 2:
            views["without_columns"] = _classify_view(model, given, ["image", "text"])
        if "image" in seen and "text" in seen:
            views["mismatched"] = _classify_view(model, {**given, "text": given["text"][partners]}, seen)
        return evaluate_modalities(
            views,
            labels,
            partners,
            label_names,
            comparison=self.target.comparison(model.config),
            modalities=seen,
            num_left_out=int(known.sum()) - len(rows),
        )

    def baselines(self, frozen: FrozenFeatures, data: LoadedData) -> Baselines:
        found = super().baselines(frozen, data)
        own = by_split({f"{self.target.baseline} on columns": self._regression_on_columns(data)})
        return {split: {**found.get(split, {}), **own.get(split, {})} for split in {**found, **own}}

    def _regression_on_columns(self, data: LoadedData) -> dict[str, dict[str, float]]:
        """What the columns alone give; they need no encoder, and take next to no time."""
        section, recipe = self.recipe.model.columns, self.recipe
        if section is None or recipe.evaluation.baselines == "off":
            return {}
        features, rows = fit_columns(section, data), {}
        for split, table in data.splits.items():
            assert isinstance(table, datasets.Dataset)
            if split == "train" and len(table) > MOST_ROWS:
                table = table.select(np.linspace(0, len(table) - 1, MOST_ROWS).astype(np.int64))
            rows[split] = Rows(column_matrix(features, table), np.asarray(table[self.target.column][:]))
        return self._measure_baseline(rows, data)

    def _kinds_of_features(self, train: SplitFeatures) -> dict[str, Callable[[SplitFeatures], NDArray[np.floating]]]:
        if train.texts is None:
            return super()._kinds_of_features(train)
        learnt = learnt_rows(len(train.images), train.images.shape[1] + train.texts.shape[1], 2)
        pairs = PairFeatures(train.images[learnt], train.texts[learnt])
        return {
            "": lambda split: np.concatenate([split.images, _texts(split)], axis=1),
            " on products": lambda split: pairs(split.images, _texts(split)),
        }

    @property
    def _evaluates_by_modality(self) -> bool:
        seen = self.recipe.model.fused_modalities()
        return self.recipe.evaluation.by_modality and len(seen) > 1

    def _predict(self, trainer: Trainer, data: LoadedData, split: str, **options: Any) -> Predicted:
        ignored: list[str] | None = [] if self._evaluates_by_modality else None
        return super()._predict(trainer, data, split, ignore_keys=ignored, **options)

    def collator_options(self, *, is_training: bool) -> dict[str, Any]:
        modalities, data = self.recipe.model.modalities, self.recipe.data
        missing = self.missing_modalities()
        masking = ModalityMasking(
            mask=modalities.mask,
            drop_image=modalities.dropout.image if is_training else 0.0,
            drop_text=modalities.dropout.text if is_training else 0.0,
            drop_columns=modalities.dropout.columns if is_training else 0.0,
            missing_image="image" in missing and data.on_bad_image in ("blank", "mask"),
            missing_text="text" in missing,
        )
        options: dict[str, Any] = {} if masking == ModalityMasking() else {"masking": masking}
        columns = self.recipe.model.column_names()
        return {**options, "columns": columns} if columns else options

    def dropped_parts(self) -> set[str]:
        dropout = self.recipe.model.modalities.dropout
        return {part for part, share in (("vision", dropout.image), ("text", dropout.text)) if share > 0}

    def missing_modalities(self) -> list[str]:
        """Modalities that rows may lack in evaluation and prediction, because some training rows lack them."""
        modalities, data = self.recipe.model.modalities, self.recipe.data
        lacking = {
            "image": modalities.mask == "image" or modalities.dropout.image > 0 or data.on_bad_image == "mask",
            "text": modalities.mask == "text" or modalities.dropout.text > 0 or data.on_empty_text == "mask",
            "columns": modalities.mask == "columns" or modalities.dropout.columns > 0,
        }
        return [modality for modality, may_lack in lacking.items() if may_lack]

    def loss_settings(self, data: LoadedData | None) -> LossSettings:
        return replace(super().loss_settings(data), auxiliary_weights=self.recipe.loss.auxiliary_weights())

    def _fresh_model(self, **options: Any) -> FusionForImageTextClassification:
        missing = self.missing_modalities()
        return build_fusion_model(
            self.recipe.model,
            missing_modalities=missing,
            text_table=self._encoder_of_table(options["device"]),
            **options,
        )

    def _encoder_of_table(self, device: str | None) -> TableEncoder | None:
        """`text_encoder`; while shapes alone are planned, what the recipe says of a table that is yet to be made."""
        path, section = self.embeddings_path, self.recipe.model.text
        if path is None or path.is_file() or device != "meta":
            return self.text_encoder
        width = text_values(section)["text_output"]["width"]
        max_length = self.recipe.data.max_length
        return TableEncoder(section.backbone, section.backbone, "", section.pooling, "", max_length, width)

    def _released_model(self, parent: Path, **options: Any) -> FusionForImageTextClassification:
        missing = self.missing_modalities()
        return load_fusion_model(
            parent,
            self.recipe.model,
            missing_modalities=missing,
            text_table=self._encoder_of_table(options["device"]),
            **options,
        )


def _columns_read(config: Any) -> list[str]:
    """The columns of the table that a fusion classifier reads."""
    if config.columns is None or config.mask == "columns":
        return []
    return ColumnFeatures.from_dict(config.columns).names


def _texts(split: SplitFeatures) -> NDArray[np.float32]:
    assert split.texts is not None
    return split.texts


@torch.no_grad()
def _classify_view(
    model: FusionForImageTextClassification,
    embeds: Mapping[str, NDArray[np.floating]],
    shown: Collection[str],
) -> NDArray[np.floating]:
    """Logits (N, C) of each modality's embeddings (N, D), where some are shown in all rows and the others are not."""
    register_fsdp_forward_method(model, "classify_embeds")
    logits = [np.zeros((0, len(model.config.id2label or {})))]
    for start in range(0, len(embeds["image"]), _ROWS_AT_ONCE):
        parts = [
            torch.from_numpy(each[start : start + _ROWS_AT_ONCE]).to(model.device, model.dtype)
            for each in embeds.values()
        ]
        seen = torch.tensor([[name in shown for name in embeds]], device=model.device)
        modalities = seen.expand(len(parts[0]), -1)
        logits.append(model.classify_embeds(parts, modalities).float().cpu().numpy())
    return np.concatenate(logits)
