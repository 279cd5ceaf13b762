"""CLIPScore: how well a caption fits its image in the eyes of a CLIP, without references."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from transformers import AutoModel, AutoProcessor, PreTrainedModel

from mmhf.conventions import Processor
from mmhf.data.images import ImageInput, decode_image

SCALE = 2.5
PROMPT = "A photo depicts "


def clip_scores(image_embeds: ArrayLike, text_embeds: ArrayLike) -> NDArray[np.float64]:
    """2.5 x max(0, cosine) of each image and its caption.

    Hessel et al., 2021, https://arxiv.org/abs/2104.08718.

    Args:
        image_embeds, text_embeds (`ArrayLike` of shape `(N, D)`): Need not be normalised.

    Returns:
        `NDArray[np.float64]` of shape `(N,)`: from 0 to 2.5.
    """
    images, texts = np.asarray(image_embeds, dtype=np.float64), np.asarray(text_embeds, dtype=np.float64)
    norms = np.linalg.norm(images, axis=1) * np.linalg.norm(texts, axis=1)
    cosines = (images * texts).sum(axis=1) / np.maximum(norms, np.finfo(np.float64).tiny)
    scores: NDArray[np.float64] = SCALE * np.maximum(0, cosines)
    return scores


class ClipScorer:
    """Scores captions with a CLIP: any model with `get_image_features` and `get_text_features`.

    Args:
        model (`PreTrainedModel`): Put into eval mode.
        processor (`Processor`): Makes its inputs from `images=` and `text=`.
        batch_size (`int`, *optional*, defaults to 64): Images encoded at once.
    """

    def __init__(self, model: PreTrainedModel, processor: Processor, *, batch_size: int = 64) -> None:
        self.model = model.eval()
        self.processor = processor
        self.batch_size = batch_size

    @classmethod
    def from_pretrained(cls, name: str, *, batch_size: int = 64) -> ClipScorer:
        """The CLIP of a folder or a Hub repository, on a GPU where there is one."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(
            AutoModel.from_pretrained(name).to(device), AutoProcessor.from_pretrained(name), batch_size=batch_size
        )

    @torch.inference_mode()
    def score(self, images: Sequence[ImageInput], captions: Sequence[str]) -> NDArray[np.float64]:
        """CLIPScore of each image's caption; 0 for an empty one.

        Args:
            images (`Sequence[ImageInput]`): N, of any kind that `decode_image` opens; opened a batch at a time.
            captions (`Sequence[str]`): N.

        Returns:
            `NDArray[np.float64]` of shape `(N,)`: from 0 to 2.5.

        Raises:
            BadImageError: An image cannot be read.
        """
        if len(images) != len(captions):
            raise ValueError(f"{len(images)} images, but {len(captions)} captions")
        scores = np.zeros(len(captions))
        for start in range(0, len(captions), self.batch_size):
            rows = range(start, min(start + self.batch_size, len(captions)))
            pictures = [decode_image(images[row]) for row in rows]
            inputs = self.processor(images=pictures, return_tensors="pt").to(self.model.device)
            image_embeds = _as_array(self.model.get_image_features(**inputs))
            text_embeds = self._text_features([PROMPT + captions[row] for row in rows])
            scores[rows.start : rows.stop] = clip_scores(image_embeds, text_embeds)
        return np.where([bool(caption.strip()) for caption in captions], scores, 0.0)

    def _text_features(self, texts: Sequence[str]) -> NDArray[np.float32]:
        inputs = self.processor(
            text=texts,
            padding="max_length",
            truncation=True,
            max_length=self.model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        )
        return _as_array(self.model.get_text_features(**inputs.to(self.model.device)))


def _as_array(features: Any) -> NDArray[np.float32]:
    pooled = features if isinstance(features, torch.Tensor) else features.pooler_output
    return pooled.float().cpu().numpy()
