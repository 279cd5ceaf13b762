"""What came of a sweep: the best recipe, a table of all trials, and plots."""

from __future__ import annotations

import csv
import io
import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import optuna
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from optuna.exceptions import ExperimentalWarning
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from optuna.visualization import matplotlib as optuna_plots

from mmhf.files import PLOTS_FOLDER, whole_file, write_text
from mmhf.recipe import load_recipe
from mmhf.sweep.space import as_overrides
from mmhf.sweep.study import SharedStudy
from mmhf.sweep.worker import ERROR

logger = logging.getLogger(__name__)

BEST_RECIPE_FILE = "best.yaml"
TRIALS_FILE = "trials.csv"
_PLOTS: dict[str, Callable[[Study], Axes]] = {
    "history": optuna_plots.plot_optimization_history,
    "importance": lambda study: optuna_plots.plot_param_importances(study, evaluator=PedAnovaImportanceEvaluator()),
    "parallel_coordinate": optuna_plots.plot_parallel_coordinate,
}


def write_outcome(study: SharedStudy, folder: Path, recipe: str, overrides: Sequence[str]) -> FrozenTrial | None:
    """Write `trials.csv`, `best.yaml` and `plots/*.png` into a sweep's folder; each file is whole or not there.

    Args:
        study (`SharedStudy`): The study.
        folder (`Path`): Where to.
        recipe (`str`): The recipe's file.
        overrides (`Sequence[str]`): Those of all trials.

    Returns:
        `FrozenTrial`: The best one; None if none ran to its end.
    """
    trials = study.trials()
    write_text(folder / TRIALS_FILE, _as_csv(study, trials))
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if not complete:
        return None
    section = study.space.section
    sign = 1 if study.space.is_maximized else -1
    # Of equals the first of the sweep, which may have been run again after later ones.
    best = max(complete, key=lambda trial: (sign * trial.values[0], -study.ordinal(trial.number)))
    found = (
        f"# Trial {study.ordinal(best.number)} of sweep {study.name}: validation {section.metric} {best.value:.6g}.\n"
    )
    resolved = load_recipe(recipe, [*overrides, *as_overrides(best.params)])
    write_text(folder / BEST_RECIPE_FILE, found + resolved.to_yaml())
    for name, picture in _draw(complete, trials, is_maximized=study.space.is_maximized).items():
        with whole_file(folder / PLOTS_FOLDER / f"{name}.png") as temporary:
            temporary.write_bytes(picture)
    return best


def _as_csv(study: SharedStudy, trials: Sequence[FrozenTrial]) -> str:
    """One row a trial: number, state, value, epochs reported, seconds, error, and the values it ran with."""
    keys = list(study.space.section.space)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "state", study.space.section.metric, "epochs", "seconds", "error", *keys])
    for number, trial in sorted(((study.ordinal(each.number), each) for each in trials), key=lambda pair: pair[0]):
        seconds = "" if trial.duration is None else f"{trial.duration.total_seconds():.1f}"
        epochs = max(trial.intermediate_values, default="")
        state, error = trial.state.name.lower(), trial.user_attrs.get(ERROR, "")
        value = trial.value if trial.state == TrialState.COMPLETE else ""
        writer.writerow([number, state, value, epochs, seconds, error, *(trial.params.get(key) for key in keys)])
    return text.getvalue()


def _draw(complete: Sequence[FrozenTrial], trials: Sequence[FrozenTrial], *, is_maximized: bool) -> dict[str, bytes]:
    """PNGs of the trials that count; importance needs values that differ."""
    study = optuna.create_study(direction="maximize" if is_maximized else "minimize")
    study.add_trials([trial for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)])
    names = set(_PLOTS)
    if len({trial.value for trial in complete}) < 2:
        names -= {"importance"}
    pictures = {}
    for name in sorted(names):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            figure = _PLOTS[name](study).figure
        assert isinstance(figure, Figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
        pyplot.close(figure)
        pictures[name] = buffer.getvalue()
    return pictures
