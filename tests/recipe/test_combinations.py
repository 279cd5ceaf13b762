from __future__ import annotations

from collections.abc import Callable

import pytest

from mmhf.recipe import ResolvedRecipe

HEAD = "task: image-text-classification\ndata: {source: sample}\n"
STAGES = "stages: [{name: a, epochs: 1}]\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (STAGES + "model: {freeze_vision: true}", "r.yaml:4: model.freeze_vision: shorthand for one stage"),
        (STAGES + "training: {num_train_epochs: 3}", "r.yaml:4: training.num_train_epochs: with `stages`, each stage"),
        (STAGES + "training: {max_steps: 3}", "r.yaml:4: training.max_steps: with `stages`"),
        (
            "\nstages:\n- {name: a, epochs: 1}\n- {name: a, epochs: 2}",
            "r.yaml:6: stages.1.name: stages.0 has the same",
        ),
        ("model: {reset_head: true}", "r.yaml:3: model.reset_head: a new head replaces that of `init_from`"),
        ("optimizer: {name: sgd}\ntraining: {optim: sgd}", "r.yaml:4: training.optim: `optimizer:` chooses"),
        ("optimizer: {}\ntraining: {adam_beta1: 0.5}", "r.yaml:4: training.adam_beta1: `optimizer:` chooses"),
        (
            "optimizer: {weight_decay: 0.1}\ntraining: {weight_decay: 0.1}",
            "r.yaml:3: optimizer.weight_decay: `training.",
        ),
        ("optimizer: {name: adam, momentum: 0.9}", "r.yaml:3: optimizer.momentum: adam has no momentum; got 0.9"),
        ("optimizer: {name: sgd, betas: [0.8, 0.9]}", "r.yaml:3: optimizer.betas: sgd has no betas; got [0.8, 0.9]"),
        ("optimizer: {name: sgd, nesterov: true}", "r.yaml:3: optimizer.nesterov: needs a momentum above 0"),
        (
            "loss: {label_smoothing: 0.1}\ntraining: {label_smoothing_factor: 0.1}",
            "r.yaml:4: training.label_smoothing_factor: `loss.label_smoothing` is given too",
        ),
        (
            "training: {load_best_model_at_end: true, save_strategy: no}",
            "r.yaml:3: training.load_best_model_at_end: `save_strategy: no` saves no model",
        ),
        (
            "training: {load_best_model_at_end: true, save_strategy: steps, eval_strategy: epoch}",
            "r.yaml:3: training.load_best_model_at_end: save_strategy (steps) and eval_strategy (epoch) must",
        ),
        ("training: {fp16: true, bf16: true}", "r.yaml:3: training.fp16: `bf16: true` is given too"),
        ("training: {dataloader_prefetch_factor: 2}", "r.yaml:3: training.dataloader_prefetch_factor: only workers"),
        ("training: {dataloader_persistent_workers: true}", "r.yaml:3: training.dataloader_persistent_workers: there"),
        ("early_stopping: {}\ntraining: {eval_strategy: no}", "r.yaml:3: early_stopping: needs evaluations"),
        ("stages: [{name: a, epochs: 1, decay_rate: 0.5}]", "r.yaml:3: stages.0.decay_rate: only `schedule: step`"),
        (
            "stages: [{name: a, epochs: 1, schedule: constant, min_lr: 0.5}]",
            "r.yaml:3: stages.0.min_lr: `schedule: con",
        ),
        ("stages: [{name: a, epochs: 1, learning_rate: 0.1, min_lr: 0.5}]", "r.yaml:3: stages.0.min_lr: is above"),
        ("stages: [{name: a, epochs: 1, warmup: 1.5}]", "r.yaml:3: stages.0.warmup: must be a whole number of steps"),
        (
            "stages: [{name: a, steps: 5, warmup: 5}]",
            "r.yaml:3: stages.0.warmup: leaves nothing of a stage of 5 steps",
        ),
    ],
)
def test_impossible_combinations(problems: Callable[..., list[str]], text: str, expected: str) -> None:
    [line] = problems(f"{HEAD}{text}\n")
    assert line.startswith(expected)


@pytest.mark.parametrize(
    "text",
    [
        "model: {freeze_vision: true, freeze_text: true}\ntraining: {num_train_epochs: 2}",
        "optimizer: {name: sgd, momentum: 0.9, nesterov: true}\ntraining: {weight_decay: 0.1}",
        "stages: [{name: a, epochs: 1, schedule: step, decay_rate: 0.5, decay_every: 2}]",
        "stages: [{name: a, steps: 5, warmup: 0.5}, {name: b, steps: 5, warmup: 4, learning_rate: {head: 1}}]",
        "training: {load_best_model_at_end: true, save_strategy: best, eval_strategy: steps}",
        "init_from: a@v1\nmodel: {reset_head: true}",
    ],
)
def test_possible_combinations_stay_possible_once_resolved(load: Callable[..., ResolvedRecipe], text: str) -> None:
    assert load(load(f"{HEAD}{text}\n").to_yaml()).recipe


def test_only_images_alone_are_mixed(problems: Callable[..., list[str]], load: Callable[..., ResolvedRecipe]) -> None:
    data = "data: {source: sample, augment: {mixup: 0.2, cutmix: 1.0}}\n"
    lines = problems(f"task: image-text-classification\n{data}")
    assert [line.split(": ")[1] for line in lines] == ["data.augment.mixup", "data.augment.cutmix"]
    assert load(f"task: image-classification\n{data}").recipe
    [line] = problems(f"{HEAD}stages: [{{name: a, epochs: 1, augment: {{mixup: 0.2}}}}]\n")
    assert line.startswith("r.yaml:3: stages.0.augment.mixup: mixes images")


def test_a_folder_of_images_is_for_image_classification(
    problems: Callable[..., list[str]], load: Callable[..., ResolvedRecipe]
) -> None:
    data = "data: {source: image_folder, path: x}\n"
    [line] = problems(f"task: image-text-classification\n{data}")
    sources = "fakeddit, table, clinical, sample, hub or joined"
    assert line.startswith(f"r.yaml:2: data.source: must be {sources}; got 'image_folder'")
    resolved = load(f"task: image-classification\n{data}")
    assert load(resolved.to_yaml()).recipe == resolved.recipe


def test_a_task_without_texts_refuses_what_is_said_of_them(
    problems: Callable[..., list[str]], load: Callable[..., ResolvedRecipe]
) -> None:
    head = "task: image-classification\n"
    lines = problems(f"{head}data: {{source: fakeddit, path: x, text: title, max_length: 64, on_empty_text: skip}}\n")
    assert lines == [
        "r.yaml:2: data.text: an image classifier reads no texts; remove it; got 'title'",
        "r.yaml:2: data.max_length: an image classifier reads no texts; remove it; got 64",
        "r.yaml:2: data.on_empty_text: an image classifier reads no texts; remove it; got 'skip'",
    ]
    assert load(load(f"{head}data: {{source: sample}}\n").to_yaml()).recipe


def test_an_image_size_is_a_side_or_height_and_width(
    problems: Callable[..., list[str]], load: Callable[..., ResolvedRecipe]
) -> None:
    resolved = load(HEAD, "data.image_size=[48, 64]")
    assert resolved.recipe.data.image_size == (48, 64)
    assert load(resolved.to_yaml()).recipe == resolved.recipe
    assert load(HEAD, "data.image_size=[64,64]").recipe == load(HEAD, "data.image_size=64").recipe
    for wrong in ("[48]", "[48, 64, 3]", "[48, 0]", "0", "large"):
        [line] = problems(HEAD, f"data.image_size={wrong}")
        assert "data.image_size" in line, line
    [line] = problems(HEAD, "data.image_size=[48,64]", "data.resize=crop")
    assert "data: resize = crop cuts out a square" in line


@pytest.mark.parametrize(
    ("task", "override", "expected"),
    [
        (
            "image-classification",
            "model.vision.config={depth: 2}",
            "model.vision: `config` changes the model that was",
        ),
        ("image-captioning", "model.vision.config={depth: 2}", "model.vision: `config` changes the model that was"),
        (
            "image-text-classification",
            "model.text.config={n_layers: 2}",
            "model.text: `config` changes the model that",
        ),
        (
            "contrastive",
            "model.text={backbone: x, config: {num_hidden_layers: 2}}",
            "model.text: `config` changes the model that was",
        ),
        (
            "contrastive",
            "model.vision={pretrained: false, config: {depth: 2}}",
            "model.vision: `config` is of a `backbone`, and none is named",
        ),
    ],
)
def test_sizes_are_of_encoders_from_scratch(problems, task, override, expected):
    [line] = problems(f"task: {task}\ndata: {{source: sample}}\n", override)
    assert expected in line


IMAGES = "task: image-classification\ndata: {source: sample, resize: naflex}\n"


@pytest.mark.parametrize(
    ("text", "override", "expected"),
    [
        (IMAGES, "data.image_size=[48,64]", "data: resize = naflex keeps each image's own shape"),
        (IMAGES, "data.augment={mixup: 0.2}", "data.augment.mixup: images of one shape alone can be mixed"),
        (IMAGES, "data.augment={random_resized_crop: {}}", "data.augment.random_resized_crop: cuts all images to one"),
        (
            IMAGES,
            "stages=[{name: a, epochs: 1, augment: {cutmix: 1.0}}]",
            "stages.0.augment.cutmix: images of one shape alone can be mixed",
        ),
        (IMAGES, "data.mean_std=computed", "data.mean_std: is of images of one shape"),
        (IMAGES, "evaluation.views={horizontal_flip: true}", "evaluation.views: views are of images of one shape"),
        (
            "task: image-captioning\ndata: {source: sample, resize: naflex}\n",
            "model.vision={features: patches}",
            "model.vision.features: images in their own shape",
        ),
        (
            "task: contrastive\ndata: {source: sample, resize: naflex}\n",
            "model.vision={backbone: timm/naflexvit_base_patch16_gap, pooling: attention}",
            "model.vision.pooling: would attend to the padding",
        ),
        (
            "task: contrastive\ndata: {source: sample, resize: naflex}\n",
            "model.vision={pooling: avg}",
            "data.resize: a tower from scratch takes images of one shape",
        ),
    ],
)
def test_what_images_in_their_own_shape_cannot_go_with(problems, text, override, expected):
    [line] = problems(text, override)
    assert expected in line
