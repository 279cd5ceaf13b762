"""What the package says of itself is so: dependencies, versions, and the Pythons that it runs on."""

from __future__ import annotations

import ast
import configparser
import re
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import mmhf

ROOT = Path(__file__).parents[1]
# Comes with a declared package, which asks for exactly one version of it.
PART_OF = {"pydantic_core": "pydantic"}
# Imported only by the verb that an extra is for.
NEEDS_AN_EXTRA = (
    *("mmhf/sweep/", "mmhf/verbs/sweep.py", "mmhf/inference/demo/", "mmhf/inference/serving/"),
    "mmhf/export/runners/",
)


@pytest.fixture(scope="module")
def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Names of the packages that a module imports, and whether it does so as soon as it is imported itself."""

    def visit(node: ast.AST, at_once: bool) -> Iterator[tuple[str, bool]]:
        if isinstance(node, ast.Import):
            yield from ((alias.name, at_once) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            # `from google import auth` says more than `google`, a namespace that many packages share
            yield f"{node.module}.{node.names[0].name}", at_once
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, at_once and not inside)

    yield from visit(ast.parse(path.read_text(encoding="utf-8")), True)


def distributions(section: str) -> set[str]:
    lines = [line for line in section.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return {canonicalize_name(Requirement(line).name) for line in lines}


@pytest.mark.slow
def test_what_is_imported_is_declared(setup_cfg: configparser.ConfigParser) -> None:
    """At once by all users: among the requirements; inside a function: there or in an extra for users."""
    required = distributions(setup_cfg["options"]["install_requires"])
    extras = setup_cfg["options.extras_require"]
    optional = set().union(*(distributions(extras[name]) for name in extras if name not in ("test", "docs", "dev")))
    providers = metadata.packages_distributions()
    undeclared = set()
    for path in (ROOT / "mmhf").rglob("*.py"):
        module = path.relative_to(ROOT).as_posix()
        # Programs that lie in one folder when they run.
        beside = (
            {each.stem for each in path.parent.glob("*.py")} if module.startswith("mmhf/export/runners/") else set()
        )
        for name, at_once in imports(path):
            top = name.split(".")[0]
            if top == "mmhf" or top in sys.stdlib_module_names or top in beside:
                continue
            names = {canonicalize_name(found) for found in providers.get(PART_OF.get(top, top), [top])}
            must_be_there = at_once and not module.startswith(NEEDS_AN_EXTRA)
            if not names & (required if must_be_there else required | optional):
                undeclared.add(f"{module}: {name}")
    assert not undeclared, sorted(undeclared)


def test_versions_agree() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert citation["version"] == mmhf.__version__
    assert re.search(r"^## (\S+)", changelog, re.MULTILINE)[1] == mmhf.__version__


def test_the_pythons_that_are_named_are_those_that_are_tested(setup_cfg: configparser.ConfigParser) -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    tested = workflow["jobs"]["everything"]["strategy"]["matrix"]["python"]
    named = re.findall(r"Python :: (3\.\d+)", setup_cfg["metadata"]["classifiers"])
    assert named == tested
    assert setup_cfg["options"]["python_requires"] == f">={tested[0]}"
