"""Captions by a stock vLLM server: image encoder and projector run here, the language model runs there.

The server needs no code of mmhf, only the language model, which the first command takes out of a captioner (adapters
merged into it) and writes as a folder that vLLM and transformers know:

    python examples/serving/vllm_captions.py releases/captions --save-language-model language
    vllm serve language --enable-prompt-embeds
    python examples/serving/vllm_captions.py releases/captions photo.jpg other.jpg --url http://127.0.0.1:8000

What stands for the image is sent as `prompt_embeds` of /v1/completions.
"""

from __future__ import annotations

import argparse
import base64
import copy
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mmhf  # noqa: F401  (first: it makes torchvision importable beside a CPU build of torch)

import httpx  # isort: skip
import torch
from PIL import Image
from transformers import GenerationConfig

from mmhf.hub import resolve_model
from mmhf.inference.loading import load_model


def save_language_model(model: Any, processor: Any, folder: Path) -> None:
    """Write the language model with its tokenizer, whole, without adapters."""
    language = copy.deepcopy(model.language)
    for module in list(language.modules()):
        if hasattr(module, "merge") and hasattr(module, "get_base_layer"):
            module.merge()
    for name, module in list(language.named_modules()):
        if hasattr(module, "get_base_layer"):
            language.set_submodule(name, module.get_base_layer())
    # What ends a caption; vLLM would sample as the folder says, if it said more.
    ends = {name: getattr(model.generation_config, name) for name in ("eos_token_id", "pad_token_id")}
    language.generation_config = GenerationConfig(**ends)
    language.save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)


@torch.inference_mode()
def prefixes(model: Any, processor: Any, images: Sequence[Image.Image]) -> torch.Tensor:
    """What the language model reads before each caption: image and prompt, (N, T, D)."""
    pixels = processor(images=[image.convert("RGB") for image in images])["pixel_values"]
    embeds = model.prefix_embeds(model.image_features(pixels.to(model.device, model.dtype)))
    return embeds.to(model.language.dtype).cpu()


def encode(embeds: torch.Tensor) -> str:
    """A tensor (T, D) as vLLM reads it: base64 of what `torch.save` writes."""
    file = io.BytesIO()
    torch.save(embeds.contiguous().clone(), file)
    return base64.b64encode(file.getvalue()).decode()


def ask(url: str, name: str, embeds: torch.Tensor, **options: Any) -> list[str]:
    """Captions of N images, in order.

    Args:
        url (`str`): Of the server.
        name (`str`): The model's name there.
        embeds (`torch.Tensor` of shape `(N, T, D)`): From `prefixes`.
        options: More of the request, such as `temperature` or `max_tokens`.
    """
    key = os.environ.get("VLLM_API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    # Some versions ask for a prompt beside the embeddings; an empty one adds nothing.
    body = {"model": name, "prompt": "", "prompt_embeds": [encode(each) for each in embeds], **options}
    answer = httpx.post(f"{url}/v1/completions", json=body, headers=headers, timeout=120)
    answer.raise_for_status()
    choices = sorted(answer.json()["choices"], key=lambda choice: choice["index"])
    return [choice["text"].strip() for choice in choices]


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="captioner, as `mmhf predict` takes it")
    parser.add_argument("images", nargs="*", type=Path)
    parser.add_argument("--save-language-model", type=Path, metavar="FOLDER")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--name", default="language", help="of the language model on the server")
    parser.add_argument("--max-tokens", type=int, default=64)
    options = parser.parse_args(words)
    model, processor = load_model(resolve_model(options.model).path, needs="predictor", device=torch.device("cpu"))
    if options.save_language_model is not None:
        save_language_model(model, processor, options.save_language_model)
    if options.images:
        embeds = prefixes(model, processor, [Image.open(path) for path in options.images])
        captions = ask(options.url, options.name, embeds, max_tokens=options.max_tokens, temperature=0)
        for path, caption in zip(options.images, captions, strict=True):
            print(f"{path}\t{caption}")


if __name__ == "__main__":
    main()
