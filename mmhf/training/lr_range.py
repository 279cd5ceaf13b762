"""The learning-rate range test: which rates a stage can learn at, found by trying them all in one short run.

The rate grows exponentially from step to step: the loss falls fastest around a good rate and explodes above the
highest that can be borne. Source: Smith, "Cyclical Learning Rates for Training Neural Networks", https://arxiv.org/abs/1506.01186.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from mmhf.errors import InputError
from mmhf.training.rates import RateCurve
from mmhf.training.stages import StagePlan
from mmhf.training.trainer import MMTrainer

EXPLODED = 4.0
"""The test ends when the smoothed loss exceeds this multiple of its best value."""
_MIN_STEPS = 10
_RUNNING_SHARE = 0.9
_WINDOW_SHARE = 0.05
_CLEAR_OF_NOISE = 6.0  # pure noise of 100 steps falls further once in 100 times
# Of two draws from a normal distribution with standard deviation 1: 0.6745 times the square root of 2.
_MEDIAN_OF_DIFFERENCES = 0.9539


@dataclass(frozen=True)
class RangeTest:
    """What a range test measured.

    Attributes:
        rates (`NDArray` of shape `(N,)`): Highest learning rate of each step that was taken, ascending.
        losses (`NDArray` of shape `(N,)`): Training loss of each of these steps, measured before its update; finite.
        exploded (`bool`): Whether the loss ended the test before the last rate.
    """

    rates: NDArray[np.float64]
    losses: NDArray[np.float64]
    exploded: bool

    @property
    def smoothed(self) -> NDArray[np.float64]:
        """The losses under a Gaussian window over neighbouring steps, which shifts nothing, of shape `(N,)`.

        Single losses count as twice the median at most, so that an explosion does not reach far back.
        """
        steps = np.arange(len(self.losses))
        window = np.exp(-0.5 * ((steps[:, None] - steps[None, :]) / self._width) ** 2)
        smoothed: NDArray[np.float64] = (
            window @ np.minimum(self.losses, 2 * np.median(self.losses)) / window.sum(axis=1)
        )
        return smoothed

    def suggestions(self) -> dict[str, float]:
        """Learning rates worth training with: `steepest descent` and `a tenth of the minimum`.

        Both are for the group with the highest rate. Empty when the loss fell no more than noise does.
        """
        smoothed = self.smoothed
        lowest = int(np.argmin(smoothed))
        falling = smoothed[: lowest + 1]
        if falling.max() - smoothed[lowest] <= _CLEAR_OF_NOISE * self._noise:
            return {}
        slopes = np.gradient(falling, np.log(self.rates[: lowest + 1]))
        return {
            "steepest descent": float(self.rates[int(np.argmin(slopes))]),
            "a tenth of the minimum": float(self.rates[lowest] / 10),
        }

    @property
    def _width(self) -> float:
        """Standard deviation of the window, in steps."""
        return max(_WINDOW_SHARE * len(self.losses), 1.0)

    @property
    def _noise(self) -> float:
        """Standard deviation of a smoothed loss, from how much neighbouring losses differ."""
        one_loss = float(np.median(np.abs(np.diff(self.losses)))) / _MEDIAN_OF_DIFFERENCES
        return one_loss / math.sqrt(2 * math.sqrt(math.pi) * self._width)


def range_test_plan(plan: StagePlan, *, lowest: float, highest: float, num_steps: int) -> StagePlan:
    """Turn a plan of one stage into one in which the rate grows exponentially; all groups keep their ratios.

    Args:
        plan (`StagePlan`): The stage that is tried, and no other.
        lowest, highest (`float`): First and last learning rate of the group that has the stage's highest one.
        num_steps (`int`): Optimizer steps.

    Raises:
        InputError: The range is empty or too short to see anything, or the stage's rates are all zero.
    """
    if not 0.0 < lowest < highest < math.inf:
        raise InputError(f"--from {lowest:g} --to {highest:g}: rates must be above 0, the smaller one first")
    if num_steps < _MIN_STEPS:
        raise InputError(f"--steps {num_steps}: a curve needs {_MIN_STEPS} steps at least")
    (stage,) = plan.stages
    top = max(stage.peak_rates.values())
    if top == 0.0:
        raise InputError(f"stage {stage.name!r}: all its learning rates are 0, so there are no ratios to keep")

    def grow(step: int) -> float:
        share: float = (lowest / highest) ** (1.0 - step / (num_steps - 1))
        return share

    curves = {group: RateCurve(highest * peak / top, 0.0, grow) for group, peak in stage.peak_rates.items()}
    tried = dataclasses.replace(stage, num_steps=num_steps, curves=curves, schedule="exponential")
    return StagePlan(plan.model, plan.partition, [tried])


def range_test_arguments(args: TrainingArguments, output_dir: str, num_steps: int) -> TrainingArguments:
    """Change arguments so that nothing is evaluated, logged, saved or sent anywhere.

    Args:
        args (`TrainingArguments`): The recipe's; changed in place.
        output_dir (`str`): A folder that may be thrown away.
        num_steps (`int`): Optimizer steps.
    """
    args.output_dir = output_dir
    args.max_steps = num_steps
    args.eval_strategy = args.logging_strategy = IntervalStrategy.NO
    args.save_strategy = SaveStrategy.NO
    args.load_best_model_at_end = args.eval_on_start = args.push_to_hub = False
    args.report_to = []
    return args


def run_range_test(trainer: RangeTestTrainer) -> RangeTest:
    """Train through the range, and give what was measured up to the explosion.

    Raises:
        InputError: The loss was not finite from the start.
    """
    trainer.train()
    losses = np.array(trainer.losses)
    finite = np.isfinite(losses)
    count = len(losses) if finite.all() else int(np.argmin(finite))
    if count < 2:
        raise InputError("the loss is not finite at the lowest rate; choose a lower --from, or look at the data")
    rates = [max(trainer.plan.learning_rates(step).values()) for step in range(count)]
    return RangeTest(np.array(rates), losses[:count], exploded=trainer.exploded)


class RangeTestTrainer(MMTrainer):
    """An `MMTrainer` that keeps the loss of each optimizer step and stops when it explodes.

    Args:
        kwargs: As `MMTrainer` takes them; `plan` and `args` made by `range_test_plan` and `range_test_arguments`.
    """

    stops_at_nan = False  # an explosion is what it looks for

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.losses: list[float] = []
        self.exploded = False
        self._step_loss = 0.0
        self._running, self._best = 0.0, math.inf
        self.add_callback(_StopWhenExploded(self))

    def training_step(self, model: nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(model, *args, **kwargs)
        self._step_loss += float(self.accelerator.gather(loss).mean())  # micro-batches come divided by their number
        return loss

    def end_step(self) -> bool:
        """Close the loss of an optimizer step; whether it has exploded."""
        self.losses.append(self._step_loss)
        self._step_loss = 0.0
        self._running = _RUNNING_SHARE * self._running + (1 - _RUNNING_SHARE) * self.losses[-1]
        smoothed = self._running / (1 - _RUNNING_SHARE ** len(self.losses))
        self._best = min(self._best, smoothed)
        # Written so that NaN counts as exploded. The first losses are one batch each, no measure of anything yet.
        self.exploded = not math.isfinite(smoothed) or (
            len(self.losses) > _MIN_STEPS and smoothed > EXPLODED * self._best
        )
        return self.exploded


class _StopWhenExploded(TrainerCallback):
    def __init__(self, trainer: RangeTestTrainer) -> None:
        self.trainer = trainer

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.trainer.end_step():
            control.should_training_stop = True
