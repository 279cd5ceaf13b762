"""Fixtures for whole runs: tiny encoders, a tiny Fakeddit folder made of the embedded sample, a tiny recipe."""

from __future__ import annotations

import mmhf  # noqa: F401  (first: it makes torchvision importable beside a CPU build of torch)

import copy  # isort: skip
import csv
import gc
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

# What a developer's shell says about the Hub: tests bring their own Hub, or need none. Read once, when the libraries
# below are imported, and by the programs that tests start.
os.environ.update(HF_HUB_OFFLINE="0", TRANSFORMERS_OFFLINE="0", HF_DATASETS_OFFLINE="0")
os.environ.pop("HF_ENDPOINT", None)
os.environ.pop("HF_TOKEN", None)

import fsspec
import pytest
import torch
import yaml
from matplotlib.figure import Figure
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from mmhf.sample_data import read_sample

sys.path.insert(0, str(Path(__file__).parent))  # pytest's importlib mode leaves the folders of tests out of it

from cloud_emulators import BUCKET, started_emulators

# A shell without job control has Ctrl-C ignored by what it runs in the background, and by the programs started there.
signal.signal(signal.SIGINT, signal.default_int_handler)

_SAVEFIG = Figure.savefig
# What the tests of a family have in their path or name; a family that is not here has its own name there.
_FAMILY_WORDS = {
    "fusion": ("fusion", "image_text_classification"),
    "image_classifier": ("image_classif",),
    "captioner": ("caption",),
    "dual_encoder": ("dual_encoder", "contrastive", "retrieval", "zero_shot"),
}
_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_FAKEDDIT_ROWS = {"multimodal_train.tsv": 32, "multimodal_validate.tsv": 16, "multimodal_test_public.tsv": 12}
_FAKEDDIT_SPLITS = dict(zip(_FAKEDDIT_ROWS, ("train", "validation", "test"), strict=True))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--family", help="only the tests of one family, such as captioner")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests whose path or name has a word of `--family` in it."""
    family = config.getoption("--family")
    if family is None:
        return
    words = _FAMILY_WORDS.get(family, (family,))
    kept = [item for item in items if any(word in item.nodeid.lower() for word in words)]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


def pytest_collection_finish() -> None:
    """Trainer collects garbage at each start: what libraries made when they were imported is none."""
    gc.collect()
    gc.freeze()


def _wordpiece_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    words = sorted({word for text in texts for word in re.findall(r"\w+", text.lower())})
    pieces = sorted({piece for word in words for piece in (word[0], *(f"##{letter}" for letter in word[1:]))})
    vocabulary = {token: index for index, token in enumerate([*_SPECIAL, *dict.fromkeys([*pieces, *words])])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    )
    roles = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="[MASK]", **roles)


@pytest.fixture(autouse=True)
def _nothing_is_left_in_the_checkout(pytestconfig: pytest.Config) -> Iterator[None]:
    """A test that writes into the folder it was started in would have its files committed one day."""
    before = set(os.listdir(pytestconfig.rootpath))
    yield
    left = {name for name in os.listdir(pytestconfig.rootpath) if not name.startswith(".")} - before
    assert not left, f"a test left {', '.join(sorted(left))} in the checkout"


@pytest.fixture(scope="session", autouse=True)
def _figures_are_blank() -> Iterator[None]:
    """Drawing is most of a tiny run's time. Figures are made, and saved as blank pages of their size."""

    def save_blank(figure: Figure, path: Any, *, dpi: float = 100, **_: Any) -> None:
        width, height = (round(inches * dpi) for inches in figure.get_size_inches())
        Image.new("RGB", (width, height), "white").save(path, "PNG")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", save_blank)
        yield


@pytest.fixture
def drawn_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of what figures show."""
    monkeypatch.setattr(Figure, "savefig", _SAVEFIG)


@pytest.fixture
def tmp_path(tmp_path: Path) -> Path:
    """Images are looked for around a table, too: those of other tests are out of reach here."""
    folder = tmp_path / "far" / "from" / tmp_path.name
    folder.mkdir(parents=True)
    return folder


@pytest.fixture(scope="session", autouse=True)
def _own_features_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Features of frozen encoders go into a folder of the session, also those of programs that tests start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMHF_FEATURES", str(tmp_path_factory.mktemp("features")))
        yield


@pytest.fixture(scope="session")
def text_encoder_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of 2 layers, width 32, whose tokenizer knows the words of the sample's captions."""
    folder = tmp_path_factory.mktemp("encoders") / "tiny_bert"
    tokenizer = _wordpiece_tokenizer(read_sample("train")["caption"].to_pylist())
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, pad_token_id=0, **sizes)
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def fakeddit_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fakeddit's files, with drawings of the sample under their own name (true) or the next drawing's (fake)."""
    folder = tmp_path_factory.mktemp("data") / "fakeddit"
    (folder / "public_image_set").mkdir(parents=True)
    for name, num_rows in _FAKEDDIT_ROWS.items():
        _write_fakeddit_split(folder, name, read_sample(_FAKEDDIT_SPLITS[name]).slice(0, num_rows + 1).to_pylist())
    return folder


def _write_fakeddit_split(folder: Path, name: str, drawings: list[dict[str, Any]]) -> None:
    with (folder / name).open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, delimiter="\t")
        writer.writerow(["id", "clean_title", "2_way_label", "3_way_label", "6_way_label", "hasImage"])
        for index, (drawing, other) in enumerate(zip(drawings, drawings[1:], strict=False)):
            row_id, is_true = f"{_FAKEDDIT_SPLITS[name]}{index}", index % 2
            title = (drawing if is_true else other)["caption"]
            writer.writerow([row_id, title, is_true, 0 if is_true else 2, 0 if is_true else 1 + index // 2 % 5, True])
            (folder / "public_image_set" / f"{row_id}.jpg").write_bytes(drawing["image"]["bytes"])


@pytest.fixture(scope="session")
def _tiny_recipe(text_encoder_dir: Path, fakeddit_dir: Path) -> dict[str, Any]:
    return {
        "task": "image-text-classification",
        "model": {
            "vision": {"backbone": "timm/test_efficientnet", "pretrained": False},
            "text": {"backbone": str(text_encoder_dir), "pooling": "mean"},
            "embedding_dim": 16,
            "fusion": {"hidden_dims": [8], "dropout": 0.1},
        },
        "data": {"source": "fakeddit", "path": str(fakeddit_dir), "image_size": 32, "max_length": 16},
        "training": {"per_device_train_batch_size": 8, "learning_rate": 1e-2, "logging_steps": 1, "max_steps": 2},
    }


def _merge(values: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(values.get(key), dict):
            _merge(values[key], value)
        elif value is None:
            values.pop(key, None)
        else:
            values[key] = value
    return values


@pytest.fixture(scope="session")
def write_tiny_recipe(_tiny_recipe: dict[str, Any]) -> Callable[[Path, Mapping[str, Any]], Path]:
    """Write a recipe of a tiny fusion classifier, which trains in a second, with changes; None takes a key away."""

    def write(path: Path, changes: Mapping[str, Any]) -> Path:
        values = _merge(copy.deepcopy(_tiny_recipe), changes)
        path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
        return path

    return write


@pytest.fixture
def tiny_recipe(write_tiny_recipe: Callable[[Path, Mapping[str, Any]], Path], tmp_path: Path) -> Callable[..., Path]:
    """The same for one test: its run folder is `run` in the test's own folder."""

    def write(changes: Mapping[str, Any] | None = None, *, name: str = "tiny") -> Path:
        changes = dict(changes or {})
        changes["training"] = {"output_dir": str(tmp_path / "run"), **changes.get("training", {})}
        return write_tiny_recipe(tmp_path / f"{name}.yaml", changes)

    return write


TWO_STAGES = [
    {"name": "head", "steps": 3, "train": ["fusion", "head"], "schedule": "cosine"},
    {"name": "all", "steps": 3, "train": "all", "learning_rate": {"vision": 1e-3, "text": 1e-3, "head": 5e-3}},
]


@pytest.fixture
def two_stages() -> dict[str, Any]:
    """Changes that make a tiny recipe train its head, then everything."""
    return {"training": {"max_steps": None}, "stages": copy.deepcopy(TWO_STAGES)}


@pytest.fixture(scope="session")
def cloud_environment() -> Iterator[dict[str, str]]:
    """Google's and Amazon's object stores on loopback, started once."""
    with started_emulators() as environment:
        yield environment


@pytest.fixture
def cloud_folders(cloud_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """A folder of one's own in each of the two, and credentials for them in the environment."""
    for name, value in cloud_environment.items():
        monkeypatch.setenv(name, value)
    for protocol in ("gs", "s3"):
        fsspec.get_filesystem_class(protocol).clear_instance_cache()  # a test may have made one that cannot connect
    return [f"{protocol}://{BUCKET}/{tmp_path.name}" for protocol in ("gs", "s3")]
