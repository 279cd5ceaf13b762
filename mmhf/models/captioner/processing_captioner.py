"""From images and captions to the tensors of the captioner, and from its tokens back to captions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import BatchFeature

from mmhf.models.processing import TEXT_INPUTS, Images, PairProcessor, PairProcessorKwargs, Texts


class CaptionerProcessorKwargs(PairProcessorKwargs, total=False):
    """As of all families; captions have no special tokens but the one that ends them."""

    _defaults = {  # type: ignore[misc]  # see `PairProcessorKwargs`
        "text_kwargs": {"padding": True, "truncation": True, "max_length": 128, "add_special_tokens": False},
        "common_kwargs": {"return_tensors": "pt"},
    }


class CaptionerProcessor(PairProcessor):
    """Resize and normalise images, tokenise captions, read captions out of tokens.

    Args:
        image_processor ([`CLIPImageProcessor`]): Resizing, cropping, mean and standard deviation.
        tokenizer (`PreTrainedTokenizerBase`): Tokenizer of the language model; its end-of-text token ends a caption.
        max_length (`int`, *optional*): Longest caption in tokens, its end included; what is longer is cut and does not
            end. Absent = the tokenizer's own, else 128.
        images_kwargs, text_kwargs, kwargs: As of [`PairProcessor`].
    """

    valid_processor_kwargs = CaptionerProcessorKwargs

    def __call__(
        self,
        images: Images = None,
        text: Texts = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Prepare a batch.

        Args:
            images: RGB images, as PIL or as uint8 tensors (3, H, W); one or a list.
            text: Captions; one or a list.
            kwargs: Arguments of the parts for this call, by themselves or in `images_kwargs`, `text_kwargs`.

        Returns:
            `BatchFeature` with `pixel_values` (B, 3, S, S) fp32 of the images, and of the captions `input_ids` and
            `attention_mask` (B, T) int64: each ended by end of text, padded on the right to the longest of the batch.

        Raises:
            `ValueError`: neither images nor captions, or not as many of the one as of the other; an
                argument that is given twice.
        """
        if images is None and text is None:
            raise ValueError("CaptionerProcessor needs images, text or both")
        images_kwargs, text_kwargs = self._arguments(kwargs)
        # The model reads captions that are padded on the right, whatever the tokenizer does for other uses.
        text_kwargs["padding_side"] = {**kwargs, **kwargs.get("text_kwargs", {})}.get("padding_side", "right")
        data: dict[str, Tensor] = {}
        if images is not None:
            data["pixel_values"] = self._pixel_values(images, images_kwargs)
        if text is not None:
            data.update(self._tokenize([text] if isinstance(text, str) else list(text), **text_kwargs))
        if len({len(tensor) for tensor in data.values()}) > 1:
            raise ValueError(f"{len(data['pixel_values'])} images for {len(data['input_ids'])} captions")
        return BatchFeature(data)

    def captions(self, token_ids: Tensor | list[list[int]]) -> list[str]:
        """Captions that the model generated, without what ends them and pads them."""
        return [text.strip() for text in self.tokenizer.batch_decode(token_ids, skip_special_tokens=True)]

    def count_tokens(self, captions: Sequence[str]) -> list[int]:
        """Tokens of each caption with its end; more than `max_length` are cut."""
        return [len(ids) + 1 for ids in self._token_ids(list(captions))]

    def _tokenize(
        self,
        captions: list[Any],
        *,
        padding: bool | str,
        max_length: int,
        padding_side: str,
        truncation: bool | str = True,
        return_tensors: str | None = "pt",
        **options: Any,
    ) -> dict[str, Any]:
        longest = max_length if truncation else None
        encoded = self.tokenizer(captions, **options)["input_ids"] if captions else []
        ended = [[*ids, self.tokenizer.eos_token_id][:longest] for ids in encoded]
        # Not by `tokenizer.pad`, which warns that a fast tokenizer would be faster, and cannot know the end.
        width = max(map(len, ended), default=0) if padding in (True, "longest") else 0
        width = max_length if padding == "max_length" else width
        rows, mask = [], []
        for ids in ended:
            ones, zeros = [1] * len(ids), [0] * (width - len(ids))
            filling = [self.tokenizer.pad_token_id] * len(zeros)
            rows.append([*ids, *filling] if padding_side == "right" else [*filling, *ids])
            mask.append([*ones, *zeros] if padding_side == "right" else [*zeros, *ones])
        encoding = dict(zip(TEXT_INPUTS, (rows, mask), strict=True))
        return dict(BatchFeature(encoding, tensor_type=return_tensors))

    def _token_ids(self, captions: list[str]) -> list[list[int]]:
        return self.tokenizer(captions, add_special_tokens=False)["input_ids"] if captions else []
