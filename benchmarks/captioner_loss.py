"""The captioner's loss alone: chunks with their gradient made in the forward, against full logits padded to 128.

Vocabulary 151,936, width 1024, batch 8, captions of Flickr30k's lengths, language model frozen. Time and peak memory
of new tensors, forward and backward, in one process, rounds alternate. The aims: at least 7.5 times faster with at
least 20 times less memory, equal loss and gradients.

    python benchmarks/captioner_loss.py [ROUNDS]
"""

import statistics
import sys
import time

import torch
from frozen_stage import PeakMemory
from torch.nn import functional

from mmhf.models.captioner.caption_loss import caption_loss

VOCABULARY, WIDTH, LENGTH, PREFIX = 151_936, 1024, 128, 1
LENGTHS = (9, 10, 11, 12, 13, 15, 18, 22)


def seed_loss(hidden, weight, labels):
    """As the seed does: logits of all positions, prefix and padding too, and the shift inside."""
    logits = hidden @ weight.T
    shifted = functional.pad(labels, (PREFIX, 1), value=-100)[:, 1:]
    return functional.cross_entropy(logits.float().view(-1, VOCABULARY), shifted.reshape(-1))


def our_loss(hidden, weight, labels):
    longest = max(LENGTHS)
    return caption_loss(hidden[:, PREFIX - 1 : PREFIX - 1 + longest], labels[:, :longest], weight)


def run(loss_of, hidden, weight, labels):
    leaf = hidden.detach().requires_grad_()
    begun = time.perf_counter()
    loss = loss_of(leaf, weight, labels)
    loss.backward()
    return time.perf_counter() - begun, loss.detach(), leaf.grad


def main(rounds=3):
    torch.manual_seed(0)
    hidden = torch.randn(len(LENGTHS), PREFIX + LENGTH, WIDTH)
    weight = 0.02 * torch.randn(VOCABULARY, WIDTH)
    labels = torch.full((len(LENGTHS), LENGTH), -100)
    for row, length in enumerate(LENGTHS):
        labels[row, :length] = torch.randint(0, VOCABULARY, (length,))
    sides = {"chunks": our_loss, "full logits": seed_loss}
    times = {name: [] for name in sides}
    found = {}
    for _ in range(rounds):
        for name, side in sides.items():
            seconds, *found[name] = run(side, hidden, weight, labels)
            times[name].append(seconds)
    memory = {}
    for name, side in sides.items():
        with PeakMemory() as peak:
            run(side, hidden, weight, labels)
        memory[name] = peak.mib
    for ours, theirs in zip(*found.values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)
    ours, theirs = (statistics.median(times[name]) for name in sides)
    print(f"chunks {1000 * ours:.0f} ms, full logits {1000 * theirs:.0f} ms: {theirs / ours:.1f} times faster")
    ours, theirs = (memory[name] for name in sides)
    print(f"chunks {ours:.0f} MiB, full logits {theirs:.0f} MiB: {theirs / ours:.1f} times less")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
