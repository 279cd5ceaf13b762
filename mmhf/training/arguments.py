"""From a recipe to `transformers.TrainingArguments` and to the stages of the run."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers
from accelerate.utils import parse_flag_from_env
from transformers import PreTrainedModel, TrainingArguments

from mmhf.errors import InputError
from mmhf.parallel import gather
from mmhf.recipe.schema import RecipeBase
from mmhf.recipe.training_sections import StageSection, greater_is_better
from mmhf.training.devices import choose_precision, device_defaults
from mmhf.training.memory import estimate_memory, fits_at_once, largest_share
from mmhf.training.stages import StagePlan
from mmhf.training.weights import apply_freezing

# What mmhf sets where a recipe is silent; TrainingArguments' own defaults hold for the rest.
_DEFAULTS: dict[str, Any] = {"save_strategy": "epoch", "save_total_limit": 2, "logging_steps": 10}


def training_arguments(recipe: RecipeBase, output_dir: str, *, has_validation: bool) -> TrainingArguments:
    """Build the arguments of the Trainer.

    Args:
        recipe (`RecipeBase`): The validated recipe.
        output_dir (`str`): The run folder.
        has_validation (`bool`): Whether there is a split to evaluate on during training.

    Raises:
        InputError: TrainingArguments refuses the combination, or accelerate's configuration contradicts the recipe.
    """
    given = dict(recipe.training)
    values = {
        **_DEFAULTS,
        **device_defaults(given, is_stream=recipe.data.is_stream()),
        **given,
        "output_dir": output_dir,
        "remove_unused_columns": False,
    }
    values.setdefault("eval_strategy", "epoch" if has_validation else "no")
    values.setdefault("per_device_eval_batch_size", values.get("per_device_train_batch_size", 8))
    values.setdefault("disable_tqdm", not sys.stderr.isatty())
    if (best := values.get("metric_for_best_model")) and has_validation:
        values.setdefault("load_best_model_at_end", True)
        values.setdefault("greater_is_better", greater_is_better(best))
    if values["eval_strategy"] == "no" and (setting := _needs_evaluations(recipe)):
        raise InputError(f"{setting} needs evaluations: the data has no validation split, or eval_strategy is 'no'")
    for name in values.keys() - {field.name for field in dataclasses.fields(TrainingArguments)}:
        raise InputError(f"training.{name}: transformers {transformers.__version__} has no such field; remove it")
    try:
        args = TrainingArguments(**values)
    except ValueError as error:
        raise InputError(f"training: {' '.join(str(error).split())}") from error
    if leaves_micro_batch_open(recipe):
        args.per_device_train_batch_size = max((recipe.pairs_per_step() or 0) // args.world_size, 1)
    args.gradient_accumulation_steps = accumulation_steps(recipe, args)
    _refuse_what_a_cpu_lacks(args)
    return args


def start_process_group(args: TrainingArguments) -> None:
    """Start what a decision for all processes is told by: TrainingArguments do so when asked for their device."""
    _ = args.device


def _refuse_what_a_cpu_lacks(args: TrainingArguments) -> None:
    if args.device.type != "cpu":
        return
    if args.fsdp or parse_flag_from_env("ACCELERATE_USE_FSDP"):
        raise InputError(
            "FSDP: accelerate 1.15 shards nothing on CPUs, it would give each process the whole model without a word; "
            "start with accelerate_configs/cpu_2_processes.yaml, and remove training.fsdp"
        )
    if args.fp16 or str(args.mixed_precision) == "fp16":
        raise InputError(
            "training.fp16: a CPU does not train in fp16, it would compute in full precision without a word; remove "
            "it, or choose training.bf16, here or in the configuration of accelerate launch"
        )


def check_batches(recipe: RecipeBase, args: TrainingArguments, num_rows: int | None) -> None:
    """Refuse batches that the data cannot fill even once.

    Args:
        recipe (`RecipeBase`): The validated recipe.
        args (`TrainingArguments`): Batch size, accumulation and processes.
        num_rows (`int`, *optional*): Samples of an epoch; None for a stream of unknown length.

    Raises:
        InputError: A step has more samples than there are.
    """
    for index, stage in enumerate(recipe_stages(recipe, args)):
        size = stage.batch_size or args.per_device_train_batch_size
        accumulation = accumulation_steps(recipe, args, stage.batch_size)
        samples = size * accumulation * args.world_size
        if num_rows is not None and samples > num_rows:
            key = f"stages.{index}.batch_size" if stage.batch_size else "training.per_device_train_batch_size"
            if accumulation > 1:
                is_exact = recipe.pairs_per_step() is not None
                key = "contrastive.batch_size" if is_exact else "training.gradient_accumulation_steps"
            factors = f"{accumulation} × " if accumulation > 1 else ""
            processes = f" × {args.world_size} processes" if args.world_size > 1 else ""
            fits = "a smaller value" if accumulation > 1 else max(num_rows // args.world_size // 4, 1)
            raise InputError(
                f"{key}: {factors}{size}{processes} is more than the {num_rows} training rows; set it to {fits}"
            )


def leaves_micro_batch_open(recipe: RecipeBase) -> bool:
    """Whether a step's pairs are given and how many pass through the model at once is not."""
    return recipe.pairs_per_step() is not None and "per_device_train_batch_size" not in recipe.training


def fit_micro_batch(
    recipe: RecipeBase,
    args: TrainingArguments,
    model: PreTrainedModel,
    example_inputs: Callable[[int], Mapping[str, torch.Tensor]],
) -> str | None:
    """Where a recipe leaves its micro-batch open, set the largest that fits: then the least is computed twice.

    It is the same on the same kind of machine, because it depends on the memory that there is, not on what is free.

    Args:
        recipe (`RecipeBase`): The validated recipe.
        args (`TrainingArguments`): What is changed; until now, the whole step is one micro-batch.
        model (`PreTrainedModel`): On any device, such as `meta`.
        example_inputs (`Callable`): Makes a micro-batch of so many samples of the largest shape.

    Returns:
        `str`: what was chosen, in words; None where the recipe says it.

    Raises:
        InputError: Not even one pair fits.
    """
    if not leaves_micro_batch_open(recipe):
        return None
    share = args.per_device_train_batch_size
    plan = build_stage_plan(model, recipe, args, share * args.world_size)
    precision, count = choose_precision(recipe.training).mixed, min(share, 4)
    fits, name = share, ""
    for stage in plan.stages:
        if stage.section.batch_size is None:
            apply_freezing(model, plan.partition, stage.curves, hold_batch_norm=stage.section.batch_norm == "frozen")
            memory = estimate_memory(
                plan, stage, example_inputs(count), state_values=state_values(recipe, args), precision=precision
            )
            found = fits_at_once(memory, count, args.device)
            if found is not None and found < fits:
                fits, name = found, stage.name
    fits = min(gather(fits))
    if fits < 1:
        raise InputError(
            f"stage {name}: not even one pair fits into the memory of the {args.device.type} device; choose smaller "
            "towers, or training.gradient_checkpointing: true"
        )
    args.per_device_train_batch_size = largest_share(share, fits)
    args.gradient_accumulation_steps = accumulation_steps(recipe, args)
    if args.per_device_train_batch_size == share:
        return f"all {share:,} pairs of a device at once, which fit"
    return f"{args.per_device_train_batch_size:,} of a device's {share:,} pairs; about {fits:,} fit in stage {name}"


def state_values(recipe: RecipeBase, args: TrainingArguments) -> int:
    """Values that the run's optimizer keeps for each parameter."""
    return 1 if (recipe.optimizer.name if recipe.optimizer else str(args.optim)) == "sgd" else 2


def stages_with_one_row(recipe: RecipeBase, args: TrainingArguments, num_rows: int | None) -> list[str]:
    """Names of the stages some batch of which is a single row; several processes fill their last batches up."""
    if num_rows is None or args.world_size > 1:
        return []
    sizes = {stage.name: stage.batch_size or args.per_device_train_batch_size for stage in recipe_stages(recipe, args)}
    is_left = not args.dataloader_drop_last
    return [name for name, size in sizes.items() if size == 1 or (is_left and num_rows % size == 1)]


def _needs_evaluations(recipe: RecipeBase) -> str | None:
    stages = recipe.stages or []
    users = {
        "early_stopping": recipe.early_stopping is not None,
        "unfreeze_on_plateau": recipe.unfreeze_on_plateau is not None
        or any(stage.unfreeze_on_plateau is not None for stage in stages),
        "carry_best": any(stage.carry_best is not None for stage in stages),
    }
    return next((name for name, used in users.items() if used), None)


def accumulation_steps(recipe: RecipeBase, args: TrainingArguments, batch_size: int | None = None) -> int:
    """Forward passes of one optimizer step on each device.

    Args:
        recipe (`RecipeBase`): Its `contrastive.batch_size`, where it has one, is cut into them.
        args (`TrainingArguments`): Processes, batch size where none is given, and accumulation for other recipes.
        batch_size (`int`, *optional*): Samples per device and forward pass.

    Raises:
        InputError: That does not come out even.
    """
    size, at_once = recipe.pairs_per_step(), batch_size or args.per_device_train_batch_size
    if size is None:
        return args.gradient_accumulation_steps
    if size % (at_once * args.world_size):
        raise InputError(
            f"contrastive.batch_size: {size} is no multiple of {at_once} pairs a batch × {args.world_size} processes"
        )
    steps: int = size // (at_once * args.world_size)
    return steps


def steps_per_epoch(
    num_rows: int, args: TrainingArguments, batch_size: int | None = None, *, accumulation: int | None = None
) -> int:
    """Optimizer steps of one epoch over `num_rows` samples, for all processes together.

    Args:
        num_rows (`int`): Rows of the training split.
        args (`TrainingArguments`): Processes, and accumulation and batch size where they are not given.
        batch_size (`int`, *optional*): Samples per device and forward pass.
        accumulation (`int`, *optional*): Forward passes of one optimizer step.
    """
    batches = num_rows / (batch_size or args.per_device_train_batch_size)
    whole = math.floor(batches) if args.dataloader_drop_last else math.ceil(batches)
    per_process = whole // args.world_size if args.dataloader_drop_last else math.ceil(whole / args.world_size)
    steps: int = max(math.ceil(per_process / (accumulation or args.gradient_accumulation_steps)), 1)
    return steps


def describe_batch(args: TrainingArguments) -> str:
    """A step's samples, and what they are the product of."""
    batch, steps, processes = args.per_device_train_batch_size, args.gradient_accumulation_steps, args.world_size
    return f"{batch * steps * processes} = {batch} a device × {steps} accumulated × {processes} processes"


def describe_machine(args: TrainingArguments) -> dict[str, str]:
    """What kernels round by beside the versions of packages."""
    gpu = torch.cuda.get_device_name(args.device) if args.device.type == "cuda" else "none"
    return {
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "gpu": gpu,
        "processes": str(args.world_size),
    }


def recipe_stages(recipe: RecipeBase, args: TrainingArguments) -> list[StageSection]:
    """The recipe's stages; without any, one that trains all that `freeze_*` leaves, for as long as `training` says."""
    if recipe.stages is not None:
        return list(recipe.stages)
    length = {"steps": args.max_steps} if args.max_steps > 0 else {"epochs": float(args.num_train_epochs)}
    return [StageSection(name="train", train=recipe.model.trained_by_default(), **length)]


def longer(recipe: RecipeBase, epochs: float) -> str:
    """The override that makes a recipe's last stage longer.

    Args:
        recipe (`RecipeBase`): The recipe.
        epochs (`float`): How much longer, in passes over the data.

    Raises:
        InputError: The stage counts steps, or `epochs` is not above 0.
    """
    if epochs <= 0:
        raise InputError(f"--more {epochs:g}: give a number of epochs above 0")
    if recipe.stages is None:
        if (recipe.training.get("max_steps") or -1) > 0:
            raise InputError("--more: the recipe counts steps; give a larger training.max_steps instead")
        return f"training.num_train_epochs={recipe.training.get('num_train_epochs', 3) + epochs:g}"
    last = len(recipe.stages) - 1
    planned = recipe.stages[last].epochs
    if planned is None:
        raise InputError(f"--more: the last stage counts steps; give a larger stages.{last}.steps instead")
    return f"stages.{last}.epochs={planned + epochs:g}"


def build_stage_plan(
    model: PreTrainedModel, recipe: RecipeBase, args: TrainingArguments, num_rows: int | None
) -> StagePlan:
    """Resolve the recipe's stages against a model.

    Args:
        model (`PreTrainedModel`): The model, on any device, the meta device included.
        recipe (`RecipeBase`): The validated recipe.
        args (`TrainingArguments`): Gives batch size, processes, rate and schedule where a stage is silent.
        num_rows (`int`, *optional*): Rows of the training split; None when it is a stream of unknown length.
    """

    def steps(stage: StageSection) -> int:
        assert num_rows is not None
        accumulation = accumulation_steps(recipe, args, stage.batch_size)
        return steps_per_epoch(num_rows, args, stage.batch_size, accumulation=accumulation)

    plan = StagePlan.build(
        model,
        recipe_stages(recipe, args),
        steps_per_epoch=None if num_rows is None else steps,
        learning_rate=args.learning_rate,
        schedule=str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)),
        warmup=args.warmup_steps or None,
    )
    return plan.without(recipe.model.unused_encoders())
