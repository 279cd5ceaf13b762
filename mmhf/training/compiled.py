"""`torch.compile` by stage: graphs are made anew at each boundary, and compared with the plain model once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mmhf.training.boundary import random_state_kept
from mmhf.training.weights import unmoved_statistics

logger = logging.getLogger(__name__)

CUDA_GRAPH_MODES = ("reduce-overhead", "max-autotune")
_TOLERANCES = {"no": 1e-3, "bf16": 2e-2, "fp16": 2e-2}


class CompiledStage:
    """What is compiled for one stage; its first forward pass is compared with that of the plain model.

    Graphs of other stages are forgotten: of a function torch makes 8, and runs it uncompiled from then on.

    Args:
        precision (`str`): What is computed under autocast: `bf16`, `fp16`, or `no`.
        name (`str`): The stage's.
    """

    def __init__(self, precision: str, name: str) -> None:
        self._tolerance = _TOLERANCES[precision]
        self._name = name
        self._is_compared = False
        self._expected: tuple[Tensor, Tensor] | None = None
        self._begun = 0.0
        torch.compiler.reset()

    def expect(self, model: nn.Module, plain: Callable[[], Tensor]) -> None:
        """Before the first pass, run the plain model on the same batch: twice, to see whether it draws random numbers.

        Args:
            model (`nn.Module`): The plain model.
            plain (`Callable`): Runs it.
        """
        if not self._is_compared:
            self._is_compared = True
            first, second = (_without_trace(model, plain, seed) for seed in (0, 1))
            self._expected, self._begun = (first, second), time.perf_counter()

    def compare(self, found: Tensor) -> None:
        """After the first pass, compare what the compiled model gave.

        Raises:
            RuntimeError: It is something else.
        """
        if self._expected is None:
            return
        (expected, other), self._expected = self._expected, None
        difference = (found.detach() - expected).abs().max().item()
        seconds = time.perf_counter() - self._begun
        if not torch.equal(expected, other):
            told = "not compared with the plain model, which draws random numbers"
        elif difference <= self._tolerance * max(expected.abs().max().item(), 1.0):
            told = f"equal to the plain model within {difference:.1g}"
        else:
            raise RuntimeError(
                f"stage {self._name}: the compiled model differs from the plain one by {difference:.2g}, which is "
                "more than rounding does; set training.torch_compile: false"
            )
        logger.info("Stage %s: the first pass, compiled, took %.1f s; %s", self._name, seconds, told)


def _without_trace(model: nn.Module, run: Callable[[], Tensor], seed: int) -> Tensor:
    """Run the plain model without a graph; its statistics and everybody's random numbers stay as they are."""
    with torch.no_grad(), unmoved_statistics(model), random_state_kept():
        torch.manual_seed(seed)
        return run().detach().clone()
