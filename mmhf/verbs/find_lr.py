"""Try a range of learning rates for a stage in one short run, and plot the loss over them."""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from pathlib import Path

import transformers

from mmhf.errors import InputError
from mmhf.evaluation.plots import plot_lr_range
from mmhf.hub import resolve_model
from mmhf.hub.hub_errors import use_caches_if_hub_is_silent
from mmhf.recipe import load_recipe
from mmhf.recipe.nearest import did_you_mean, nearest_names
from mmhf.recipe.schema import RecipeBase
from mmhf.tasks import task_of
from mmhf.training.arguments import build_stage_plan, fit_micro_batch, training_arguments
from mmhf.training.lr_range import (
    RangeTest,
    RangeTestTrainer,
    range_test_arguments,
    range_test_plan,
    run_range_test,
)
from mmhf.training.planned_stage import PlannedStage
from mmhf.training.run_folder import OUTPUT_ROOT


def run(options: argparse.Namespace) -> None:
    """Recipe, data, model, plan; one short run; the picture and the suggestions."""
    resolved = load_recipe(options.recipe, options.overrides)
    recipe = _with_one_stage(resolved.recipe, options.stage)
    task = task_of(recipe)
    parent = resolve_model(recipe.init_from).path if recipe.init_from else None
    if task.uses_hub(weights=parent is None):
        use_caches_if_hub_is_silent()
    data = task.load_data()
    args = training_arguments(recipe, str(resolved.name), has_validation="validation" in data.splits)
    transformers.logging.set_verbosity_warning()
    transformers.logging.disable_progress_bar()
    transformers.set_seed(args.seed)

    processor = task.build_processor(data, parent=parent)
    model = task.build_model(data, processor=processor, parent=parent)
    fit_micro_batch(recipe, args, model, lambda count: task.example_inputs(count, "meta"))
    plan = range_test_plan(
        build_stage_plan(model, recipe, args, task.num_train_rows(data)),
        lowest=options.lowest,
        highest=options.highest,
        num_steps=options.steps,
    )
    stage = plan.stages[0]
    with tempfile.TemporaryDirectory() as scratch:
        trainer = RangeTestTrainer(
            model=model,
            args=range_test_arguments(args, scratch, plan.num_steps),
            plan=plan,
            recipe=recipe,
            train_dataset=task.torch_dataset(data, "train"),
            data_collator=task.collator(processor, split="train", seed=args.seed, training_data=data),
            processing_class=processor,
        )
        measured = run_range_test(trainer)
    if args.process_index == 0:
        folder = Path(options.output) if options.output else OUTPUT_ROOT / resolved.name / "find_lr"
        name = re.sub(r"[^\w.-]+", "_", stage.name)
        path = folder / f"{name}.png"
        _draw(measured, path, title=f"Learning-rate range test of {resolved.name}, stage {stage.name}")
        _print_suggestions(measured, stage, path)


def _with_one_stage(recipe: RecipeBase, name: str | None) -> RecipeBase:
    """The recipe with only the stage that is tried."""
    by_name = {stage.name: stage for stage in recipe.stages or []}
    if name is None and not by_name:
        return recipe
    chosen = next(iter(by_name)) if name is None else name
    if chosen not in by_name:
        hint = did_you_mean(nearest_names(chosen, by_name)) or f"; it has {', '.join(by_name) or 'none'}"
        raise InputError(f"--stage {chosen}: the recipe has no such stage{hint}")
    if by_name[chosen].start is not None:
        number = list(by_name).index(chosen)
        raise InputError(
            f"--stage {chosen}: it starts from a linear probe, which a range test does not fit; "
            f"stages.{number}.start=null tries the rates of a head that knows nothing"
        )
    return recipe.model_copy(update={"stages": [by_name[chosen]]})


def _draw(measured: RangeTest, path: Path, *, title: str) -> None:
    plot_lr_range(
        measured.rates,
        measured.losses,
        measured.smoothed,
        measured.suggestions(),
        path,
        title=title,
        exploded=measured.exploded,
    )


def _print_suggestions(measured: RangeTest, stage: PlannedStage, path: Path) -> None:
    end = "where the loss exploded" if measured.exploded else "without an explosion"
    lines = [f"Stage {stage.name}: {len(measured.rates)} steps up to {measured.rates[-1]:.1e}, {end}"]
    suggestions = measured.suggestions()
    lines += [f"  {name:<24}{rate:.1e}" for name, rate in suggestions.items()]
    if not suggestions:
        lines.append("  the loss fell no more than it varies from batch to batch: try larger batches or more --steps")
    peaks = stage.peak_rates
    if len(set(peaks.values())) > 1:
        top = max(peaks, key=lambda group: peaks[group])
        lines.append(f"  for {top}; the other groups in the ratios of the recipe")
    sys.stdout.write("\n".join([*lines, f"Curve: {path}", ""]))
