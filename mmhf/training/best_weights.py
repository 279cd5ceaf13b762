"""The best weights of a stage, kept in a file until the next stage starts from them."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import nn

from mmhf.files import whole_file


class BestWeights:
    """A file with a model's whole state.

    It is written when an evaluation is the best of its stage. A run that is killed and resumed before that evaluation
    writes it again with the same content, because training is deterministic.

    Args:
        path (`Path`): The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def save(self, model: nn.Module) -> None:
        """Keep the model's parameters and buffers; the file appears whole or not at all."""
        # Cloned: tied tensors share storage, which safetensors refuses.
        weights = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
        with whole_file(self.path) as temporary:
            save_file(weights, temporary)

    def load(self, model: nn.Module) -> None:
        """Put the kept parameters and buffers back, in place."""
        model.load_state_dict(load_file(self.path))
