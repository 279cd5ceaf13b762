"""Experiment trackers: one run in each, from the first step to the last artifact."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from transformers import TrainingArguments

from mmhf.files import PLOTS_FOLDER, RECIPE_FILE, REPORT_FILE
from mmhf.recipe.training_sections import TrackingSection


@contextlib.contextmanager
def tracked_run(args: TrainingArguments, tracking: TrackingSection, run_name: str) -> Iterator[None]:
    """Keep the trackers of `args.report_to` open until evaluation is over, then hand them the run folder's plots.

    Args:
        args (`TrainingArguments`): `report_to`, `project` and `run_name` choose and name the run.
        tracking (`TrackingSection`): Where MLflow keeps its runs.
        run_name (`str`): Name of the run where `args` gives none.
    """
    trackers = [args.report_to] if isinstance(args.report_to, str) else list(args.report_to or [])
    if args.process_index > 0:
        trackers = []
    args.run_name = args.run_name or run_name
    if args.project != "huggingface":  # TrainingArguments' own default
        os.environ.setdefault("WANDB_PROJECT", args.project)
        os.environ.setdefault("MLFLOW_EXPERIMENT_NAME", args.project)
    run_dir = Path(str(args.output_dir))
    if "tensorboard" in trackers:
        os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(run_dir / "tensorboard"))
    with _mlflow_run(args.run_name, tracking.mlflow_uri) if "mlflow" in trackers else contextlib.nullcontext():
        yield
        if "mlflow" in trackers:
            _log_mlflow_artifacts(run_dir)
        if "wandb" in trackers:
            _log_wandb_artifacts(run_dir)


@contextlib.contextmanager
def _mlflow_run(run_name: str, uri: str) -> Iterator[None]:
    import mlflow

    # transformers' callback closes only runs that it opened itself, which is before the test split is evaluated.
    mlflow.set_tracking_uri(os.environ.setdefault("MLFLOW_TRACKING_URI", uri))
    mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", "mmhf"))
    with mlflow.start_run(run_name=run_name):
        yield


def _artifacts(run_dir: Path) -> list[Path]:
    return [*sorted((run_dir / PLOTS_FOLDER).glob("*.png")), run_dir / REPORT_FILE, run_dir / RECIPE_FILE]


def _log_mlflow_artifacts(run_dir: Path) -> None:
    import mlflow

    for path in _artifacts(run_dir):
        mlflow.log_artifact(str(path), PLOTS_FOLDER if path.suffix == ".png" else None)


def _log_wandb_artifacts(run_dir: Path) -> None:
    import wandb

    if wandb.run is not None:
        wandb.log(
            {f"plots/{path.stem}": wandb.Image(str(path)) for path in _artifacts(run_dir) if path.suffix == ".png"}
        )
        wandb.run.save(str(run_dir / REPORT_FILE), base_path=str(run_dir), policy="now")
        wandb.finish()
