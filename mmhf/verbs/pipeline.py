"""`mmhf.pipeline`: transformers' pipelines, for runs and releases too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers.pipelines import PIPELINE_REGISTRY

from mmhf import inference
from mmhf.errors import InputError
from mmhf.hub import resolve_model
from mmhf.inference.loading import model_type_of
from mmhf.models.family import families
from mmhf.recipe.nearest import did_you_mean, nearest_names
from mmhf.verbs.run import Run


def pipeline(task: str | None = None, model: str | Path | Run | Any = None, **options: Any) -> Any:
    """Make a pipeline of a model.

    Args:
        task (`str`, *optional*): Such as `image-text-classification`; absent for a run or a release of mmhf, which
            knows its task. A model may also be given alone, in its place.
        model (*optional*): A run or its folder, a release (`releases/fakeddit@v1.8`), a model that is loaded already,
            or whatever `transformers.pipeline` takes.
        options (`Any`): As `transformers.pipeline` takes them.

    Returns:
        `transformers.Pipeline`: The pipeline.

    Raises:
        InputError: There is no such model or task, or the model cannot do the task.
    """
    known = PIPELINE_REGISTRY.get_supported_tasks()
    if task is not None and model is None and task not in known:
        task, model = None, task
    if task is not None and task not in known:
        raise InputError(f"pipeline: no task {task!r}{did_you_mean(nearest_names(task, known))}")
    if isinstance(model, Run):
        model = model.folder
    if isinstance(model, str | Path) and _is_own(str(model)):
        path = resolve_model(str(model)).path
        family = families().get(model_type_of(path))
        model, task = str(path), task or (None if family is None else family.pipeline_task)
    try:
        return inference.pipeline(task, model=model, **options)
    except InputError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        named = model if isinstance(model, str | Path) else type(model).__name__
        raise InputError(f"pipeline: {task or 'no task'} with {named}: {reason}") from error


def _is_own(name: str) -> bool:
    """Whether a name is a folder, a version (`REPO@v1.8`), or a path that should be one; others are the Hub's."""
    return Path(name).exists() or "@" in name or name.startswith((".", "/", "outputs/", "releases/"))
