"""A page whose model is behind `mmhf serve` answers as one that holds the model itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mmhf.data.images import decode_image
from mmhf.errors import InputError
from mmhf.inference.demo.page import Page
from mmhf.inference.demo.served import ServedSubject
from mmhf.inference.demo.subjects import load_subject
from mmhf.inference.serving.app import create_app
from mmhf.inference.serving.limits import Limits
from mmhf.inference.serving.shelf import Asked, Found, Shelf
from tests.test_serving_examples import listening

FAMILIES = ("fusion", "fusion with columns", "image classifier", "captioner", "captioner with prompt", "dual encoder")
COLUMNS = {"fusion with columns": {"age": "61", "site": "face"}, "captioner with prompt": {"kind": "the frog"}}
POOL = ["a red frog", "a lamp", "weapon on a shield", "sitting"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def server(tiny_model) -> Iterator[str]:
    asked = [Asked(family, str(tiny_model(family))) for family in FAMILIES]
    shelf = Shelf(asked, lambda path: Found(Path(path), None, ""), Limits(), device=CPU)
    shelf.load()
    with listening(create_app(shelf, key="secret")) as url:
        yield url


@pytest.mark.parametrize("family", FAMILIES)
def test_its_answers_are_those_of_the_model(server, tiny_model, picture, family):
    image = decode_image(picture)
    served = ServedSubject(server, family, captions=POOL, key="secret")
    own = load_subject(tiny_model(family), captions=POOL, device=CPU)
    assert (served.family, served.takes_text) == (own.family, own.takes_text)
    assert served.columns == own.columns
    for text in ("frog, lamp", ""):
        answer, expected = (each.answer(image, text, COLUMNS.get(family, {})) for each in (served, own))
        assert answer.probabilities == pytest.approx(expected.probabilities, abs=1e-6)
        assert answer.caption == expected.caption
        assert dict(answer.nearest) == pytest.approx(dict(expected.nearest), abs=1e-6)
    assert Page(served, family, [])._explanation_components() == []


def test_what_cannot_be_asked_is_named(server):
    with pytest.raises(InputError, match="several models; name one of fusion, fusion with columns, image classifier"):
        ServedSubject(server, key="secret")
    with pytest.raises(InputError, match="no model 'lamps'; name one of"):
        ServedSubject(server, "lamps", key="secret")
    with pytest.raises(InputError, match="The API key is missing or wrong"):
        ServedSubject(server, "fusion")
    with pytest.raises(InputError, match="127.0.0.1:9: the server does not answer"):
        ServedSubject("http://127.0.0.1:9")
    with pytest.raises(InputError, match="does not answer|no address"):
        ServedSubject("nowhere")


def test_another_server_is_no_mmhf_serve():
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"<html>"})

    with listening(app) as url, pytest.raises(InputError, match="this is no mmhf serve"):
        ServedSubject(url)
