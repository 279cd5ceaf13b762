"""A checkpoint as the seed writes it, converted, gives the seed's own captions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from mmhf.cli import main
from mmhf.conversion.captioner import Captioner
from mmhf.conversion.checkpoint import read_checkpoint
from mmhf.conversion.converting import Options
from mmhf.errors import InputError
from mmhf.inference.loading import load_model
from mmhf.models.captioner import PrefixCaptionerForConditionalGeneration
from mmhf.models.tokenizers import train_caption_tokenizer
from mmhf.recipe import load_recipe

START = "<|im_start|>"
WORDS = ["a dog runs", "a red bird sits on a branch", "two dogs and a bird", "smiling face with open mouth"]
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
def seed_backbones(tmp_path: Path) -> dict[str, str]:
    """Folders of a tiny CLIP and of a language model whose tokenizer knows the seed's start token."""
    torch.manual_seed(0)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    image, text = {**tower, "image_size": 32, "patch_size": 16}, {**tower, "vocab_size": 99}
    CLIPModel(CLIPConfig(vision_config=image, text_config=text, projection_dim=24)).save_pretrained(tmp_path / "clip")
    CLIPImageProcessor(size={"shortest_edge": 32}).save_pretrained(tmp_path / "clip")
    tokenizer = train_caption_tokenizer(WORDS, 320)
    tokenizer.add_special_tokens({"additional_special_tokens": [START]})
    tokenizer.save_pretrained(tmp_path / "qwen")
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "tie_word_embeddings": True}
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    # More rows than the tokenizer has tokens, as Qwen3's; larger weights, so that captions depend on the image.
    config = Qwen3Config(**{**tower, **heads, **ends}, vocab_size=330, initializer_range=0.3)
    Qwen3ForCausalLM(config).save_pretrained(tmp_path / "qwen")
    return {"vision": str(tmp_path / "clip"), "language": str(tmp_path / "qwen")}


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
@pytest.mark.slow
def test_the_converted_model_writes_what_the_seed_wrote(
    checkpoint: Callable[..., tuple[Path, SeedModel]],
    seed_backbones: dict[str, str],
    with_start: bool,
    tmp_path: Path,
    convert: Callable[..., str],
) -> None:
    path, seed = checkpoint(with_start=with_start)
    names = ["--vision", seed_backbones["vision"], "--text", seed_backbones["language"]]
    convert(path, "-o", tmp_path / "converted", *names)
    model, processor = load_model(tmp_path / "converted")
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
    command = ["convert", path, "-o", output, "--vision", seed_backbones["vision"]]
    command += ["--text", seed_backbones["language"]]
    assert main([str(argument) for argument in command]) == 0
    model = PrefixCaptionerForConditionalGeneration.from_pretrained(output)
    assert torch.equal(model.projector.layers[0].weight, seed.mlp.weight)
    start = [AutoTokenizer.from_pretrained(output).convert_tokens_to_ids(START)]
    recipe: Any = load_recipe(output / "recipe.yaml", []).recipe
    assert (model.config.prompt_ids, recipe.stages[0].decay_rate, recipe.data.max_length) == (start, 0.8, 12)
    assert json.loads((output / "metrics.json").read_text()) == {"train_loss": 2.4, "validation_rougeL": 0.32}
    assert main([str(argument) for argument in command]) == 2  # never over an existing folder


def test_what_is_no_such_checkpoint_is_named(tmp_path: Path) -> None:
    torch.save({"model_state_dict": {"head.weight": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"other\.pth: no captioner of CLIP"):
        Captioner().recipe(read_checkpoint(tmp_path / "other.pth"), Options())
    (tmp_path / "broken.pth").write_bytes(b"not a checkpoint")
    with pytest.raises(InputError, match=r"broken\.pth: cannot be read"):
        read_checkpoint(tmp_path / "broken.pth")
    torch.save({"model_state_dict": print}, tmp_path / "pickled.pth")
    with pytest.raises(InputError, match=r"pickled\.pth: cannot be read"):
        read_checkpoint(tmp_path / "pickled.pth")


def test_a_language_model_that_does_not_know_the_seeds_start_is_named(
    checkpoint: Callable[..., tuple[Path, SeedModel]],
    seed_backbones: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    train_caption_tokenizer(WORDS, 320).save_pretrained(seed_backbones["language"])
    path, _ = checkpoint(with_start=True)
    names = ["--vision", seed_backbones["vision"], "--text", seed_backbones["language"]]
    assert main(["convert", str(path), "-o", str(tmp_path / "converted"), *names]) == 2
    assert f"its captions begin with {START}, which the tokenizer" in capsys.readouterr().err
