"""Recipes, tables, captions, archives and images with random damage: read, or refused in a line, by nothing else."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import random
import shutil
import tarfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from trials import Tally

from mmhf.data.captions import captions_in
from mmhf.data.images import BadImageError, decode_image, find_image_problem
from mmhf.data.readers import read_table
from mmhf.data.sources.image_cache import cache_archive
from mmhf.errors import InputError
from mmhf.recipe import load_recipe

_RECIPES = Path(__file__).parents[2] / "recipes"
_INSERTED = (
    *(character.encode() for character in "\0\"'\r\n,;\t[]{}()-:|#%~"),
    *(b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"../", b"&a", b"*a", b"!!", b"nan", b"1e999", b"null"),
    b"9" * 400,
)


def fuzz_campaign(scratch: Path, num_inputs: int, generator: random.Random) -> list[Tally]:
    """Read damaged inputs of each kind.

    Args:
        scratch (`Path`): For files.
        num_inputs (`int`): Of all kinds together.
        generator (`random.Random`): Damages.
    """
    logging.getLogger("mmhf").setLevel(logging.ERROR)
    datasets.config.HF_DATASETS_CACHE = scratch / "cache"
    kinds: dict[str, tuple[float, Callable[[Path], object], list[bytes], Sequence[str]]] = {
        "recipes": (0.3, _read_recipe, [path.read_bytes() for path in sorted(_RECIPES.rglob("*.yaml"))], [".yaml"]),
        "tables": (0.3, _read_table, _tables(), [".csv", ".tsv", ".jsonl", ".json", ".parquet"]),
        "captions": (0.15, _read_captions, _captions(), [".txt"]),
        "images": (0.2, _read_image, _images(), [".jpg", ".png"]),
        "archives": (0.05, lambda path: _read_archive(path, scratch), _archives(), [".tar", ".zip"]),
    }
    tallies = []
    for name, (share, read, seeds, suffixes) in kinds.items():
        tally = Tally(f"fuzzed {name}")
        for number in range(int(share * num_inputs)):
            seed = generator.choice(seeds)
            content = _mutate(seed, generator)
            path = scratch / f"input{generator.choice(suffixes)}"
            path.write_bytes(content)
            tally.count(*_judge(read, path, f"{name} {number}: {content[:300]!r}"))
        tallies.append(tally)
    return tallies


def _judge(read: Callable[[Path], object], path: Path, note: str) -> tuple[str, str]:
    try:
        first = read(path)
    except (InputError, BadImageError) as error:
        return ("told" if str(error) else "silent"), f"{note}: {error!r}"
    except _RowError:
        return "told", note
    except BaseException:  # noqa: BLE001  (all that is no refusal is a fault)
        return "traceback", f"{note}: {traceback.format_exc()[-1200:]}"
    return ("same" if repr(read(path)) == repr(first) else "silent"), f"{note}: read otherwise the second time"


class _RowError(Exception):
    """A row that is refused."""


def _read_recipe(path: Path) -> object:
    return load_recipe(path).to_yaml()


def _read_table(path: Path) -> object:
    table = read_table(path)
    if any(len(column) != len(table.rows) for column in table.columns.values()):
        raise AssertionError("columns of unlike lengths")
    columns = {name: [repr(value) for value in column] for name, column in table.columns.items()}
    return list(table.rows), columns, dict(table.malformed)


def _read_captions(path: Path) -> object:
    try:
        return captions_in(path.read_bytes().decode("utf-8", errors="surrogateescape"))
    except ValueError as error:
        raise _RowError from error


def _read_image(path: Path) -> object:
    find_image_problem(path)
    image = decode_image(path.read_bytes())
    return image.size, image.tobytes()[:100]


def _read_archive(path: Path, scratch: Path) -> object:
    try:
        return sorted(cache_archive(path).listing.images)
    finally:
        shutil.rmtree(scratch / "cache", ignore_errors=True)


def _mutate(content: bytes, generator: random.Random) -> bytes:
    mutated = bytearray(content)
    for _ in range(generator.choice([0, 1, 1, 1, 2, 3, 8])):
        size = len(mutated)
        at = generator.randrange(size + 1)
        what = generator.randrange(7)
        if what == 0 and size:
            mutated[min(at, size - 1)] ^= 1 << generator.randrange(8)
        elif what == 1:
            mutated[at:at] = generator.choice(_INSERTED) * generator.choice([1, 1, 1, 50])
        elif what == 2:
            del mutated[at : at + generator.choice([1, 4, 40, 4000])]
        elif what == 3:
            mutated[at:at] = mutated[max(0, at - generator.choice([1, 20, 300])) : at]
        elif what == 4:
            del mutated[at:]
        elif what == 5 and size:
            lines = mutated.split(b"\n")
            generator.shuffle(lines)
            mutated = bytearray(b"\n".join(lines))
        else:
            mutated[at : at + 4] = generator.randbytes(4)
    return bytes(mutated)


def _tables() -> list[bytes]:
    rows = [
        {"image": "a/1.jpg", "text": 'it "is", one\nof two', "label": 0, "captions": ["a b", "c"]},
        {"image": "a/2.jpg", "text": "naïve; 2\ttabs", "label": 1.5, "captions": ["d"]},
        {"image": "b/3.jpg", "text": "", "label": None, "captions": []},
    ]
    delimited = [
        separator.join(["image", "text", "label"])
        + "".join(f'\n{row["image"]}{separator}"{str(row["text"])}"{separator}{row["label"]}' for row in rows)
        for separator in (",", ";", "\t")
    ]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    texts = [*delimited, "\n".join(map(json.dumps, rows)), json.dumps(rows, indent=1)]
    encoded = [text.encode(encoding) for text in texts for encoding in ("utf-8", "utf-16", "cp1252")]
    return [*encoded, sink.getvalue()]


def _captions() -> list[bytes]:
    lists = "['a' 'b'] ['a',\"b's\"] ('a','b') [] [nan,'a'] ['a',] [['a'],['b']]".replace("' '", "'\n '")
    texts = [
        *lists.split(" "),
        "['a' 'b']",
        "['a\n b'\n 'c']",
        "None",
        "a dog; a cat",
        '["a", "b"]',
        "{'a': 1}",
        "  a  ",
    ]
    return [text.encode() for text in texts]


def _images() -> list[bytes]:
    contents = []
    for mode in ("RGB", "L", "RGBA", "P", "CMYK", "I;16"):
        image = Image.new("L" if mode == "I;16" else "RGB", (24, 18), 90).convert(mode)
        for kind in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"):
            sink = io.BytesIO()
            with contextlib.suppress(OSError, ValueError):
                image.save(sink, kind)
                contents.append(sink.getvalue())
    return contents


def _archives() -> list[bytes]:
    import zipfile

    picture = _images()[0]
    tar, archive = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as writer, zipfile.ZipFile(archive, "w") as other:
        for name in ("cats/1.jpg", "dogs/2.jpg", "dogs/ü.jpg"):
            member = tarfile.TarInfo(name)
            member.size = len(picture)
            writer.addfile(member, io.BytesIO(picture))
            other.writestr(name, picture)
    return [tar.getvalue(), archive.getvalue()]
