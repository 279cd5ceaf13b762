"""Keep a finished run as an immutable version of a model, in a folder or on the Hub."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from mmhf.errors import InputError
from mmhf.files import read_yaml_object
from mmhf.hub.lineage import recipe_settings, release_run, release_settings

logger = logging.getLogger(__name__)


def run(options: argparse.Namespace) -> None:
    values = recipe_settings(options.run)
    given = {
        "repo": options.repo,
        "version": options.version,
        "private": options.private,
        "channel": options.channel,
        "best_metric": options.best_metric,
        "lora": options.lora,
        "card": None if options.card is None else _read_card(options.card),
    }
    values.update({key: value for key, value in given.items() if value is not None})
    if options.push is not None:
        values["push"] = options.push
    elif options.repo is not None:
        values["push"] = _is_on_hub(options.repo)
    for key in ("repo", "version"):
        if key not in values:
            raise InputError(f"--{key} is needed: the recipe of {options.run} has no `release`")
    logger.info("Release: %s", release_run(options.run, release_settings(values)))


def _is_on_hub(repo: str) -> bool:
    """Whether a name means the Hub: ORG/NAME where neither is a folder here; `releases/` always counts as a folder."""
    organisation, _, name = repo.partition("/")
    is_folder = Path(repo).exists() or Path(organisation).is_dir() or organisation in ("", ".", "..", "~", "releases")
    return bool(name) and "/" not in name and not is_folder


def _read_card(path: Path) -> dict[str, object]:
    try:
        return read_yaml_object(path)
    except InputError as error:
        raise InputError(f"release.card: {error}") from error
