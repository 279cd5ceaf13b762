"""`handler.py` of a release, as an endpoint of the Hub loads it and calls it."""

from __future__ import annotations

import base64
import importlib.util

import pytest
from closeness import check_alike
from PIL import Image
from saved_families import FAMILIES, write_family_run, write_image

from mmhf import pipeline
from mmhf.hub.remote_code import HANDLER_FILE, add_remote_code


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """A release folder of a family, and what its handler makes."""
    root, made = tmp_path_factory.mktemp("handlers"), {}

    def load(name):
        if name not in made:
            folder = write_family_run(root / name.replace(" ", "_"), name, seed=0, metrics={})
            add_remote_code(folder)
            spec = importlib.util.spec_from_file_location(f"handler_of_{folder.name}", folder / HANDLER_FILE)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            made[name] = folder, module.EndpointHandler(str(folder))
        return made[name]

    return load


@pytest.fixture
def photo(tmp_path):
    return write_image(tmp_path / "photo.png")


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.slow
def test_a_handler_answers_as_the_pipeline(name, release, photo):
    family = FAMILIES[name]
    folder, handler = release(name)
    expected = pipeline(family.pipeline_task, model=str(folder))(*family.arguments(str(photo)), **family.call)
    encoded = base64.b64encode(photo.read_bytes()).decode()
    (inputs,) = family.arguments(encoded)
    check_alike(handler({"inputs": inputs, "parameters": family.call}), expected)
    (inputs,) = family.arguments(f"data:image/png;base64,{encoded}")
    check_alike(handler({"inputs": [inputs, inputs], "parameters": family.call}), [expected, expected])
    (inputs,) = family.arguments(Image.open(photo).convert("RGB"))
    check_alike(handler({"inputs": inputs, "parameters": family.call}), expected)


def test_a_handler_opens_neither_paths_nor_addresses(release, photo):
    _, handler = release("image classifier")
    for given in (str(photo), photo.as_uri(), "http://127.0.0.1:9/photo.png", "", 7, b"no image", {"image": None}):
        with pytest.raises(ValueError, match="inputs"):
            handler({"inputs": given})
    with pytest.raises(ValueError, match="inputs: missing"):
        handler({})
