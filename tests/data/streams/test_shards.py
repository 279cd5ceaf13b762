from __future__ import annotations

import gzip
import json
import os

import datasets
import fsspec
import pytest

from mmhf.data.streams.files import count_shards
from mmhf.data.streams.shards import ParquetShard, ShardFault, ShardImage, TarShard

ENDINGS = ("jpg", "png")


def read(url, caption: str = "txt", **options) -> tuple[list[ShardImage], list[ShardFault]]:
    samples = list(TarShard(str(url), ENDINGS, caption).read(**options))
    images = [sample for sample in samples if isinstance(sample, ShardImage)]
    return images, [sample for sample in samples if isinstance(sample, ShardFault)]


@pytest.fixture
def sound(tmp_path, write_tar):
    members = {f"d/{n:03d}.{ending}": f"{ending} {n}" for n in range(6) for ending in ("jpg", "json", "txt")}
    members |= {f"d/{n:03d}.json": json.dumps({"all": [f"a{n}", f"b{n}"], "one": f"c{n}"}) for n in range(6)}
    return write_tar("sound.tar", dict(sorted(members.items())))


def test_members_of_one_name_are_a_sample(sound):
    images, faults = read(sound)
    assert not faults and [image.number for image in images] == [1, 2, 3, 4, 5, 6]
    assert images[2] == ShardImage(3, "sound.tar/d/002", b"jpg 2", ["txt 2"])


@pytest.mark.parametrize(("caption", "expected"), [("json:all", ["a1", "b1"]), ("json:one", ["c1"])])
def test_captions_out_of_json(sound, caption, expected):
    assert read(sound, caption)[0][1].captions == expected


@pytest.mark.parametrize("compress", [False, True])
def test_behind_a_url_it_is_read_as_it_comes(sound, compress):
    content = gzip.compress(sound.read_bytes()) if compress else sound.read_bytes()
    fsspec.filesystem("memory").pipe_file("/shards/sound.tar", content)
    assert [image[2:] for image in read("memory://shards/sound.tar")[0]] == [image[2:] for image in read(sound)[0]]


def test_the_first_ending_that_is_there_is_the_image(write_tar):
    path = write_tar("t.tar", {"a.png": "png", "a.jpg": "jpg", "a.txt": "x", "b.PNG": "png", "b.txt": "y"})
    assert [image.content for image in read(path)[0]] == [b"jpg", b"png"]


def test_bad_samples_are_named_and_the_rest_is_used(write_tar):
    path = write_tar(
        "t.tar",
        {
            "0.jpg": "p", "0.txt": "fine",
            "1.jpg": "p", "1.txt": "  \n",
            "2.jpg": "p",
            "3.txt": "no picture",
            "4.jpg": "p", "4.txt": b"\xff\xfe\x00",
            "6.jpg": "p", "6.txt": "逆さま 🙃",
        },
    )  # fmt: skip
    images, faults = read(path)
    assert [image.captions for image in images] == [["fine"], ["逆さま 🙃"]]
    assert [(fault.number, fault.id, fault.reason, fault.key) for fault in faults] == [
        (2, "t.tar/1", "the image has no caption", "on_empty_text"),
        (3, "t.tar/2", "the image has no caption", "on_empty_text"),
        (4, "t.tar/3", "no member ends in .jpg, .png", "on_bad_image"),
        (5, "t.tar/4", "the .txt member is not UTF-8", "on_bad_row"),
    ]


@pytest.mark.parametrize(
    ("content", "reason"),
    [("{", "not JSON"), ("[1]", "not a JSON object"), ('{"all": 3}', "a caption is a int"), ("{}", "has no caption")],
)
def test_bad_json(write_tar, content, reason):
    [fault] = read(write_tar("t.tar", {"a.jpg": "p", "a.json": content}), "json:all")[1]
    assert reason in fault.reason


def test_two_members_of_one_ending(write_tar):
    images, [fault] = read(write_tar("t.tar", {"a.jpg": "p", "a.JPG": "q", "a.txt": "x", "b.jpg": "p", "b.txt": "y"}))
    assert [image.id for image in images] == ["t.tar/b"] and fault.reason == "two members end in .jpg"


def damage(path, how: str) -> None:
    """Damage the fourth sample of a tar of six."""
    content = bytearray(path.read_bytes())
    start = content.index(b"d/003.jpg")
    if how == "header":
        content[start : start + 512] = os.urandom(512)
    elif how == "cut in data":
        del content[start + 512 + 2 :]
    elif how == "cut in header":
        del content[start + 100 :]
    elif how == "cut between":
        del content[start:]
    path.write_bytes(content)


@pytest.mark.parametrize("with_images", [True, False])
@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("how", ["header", "cut in data", "cut in header", "cut between"])
def test_a_tar_that_is_damaged_in_its_middle_gives_what_comes_before(sound, how, remote, with_images):
    damage(sound, how)
    url = str(sound)
    if remote:
        fsspec.filesystem("memory").pipe_file("/shards/damaged.tar", sound.read_bytes())
        url = "memory://shards/damaged.tar"
    images, [fault] = read(url, with_images=with_images)
    # Where damage begins between two samples, nobody can say that the one before it was whole.
    kept = 3 if how == "cut in data" else 2
    assert [image.captions for image in images] == [[f"txt {n}"] for n in range(kept)]
    assert fault.key == "on_bad_shard" and "is damaged or cannot be read" in fault.reason
    assert f"what it has from sample {len(images) + 1} on is left out" in fault.reason


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"\0" * 100])
def test_what_is_no_tar_at_all(tmp_path, content):
    (tmp_path / "t.tar").write_bytes(content)
    images, [fault] = read(tmp_path / "t.tar")
    assert not images and fault.number == 1 and fault.key == "on_bad_shard"
    images, [fault] = read(tmp_path / "nowhere.tar")
    assert not images and "is missing" in fault.reason


def test_counting_finds_the_samples_that_reading_finds_and_is_kept(sound, write_tar, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    other = write_tar("other.tar", {"a.jpg": "p", "a.txt": "x", "b.jpg": "p"})
    shards = [TarShard(str(path), ENDINGS, "json:all" if path == sound else "txt") for path in (sound, other)]
    counts = count_shards(shards)
    assert [(count.images, count.captions, len(count.faults)) for count in counts] == [(6, 12, 0), (1, 1, 1)]
    monkeypatch.setattr(TarShard, "read", None)
    assert count_shards(shards) == counts
    monkeypatch.undo()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write_tar("other.tar", {"a.jpg": "p", "a.txt": "x", "b.jpg": "p", "b.txt": "more"})
    assert [count.images for count in count_shards(shards)] == [6, 2]


def test_parquet_files(tmp_path, encode):
    columns = {
        "image": [{"bytes": encode(), "path": None}] * 4 + [None],
        "words": [["a", "b"], [""], ["c"], [], ["d"]],
        "key": ["k0", None, "k2", "k3", "k4"],
    }
    features = {"image": datasets.Image(), "words": datasets.List(datasets.Value("string"))}
    table = datasets.Dataset.from_dict(
        columns, features=datasets.Features({**features, "key": datasets.Value("string")})
    )
    table.to_parquet(tmp_path / "t.parquet")
    shard = ParquetShard(str(tmp_path / "t.parquet"), "image", ("words",), "key")
    read_whole, counted = list(shard.read()), list(shard.read(with_images=False))
    assert [sample[:2] for sample in read_whole] == [sample[:2] for sample in counted]
    images = [sample for sample in read_whole if isinstance(sample, ShardImage)]
    assert [(image.number, image.id, image.captions) for image in images] == [
        (1, "t.parquet/k0", ["a", "b"]), (3, "t.parquet/k2", ["c"]), (5, "t.parquet/k4", ["d"]),
    ]  # fmt: skip
    assert images[0].content == encode() and images[2].content == b""
    (tmp_path / "t.parquet").write_bytes((tmp_path / "t.parquet").read_bytes()[:-20])
    [fault] = shard.read()
    assert fault.key == "on_bad_shard"
