"""`mmhf serve` as a user starts it, stops it, and overloads it."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import httpx
import pandas as pd
import pytest
from saved_families import save_tiny_family

from mmhf.inference import JobSettings
from mmhf.inference.embedders import embed_table
from mmhf.sample_data import read_sample

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"


def test_wrong_usage_is_refused_before_a_model_is_loaded(refusal, tmp_path, monkeypatch):
    assert "max-batch: expected" in refusal("serve", tmp_path, "--max-batch", "0")
    assert "port 70000" in refusal("serve", tmp_path, "--port", "70000")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "in use" in refusal("serve", tmp_path, "--port", str(taken.getsockname()[1]))
    assert "no model in it" in refusal("serve", tmp_path, "--port", "0")
    assert "named twice" in refusal("serve", tmp_path, tmp_path, "--port", "0")
    monkeypatch.setenv("MMHF_API_KEY", "")
    assert "MMHF_API_KEY: is empty" in refusal("serve", tmp_path, "--port", "0")


class Running:
    """A server in a process of its own, and what it wrote."""

    def __init__(self, folder, *arguments):
        command = [sys.executable, "-m", "mmhf", "serve", *map(str, arguments), "--port", "0"]
        environment = {**os.environ, "MMHF_API_KEY": "k", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=folder, env=environment)
        self.lines = []
        self.listening = threading.Event()
        self.reader = threading.Thread(target=self._read)
        self.reader.start()
        assert self.listening.wait(300), self.lines
        self.url = next(re.search(r"http://127\.0\.0\.1:\d+", line)[0] for line in self.lines if "http://" in line)

    def _read(self):
        for line in self.process.stderr:
            self.lines.append(line)
            if "http://" in line:
                self.listening.set()
        self.listening.set()

    def client(self):
        return httpx.Client(base_url=self.url, headers={"Authorization": "Bearer k"}, timeout=120, trust_env=False)


# What clients ask, one family after the other.
ASKED = [
    ("/v1/predict", {"model": "news", "text": "frog"}),
    ("/v1/predict", {"model": "plants"}),
    ("/v1/predict", {"model": "captions"}),
    ("/v1/embed", {"model": "photos", "text": "frog"}),
]


class Load:
    """Clients that ask models of all families, or some, for as long as they are let."""

    def __init__(self, running, content, clients=8, asked=ASKED):
        self.running, self.content, self.asked = running, content, asked
        self.over = threading.Event()
        self.answers, self.lost = [], Counter()
        self.threads = [threading.Thread(target=self._ask) for _ in range(clients)]
        for thread in self.threads:
            thread.start()

    def _ask(self):
        with self.running.client() as client:
            for endpoint, fields in itertools.cycle(self.asked):
                if self.over.is_set():
                    return
                try:
                    answer = client.post(endpoint, files={"image": self.content}, data=fields)
                except httpx.TransportError as error:
                    self.lost[type(error).__name__] += 1
                    return
                self.answers.append((answer.status_code, answer.headers["x-request-id"], answer.text))

    def end(self):
        self.over.set()
        for thread in self.threads:
            thread.join()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_served_overloaded_reloaded_and_ended(tmp_path):
    drawing = read_sample("test")["image"][0].as_py()["bytes"]
    (tmp_path / "photo.jpg").write_bytes(drawing)
    families = {"news": "fusion", "plants": "image classifier", "captions": "captioner", "photos": "dual encoder"}
    for name, family in families.items():
        for seed in (0, 1):
            save_tiny_family(family, tmp_path / f"{name}-{seed}", seed=seed)
        (tmp_path / name).symlink_to(f"{name}-0")
    pd.DataFrame({"image": ["photo.jpg"], "text": ["frog"]}).to_csv(tmp_path / "in.csv", index=False)
    for seed in (0, 1):
        index = tmp_path / f"photos-{seed}.parquet"
        embed_table(tmp_path / f"photos-{seed}", tmp_path / "in.csv", index, JobSettings(device="cpu"))
    (tmp_path / "photos.parquet").symlink_to("photos-0.parquet")
    names = [f"{name}={name}" for name in families]
    running = Running(tmp_path, *names, "--index", "photos.parquet", "--max-queue", "32", "--max-batch", "8")
    try:
        # every curl of the page
        commands = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if "curl " in line]
        assert len(commands) == 7
        for command in commands:
            command = command.replace("http://127.0.0.1:8000", running.url).replace(
                "curl ", "curl -sf -H 'X-API-Key: k' "
            )
            done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=tmp_path, timeout=120)
            assert done.returncode == 0 and '"model":' in done.stdout.replace(" ", ""), (command, done)

        # half a body, and a client that goes away
        host, port = running.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as half:
            half.sendall(
                b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nX-API-Key: k\r\nContent-Type: application/json\r\n"
                b"Content-Length: 1000\r\n\r\n{"
            )

        # a new version of each under load
        load = Load(running, drawing)
        with running.client() as client:
            while len(load.answers) < 32:
                client.get("/health").raise_for_status()
            old = {each["commit"] for each in client.get("/v1/models").json()["models"]}
            for name in (*families, "photos.parquet"):
                stem, dot, suffix = name.partition(".")
                (tmp_path / "next").symlink_to(f"{stem}-1{dot}{suffix}")
                (tmp_path / "next").rename(tmp_path / name)
            running.process.send_signal(signal.SIGHUP)
            while old & {each["commit"] for each in client.get("/v1/models").json()["models"]}:
                assert not any("old versions" in line for line in running.lines), running.lines
            count = len(load.answers)
            while len(load.answers) < count + 32:
                pass
            load.end()
            assert not load.lost and {status for status, _, _ in load.answers} == {200}
            for name in families:
                made = [text for _, _, text in load.answers if json.loads(text)["model"] == name]
                assert made[0] != made[-1]  # of another version

            # a burst beyond the queue
            burst = Load(running, drawing, clients=64, asked=ASKED[:1])
            while not any(status == 429 for status, _, _ in burst.answers):
                client.get("/health").raise_for_status()
            burst.end()
            assert {status for status, _, _ in burst.answers} <= {200, 429} and not burst.lost

        # the end, under load
        last = Load(running, drawing)
        while len(last.answers) < 16:
            pass
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(timeout=120) == 0
        last.end()
        running.reader.join()
        told = [json.loads(line) for line in running.lines if line.startswith("{")]
        paths = {path for path, _ in ASKED}
        answered = {each["request"] for each in told if each["endpoint"] in paths and each["status"] == 200}
        received = {request for status, request, _ in last.answers if status == 200}
        before = {request for status, request, _ in load.answers + burst.answers if status == 200}
        assert len(answered - received - before) == 5  # curl's
        assert {status for status, _, _ in last.answers} <= {200, 503}
        assert "Traceback" not in "".join(running.lines) and "frog" not in "".join(running.lines)
    finally:
        running.process.kill()
