"""The loss of each step, looked at when a run logs: which step was no number, and which stood out."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_WINDOW = 64
_LEAST = 24
_SPREADS = 6.0
"""How many times its usual spread above the median a loss must be, both of logarithms: losses have a long tail."""
_SHARE = 0.5
"""Of the loss that a stage began with: what is below it is no jump, since a loss near 0 has a long tail."""
_NORMAL = 1.4826
"""Median absolute deviation → standard deviation, of a normal distribution."""
_MOST_KEPT = 4096
_TINY = 1e-8


@dataclass(frozen=True)
class StepSamples:
    """The samples of a step, as places in the order of an epoch.

    Attributes:
        step (`int`): Number of the step, from 1.
        epoch (`int`): The epoch.
        first, last (`int`): Its samples, the last one not among them.
    """

    step: int
    epoch: int = 0
    first: int = 0
    last: int = 0


@dataclass(frozen=True)
class Spike:
    """A step whose loss stands out.

    Attributes:
        samples ([`StepSamples`]): The step.
        loss, median (`float`): Its loss, and the usual one of the steps before it.
    """

    samples: StepSamples
    loss: float
    median: float


class LossWatch:
    """Keeps the losses of steps on their device until somebody looks, so that no step waits for it."""

    def __init__(self) -> None:
        self._unseen: deque[tuple[StepSamples, list[Tensor]]] = deque(maxlen=_MOST_KEPT)
        self.forget()

    def begin_step(self, samples: StepSamples) -> None:
        """The losses that are added now are this step's."""
        self._unseen.append((samples, []))

    def add(self, loss: Tensor) -> None:
        """Add a micro-batch's part of the step's loss."""
        if self._unseen:
            self._unseen[-1][1].append(loss.detach())

    def forget(self) -> None:
        """Losses are others from now on: those of another stage."""
        self._usual: deque[float] = deque(maxlen=_WINDOW)
        self._start = 0.0
        self._is_high = False

    def look(self, gather: Callable[[Tensor], Tensor] = lambda losses: losses[None]) -> Look:
        """Judge the losses since the last look, of all processes together.

        Args:
            gather (`Callable`): Losses (steps,) of this process → those of all processes, (processes, steps).
        """
        seen = [(samples, torch.stack(parts).sum()) for samples, parts in self._unseen if parts]
        self._unseen.clear()
        if not seen:
            return Look()
        losses = gather(torch.stack([loss.float() for _, loss in seen])).mean(dim=0).tolist()
        spikes = []
        for (samples, _), loss in zip(seen, losses, strict=True):
            if not np.isfinite(loss):
                return Look(samples, None)
            median = self._median_if_high(loss)
            if median is not None and not self._is_high:
                spikes.append(Spike(samples, loss, median))
            self._is_high = median is not None
            self._usual.append(loss)
        return Look(None, max(spikes, key=lambda spike: spike.loss - spike.median, default=None))

    def _median_if_high(self, loss: float) -> float | None:
        """The usual loss, where this one is far above it."""
        if len(self._usual) < _LEAST:
            return None
        usual = np.log(np.maximum(self._usual, _TINY))
        middle = float(np.median(usual))
        spread = _NORMAL * float(np.median(np.abs(usual - middle)))
        median = math.exp(middle)
        self._start = self._start or median
        is_high = loss > median + _SHARE * self._start and math.log(loss) > middle + _SPREADS * spread
        return median if is_high else None


@dataclass(frozen=True)
class Look:
    """What a look at losses found.

    Attributes:
        broken ([`StepSamples`], *optional*): The first step whose loss was no number.
        spike ([`Spike`], *optional*): The step that stood out most.
    """

    broken: StepSamples | None = None
    spike: Spike | None = None
