"""From images, texts and columns of a table to the tensors of the fusion classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL.Image import new
from torch import Tensor
from transformers import BaseImageProcessor, BatchFeature, PreTrainedTokenizerBase

from mmhf.models.fusion.column_features import ColumnFeatures, ColumnValues
from mmhf.models.processing import TEXT_INPUTS, Images, PairProcessor, Texts

_NOTHING_SEEN = new("RGB", (32, 32), "white")


class FusionProcessor(PairProcessor):
    """Resize and normalise images, tokenise texts, scale and code columns.

    Args:
        image_processor (`BaseImageProcessor`): Resizing, cropping, mean and standard deviation.
        tokenizer (`PreTrainedTokenizerBase`): Tokenizer of the text encoder.
        max_length (`int`, *optional*): Longest text in tokens, special tokens included; what is longer is cut at the
            end. Absent = the tokenizer's own, else 128.
        text_prefix (`str`): Put before each text, as before those of the table of embeddings that a model was trained
            on.
        columns (`dict`, *optional*): [`ColumnFeatures`], where the model reads columns of a table.
        images_kwargs, text_kwargs, kwargs: As of [`PairProcessor`].
    """

    def __init__(
        self,
        image_processor: BaseImageProcessor | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        max_length: int | None = None,
        text_prefix: str = "",
        columns: dict[str, Any] | None = None,
        images_kwargs: dict[str, Any] | None = None,
        text_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        super().__init__(image_processor, tokenizer, max_length, images_kwargs, text_kwargs, **kwargs)
        self.text_prefix = text_prefix
        self.columns = columns

    @property
    def column_features(self) -> ColumnFeatures | None:
        """What makes a vector of a row's columns; None where the model reads none."""
        return None if self.columns is None else ColumnFeatures.from_dict(self.columns)

    @property
    def model_input_names(self) -> list[str]:
        return [*super().model_input_names, *([] if self.columns is None else ["columns"])]

    def __call__(
        self,
        images: Images = None,
        text: Texts = None,
        masks: bool = False,
        columns: ColumnValues | Sequence[ColumnValues | None] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Prepare a batch.

        Args:
            images: RGB images, as PIL or as uint8 tensors (3, H, W); one or a list, where None is a missing image.
            text: Texts; one or a list, where None is a missing text.
            masks (`bool`, defaults to `False`): Give the masks even where nothing is missing.
            columns: Column → value, as the table has it; one or a list, where None is a row whose columns are not to
                be seen. A column that is not named, or has no value, is a missing value.
            kwargs: Arguments of the parts for this call, by themselves or in `images_kwargs`, `text_kwargs`.

        Returns:
            `BatchFeature` with `pixel_values` (B, 3, S, S) fp32 and `input_ids`, `attention_mask` (B, T) int64, padded
            to the longest text of the batch, and `columns` (B, width) fp32. Where a row lacks its image, text or
            columns, also `image_mask`, `text_mask` or `columns_mask` (B,) int64, with 0 in this row; what stands in
            its place in the other tensors has no effect.

        Raises:
            `ValueError`: nothing is given, or not as many of the one as of the other; an argument that is given twice;
                columns that the model does not read, or a value of the wrong kind.
        """
        if images is None and text is None and columns is None:
            raise ValueError("FusionProcessor needs images, text or both")
        images_kwargs, text_kwargs = self._arguments(kwargs)
        data: dict[str, Tensor] = {}
        if images is not None:
            listed = list(images) if isinstance(images, Sequence) else [images]
            seen = [_NOTHING_SEEN if image is None else image for image in listed]
            data["pixel_values"] = self._pixel_values(seen, images_kwargs)
            data.update(_mask("image_mask", listed, always=masks))
        if text is not None:
            texts = [text] if isinstance(text, str) else list(text)
            encoded = self.tokenizer([self.text_prefix + (each or "") for each in texts], **text_kwargs)
            data.update({name: encoded[name] for name in TEXT_INPUTS if name in encoded})
            data.update(_mask("text_mask", texts, always=masks))
        if columns is not None:
            features = self.column_features
            if features is None:
                raise ValueError("columns are given, but the model reads none")
            rows = [columns] if isinstance(columns, Mapping) else list(columns)
            data["columns"] = features.encode(rows)
            data.update(_mask("columns_mask", rows, always=masks))
        if len({len(tensor) for tensor in data.values()}) > 1:
            counted = (("images", "pixel_values"), ("texts", "input_ids"), ("rows of columns", "columns"))
            raise ValueError(" for ".join(f"{len(data[name])} {what}" for what, name in counted if name in data))
        return BatchFeature(data)


def _mask(name: str, values: Sequence[Any], *, always: bool) -> dict[str, Tensor]:
    present = [value is not None for value in values]
    return {} if all(present) and not always else {name: torch.tensor(present, dtype=torch.int64)}
