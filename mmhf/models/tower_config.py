"""What the configurations of all families share: low-rank changes of encoders, and weights that are kept elsewhere."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig


class TowerConfig(PreTrainedConfig):
    """Base of the configuration of a model of encoders ("towers").

    Each family's own names its encoders, and for an encoder `NAME` it has `NAME_quantization`: `bits`, 8 or 4, of the
    frozen weights, and the `library` that rounds them; None, they are in full precision.

    Args:
        lora (`dict`, *optional*): `rank`, `alpha`, `dropout` and `dora` of low-rank changes, and the names of the
            `modules` that have them, such as `vision.encoder.layers.3.attention.query`; absent, none.
        references (`dict[str, str]`, *optional*): `vision`, `text`, `language` → where the weights come from that
            `model.safetensors` leaves out, such as `openai/clip-vit-base-patch32@3d74acf`.
    """

    def __init__(
        self, *, lora: dict[str, Any] | None = None, references: dict[str, str] | None = None, **kwargs: Any
    ) -> None:
        self.lora = None if lora is None else dict(lora)
        self.references = dict(references or {})
        super().__init__(**kwargs)
