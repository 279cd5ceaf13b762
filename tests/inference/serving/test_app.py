"""Each family's endpoints in this process: the numbers of `predict`, `embed` and `search`, and who is refused how."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import re
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image
from saved_families import save_tiny_family

from mmhf import pipeline
from mmhf.errors import InputError
from mmhf.inference import JobSettings, predict_table
from mmhf.inference.embedders import embed_table, load_embedder
from mmhf.inference.search import EmbeddingIndex, embed_query
from mmhf.inference.serving.app import create_app
from mmhf.inference.serving.limits import Limits
from mmhf.inference.serving.schemas import Prediction
from mmhf.inference.serving.services import PredictService
from mmhf.inference.serving.shelf import Asked, Found, Shelf
from mmhf.verbs._console import log_to_console

TEXTS = ["a red frog", "lamp on a shield", "frog"]


@pytest.fixture
def images(images_dir):
    return [images_dir / f"{number}.png" for number in range(3)]


def data_url(path):
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def pairs(images):
    return [{"image": data_url(path), "text": text} for path, text in zip(images, TEXTS, strict=True)]


def predicted(model_dir, images, tmp_path, *, batch_size):
    table = pd.DataFrame({"image": [path.name for path in images], "text": TEXTS})
    table.to_csv(tmp_path / "in.csv", index=False)
    output = tmp_path / f"out{batch_size}.parquet"
    settings = JobSettings(image_root=images[0].parent, batch_size=batch_size, device="cpu")
    predict_table(model_dir, tmp_path / "in.csv", output, settings)
    return pd.read_parquet(output)


def assert_same(predictions, expected):
    for prediction, (_, row) in zip(predictions, expected.iterrows(), strict=True):
        assert prediction.get("label") == row.get("label") and prediction.get("caption") == row.get("caption")
        for name, value in (prediction.get("probabilities") or {}).items():
            assert value == row[f"probability_{name}"]  # to the bit
        assert prediction.get("confidence") == row.get("confidence")


@pytest.mark.parametrize("family", ["fusion", "image classifier", "captioner"])
@pytest.mark.slow
def test_a_served_model_predicts_what_predict_does(family, serve, tiny_model, images, tmp_path):
    model = tiny_model(family)
    client = serve({"m": model})
    inputs = pairs(images)
    if family != "fusion":
        for each in inputs:
            del each["text"]
    together = client.post("/v1/predict", json={"inputs": inputs})
    assert together.status_code == 200, together.text
    assert together.json()["model"] == "m" and together.json()["version"] == "v1.0"
    assert_same(together.json()["predictions"], predicted(model, images, tmp_path, batch_size=3))
    alone = [client.post("/v1/predict", json={"inputs": each}).json()["predictions"][0] for each in inputs]
    assert_same(alone, predicted(model, images, tmp_path, batch_size=1))
    files = [("image", (path.name, path.read_bytes())) for path in images]
    fields = {"text": TEXTS} if family == "fusion" else {}
    form = client.post("/v1/predict", files=files, data=fields)
    assert form.json() == together.json()


def test_options_reach_the_predictor(serve, tiny_model, images, encoded):
    client = serve({"fusion": tiny_model("fusion"), "captioner": tiny_model("captioner")})
    given = {"model": "fusion", "inputs": {"image": encoded, "text": "frog"}}
    labels = [
        client.post("/v1/predict", json={**given, "threshold": value}).json()["predictions"][0]["label"]
        for value in (0.0, 1.0)
    ]
    assert labels == ["true", "fake"]
    short = client.post(
        "/v1/predict",
        data={"model": "captioner", "generation": json.dumps({"max_new_tokens": 1, "num_beams": 2})},
        files={"image": base64.b64decode(encoded)},
    )
    assert len(short.json()["predictions"][0]["caption"].split()) <= 1
    note = client.post("/v1/predict", json={"model": "fusion", "inputs": {"image": encoded, "text": " "}}).json()
    assert "text is empty" in note["predictions"][0]["note"]
    for wrong, reason in [
        ({**given, "generation": {"num_beams": 2}}, "writes no captions"),
        ({**given, "stream": True}, "only captions"),
        ({**given, "model": "captioner", "inputs": {"image": encoded}, "threshold": 0.5}, "no labels"),
        ({**given, "model": "captioner"}, "reads images alone"),
        ({"inputs": {"image": encoded}}, "name one of fusion, captioner"),
        ({"model": "captioner", "inputs": {"image": encoded}, "generation": {"num_beams": 99}}, "num_beams"),
        ({"model": "captioner", "inputs": {"image": encoded}, "stream": True, "generation": {"num_beams": 2}}, "1"),
    ]:
        answer = client.post("/v1/predict", json=wrong)
        assert answer.status_code == 422 and reason in answer.json()["error"], answer.text


def test_a_caption_comes_piece_by_piece(serve, tiny_model, encoded):
    client = serve({"m": tiny_model("captioner")})
    body = {"inputs": {"image": encoded}}
    whole = client.post("/v1/predict", json=body).json()
    answer = client.post("/v1/predict", json={**body, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [json.loads(line.removeprefix("data: ")) for line in answer.text.splitlines() if line]
    assert events[-1] == whole
    assert "".join(event["text"] for event in events[:-1]) == whole["predictions"][0]["caption"]
    assert len(events) > 2
    bad = client.post("/v1/predict", json={"inputs": {"image": "aGVsbG8="}, "stream": True})
    assert bad.status_code == 422 and "not an image" in bad.json()["error"]


@pytest.fixture(scope="module")
def index(tiny_model, images_dir, rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("index")
    table = pd.DataFrame(rows).assign(score=float("nan"))
    table.to_csv(folder / "in.csv", index=False)
    settings = JobSettings(image_root=images_dir, device="cpu")
    embed_table(tiny_model("dual encoder"), folder / "in.csv", folder / "index.parquet", settings)
    return folder / "index.parquet"


def test_a_dual_encoder_embeds_searches_and_compares(serve, tiny_model, images, index):
    model = tiny_model("dual encoder")
    client = serve({"clip": model}, indexes=[Asked("index", str(index))])
    embedder = load_embedder(model, device=torch.device("cpu"))

    inputs = [{"image": data_url(images[0])}, {"text": TEXTS[0]}]
    made = client.post("/v1/embed", json={"inputs": inputs}).json()["embeddings"]
    by_image, by_text = embed_query(embedder, image=images[0]), embed_query(embedder, text=TEXTS[0])
    assert made == [{"image": by_image.tolist()}, {"text": by_text.tolist()}]
    both = client.post("/v1/embed", json={"inputs": {**inputs[0], **inputs[1]}}).json()["embeddings"]
    assert both == [{**made[0], **made[1]}]

    short = client.post("/v1/embed", json={"inputs": inputs, "dimensions": 4}).json()["embeddings"]
    prefix = torch.nn.functional.normalize(by_image[:4], dim=0)
    assert short[0]["image"] == pytest.approx(prefix.tolist(), abs=1e-6) and len(short[1]["text"]) == 4

    found = client.post("/v1/search", json={"inputs": inputs, "top": 4}).json()
    assert found["index"] == "index"
    for rows, query in zip(found["results"], (by_image, by_text), strict=True):
        hits = EmbeddingIndex(index).search(query, top=4)
        assert [row["row"] for row in rows] == [hit.row for hit in hits]
        assert [row["score"] for row in rows] == pytest.approx([hit.score for hit in hits], abs=1e-6)
        assert rows[0]["values"]["text"] == hits[0].values["text"]
    assert found["results"][0][0]["score"] == pytest.approx(1, abs=1e-5)

    labels = ["a frog", "a lamp", "shield"]
    answer = client.post("/v1/zero-shot", json={"inputs": inputs[:1], "labels": labels}).json()["predictions"][0]
    classify = pipeline("zero-shot-image-classification", model=str(model), device="cpu")
    expected = {each["label"]: each["score"] for each in classify(str(images[0]), candidate_labels=labels)}
    assert answer["probabilities"] == pytest.approx(expected, abs=1e-6)
    assert answer["label"] == max(expected, key=expected.get)

    for path, body, reason in [
        ("search", {"inputs": {**inputs[0], **inputs[1]}}, "an image or a text"),
        ("search", {"inputs": inputs, "index": "other"}, "none of that name"),
        ("search", {"inputs": inputs, "top": 10**6}, "top"),
        ("zero-shot", {"inputs": inputs[1], "labels": labels}, "an image alone"),
        ("zero-shot", {"inputs": inputs[0], "labels": labels, "template": "{0.__class__}"}, "no {}"),
        ("zero-shot", {"inputs": inputs[0], "labels": ["a", "a"]}, "twice"),
        ("embed", {"inputs": {"text": " "}}, "is empty"),
        ("embed", {"inputs": {}}, "neither an image nor a text"),
        ("embed", {"inputs": inputs, "dimensions": 17}, "embeddings have 16 numbers (trained sizes: 4, 8, 16)"),
        ("embed", {"inputs": inputs, "dimensions": 0}, "dimensions"),
    ]:
        refused = client.post(f"/v1/{path}", json=body)
        assert refused.status_code in (404, 422) and reason in refused.json()["error"], refused.text
    assert client.post("/v1/predict", json={"inputs": inputs}).status_code == 404
    card = client.get("/v1/models").json()["models"][0]
    assert card["indexes"] == ["index"] and card["task"] == "contrastive"


def test_an_index_of_another_model_is_refused(tiny_model, index, tmp_path):
    other = save_tiny_family("dual encoder", tmp_path / "other", seed=1)
    for model in (other, tiny_model("image classifier")):
        shelf = Shelf(
            [Asked("m", str(model))],
            lambda path: Found(Path(path), None, path),
            Limits(),
            indexes=[Asked("i", str(index))],
        )
        with pytest.raises(InputError, match="is not the model|no dual encoder is served"):
            shelf.load()


def test_every_example_of_the_page_runs(serve, tiny_model, index):
    names = ("fusion", "image classifier", "captioner", "dual encoder")
    client = serve({name: tiny_model(name) for name in names}, indexes=[Asked("index", str(index))])
    api = client.get("/openapi.json").json()
    ran = 0
    for path, methods in api["paths"].items():
        for method, about in methods.items():
            if method == "get":
                assert client.get(path).status_code == 200, path
            elif path != "/v1/models/reload":
                content = about["requestBody"]["content"]["application/json"]
                assert content["schema"]["$ref"].rsplit("/", 1)[1] in api["components"]["schemas"]
                for example in content["examples"].values():
                    answer = client.post(path, json=example["value"])
                    assert answer.status_code == 200, (path, answer.text)
                    ran += 1
    assert ran == 7
    page = client.get("/").text
    assert "openapi.json" in page and not re.search(r"https?://", page)


PNG = b"\x89PNG\r\n\x1a\n"


def png(width, height):
    """A file that says it has so many pixels, and has not one."""
    file = io.BytesIO()
    Image.new("1", (1, 1)).save(file, "PNG")
    content = bytearray(file.getvalue())
    content[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    content[29:33] = zlib.crc32(bytes(content[12:29])).to_bytes(4, "big")
    return base64.b64encode(bytes(content)).decode()


def test_bad_requests_are_refused_and_the_server_lives(serve, tiny_model, encoded):
    client = serve({"m": tiny_model("fusion")}, max_body=100_000, max_pixels=5000, max_text=20)
    good = {"image": encoded, "text": "frog"}
    before = client.post("/v1/predict", json={"inputs": good}).json()
    refused = [
        (422, "URLs are not fetched", {"inputs": {**good, "image": "http://169.254.169.254/latest"}}),
        (422, "URLs are not fetched", {"inputs": {**good, "image": "file:///etc/passwd"}}),
        (422, "neither base64", {"inputs": {**good, "image": "!!"}}),
        (422, "neither base64", {"inputs": {**good, "image": "data:image/png;base64,%%%"}}),
        (422, "empty", {"inputs": {**good, "image": ""}}),
        (422, "inputs.1.image: not an image", {"inputs": [good, {**good, "image": "aGVsbG8="}]}),
        (413, "100 x 100 pixels", {"inputs": {**good, "image": png(100, 100)}}),
        (422, "too large", {"inputs": {**good, "image": png(60_000, 60_000)}}),
        (422, "damaged", {"inputs": {**good, "image": png(70, 70)}}),
        (413, "21 characters", {"inputs": {**good, "text": "x" * 21}}),
        (422, "inputs.0.text: is missing", {"inputs": {"image": encoded}}),
        (422, "inputs.0.image: is missing", {"inputs": {"text": "frog"}}),
        (422, "inputs", {"inputs": []}),
        (422, "inputs.0.picture", {"inputs": {**good, "picture": 1}}),
        (422, "inputs.0.text", {"inputs": {**good, "text": 7}}),
        (404, "none of that name", {"inputs": good, "model": "other"}),
        (413, "257, more than", {"inputs": [{"text": ""}] * 257}),
    ]
    for status, reason, body in refused:
        answer = client.post("/v1/predict", json=body)
        assert answer.status_code == status and reason in answer.json()["error"], answer.text
    raw = [
        (422, "no JSON", b"{", "application/json"),
        (422, "no JSON", b"[" * 50_000, "application/json"),
        (422, "no JSON", b'{"inputs": "\xff"}', "application/json"),
        (415, "has to be", b"x", "text/plain"),
        (415, "has to be", b"x", ""),
        (400, "form cannot be read", b"x", "multipart/form-data"),
        (413, "longer than", b" " * 100_001, "application/json"),
    ]
    for status, reason, content, kind in raw:
        answer = client.post("/v1/predict", content=content, headers={"content-type": kind})
        assert answer.status_code == status and reason in answer.json()["error"], answer.text
    chunks = client.post(
        "/v1/predict", content=(b" " * 1000 for _ in range(200)), headers={"content-type": "application/json"}
    )
    assert chunks.status_code == 413
    files = [("image", b"x"), ("image", b"y")]
    assert "2 images and 1 texts" in client.post("/v1/predict", files=files, data={"text": "a"}).json()["error"]
    assert client.get("/v1/predict").status_code == 405
    assert client.get("/nothing").json() == {"error": "There is no such endpoint; /docs has those that there are."}
    assert client.post("/v1/predict", json={"inputs": good}).json() == before


def test_a_failure_inside_is_a_number_in_the_log_without_contents(serve, tiny_model, encoded, monkeypatch, caplog):
    client = serve({"m": tiny_model("image classifier")})

    def fail(*_):
        raise ValueError("secret contents")

    monkeypatch.setattr(PredictService, "read", fail)
    with caplog.at_level(logging.INFO, "mmhf.inference.serving"):
        answer = client.post("/v1/predict?text=secret", json={"inputs": {"image": encoded}})
        client.get("/secret")
    assert answer.status_code == 500
    lines = [json.loads(record.message) for record in caplog.records if "gate" in record.name]
    assert lines[0]["request"] == answer.headers["x-request-id"] and lines[0]["request"] in answer.json()["error"]
    assert lines[0]["failure"].startswith("ValueError at ")
    assert lines[0]["endpoint"] == "/v1/predict" and lines[1]["endpoint"] == "other"
    assert "secret" not in caplog.text


def test_a_key_is_asked_for(serve, tiny_model, encoded):
    client = serve({"m": tiny_model("image classifier")}, key="s3cret")
    body = {"inputs": {"image": encoded}}
    for headers in ({}, {"Authorization": "Bearer other"}, {"Authorization": "s3cret"}, {"X-API-Key": "ä".encode()}):
        answer = client.post("/v1/predict", json=body, headers=headers)
        assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
    for headers in ({"Authorization": "Bearer s3cret"}, {"X-API-Key": "s3cret"}):
        assert client.post("/v1/predict", json=body, headers=headers).status_code == 200
    assert [client.get(path).status_code for path in ("/health", "/ready", "/docs")] == [200, 200, 200]
    assert [client.get(path).status_code for path in ("/metrics", "/v1/models")] == [401, 401]


def test_metrics_count(serve, tiny_model, encoded):
    client = serve({"m": tiny_model("image classifier")})
    client.post("/v1/predict", json={"inputs": [{"image": encoded}] * 3})
    client.post("/v1/predict", json={"inputs": {"image": "!"}})
    client.get("/etc/passwd")
    text = client.get("/metrics").text
    assert 'mmhf_requests_total{endpoint="/v1/predict",status="200"} 1.0' in text
    assert 'mmhf_requests_total{endpoint="/v1/predict",status="422"} 1.0' in text
    assert 'endpoint="other",status="404"' in text and "passwd" not in text
    assert 'mmhf_batch_inputs_sum{model="m"} 3.0' in text and 'mmhf_queue_inputs{model="m"} 0.0' in text


@pytest.mark.slow
def test_a_lone_request_does_not_wait_for_others(serve, tiny_model, encoded):
    client = serve({"m": tiny_model("image classifier")}, max_wait=600.0)
    for _ in range(2):
        assert client.post("/v1/predict", json={"inputs": {"image": encoded}}).status_code == 200


def test_what_takes_too_long_or_is_too_much_is_refused(serve, tiny_model, encoded, monkeypatch):
    client = serve({"m": tiny_model("image classifier")}, max_queue=3, max_batch=2, timeout=1.5)
    free = threading.Event()
    run = PredictService.run
    served = next(iter(client.app.state.endpoints.shelf))
    monkeypatch.setattr(served.batcher, "_run", lambda key, items: free.wait(30) and run(served.service, key, items))
    body = {"inputs": {"image": encoded}}
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: client.post("/v1/predict", json=body), range(12)))
        free.set()
    statuses = [answer.status_code for answer in answers]
    assert sorted(set(statuses)) == [429, 504]
    assert all(answer.headers["retry-after"] == "1" for answer in answers)
    assert any("3 requests are under way" in answer.json()["error"] for answer in answers)
    client.app.state.endpoints.limits = Limits(timeout=300)
    assert client.post("/v1/predict", json=body).status_code == 200


@pytest.mark.slow
def test_a_new_version_takes_over_and_a_damaged_one_does_not(serve, tmp_path, encoded):
    versions = {"v1": save_tiny_family("image classifier", tmp_path / "v1")}
    current = "v1"
    client = serve({"m": versions["v1"]}, key="k", resolve=lambda _: Found(versions[current], current, current))
    client.headers["Authorization"] = "Bearer k"
    body = {"inputs": {"image": encoded}}

    def ask():
        answer = client.post("/v1/predict", json=body).json()
        return answer["version"], answer["predictions"][0]["confidence"]

    old = ask()
    assert client.post("/v1/models/reload").json() == {"models": {"m": "unchanged"}}
    versions["v2"] = save_tiny_family("image classifier", tmp_path / "v2", seed=1)
    current = "v2"
    assert client.post("/v1/models/reload").json() == {"models": {"m": "v1 -> v2"}}
    new = ask()
    assert new[0] == "v2" and new[1] != old[1]
    versions["v3"] = save_tiny_family("image classifier", tmp_path / "v3", seed=2)
    weights = tmp_path / "v3" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    current = "v3"
    damaged = client.post("/v1/models/reload")
    assert damaged.status_code == 409 and "old versions are still served" in damaged.json()["error"]
    versions["v4"] = save_tiny_family("captioner", tmp_path / "v4")
    current = "v4"
    assert "was for image-classification" in client.post("/v1/models/reload").json()["error"]
    assert ask() == new
    assert 'mmhf_reloads_total{outcome="failed"} 2.0' in client.get("/metrics").text


def test_reloading_over_http_needs_a_key(serve, tiny_model):
    assert serve({"m": tiny_model("image classifier")}).post("/v1/models/reload").status_code == 403


def test_limits_and_names_are_checked(tiny_model):
    for changes in ({"max_batch": 0}, {"timeout": -1}, {"max_queue": 8}, {"max_pixels": 0}):
        with pytest.raises(InputError):
            Limits(**changes)
    assert Asked.parse("a=releases/x@v1") == Asked("a", "releases/x@v1")
    assert Asked.parse("releases/x@v1") == Asked("releases/x@v1", "releases/x@v1")
    assert Asked.parse("/home/me/releases/x@v1") == Asked("x@v1", "/home/me/releases/x@v1")
    with pytest.raises(InputError, match="named twice"):
        Shelf([Asked("a", "x"), Asked("a", "y")], lambda _: None, Limits())


def asked(content, *, more=False):
    """The scope of a request, and the first message of its body."""
    scope = {
        "type": "http", "method": "POST", "path": "/v1/predict", "raw_path": b"/v1/predict", "query_string": b"",
        "headers": [(b"content-type", b"application/json")], "http_version": "1.1", "scheme": "http",
        "root_path": "", "server": ("served", 80), "client": ("client", 1),
    }  # fmt: skip
    return scope, {"type": "http.request", "body": content, "more_body": more}


@pytest.mark.parametrize("goes_away", [False, True])
def test_a_body_that_does_not_arrive_is_not_waited_for(goes_away, serve, tiny_model):
    client = serve({"m": tiny_model("image classifier")}, timeout=0.2)
    scope, first = asked(b"{", more=True)
    messages, sent = [first], []

    async def receive():
        if messages:
            return messages.pop()
        if not goes_away:
            await asyncio.sleep(600)
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    asyncio.run(client.app(scope, receive, send))
    assert [each["status"] for each in sent if "status" in each] == ([] if goes_away else [408])
    status = 499 if goes_away else 408
    assert f'endpoint="/v1/predict",status="{status}"' in client.get("/metrics").text


def test_a_burst_of_ten_thousand_is_answered_or_refused_and_counted(serve, tiny_model, encoded):
    client = serve({"m": tiny_model("image classifier")}, max_queue=32)
    body = json.dumps({"inputs": {"image": encoded}}).encode()
    answered = []

    async def ask():
        scope, first = asked(body)
        messages = [first]

        async def receive():
            return messages.pop() if messages else await asyncio.sleep(600)

        async def send(message):
            if message["type"] == "http.response.start":
                answered.append((message["status"], dict(message["headers"]).get(b"retry-after")))

        await client.app(scope, receive, send)

    async def burst():
        await asyncio.gather(*(ask() for _ in range(10_000)))

    client.portal.call(burst)
    statuses = [status for status, _ in answered]
    assert len(answered) == 10_000 and {*answered} == {(200, None), (429, b"1")} and statuses.count(200) >= 32
    text = client.get("/metrics").text
    for status in (200, 429):
        assert f'endpoint="/v1/predict",status="{status}"}} {float(statuses.count(status))}' in text
    assert client.post("/v1/predict", content=body, headers={"content-type": "application/json"}).status_code == 200


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_for_the_log_is_no_reason_not_to_answer(serve, tiny_model, encoded, monkeypatch):
    client = serve({"m": tiny_model("image classifier")}, key="k")
    logger = logging.getLogger("mmhf")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "level", logger.level)
    log_to_console()
    headers = {"X-API-Key": "k"}
    with open("/dev/full", "w", buffering=1, encoding="utf-8") as full:
        with pytest.raises(OSError, match="No space"):
            full.write("x\n")
        monkeypatch.setattr(sys, "stderr", full)
        for _ in range(20):
            answer = client.post("/v1/predict", json={"inputs": {"image": encoded}}, headers=headers)
            assert answer.status_code == 200
        assert client.post("/v1/models/reload", headers=headers).status_code == 200
        logging.getLogger("mmhf.verbs.serve").info("Stopped")  # the end of `mmhf serve`, which is to be code 0
        monkeypatch.undo()
        with suppress(OSError):
            full.close()
    assert client.get("/health").status_code == 200


def test_a_caption_that_nobody_reads_any_more_is_not_written_on(tiny_model, encoded, monkeypatch):
    def write_for_ever(service, options, stream, example):
        stream.emit("a")
        assert stream.stop.wait(300)
        return Prediction(caption="a")

    monkeypatch.setattr(PredictService, "_stream", write_for_ever)
    shelf = Shelf([Asked("m", str(tiny_model("captioner")))], lambda path: Found(Path(path), None, path), Limits())
    shelf.load()
    scope, first = asked(json.dumps({"inputs": {"image": encoded}, "stream": True}).encode())

    async def scenario():
        gone, messages = asyncio.Event(), [first]

        async def receive():
            if not messages:
                await gone.wait()
                return {"type": "http.disconnect"}
            return messages.pop()

        async def send(message):
            if message.get("body"):
                gone.set()

        await create_app(shelf)(scope, receive, send)
        await shelf.close()

    begun = time.monotonic()
    asyncio.run(scenario())
    assert time.monotonic() - begun < Limits().timeout
