"""Checks of valid values that contradict each other."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from typing import Any

from mmhf.recipe.augment_sections import AugmentSection
from mmhf.recipe.node import KeyPath, Problem, shown
from mmhf.recipe.schema import RecipeBase
from mmhf.recipe.target_sections import RegressionSection
from mmhf.recipe.training_sections import OptimizerSection, StageSection, cache_section, teacher_section

_OPTIMIZER_FIELDS = ("optim", "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon")
_LENGTH_FIELDS = ("num_train_epochs", "max_steps")


def combination_problems(recipe: RecipeBase) -> list[Problem]:
    """All contradictions between the values of a recipe, each of which is valid by itself."""
    return [
        *_model_problems(recipe),
        *_stage_problems(recipe),
        *_few_bits_problems(recipe),
        *_optimizer_problems(recipe),
        *_training_problems(recipe.training),
        *_between_sections(recipe),
        *_subgroup_problems(recipe),
    ]


def _model_problems(recipe: RecipeBase) -> Iterator[Problem]:
    for name in ("freeze_vision", "freeze_text", "freeze_language"):
        if recipe.stages is not None and name in recipe.model.changed():
            what = "shorthand for one stage; say what trains in `stages` instead or remove `stages`"
            yield Problem(("model", name), what, shown(recipe.model.changed()[name]))
    if recipe.release is not None and recipe.release.lora is not None and recipe.model.lora is None:
        yield Problem(("release", "lora"), "there is no `model.lora`; remove it", shown(recipe.release.lora))


def _stage_problems(recipe: RecipeBase) -> Iterator[Problem]:
    if recipe.stages is None:
        return
    for name in _LENGTH_FIELDS:
        if name in recipe.training:
            what = "with `stages`, each stage has its own `epochs` or `steps`; remove one of the two"
            yield Problem(("training", name), what, shown(recipe.training[name]))
    names = [stage.name for stage in recipe.stages]
    for index, stage in enumerate(recipe.stages):
        if stage.name in names[:index]:
            first = names.index(stage.name)
            yield Problem(("stages", index, "name"), f"stages.{first} has the same name", shown(stage.name))
        yield from _schedule_problems(stage, ("stages", index), recipe.training)


def _few_bits_problems(recipe: RecipeBase) -> Iterator[Problem]:
    """What encoders whose weights have few bits cannot do."""
    model, release = recipe.model, recipe.release
    for name, quantization in model.few_bits().items():
        bits, way_out = quantization.bits, f"remove `model.{name}.quantization`"
        trains = f"trains the weights of {name}, which have {bits} bits for good"
        for index, stage in enumerate(recipe.stages or []):
            if _trains_weights_of(name, stage.train):
                what = f"{trains}; name other groups (with `model.lora` also `{name}.lora`), or {way_out}"
                yield Problem(("stages", index, "train"), what, shown(stage.train))
        if recipe.stages is None and _trains_weights_of(name, model.trained_by_default()):
            yield Problem(("model", f"freeze_{name}"), f"{trains}; set it to true, or {way_out}", "false")
        if model.lora is None or name not in model.adapted_encoders():
            continue
        if model.lora.dora:
            what = f"reads the weights of {name}, which have {bits} bits; set it to false, or {way_out}"
            yield Problem(("model", "lora", "dora"), what, "true")
        if release is not None and release.lora == "merge":
            what = f"the weights of {name} have {bits} bits, and no room for changes; set it to keep, or {way_out}"
            yield Problem(("release", "lora"), what, "merge")
    for key in ("torch_compile", "torch_compile_backend", "torch_compile_mode"):
        if model.few_bits() and recipe.training.get(key):
            places = " and ".join(f"`model.{name}.quantization`" for name in model.few_bits())
            what = f"layers of few bits are not compiled; remove it, or {places}"
            yield Problem(("training", key), what, shown(recipe.training[key]))


def _trains_weights_of(encoder: str, selectors: str | Sequence[str]) -> bool:
    """Whether selectors choose weights of an encoder itself, as far as their words tell without its groups."""
    listed = [selectors] if isinstance(selectors, str) else selectors
    trains = False
    for position, selector in enumerate(listed):
        prefix, counted, _ = selector.lstrip("! ").partition(":")
        prefix = prefix.strip()
        is_inside = prefix.startswith(f"{encoder}.") and not prefix.startswith(f"{encoder}.lora")
        is_named = is_inside or prefix in ("all", encoder) or fnmatch.fnmatchcase(f"{encoder}.", prefix)
        if not selector.startswith("!"):
            trains = trains or is_named
        else:
            # What is counted leaves other layers.
            trains = (trains or position == 0) and (bool(counted) or not is_named)
    return trains


def _schedule_problems(stage: StageSection, path: KeyPath, training: dict[str, Any]) -> Iterator[Problem]:
    schedule = stage.schedule or training.get("lr_scheduler_type", "linear")
    for name in ("decay_rate", "decay_every"):
        if schedule != "step" and name in stage.changed():
            yield Problem((*path, name), "only `schedule: step` decays by it", shown(stage.changed()[name]))
    if stage.cycle_beta1 is not None and schedule != "one_cycle":
        yield Problem((*path, "cycle_beta1"), "only `schedule: one_cycle` has a cycle", shown(stage.cycle_beta1))
    if stage.cycle_beta1 is not None and stage.cycle_beta1[0] > stage.cycle_beta1[1]:
        yield Problem((*path, "cycle_beta1"), "the lower one comes first", shown(stage.cycle_beta1))
    if schedule == "constant" and stage.min_lr:
        yield Problem((*path, "min_lr"), "`schedule: constant` never falls to it", shown(stage.min_lr))
    for where, floor in _by_selector(stage.min_lr, (*path, "min_lr")):
        if isinstance(stage.learning_rate, float | int) and floor > stage.learning_rate:
            yield Problem(where, f"is above the stage's learning_rate of {stage.learning_rate:g}", shown(floor))
    for where, warmup in _by_selector(stage.warmup, (*path, "warmup")):
        if warmup > 1 and warmup != int(warmup):
            yield Problem(where, "must be a whole number of steps or a share below 1", shown(warmup))
        elif stage.steps is not None and warmup >= max(stage.steps, 1) and warmup >= 1:
            yield Problem(where, f"leaves nothing of a stage of {stage.steps} steps", shown(warmup))


def _by_selector(given: Any, path: KeyPath) -> Iterator[tuple[KeyPath, Any]]:
    """The values of a setting that is given for all groups or by selector."""
    if isinstance(given, dict):
        yield from (((*path, selector), value) for selector, value in given.items())
    elif given is not None:
        yield path, given


def _optimizer_problems(recipe: RecipeBase) -> Iterator[Problem]:
    for index, stage in enumerate(recipe.stages or []):
        for path, optimizer in _by_selector(stage.optimizer, ("stages", index, "optimizer")):
            yield from _option_problems(optimizer, path)
    optimizer = recipe.optimizer
    if optimizer is None:
        return
    for name in _OPTIMIZER_FIELDS:
        if name in recipe.training:
            what = "`optimizer:` chooses the optimizer already; remove one of the two"
            yield Problem(("training", name), what, shown(recipe.training[name]))
    if optimizer.weight_decay is not None and "weight_decay" in recipe.training:
        what = "`training.weight_decay` is given too; remove one of the two"
        yield Problem(("optimizer", "weight_decay"), what, shown(optimizer.weight_decay))
    yield from _option_problems(optimizer, ("optimizer",))


def _option_problems(optimizer: OptimizerSection, path: KeyPath) -> Iterator[Problem]:
    foreign = ("betas", "eps") if optimizer.name == "sgd" else ("momentum", "nesterov")
    for name in foreign:
        if name in optimizer.changed():
            what = f"{optimizer.name} has no {name}"
            yield Problem((*path, name), what, shown(optimizer.changed()[name]))
    if optimizer.name == "sgd" and optimizer.nesterov and optimizer.momentum == 0:
        yield Problem((*path, "nesterov"), "needs a momentum above 0", "true")


def _training_problems(training: dict[str, Any]) -> Iterator[Problem]:
    if training.get("fp16") and training.get("bf16"):
        yield Problem(("training", "fp16"), "`bf16: true` is given too; remove one of the two", "true")
    if training.get("dataloader_prefetch_factor") is not None and not training.get("dataloader_num_workers"):
        what = "only workers prefetch; set `dataloader_num_workers`"
        yield Problem(("training", "dataloader_prefetch_factor"), what, shown(training["dataloader_prefetch_factor"]))
    if training.get("dataloader_persistent_workers") and not training.get("dataloader_num_workers"):
        what = "there are no workers to keep; set `dataloader_num_workers`"
        yield Problem(("training", "dataloader_persistent_workers"), what, "true")
    if training.get("load_best_model_at_end"):
        yield from _best_model_problems(training)


def _best_model_problems(training: dict[str, Any]) -> Iterator[Problem]:
    path = ("training", "load_best_model_at_end")
    save, evaluate = training.get("save_strategy"), training.get("eval_strategy")
    if save == "no":
        yield Problem(path, "`save_strategy: no` saves no model to load", "true")
    elif evaluate == "no":
        yield Problem(path, "`eval_strategy: no` never finds out which model is best", "true")
    elif save is not None and evaluate is not None and save not in (evaluate, "best"):
        yield Problem(path, f"save_strategy ({save}) and eval_strategy ({evaluate}) must be the same", "true")


def _between_sections(recipe: RecipeBase) -> Iterator[Problem]:
    yield from _mixing_problems(recipe)
    yield from _own_shape_problems(recipe)
    yield from _teacher_problems(recipe)
    yield from _unread_problems(recipe)
    yield from _graph_problems(recipe)
    yield from recipe.problems()
    for path in _evaluation_users(recipe):
        if recipe.training.get("eval_strategy") == "no":
            yield Problem(path, "needs evaluations while training, but `training.eval_strategy` is no")


def _evaluation_users(recipe: RecipeBase) -> Iterator[KeyPath]:
    """Keys that are given and read metrics while training."""
    if recipe.early_stopping is not None:
        yield ("early_stopping",)
    if recipe.unfreeze_on_plateau is not None:
        yield ("unfreeze_on_plateau",)
    for index, stage in enumerate(recipe.stages or []):
        for key in ("unfreeze_on_plateau", "carry_best"):
            if key in stage.changed():
                yield ("stages", index, key)


KEYS_OF_TEXTS = ("text", "max_length", "on_empty_text")
"""Of a data section; an image classifier has none."""
_CUDA_GRAPHS = ("reduce-overhead", "max-autotune")


def _unread_problems(recipe: RecipeBase) -> Iterator[Problem]:
    """Settings for texts, labels or modalities that the task does not read."""
    data = recipe.data.changed()
    if recipe.reads_labels and not recipe.reads_texts:
        for name in KEYS_OF_TEXTS:
            if data.get(name) not in (None, "mask"):
                yield Problem(("data", name), "an image classifier reads no texts; remove it", shown(data[name]))
    strategy = recipe.training.get("train_sampling_strategy")
    if strategy == "group_by_length" and (recipe.data.is_stream() or (recipe.reads_labels and not recipe.reads_texts)):
        what = "groups texts by their length: streams are read as they come, and image classifiers read no texts"
        yield Problem(("training", "train_sampling_strategy"), what, shown(strategy))
    for name in ("on_bad_image", "on_empty_text"):
        if data.get(name) == "mask" and not recipe.reads_texts:
            what = "only a model of images and texts can go by one of them alone (task: image-text-classification)"
            yield Problem(("data", name), what, "mask")
    if recipe.data.mean_std == "computed" and not recipe.reads_labels:
        what = "only classifiers compute them, encoders of other tasks have their own"
        yield Problem(("data", "mean_std"), what, "computed")
    elif recipe.data.mean_std == "computed" and recipe.init_from is not None:
        what = "`init_from` normalises images as its parent did; remove one of the two"
        yield Problem(("data", "mean_std"), what, "computed")
    for index, stage in enumerate(recipe.stages or []):
        if stage.start is not None and (why := recipe.why_no_probe(stage)) is not None:
            yield Problem(("stages", index, "start"), why, shown(stage.start))
        if stage.label_smoothing is not None and not recipe.reads_labels:
            path = ("stages", index, "label_smoothing")
            yield Problem(path, "only the loss of a classifier changes with the stage", shown(stage.label_smoothing))


def _graph_problems(recipe: RecipeBase) -> Iterator[Problem]:
    """CUDA graphs replay what was recorded for one shape; each other one is recorded anew."""
    mode = recipe.training.get("torch_compile_mode")
    if mode not in _CUDA_GRAPHS:
        return
    path = ("training", "torch_compile_mode")
    if not recipe.reads_labels or recipe.reads_texts:
        yield Problem(path, "CUDA graphs need batches of one shape, and texts are padded batch by batch", shown(mode))
    elif not recipe.training.get("dataloader_drop_last"):
        what = "CUDA graphs need batches of one shape, set `dataloader_drop_last: true`"
        yield Problem(path, what, shown(mode))


def _mixing_problems(recipe: RecipeBase) -> Iterator[Problem]:
    if recipe.reads_labels and not recipe.reads_texts:
        return
    for path, value in _changes(recipe, _MIXING):
        what = "mixes images and labels, but texts cannot be mixed; only task: image-classification has it"
        yield Problem(path, what, shown(value))


def _own_shape_problems(recipe: RecipeBase) -> Iterator[Problem]:
    """What has no meaning for images in their own shape."""
    if recipe.data.resize != "naflex":
        return
    for path, value in _changes(recipe, _MIXING):
        what = "images of one shape alone can be mixed; with `data.resize: naflex` remove it"
        yield Problem(path, what, shown(value))
    for path, value in _changes(recipe, ("random_resized_crop",)):
        what = "cuts all images to one shape, which `data.resize: naflex` shall not; remove one of the two"
        yield Problem(path, what, shown(value))
    if recipe.data.mean_std == "computed":
        what = "is of images of one shape; with `data.resize: naflex` use those of the backbone"
        yield Problem(("data", "mean_std"), what, "computed")


_MIXING = ("mixup", "cutmix")


def _changes(recipe: RecipeBase, names: Sequence[str]) -> Iterator[tuple[KeyPath, object]]:
    """Where training images are changed so at random, and how."""
    sections: list[tuple[KeyPath, AugmentSection | None]] = [(("data", "augment"), recipe.data.augment)]
    sections += [(("stages", index, "augment"), stage.augment) for index, stage in enumerate(recipe.stages or [])]
    for path, augment in sections:
        for name in names:
            if augment is not None and name in augment.changed():
                yield (*path, name), augment.changed()[name]


def _teacher_problems(recipe: RecipeBase) -> Iterator[Problem]:
    """What a teacher's stored answers cannot go with."""
    teacher = teacher_section(recipe.teacher)
    if teacher is None:
        return
    if not recipe.can_be_taught:
        what = "classifiers and dual encoders learn from a teacher, captioners do not yet; remove it"
        yield Problem(("teacher",), what, shown(teacher.model))
        return
    if cache_section(recipe.cache).mode == "off":
        yield Problem(("cache",), "a teacher's answers are computed once and stored; remove `cache: off`", "off")
    if recipe.data.is_stream():
        what = "a teacher's answers are looked up for each sample of a table, and a stream is none; set it to false"
        yield Problem(("data", "streaming"), what, "true")
    for path, value in _changes(recipe, _MIXING):
        yield Problem(
            path, "a teacher sees each image alone, and has no answer to mixed ones; remove it", shown(value)
        )
    if teacher.temperature is not None and isinstance(recipe.data.target, RegressionSection):
        what = "numbers have no temperature; remove it"
        yield Problem(("teacher", "temperature"), what, shown(teacher.temperature))


def _subgroup_problems(recipe: RecipeBase) -> Iterator[Problem]:
    if recipe.evaluation.subgroups and recipe.data.is_stream():
        what = "groups are found in tables, and a stream is not kept; set `data.streaming` to false, or remove it"
        yield Problem(("evaluation", "subgroups"), what, shown(recipe.evaluation.subgroups))
