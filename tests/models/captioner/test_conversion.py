"""A checkpoint as the seed writes it, converted, gives the seed's own captions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, CLIPModel

from mmhf.cli import main
from mmhf.errors import InputError
from mmhf.models.captioner import PrefixCaptionerForConditionalGeneration
from mmhf.models.captioner.conversion import convert_seed_checkpoint, read_seed_checkpoint
from mmhf.recipe import load_recipe
from mmhf.recipe.captioner_recipe import CaptionerModelSection

START = "<|im_start|>"
HYPERPARAMETERS = {
    "batch_size": 4,
    "learning_rate": 1e-4,
    "learning_rate_decay": 0.8,
    "learning_rate_decay_step": 1,
    "image_size": 32,
    "max_caption_length": 12,
}


class SeedModel(nn.Module):
    """The seed's modules under the seed's names: CLIP whole, one linear layer, Qwen."""

    def __init__(self, backbones: dict[str, str]) -> None:
        super().__init__()
        self.clip_encoder, self.qwen_decoder = nn.Module(), nn.Module()
        self.clip_encoder.clip_model = CLIPModel.from_pretrained(backbones["vision"])
        self.mlp = nn.Linear(24, 32)
        self.qwen_decoder.qwen_model = AutoModelForCausalLM.from_pretrained(backbones["language"])

    @torch.no_grad()
    def caption(self, image: Tensor, start: list[int], steps: int) -> list[int]:
        """Its `inference`: greedy, the whole sequence once more for each token."""
        qwen: Any = self.qwen_decoder.qwen_model
        prefix = self.mlp(self.clip_encoder.clip_model.get_image_features(pixel_values=image[None]).pooler_output)
        tokens = list(start)
        for _ in range(steps):
            embeds = qwen.model.embed_tokens(torch.tensor([tokens], dtype=torch.long))
            logits = qwen(inputs_embeds=torch.cat([prefix[:, None], embeds], dim=1)).logits
            tokens.append(int(logits[0, -1].argmax()))
            if tokens[-1] == 0:
                break
        return tokens[len(start) :]


@pytest.fixture
def seed_backbones(backbones: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """The tiny language model with a tokenizer that knows the seed's start token."""
    folder = tmp_path / "qwen"
    language = AutoModelForCausalLM.from_pretrained(backbones["language"])
    language.resize_token_embeddings(330, mean_resizing=False)  # more rows than the tokenizer has tokens, as Qwen3's
    language.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(backbones["language"])
    tokenizer.add_special_tokens({"additional_special_tokens": [START]})
    tokenizer.save_pretrained(folder)
    return {"vision": backbones["vision"], "language": str(folder)}


@pytest.fixture
def checkpoint(seed_backbones: dict[str, str], tmp_path: Path) -> Callable[..., tuple[Path, SeedModel]]:
    def write(*, with_start: bool) -> tuple[Path, SeedModel]:
        torch.manual_seed(0)
        seed = SeedModel(seed_backbones).eval()
        nn.init.normal_(seed.mlp.weight)
        if with_start:
            tokenizer = AutoTokenizer.from_pretrained(seed_backbones["language"])
            # Of the inner model, as the seed does, which leaves the output layer as it was.
            seed.qwen_decoder.qwen_model.model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        path = tmp_path / "model_state_dict_20241201_120000-1.pth"
        metadata = {"hyperparameters": HYPERPARAMETERS, "loss": 2.4, "score": 0.32}
        torch.save({"model_state_dict": seed.state_dict(), "optimizer_state_dict": {}, **metadata}, path)
        (tmp_path / "training_metadata_20241201_120000-1.json").write_text(json.dumps(metadata))
        return path, seed

    return write


@pytest.mark.parametrize("with_start", [False, True])
def test_the_converted_model_writes_what_the_seed_wrote(
    checkpoint: Callable[..., tuple[Path, SeedModel]], seed_backbones: dict[str, str], with_start: bool
) -> None:
    path, seed = checkpoint(with_start=with_start)
    section = CaptionerModelSection.model_validate({part: {"backbone": name} for part, name in seed_backbones.items()})
    model, processor = convert_seed_checkpoint(read_seed_checkpoint(path), section)
    start = [processor.tokenizer.convert_tokens_to_ids(START)] if with_start else []
    assert model.config.prompt_ids == start
    images = 3 * torch.randn(3, 3, 32, 32)
    expected = [seed.caption(image, start, 12) for image in images]
    assert len({tuple(tokens) for tokens in expected}) > 1
    for row, tokens in zip(model.generate(images).tolist(), expected, strict=True):
        assert row[: len(tokens)] == tokens


def test_the_command_makes_a_folder_that_loads_and_a_recipe_that_goes_on(
    checkpoint: Callable[..., tuple[Path, SeedModel]], seed_backbones: dict[str, str], tmp_path: Path
) -> None:
    path, seed = checkpoint(with_start=True)
    output = tmp_path / "converted"
    command = ["convert-captioner", path, output, "--vision", seed_backbones["vision"]]
    command += ["--language", seed_backbones["language"]]
    assert main([str(argument) for argument in command]) == 0
    model = PrefixCaptionerForConditionalGeneration.from_pretrained(output)
    assert torch.equal(model.projector.layers[0].weight, seed.mlp.weight)
    recipe: Any = load_recipe(output / "recipe.yaml", []).recipe
    assert (recipe.model.prompt, recipe.stages[0].decay_rate, recipe.data.max_length) == (START, 0.8, 12)
    assert json.loads((output / "metrics.json").read_text()) == {"train_loss": 2.4, "validation_rougeL": 0.32}
    assert main([str(argument) for argument in command]) == 2  # never over an existing folder


def test_what_is_no_such_checkpoint_is_named(tmp_path: Path) -> None:
    torch.save({"model_state_dict": {"head.weight": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"other\.pth: no captioner of CLIP"):
        read_seed_checkpoint(tmp_path / "other.pth")
    (tmp_path / "broken.pth").write_bytes(b"not a checkpoint")
    with pytest.raises(InputError, match=r"broken\.pth: cannot be read"):
        read_seed_checkpoint(tmp_path / "broken.pth")
    torch.save({"model_state_dict": print}, tmp_path / "pickled.pth")
    with pytest.raises(InputError, match=r"pickled\.pth: cannot be read"):
        read_seed_checkpoint(tmp_path / "pickled.pth")
