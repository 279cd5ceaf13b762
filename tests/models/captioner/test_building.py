from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from mmhf.errors import InputError
from mmhf.models.captioner import CaptionerProcessor, PrefixCaptionerForConditionalGeneration
from mmhf.models.captioner.building import (
    build_captioner_config,
    build_captioner_model,
    build_captioner_processor,
    generation_config,
    load_captioner_model,
)
from mmhf.models.partition import Partition
from mmhf.recipe.caption_data_sections import CaptionSampleSection
from mmhf.recipe.captioner_recipe import CaptionerModelSection, GenerationSection

Make = Callable[..., CaptionerModelSection]
NEW = {
    "backbone": "qwen3",
    "pretrained": False,
    "config": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2,
               "num_key_value_heads": 1, "head_dim": 16, "tie_word_embeddings": True},
    "tokenizer": {"vocab_size": 300},
}  # fmt: skip


def test_a_new_language_model_has_the_configs_values_and_the_tokenizers_ids(section: Make) -> None:
    config = build_captioner_config(section(language=NEW), image_size=32).language_config
    assert (config.hidden_size, config.num_hidden_layers, config.vocab_size) == (32, 3, 300)
    assert len(config.layer_types) == 3
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (None, 0, 1)


def test_a_tokenizer_made_from_captions_writes_any_script_and_ends_them(section: Make) -> None:
    data = CaptionSampleSection(source="sample", image_size=32, max_length=8)
    processor = build_captioner_processor(section(language=NEW), data, ["a dog", "a dog runs"])
    texts = ["a dog", "木の葉 🍁", "שלום"]
    encoded = processor(text=texts)
    assert encoded["input_ids"].shape == (3, 8)  # cut
    assert encoded["input_ids"][0, :3].tolist()[-1] == processor.tokenizer.eos_token_id
    whole = processor.tokenizer(texts)["input_ids"]
    assert processor.captions(whole) == texts
    assert [length > 8 for length in processor.count_tokens(texts)] == [False, True, True]


def test_shapes_on_the_meta_device_are_those_of_the_model(section: Make, processor: CaptionerProcessor) -> None:
    made = section(language=NEW, lora={"target_modules": ["q_proj"]})
    real, planned = (build_captioner_model(made, image_size=32, device=device) for device in (None, "meta"))
    assert planned.device.type == "meta"
    assert Partition.of(planned).counts(planned) == Partition.of(real).counts(real)


def test_another_kind_of_language_model_trains_and_writes(
    section: Make, tokenizer: Any, tmp_path: Path, batch: dict[str, Any]
) -> None:
    config = GPT2Config(vocab_size=320, n_embd=32, n_layer=2, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = build_captioner_model(section(language={"backbone": str(tmp_path)}), image_size=32)
    model(**batch).loss.backward()
    assert model.generate(batch["pixel_values"], max_new_tokens=3, pad_token_id=1).shape == (4, 3)
    assert Partition.of(model).select("language:last 1") == ("language.layers.1", "language.final")


@pytest.mark.parametrize("kind", ["mlp", "transformer"])
def test_a_normalised_projector_starts_with_prefixes_like_words_and_keeps_its_norm(
    section: Make, folder: Path, kind: str
) -> None:
    made = section(projector={"normalize": True, "kind": kind, "heads": 2, "width": 16})
    model = build_captioner_model(made, image_size=32)
    words = model.get_input_embeddings().weight.detach()
    features = 100 * torch.randn(500, model.vision_output.width)  # as long as no word is
    prefix = model.projector(features).flatten(0, 1).detach()
    assert prefix.norm(dim=1).mean() == pytest.approx(words.norm(dim=1).mean().item(), rel=0.1)
    assert torch.allclose(model.projector[-1].bias, words.mean(dim=0))
    model.save_pretrained(folder)
    loaded = load_captioner_model(folder, made)
    assert torch.equal(loaded.projector(features), model.projector(features))
    with pytest.raises(InputError, match=r"projector\.normalize"):
        load_captioner_model(folder, section(projector={"kind": kind, "heads": 2, "width": 16}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"language": {**NEW, "pretrained": True, "tokenizer": None}}, None),
        ({"language": {**NEW, "config": {"hiden_size": 3}}}, r"config\.hiden_size: unknown; did you mean hidden_size"),
        ({"language": {**NEW, "tokenizer": None}}, r"tokenizer: qwen3 is a kind of model"),
        ({"vision": {"features": "patches"}}, r"prefix_length: an mlp makes one token of each patch"),
        ({"vision": {"backbone": "timm/test_vit", "pretrained": False}}, r"only CLIP's image encoders have projected"),
        ({"language": {**NEW, "backbone": "gemma2", "config": {}}}, r"gemma2 changes its logits \(final_logit_soft"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_one_line(section: Make, changes: dict[str, Any], message: str | None) -> None:
    if message is None:
        with pytest.raises(ValueError, match="pretrained"):
            section(**changes)
        return
    with pytest.raises(InputError, match=message) as caught:
        build_captioner_config(section(**changes), image_size=32)
    assert "\n" not in str(caught.value)


def test_a_kind_of_model_has_no_pretrained_weights(section: Make) -> None:
    with pytest.raises(InputError, match="set pretrained: false"):
        build_captioner_config(section(language={"backbone": "qwen3"}))


def test_going_on_from_a_release_keeps_its_weights_and_refuses_another_model(
    model: PrefixCaptionerForConditionalGeneration, section: Make, folder: Path
) -> None:
    model.save_pretrained(folder)
    loaded = load_captioner_model(folder, section(projector={"dropout": 0.5}))
    assert torch.equal(loaded.projector.layers[0].weight, model.projector.layers[0].weight)
    assert loaded.projector.layers[2].p == 0.5
    for changes, message in [
        ({"projector": {"hidden_dims": [8]}}, "projector.hidden_dims"),
        ({"projector": {"prefix_length": 4}}, "prefix_length: 4, but init_from .* has 3"),
        ({"vision": {"features": "cls"}}, "vision.features"),
    ]:
        with pytest.raises(InputError, match=message):
            load_captioner_model(folder, section(**changes))


def test_generation_settings_of_a_recipe_hold_in_the_model(processor: CaptionerProcessor) -> None:
    greedy = generation_config(GenerationSection(max_new_tokens=5), processor)
    assert (greedy.max_new_tokens, greedy.do_sample, greedy.temperature) == (5, False, None)
    drawn = generation_config(GenerationSection(do_sample=True, top_p=0.9), processor)
    assert (drawn.do_sample, drawn.top_p, drawn.eos_token_id, drawn.pad_token_id) == (True, 0.9, 0, 1)
