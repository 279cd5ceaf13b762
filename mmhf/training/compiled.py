"""`torch.compile` by stage: what repeats is compiled, anew at each boundary, and compared with the plain model once.

A tower is a stack of layers of one shape. One graph serves all of them, so that compiling takes seconds where the
whole model takes a minute, and what lies around them (projections, losses, gradient caching) stays as it is written.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainingArguments

from mmhf.training.boundary import beside_training
from mmhf.training.weights import unmoved_statistics

logger = logging.getLogger(__name__)

CUDA_GRAPH_MODES = ("reduce-overhead", "max-autotune")
_TOLERANCES = {"no": 1e-3, "bf16": 2e-2, "fp16": 2e-2}


@dataclass(frozen=True)
class Compiling:
    """How `torch.compile` is asked to work.

    Attributes:
        backend (`str`): Such as `inductor`.
        mode (`str`, *optional*): Such as `reduce-overhead`.
    """

    backend: str
    mode: str | None = None

    @classmethod
    def asked_by(cls, args: TrainingArguments) -> Compiling | None:
        """As `training.torch_compile` and its fellows say; None where nobody asks."""
        return cls(str(args.torch_compile_backend), args.torch_compile_mode) if args.torch_compile else None

    @property
    def replays_graphs(self) -> bool:
        """Whether CUDA graphs are recorded, whose results lie in the same memory each time."""
        return self.mode in CUDA_GRAPH_MODES


def describe_compiling(args: TrainingArguments, num_stages: int) -> str:
    """What `mmhf plan` says: whether the model is compiled, what that costs, and why it is not of itself."""
    if not args.torch_compile:
        return (
            "off; training.torch_compile: true asks for it: on an H100 a step of a dual encoder takes 0.77 of the "
            "time, of a captioner 0.6, and the first one 6 to 17 s"
        )
    mode = f", mode {args.torch_compile_mode}" if args.torch_compile_mode else ""
    return (
        f"{args.torch_compile_backend}{mode}: the layers that repeat, anew in each of {num_stages} stages (up to half "
        "a minute each for large models), and compared with the plain model at the first step of each"
    )


class CompiledStage:
    """What is compiled for one stage; its first forward pass is compared with that of the plain model.

    Graphs of other stages are forgotten: of a function torch makes 8, and runs it uncompiled from then on.

    Args:
        model (`nn.Module`): The plain model. Its layers are compiled in place, and keep their names and weights.
        compiling ([`Compiling`]): How.
        precision (`str`): What is computed under autocast: `bf16`, `fp16`, or `no`.
        name (`str`): The stage's.
    """

    def __init__(self, model: nn.Module, compiling: Compiling, precision: str, name: str) -> None:
        self.compiling = compiling
        self._model = model
        self._tolerance = _TOLERANCES[precision]
        self._name = name
        self._is_compared = False
        self._expected: tuple[Tensor, Tensor] | None = None
        self._begun = 0.0
        forget_compiled(model)

    def expect(self, plain: Callable[[], Tensor]) -> None:
        """Before the first pass, run the plain model on the same batch, and compile it then.

        Args:
            plain (`Callable`): Runs it; twice, to see whether it draws random numbers.
        """
        if self._is_compared:
            return
        self._is_compared = True
        first, second = (_without_trace(self._model, plain, seed) for seed in (0, 1))
        self._expected, self._begun = (first, second), time.perf_counter()
        for layer in compiled_layers(self._model):
            layer.compile(backend=self.compiling.backend, mode=self.compiling.mode)

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


def compiled_layers(model: nn.Module) -> list[nn.Module]:
    """The layers that repeat, stack by stack; an encoder without any, such as a convolutional one, as a whole."""
    found: list[nn.Module] = []
    for part in model.children():
        stacks = [module for module in part.modules() if _is_stack(module)]
        found += [layer for stack in stacks for layer in stack.children()]
        if not stacks and isinstance(part, PreTrainedModel):
            found.append(part)
    return found


def forget_compiled(model: nn.Module) -> None:
    """Undo `nn.Module.compile`, for which torch has no method."""
    torch.compiler.reset()
    for module in model.modules():
        module._compiled_call_impl = None


def _is_stack(module: nn.Module) -> bool:
    if not isinstance(module, (nn.ModuleList, nn.Sequential)) or len(module) < 2:
        return False
    first, *others = ([(name, each.shape) for name, each in layer.named_parameters()] for layer in module)
    return len({type(layer) for layer in module}) == 1 and bool(first) and all(each == first for each in others)


def _without_trace(model: nn.Module, run: Callable[[], Tensor], seed: int) -> Tensor:
    """Run the plain model without a graph; its statistics and everybody's random numbers stay as they are."""
    with torch.no_grad(), unmoved_statistics(model), beside_training():
        torch.manual_seed(seed)
        return run().detach().clone()
