"""Prompts of a row's own: loss and captions of a batch are those of its rows alone, whatever the padding."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CLIPVisionConfig, GPT2Config

from mmhf.errors import InputError
from mmhf.models.captioner import CaptionerProcessor, PrefixCaptionerConfig, PrefixCaptionerForConditionalGeneration
from mmhf.models.captioner.building import build_captioner_config, build_captioner_model, load_captioner_model
from mmhf.recipe.captioner_recipe import CaptionerModelSection

Model = PrefixCaptionerForConditionalGeneration
Batch = dict[str, Tensor]
ROWS = [{"kind": "dog"}, {"kind": "two red birds on a branch"}, {"kind": "face"}, {"kind": "smiling mouth"}]
SECTION = {"prompt": "a {kind}:", "prompt_missing": ""}


@pytest.fixture
def prompter(processor: CaptionerProcessor) -> CaptionerProcessor:
    made = copy.copy(processor)
    made.prompt_template = SECTION["prompt"]
    return made


@pytest.fixture
def prompted(batch: Batch, prompter: CaptionerProcessor) -> Batch:
    return {**batch, **prompter(columns=ROWS)}


def _gpt2(batch_model: Model) -> Model:
    """A captioner whose language model has learnt positions, which padding must not move."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig.from_dict(batch_model.config.vision_config.to_dict())
    language = GPT2Config(
        vocab_size=320,
        n_embd=32,
        n_layer=2,
        n_head=2,
        n_positions=64,
        eos_token_id=0,
        pad_token_id=1,
        initializer_range=0.3,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    model = Model(PrefixCaptionerConfig(vision, language, prefix_length=3, projector_hidden_dims=[16]))
    torch.nn.init.normal_(model.projector.layers[-1].weight, std=0.5)
    return model.eval()


@pytest.fixture(params=["qwen3", "gpt2"])
def captioner(request: pytest.FixtureRequest, model: Model) -> Model:
    return model if request.param == "qwen3" else _gpt2(model)


def _alone(batch: Batch, row: int) -> Batch:
    """One row without any padding."""
    cut = {name: tensor[row : row + 1] for name, tensor in batch.items()}
    length, prompt = int(cut["attention_mask"].sum()), int(cut.pop("prompt_mask").sum())
    for name in ("input_ids", "attention_mask", "labels"):
        cut[name] = cut[name][:, :length]
    cut["prompt_ids"] = cut["prompt_ids"][:, cut["prompt_ids"].shape[1] - prompt :]
    return cut


def test_the_processor_pads_prompts_on_the_left(prompter: CaptionerProcessor) -> None:
    made = prompter(columns=ROWS)
    assert made["prompt_ids"].shape == made["prompt_mask"].shape == (4, int(made["prompt_mask"].sum(dim=1).max()))
    for ids, mask, row in zip(made["prompt_ids"], made["prompt_mask"], ROWS, strict=True):
        assert mask.tolist() == sorted(mask.tolist())
        assert prompter.tokenizer.decode(ids[mask.bool()]) == f"a {row['kind']}:"
    long = prompter(columns={"kind": "a dog runs " * 20})
    assert long["prompt_ids"].shape == (1, 16) and prompter.tokenizer.decode(long["prompt_ids"][0]).endswith("runs:")


def test_the_loss_of_a_batch_is_that_of_its_rows_alone(captioner: Model, prompted: Batch) -> None:
    counts = (prompted["labels"] != -100).sum(dim=1)
    alone = [captioner(**_alone(prompted, row)).loss * counts[row] for row in range(4)]
    loss = captioner(**prompted).loss
    torch.testing.assert_close(loss, torch.stack(alone).sum() / counts.sum())
    (mine,) = torch.autograd.grad(loss, [captioner.projector.layers[0].weight], retain_graph=True)
    (theirs,) = torch.autograd.grad(torch.stack(alone).sum() / counts.sum(), [captioner.projector.layers[0].weight])
    torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-6)


def test_the_side_of_the_padding_changes_nothing(captioner: Model, prompted: Batch) -> None:
    order = (1 - prompted["prompt_mask"]).argsort(dim=1, stable=True)
    right = {name: prompted[name].gather(1, order) for name in ("prompt_ids", "prompt_mask")}
    assert right["prompt_mask"][0, 0] == 1 and right["prompt_mask"][0, -1] == 0
    torch.testing.assert_close(captioner(**{**prompted, **right}).loss, captioner(**prompted).loss)


@pytest.mark.parametrize("beams", [1, 3])
def test_captions_of_a_batch_are_those_written_one_by_one(captioner: Model, prompted: Batch, beams: int) -> None:
    inputs = {name: prompted[name] for name in ("pixel_values", "prompt_ids", "prompt_mask")}
    options = {"max_new_tokens": 8, "num_beams": beams, "pad_token_id": 0, "eos_token_id": 0}
    together = captioner.generate(**inputs, **options).tolist()
    for row, tokens in enumerate(together):
        alone = _alone(prompted, row)
        made = captioner.generate(alone["pixel_values"], prompt_ids=alone["prompt_ids"], **options)[0].tolist()
        assert tokens[: len(made)] == made and set(tokens[len(made) :]) <= {0}
    assert len({tuple(tokens) for tokens in together}) > 1


def test_captions_that_have_begun_go_on_behind_prompts(model: Model, prompted: Batch, batch: Batch) -> None:
    begun = {name: batch[name][:, :3] for name in ("input_ids", "attention_mask")}
    prompts = {name: prompted[name] for name in ("prompt_ids", "prompt_mask")}
    together = model.generate(batch["pixel_values"], **prompts, **begun, max_new_tokens=5)
    for row in range(4):
        prompt = prompted["prompt_ids"][row][prompted["prompt_mask"][row].bool()][None]
        ids = batch["input_ids"][row : row + 1, :3]
        made = model.generate(batch["pixel_values"][row : row + 1], prompt_ids=prompt, input_ids=ids, max_new_tokens=5)
        assert together[row, -5:].tolist()[: made.shape[1] - 3] == made[0, -5:].tolist()[: made.shape[1] - 3]


def test_the_same_prompt_for_all_rows_is_a_fixed_one(
    section: Callable[..., CaptionerModelSection], processor: CaptionerProcessor, batch: Batch, model: Model
) -> None:
    ids = processor.tokenizer("a dog", add_special_tokens=False)["input_ids"]
    own = {"prompt_ids": torch.tensor([ids] * 4)}
    model.set_prompt(ids)
    assert torch.equal(model(**batch).loss, model(**batch, **own).loss)
    assert torch.equal(model.generate(batch["pixel_values"]), model.generate(batch["pixel_values"], **own))
    hidden = model(**batch, **own, prompt_mask=torch.ones(4, len(ids)), output_hidden_states=True)
    torch.testing.assert_close(
        hidden.image_hidden_states, model.projector(model.image_features(batch["pixel_values"]))
    )


def test_a_template_is_kept_with_the_model_and_asks_for_its_columns(
    section: Callable[..., CaptionerModelSection], processor: CaptionerProcessor, batch: Batch, folder: Any
) -> None:
    made = build_captioner_model(section(**SECTION), processor=processor, image_size=32)
    made.save_pretrained(folder)
    config = PrefixCaptionerConfig.from_pretrained(folder)
    assert (config.prompt_template, config.prompt_missing, config.prompt_ids) == ("a {kind}:", "", [])
    with pytest.raises(ValueError, match="the model's prompt names columns; it needs prompt_ids"):
        made(**batch)
    with pytest.raises(InputError, match=r"model.prompt: init_from .* has 'a \{kind\}:'; name columns, too"):
        load_captioner_model(folder, section(prompt="a dog"))
    made.set_prompt([5])
    made.save_pretrained(folder)
    other = load_captioner_model(folder, section(prompt="one {colour}:"))
    assert other.config.prompt_ids == []
    assert (other.config.prompt_template, other.config.prompt_missing) == ("one {colour}:", None)


def test_a_processor_keeps_its_template_and_names_what_is_wrong(prompter: CaptionerProcessor, folder: Any) -> None:
    prompter.save_pretrained(folder)
    again = CaptionerProcessor.from_pretrained(folder)
    assert torch.equal(again(columns=ROWS)["prompt_ids"], prompter(columns=ROWS)["prompt_ids"])
    with pytest.raises(ValueError, match="4 captions for 1 rows of columns|1 rows of columns"):
        prompter(text=["a"] * 4, columns=ROWS[:1])
    with pytest.raises(ValueError, match="columns.kin: the prompt names no such column; did you mean kind"):
        prompter(columns={"kin": "a"})


def test_double_braces_are_braces_of_a_fixed_prompt(
    section: Callable[..., CaptionerModelSection], processor: CaptionerProcessor
) -> None:
    config = build_captioner_config(section(prompt="a {{dog}}"), processor=processor)
    assert config.prompt_template is None and processor.tokenizer.decode(config.prompt_ids) == "a {dog}"
