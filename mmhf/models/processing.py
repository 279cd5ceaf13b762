"""What the processors of all families share: images and texts to tensors, each by its own part.

Depends on torch, transformers and pillow only, so that a release can carry this file.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any

from PIL.Image import Image
from torch import Tensor
from transformers import BaseImageProcessor, PreTrainedTokenizerBase, ProcessorMixin
from transformers.processing_utils import ProcessingKwargs

_MODALITIES = ("images_kwargs", "text_kwargs")
TEXT_INPUTS = ("input_ids", "attention_mask")
Images = Image | Tensor | Sequence[Image | Tensor | None] | None
Texts = str | Sequence[str | None] | None


class PairProcessorKwargs(ProcessingKwargs, total=False):
    """What is done to images and texts where neither the call, the processor nor its parts say something else."""

    _defaults = {  # type: ignore[misc]  # as `ProcessingKwargs` asks for, and no checker allows
        "text_kwargs": {"padding": True, "truncation": True, "max_length": 128},
        "common_kwargs": {"return_tensors": "pt"},
    }


class PairProcessor(ProcessorMixin):
    """Base of the families' processors.

    Args:
        image_processor (`BaseImageProcessor`): Resizing, cropping, mean and standard deviation.
        tokenizer (`PreTrainedTokenizerBase`): Tokenizer of the text encoder.
        max_length (`int`, *optional*): Longest text in tokens, special tokens included; what is longer is cut at the
            end. Absent = the tokenizer's own, else that of the defaults.
        images_kwargs, text_kwargs (`dict`, *optional*): Arguments of the parts, such as `do_rescale=False` and
            `padding="max_length"`, that calls of this processor have unless they say otherwise.
        kwargs: The same arguments by themselves.
    """

    image_processor: BaseImageProcessor
    tokenizer: PreTrainedTokenizerBase
    valid_processor_kwargs = PairProcessorKwargs

    def __init__(
        self,
        image_processor: BaseImageProcessor | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        max_length: int | None = None,
        images_kwargs: dict[str, Any] | None = None,
        text_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(image_processor, tokenizer)
        self.max_length = max_length
        # Kept under the names of the arguments: these are what `save_pretrained` writes and `from_pretrained` reads.
        for modality, values in zip(_MODALITIES, (images_kwargs, text_kwargs), strict=True):
            known = self.valid_processor_kwargs.__annotations__[modality].__annotations__
            nested = dict(values or {})
            flat = {name: value for name, value in kwargs.items() if name in known}
            if twice := sorted(nested.keys() & flat.keys()):
                raise ValueError(f"Keyword argument {twice[0]} was passed two times: in {modality} and by itself")
            if nested or flat:
                setattr(self, modality, {**nested, **flat})

    @property
    def model_input_names(self) -> list[str]:
        return ["pixel_values", *TEXT_INPUTS]

    def save_pretrained(self, save_directory: str | PathLike[str], *args: Any, **kwargs: Any) -> list[str]:
        """Save; the files do not depend on what was tokenised before."""
        if self.tokenizer.is_fast:
            # A fast tokenizer keeps, and saves, the truncation and padding of its last call.
            self.tokenizer.backend_tokenizer.no_truncation()
            self.tokenizer.backend_tokenizer.no_padding()
        written: list[str] = super().save_pretrained(save_directory, *args, **kwargs)
        return written

    def _pixel_values(self, images: Images, options: dict[str, Any]) -> Tensor:
        given: Any = images  # transformers 5.24 names lists of one kind alone
        pixel_values: Tensor = self.image_processor(given, **options)["pixel_values"]
        return pixel_values

    def _arguments(self, kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Arguments of the image processor and of the tokenizer for a call with `kwargs`.

        Raises:
            `ValueError`: one is given twice, by itself and in `images_kwargs` or `text_kwargs`.
        """
        merged = self._merge_kwargs(
            self.valid_processor_kwargs,  # type: ignore[arg-type]  # the class is meant
            tokenizer_init_kwargs=self.tokenizer.init_kwargs,
            **kwargs,
        )
        own = {modality: dict(vars(self).get(modality, {})) for modality in _MODALITIES}
        if self.max_length is not None:
            own["text_kwargs"].setdefault("max_length", self.max_length)
        for modality, values in own.items():
            given = kwargs.keys() | (kwargs.get(modality) or {}).keys()
            merged[modality].update({name: value for name, value in values.items() if name not in given})
        return merged["images_kwargs"], merged["text_kwargs"]
