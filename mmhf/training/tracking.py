"""Experiment trackers: one run in each, from the first step to the last artifact, also where it is resumed."""

from __future__ import annotations

import contextlib
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from mmhf.files import (
    METRICS_FILE,
    PLOTS_FOLDER,
    RECIPE_FILE,
    REPORT_FILE,
    TRACKERS_FILE,
    expand_path,
    read_json_object,
    write_json,
)
from mmhf.recipe import ResolvedRecipe

_PLACES = ("TENSORBOARD_LOGGING_DIR", "WANDB_DIR", "MLFLOW_TRACKING_URI", "TRACKIO_DIR")
_NOT_IN_KEYS = re.compile(r"[^\w.\- /]", re.ASCII)
_LONG_VALUES = "long_values"
_MODEL_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", RECIPE_FILE)


@contextlib.contextmanager
def tracked_run(args: TrainingArguments, resolved: ResolvedRecipe, run_name: str, *, done: int = 0) -> Iterator[None]:
    """Keep the trackers of `args.report_to` open until evaluation is over, then hand them the run's plots and model.

    Every key of the recipe is the run's configuration there. The ids of the tracker's runs are kept in the run folder,
    so that a resumed run goes on with them.

    Args:
        args (`TrainingArguments`): `report_to`, `project` and `run_name` choose and name the run.
        resolved (`ResolvedRecipe`): Its `tracking` says where MLflow keeps its runs, and who gets the model.
        run_name (`str`): Name of the run where `args` gives none.
        done (`int`, defaults to 0): Optimizer steps that were done before.
    """
    trackers = [args.report_to] if isinstance(args.report_to, str) else list(args.report_to or [])
    if args.process_index > 0:
        trackers = []
    args.run_name = args.run_name or run_name
    run_dir, tracking = Path(str(args.output_dir)), resolved.recipe.tracking
    ids = _RunIds(run_dir)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_environment(_settings(args, run_dir, tracking.mlflow_uri)))
        if "tensorboard" in trackers:
            _write_to_tensorboard(resolved, done)
        if "wandb" in trackers:
            stack.enter_context(_wandb_run(args, ids, resolved))
        if "mlflow" in trackers:
            stack.enter_context(_mlflow_run(args.run_name, ids, resolved))
        if "trackio" in trackers:
            stack.enter_context(_trackio_run(args, ids, resolved))
        yield
        if not (run_dir / METRICS_FILE).is_file():  # a part of a run, which goes on
            return
        if "mlflow" in trackers:
            import mlflow

            for path in _artifacts(run_dir):
                mlflow.log_artifact(str(path), PLOTS_FOLDER if path.suffix == ".png" else None)
        if "wandb" in trackers:
            _log_wandb_artifacts(run_dir, with_model="wandb" in tracking.log_model)


class _RunIds:
    """What trackers call the run of a run folder."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / TRACKERS_FILE
        self._ids = read_json_object(self._path) if self._path.is_file() else {}

    def get(self, tracker: str) -> str | None:
        """The id at a tracker; None before the run is known there."""
        return self._ids.get(tracker)

    def keep(self, tracker: str, run_id: str) -> str:
        """Write an id into the run folder; gives it back."""
        if self._ids.get(tracker) != run_id:
            self._ids[tracker] = run_id
            write_json(self._path, self._ids)
        return run_id


def _settings(args: TrainingArguments, run_dir: Path, mlflow_uri: str) -> dict[str, str]:
    """Environment variables that the trackers of transformers read, where the user gives none."""
    settings = {
        "TENSORBOARD_LOGGING_DIR": str(run_dir / "tensorboard"),
        "MLFLOW_TRACKING_URI": mlflow_uri,
        # The recipe is logged in place of TrainingArguments, which change over a run and may be too long.
        "MLFLOW_MAX_LOG_PARAMS": "0",
        "MLFLOW_FLATTEN_PARAMS": "TRUE",
    }
    if args.project != "huggingface":  # TrainingArguments' own default
        settings |= {"WANDB_PROJECT": args.project, "MLFLOW_EXPERIMENT_NAME": args.project}
    return settings


@contextlib.contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables that are not set, and expand paths in those that are; as before at the end."""
    before = dict(os.environ)
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    for name in _PLACES:
        if name in os.environ:
            os.environ[name] = expand_path(os.environ[name])
    try:
        yield
    finally:
        for name in {*settings, *_PLACES}:
            os.environ.pop(name, None)
            if name in before:
                os.environ[name] = before[name]


def _write_to_tensorboard(resolved: ResolvedRecipe, done: int) -> None:
    """Add the recipe; what was logged after the checkpoint that the run goes on from is taken back."""
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams

    values = {key: value if isinstance(value, bool | int | float) else str(value) for key, value in _flat(resolved)}
    writer = SummaryWriter(os.environ["TENSORBOARD_LOGGING_DIR"], purge_step=done + 1 if done else None)
    for summary in hparams(values, {}):
        writer._get_file_writer().add_summary(summary)
    rows = "".join(f"| `{key}` | {value} |\n" for key, value in values.items())
    writer.add_text("recipe", f"| key | value |\n|---|---|\n{rows}")
    writer.close()


@contextlib.contextmanager
def _wandb_run(args: TrainingArguments, ids: _RunIds, resolved: ResolvedRecipe) -> Iterator[None]:
    import wandb

    run_id = ids.keep("wandb", os.environ.get("WANDB_RUN_ID") or ids.get("wandb") or uuid.uuid4().hex[:8])
    project = os.environ.get("WANDB_PROJECT", args.project)
    wandb.init(project=project, name=args.run_name, id=run_id, resume="allow", config=dict(_flat(resolved)))
    try:
        yield
    except BaseException:
        wandb.finish(exit_code=1)
        raise
    wandb.finish()


@contextlib.contextmanager
def _mlflow_run(run_name: str, ids: _RunIds, resolved: ResolvedRecipe) -> Iterator[None]:
    import mlflow

    # transformers' callback closes only runs that it opened itself, which is before the test split is evaluated.
    mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
    run_id = os.environ.pop("MLFLOW_RUN_ID", None) or ids.get("mlflow")
    run = None
    if run_id is not None:
        with contextlib.suppress(mlflow.MlflowException):  # it was deleted, or kept elsewhere
            run = mlflow.get_run(run_id)
    if run is None:
        mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", "mmhf"))
    else:
        mlflow.set_experiment(experiment_id=run.info.experiment_id)
    with mlflow.start_run(run_id=None if run is None else run.info.run_id, run_name=run_name) as active:
        ids.keep("mlflow", active.info.run_id)
        _log_mlflow_params(resolved, {} if run is None else run.data.params)
        yield
        mlflow.flush_async_logging()


def _log_mlflow_params(resolved: ResolvedRecipe, known: Mapping[str, str]) -> None:
    """Log the recipe; of a key that has another value by now, which MLflow does not take, a tag tells the new one."""
    import mlflow
    from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH, MAX_PARAMS_TAGS_PER_BATCH, MAX_TAG_VAL_LENGTH

    values = {_NOT_IN_KEYS.sub("_", key): str(value) for key, value in _flat(resolved)}
    for key, value in values.items():
        if len(value) > MAX_PARAM_VAL_LENGTH:
            mlflow.log_text(value, f"{_LONG_VALUES}/{key}.txt")
            values[key] = f"see {_LONG_VALUES}/{key}.txt"
    new = [key for key in values if key not in known]
    for start in range(0, len(new), MAX_PARAMS_TAGS_PER_BATCH):
        mlflow.log_params({key: values[key] for key in new[start : start + MAX_PARAMS_TAGS_PER_BATCH]})
    for key, value in values.items():
        if known.get(key, value) != value:
            mlflow.set_tag(f"changed/{key}", value[:MAX_TAG_VAL_LENGTH])


@contextlib.contextmanager
def _trackio_run(args: TrainingArguments, ids: _RunIds, resolved: ResolvedRecipe) -> Iterator[None]:
    import trackio

    # It knows runs by their names alone: two of one name would be one.
    args.run_name = ids.keep("trackio", ids.get("trackio") or f"{args.run_name}-{uuid.uuid4().hex[:6]}")
    begin, config = trackio.init, dict(_flat(resolved))

    # transformers 5.24 opens the run itself, again for what is logged after training, and gives no configuration then.
    def begin_with_recipe(*given: Any, **options: Any) -> Any:
        return begin(*given, **{**options, "embed": False, "config": {**config, **(options.get("config") or {})}})

    trackio.init = begin_with_recipe
    try:
        yield
    finally:
        trackio.init = begin
        if trackio.context_vars.current_run.get() is not None:
            trackio.finish()


def _flat(resolved: ResolvedRecipe) -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of a recipe."""
    yield from ((key, value) for key, value in resolved.leaves().items() if not key.startswith("history"))


def _artifacts(run_dir: Path) -> list[Path]:
    return [*sorted((run_dir / PLOTS_FOLDER).glob("*.png")), run_dir / REPORT_FILE, run_dir / RECIPE_FILE]


def _log_wandb_artifacts(run_dir: Path, *, with_model: bool) -> None:
    import wandb

    run = wandb.run
    if run is None:
        return
    plots = [path for path in _artifacts(run_dir) if path.suffix == ".png"]
    run.log({f"plots/{path.stem}": wandb.Image(str(path)) for path in plots})
    run.save(str(run_dir / REPORT_FILE), base_path=str(run_dir), policy="now")
    if with_model:
        artifact = wandb.Artifact(f"model-{run.id}", type="model")
        for path in sorted(path for pattern in _MODEL_FILES for path in run_dir.glob(pattern)):
            artifact.add_file(str(path))
        run.log_artifact(artifact)
