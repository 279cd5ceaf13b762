"""The files under examples/serving/, checked and run as far as it goes without Docker, a cluster or vLLM."""

from __future__ import annotations

import argparse
import base64
import configparser
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import kubernetes_validate
import pytest
import torch
import uvicorn
import yaml
from packaging.requirements import Requirement
from PIL import Image
from safetensors.torch import load_file
from saved_families import save_tiny_family, write_image
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from transformers import AutoModelForCausalLM, AutoTokenizer

from mmhf.cli import arguments
from mmhf.inference.loading import load_model
from mmhf.inference.serving.app import create_app
from mmhf.inference.serving.limits import Limits
from mmhf.inference.serving.server import KEY_VARIABLE, bind
from mmhf.inference.serving.shelf import Asked, Found, Shelf
from mmhf.models.adapting import lora_values
from mmhf.recipe.sections import LoraSection

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "examples" / "serving"
KEY = "k"
PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")


def serve_options(words: list[str]) -> argparse.Namespace:
    """What `mmhf serve` makes of its arguments."""
    parser = argparse.ArgumentParser()
    arguments.serve(parser)
    return parser.parse_args(words)


def instructions() -> list[tuple[str, str]]:
    """Of the Dockerfile: name and the rest, lines that go on put together."""
    lines = (FOLDER / "Dockerfile").read_text(encoding="utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.startswith("#")).replace("\\\n", " ")
    found = [line.partition(" ") for line in text.splitlines() if line.strip()]
    return [(name, rest.strip()) for name, _, rest in found]


def only(name: str) -> str:
    (rest,) = [rest for each, rest in instructions() if each == name]
    return rest


def load_example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def listening(app: Starlette) -> Iterator[str]:
    """The address of an application that a thread of this process serves."""
    with bind("127.0.0.1", 0) as bound:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        try:
            while not server.started:
                time.sleep(0.01)
            yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    model = save_tiny_family("image classifier", tmp_path_factory.mktemp("examples") / "model")
    shelf = Shelf([Asked("captions", str(model))], lambda path: Found(Path(path), None, ""), Limits())
    shelf.load()
    with listening(create_app(shelf, key=KEY)) as url:
        yield url


def test_the_dockerfile_has_no_fault() -> None:
    hadolint = str(Path(sys.executable).with_name("hadolint"))
    done = subprocess.run([hadolint, "--format", "json", str(FOLDER / "Dockerfile")], capture_output=True, text=True)
    assert json.loads(done.stdout) == [] and done.returncode == 0


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., list[list[str]]]:
    """Run each RUN of the Dockerfile in order, with stand-ins for what fetches; gives what these were called with."""

    def run(**given: str) -> list[list[str]]:
        root, calls = tmp_path / "root", tmp_path / "calls"
        calls.touch()
        for name in ("pip", "uv", "hf", "useradd"):
            program = tmp_path / "bin" / name
            program.parent.mkdir(exist_ok=True)
            program.write_text(f'#!/bin/sh\n(printf "%s\\0" {name} "$@"; echo) >> {calls}\n')
            program.chmod(0o755)
        environment = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
        for name, rest in instructions():
            if name == "ARG":
                key, _, value = rest.partition("=")
                environment[key] = given.get(key, value.strip('"'))
            if name == "RUN":
                script = re.sub(r"^--mount=\S+\s+", "", rest)
                script = re.sub(r"(?<=\s)/(?=opt/|models)", f"{root}/", script)
                (root / "opt").mkdir(parents=True, exist_ok=True)
                subprocess.run(["sh", "-euc", script], env=environment, check=True, cwd=tmp_path)
        assert (root / "opt" / "mmhf" / "bin" / "python").exists() and (root / "models").is_dir()
        return [line.rstrip("\0").split("\0") for line in calls.read_text().splitlines()]

    return run


def test_the_steps_of_the_image_run(build: Callable[..., list[list[str]]]) -> None:
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    uv_install, torch_install, install, download, user = build(DEVICE="cu130", MODEL="ORG/NAME", REVISION="v1.0")
    assert uv_install[:2] == ["pip", "install"] and torch_install[:5] == [
        "uv",
        "pip",
        "install",
        "--torch-backend",
        "cu130",
    ]
    needed = {
        str(Requirement(line)) for line in settings["options"]["install_requires"].split("\n") if line[:1].isalpha()
    }
    asked = {str(Requirement(word)) for word in torch_install if word.startswith("torch")}
    assert len(asked) == 2 and asked <= needed
    assert install == ["pip", "install", "/source[serve]"] and "serve" in settings["options.extras_require"]
    assert download[:3] == ["hf", "download", "ORG/NAME"] and download[download.index("--revision") + 1] == "v1.0"
    assert download[-1].endswith("/models/model")
    assert user == ["useradd", "--uid", only("USER"), "--create-home", "mmhf"]
    options = serve_options(json.loads(only("ENTRYPOINT"))[2:] + json.loads(only("CMD")))
    assert (options.host, str(options.port), options.model) == ("0.0.0.0", only("EXPOSE"), ["/models/model"])


def test_without_a_model_nothing_is_downloaded(build: Callable[..., list[list[str]]]) -> None:
    programs = [words[0] for words in build()]
    assert programs == ["pip", "uv", "pip", "useradd"]


def test_hf_downloads_by_these_options() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("hf"), "download", "--help"], capture_output=True, text=True, check=True
    )
    assert "--revision" in done.stdout and "--local-dir" in done.stdout


@pytest.mark.slow
def test_what_the_image_is_built_from_is_enough_for_a_wheel(tmp_path: Path) -> None:
    lines = (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
    let_in = [line[1:] for line in lines if line.startswith("!")]
    assert "*" in lines and let_in
    for name in let_in:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / "source" / name if copy is shutil.copytree else tmp_path / "source")
    command = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(tmp_path)]
    subprocess.run([sys.executable, *command, str(tmp_path / "source")], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for pattern in ("mmhf/inference/serving/app.py", "mmhf/recipes/quickstart/*.yaml", "*/licenses/LICENSE"):
        assert any(fnmatch(name, pattern) for name in names), pattern


def test_the_healthcheck_tells_a_server_from_none(server: str) -> None:
    _, _, rest = only("HEALTHCHECK").partition("CMD ")
    python, *words = json.loads(rest)
    assert python == "python"
    for url, code in ((server, 0), ("http://127.0.0.1:1", 1)):
        spoken = [word.replace("http://127.0.0.1:8000", url) for word in words]
        assert spoken != words
        assert subprocess.run([sys.executable, *spoken], stderr=subprocess.DEVNULL).returncode == code


def test_compose_and_prometheus_agree(server: str) -> None:
    compose = yaml.safe_load((FOLDER / "compose.yaml").read_text())
    served, watcher = compose["services"]["server"], compose["services"]["prometheus"]
    assert (FOLDER / served["build"]["context"]).resolve() == ROOT
    assert (ROOT / served["build"]["dockerfile"]).is_file()
    assert set(served["build"]["args"]) <= {rest.partition("=")[0] for name, rest in instructions() if name == "ARG"}
    options = serve_options(json.loads(only("ENTRYPOINT"))[2:] + served["command"])
    ((source, folder, mode),) = [volume.split(":") for volume in served["volumes"]]
    assert mode == "ro" and (FOLDER / source).resolve() == ROOT / "releases"
    assert all(Asked.parse(model).reference.startswith(f"{folder}/") for model in options.model)
    assert set(served["environment"]) == {KEY_VARIABLE}
    assert int(served["stop_grace_period"].removesuffix("s")) > options.timeout
    assert all(port.startswith("127.0.0.1:") for each in compose["services"].values() for port in each["ports"])
    assert served["ports"] == [f"127.0.0.1:{options.port}:{options.port}"]
    config = yaml.safe_load((FOLDER / watcher["volumes"][0].split(":")[0]).read_text())
    (job,) = config["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"server:{options.port}"]}]
    (secret,) = watcher["secrets"]
    assert job["authorization"] == {"credentials_file": f"/run/secrets/{secret}"}
    assert compose["secrets"][secret] == {"environment": KEY_VARIABLE}
    scraped = httpx.get(server + job["metrics_path"], headers={"Authorization": f"Bearer {KEY}"}, trust_env=False)
    assert scraped.status_code == 200 and "mmhf_queue_inputs" in scraped.text


def manifests() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text()))


def test_kubernetes_knows_each_key() -> None:
    for manifest in manifests():
        kubernetes_validate.validate(manifest, "1.33", strict=True)


def test_kubernetes_asks_and_ends_the_server_rightly(server: str) -> None:
    deployment, service = manifests()
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    options = serve_options(json.loads(only("ENTRYPOINT"))[2:] + container["args"])
    assert options.model == ["captions=/models/model"]
    assert container["ports"] == [{"name": "http", "containerPort": options.port}]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["port"] == "http"
        answer = httpx.get(server + container[probe]["httpGet"]["path"], trust_env=False)  # without the key
        assert answer.status_code == 200
    assert container["readinessProbe"]["httpGet"]["path"] == "/ready"
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > pause + options.timeout
    assert str(pod["securityContext"]["runAsUser"]) == only("USER")
    assert container["env"][0]["name"] == KEY_VARIABLE
    assert service["spec"]["selector"] == deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["ports"][0]["targetPort"] == "http"


def test_the_load_test_counts_answers_and_faults(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load_test, image = load_example("load_test"), str(write_image(tmp_path / "photo.png"))
    words = [server, image, "--clients", "4", "--images", "2", "--seconds", "0.5", "--field", "model=captions"]
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    assert load_test.main(words) == 0
    found = dict(re.findall(r"^(.{14})(.*)$", capsys.readouterr().out, re.MULTILINE))
    found = {name.strip(): value for name, value in found.items()}
    assert found["not answered"] == "0" and int(found["answered"]) > 0
    assert float(found["images/s"]) == pytest.approx(2 * float(found["requests/s"]), abs=0.01)
    assert 0 < float(found["p50 s"]) <= float(found["p99 s"])
    monkeypatch.delenv(KEY_VARIABLE)
    assert load_test.main([*words, "--seconds", "0.1"]) == 1
    assert "'401'" in capsys.readouterr().out


def fake_vllm(language: Path, seen: list[dict[str, Any]]) -> Starlette:
    """vLLM's /v1/completions as far as captions need it, on transformers: it reads embeddings as vLLM does."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(language), AutoTokenizer.from_pretrained(language)

    def read(embeds: str) -> torch.Tensor:
        content = io.BytesIO(base64.b64decode(embeds, validate=True))
        tensor = torch.load(content, weights_only=True, map_location="cpu")
        assert tensor.dim() == 2 and tensor.dtype in (torch.float32, torch.bfloat16, torch.float16)
        return tensor

    async def complete(request: Request) -> JSONResponse:
        asked = await request.json()
        seen.append(asked)
        choices = []
        for index, embeds in enumerate(map(read, asked["prompt_embeds"])):
            ids = model.generate(inputs_embeds=embeds[None], max_new_tokens=asked["max_tokens"], do_sample=False)
            text = tokenizer.decode(ids[0], skip_special_tokens=True)
            choices.insert(0, {"index": index, "text": text, "finish_reason": "stop", "logprobs": None})
        return JSONResponse({"object": "text_completion", "model": asked["model"], "choices": choices})

    return Starlette(routes=[Route("/v1/completions", complete, methods=["POST"])])


@pytest.mark.parametrize("with_lora", [False, True])
def test_vllm_is_sent_what_makes_the_captioners_captions(
    with_lora: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    captioner, language = save_tiny_family("captioner", tmp_path / "captioner"), tmp_path / "language"
    model, processor = load_model(captioner)
    model.set_prompt([4, 5])
    model.generation_config.update(max_new_tokens=8)
    if with_lora:
        section = LoraSection(rank=2, alpha=4.0, target_modules=["q_proj", "v_proj"])
        model.add_lora(lora_values(model, section, ["language"]))
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=2.0)
    model.save_pretrained(captioner)
    images = [write_image(tmp_path / "photo.png"), tmp_path / "white.png"]
    Image.new("RGB", (40, 30), "white").save(images[1])
    with torch.inference_mode():
        pixels = processor(images=[Image.open(path).convert("RGB") for path in images])["pixel_values"]
        expected = processor.captions(model.generate(pixels, num_beams=1))
    client, seen = load_example("vllm_captions"), list[dict[str, Any]]()
    client.main([str(captioner), "--save-language-model", str(language)])
    assert not any("lora" in name for name in load_file(language / "model.safetensors"))
    with listening(fake_vllm(language, seen)) as url:
        client.main([str(captioner), *map(str, images), "--url", url, "--max-tokens", "8"])
    told = [line.split("\t") for line in capsys.readouterr().out.splitlines() if "\t" in line]
    assert told == [[str(path), caption] for path, caption in zip(images, expected, strict=True)]
    assert all(expected) and seen[0]["model"] == "language" and seen[0]["temperature"] == 0


def test_the_guide_names_each_file() -> None:
    for path in FOLDER.iterdir():
        if path.suffix != ".dockerignore" and path.name != "__pycache__":
            assert f"../examples/serving/{path.name}" in PAGE
