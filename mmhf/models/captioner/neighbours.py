"""Captions of the training images that look most like an image, read before its own caption is written.

As SmallCap does (Ramos et al., 2023, https://arxiv.org/abs/2209.15323), by a frozen image encoder's own features. What
few examples teach a language model badly, which word belongs to which picture, need not be learnt then. More of these
captions than the prompt holds may vote for each next token, as in kNN-LM (Khandelwal et al., 2020,
https://arxiv.org/abs/1911.00172), while it trains, too, so that the language model learns what they do not know.

Depends on torch and transformers only, so that a release can carry this file.
"""

from __future__ import annotations

from contextlib import nullcontext
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
            the ridge with which features are compared whitened, `whiten`, where they are; where captions vote, `votes`
            with their `count`, `temperature`, `weight`, and the token that is the `end`.
        width (`int`): Of the image features.
    """

    def __init__(self, values: dict[str, Any], width: int) -> None:
        super().__init__()
        self.count: int = values["count"]
        self.voting: dict[str, Any] | None = values.get("votes")
        self.ridge: float | None = values.get("whiten")
        self.texts: dict[str, list[int]] = {name: values[name] for name in ("before", "between", "after")}
        self.features: Tensor
        self.captions: Tensor
        self.rows: Tensor
        self.mean: Tensor
        self.axes: Tensor
        compared = width
        if self.ridge is not None:
            compared = min(width, values["rows"])
            self.register_buffer("mean", torch.zeros(width))
            self.register_buffer("axes", torch.zeros(width, compared))
        self.register_buffer("features", torch.zeros(values["rows"], compared))
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
        if self.ridge is not None:
            mean, axes = _whitening(features, self.ridge, self.axes.shape[1])
            self.mean.copy_(mean)
            self.axes.copy_(axes)
        self.features.copy_(self._compared(features.to(self.features.device)))
        self.captions.copy_(torch.tensor(padded))
        self.rows.copy_(rows)

    def keep_apart(self, codes: Tensor) -> None:
        """Tell images nothing of others of the same code, as long as this model trains.

        Args:
            codes (`Tensor`): (N,), of each row of the training table; -1: the image is like none in this.
        """
        self.apart = codes.to(self.rows.device)

    def find(self, features: Tensor, image_index: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, K) cosines and places, the nearest first, of all that are read or vote; place -1: there is none.

        Args:
            features (`Tensor`): (B, D), as the image encoder gives them; patches (B, N, D) count by their average.
            image_index (`Tensor`, *optional*): (B,) places in the training table; these images are told nothing of
                themselves, of exact copies, and of those that `keep_apart` names.
        """
        means = features if features.dim() == 2 else features.mean(dim=1)
        device = features.device.type
        # Images that look alike have cosines so close to each other that bfloat16 does not tell which is the nearest.
        with torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext():
            cosines = self._compared(means) @ self.features.float().T
        hidden = (self.rows < 0)[None]
        if image_index is not None:
            hidden = hidden | (self.rows[None] == image_index[:, None]) | (cosines > _SAME)
            if len(self.apart):
                own = self.apart[image_index][:, None]
                hidden = hidden | ((self.apart[self.rows][None] == own) & (own >= 0))
        count = max(self.count, 0 if self.voting is None else self.voting["count"])
        nearest, places = cosines.masked_fill(hidden, _HIDDEN).topk(min(count, len(self.rows)), dim=1)
        return nearest, places.masked_fill(nearest == _HIDDEN, -1)

    def forward(
        self, features: Tensor, image_index: Tensor | None = None
    ) -> tuple[Tensor, Tensor, NeighbourVotes | None]:
        """Prompts (B, P) as token ids, padded on the left, their mask, and the votes; arguments as of `find`."""
        nearest, places = self.find(features, image_index)
        return *self._prompts(places[:, : self.count]), self.votes(nearest, places)

    def votes(self, nearest: Tensor, places: Tensor) -> NeighbourVotes | None:
        """What the captions of neighbours, as `find` gives them, vote for; None where they do not vote."""
        if self.voting is None:
            return None
        nearest, places = nearest[:, : self.voting["count"]], places[:, : self.voting["count"]]
        shares = (nearest / self.voting["temperature"]).softmax(dim=1).masked_fill(places < 0, 0.0)
        captions = functional.pad(self.captions[places], (0, 1), value=-1)
        ends = (captions >= 0).sum(dim=2, keepdim=True)
        return NeighbourVotes(captions.scatter(2, ends, self.voting["end"]), shares, self.voting["weight"])

    def _compared(self, features: Tensor) -> Tensor:
        """What cosines are taken of, of length 1."""
        compared = features.float()
        if self.ridge is not None:
            compared = (compared - self.mean.float()) @ self.axes.float()
        return functional.normalize(compared, dim=1)

    def _prompts(self, places: Tensor) -> tuple[Tensor, Tensor]:
        pieces = [self._repeated("before", len(places))]
        for column in places.T:
            captions = self.captions[column].masked_fill(column[:, None] < 0, -1)
            pieces += [captions, self._repeated("between", len(places))]
        prompts = torch.cat([*pieces[:-1], self._repeated("after", len(places))], dim=1)
        # All padding to the left, whatever it stands between.
        order = (prompts >= 0).to(torch.int8).argsort(dim=1, stable=True)
        prompts = prompts.gather(1, order)[:, -int((prompts >= 0).sum(dim=1).max()) :]
        return prompts.clamp(min=0), (prompts >= 0).to(torch.int64)

    def _repeated(self, name: str, count: int) -> Tensor:
        ids = torch.tensor(self.texts[name], dtype=self.captions.dtype, device=self.captions.device)
        return ids.expand(count, -1)


def _whitening(features: Tensor, ridge: float, dims: int) -> tuple[Tensor, Tensor]:
    """The mean (D,) of features (M, D), and axes (D, dims) along which, with a ridge of so many mean variances, they
    vary alike."""
    mean = features.double().mean(dim=0)
    centred = features.double() - mean
    variances, axes = torch.linalg.eigh(centred.T @ centred / len(features))
    variances, axes = variances.flip(0)[:dims].clamp(min=0), axes.flip(1)[:, :dims]
    return mean, axes * (variances + ridge * variances.mean()).clamp(min=_LEAST).rsqrt()


class NeighbourVotes(LogitsProcessor):
    """Mixes the probabilities P of the next token with the votes V of known captions: (1 - weight) P + weight V.

    V are the tokens with which those captions go on that are, so far, what has been written, each by its share. Where
    there is none, P stays. As a logits processor it works for greedy search, sampling and beams.

    Args:
        captions (`Tensor`): (B, K, L) token ids, each with the token that ends it; -1 behind it.
        shares (`Tensor`): (B, K), by which the captions of a row count; 0: not at all.
        weight (`float`): Of the votes.
        padding (`Tensor`, *optional*): (B,) tokens on the left of what has been written that are none; absent: 0.
    """

    def __init__(self, captions: Tensor, shares: Tensor, weight: float, padding: Tensor | None = None) -> None:
        self.captions, self.shares, self.weight, self.padding = captions, shares, weight, padding

    def along(self, written: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T + 1, K) token ids and their votes: before the first of (B, T) tokens, behind it, and so on.

        The votes of a place add up to 1, or are all 0. Several may be for the same token.
        """
        length = written.shape[1]
        captions = functional.pad(self.captions, (0, max(length + 1 - self.captions.shape[2], 0)), value=-1)
        following = captions[:, :, : length + 1]
        agrees = functional.pad((following[:, :, :-1] == written[:, None]).cumprod(dim=2), (1, 0), value=1)
        votes = (self.shares[:, :, None] * agrees * (following >= 0)).transpose(1, 2)
        votes = votes / votes.sum(dim=2, keepdim=True).clamp(min=_LEAST)
        return following.transpose(1, 2).clamp(min=0), votes

    def of(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T) the share of P in what is mixed, and what the votes add to it for each of the (B, T) labels."""
        tokens, votes = self.along(labels[:, :-1])
        heard = votes.any(dim=2)
        return 1 - self.weight * heard, self.weight * (votes * (tokens == labels[:, :, None])).sum(dim=2)

    def mix(self, logits: Tensor, tokens: Tensor, votes: Tensor) -> Tensor:
        """(..., V) logits of what is mixed, from those of P, and (..., K) tokens and votes."""
        share = 1 - self.weight * votes.any(dim=-1, keepdim=True)
        own = logits.float().softmax(dim=-1) * share
        mixed = own.scatter_add(-1, tokens, self.weight * votes).clamp(min=_LEAST).log()
        return mixed.masked_fill(logits == -torch.inf, -torch.inf).to(logits.dtype)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """See `transformers.LogitsProcessor`."""
        beams, length = len(input_ids) // len(self.captions), input_ids.shape[1]
        captions, shares = (each.repeat_interleave(beams, dim=0) for each in (self.captions, self.shares))
        padding = input_ids.new_zeros(len(input_ids))
        if self.padding is not None:
            padding = self.padding.repeat_interleave(beams)
        # All padding to the right: behind the place that is asked for, nothing counts.
        places = (torch.arange(length, device=input_ids.device) + padding[:, None]) % max(length, 1)
        along = NeighbourVotes(captions, shares, self.weight).along(input_ids.gather(1, places))
        now = (length - padding)[:, None, None].expand(-1, 1, captions.shape[1])
        tokens, votes = (each.gather(1, now)[:, 0] for each in along)
        return self.mix(scores, tokens, votes)
