from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loopback_hub import LoopbackHub
from safetensors.numpy import load_file, save_file

from mmhf.errors import InputError
from mmhf.hub.lineage import release_settings
from mmhf.hub.pushing import push_release
from mmhf.hub.releases import write_release
from mmhf.hub.secret_scan import refuse_secrets
from mmhf.secret_kinds import redact

# Put together here, so that scanners of this repository find none.
HEX = "0123456789abcdef" * 2 + "01234567"
SECRETS = {
    "Hugging Face token": "hf_" + "AbCdEfGhIj" * 3 + "KlMn",
    "Weights & Biases key": f"WANDB_API_KEY={HEX}",
    "AWS key": "AKIA" + "IOSFODNN7EXAMPLE",
    "AWS secret key": 'aws_secret_access_key = "' + "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY" + '"',
    "Google API key": "AIza" + "SyD-9tSrke72PouQMnMX-a7eZSW0jkFMBWY",
    "Google access token": "ya29." + "a0AfH6SMBx7Q2example-token_0",
    "private key": "-----BEGIN " + "RSA PRIVATE KEY-----",
    "GitHub token": "ghp_" + "0123456789abcdefghijABCDEFGHIJ012345",
    "GitLab token": "glpat-" + "0123456789abcdefghij",
    "Anthropic key": "sk-ant-" + "api03-" + "abcdefghijKLMNOP-0123456789_abcdef",
    "OpenAI key": "sk-" + "proj-" + "abcdefghijKLMNOP0123456789_abcdefghijKLMNOP0123",
    "Slack token": "xoxb-" + "123456789012-123456789012-abcdefghijABCDEFGHIJ0123",
    "Azure key": "https://account.blob.core.windows.net/c/b?sv=2024&"
    + "sig="
    + "aBcD%2BeFgH12345678901234567890abcdef%3D",
    "Google client secret": "GOCSPX-" + "abcdefghijABCDEFGHIJ01234567",
    "password in a URL": "postgresql://" + "someone:correct-horse" + "@db.example.org:5432/mlflow",
    "token in a URL": "https://example.org/data.zip?download=1&" + "token=" + "abc123DEF456",
    "npm token": "npm_" + "0123456789abcdefghijABCDEFGHIJ012345",
}
FURTHER = {
    "SendGrid API Key": "SG." + "abcdefghijklmnopqrstuv" + "." + "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQ",
    "Stripe Access Key": "sk_live_" + "abcdefghijklmnopqrstuvwx",
    "Square OAuth Secret": "sq0csp-" + "0123456789abcdefghijABCDEFGHIJ0123456789abc",
}
"""What detect-secrets knows beside that."""
HARMLESS = [
    "hf_hub_download(repo_id, filename)",
    "report_to: wandb",
    f"revision: {HEX}",
    "the wandb run was deleted",
    "AKIA is a prefix",
    "-----BEGIN PUBLIC KEY-----",
    base64.b64encode(bytes(range(256)) * 40).decode(),
    json.dumps({"private_key_id": None}),
    "see https://example.org/a?page=2&key=up and mailto:someone@example.org",
    "postgresql://someone:${PASSWORD}@db/mlflow, s3://<KEY>:<SECRET>@bucket and git@github.com:org/name.git",
    "http://localhost:5000/@me and https://example.org:443/a@b",
    "task-force, sk-learn, risk-adjusted-returns-of-many-words",
    hashlib.sha256(b"a").hexdigest(),
    f"https://huggingface.co/org/name/resolve/{HEX}/config.json?download=true",
]


@pytest.mark.parametrize("kind", SECRETS)
@pytest.mark.parametrize("name", ["recipe.yaml", "config.json", "tokenizer.json", "model.safetensors"])
def test_a_secret_in_any_file_stops_a_release(run_dir: Path, repo: Path, kind: str, name: str):
    path = run_dir / name
    if name == "model.safetensors":
        save_file(load_file(path), path, metadata={"note": SECRETS[kind]})
    elif name == "recipe.yaml":
        path.write_text(path.read_text() + f"# {SECRETS[kind]}\n")
    else:
        path.write_text(json.dumps({**json.loads(path.read_text()), "note": SECRETS[kind].replace('"', "'")}))
    with pytest.raises(InputError, match=rf"{name}: line \d+ holds a secret \({kind}\)") as caught:
        write_release(run_dir, repo, "1.0")
    assert "\n" not in str(caught.value) and SECRETS[kind][-12:] not in str(caught.value)
    assert not (repo / "v1.0").exists()


def test_nothing_is_sent_to_the_hub_when_there_is_a_secret(hub: LoopbackHub, run_dir: Path):
    (run_dir / "recipe.yaml").write_text(f"task: image-classification\nnote: {SECRETS['AWS key']}\n")
    with pytest.raises(InputError, match=r"line 2 holds a secret \(AWS key\)"):
        push_release(run_dir, release_settings({"repo": "org/name", "version": "1.0", "push": True}))
    assert not hub.requests


def test_what_this_environment_keeps_secret_is_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "correct horse battery")
    (tmp_path / "notes.txt").write_text("first\nthe password is correct horse battery\n")
    with pytest.raises(InputError, match=r"notes\.txt: line 2 holds a secret \(token of this environment\)"):
        refuse_secrets([tmp_path / "notes.txt"])
    assert redact("it is correct horse battery.") == "it is ***."


@pytest.mark.parametrize("kind", FURTHER)
def test_what_detect_secrets_knows_is_found_in_texts(tmp_path: Path, kind: str):
    (tmp_path / "config.json").write_text(json.dumps({"a": 1, "note": FURTHER[kind]}, indent=2))
    with pytest.raises(InputError, match=rf"config\.json: line 3 holds a secret \({kind}\) under note") as caught:
        refuse_secrets([tmp_path / "config.json"])
    assert FURTHER[kind][-12:] not in str(caught.value)


def test_the_key_is_named(tmp_path: Path):
    (tmp_path / "recipe.yaml").write_text(f"task: a\ntracking:\n  mlflow_uri: {SECRETS['password in a URL']}\n")
    with pytest.raises(
        InputError, match=r"recipe\.yaml: line 3 holds a secret \(password in a URL\) under mlflow_uri;"
    ):
        refuse_secrets([tmp_path / "recipe.yaml"])


def test_what_is_shipped_holds_none():
    root = Path(__file__).parents[2]
    files = [
        path for folder in ("recipes", "docs", "accelerate_configs", "mmhf") for path in (root / folder).rglob("*")
    ]
    refuse_secrets(path for path in files if path.suffix in (".yaml", ".md", ".py", ".json"))


@pytest.mark.parametrize("text", HARMLESS)
def test_what_only_looks_like_one_passes(tmp_path: Path, text: str):
    (tmp_path / "file").write_text(text)
    (tmp_path / "empty").touch()
    refuse_secrets([tmp_path / "file", tmp_path / "empty"])
    assert redact(text) == text


def test_random_weights_hold_no_secret(tmp_path: Path):
    (tmp_path / "weights").write_bytes(os.urandom(2**22))
    refuse_secrets([tmp_path / "weights"])


@given(before=st.text(max_size=30), after=st.text(max_size=30), kind=st.sampled_from(sorted(SECRETS)))
def test_no_message_holds_a_secret(before: str, after: str, kind: str):
    secret = SECRETS[kind]
    core = secret.split("=")[-1].strip(' "')
    assert core not in redact(f"{before} {secret} {after}")


def test_a_recipe_cannot_be_released_with_a_hub_token(make_run: Callable[..., Path], repo: Path):
    recipe = (
        f"task: image-classification\ntraining: {{push_to_hub: true, hub_token: {SECRETS['Hugging Face token']}}}\n"
    )
    with pytest.raises(InputError, match=r"recipe\.yaml: line 2 holds a secret \(Hugging Face token\)"):
        write_release(make_run("run", recipe=recipe), repo, "1.0")
