"""Run each family on fake tensors of the device `cuda`; prints a line of JSON for each family and act.

A program of its own, because what it needs must be preloaded.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import mmhf  # noqa: F401  (first: it makes torchvision importable beside a CPU build of torch)

import torch  # isort: skip
from device_watch import Waits
from tiny_families import FAMILIES, Batch, TinyFamily
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel

from mmhf.models.partition import Partition
from mmhf.training.frozen_copies import keep_copies, release_copies
from mmhf.training.gradient_caching import RandomState, contrast_outputs, embed_without_graph
from mmhf.training.weights import apply_freezing

ROWS = 6


def fake_model(model: PreTrainedModel, mode: FakeTensorMode) -> PreTrainedModel:
    """The model with all of its tensors as fakes on the device; what was tied still is."""
    seen: dict[int, Any] = {}

    def fake(tensor: torch.Tensor, make: Callable[[torch.Tensor], Any]) -> Any:
        if id(tensor) not in seen:
            with mode:
                seen[id(tensor)] = make(torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda"))
        return seen[id(tensor)]

    for module in model.modules():
        for tensors, make in ((module._parameters, nn.Parameter), (module._buffers, lambda each: each)):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = fake(tensor, make)
    return model


def fake_batch(family: TinyFamily, mode: FakeTensorMode) -> Batch:
    return {name: mode.from_tensor(tensor).to("cuda") for name, tensor in family.batch(range(ROWS)).items()}


def train(family: TinyFamily, model: PreTrainedModel, batch: Batch, dtype: torch.dtype, *, num_steps: int = 1) -> None:
    """Forward, loss, backward, clipping and step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    for _ in range(num_steps):
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            loss = family.loss(model.train(), batch)
        assert loss.device.type == "cuda"
        loss.backward()
        for parameter in model.parameters():
            assert parameter.grad is None or parameter.grad.device.type == "cuda"
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def train_head(family: TinyFamily, model: PreTrainedModel, batch: Batch) -> None:
    """A step of the head, on copies of what is frozen."""
    partition = Partition.of(model)
    apply_freezing(model, partition, {group for name in family.head for group in partition.select(name)})
    assert keep_copies(model, "bf16") > 0
    train(family, model, batch, torch.bfloat16)
    release_copies(model)
    apply_freezing(model, partition, list(partition))


def train_on_pixels(family: TinyFamily, model: Any, batch: Batch) -> None:
    """A step on images that the device normalises."""
    statistics = torch.ones(3, 1, 1, device="cuda")
    model.normalise_pixels(statistics, statistics)
    pixels = torch.zeros(batch["pixel_values"].shape, dtype=torch.uint8, device="cuda")
    train(family, model, {**batch, "pixel_values": pixels}, torch.bfloat16)


def cache_gradients(family: TinyFamily, model: Any, batch: Batch) -> None:
    halves = [
        {name: tensor[rows] for name, tensor in batch.items()}
        for rows in (slice(0, ROWS // 2), slice(ROWS // 2, ROWS))
    ]
    with torch.autocast("cuda", torch.bfloat16):
        outputs = [embed_without_graph(model.train(), half)[0] for half in halves]
        step = contrast_outputs(outputs, halves, model.contrast)
        for number, half in enumerate(halves):
            step.surrogate(model(**half), number).backward()


def store(family: TinyFamily, model: Any, batch: Batch) -> None:
    """Features of each part that can be stored, then a step on them."""
    for part in model.feature_parts():
        inputs = {name: batch[name] for name in part.inputs if name in batch}
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
            features = model.eval().compute_features(part, **inputs)
        assert features.device.type == "cuda"
        rest = {name: value for name, value in batch.items() if name not in inputs or name in ("input_ids",)}
        if part.name == "vision":
            rest = {name: value for name, value in batch.items() if name != "pixel_values"}
        family.loss(model.train(), {**rest, part.feature: features}).backward()


def generate(family: TinyFamily, model: Any, batch: Batch) -> None:
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        tokens = model.eval().generate(batch["pixel_values"], max_new_tokens=4, do_sample=False)
    assert tokens.device.type == "cuda"


@contextlib.contextmanager
def no_random_states() -> Iterator[None]:
    """Those of the device are asked of CUDA itself."""
    now = RandomState.now
    RandomState.now = classmethod(lambda cls, batch: None)  # type: ignore[assignment]
    try:
        yield
    finally:
        RandomState.now = now  # type: ignore[method-assign]


ACTS: dict[str, tuple[Callable[..., None], bool]] = {
    "train in fp32": (lambda *given: train(*given, torch.float32, num_steps=2), False),
    "train in bf16": (lambda *given: train(*given, torch.bfloat16), False),
    "train in fp16": (lambda *given: train(*given, torch.float16), False),
    "train the head": (train_head, False),
    "train on pixels": (train_on_pixels, False),
    "cache gradients": (cache_gradients, False),
    "store features": (store, False),
    "generate": (generate, True),
}
"""What is done, and whether it may look at values, which are made up: it goes on until it has asked often enough."""


def main() -> int:
    torch.cuda.current_device = lambda: 0
    for name, family in FAMILIES.items():
        # One mode for all that a family does: it remembers what each operator makes of which shapes.
        mode = FakeTensorMode()
        model = fake_model(family.model(dropout=0.1, **({"prompt_ids": [3, 4]} if name == "captioner" else {})), mode)
        with mode:
            batch = fake_batch(family, mode)
        for act, (do, may_look) in ACTS.items():
            if (act == "cache gradients" and name != "dual_encoder") or (act == "generate" and name != "captioner"):
                continue
            error, asked = None, itertools.count()
            watch = Waits(lambda asked=asked: int(next(asked) > 20))
            model.zero_grad()
            try:
                with mode, no_random_states(), watch:
                    do(family, model, batch)
            except Exception:  # noqa: BLE001  (it is what is looked for, and is told)
                error = traceback.format_exc()
            said = {"family": name, "act": act, "error": error, "waits": [] if may_look else watch.seen}
            sys.stdout.write(json.dumps(said) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
