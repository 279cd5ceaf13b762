"""Turn a checkpoint (.pth) of one of the programs that mmhf replaces into a release."""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import transformers

from mmhf.conversion.captioner import Captioner
from mmhf.conversion.checkpoint import Checkpoint, read_checkpoint
from mmhf.conversion.clip_from_scratch import ClipFromScratch
from mmhf.conversion.converting import Converted, Options, Predecessor, convert
from mmhf.conversion.dermatology import Dermatology, import_embeddings
from mmhf.conversion.fake_news import FakeNews, version_of
from mmhf.conversion.plant_disease import PlantDisease
from mmhf.damage import is_run_file, mark_complete
from mmhf.errors import InputError
from mmhf.evaluation.results import write_metrics
from mmhf.files import METRICS_FILE, RECIPE_FILE, read_json_object, whole_folder
from mmhf.hub.assembling import assemble, check_run
from mmhf.hub.lineage import write_lineage
from mmhf.hub.manifest import ReleaseNotes, Version

logger = logging.getLogger(__name__)

# In this order: the first ones recognise their checkpoints by more.
_PREDECESSORS: dict[str, Predecessor] = {
    each.name: each for each in (Captioner(), Dermatology(), FakeNews(), ClipFromScratch(), PlantDisease())
}
_TABLE = "text_embeddings.parquet"


def run(options: argparse.Namespace) -> None:
    transformers.logging.disable_progress_bar()
    output: Path = options.output
    if output.exists():
        raise InputError(f"{output}: exists; name a new folder")
    checkpoint = read_checkpoint(options.checkpoint)
    predecessor = _predecessor(checkpoint, options.program)
    given = Options(
        vision=options.vision,
        text=options.text,
        tokenizer=options.tokenizer,
        labels=_labels(options.labels),
        embeddings=options.embeddings,
        texts=options.texts,
        metadata=options.metadata,
        include_frozen=options.include_frozen,
        allow_missing=tuple(options.allow_missing),
        overrides=tuple(options.overrides),
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".converting-") as scratch:
        run_dir = Path(scratch)
        if given.embeddings is not None:
            if not isinstance(predecessor, Dermatology):
                raise InputError(f"--embeddings: belongs to dermatology, and this is {predecessor.name}")
            table = import_embeddings(checkpoint, given, run_dir / _TABLE)
            given = replace(given, embeddings=table)
        converted = convert(predecessor, checkpoint, given)
        _write_run(converted, run_dir, output)
        # The release is read once more, by what looks for secrets in it: both at once would take twice the memory.
        converted.model.to_empty(device="meta")
        checkpoint.weights.clear()
        notes = ReleaseNotes(name=output.name, version=str(_version(options, checkpoint)), model=str(output))
        with whole_folder(output) as folder:
            check_run(run_dir)
            assemble(folder, run_dir, notes, place=os.replace)
            write_lineage(folder, None, {})
            if given.embeddings is not None:
                os.replace(run_dir / _TABLE, folder / _TABLE)
    for note in converted.notes:
        logger.info("%s", note)
    logger.info("Converted %s, of %s, into %s", options.checkpoint, predecessor.name, output)


def _predecessor(checkpoint: Checkpoint, program: str | None) -> Predecessor:
    if program is not None:
        return _PREDECESSORS[program]
    found = next((each for each in _PREDECESSORS.values() if each.recognises(checkpoint)), None)
    if found is None:
        raise InputError(
            f"{checkpoint.path}: its {len(checkpoint.weights)} tensors, such as {next(iter(checkpoint.weights))}, are "
            f"of no known program; name it with --from {', '.join(sorted(_PREDECESSORS))}"
        )
    return found


def _write_run(converted: Converted, run_dir: Path, output: Path) -> None:
    """The files of a run folder, of which a release is made."""
    converted.model.save_pretrained(run_dir)
    converted.processor.save_pretrained(run_dir)
    recipe = converted.resolved.to_yaml().replace(str(run_dir), str(output))
    (run_dir / RECIPE_FILE).write_text(recipe, encoding="utf-8")
    write_metrics(run_dir / METRICS_FILE, converted.numbers)
    mark_complete(run_dir, is_run_file)


def _version(options: argparse.Namespace, checkpoint: Checkpoint) -> Version:
    if options.version is not None:
        return Version.parse(options.version)
    if Version.is_valid(options.output.name):
        return Version.parse(options.output.name)
    return Version.parse(version_of(checkpoint) or "1.0")


def _labels(given: str | None) -> tuple[str, ...]:
    """Names of classes from a list, a file or a folder."""
    if given is None:
        return ()
    path = Path(given)
    if path.is_dir():
        return tuple(sorted(each.name for each in path.iterdir() if each.is_dir()))
    if not path.is_file():
        return tuple(name.strip() for name in given.split(","))
    if path.suffix == ".json":
        names: Sequence[str] = list(read_json_object(path))
        return tuple(names)
    return tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
