"""Run an image encoder from its input to the end of a layer group, and from there to its output.

Nothing of an encoder is rewritten for it. A pass of a tiny batch traces which modules of the lower groups are called,
in which order, and what shapes they give. Going up to the boundary, the pass is left when the last of them is done.
Going on from it, those calls return tensors of their shapes that take no memory and are never read, and the last of
them returns the features. Whether an encoder really reads nothing else is not believed but checked, see `is_exact`.

Depends on torch, transformers, `conventions` and `layer_groups` only, so that a release can carry this file.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from transformers import PreTrainedModel

from mmhf.conventions import ImageSize, height_and_width
from mmhf.models.layer_groups import layer_groups, modules_outside

Run = Callable[[Tensor], Tensor]
"""From pixel_values (B, 3, H, W) to what is read of the encoder; it calls the encoder once."""

_CHECKPOINTING_FLAGS = ("gradient_checkpointing", "grad_checkpointing")


@dataclass(frozen=True)
class _Shape:
    """Of a tensor as a function of the batch size.

    Attributes:
        sizes, growth (`tuple[int, ...]`): Of its axes for a batch of 2, and what one more row adds to them.
        order (`tuple[int, ...]`): The axes as they lie in memory, the slowest first.
    """

    sizes: tuple[int, ...]
    growth: tuple[int, ...]
    order: tuple[int, ...]
    dtype: torch.dtype

    def has_rows(self) -> bool:
        """Whether it is (B, ...) and nothing else depends on B."""
        return self.sizes[:1] == (2,) and self.growth[0] == 1 and not any(self.growth[1:])

    def at(self, batch_size: int) -> tuple[int, ...]:
        return tuple(size + (batch_size - 2) * growth for size, growth in zip(self.sizes, self.growth, strict=True))


@dataclass(frozen=True)
class _Call:
    """Of a module: its name, and what it gave with a `_Shape` for each tensor."""

    module: str
    output: Any

    def shapes(self) -> list[_Shape]:
        return [leaf for leaf in pytree.tree_leaves(self.output) if isinstance(leaf, _Shape)]


@dataclass(frozen=True)
class Boundary:
    """Where an encoder is cut.

    Attributes:
        group (`str`): The last layer group below it, such as `stages.3`.
        image_size ([`ImageSize`]): Of the images.
        calls (`tuple`): The calls below it; the last one gives the features.
        order (`tuple[int, ...]`): The features' axes as they lie in memory, the slowest first.
        checkpointed (`tuple[bool, ...]`): Which modules checkpointed their gradients when the calls were traced.
    """

    group: str
    image_size: ImageSize
    calls: tuple[_Call, ...]
    order: tuple[int, ...]
    checkpointed: tuple[bool, ...]


class _Reached(BaseException):
    """Leaves a pass at the boundary; no `except Exception` on the way is to stop it."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output


def find_boundary(encoder: PreTrainedModel, run: Run, group: str, *, image_size: ImageSize) -> Boundary | None:
    """Trace where `group` and the groups before it end.

    Args:
        encoder (`PreTrainedModel`): The encoder; on the meta device, too. It is run on five black images and left as
            it was.
        run (`Callable[[Tensor], Tensor]`): Runs it, and reads its output.
        group (`str`): One of its layer groups.
        image_size ([`ImageSize`]): Of the images to come.

    Returns:
        `Boundary`, or `None`: the encoder does not call its lower groups first, or they do not end in one tensor with
        a row for each image.
    """
    height, width = height_and_width(image_size)
    traced = []
    for batch_size in (2, 3):
        pixel_values = torch.zeros(batch_size, 3, height, width, dtype=encoder.dtype, device=encoder.device)
        traced.append(_trace(encoder, run, group, pixel_values))
    few, more = traced
    if not few or [name for name, _ in few] != [name for name, _ in more]:
        return None
    try:
        shaped = [
            _Call(name, pytree.tree_map(_shape, output, other))
            for (name, output), (_, other) in zip(few, more, strict=True)
        ]
    except ValueError:
        return None
    # What is the same for two images and for three, such as rotary embeddings, is left to be computed.
    calls = tuple(call for call in shaped if any(any(shape.growth) for shape in call.shapes()))
    if not calls or not calls[-1].shapes()[0].has_rows():
        return None
    return Boundary(group, image_size, calls, calls[-1].shapes()[0].order, _checkpointed(encoder))


def is_traced_for(boundary: Boundary, encoder: PreTrainedModel) -> bool:
    """Whether the encoder calls its modules as it did; gradient checkpointing changes that."""
    return boundary.checkpointed == _checkpointed(encoder)


def run_below(encoder: PreTrainedModel, run: Run, boundary: Boundary, pixel_values: Tensor) -> Tensor:
    """From images (B, 3, H, W) to the features at the boundary (B, ...); nothing above it is computed.

    Raises:
        `RuntimeError`: the encoder did not come past the boundary.
    """
    last = boundary.calls[-1].module
    remaining = Counter(call.module for call in boundary.calls)[last]

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        nonlocal remaining
        remaining -= 1
        if remaining == 0:
            raise _Reached(output)

    handle = encoder.get_submodule(last).register_forward_hook(leave)
    try:
        run(pixel_values)
    except _Reached as reached:
        return next(leaf for leaf in pytree.tree_leaves(reached.output) if isinstance(leaf, Tensor))
    finally:
        handle.remove()
    raise RuntimeError(f"the image encoder gave its output without having called {last}")


def run_above(
    encoder: PreTrainedModel, run: Run, boundary: Boundary, features: Tensor, *, stand_in: Tensor | None = None
) -> Tensor:
    """From the features at the boundary to what `run` gives; no module below it is computed.

    Args:
        encoder (`PreTrainedModel`): The encoder.
        run (`Callable[[Tensor], Tensor]`): Runs it, and reads its output.
        boundary (`Boundary`): As `find_boundary` found it.
        features (`Tensor`): (B, ...), as `run_below` gave them; they are not changed.
        stand_in (`Tensor`, *optional*): The one number that modules below are made to give.

    Raises:
        `RuntimeError`: the encoder does not call its modules as it did when it was traced.
    """
    number = torch.zeros((), dtype=encoder.dtype, device=features.device) if stand_in is None else stand_in
    pixel_values = number.expand(len(features), 3, *height_and_width(boundary.image_size))
    with _replaced(encoder, boundary, _laid_out(features, boundary.order), number) as remaining:
        output = run(pixel_values)
    if remaining:
        raise RuntimeError(f"the image encoder gave its output without having called {remaining[0].module}")
    return output


def is_exact(encoder: PreTrainedModel, run: Run, boundary: Boundary) -> bool:
    """Whether an encoder goes on from a boundary exactly as it would have come past it.

    Two things must hold: the output does not depend, by autograd's graph, on anything below but the features; and on
    two random images it is, to the last bit, the output of the whole encoder in eval mode (on the meta device only the
    former is looked at).
    """
    height, width = height_and_width(boundary.image_size)
    noise = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    pixel_values = noise.to(device=encoder.device, dtype=encoder.dtype)
    with in_eval_mode(encoder):
        try:
            with torch.no_grad():
                features = run_below(encoder, run, boundary, pixel_values).contiguous()
                whole, resumed = run(pixel_values), run_above(encoder, run, boundary, features)
            number = torch.zeros((), dtype=encoder.dtype, device=encoder.device, requires_grad=True)
            with torch.enable_grad():
                output = run_above(encoder, run, boundary, features, stand_in=number)
        except (RuntimeError, ValueError, AssertionError):
            # How encoders refuse stand-ins: by torch's errors and by checks of their own.
            return False
    if output.requires_grad and torch.autograd.grad(output.sum(), number, allow_unused=True)[0] is not None:
        return False
    return whole.shape == resumed.shape and (whole.is_meta or torch.equal(whole, resumed))


def _trace(encoder: PreTrainedModel, run: Run, group: str, pixel_values: Tensor) -> list[tuple[str, Any]]:
    """Names and outputs of the outermost lower modules that are called before any upper one is."""
    lower, upper = _modules_by_side(encoder, group)
    calls: list[tuple[str, Any]] = []
    depth = 0

    def enter(module: nn.Module, args: Any) -> None:
        nonlocal depth
        if module in upper:
            raise _Reached(None)
        depth += module in lower

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        nonlocal depth
        if module in lower:
            depth -= 1
            if depth == 0:
                calls.append((lower[module], output))

    handles = [module.register_forward_pre_hook(enter) for module in encoder.modules()]
    handles += [module.register_forward_hook(leave) for module in encoder.modules()]
    try:
        with torch.no_grad(), in_eval_mode(encoder):
            run(pixel_values)
    except _Reached:
        return calls
    finally:
        for handle in handles:
            handle.remove()
    return []


def _modules_by_side(encoder: PreTrainedModel, group: str) -> tuple[dict[nn.Module, str], set[nn.Module]]:
    """Modules that are wholly below the end of a group, by name, and those that are wholly above."""
    groups = layer_groups(encoder)
    names = list(groups)
    below = names[: names.index(group) + 1]
    parameters = dict(encoder.named_parameters())
    group_of = {id(parameters[name]): key for key, members in groups.items() for name in members}
    lower, upper = (
        {
            module: f"{name}.{inner}" if inner else name
            for name, largest in modules_outside(encoder, group_of, chosen)
            for inner, module in largest.named_modules()
        }
        for chosen in (set(names) - set(below), set(below))
    )
    return lower, set(upper)


@contextlib.contextmanager
def _replaced(encoder: PreTrainedModel, boundary: Boundary, features: Tensor, number: Tensor) -> Iterator[list[_Call]]:
    """Let the calls below the boundary return stand-ins, and the last one the features; gives those still to come."""
    remaining = list(boundary.calls)
    modules = {call.module: encoder.get_submodule(call.module) for call in boundary.calls}

    def replacement(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if not remaining:
                return original(*args, **kwargs)
            call = remaining.pop(0)
            if call.module != name:
                raise RuntimeError(f"the image encoder called {name} where it called {call.module} when it was traced")
            return _output(call, number, len(features), None if remaining else features)

        return forward

    own = {name: vars(module).get("forward") for name, module in modules.items()}
    for name, module in modules.items():
        vars(module)["forward"] = replacement(name, module.forward)
    try:
        yield remaining
    finally:
        for name, module in modules.items():
            del vars(module)["forward"]
            if own[name] is not None:
                vars(module)["forward"] = own[name]


def _output(call: _Call, number: Tensor, batch_size: int, features: Tensor | None) -> Any:
    """What a call gives: stand-ins, and in the place of its first tensor the features, if these are its own."""
    leaves, structure = pytree.tree_flatten(call.output)
    made: list[Any] = []
    for leaf in leaves:
        if isinstance(leaf, _Shape) and features is not None:
            made.append(features)
            features = None
        elif isinstance(leaf, _Shape):
            made.append(number.to(leaf.dtype).expand(leaf.at(batch_size)))
        else:
            made.append(leaf)
    return pytree.tree_unflatten(made, structure)


def _shape(few: Any, more: Any) -> Any:
    """Of one tensor for batches of 2 and of 3.

    Raises:
        `ValueError`: something else than a tensor depends on the batch.
    """
    if isinstance(few, Tensor):
        growth = tuple(large - small for small, large in zip(few.shape, more.shape, strict=True))
        order = sorted(range(few.dim()), key=lambda axis: (-few.stride()[axis], axis))
        return _Shape(tuple(few.shape), growth, tuple(order), few.dtype)
    if few != more:
        raise ValueError(f"{few!r} for two images and {more!r} for three")
    return few


def _laid_out(features: Tensor, order: tuple[int, ...]) -> Tensor:
    """A copy in the memory format that the encoder gave, by which its kernels, and so the last bits, are chosen."""
    inverse = [order.index(axis) for axis in range(len(order))]
    return features.permute(order).clone(memory_format=torch.contiguous_format).permute(inverse)


def _checkpointed(encoder: nn.Module) -> tuple[bool, ...]:
    return tuple(bool(vars(module).get(flag)) for module in encoder.modules() for flag in _CHECKPOINTING_FLAGS)


@contextlib.contextmanager
def in_eval_mode(encoder: nn.Module) -> Iterator[None]:
    """Let a module and all in it behave as in evaluation for a while; without `train()`, which frozen ones refuse."""
    before = [(module, module.training) for module in encoder.modules()]
    for module, _ in before:
        module.training = False
    try:
        yield
    finally:
        for module, training in before:
            module.training = training
