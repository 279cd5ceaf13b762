"""The launch files under examples/cloud/, run as far as it goes without an account, a cluster or a GPU."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.launch import launch_command_parser

from mmhf.recipe import load_recipe

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "examples" / "cloud"
_URL = "gs://my-bucket/dermatology"


@pytest.fixture
def run_script(tmp_path: Path) -> Callable[..., list[list[str]]]:
    """Run a shell script with stand-ins for the cluster's programs; returns what `accelerate` was called with."""
    programs = {
        "accelerate": f'printf "%s\\0" "$@" >> {tmp_path}/calls; echo >> {tmp_path}/calls',
        "scontrol": "printf 'node-0\\nnode-1\\n'",
        "srun": 'for node in 0 1; do SLURM_NODEID=$node "$@"; done',
    }
    for name, script in programs.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/usr/bin/env bash\nset -e\n{script}\n")
        path.chmod(0o755)

    def run(script: str | Path, *arguments: str, environment: Mapping[str, str]) -> list[list[str]]:
        path = tmp_path / "script.sh"
        path.write_text(script.read_text() if isinstance(script, Path) else f"set -eu\n{script}")
        variables = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "USER": "me", **environment}
        subprocess.run(["bash", str(path), *arguments], cwd=ROOT, env=variables, check=True)
        lines = (tmp_path / "calls").read_text().splitlines()
        return [line.rstrip("\0").split("\0") for line in lines]

    return run


def _check_launch(words: list[str]) -> Any:
    """Parse a launch as accelerate and `mmhf train` do; returns accelerate's options."""
    options = launch_command_parser().parse_args(words)
    assert (ROOT / options.config_file).is_file()
    if options.module:
        assert options.training_script == "mmhf" and options.training_script_args[0] == "train"
        recipe, *overrides = options.training_script_args[1:]
    else:
        assert options.training_script == "scripts/train.py" and (ROOT / options.training_script).is_file()
        recipe, *overrides = options.training_script_args
        recipe = str(ROOT / recipe)
    resolved = load_recipe(recipe, overrides)
    assert resolved.recipe.data.path.endswith("/{version}")
    return options


def test_skypilot(run_script: Callable[..., list[list[str]]]) -> None:
    task = yaml.safe_load((FOLDER / "skypilot.yaml").read_text())
    assert set(task) <= {"name", "num_nodes", "workdir", "resources", "envs", "file_mounts", "setup", "run"}
    assert task["setup"].strip() == 'pip install --quiet ".[cloud]"'
    for config in ("single_gpu", "multi_node"):
        given = {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1", "SKYPILOT_NUM_GPUS_PER_NODE": "4"}
        given |= {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", **task["envs"], "CONFIG": config}
        options = _check_launch(run_script(task["run"], environment=given)[-1][1:])
        assert (options.num_machines, options.num_processes, options.machine_rank) == (2, 8, 1)
        assert options.main_process_ip == "10.0.0.1"
        assert f"data.path={_URL}/{{version}}" in options.training_script_args
        mounted = [word.partition("=")[2] for word in options.training_script_args if "/outputs" in word]
        assert mounted and all(path.startswith(next(iter(task["file_mounts"]))) for path in mounted)


@pytest.mark.parametrize("data", [_URL, "/shared/data of ours"])
def test_slurm(run_script: Callable[..., list[list[str]]], data: str) -> None:
    script = FOLDER / "slurm.sbatch"
    subprocess.run(["bash", "-n", str(script)], check=True)
    environment = {"SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "node-[0-1]", "SLURM_JOB_ID": "1"}
    given = ["dermatology/fusion", f"data.path={data}/{{version}}", "training.learning_rate=1e-4"]
    calls = run_script(script, *given, environment=environment)
    assert len(calls) == 2
    for rank, words in enumerate(calls):
        assert words[0] == "launch"
        options = _check_launch(words[1:])
        assert (options.num_machines, options.num_processes, options.machine_rank) == (2, 8, rank)
        assert options.main_process_ip == "node-0"
        assert options.training_script_args[1] == "dermatology/fusion"
        assert {*given[1:], "training.output_dir=outputs/slurm-1"} <= set(options.training_script_args)
        copies = [word for word in options.training_script_args if word.startswith("data.cloud.cache_dir=")]
        assert bool(copies) == ("://" in data)


def test_slurm_without_a_recipe_is_refused(tmp_path: Path) -> None:
    bash = shutil.which("bash")
    assert bash is not None
    ended = subprocess.run([bash, str(FOLDER / "slurm.sbatch")], capture_output=True, text=True, env={})
    assert ended.returncode != 0
    assert "a recipe: a YAML file" in ended.stderr


def _calls(node: ast.AST, name: str) -> list[ast.Call]:
    return [call for call in ast.walk(node) if isinstance(call, ast.Call) and ast.unparse(call.func) == name]


def test_modal() -> None:
    source = (FOLDER / "modal_train.py").read_text()
    compile(source, "modal_train.py", "exec")
    tree = ast.parse(source)
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    decorators = {name: ast.unparse(node.decorator_list[0]).partition("(")[0] for name, node in functions.items()}
    assert decorators == {"copy_bucket": "app.function", "train": "app.function", "main": "app.local_entrypoint"}
    volumes = [ast.literal_eval(call.args[0]) for call in _calls(tree, "modal.Volume.from_name")]
    assert volumes == ["mmhf-data", "mmhf-outputs"]
    assert len(_calls(tree, "modal.CloudBucketMount")) == 1
    for name, mounted in (("copy_bucket", {"/volume", "/bucket"}), ("train", {"/volume", "/outputs"})):
        [call] = _calls(functions[name].decorator_list[0], "app.function")
        options = {keyword.arg: keyword.value for keyword in call.keywords}
        assert isinstance(options["volumes"], ast.Dict)
        assert {ast.literal_eval(key) for key in options["volumes"].keys if key is not None} == mounted
    [words] = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "TRAIN"
    ]
    assert words[:2] == ["accelerate", "launch"]
    options = _check_launch([word.format(data=_URL) for word in words[2:]])
    assert f"data.path={_URL}/{{version}}" in options.training_script_args


def test_the_guide_names_each_file() -> None:
    guide = (ROOT / "docs" / "cloud.md").read_text()
    for path in FOLDER.iterdir():
        assert f"../examples/cloud/{path.name}" in guide
