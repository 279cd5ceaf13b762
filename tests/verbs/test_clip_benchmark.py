"""Dual encoders on CLIP_benchmark's data sets: the numbers are those of CLIP_benchmark itself."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from clip_benchmark.datasets.builder import build_wds_dataset
from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval
from PIL import Image
from saved_families import write_family_run
from small_data import picture
from tiny_processors import WORDS
from torch.utils.data import DataLoader

from mmhf.cli import main
from mmhf.data.clip_benchmark import read_clip_benchmark
from mmhf.errors import InputError
from mmhf.inference.loading import load_model

NAMES = ["frog", "lamp", "shield", "weapon", "red", "green"]
"""Words that the tiny tokenizer knows: those that it does not are all the same to it."""


def write_tar(path: Path, members: Mapping[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def png(number: int) -> bytes:
    stream = io.BytesIO()
    Image.open(io.BytesIO(picture(number))).save(stream, "PNG")
    return stream.getvalue()


def write_set(folder: Path, ending: str, contents: list[str], *, shard: int = 7) -> Path:
    """A data set in CLIP_benchmark's layout; what it exports has names as these."""
    (folder / "test").mkdir(parents=True)
    starts = range(0, len(contents), shard)
    for tar, start in enumerate(starts):
        members: dict[str, bytes] = {}
        for number, content in enumerate(contents[start : start + shard], start):
            kind, image = ("png", png(number)) if number % 2 else ("jpg", picture(number))
            members |= {f"s{number:07}.{kind}": image, f"s{number:07}.{ending}": content.encode()}
        write_tar(folder / "test" / f"{tar}.tar", members)
    (folder / "test" / "nshards.txt").write_text(f"{len(starts)}\n")
    return folder


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets") / "wds_things"
    write_set(folder, "cls", [str(number * 5 % 6) for number in range(20)])
    (folder / "classnames.txt").write_text("".join(f"{name}\n" for name in NAMES))
    (folder / "zeroshot_classification_templates.txt").write_text("the {c}\na {c} on the lamp\n")
    return folder


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets") / "wds_captions"
    # No text twice: which of two equal ones is found first, nobody can say.
    pairs = [f"{one} {other}" for one in WORDS[:7] for other in WORDS[:7]]
    write_set(folder, "txt", ["\n".join(pairs[number * 3 : number * 3 + 1 + number % 3]) for number in range(16)])
    (folder / "dataset_type.txt").write_text("retrieval\n")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family_run(tmp_path_factory.mktemp("runs") / "clip", "dual encoder", seed=1, metrics={})


def accuracy(output: torch.Tensor, target: torch.Tensor, topk: tuple[int, ...]) -> list[float]:
    """CLIP_benchmark's own, which makes a float of an array of one number, as NumPy 2.4 no longer does."""
    predicted = output.topk(max(topk), 1, True, True)[1].t()
    correct = predicted.eq(target.view(1, -1).expand_as(predicted))
    return [correct[:k].reshape(-1).float().sum().item() / len(target) for k in topk]


class Rows(list[Any]):
    """Rows with the attribute that CLIP_benchmark reads of a data set."""

    classes: list[str]


class AsClip:
    """A dual encoder as CLIP_benchmark's code calls a model."""

    def __init__(self, run: Path) -> None:
        self.model, self.processor = load_model(run, device=torch.device("cpu"))

    def transform(self, image: Image.Image) -> torch.Tensor:
        return self.processor(images=image.convert("RGB"))["pixel_values"][0]

    def tokenizer(self, texts: list[str]) -> Any:
        return self.processor(text=list(texts))

    def encode_text(self, inputs: Any) -> torch.Tensor:
        return self.model(**inputs).text_embeds

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values=images).image_embeds

    def evaluate(self, folder: Path) -> dict[str, float]:
        dataset = build_wds_dataset("things", self.transform, data_dir=str(folder))
        if dataset.classes is None:
            loader = DataLoader(list(dataset), batch_size=4, collate_fn=lambda rows: tuple(zip(*rows, strict=True)))
            batches = [(torch.stack(images), texts) for images, texts in loader]
            return zeroshot_retrieval.evaluate(
                self, batches, self.tokenizer, "cpu", amp=False, recall_k_list=[1, 5, 10]
            )
        rows = Rows(dataset)
        rows.classes = dataset.classes
        loader = DataLoader(rows, batch_size=4)
        return zeroshot_classification.evaluate(
            self, loader, self.tokenizer, dataset.classes, dataset.templates, "cpu", amp=False
        )


def test_numbers_are_those_of_clip_benchmark(
    classes: Path, captions: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zeroshot_classification, "accuracy", accuracy)
    folders = ["--clip-benchmark", str(classes), "--clip-benchmark", str(captions)]
    assert main(["evaluate", str(run), *folders, "-o", str(tmp_path / "out"), "--batch-size", "3"]) == 0
    theirs = AsClip(run)
    for folder, task in ((classes, "zeroshot_classification"), (captions, "zeroshot_retrieval")):
        found = json.loads((tmp_path / "out" / f"{folder.name}_{task}.json").read_text())
        expected = theirs.evaluate(folder)
        assert found["metrics"] == pytest.approx(expected, abs=1e-6)
        assert len({0.0, *expected.values()}) > 1
        rest = {key: value for key, value in found.items() if key != "metrics"}
        assert rest == {
            "dataset": f"wds/{folder.name}",
            "model": "clip",
            "pretrained": "",
            "task": task,
            "language": "en",
        }


def test_rows_are_read_in_the_order_of_the_tars(classes: Path, captions: Path) -> None:
    data = read_clip_benchmark(classes)
    assert (data.is_retrieval, data.class_names) == (False, NAMES)
    assert data.rows["label"][:] == [number * 5 % 6 for number in range(20)]
    assert data.rows["row"][:] == list(range(1, 21))
    assert data.rows[7]["id"] == "1.tar/s0000007" and data.rows[7]["image"]["bytes"] == png(7)
    texts = read_clip_benchmark(captions).rows["captions"][:]
    assert [len(each) for each in texts[:4]] == [1, 2, 3, 1] and len(
        {text for of_one in texts for text in of_one}
    ) == 31


@pytest.mark.parametrize(("count", "acc5"), [(4, None), (5, 1.0)])
def test_of_few_classes_the_best_five_say_nothing(tmp_path: Path, run: Path, count: int, acc5: float | None) -> None:
    folder = write_set(tmp_path / "few", "cls", [str(number % count) for number in range(8)])
    (folder / "classnames.txt").write_text("\n".join(NAMES[:count]))
    (folder / "zeroshot_classification_templates.txt").write_text("the {c}")
    assert main(["evaluate", str(run), "--clip-benchmark", str(folder), "-o", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "few_zeroshot_classification.json").read_text())
    assert found["metrics"]["acc5"] == acc5


def test_what_is_wrong_is_named(tmp_path: Path, run: Path, classes: Path) -> None:
    def refused(folder: Path) -> str:
        with pytest.raises(InputError) as caught:
            read_clip_benchmark(folder)
        return str(caught.value)

    assert "no such folder" in refused(tmp_path / "absent")
    folder = write_set(tmp_path / "set", "cls", ["0", "1", "9"])
    assert "classnames.txt: is missing or empty" in refused(folder)
    (folder / "classnames.txt").write_text("frog\nlamp\n")
    assert "zeroshot_classification_templates.txt: is missing" in refused(folder)
    (folder / "zeroshot_classification_templates.txt").write_text("a {c}\n")
    assert "0.tar/s0000002: the class" in refused(folder) and "none of the 2" in refused(folder)
    (folder / "test" / "nshards.txt").write_text("3")
    assert "has 1 tars, and nshards.txt says 3" in refused(folder)
    (folder / "test" / "nshards.txt").unlink()
    whole = (folder / "test" / "0.tar").read_bytes()
    (folder / "test" / "0.tar").write_bytes(whole[: len(whole) // 2])
    assert "0.tar: the file is damaged" in refused(folder)
    (folder / "dataset_type.txt").write_text("multilabel")
    assert "'multilabel' is not measured" in refused(folder)
    (folder / "test" / "0.tar").unlink()
    (folder / "dataset_type.txt").write_text("retrieval")
    assert "has no tars" in refused(folder)
    classifier = write_family_run(tmp_path / "classifier", "image classifier", seed=0, metrics={})
    assert main(["evaluate", str(classifier), "--clip-benchmark", str(classes)]) == 2
    assert main(["evaluate", "--predictions", "x.csv", "--clip-benchmark", str(classes)]) == 2


def test_a_broken_image_is_listed_and_left_out(tmp_path: Path, run: Path) -> None:
    folder = write_set(tmp_path / "broken", "cls", [str(number % 2) for number in range(6)])
    (folder / "classnames.txt").write_text("frog\nlamp\n")
    (folder / "zeroshot_classification_templates.txt").write_text("a {c}\n")
    members = {f"s{number:07}.jpg": picture(number) if number else b"no image" for number in range(6)}
    members |= {f"s{number:07}.cls": str(number % 2).encode() for number in range(6)}
    write_tar(folder / "test" / "0.tar", dict(sorted(members.items())))
    assert main(["evaluate", str(run), "--clip-benchmark", str(folder), "-o", str(tmp_path / "out")]) == 0
    accuracy = json.loads((tmp_path / "out" / "broken_zeroshot_classification.json").read_text())["metrics"]["acc1"]
    assert accuracy * 5 == pytest.approx(round(accuracy * 5))
    assert "0.tar/s0000000" in (tmp_path / "out" / "bad_examples.csv").read_text()
