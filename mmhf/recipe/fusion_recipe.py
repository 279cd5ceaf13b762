"""The recipe of fusion classifiers, the task image-text-classification."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import model_validator

from mmhf.conventions import FusedModality, Modality
from mmhf.recipe.classification import ClassificationEvaluationSection, ClassificationRecipe, LossSection
from mmhf.recipe.data_sections import HubDataSection, TableDataSection
from mmhf.recipe.data_sources import JoinedClassesSection, PairDataSection
from mmhf.recipe.node import KeyPath, Problem, shown
from mmhf.recipe.sections import (
    EncoderSection,
    Fraction,
    HiddenLayersSection,
    ModelSection,
    NonNegativeFloat,
    PositiveInt,
    Section,
    TextEncoderSection,
    VisionEncoderSection,
)


class ProjectionSection(HiddenLayersSection):
    """How an encoder's output becomes an embedding: hidden layers, then a linear one to `embedding_dim`."""

    hidden_dims: list[PositiveInt] = []
    """Widths of the hidden layers; empty = the linear layer alone, without dropout."""

    @model_validator(mode="after")
    def _has_what_it_drops(self) -> ProjectionSection:
        if self.dropout and not self.hidden_dims:
            raise ValueError(f"dropout {self.dropout} is for hidden layers, and `hidden_dims` is empty")
        return self


class FusionSection(HiddenLayersSection):
    strategy: Literal["concat_mlp", "weighted_sum", "product_difference", "gated"] = "concat_mlp"
    hidden_dims: list[PositiveInt] = [256]
    """Widths of the hidden layers between the fused embedding and the classifier; may be empty."""
    dropout: Fraction | list[Fraction] = 0.5
    """After each hidden layer, or after the fused embedding if there is none: one for all, or one each."""
    normalize: bool = False
    """L2-normalise the embeddings before they are fused."""

    def _num_dropouts(self) -> int:
        return max(len(self.hidden_dims), 1)


class TableColumnsSection(ProjectionSection):
    """Columns of the data that are read beside image and text: a third modality (docs/columns.md)."""

    numbers: list[str] = []
    """Columns of numbers, such as `age`: less the median of the training rows, over their interquartile range, and a
    flag for what is missing."""
    categories: list[str] = []
    """Columns of categories, such as `sex`: those of the training rows, and missing; any other is unknown."""
    min_rows: PositiveInt = 1
    """Categories with fewer training rows than this are unknown, too."""

    @model_validator(mode="after")
    def _names_columns_once(self) -> TableColumnsSection:
        names = [*self.numbers, *self.categories]
        if not names:
            raise ValueError("name columns in `numbers`, `categories` or both")
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"{twice!r} is named twice; a column is a number or a category")
        if taken := next((name for name in names if name in ("image", "text")), None):
            raise ValueError(f"{taken!r} is read already; name columns beside image and text")
        return self


class ModalityDropoutSection(Section):
    """Hide one modality of training rows at random. A row loses one at most, and rows with only one keep it."""

    image: Fraction = 0.0
    """Share of the rows that lose their image."""
    text: Fraction = 0.0
    """Share of the rows that lose their text; the shares may add up to 1 at most."""
    columns: Fraction = 0.0
    """Share of the rows that lose their columns (`model.columns`)."""

    @model_validator(mode="after")
    def _leaves_one(self) -> ModalityDropoutSection:
        total = self.image + self.text + self.columns
        if total > 1.0:
            names = "image + text + columns" if self.columns else "image + text"
            raise ValueError(f"{names} = {total:g} is above 1, and no row may lose both")
        return self


class ModalitiesSection(Section):
    """How missing images and texts are handled, and which are hidden on purpose.

    A model that meets rows without an image, or a text, in training (by `mask`, by `dropout`, or by `mask` as
    `data.on_bad_image` or `data.on_empty_text`) takes such rows in evaluation and prediction, too: blanked images and
    empty texts are missing then.
    """

    stand_in: Literal["zero", "learnt"] = "zero"
    """Stand-in for a missing embedding: zeros, or a vector that is trained with the group `fusion`."""
    mask: FusedModality | None = None
    """Hide this modality of every row, in training, evaluation and prediction; its encoder is not run."""
    dropout: ModalityDropoutSection = ModalityDropoutSection.model_construct()


class FusionTextSection(TextEncoderSection):
    embeddings: str | None = None
    """Parquet file of `mmhf embed --text`: texts are looked up in it, and the text encoder that made it, which
    `backbone` and `pooling` name, is neither loaded nor trained."""

    @model_validator(mode="after")
    def _names_what_made_the_table(self) -> FusionTextSection:
        if self.embeddings is None:
            return self
        if absent := [name for name in ("backbone", "pooling") if name not in self.model_fields_set]:
            raise ValueError(f"embeddings: also write the `{absent[0]}` that the table was made with")
        if not self.pretrained:
            raise ValueError("pretrained: false, but `embeddings` are those of pretrained weights; remove one")
        if self.quantization is not None:
            raise ValueError("with `embeddings` no text encoder is loaded; remove `quantization`")
        return self


class FusionModelSection(ModelSection):
    vision: VisionEncoderSection = VisionEncoderSection.model_construct()
    text: FusionTextSection = FusionTextSection.model_construct()
    embedding_dim: PositiveInt = 512
    """Width of the space that all modalities are projected to."""
    fusion: FusionSection = FusionSection.model_construct()
    image_projection: ProjectionSection = ProjectionSection.model_construct()
    text_projection: ProjectionSection = ProjectionSection.model_construct()
    modalities: ModalitiesSection = ModalitiesSection.model_construct()
    columns: TableColumnsSection | None = None
    """Absent: none are read."""
    freeze_vision: bool = False
    """Shorthand for one stage that trains everything but the vision encoder."""
    freeze_text: bool = False
    """Shorthand for one stage that trains everything but the text encoder."""
    reset_head: bool = False
    """With `init_from`: start with a new head, because the labels differ from the release's."""

    def encoders(self) -> dict[Modality, EncoderSection]:
        return {"image": self.vision, "text": self.text}

    def towers(self) -> list[str]:
        return ["vision"] if self.text.embeddings is not None else ["vision", "text"]

    def frozen_encoders(self) -> list[str]:
        has_text = self.text.embeddings is None
        frozen = {"vision": self.freeze_vision, "text": self.freeze_text and has_text}
        return [name for name, is_frozen in frozen.items() if is_frozen]

    def fused_modalities(self) -> list[FusedModality]:
        """What is fused and not hidden."""
        names: list[FusedModality] = ["image", "text"] if self.columns is None else ["image", "text", "columns"]
        return [name for name in names if name != self.modalities.mask]

    def column_names(self) -> list[str]:
        """The columns that are read."""
        return [] if self.columns is None else [*self.columns.numbers, *self.columns.categories]

    def unused_encoders(self) -> list[str]:
        if self.modalities.mask in ("image", "columns"):
            return ["vision" if self.modalities.mask == "image" else "columns"]
        return ["text"] if self.modalities.mask == "text" and self.text.embeddings is None else []


class AuxiliaryWeightsSection(Section):
    image: NonNegativeFloat = 0.0
    text: NonNegativeFloat = 0.0
    columns: NonNegativeFloat = 0.0


class FusionLossSection(LossSection):
    auxiliary_weight: NonNegativeFloat | AuxiliaryWeightsSection = 0.0
    """Weight of the loss of a classifier on each modality's embedding alone, which keeps all of them learning: one for
    image and text, or one each; 0 = no such classifier. They train with the group `head`, and do not predict."""

    def auxiliary_weights(self) -> dict[str, float]:
        """Modality → weight, for those that have one."""
        given = self.auxiliary_weight
        each = (
            given if isinstance(given, AuxiliaryWeightsSection) else AuxiliaryWeightsSection(image=given, text=given)
        )
        return {modality: weight for modality, weight in each if weight > 0}


class FusionEvaluationSection(ClassificationEvaluationSection):
    by_modality: bool = True
    """Also evaluate with the image alone, the text alone, the columns alone, all but the columns, and each image with
    another row's text, which reveals shortcuts through one modality. Costs some passes through the layers after the
    encoders."""


class FusionRecipe(ClassificationRecipe):
    """A recipe of the task image-text-classification."""

    reads_texts: ClassVar[bool] = True

    task: Literal["image-text-classification"]
    model: FusionModelSection = FusionModelSection.model_construct()
    data: PairDataSection
    loss: FusionLossSection = FusionLossSection.model_construct()
    evaluation: FusionEvaluationSection = FusionEvaluationSection.model_construct()

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        if isinstance(self.data, JoinedClassesSection):
            for name, member in self.data.datasets.items():
                if not member.has_texts:
                    what = "has no texts; join data sets of images with texts, or classify images alone"
                    yield Problem(("data", "datasets", name, "source"), what, shown(member.source))
        modalities, columns = self.model.modalities, self.model.columns
        dropped = {name: share for name, share in modalities.dropout if share}
        left = self.model.fused_modalities()
        if modalities.mask is not None and dropped:
            path: KeyPath = ("model", "modalities", "dropout")
            if len(left) == 1:
                what = f"mask: {modalities.mask} leaves one modality, which `dropout` cannot take away; remove one"
                yield Problem(path, what, shown(dropped))
            elif modalities.mask in dropped:
                yield Problem((*path, modalities.mask), "`mask` hides it already; remove one", shown(dropped))
        if self.evaluation.views is not None and modalities.mask == "image":
            what = "`model.modalities.mask: image` hides the images; remove one"
            yield Problem(("evaluation", "views"), what, shown(self.evaluation.views.changed()))
        if columns is not None:
            yield from self._column_problems()
            return
        named: dict[KeyPath, object] = {
            ("model", "modalities", "mask"): modalities.mask == "columns" and "columns",
            ("model", "modalities", "dropout", "columns"): dropped.get("columns"),
            ("loss", "auxiliary_weight", "columns"): self.loss.auxiliary_weights().get("columns"),
        }
        for path, value in named.items():
            if value:
                yield Problem(path, "there are no columns; name them in `model.columns`", shown(value))

    def _column_problems(self) -> Iterator[Problem]:
        data = self.data
        if data.is_stream():
            what = (
                "`model.columns` are scaled by all training rows, and a stream is not read beforehand; set it to false"
            )
            yield Problem(("data", "streaming"), what, "true")
        tables = [each for each in data.of_one_source() if isinstance(each, TableDataSection | HubDataSection)]
        labels = (data.target and data.target.columns_read()) or [each.columns.label for each in tables]
        for kind in ("numbers", "categories"):
            for place, name in enumerate(getattr(self.model.columns, kind)):
                if name in labels:
                    what = "is the label, which the model is to find; remove it"
                    yield Problem(("model", "columns", kind, place), what, shown(name))
