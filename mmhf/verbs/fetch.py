"""Fetch a public data set, say what has to be fetched by hand, compare it with what is known, and train on it."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from mmhf.data.public_data import PUBLIC_DATA, PublicData
from mmhf.errors import InputError
from mmhf.recipe.nearest import did_you_mean, nearest_names

logger = logging.getLogger(__name__)


def run(options: argparse.Namespace) -> None:
    """List the data sets, or fetch one."""
    if options.name is None:
        sys.stdout.write("".join(f"{name:<16} {data.title}\n" for name, data in PUBLIC_DATA.items()))
        return
    if options.name not in PUBLIC_DATA:
        meant = did_you_mean(nearest_names(options.name, PUBLIC_DATA)) or f"; there are {', '.join(PUBLIC_DATA)}"
        raise InputError(f"mmhf fetch {options.name}: there is no such data set{meant}")
    data = PUBLIC_DATA[options.name]
    if options.train is not None and options.train not in data.recipes:
        raise InputError(f"--train {options.train}: recipes for {options.name} are {', '.join(data.recipes)}")
    folder = options.output or Path("data", options.name)
    sys.stdout.write(describe(options.name, data, folder))
    _fetch(options.name, data, folder, only_check=options.check)
    if options.train is not None:
        from mmhf.verbs.train import train

        train(options.train, [*data.overrides(options.train, str(folder)), *options.overrides])


def describe(name: str, data: PublicData, folder: Path) -> str:
    """What a user should know of a data set before it is fetched."""
    lines = [f"{name}: {data.title}", f"  page      {data.page}", f"  licence   {data.licence}"]
    for part in data.parts:
        size = f", {part.size}" if part.size else ""
        how = "by hand from" if part.by_hand else "from"
        lines.append(f"  part      {folder / part.path} ({how} {part.address}{size})")
    lines += [f"  hint      {data.hint}"] if data.hint else []
    for recipe in data.recipes:
        words = " ".join(f"'{each}'" if " " in each else each for each in data.overrides(recipe, str(folder)))
        lines.append(f"  recipe    mmhf train {recipe} {words}")
    lines.append("  what others report; none of it was measured with mmhf:")
    lines += [f"    {each.model}: {each.value}; {each.protocol} ({each.source})" for each in data.figures]
    return "\n".join(lines) + "\n"


def _fetch(name: str, data: PublicData, folder: Path, *, only_check: bool) -> None:
    from mmhf.data.fetching import differences, fetch_part  # (which take seconds to load)

    missing = [part for part in data.parts if not (folder / part.path).exists()]
    if not only_check:
        for part in missing:
            if not part.by_hand:
                logger.info("%s: fetching", folder / part.path)
                fetch_part(part, folder)
        missing = [part for part in missing if part.by_hand]
    damaged = []
    for part in data.parts:
        if part in missing:
            continue
        found = differences(part, folder)
        for difference in found:
            logger.warning("%s: %s", folder / part.path, difference)
        damaged += [part.path] if any("MD5" in each for each in found) else []
        if not found:
            logger.info("%s: as it is known", folder / part.path)
    if missing:
        wanted = ", ".join(f"{folder / part.path} from {part.address}" for part in missing)
        raise InputError(f"mmhf fetch {name}: put there what is missing: {wanted}; then start again")
    if damaged:
        raise InputError(
            f"mmhf fetch {name}: {', '.join(damaged)}: holds images with other content than was published"
        )
