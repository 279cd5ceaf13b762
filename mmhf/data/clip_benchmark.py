"""Data sets in CLIP_benchmark's layout: tars of images with class numbers or captions, and files beside them.

```
FOLDER/
    classnames.txt                          a line a class, in the order of their numbers
    zeroshot_classification_templates.txt   a line a template, with {c} where the name goes
    dataset_type.txt                        `retrieval` for captions; absent for classes
    test/
        nshards.txt                         how many tars there are
        0.tar  1.tar  …                     s0000000.webp with s0000000.cls (a class number) or .txt (a caption a line)
```

It is that of `build_wds_dataset` in `clip_benchmark/datasets/builder.py` (github.com/LAION-AI/CLIP_benchmark, 1.6.2).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import datasets
import pyarrow as pa

from mmhf.data.bad_examples import BadExample
from mmhf.data.captions import clean_captions
from mmhf.data.columns import IMAGE_TYPE
from mmhf.data.images import shorten
from mmhf.data.streams.shards import ShardFault, ShardImage, TarShard
from mmhf.data.table import CAPTIONS_TYPE, as_dataset
from mmhf.errors import InputError

CLASS_NAMES_FILE = "classnames.txt"
TEMPLATES_FILE = "zeroshot_classification_templates.txt"
TYPE_FILE = "dataset_type.txt"
NUM_SHARDS_FILE = "nshards.txt"
_IMAGE_ENDINGS = ("webp", "png", "jpg", "jpeg")
_KINDS = {"classification": "cls", "retrieval": "txt"}
"""What `dataset_type.txt` says → the ending of what stands beside an image."""


@dataclass(frozen=True)
class ClipBenchmarkData:
    """A data set of CLIP_benchmark.

    Attributes:
        name (`str`): Its folder's.
        is_retrieval (`bool`): Whether images have captions, and not a class.
        rows (`datasets.Dataset`): The columns of `ROW_FEATURES` or `CAPTION_FEATURES`; images are in it.
        class_names (`list[str]`): By class number; equal names may be those of several classes.
        templates (`list[str]`): With `{c}` where a name goes.
        bad_examples (`list[BadExample]`): Samples that were left out.
    """

    name: str
    is_retrieval: bool
    rows: datasets.Dataset
    class_names: list[str] = field(default_factory=list)
    templates: list[str] = field(default_factory=list)
    bad_examples: list[BadExample] = field(default_factory=list)


def read_clip_benchmark(folder: str | Path, split: str = "test") -> ClipBenchmarkData:
    """Read a data set in CLIP_benchmark's layout; its images are copied into the cache of `datasets`, tar by tar.

    Args:
        folder (`str` or `Path`): The folder, such as a download of `clip-benchmark/wds_vtab-flowers` of the Hub.
        split (`str`, defaults to `"test"`): The folder of its tars.

    Raises:
        InputError: A file is missing or damaged, tars are missing, a label is no class, or the set has several labels
            an image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"--clip-benchmark {folder}: no such folder")
    kind = (_lines(folder / TYPE_FILE) or ["classification"])[0].lower()
    if kind not in _KINDS:
        raise InputError(f"{folder / TYPE_FILE}: {kind!r} is not measured, only classification and retrieval are")
    name = folder.resolve().name
    shards = _shards(folder / split)
    if kind == "retrieval":
        rows, bad_examples = _read_rows(shards, split, "txt", 0)
        return ClipBenchmarkData(name, True, rows, bad_examples=bad_examples)
    class_names, templates = _lines(folder / CLASS_NAMES_FILE), _lines(folder / TEMPLATES_FILE)
    for file, lines in ((CLASS_NAMES_FILE, class_names), (TEMPLATES_FILE, templates)):
        if not lines:
            raise InputError(f"{folder / file}: is missing or empty, and zero-shot classification needs it")
    rows, bad_examples = _read_rows(shards, split, "cls", len(class_names))
    return ClipBenchmarkData(name, False, rows, class_names, templates, bad_examples)


def _lines(path: Path) -> list[str]:
    """The lines of a file without blanks around them; none where there is no file."""
    if not path.is_file():
        return []
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8") from error


def _shards(folder: Path) -> list[Path]:
    paths = sorted(folder.glob("*.tar"), key=lambda path: (len(path.stem), path.stem))
    if not paths:
        raise InputError(f"{folder}: has no tars; CLIP_benchmark's layout has 0.tar, 1.tar, ... there")
    given = _lines(folder / NUM_SHARDS_FILE)
    if given and given[0] != str(len(paths)):
        raise InputError(f"{folder}: has {len(paths)} tars, and {NUM_SHARDS_FILE} says {given[0]}; fetch the others")
    return paths


def _read_rows(
    shards: list[Path], split: str, ending: str, num_classes: int
) -> tuple[datasets.Dataset, list[BadExample]]:
    parts: list[datasets.Dataset] = []
    bad_examples: list[BadExample] = []
    count = 0
    for path in shards:
        samples: list[ShardImage] = []
        for sample in TarShard(str(path), _IMAGE_ENDINGS, ending).read():
            if isinstance(sample, ShardFault):
                # A part of a benchmark has another accuracy than the whole.
                if sample.key == "on_bad_shard":
                    raise InputError(f"{path}: {sample.reason}; fetch it again")
                bad_examples.append(BadExample(split, sample.number, sample.id, sample.reason))
                continue
            samples.append(sample)
        if samples:
            parts.append(_table(samples, count, num_classes))
            count += len(samples)
    if not parts:
        why = bad_examples[0].reason if bad_examples else "the tars are empty"
        raise InputError(f"{shards[0].parent}: no sample can be used; {why}")
    return datasets.concatenate_datasets(parts), bad_examples


def _table(samples: list[ShardImage], before: int, num_classes: int) -> datasets.Dataset:
    images = pa.StructArray.from_arrays(
        [pa.nulls(len(samples), pa.string()), pa.array([sample.content for sample in samples], pa.binary())],
        fields=list(IMAGE_TYPE),
    )
    columns = {
        "row": pa.array(range(before + 1, before + len(samples) + 1), pa.int64()),
        "id": pa.array([sample.id for sample in samples], pa.string()),
        "image": images,
    }
    if num_classes:
        columns["text"] = pa.array([""] * len(samples), pa.string())
        columns["label"] = pa.array([_class_of(sample, num_classes) for sample in samples], pa.int64())
    else:
        lines = [clean_captions(sample.captions[0].splitlines()) for sample in samples]
        columns["captions"] = pa.array(lines, CAPTIONS_TYPE)
    return as_dataset(pa.table(columns))


def _class_of(sample: ShardImage, num_classes: int) -> int:
    given = sample.captions[0]
    if not given.isdecimal() or int(given) >= num_classes:
        raise InputError(f"{sample.id}: the class {shorten(given)} is none of the {num_classes} in {CLASS_NAMES_FILE}")
    return int(given)
