"""The files of a release, put together from a run folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from mmhf.damage import content_hash, refuse_damage
from mmhf.errors import InputError
from mmhf.files import (
    CONFIG_FILE,
    EVALUATION_FILE,
    METRICS_FILE,
    PLOTS_FOLDER,
    RECIPE_FILE,
    RELEASE_FILE,
    WEIGHTS_FILE,
    file_sha256,
    read_json_object,
    read_yaml_object,
)
from mmhf.hub.low_rank import settle_lora
from mmhf.hub.manifest import (
    Release,
    ReleaseNotes,
    code_version,
    content_commit,
    environment,
    released_files,
)
from mmhf.hub.model_card import CURVE_FILE, CardFacts, model_card
from mmhf.hub.remote_code import add_remote_code
from mmhf.hub.secret_scan import refuse_secrets
from mmhf.models.fusion.column_features import ColumnFeatures
from mmhf.recipe.prompt_template import PromptTemplate

_REQUIRED = (CONFIG_FILE, RECIPE_FILE, METRICS_FILE)
_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")


def check_run(run_dir: Path) -> None:
    """Raise `InputError` unless the folder holds all that a release needs, its weights readable."""
    if not run_dir.is_dir():
        raise InputError(f"{run_dir}: no such run folder")
    missing = [name for name in _REQUIRED if not (run_dir / name).is_file()]
    weights = sorted(run_dir.glob("*.safetensors"))
    if not weights:
        missing.append(WEIGHTS_FILE)
    if not any((run_dir / name).is_file() for name in _PROCESSOR_FILES):
        missing.append(_PROCESSOR_FILES[0])
    if missing:
        raise InputError(f"{run_dir}: cannot be released, it lacks {', '.join(missing)}; has its training finished?")
    for path in weights:
        count_parameters(path)
    refuse_damage(run_dir)


def count_parameters(weights: Path) -> int:
    """Numbers in a safetensors file, from its header; raises `InputError` when the file is damaged."""
    try:
        with safe_open(weights, framework="numpy") as stream:
            total = 0
            for name in stream.keys():  # noqa: SIM118  (safe_open cannot be iterated over)
                size = 1
                for length in stream.get_slice(name).get_shape():
                    size *= length
                total += size
            return total
    except SafetensorError as error:
        raise InputError(f"{weights}: cannot be released, the weights are damaged ({error})") from error


def assemble(
    staging: Path, run_dir: Path, notes: ReleaseNotes, *, place: Callable[[Path, Path], object] = shutil.copyfile
) -> Release:
    """Fill an empty folder with all files of a release: the run's, remote code, card and `release.json`.

    Args:
        staging (`Path`): The folder.
        run_dir (`Path`): A run folder that `check_run` has passed.
        notes ([`ReleaseNotes`]): What the release says of itself.
        place (`Callable`): How a file gets there; a release that is only pushed need not copy its weights.

    Raises:
        InputError: A file of the run is damaged, or holds a secret.
    """
    for source in released_files(run_dir):
        place(source.resolve(), staging / source.name)
    if (lora := settle_lora(staging, notes.lora)) is not None:
        notes = replace(notes, extra={**notes.extra, "lora": lora})
    curve = run_dir / PLOTS_FOLDER / CURVE_FILE
    if curve.is_file():
        place(curve.resolve(), staging / CURVE_FILE)
    recipe = read_yaml_object(staging / RECIPE_FILE)
    if "task" not in recipe:
        raise InputError(f"{RECIPE_FILE}: not a resolved recipe, it has no `task`; cannot be released")
    metrics, config = _read_object(staging / METRICS_FILE), _read_object(staging / CONFIG_FILE)
    columns, prompt = config.get("columns"), config.get("prompt_template")
    has_remote_code = add_remote_code(staging)
    facts = CardFacts(
        recipe=recipe,
        metrics=metrics,
        evaluation=_read_object(staging / EVALUATION_FILE) if (staging / EVALUATION_FILE).is_file() else {},
        has_curve=curve.is_file(),
        has_remote_code=has_remote_code,
        environment=environment(),
        columns=None if columns is None else ColumnFeatures.from_dict(columns),
        prompt=None if prompt is None else PromptTemplate(prompt, config.get("prompt_missing")),
    )
    (staging / "README.md").write_text(str(model_card(notes, facts)), encoding="utf-8")
    refuse_secrets(sorted(staging.iterdir()))
    files = {path.name: file_sha256(path) for path in sorted(staging.iterdir())}
    parameters = sum(count_parameters(path) for path in staging.glob("*.safetensors"))
    release = Release(
        version=notes.version,
        commit=content_commit(files),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        parent=notes.parent,
        task=str(recipe["task"]),
        metrics=metrics,
        code=code_version(),
        environment=facts.environment,
        files=files,
        checksums={name: content_hash(staging / name) for name in files},
        sizes={path.name: path.stat().st_size for path in sorted(staging.iterdir())},
        parameters=parameters,
        extra=dict(notes.extra),
    )
    (staging / RELEASE_FILE).write_text(release.model_dump_json(indent=2) + "\n", encoding="utf-8")
    refuse_secrets([staging / RELEASE_FILE])
    return release


def _read_object(path: Path) -> dict[str, Any]:
    try:
        return read_json_object(path)
    except InputError as error:
        raise InputError(f"{error}; cannot be released") from error
