"""`mmhf demo` as a user starts it."""

from __future__ import annotations

import re
import signal
import subprocess
import sys

import httpx
import pytest


def test_wrong_usage_is_refused_before_a_model_is_loaded(refusal, tmp_path):
    assert "--max-upload 0: expected 1" in refusal("demo", tmp_path, "--max-upload", "0")
    assert "absent.txt: cannot be read" in refusal("demo", tmp_path, "--captions", tmp_path / "absent.txt")
    assert "no such" in refusal("demo", tmp_path / "absent")
    assert "no model in it" in refusal("demo", tmp_path)


@pytest.mark.parametrize("package", ["gradio", "captum"])
def test_a_missing_extra_is_named(refusal, tmp_path, monkeypatch, package):
    for name in [name for name in sys.modules if name.startswith("mmhf.inference.demo")]:
        monkeypatch.delitem(sys.modules, name)
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    assert refusal("demo", tmp_path) == f"mmhf demo: {package} is not installed: pip install 'mmhf[demo]'"


@pytest.mark.slow
def test_serves_until_interrupted(trained):
    command = [sys.executable, "-m", "mmhf", "demo", f"{trained}/releases@v1.6"]
    with subprocess.Popen(command, stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = next(line for line in process.stdout if "http://" in line)
            url = re.search(r"http://127\.0\.0\.1:\d+/", line)[0]
            page = httpx.get(url, trust_env=False)
            assert page.status_code == 200 and "releases@v1.6" in page.text
            assert str(trained) not in page.text, "the server's folders are its own"
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=300) == 0
        finally:
            process.kill()
