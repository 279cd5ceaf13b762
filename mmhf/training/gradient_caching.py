"""Contrast more pairs than fit through a model at once, over all processes, with exact gradients.

The loss needs the embeddings of all pairs, but its gradient with respect to each embedding can be computed from the
embeddings alone. So micro-batches are embedded without a graph, the loss gives each embedding its gradient, and each
micro-batch is embedded again, from the same random state, to carry its gradients on into the weights; the graph of one
of them can be kept at once (Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", https://arxiv.org/abs/2101.06983).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import get_device_states, set_device_states

from mmhf.conventions import IGNORED_IMAGE, TEACHER_EMBEDS
from mmhf.models.affinity_loss import affinity_losses
from mmhf.models.contrastive_loss import Contrast, EmbeddedPairs, block_losses, caption_ids
from mmhf.models.dual_encoder.modeling_dual_encoder import DualEncoderOutput
from mmhf.parallel import rank, world_size
from mmhf.training.distillation import Teaching
from mmhf.training.weights import unmoved_statistics

Batch = dict[str, Tensor]

_REPLAY_TOLERANCE = 1e-3


@dataclass(frozen=True)
class RandomState:
    """The random state that a batch was embedded from, of the CPU and of the batch's device."""

    cpu: Tensor
    devices: list[int]
    device_states: list[Tensor]
    device_type: str

    @classmethod
    def now(cls, batch: Batch) -> RandomState:
        """The state as it is."""
        tensors = list(batch.values())
        devices, states = get_device_states(*tensors)
        return cls(torch.get_rng_state(), devices, states, tensors[0].device.type)

    @contextlib.contextmanager
    def replayed(self) -> Iterator[None]:
        """Go back to it for a while."""
        with torch.random.fork_rng(self.devices, device_type=self.device_type):
            torch.set_rng_state(self.cpu)
            set_device_states(self.devices, self.device_states, device_type=self.device_type)
            yield


@dataclass(frozen=True)
class ContrastedStep:
    """The loss of one step's pairs, and its gradients.

    Attributes:
        loss (`Tensor`): Scalar, of the pairs of all processes.
        pairs ([`EmbeddedPairs`]): Those pairs.
        image_gradients, text_gradients (`Sequence[Tensor]`): Of this process's micro-batches, (B, D) each.
        scale_gradient, bias_gradient (`Tensor`): (1,).
    """

    loss: Tensor
    pairs: EmbeddedPairs
    image_gradients: Sequence[Tensor]
    text_gradients: Sequence[Tensor]
    scale_gradient: Tensor
    bias_gradient: Tensor | None

    def surrogate(self, output: DualEncoderOutput, number: int) -> Tensor:
        """A scalar whose backward pass through a micro-batch of this process adds its part of the loss's gradient.

        Wrappers of a model take the mean of the processes' gradients, hence the factor.
        """
        num_processes, share = world_size(), 1 / len(self.image_gradients)
        terms = [
            (output.image_embeds, self.image_gradients[number], num_processes),
            (output.text_embeds, self.text_gradients[number], num_processes),
            (output.logit_scale, self.scale_gradient, share),
            (output.logit_bias, self.bias_gradient, share),
        ]
        parts = [
            factor * (value * gradient).sum()
            for value, gradient, factor in terms
            if value is not None and gradient is not None and value.requires_grad
        ]
        return torch.stack(parts).sum()


def embed_without_graph(model: nn.Module, batch: Batch) -> tuple[DualEncoderOutput, RandomState]:
    """First pass: the output of a micro-batch, and the random state that it began from.

    Statistics of batch-norm layers stay as they are: the second pass is the one that counts.
    """
    with torch.no_grad(), unmoved_statistics(model):
        state = RandomState.now(batch)
        return model(**batch), state


def contrast_outputs(
    outputs: Sequence[DualEncoderOutput],
    batches: Sequence[Batch],
    contrast: Contrast,
    *,
    teaching: Teaching | None = None,
    taught: Sequence[Batch] = (),
) -> ContrastedStep:
    """The loss over the pairs of all micro-batches of all processes, and its gradients.

    Args:
        outputs (`Sequence[DualEncoderOutput]`): Of this process's micro-batches.
        batches (`Sequence[Batch]`): The micro-batches, with `input_ids` and `image_index`.
        contrast ([`Contrast`]): The loss.
        teaching ([`Teaching`], *optional*): What a teacher's embeddings count beside it; absent: there is no teacher.
        taught (`Sequence[Batch]`): The teacher's embeddings of each micro-batch, by the names of `TEACHER_EMBEDS`.
    """
    own_pairs = _own_pairs(outputs, batches)
    pairs, rows = _gather(own_pairs)
    pairs.image_embeds.requires_grad_()
    pairs.text_embeds.requires_grad_()
    scale = _leaf(outputs[0].logit_scale)
    bias = None if outputs[0].logit_bias is None else _leaf(outputs[0].logit_bias)
    loss = torch.zeros((), device=scale.device)
    with torch.enable_grad():
        for part in block_losses(pairs, scale, bias, contrast, rows=rows):
            part = part if teaching is None else (1 - teaching.weight) * part
            part.backward()
            loss += part.detach()
        if teaching is not None:
            images, texts = (torch.cat([batch[name] for batch in taught]).float() for name in TEACHER_EMBEDS)
            teachers, _ = _gather(EmbeddedPairs(images, texts, own_pairs.image_index, own_pairs.caption_id))
            for part in affinity_losses(pairs, teachers, scale, temperature=teaching.temperature, rows=rows):
                part = teaching.weight * part
                part.backward()
                loss += part.detach()
    leaves = [pairs.image_embeds, pairs.text_embeds, scale, *([] if bias is None else [bias])]
    gradients = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
    if world_size() > 1:
        for tensor in (loss, *gradients):
            torch.distributed.all_reduce(tensor)
    sizes = [len(batch["image_index"]) for batch in batches]
    own = slice(rows.start, rows.stop)
    return ContrastedStep(
        loss=loss,
        pairs=pairs,
        image_gradients=gradients[0][own].split(sizes),
        text_gradients=gradients[1][own].split(sizes),
        scale_gradient=gradients[2],
        bias_gradient=None if bias is None else gradients[3],
    )


def check_replay(first: DualEncoderOutput, second: DualEncoderOutput) -> None:
    """Compare the two passes of a micro-batch.

    Raises:
        RuntimeError: They gave different embeddings.
    """
    for one, other in ((first.image_embeds, second.image_embeds), (first.text_embeds, second.text_embeds)):
        assert one is not None
        assert other is not None
        difference = (one.float() - other.detach().float()).abs().max().item()
        if difference > _REPLAY_TOLERANCE:
            raise RuntimeError(
                f"the two passes of gradient caching differ by {difference:.2g}: the model draws random numbers that "
                "torch's generators do not decide, or a compiled graph does; set its dropout to 0, or "
                "training.torch_compile: false"
            )


def _own_pairs(outputs: Sequence[DualEncoderOutput], batches: Sequence[Batch]) -> EmbeddedPairs:
    return EmbeddedPairs(
        torch.cat([_embeds(output.image_embeds) for output in outputs]),
        torch.cat([_embeds(output.text_embeds) for output in outputs]),
        torch.cat([batch["image_index"] for batch in batches]),
        torch.cat([caption_ids(batch["input_ids"], batch.get("attention_mask")) for batch in batches]),
    )


def _embeds(embeds: Tensor | None) -> Tensor:
    assert embeds is not None
    return embeds.detach().float()


def _leaf(value: Tensor | None) -> Tensor:
    assert value is not None
    return value.detach().float().clone().requires_grad_()


def _gather(own: EmbeddedPairs) -> tuple[EmbeddedPairs, range]:
    """The pairs of all processes, and which of them are this process's."""
    columns = [own.image_embeds, own.text_embeds, own.image_index, own.caption_id]
    start = 0
    if world_size() > 1:
        sizes = _all_gather(torch.tensor([len(own)], device=own.image_index.device))
        largest = int(torch.cat(sizes).max())
        start = rank() * largest
        fillers = [0, 0, IGNORED_IMAGE, 0]
        columns = [
            torch.cat(_all_gather(_lengthened(column, largest, filler)))
            for column, filler in zip(columns, fillers, strict=True)
        ]
    images, texts, image_index, caption_id = columns
    return EmbeddedPairs(images, texts, image_index, caption_id), range(start, start + len(own))


def _lengthened(column: Tensor, length: int, filler: int) -> Tensor:
    missing = column.new_full((length - len(column), *column.shape[1:]), filler)
    return torch.cat([column, missing])


def _all_gather(tensor: Tensor) -> list[Tensor]:
    gathered = [torch.empty_like(tensor) for _ in range(world_size())]
    torch.distributed.all_gather(gathered, tensor.contiguous())
    return gathered
