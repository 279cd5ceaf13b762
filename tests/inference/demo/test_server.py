from __future__ import annotations

import json
import os
import socket

import gradio as gr
import httpx
import psutil
import pytest

from mmhf.errors import InputError
from mmhf.inference.demo.page import MAX_TEXT, Page
from mmhf.inference.demo.server import is_loopback, read_captions, sample_captions, served_demo, write_examples
from mmhf.inference.demo.subjects import load_subject
from mmhf.sample_data import read_sample

CAPTIONS = ["a red frog", "a lamp"]
MAX_UPLOAD = 2**20


@pytest.fixture(scope="module")
def url(tiny_model):
    with served_demo(
        load_subject(tiny_model("fusion"), captions=CAPTIONS), name="tiny", max_upload=MAX_UPLOAD
    ) as address:
        yield address


@pytest.fixture
def page(tiny_model):
    return Page(load_subject(tiny_model("fusion"), captions=CAPTIONS), "tiny", [])


def upload(url: str, content: bytes) -> httpx.Response:
    return httpx.post(f"{url}gradio_api/upload", files={"files": ("picture.jpg", content)}, trust_env=False)


def press(url: str, path: str, text: str = "a red frog") -> dict:
    """What the browser does when the button is pressed: the event's last message."""
    config = httpx.get(f"{url}config", trust_env=False).json()
    identifiers = {
        component["props"].get("elem_id"): component["id"] for component in config["components"] if component["props"]
    }
    inputs = [identifiers["image"], identifiers["text"]]
    event = next(
        each["id"]
        for each in config["dependencies"]
        if each["inputs"] == inputs and identifiers["label"] in each["outputs"]
    )
    image = {"path": path, "meta": {"_type": "gradio.FileData"}}
    body = {"data": [image, text], "fn_index": event, "session_hash": "test"}
    httpx.post(f"{url}gradio_api/queue/join", json=body, trust_env=False).raise_for_status()
    with httpx.stream("GET", f"{url}gradio_api/queue/data?session_hash=test", timeout=300, trust_env=False) as answer:
        for line in answer.iter_lines():
            message = json.loads(line.removeprefix("data: ")) if line.startswith("data: ") else {}
            if message.get("msg") == "process_completed":
                return message
    raise AssertionError("the event did not complete")


def test_listens_on_loopback_alone(url):
    port = int(url.rstrip("/").rsplit(":", 1)[1])
    sockets = [each for each in psutil.Process().net_connections(kind="tcp") if each.status == psutil.CONN_LISTEN]
    assert [each.laddr.ip for each in sockets if each.laddr.port == port] == ["127.0.0.1"]


def test_a_large_file_is_refused_while_it_is_sent(url):
    refused = upload(url, b"\xff\xd8\xff" + bytes(MAX_UPLOAD))
    assert refused.status_code == 413
    assert str(MAX_UPLOAD) in refused.text
    assert upload(url, bytes(MAX_UPLOAD - 10)).status_code == 200


def test_uploads_are_answered(url, picture):
    path = upload(url, picture.read_bytes()).json()[0]
    message = press(url, path)
    assert message["success"]
    label, notice = message["output"]["data"]
    assert label["label"] in ("fake", "true")
    assert notice == ""


def test_other_files_of_this_machine_are_not_read(url, picture):
    message = press(url, str(picture))
    assert not message["success"]
    assert "label" not in json.dumps(message["output"].get("data", ""))


def test_an_upload_that_is_no_image_is_refused_and_shown_as_text(url):
    path = upload(url, b"<html><script>alert(1)</script></html>").json()[0]
    label, notice = press(url, path)["output"]["data"]
    assert label is None or not label.get("confidences")
    assert "Refused" in notice and "not an image" in notice
    assert "<html>" not in notice and "&lt;html&gt;" in notice


def test_no_image_and_too_much_text_are_refused(page, picture):
    assert "no image is chosen" in page._ask(None, "a red frog")[-1]
    upload = {"path": str(picture)}
    assert f"more than {MAX_TEXT}" in page._ask(upload, "a" * (MAX_TEXT + 1))[-1]
    assert page._explain(upload, "a" * (MAX_TEXT + 1)) == [None, None]
    assert page._ask(upload, "a" * MAX_TEXT)[-1] == ""


def test_the_page_has_a_field_for_each_column(tiny_model, picture):
    page = Page(load_subject(tiny_model("fusion with columns"), captions=CAPTIONS), "tiny", [])
    kinds = {
        each["props"]["elem_id"]: each["type"]
        for each in page.build().get_config_file()["components"]
        if str(each["props"].get("elem_id")).startswith("column-")
    }
    assert kinds == {"column-age": "textbox", "column-site": "dropdown"}
    upload = {"path": str(picture)}
    first, second = page._ask(upload, "a frog", "61", "face"), page._ask(upload, "a frog", "", "")
    assert first[-1] == second[-1] == "" and first[0] != second[0]
    assert "columns.age: &#x27;old&#x27; is no number" in page._ask(upload, "a frog", "old", "face")[-1]
    assert page._explain(upload, "a frog", "61", "face")[0] is not None


def test_uploads_are_gone_when_the_page_is_closed(tiny_model, picture):
    with served_demo(load_subject(tiny_model("image classifier"), captions=CAPTIONS), name="tiny") as address:
        path = upload(address, picture.read_bytes()).json()[0]
        assert os.path.getsize(path) == picture.stat().st_size
    assert not os.path.exists(path)
    with pytest.raises(httpx.ConnectError):
        httpx.get(address, trust_env=False)


@pytest.mark.slow
def test_a_taken_port_is_named(tiny_model):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        demo = served_demo(load_subject(tiny_model("image classifier"), captions=CAPTIONS), name="tiny", port=port)
        with pytest.raises(OSError, match=str(port)), demo:
            pass


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("10.1.2.3", False), ("a.b", False)],
)
def test_loopback_addresses(host, expected):
    assert is_loopback(host) is expected


@pytest.mark.parametrize("family", ["fusion", "image classifier", "captioner", "dual encoder"])
@pytest.mark.slow
def test_examples_suit_the_model(tiny_model, family, tmp_path):
    subject = load_subject(tiny_model(family), captions=CAPTIONS)
    rows = write_examples(tmp_path, subject)
    assert len(rows) == 6
    assert len({row[0] for row in rows}) == 6
    assert {len(row) for row in rows} == {2 if subject.takes_text else 1}
    assert isinstance(Page(subject, "tiny", rows).build(), gr.Blocks)


def test_captions_are_read_from_a_file(tmp_path):
    path = tmp_path / "captions.txt"
    path.write_text("a frog\n\n  ein grüner Frosch \n", encoding="utf-8")
    assert read_captions(path) == ["a frog", "ein grüner Frosch"]
    assert len(sample_captions()) == read_sample("test").num_rows
    path.write_text("\n \n")
    with pytest.raises(InputError, match="no caption"):
        read_captions(path)
    path.write_bytes("a gr\xfcner".encode("latin-1"))
    with pytest.raises(InputError, match="byte 4 is not UTF-8"):
        read_captions(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_captions(tmp_path / "absent.txt")
