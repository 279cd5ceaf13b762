"""A released dual encoder in sentence-transformers: the embeddings of `mmhf embed`, with mmhf and without."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from clean_environment import make_clean_environment
from PIL import Image
from saved_families import save_tiny_family, write_image

from mmhf.hub.remote_code import add_remote_code
from mmhf.inference import JobSettings
from mmhf.inference.embedders import embed_table

# The second is longer than the model reads.
TEXTS = ["a frog on the lamp", "a photo of a lamp . " * 4 + "a frog", "frog"]
PROGRAM = """
import json, sys
from PIL import Image
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(sys.argv[1], trust_remote_code=True, device="cpu")
assert "mmhf" not in sys.modules and model.supports("image") and model.supports("text")
texts = json.loads(sys.argv[3])
print(json.dumps([model.encode([Image.open(sys.argv[2])] * len(texts)).tolist(), model.encode(texts).tolist()]))
"""


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, np.ndarray]]:
    """Folder of a release, a picture, and what `mmhf embed` says of it and of `TEXTS`."""
    folder = tmp_path_factory.mktemp("sentences")
    release, photo = save_tiny_family("dual encoder", folder / "release"), write_image(folder / "photo.png")
    add_remote_code(release)
    pd.DataFrame({"image": [photo.name] * len(TEXTS), "text": TEXTS}).to_csv(folder / "in.csv", index=False)
    embed_table(release, folder / "in.csv", folder / "out.parquet", JobSettings(device="cpu"))
    table = pd.read_parquet(folder / "out.parquet")
    return release, photo, {name: np.stack(table[f"{name}_embedding"]) for name in ("image", "text")}


def test_it_embeds_as_mmhf_does(embedded: tuple[Path, Path, dict[str, np.ndarray]]) -> None:
    from sentence_transformers import SentenceTransformer  # takes seconds, which other tests need not wait for

    release, photo, expected = embedded
    model = SentenceTransformer(str(release), trust_remote_code=True, device="cpu")
    with Image.open(photo) as picture:
        np.testing.assert_allclose(model.encode([picture] * len(TEXTS)), expected["image"], atol=1e-5)
    np.testing.assert_allclose(model.encode(TEXTS), expected["text"], atol=1e-5)
    assert np.abs(expected["text"][0] - expected["text"][2]).max() > 0.01
    np.testing.assert_allclose(
        model.similarity(expected["image"], expected["text"]), expected["image"] @ expected["text"].T, atol=1e-5
    )


def test_truncate_dim_gives_what_dimensions_gives(
    embedded: tuple[Path, Path, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    release, photo, whole = embedded
    model = SentenceTransformer(str(release), trust_remote_code=True, device="cpu", truncate_dim=4)
    settings = JobSettings(device="cpu")
    embed_table(release, photo.parent / "in.csv", tmp_path / "out.parquet", settings, dimensions=4)
    table = pd.read_parquet(tmp_path / "out.parquet")
    expected = {name: np.stack(table[f"{name}_embedding"]) for name in ("image", "text")}
    np.testing.assert_allclose(np.linalg.norm(expected["text"], axis=1), 1, atol=1e-5)
    for name, embeds in expected.items():
        prefix = whole[name][:, :4]
        np.testing.assert_allclose(embeds, prefix / np.linalg.norm(prefix, axis=1, keepdims=True), atol=1e-5)
    with Image.open(photo) as picture:
        images = model.encode([picture] * len(TEXTS), normalize_embeddings=True)
    np.testing.assert_allclose(images, expected["image"], atol=1e-5)
    np.testing.assert_allclose(model.encode(TEXTS, normalize_embeddings=True), expected["text"], atol=1e-5)


@pytest.mark.slow
def test_it_needs_no_mmhf(embedded: tuple[Path, Path, dict[str, np.ndarray]], tmp_path: Path) -> None:
    release, photo, expected = embedded
    python = make_clean_environment(tmp_path / "clean", "sentence-transformers")
    command = [python, "-c", PROGRAM, release, photo, json.dumps(TEXTS)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    images, texts = json.loads(done.stdout)
    np.testing.assert_allclose(images, expected["image"], atol=1e-5)
    np.testing.assert_allclose(texts, expected["text"], atol=1e-5)


def test_other_families_are_left_alone(tmp_path: Path) -> None:
    folder = save_tiny_family("image classifier", tmp_path / "release")
    add_remote_code(folder)
    assert not (folder / "modules.json").exists()
