"""What ends a run, and which of its checkpoints are kept, is the same however often the run is stopped."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from mmhf.training.checkpoints import complete_checkpoints, last_complete_checkpoint
from mmhf.training.stages import Stage
from mmhf.training.trainer import MMTrainer
from mmhf.training.weights import weights_hash

STAGES = [
    Stage(name="head", epochs=1.0, train="head", learning_rate=1e-2),
    Stage(name="all", epochs=2.0, train="all", learning_rate=1e-3, schedule="cosine"),
]
"""Of 6 and 12 steps."""
EVALUATED = {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 2}
STALLED = {"metric": "loss", "patience": 2, "min_delta": 1.0}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], list[Stage], int, list[int]]] = {
    # Arguments, sections of the recipe, stages, steps at the end, checkpoints that are kept.
    "all checkpoints": ({"save_steps": 3, "save_total_limit": None}, {}, STAGES, 18, [3, 6, 9, 12, 15, 18]),
    "two checkpoints": ({"save_steps": 3, "save_total_limit": 2}, {}, STAGES, 18, [15, 18]),
    "so many steps": ({"save_steps": 4}, {}, [Stage(name="only", steps=7)], 7, [4, 7]),
    "best model": (
        {**EVALUATED, "load_best_model_at_end": True, "metric_for_best_model": "loss", "save_total_limit": 1},
        {},
        STAGES,
        18,
        [],
    ),
    "early stopping": (EVALUATED, {"early_stopping": STALLED}, STAGES, 6, [2, 4, 6]),
    "plateaus": ({**EVALUATED, "save_total_limit": 1}, {"unfreeze_on_plateau": STALLED}, STAGES, 12, [12]),
}


class Stop(TrainerCallback):
    """Interrupts a run before a step, or while it evaluates after it."""

    def __init__(self, step: int | None, in_evaluation: bool) -> None:
        self.step = step
        self.in_evaluation = in_evaluation

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step and not self.in_evaluation:
            raise KeyboardInterrupt

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step and self.in_evaluation:
            raise KeyboardInterrupt


@pytest.fixture
def stopped(make_trainer, tiny_model, tiny_data, tmp_path):
    """Train in a folder, once for each step to stop at, each time from the last checkpoint; gives the last trainer."""
    start = copy.deepcopy(tiny_model.state_dict())

    def run(folder: str, stops: Sequence[int | None], *, in_evaluation: bool = False, **values: Any) -> MMTrainer:
        for step in stops:
            tiny_model.load_state_dict(start)
            stop = Stop(step, in_evaluation)
            trainer = make_trainer(tiny_model, tiny_data, tmp_path / folder, callbacks=[stop], **values)
            checkpoint = last_complete_checkpoint(tmp_path / folder)
            with contextlib.suppress(KeyboardInterrupt):
                trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        return trainer

    return run


def _saved(folder: Path) -> list[int]:
    return sorted(int(path.name.rpartition("-")[2]) for path in complete_checkpoints(folder))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_stopped_run_ends_where_and_as_the_whole_one_does(name, stopped, fusion_recipe, tiny_model, tmp_path):
    arguments, sections, stages, last_step, kept = CASES[name]
    ends = []
    for folder, stops in (("whole", [None]), ("stopped", [3, 5, 7, 11, 16, None])):
        state = stopped(folder, stops, stages=stages, recipe=fusion_recipe(**sections), **arguments).state
        best = (state.best_metric, state.best_global_step)
        ends.append((weights_hash(tiny_model), state.global_step, state.epoch, _saved(tmp_path / folder), best))
    assert ends[0] == ends[1]
    assert ends[0][1] == last_step
    assert not kept or ends[0][3] == kept


@pytest.mark.parametrize("at", [6, 18])
@pytest.mark.slow
def test_a_run_stopped_while_an_epoch_is_evaluated_evaluates_it_again(at, stopped, tiny_model, tmp_path):
    """Checkpoints are saved at steps, evaluations come at the ends of epochs: at 6, 12 and 18 steps."""
    ends = []
    for folder, stops in (("whole", [None]), ("stopped", [at, None])):
        values = {"stages": STAGES, "save_steps": 2, "eval_strategy": "epoch"}
        state = stopped(folder, stops, in_evaluation=True, **values).state
        history = [(entry["step"], entry["eval_loss"]) for entry in state.log_history if "eval_loss" in entry]
        ends.append((weights_hash(tiny_model), history, _saved(tmp_path / folder)))
    assert ends[0] == ends[1]
    assert [step for step, _ in ends[0][1]] == [6, 12, 18] and ends[0][2] == list(range(2, 19, 2))
