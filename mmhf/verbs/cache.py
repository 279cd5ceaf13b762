"""Compute and store, ahead of training, what the frozen encoders of a recipe make of each sample."""

from __future__ import annotations

import argparse
import logging
import tempfile

import transformers

from mmhf.data.bad_examples import BadExampleLog
from mmhf.errors import InputError
from mmhf.features.stage import features_folder
from mmhf.hub import resolve_model
from mmhf.hub.hub_errors import use_caches_if_hub_is_silent
from mmhf.recipe import load_recipe
from mmhf.recipe.training_sections import cache_section
from mmhf.tasks import task_of
from mmhf.training.arguments import build_stage_plan, training_arguments
from mmhf.training.devices import normalise_on_device

logger = logging.getLogger(__name__)


def run(options: argparse.Namespace) -> None:
    """Recipe, data, model, plan, trainer; then the samples of all splits that train or are evaluated."""
    resolved = load_recipe(options.recipe, options.overrides)
    recipe, task = resolved.recipe, task_of(resolved.recipe)
    if cache_section(recipe.cache).mode == "off":
        raise InputError(f"{options.recipe}: cache is off; mmhf cache needs auto or on")
    parent = resolve_model(recipe.init_from) if recipe.init_from else None
    if task.uses_hub(weights=parent is None):
        use_caches_if_hub_is_silent()
    data = task.load_data()
    with tempfile.TemporaryDirectory() as scratch:
        args = training_arguments(recipe, scratch, has_validation="validation" in data.splits)
        transformers.logging.set_verbosity_warning()
        transformers.set_seed(args.seed)
        if args.process_index > 0:
            logging.getLogger("mmhf").setLevel(logging.WARNING)
        parent_dir = parent.path if parent else None
        processor = task.build_processor(data, parent=parent_dir)
        model = task.build_model(data, processor=processor, parent=parent_dir)
        plan = build_stage_plan(model, recipe, args, task.num_train_rows(data))
        args.max_steps = plan.num_steps
        bad_examples = BadExampleLog(f"{scratch}/bad_examples.log")
        trainer = task.make_trainer(data, plan=plan, args=args, processor=processor, bad_examples=bad_examples)
        features, collator = trainer.features, task.collator(processor, split="test", seed=args.seed)
        assert features is not None
        normalise_on_device(model, args.device, collator)
        for split in recipe.evaluation.splits:
            if split in data.splits:
                features.attach(task.torch_dataset(data, split), collator, is_training=False)
        features.store_ahead(plan)
    folder = features_folder(cache_section(recipe.cache))
    if features.num_unstored:
        raise InputError(f"{folder}: features cannot be stored there, as the warning says; make room and repeat this")
    for stage, choices in zip(plan.stages, features.choices, strict=True):
        for choice in choices:
            logger.info("Stage %s: %s", stage.name, choice.describe())
    logger.info("%d rows computed, %s", features.num_computed, folder)
