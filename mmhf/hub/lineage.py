"""The parent and data of a run, kept in its folder until it is released."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from pydantic import ValidationError

from mmhf.damage import refuse_damage
from mmhf.errors import DamagedError, InputError
from mmhf.files import CHANGES_FILE, LINEAGE_FILE, RECIPE_FILE, read_json_object, read_yaml_object, write_json
from mmhf.hub.manifest import ReleaseNotes, ReleaseReference, environment
from mmhf.hub.pushing import check_push_is_possible, push_release
from mmhf.hub.releases import check_version_is_free, write_release
from mmhf.recipe.schema import ReleaseSection


def write_lineage(
    run_dir: Path,
    parent: ReleaseReference | None,
    data_fingerprint: dict[str, str],
    *,
    teacher: ReleaseReference | None = None,
    trained_on: dict[str, str] | None = None,
) -> None:
    """Record in a run folder which release its training starts from, which teaches it, and which rows it sees.

    Args:
        run_dir (`Path`): The run folder.
        parent (`ReleaseReference`, *optional*): The release that `init_from` names.
        data_fingerprint (`dict[str, str]`): Split → content hash of its rows.
        teacher (`ReleaseReference`, *optional*): The release that `teacher` names.
        trained_on (`dict[str, str]`, *optional*): What can move its numbers, such as the CPU's instruction set; the
            versions of packages are added.
    """
    lineage: dict[str, object] = {
        "parent": asdict(parent) if parent else None,
        "data_fingerprint": data_fingerprint,
    }
    if teacher is not None:
        lineage["teacher"] = asdict(teacher)
    if trained_on is not None:
        lineage["trained_on"] = {**environment(), **trained_on}
    write_json(run_dir / LINEAGE_FILE, lineage)


def check_same_teacher(run_dir: Path, teacher: ReleaseReference) -> None:
    """Refuse to go on with a run whose teacher is not what it was when the run began.

    Raises:
        InputError: Its content is another one; a version cannot change, the folder of a run can.
    """
    file = run_dir / LINEAGE_FILE
    before = read_json_object(file).get("teacher") if file.is_file() else None
    if before is not None and before.get("commit") != teacher.commit:
        raise InputError(
            f"{run_dir}: its teacher {teacher} was {str(before.get('commit'))[:12]} when the run began, and is "
            f"{str(teacher.commit)[:12]} now; bring it back, start a new run, or go on with --allow-changes"
        )


def check_release_is_possible(settings: ReleaseSection) -> None:
    """Raise `InputError` if a release would be refused, so that a program can say so before it trains for hours."""
    if settings.push:
        check_push_is_possible(settings)
    else:
        check_version_is_free(settings.repo, settings.version)


def release_run(run_dir: Path, settings: ReleaseSection) -> str:
    """Release a finished run, with the parent and data recorded in its folder.

    Args:
        run_dir (`Path`): The run folder.
        settings ([`ReleaseSection`]): Where to, under which number, and what the card says.

    Returns:
        `str`: The folder of the new version, or its name and address on the Hub.

    Raises:
        InputError: The version exists, or the folder is not that of a finished run.
    """
    file = run_dir / LINEAGE_FILE
    if not file.is_file():
        raise InputError(f"{run_dir}: no {LINEAGE_FILE}; name the folder of a run that has finished")
    refuse_damage(run_dir)
    lineage = read_json_object(file)
    try:
        parent = ReleaseReference(**lineage["parent"]) if lineage["parent"] else None
        extra: dict[str, object] = {"data_fingerprint": lineage["data_fingerprint"]}
        extra.update({name: lineage[name] for name in ("trained_on", "soup", "teacher") if name in lineage})
        if (run_dir / CHANGES_FILE).is_file():
            extra["changes"] = read_json_object(run_dir / CHANGES_FILE)["history"]
    except (KeyError, TypeError) as error:
        raise DamagedError(f"{run_dir}: {LINEAGE_FILE} or {CHANGES_FILE} is damaged; restore it") from error
    notes = ReleaseNotes(parent=parent, extra=extra, card=settings.card, lora=settings.lora)
    if settings.push:
        return str(push_release(run_dir, settings, notes=notes))
    return str(write_release(run_dir, settings.repo, settings.version, notes=notes))


def recipe_settings(run_dir: Path) -> dict[str, object]:
    """The `release:` section of the run's recipe, to be completed on the command line; empty if there is none."""
    path = run_dir / RECIPE_FILE
    if not path.is_file():
        raise InputError(f"{run_dir}: no {RECIPE_FILE}; name the folder of a run that has finished")
    refuse_damage(run_dir)
    release = read_yaml_object(path).get("release") or {}
    if not isinstance(release, dict):
        raise InputError(f"{path}: release: is no section")
    return release


def release_settings(values: dict[str, object]) -> ReleaseSection:
    """Validate the settings of a release; raises `InputError` with the first problem, in one line."""
    try:
        return ReleaseSection.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in ("release", *problem["loc"]))
        raise InputError(f"{where}: {problem['msg'].removeprefix('Value error, ')}") from error
