"""What a run folder remembers of its origin, until it is released."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from mmhf.errors import InputError
from mmhf.hub.manifest import ReleaseReference
from mmhf.hub.releases import write_release

LINEAGE_FILE = "lineage.json"


def write_lineage(run_dir: Path, parent: ReleaseReference | None, data_fingerprint: dict[str, str]) -> None:
    """Note in a run folder where its training starts from and which rows it sees.

    Args:
        run_dir (`Path`): The run folder.
        parent (`ReleaseReference`, *optional*): The release that `init_from` names.
        data_fingerprint (`dict[str, str]`): Split → content hash of its rows.
    """
    lineage = {"parent": asdict(parent) if parent else None, "data_fingerprint": data_fingerprint}
    (run_dir / LINEAGE_FILE).write_text(json.dumps(lineage, indent=2) + "\n", encoding="utf-8")


def release_run(run_dir: Path, repo: str, version: str) -> Path:
    """Keep a finished run as a version, with the parent and data that its folder remembers.

    Returns:
        `Path`: The folder of the new version.

    Raises:
        InputError: The version exists, or the folder is not that of a finished run.
    """
    file = run_dir / LINEAGE_FILE
    if not file.is_file():
        raise InputError(f"{run_dir}: no {LINEAGE_FILE}; name the folder of a run that has finished")
    lineage = json.loads(file.read_text(encoding="utf-8"))
    parent = ReleaseReference(**lineage["parent"]) if lineage["parent"] else None
    extra = {"data_fingerprint": lineage["data_fingerprint"]}
    return write_release(run_dir, repo, version, parent=parent, extra=extra)
