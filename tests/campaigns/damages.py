"""Every file that mmhf writes is flipped, cut, deleted or swapped; who reads it says so, or makes the same of it."""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass
from pathlib import Path

from trials import Disturbance, Tally, run
from world import World

_KINDS = ("flipped", "cut", "deleted", "swapped")


@dataclass(frozen=True)
class Place:
    """Files that a verb reads.

    Args:
        name (`str`): What the table calls them.
        folder (`str`): Where they lie, below the folder of a trial.
        verb (`str`): Who reads them.
        made_by (`tuple[str, ...]`): The verbs that make what is damaged.
    """

    name: str
    folder: str
    verb: str
    made_by: tuple[str, ...]


PLACES = (
    Place("an unfinished run", "run", "train", ("train",)),
    Place("a prepared data set", "prepared", "train", ("prepare",)),
    Place("stored features", "features", "train", ("cache",)),
    Place("partial predictions", "out.csv.partial", "predict", ("predict",)),
    Place("partial embeddings", "out.parquet.partial", "embed", ("embed",)),
    Place("a finished table", ".", "predict", ("predict",)),
    Place("a finished run", "run", "predict", ("train",)),
    Place("a finished run, released", "run", "release", ("train",)),
    Place("a release", "releases", "predict", ("release",)),
    Place("a sweep", "sweep", "sweep", ("sweep",)),
)


def damage_campaign(world: World, scratch: Path, num_trials: int, generator: random.Random) -> list[Tally]:
    """Damage one file a trial, then run the verb that reads it.

    Args:
        world ([`World`]): The small world.
        scratch (`Path`): For what the verbs make.
        num_trials (`int`): Damages; places and kinds take turns, and 40 try each kind on each place.
        generator (`random.Random`): Chooses files and bytes.
    """
    tallies = {place.name: Tally(f"damage to {place.name}") for place in PLACES}
    sources = {place.name: _make(world, scratch / f"of-{number}", place) for number, place in enumerate(PLACES)}
    for number in range(num_trials):
        place, kind = PLACES[number % len(PLACES)], _KINDS[sum(divmod(number, len(PLACES))) % len(_KINDS)]
        folder = scratch / f"damage-{number}"
        shutil.copytree(sources[place.name], folder)
        files = [path for path in sorted((folder / place.folder).rglob("*")) if _may_be_damaged(path, folder)]
        victim = generator.choice(files)
        _damage(victim, kind, files, generator)
        arguments = _arguments(world, place, folder)
        result = run(arguments, folder)
        name = victim.relative_to(folder)
        verdict = result.verdict(world.is_same(place.verb, folder), victim.name)
        tallies[place.name].count(verdict, f"{place.name}, {name} {kind}: {result.code} {result.output[-1500:]}")
        shutil.rmtree(folder)
    return list(tallies.values())


def _make(world: World, folder: Path, place: Place) -> Path:
    """What is damaged: the work of a verb, stopped before its end where that is what is wanted."""
    folder.mkdir()
    for verb in place.made_by:
        arguments = world.arguments(verb)
        if "partial" in place.folder or place.name.startswith("an unfinished"):
            _stop_before_end(arguments, folder)
        else:
            run(arguments, folder)
    return folder


def _stop_before_end(arguments: list[object], folder: Path) -> None:
    """Training stops when its splits are to be measured, a job before it writes its output: no file of theirs fits."""
    import mmhf.verbs.train
    from mmhf.inference.table_job import TableJob

    def stop(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    before = mmhf.verbs.train.finish, TableJob._assemble
    mmhf.verbs.train.finish, TableJob._assemble = stop, stop  # type: ignore[assignment,method-assign]
    try:
        run(arguments, folder, Disturbance())
    finally:
        mmhf.verbs.train.finish, TableJob._assemble = before  # type: ignore[method-assign]


def _arguments(world: World, place: Place, folder: Path) -> list[object]:
    arguments = world.arguments(place.verb)
    if place.name.startswith("a finished run"):
        arguments[1] = folder / "run"
    if place.folder == "prepared":
        arguments.append("data.prepared=prepared")
    if place.name == "a release":
        arguments[1] = f"{folder / 'releases'}@1.0"
    return arguments


def _may_be_damaged(path: Path, folder: Path) -> bool:
    return (
        path.is_file()
        and "lock" not in path.name
        and not path.name.startswith((".member", ".claim", ".assembling"))
        and path.stat().st_size > 0
        and (folder / "features" not in path.parents or path.parts[len(folder.parts)] == "features")
    )


def _damage(path: Path, kind: str, files: list[Path], generator: random.Random) -> None:
    content = bytearray(path.read_bytes())
    if kind == "flipped":
        content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        path.write_bytes(content)
    elif kind == "cut":
        path.write_bytes(content[: generator.randrange(len(content))])
    elif kind == "deleted":
        path.unlink()
    else:
        others = [each for each in files if each != path and each.suffix == path.suffix]
        other = generator.choice(others or files)
        path.write_bytes(other.read_bytes())
        other.write_bytes(content)
