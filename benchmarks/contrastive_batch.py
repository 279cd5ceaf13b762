"""Memory and time of one contrastive step over 256 pairs: in micro-batches of 16, against all pairs at once.

A small CLIP from scratch (96 pixels, random weights) without dropout. Both sides take turns in one process. The aims:
at least 15 times less memory at no more than 1.2 times the time, with equal loss and gradients.

    python benchmarks/contrastive_batch.py [ROUNDS]
"""

import itertools
import statistics
import sys
import time

import mmhf  # noqa: F401  (first: it makes torchvision importable beside a CPU build of torch)

import torch  # isort: skip

from mmhf.models.dual_encoder.building import build_dual_encoder
from mmhf.recipe import recipe_from_dict
from mmhf.training.gradient_caching import contrast_outputs, embed_without_graph

PAIRS, MICRO_BATCH, PIXELS, TOKENS = 256, 16, 96, 24


def make_model():
    torch.manual_seed(0)
    towers = {
        "vision": {"patch_size": 16, "width": 384, "layers": 6, "heads": 6},
        "text": {"width": 256, "layers": 4, "heads": 4, "vocab_size": 2000},
    }
    data = {"source": "sample", "image_size": PIXELS, "max_length": TOKENS}
    recipe = recipe_from_dict({"task": "contrastive", "model": towers, "data": data}, name="benchmark").recipe
    return build_dual_encoder(recipe).train()


def make_batch():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, 2000, (PAIRS, TOKENS), generator=generator)
    tokens[:, -1] = 1
    return {
        "pixel_values": torch.randn(PAIRS, 3, PIXELS, PIXELS, generator=generator),
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "image_index": torch.arange(PAIRS),
    }


def plain_step(model, batch):
    loss = model(**batch, return_loss=True).loss
    loss.backward()
    return loss.item()


def cached_step(model, batch):
    parts = {name: tensor.split(MICRO_BATCH) for name, tensor in batch.items()}
    batches = [dict(zip(parts, values, strict=True)) for values in zip(*parts.values(), strict=True)]
    others, states = zip(*(embed_without_graph(model, batch) for batch in batches[1:]), strict=True)
    first = model(**batches[0])
    step = contrast_outputs([first, *others], batches, model.contrast)
    step.surrogate(first, 0).backward()
    for number, state in enumerate(states, start=1):
        with state.replayed():
            step.surrogate(model(**batches[number]), number).backward()
    return step.loss.item()


def peak_bytes(step, model, batch):
    """What PyTorch allocates above model, gradients and inputs at the worst moment."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        step(model, batch)
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = itertools.accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    return max(held)


def main(rounds=5):
    model, batch = make_model(), make_batch()
    cached_step(model, batch)  # makes room for the gradients
    steps, times = (plain_step, cached_step), {plain_step: [], cached_step: []}
    losses, gradients = {}, {}
    for _ in range(rounds):
        for step in steps:
            model.zero_grad(set_to_none=False)
            begun = time.perf_counter()
            losses[step] = step(model, batch)
            times[step].append(time.perf_counter() - begun)
            gradients[step] = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    difference = max(
        (gradients[plain_step][name] - other).abs().max() for name, other in gradients[cached_step].items()
    )
    seconds = [statistics.median(times[step]) for step in steps]
    memory = [peak_bytes(step, model, batch) for step in steps]
    print(f"loss {losses[plain_step]:.6f} and {losses[cached_step]:.6f}, gradients differ by at most {difference:.1e}")
    print(
        f"{PAIRS} pairs at once {memory[0] / 2**20:.0f} MiB and {seconds[0]:.1f} s, in micro-batches of {MICRO_BATCH} "
        f"{memory[1] / 2**20:.0f} MiB and {seconds[1]:.1f} s: {memory[0] / memory[1]:.1f} times less memory at "
        f"{seconds[1] / seconds[0]:.2f} times the time"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
