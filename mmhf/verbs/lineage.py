"""Show which version of a model was trained from which, with the settings and numbers that changed."""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from mmhf.errors import InputError
from mmhf.hub.history import FamilyTree, VersionRecord, changed_settings, family_trees, read_history
from mmhf.hub.manifest import ReleaseReference, soup_names
from mmhf.recipe.history import history_lines
from mmhf.recipe.nearest import did_you_mean, nearest_names

_MAX_SETTINGS = 12
_PREFERRED = ("test_accuracy", "test_f1_macro", "test_cider", "test_recall@1")


def run(options: argparse.Namespace) -> None:
    records = read_history(options.repo)
    metrics = options.metric
    if not metrics:  # the most common ones, else the first of a test split, else any
        numbers = [name for name, value in records[-1].release.metrics.items() if isinstance(value, (int, float))]
        metrics = [name for name in _PREFERRED if name in numbers]
        metrics = metrics or [name for name in numbers if name.startswith("test_")][:2] or numbers[:2]
    known = {name for record in records for name in record.release.metrics}
    for metric in metrics:
        if metric not in known:
            raise InputError(f"--metric {metric}: no version has it{did_you_mean(nearest_names(metric, known))}")
    root = Tree(Text(options.repo, style="bold"))
    for tree in family_trees(records):
        _grow(root, tree, None, metrics)
    Console().print(root)


def _grow(place: Tree, tree: FamilyTree, parent: VersionRecord | None, metrics: list[str]) -> None:
    branch = place.add(_title(tree.record, parent, metrics))
    if soup := tree.record.release.extra.get("soup"):
        branch.add(Text(f"an average of {', '.join(soup_names(soup))}", style="yellow"))
    if teacher := tree.record.release.extra.get("teacher"):
        branch.add(Text(f"taught by {ReleaseReference(**teacher)}", style="yellow"))
    for line in history_lines(tree.record.release.extra.get("changes", ())):
        branch.add(Text(f"changed on the way: {line}", style="yellow"))
    if parent is not None:
        changes = changed_settings(parent.recipe, tree.record.recipe)
        for change in changes[:_MAX_SETTINGS]:
            branch.add(Text(f"{change.key}: {_value(change.old)} → {_value(change.new)}", style="dim"))
        if len(changes) > _MAX_SETTINGS:
            branch.add(Text(f"{len(changes) - _MAX_SETTINGS} more settings, see mmhf diff", style="dim"))
    for child in tree.children:
        _grow(branch, child, tree.record, metrics)


def _title(record: VersionRecord, parent: VersionRecord | None, metrics: list[str]) -> Text:
    release = record.release
    title = Text(release.version, style="bold cyan")
    title.append(f"  {release.created[:10]}  {record.commit[:12]}", style="default not bold")
    if parent is None and release.parent is not None:
        title.append(f"  from {release.parent}", style="default not bold")
    for metric in metrics:
        value = release.metrics.get(metric)
        if isinstance(value, (int, float)):
            title.append(f"  {metric} {value:.4f}", style="green not bold")
            before = None if parent is None else parent.release.metrics.get(metric)
            if isinstance(before, (int, float)):
                title.append(f" ({value - before:+.4f})", style="green not bold")
    return title


def _value(value: object) -> str:
    return "absent" if value is None else str(value)
