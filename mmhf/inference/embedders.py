"""Models that turn images and texts into embeddings, behind one face."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModel,
    AutoProcessor,
    CLIPModel,
    PreTrainedModel,
    SiglipModel,
    VisionTextDualEncoderModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

from mmhf.errors import InputError
from mmhf.files import CONFIG_FILE
from mmhf.inference.loading import choose_device
from mmhf.models.dual_encoder import DualEncoderModel

IMAGE, TEXT = "image", "text"
_MODEL_TYPES = frozenset(
    model_class.config_class.model_type
    for model_class in (DualEncoderModel, CLIPModel, SiglipModel, VisionTextDualEncoderModel)
    if model_class.config_class is not None
)


class EmbedderInputs:
    """Makes tensors of images and texts. It holds no model, so that data loaders' processes can have it.

    Args:
        processor: Called with `images` or `text`.
        padding (`bool` or `str`, defaults to `True`): How texts are padded.
    """

    def __init__(self, processor: Any, *, padding: bool | str = True) -> None:
        self.processor = processor
        self.padding = padding

    def encode(self, modality: str, values: Sequence[Image.Image] | Sequence[str]) -> dict[str, torch.Tensor]:
        """Tensors of decoded images, or of texts, cut to what the model takes.

        Args:
            modality (`str`): `image` or `text`.
            values (`Sequence`): N of these.
        """
        if modality == IMAGE:
            return dict(self.processor(images=list(values), return_tensors="pt"))
        return dict(self.processor(text=list(values), padding=self.padding, truncation=True, return_tensors="pt"))


class DualEncoderEmbedder:
    """Embeds with a dual encoder: mmhf's own or one of transformers.

    Args:
        model (`PreTrainedModel`): In eval mode, on its device.
        processor: Of the model; called with `images` or `text`.
    """

    modalities = (IMAGE, TEXT)

    def __init__(self, model: PreTrainedModel, processor: Any) -> None:
        self.model: Any = model
        # SigLIP was trained on texts of full length only (transformers 5.23 pads so in its pipeline too).
        self.inputs = EmbedderInputs(processor, padding="max_length" if isinstance(model, SiglipModel) else True)

    @torch.inference_mode()
    def embed(self, modality: str, encoding: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Embeddings `(N, D)` of length 1, in float32 on the CPU.

        Args:
            modality (`str`): Of what.
            encoding (`Mapping[str, torch.Tensor]`): What `inputs` made of N images or texts.
        """
        inputs = {name: self._placed(tensor) for name, tensor in encoding.items()}
        features = self.model.get_image_features if modality == IMAGE else self.model.get_text_features
        output = features(**inputs)
        # transformers 5 gives the whole output, 4 gave the tensor.
        embeds: Any = output.pooler_output if isinstance(output, BaseModelOutputWithPooling) else output
        return torch.nn.functional.normalize(embeds.float(), dim=-1).cpu()

    def _placed(self, tensor: torch.Tensor) -> torch.Tensor:
        dtype = self.model.dtype if tensor.is_floating_point() else None
        return tensor.to(self.model.device, dtype)


def load_embedder(model_dir: str | Path, *, device: torch.device | None = None) -> DualEncoderEmbedder:
    """Load the dual encoder of a run or release folder, or of a folder that transformers saved.

    Raises:
        InputError: The folder is absent, holds another kind of model, or its files are damaged or incomplete.
    """
    path = Path(model_dir)
    if not (path / CONFIG_FILE).is_file():
        raise InputError(f"{path}: no model in it, config.json is missing")
    try:
        model_type = AutoConfig.from_pretrained(path, local_files_only=True).model_type
        if model_type not in _MODEL_TYPES:
            raise InputError(f"{path}: a {model_type} model; embedding needs a dual encoder")
        model, loading = AutoModel.from_pretrained(path, output_loading_info=True, local_files_only=True)
        processor = AutoProcessor.from_pretrained(path, local_files_only=True)
    except InputError:
        raise
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{path}: the model does not load ({reason}); restore its files") from error
    missing = sorted(loading["missing_keys"])
    if missing:
        raise InputError(f"{path}: the weights lack {len(missing)} tensors, such as {missing[0]}; restore the file")
    return DualEncoderEmbedder(model.to(device or choose_device()).eval(), processor)
