"""Compare two versions: settings, numbers, sizes, data, environment."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from mmhf.hub.history import Change, VersionRecord, changed_metrics, changed_settings, read_version


def run(options: argparse.Namespace) -> None:
    old, new = read_version(options.old), read_version(options.new)
    names = (options.old, options.new)
    console = Console()
    tables = {
        "settings": changed_settings(old.recipe, new.recipe),
        "numbers": changed_metrics(old.release.metrics, new.release.metrics),
        "sizes": changed_metrics(_sizes(old), _sizes(new)),
        "data": changed_metrics(_fingerprint(old), _fingerprint(new)),
        "environment": changed_metrics(old.release.environment, new.release.environment),
    }
    for title, changes in tables.items():
        if changes:
            console.print(_table(title, names, changes))
    same = [title for title, changes in tables.items() if not changes]
    if same:
        console.print(f"the same: {', '.join(same)}")


def _sizes(record: VersionRecord) -> dict[str, int | None]:
    known = record.release.sizes
    return {"parameters": record.release.parameters, "bytes": sum(known.values()) or None, **known}


def _fingerprint(record: VersionRecord) -> dict[str, str]:
    fingerprints = record.release.extra.get("data_fingerprint") or {}
    return {f"rows of {split}": value[:12] for split, value in fingerprints.items()}


def _table(title: str, names: tuple[str, str], changes: Sequence[Change]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in names:
        table.add_column(name, overflow="fold")
    has_numbers = any(_difference(change) for change in changes)
    if has_numbers:
        table.add_column("difference", justify="right")
    for change in changes:
        cells = [change.key, _cell(change.old), _cell(change.new)]
        table.add_row(*cells, *([_difference(change)] if has_numbers else []))
    return table


def _difference(change: Change) -> str:
    if isinstance(change.old, int) and isinstance(change.new, int):
        return f"{change.new - change.old:+,}"
    if isinstance(change.old, (int, float)) and isinstance(change.new, (int, float)):
        return f"{change.new - change.old:+.4g}"
    return ""


def _cell(value: object) -> str:
    if value is None:
        return "absent"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
