"""`transformers.Trainer` with stages, rates by group, exact data order and whole checkpoints."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import PrinterCallback, ProgressCallback, TrainingArguments
from transformers.trainer_utils import rotate_checkpoints

from mmhf.data.datasets import RowDataset
from mmhf.data.streams.captions import CaptionStream
from mmhf.errors import InputError
from mmhf.models.classification_loss import ClassificationLoss
from mmhf.recipe.schema import RecipeBase
from mmhf.training.boundary_checks import is_sharded, share_buffers
from mmhf.training.callbacks import SaveEveryEpochs, StageCallback, refuse_what_needs_whole_weights
from mmhf.training.checkpoints import (
    failed_writes_as_os_errors,
    mark_complete,
    removed_if_unwritable,
    saved_under_own_names,
)
from mmhf.training.ema import AverageWeights, WeightAverage
from mmhf.training.optimizers import OptimizerChoice, optimizer_choice
from mmhf.training.progress import StageLogLines, StageProgressBar
from mmhf.training.stage_batches import StageBatches
from mmhf.training.stage_cache import CacheStages, StageCache
from mmhf.training.stages import StagePlan


class MMTrainer(StageBatches):
    """Trains a model through the stages of a plan, in one run that can be stopped and resumed anywhere.

    Args:
        plan (`StagePlan`): The stages. `args.max_steps` must be `plan.num_steps`.
        recipe (`RecipeBase`, *optional*): Its sections `optimizer` (absent, that of `args`), `early_stopping`,
            `unfreeze_on_plateau`, `ema` and `checkpoints` hold.
        eval_collator (`Callable`, *optional*): Makes batches for evaluation and prediction, without augmentation;
            absent, `data_collator` makes these too.
        cache ([`StageCache`], *optional*): Stores the features of frozen parts; absent, they are always computed.
        kwargs: As `transformers.Trainer` takes them.
    """

    def __init__(
        self,
        *,
        plan: StagePlan,
        recipe: RecipeBase | None = None,
        eval_collator: Callable[[list[Any]], dict[str, Any]] | None = None,
        cache: StageCache | None = None,
        **kwargs: Any,
    ) -> None:
        self.plan = plan
        self.cache = cache
        self._eval_collator = eval_collator
        self._optimizer_section = recipe.optimizer if recipe else None
        self._average = WeightAverage(plan, recipe.ema if recipe else None)
        _let_processes_freeze(kwargs["args"], plan)
        super().__init__(**kwargs)
        if recipe is None:
            self.add_callback(StageCallback(plan))
        else:
            self.add_callback(SaveEveryEpochs(plan, recipe.checkpoints.every_epochs))
            self.add_callback(StageCallback(plan, recipe.early_stopping, recipe.unfreeze_on_plateau))
        if cache is not None:
            cache.use_precision(self.accelerator.autocast, _autocast_dtype(self.args))
            self.add_callback(CacheStages(cache))
        self.add_callback(AverageWeights(self._average))
        self.remove_callback(PrinterCallback if self.args.disable_tqdm else ProgressCallback)
        show = StageLogLines if self.args.disable_tqdm else StageProgressBar
        self.add_callback(show(plan, self._rates_by_name))

    @property
    def _run_dir(self) -> str:
        return str(self.args.output_dir)

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Build one optimizer over all groups; what is frozen gets no gradient and is passed over by it."""
        if self.optimizer is None:
            if is_sharded():
                refuse_what_needs_whole_weights(self.plan)
            if self._optimizer_section is None:
                optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, self.plan.model)
                choice = OptimizerChoice(optimizer_class, options, self.args.weight_decay)
            else:
                choice = optimizer_choice(self._optimizer_section, weight_decay=self.args.weight_decay)
            self.optimizer = self.plan.create_optimizer(
                choice.optimizer_class, weight_decay=choice.weight_decay, **choice.options
            )
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        scheduler: Any = self.lr_scheduler
        if scheduler is None:
            scheduler = self.plan.create_scheduler(self.create_optimizer() if optimizer is None else optimizer)
            self.lr_scheduler = scheduler
            self._created_lr_scheduler = True
        return scheduler

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        # DistributedDataParallel never synchronises what is frozen when it wraps a model; StageCallback freezes later.
        self.plan.model.requires_grad_(True)
        return super()._prepare_for_training(*args, **kwargs)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # transformers does one step too many when it resumes from the last checkpoint of a run that had ended.
        if not self.control.should_training_stop:
            super()._run_epoch(*args, **kwargs)

    def _prepare_inputs(self, inputs: dict[str, torch.Tensor | Any]) -> dict[str, torch.Tensor | Any]:
        return super()._prepare_inputs(inputs if self.cache is None else self.cache.complete(inputs))

    def store_features(self, more: Sequence[Dataset] = ()) -> int:
        """Compute and store, before training, what the stages will read of frozen parts.

        Args:
            more (`Sequence[Dataset]`): Data sets to look at beside those of training and evaluation.

        Returns:
            `int`: features that this process computed.
        """
        assert self.cache is not None
        self.get_train_dataloader()
        if self.eval_dataset is not None:
            self.get_eval_dataloader()
        for dataset in more:
            self.get_test_dataloader(dataset)
        args = self.args
        return self.cache.store_ahead(
            batch_size=args.per_device_train_batch_size, num_workers=args.dataloader_num_workers
        )

    def _get_dataloader(self, dataset: Dataset, *args: Any, **kwargs: Any) -> DataLoader:
        train_collator = self.data_collator
        is_training = kwargs.get("is_training", False)
        if not is_training and self._eval_collator is not None:
            self.data_collator = self._eval_collator
        if self.cache is not None:
            self.cache.attach(dataset, self.data_collator, is_training=is_training)
            if not is_training:
                self.cache.check(self.state.global_step)
        try:
            return super()._get_dataloader(dataset, *args, **kwargs)
        finally:
            self.data_collator = train_collator

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if isinstance(dataset, RowDataset) and self.args.train_sampling_strategy == "random":
            seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
            if isinstance(dataset, CaptionStream):
                workers = max(self.args.dataloader_num_workers, 1)
                dataset.lay_out(self._train_batch_size, self.args.world_size * workers)
            return dataset.epoch_sampler(seed)
        return super()._get_train_sampler(train_dataset)

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor | int | None:
        # Trainer counts labels; a loss with class weights or soft labels has its own measure of a batch.
        losses = self._losses
        if len(losses) != 1 or not batch_samples or "labels" not in batch_samples[0]:
            return super()._get_num_items_in_batch(batch_samples, device)
        weight_device = self.plan.model.device
        count = torch.stack([losses[0].count(batch["labels"].to(weight_device)) for batch in batch_samples]).sum()
        return self.accelerator.gather(count.to(device)).sum() if self.args.world_size > 1 else count.to(device)

    def _clip_grad_norm(self, model: torch.nn.Module) -> Any:
        # Trainer goes through all modules of the model, frozen ones included, three times a step: without an encoder's
        # pass, most of a step.
        position = self.plan.locate(self.state.global_step)
        if position is None or is_sharded():
            return super()._clip_grad_norm(model)
        if position.index not in self._trained:
            self._trained[position.index] = [each for each in self.plan.model.parameters() if each.requires_grad]
        return self.accelerator.clip_grad_norm_(self._trained[position.index], self.args.max_grad_norm)

    @functools.cached_property
    def _trained(self) -> dict[int, list[torch.nn.Parameter]]:
        """Index of a stage → what it trains, once it has begun."""
        return {}

    @functools.cached_property
    def _losses(self) -> list[ClassificationLoss]:
        return [module for module in self.plan.model.modules() if isinstance(module, ClassificationLoss)]

    def _get_learning_rate(self) -> float:
        return max(self.plan.learning_rates(self.state.global_step).values())

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        is_best = super()._determine_best_metric(metrics, trial)
        if is_best and self.args.load_best_model_at_end:
            self.control.should_save = True  # also between two epochs that `checkpoints.every_epochs` saves
        return is_best

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate as `transformers.Trainer` does, with the averaged weights where the recipe asks for `ema`."""
        with self._average.in_model():
            return super().evaluate(*args, **kwargs)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate or predict with the same model on all processes."""
        share_buffers(self.plan.model, self.args)
        if self.cache is not None:
            self.cache.check(self.state.global_step)
        return super().evaluation_loop(*args, **kwargs)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self._average.load(checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        # A checkpoint's model.safetensors is what training goes on from; what was measured are its averages, which
        # AverageWeights puts into the model when training ends.
        self._average.load(str(self.state.best_model_checkpoint))

    def _rates_by_name(self, global_step: int) -> dict[str, float]:
        """Learning rates as few as tell all: one for `vision` where all its groups that train share one."""
        rates = {name: rate for name, rate in self.plan.learning_rates(global_step).items() if rate > 0}
        by_prefix: dict[str, set[float]] = {}
        for name, rate in rates.items():
            by_prefix.setdefault(name.split(".")[0], set()).add(rate)
        return {
            (name.split(".")[0] if len(by_prefix[name.split(".")[0]]) == 1 else name): rate
            for name, rate in rates.items()
        }

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log with each group's learning rate as `lr/GROUP`, and the stage in the run's own history."""
        done = self.state.global_step - 1
        if "loss" in logs:
            logs.update({f"lr/{name}": rate for name, rate in self._rates_by_name(done).items()})
        super().log(logs, start_time)
        position = self.plan.locate(done)
        if position is not None:
            entry: dict[str, Any] = self.state.log_history[-1]
            entry["stage"] = self.plan.stages[position.index].name

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = output_dir or self._run_dir
        names = saved_under_own_names(self.plan.model) if folder != self._run_dir else contextlib.nullcontext()
        with failed_writes_as_os_errors(folder), names:
            super()._save(output_dir, state_dict)
        # A pickle of arguments that recipe.yaml states in full; a run folder holds nothing that must be unpickled.
        (Path(folder) / "training_args.bin").unlink(missing_ok=True)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        checkpoint = Path(self._run_dir) / f"checkpoint-{self.state.global_step}"
        with removed_if_unwritable(checkpoint), self._keeping_checkpoints():
            super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            with removed_if_unwritable(checkpoint):
                self._average.save(checkpoint)
                mark_complete(checkpoint)
            # Older checkpoints go only now that the new one is whole.
            rotate_checkpoints(
                output_dir=self._run_dir,
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=False,
            )

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        # With save_total_limit=1 Trainer deletes all but the best checkpoint here; a run that is stopped while its
        # splits are evaluated would then go back to it and train anew.
        with self._keeping_checkpoints():
            return super()._finalize_training(*args, **kwargs)

    @contextlib.contextmanager
    def _keeping_checkpoints(self) -> Iterator[None]:
        """Let Trainer delete no checkpoint."""
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            yield
        finally:
            self.args.save_total_limit = limit


def _autocast_dtype(args: TrainingArguments) -> torch.dtype | None:
    return torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None


def _let_processes_freeze(args: TrainingArguments, plan: StagePlan) -> None:
    """Several processes must be ready for parameters without a gradient, or a frozen group stops them.

    Raises:
        InputError: The recipe forbids it although a stage freezes something.
    """
    freezes = any(len(stage.curves) < len(plan.partition) for stage in plan.stages)
    if args.world_size == 1 or not freezes:
        return
    if args.ddp_find_unused_parameters is False:
        raise InputError("training.ddp_find_unused_parameters: false, but a stage freezes parameters; remove it")
    args.ddp_find_unused_parameters = True
