"""Captions of the training images that look most like an image, read before its own caption is written.

As SmallCap does (Ramos et al., 2023, https://arxiv.org/abs/2209.15323), by a frozen image encoder's own features. What
few examples teach a language model badly, which word belongs to which picture, need not be learnt then. More of these
captions than the prompt holds may vote for each next token, as in kNN-LM (Khandelwal et al., 2020,
https://arxiv.org/abs/1911.00172).

Depends on torch and transformers only, so that a release can carry this file.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LogitsProcessor

_SAME = 0.9999
"""Cosine from which an image counts as the same one, and has nothing to tell of itself in training."""
_HIDDEN = -2.0
_LEAST = 1e-30


class Neighbours(nn.Module):
    """Keeps features and captions of training images, and makes prompts of those nearest to an image.

    Args:
        values (`dict`): Of the captioner's config: `count` of neighbours; `rows` of images and `length` of captions in
            tokens that there is room for; token ids `before` the captions, `between` two of them, and `after` them;
            where captions vote, `votes` with their `count`, `temperature` and `weight`.
        width (`int`): Of the image features.
    """

    def __init__(self, values: dict[str, Any], width: int) -> None:
        super().__init__()
        self.count: int = values["count"]
        self.votes: dict[str, Any] | None = values.get("votes")
        self.texts: dict[str, list[int]] = {name: values[name] for name in ("before", "between", "after")}
        self.features: Tensor
        self.captions: Tensor
        self.rows: Tensor
        self.register_buffer("features", torch.zeros(values["rows"], width))
        self.register_buffer("captions", torch.full((values["rows"], values["length"]), -1))
        self.register_buffer("rows", torch.full((values["rows"],), -1))
        self.apart: Tensor
        self.register_buffer("apart", torch.zeros(0, dtype=torch.long), persistent=False)

    def fill(self, features: Tensor, captions: list[list[int]], rows: Tensor) -> None:
        """Take in the training images.

        Args:
            features (`Tensor`): (M, D), as the image encoder gives them.
            captions (`list[list[int]]`): M captions as token ids, without what ends them; cut where there is no room.
            rows (`Tensor`): (M,) places of the images in the training table.

        Raises:
            ValueError: There is room for another number of images.
        """
        if len(features) != len(self.rows) or not len(captions) == len(rows) == len(features):
            raise ValueError(f"{len(features)} features and {len(captions)} captions for {len(self.rows)} images")
        length = self.captions.shape[1]
        padded = [[*ids[:length], *[-1] * (length - len(ids))] for ids in captions]
        self.features.copy_(functional.normalize(features.float(), dim=1))
        self.captions.copy_(torch.tensor(padded))
        self.rows.copy_(rows)

    def keep_apart(self, codes: Tensor) -> None:
        """Tell images nothing of others of the same code, as long as this model trains.

        Args:
            codes (`Tensor`): (N,), of each row of the training table; -1: the image is like none in this.
        """
        self.apart = codes.to(self.rows.device)

    def find(self, features: Tensor, image_index: Tensor | None = None) -> Tensor:
        """(B, count) places, the nearest first, -1 where there are no more; patches (B, N, D) count by their average.

        Args:
            features (`Tensor`): As the image encoder gives them.
            image_index (`Tensor`, *optional*): (B,) places in the training table; these images are told nothing of
                themselves, of exact copies, and of those that `keep_apart` names.
        """
        cosines = self._cosines(features)
        hidden = (self.rows < 0)[None]
        if image_index is not None:
            hidden = hidden | (self.rows[None] == image_index[:, None]) | (cosines > _SAME)
            if len(self.apart):
                own = self.apart[image_index][:, None]
                hidden = hidden | ((self.apart[self.rows][None] == own) & (own >= 0))
        nearest = cosines.masked_fill(hidden, _HIDDEN).topk(min(self.count, len(self.rows)), dim=1)
        return nearest.indices.masked_fill(nearest.values == _HIDDEN, -1)

    def forward(self, features: Tensor, image_index: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Prompts (B, P) as token ids, padded on the left, and their mask; arguments as of `find`."""
        found = self.find(features, image_index)
        pieces = [self._repeated("before", len(found))]
        for place in range(found.shape[1]):
            captions = self.captions[found[:, place]].masked_fill(found[:, place, None] < 0, -1)
            pieces += [captions, self._repeated("between", len(found))]
        prompts = torch.cat([*pieces[:-1], self._repeated("after", len(found))], dim=1)
        # All padding to the left, whatever it stands between.
        order = (prompts >= 0).to(torch.int8).argsort(dim=1, stable=True)
        prompts = prompts.gather(1, order)[:, -int((prompts >= 0).sum(dim=1).max()) :]
        return prompts.clamp(min=0), (prompts >= 0).to(torch.int64)

    def voters(self, features: Tensor, begun: list[list[int]] | None, end: int) -> list[NeighbourVotes]:
        """What lets the captions of neighbours vote in `generate`; nothing where they do not.

        Args:
            features (`Tensor`): (B, ...), as the image encoder gives them.
            begun (`list`, *optional*): B beginnings of captions as token ids; others are silent.
            end (`int`): The token that ends a caption.
        """
        if self.votes is None:
            return []
        cosines = self._cosines(features).masked_fill(self.rows < 0, _HIDDEN)
        nearest = cosines.topk(min(self.votes["count"], len(self.rows)), dim=1)
        weights = (nearest.values / self.votes["temperature"]).softmax(dim=1)
        captions = functional.pad(self.captions, (0, 1), value=-1)
        ended = captions.scatter(1, (captions >= 0).sum(dim=1, keepdim=True), end)
        return [NeighbourVotes(ended[nearest.indices], weights, float(self.votes["weight"]), begun)]

    def _cosines(self, features: Tensor) -> Tensor:
        means = features if features.dim() == 2 else features.mean(dim=1)
        return functional.normalize(means.float(), dim=1) @ self.features.float().T

    def _repeated(self, name: str, count: int) -> Tensor:
        ids = torch.tensor(self.texts[name], dtype=self.captions.dtype, device=self.captions.device)
        return ids.expand(count, -1)


class NeighbourVotes(LogitsProcessor):
    """Mixes the next token's probabilities with the votes of known captions: (1 - weight) P + weight V.

    V are the tokens with which those captions go on that are, so far, what has been written, each by its share. Where
    there is none, P stays. For greedy search, sampling and beams.

    Args:
        captions (`Tensor`): (B, K, L) token ids, each with the token that ends it; -1 behind it.
        shares (`Tensor`): (B, K), those of a row add up to 1.
        weight (`float`): Of the votes.
        begun (`list`, *optional*): B beginnings of captions, which votes are for the continuation of.
    """

    def __init__(self, captions: Tensor, shares: Tensor, weight: float, begun: list[list[int]] | None = None) -> None:
        self.captions, self.shares, self.weight = captions, shares, weight
        self.num_begun = max(map(len, begun or [[]]))
        for row, ids in enumerate(begun or []):
            start = torch.tensor(ids, dtype=captions.dtype, device=captions.device)
            fits = (captions[row, :, : len(ids)] == start).all(dim=1)
            self.shares[row] *= fits
            self.captions[row] = captions[row].roll(-len(ids), dims=1)
            if ids:
                self.captions[row, :, -len(ids) :] = -1

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        written = input_ids[:, self.num_begun :]
        beams, length = len(input_ids) // len(self.captions), written.shape[1]
        if length >= self.captions.shape[2]:
            return scores
        captions = self.captions.repeat_interleave(beams, dim=0)
        following = captions[:, :, length]
        agree = (captions[:, :, :length] == written[:, None]).all(dim=2) & (following >= 0)
        shares = self.shares.repeat_interleave(beams, dim=0) * agree
        heard = shares.sum(dim=1, keepdim=True)
        own = scores.float().softmax(dim=1)
        votes = torch.zeros_like(own).scatter_add_(1, following.clamp(min=0), shares / heard.clamp(min=_LEAST))
        weight = torch.where(heard > 0, self.weight, 0.0)
        mixed = torch.lerp(own, votes, weight).clamp(min=_LEAST).log()
        return mixed.masked_fill(scores == -torch.inf, -torch.inf).to(scores.dtype)
