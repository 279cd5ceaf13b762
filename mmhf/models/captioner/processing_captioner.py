"""From images and captions to the tensors of the captioner, and from its tokens back to captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import BaseImageProcessor, BatchFeature, PreTrainedTokenizerBase

from mmhf.models.processing import TEXT_INPUTS, Images, PairProcessor, PairProcessorKwargs, Texts
from mmhf.recipe.prompt_template import PromptTemplate, RowValues

PROMPT_INPUTS = ("prompt_ids", "prompt_mask")


class CaptionerProcessorKwargs(PairProcessorKwargs, total=False):
    """As of all families; captions have no special tokens but the one that ends them."""

    _defaults = {  # type: ignore[misc]  # see `PairProcessorKwargs`
        "text_kwargs": {"padding": True, "truncation": True, "max_length": 128, "add_special_tokens": False},
        "common_kwargs": {"return_tensors": "pt"},
    }


class CaptionerProcessor(PairProcessor):
    """Resize and normalise images, tokenise captions, read captions out of tokens.

    Args:
        image_processor (`BaseImageProcessor`): Resizing, cropping, mean and standard deviation.
        tokenizer (`PreTrainedTokenizerBase`): Tokenizer of the language model; its end-of-text token ends a caption.
        max_length (`int`, *optional*): Longest caption in tokens, its end included; what is longer is cut and does not
            end. Absent = the tokenizer's own, else 128.
        prompt_template, prompt_missing (`str`, *optional*): A prompt that names columns, see [`PromptTemplate`]. What
            is longer than `max_length` tokens is cut at its beginning.
        leading_space (`bool`): Captions begin with a space, as words do that follow others: in most vocabularies these
            are other tokens than those that begin a text.
        images_kwargs, text_kwargs, kwargs: As of [`PairProcessor`].
    """

    valid_processor_kwargs = CaptionerProcessorKwargs

    def __init__(
        self,
        image_processor: BaseImageProcessor | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        max_length: int | None = None,
        prompt_template: str | None = None,
        prompt_missing: str | None = None,
        leading_space: bool = False,
        images_kwargs: dict[str, Any] | None = None,
        text_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(image_processor, tokenizer, max_length, images_kwargs, text_kwargs, **kwargs)
        self.prompt_template = prompt_template
        self.prompt_missing = prompt_missing
        self.leading_space = leading_space

    @property
    def prompt(self) -> PromptTemplate | None:
        """What makes a prompt of a row's columns; None where all rows have the same one."""
        return None if self.prompt_template is None else PromptTemplate(self.prompt_template, self.prompt_missing)

    @property
    def model_input_names(self) -> list[str]:
        return [*super().model_input_names, *([] if self.prompt_template is None else PROMPT_INPUTS)]

    def __call__(
        self,
        images: Images = None,
        text: Texts = None,
        columns: RowValues | Sequence[RowValues] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Prepare a batch.

        Args:
            images: RGB images, as PIL or as uint8 tensors (3, H, W); one or a list.
            text: Captions; one or a list.
            columns: Column → value, as the table has it, for the prompt; one or a list.
            kwargs: Arguments of the parts for this call, by themselves or in `images_kwargs`, `text_kwargs`.

        Returns:
            `BatchFeature` with `pixel_values` (B, 3, S, S) fp32 of the images, and of the captions `input_ids` and
            `attention_mask` (B, T) int64: each ended by end of text, padded on the right to the longest of the batch.
            Of columns also `prompt_ids` and `prompt_mask` (B, P) int64, padded on the left.

        Raises:
            `ValueError`: neither images nor captions, or not as many of the one as of the other; an
                argument that is given twice; columns that the prompt does not name, or the lack of one.
        """
        if images is None and text is None and columns is None:
            raise ValueError("CaptionerProcessor needs images, text or both")
        images_kwargs, text_kwargs = self._arguments(kwargs)
        # The model reads captions that are padded on the right, whatever the tokenizer does for other uses.
        text_kwargs["padding_side"] = {**kwargs, **kwargs.get("text_kwargs", {})}.get("padding_side", "right")
        data: dict[str, Tensor] = {}
        if images is not None:
            data["pixel_values"] = self._pixel_values(images, images_kwargs)
        if text is not None:
            data.update(self._tokenize([text] if isinstance(text, str) else list(text), **text_kwargs))
        if columns is not None:
            data.update(self._encode_prompts([columns] if isinstance(columns, Mapping) else list(columns)))
        if len({len(tensor) for tensor in data.values()}) > 1:
            counted = (("images", "pixel_values"), ("captions", "input_ids"), ("rows of columns", "prompt_ids"))
            raise ValueError(" for ".join(f"{len(data[name])} {what}" for what, name in counted if name in data))
        return BatchFeature(data)

    def captions(self, token_ids: Tensor | list[list[int]]) -> list[str]:
        """Captions that the model generated, without what ends them and pads them."""
        return [text.strip() for text in self.tokenizer.batch_decode(token_ids, skip_special_tokens=True)]

    def count_tokens(self, captions: Sequence[str]) -> list[int]:
        """Tokens of each caption with its end; more than `max_length` are cut."""
        return [len(ids) + 1 for ids in self.caption_ids(captions)]

    def caption_ids(self, captions: Sequence[str], **options: Any) -> list[list[int]]:
        """Token ids of whole captions, without what ends them.

        Args:
            captions (`Sequence[str]`): The captions.
            options: Of the tokenizer.
        """
        texts = [f" {caption}" for caption in captions] if self.leading_space else list(captions)
        return self._token_ids(texts, **options)

    def count_prompt_tokens(self, rows: Sequence[RowValues]) -> list[int]:
        """Tokens of each row's prompt; more than `max_length` are cut."""
        template = self.prompt
        return [] if template is None else [len(ids) for ids in self._token_ids([template.fill(row) for row in rows])]

    @property
    def longest_prompt(self) -> int:
        """Tokens of a prompt, beyond which it is cut at its beginning."""
        return min(self.tokenizer.model_max_length, 128) if self.max_length is None else self.max_length

    def _encode_prompts(self, rows: list[RowValues]) -> dict[str, Tensor]:
        template = self.prompt
        if template is None:
            raise ValueError("columns are given, but the model's prompt names none")
        prompts = [ids[-self.longest_prompt :] for ids in self._token_ids([template.fill(row) for row in rows])]
        width = max(map(len, prompts), default=0)
        padding = [self.tokenizer.pad_token_id]
        padded = [[*padding * (width - len(ids)), *ids] for ids in prompts]
        mask = [[*[0] * (width - len(ids)), *[1] * len(ids)] for ids in prompts]
        shape = (len(rows), width)
        tensors = (torch.tensor(values, dtype=torch.int64).view(shape) for values in (padded, mask))
        return dict(zip(PROMPT_INPUTS, tensors, strict=True))

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
        ended = [[*ids, self.tokenizer.eos_token_id][:longest] for ids in self.caption_ids(captions, **options)]
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

    def _token_ids(self, texts: list[str], **options: Any) -> list[list[int]]:
        return self.tokenizer(texts, **{"add_special_tokens": False, **options})["input_ids"] if texts else []
