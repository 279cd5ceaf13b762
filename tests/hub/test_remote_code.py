from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import check_imports

from mmhf.hub import remote_code
from mmhf.hub.remote_code import add_remote_code, bundle
from mmhf.models.family import Family, families


def family_of_thing(model_type: str) -> Family:
    """A family whose classes are all `A` of a module `mmhf/thing.py`."""
    return Family(
        package="mmhf",
        model_type=model_type,
        task="thing",
        config="mmhf.thing:A",
        model="mmhf.thing:A",
        pipeline_task="thing",
        card_call="thing()",
        subject="mmhf.thing:A",
    )


@pytest.mark.parametrize("model_type", families())
def test_the_code_of_a_family_imports_nothing_of_mmhf(model_type: str):
    files = bundle(families()[model_type])
    for name, source in files.items():
        tree = ast.parse(source, name)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert f"{node.module}.py" in files
                # transformers finds a relative import by its pattern, which one line must match.
                assert node.lineno == node.end_lineno
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                assert not any(str(each).startswith(("mmhf", "pydantic", "datasets", "pandas")) for each in names)


@pytest.mark.parametrize("model_type", families())
def test_every_name_in_the_code_is_defined(model_type: str, tmp_path: Path):
    for name, source in bundle(families()[model_type]).items():
        (tmp_path / name).write_text(source, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F", "."],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_only_what_is_needed_goes_along():
    files = bundle(families()["mmhf_fusion"])
    assert "class FusionProcessor" in files["processing_fusion.py"]
    assert "def build_fusion_processor" not in files["processing_fusion.py"]
    assert "register_pipeline" not in files["pipelines.py"]
    assert "Image.init()" in files["images.py"], "what prepares another library goes along"
    assert "custom_pipelines" in files["configuration_fusion.py"]


def test_config_and_processor_name_their_code_and_keep_the_rest(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "mmhf_fusion", "dropout": 0.5}')
    (tmp_path / "processor_config.json").write_text('{"max_length": 32}')
    assert add_remote_code(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["dropout"] == 0.5 and "custom_pipelines" not in config
    assert config["auto_map"] == {
        "AutoConfig": "configuration_fusion.FusionConfig",
        "AutoModel": "modeling_fusion.FusionForImageTextClassification",
    }
    processor = json.loads((tmp_path / "processor_config.json").read_text())
    assert processor == {"max_length": 32, "auto_map": {"AutoProcessor": "processing_fusion.FusionProcessor"}}


def test_a_stock_model_needs_no_code(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    assert not add_remote_code(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import pandas\nclass A:\n    x = pandas.NA\n", "line 1 imports what an environment without mmhf lacks"),
        ("import mmhf.errors\nclass A:\n    x = mmhf.errors\n", "must be of the form"),
        ("from . import errors\nclass A:\n    x = errors\n", "must be of the form"),
        ("class A:\n    def f(self):\n        from mmhf.errors import InputError\n", "imports mmhf inside a function"),
        ("class B:\n    pass\n", "does not define A"),
    ],
)
def test_code_that_cannot_go_along_is_named(monkeypatch, tmp_path: Path, source: str, message: str):
    (tmp_path / "thing.py").write_text(source)
    monkeypatch.setattr(remote_code, "_ROOT", tmp_path)
    with pytest.raises(ValueError, match=message):
        bundle(family_of_thing(f"test {source}"))


def test_an_import_of_what_may_be_absent_stays_possible(monkeypatch, tmp_path: Path):
    (tmp_path / "thing.py").write_text("class A:\n    def f(self):\n        import absent\n        return absent\n")
    monkeypatch.setattr(remote_code, "_ROOT", tmp_path)
    source = bundle(family_of_thing("optional"))["thing.py"]
    (tmp_path / "out.py").write_text(source)
    assert check_imports(tmp_path / "out.py") == []
    namespace: dict = {}
    exec(source, namespace)
    with pytest.raises(ModuleNotFoundError, match="absent"):
        namespace["A"]().f()
