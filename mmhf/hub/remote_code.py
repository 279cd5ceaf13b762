"""The code that serves a release without mmhf: mmhf's own modules, cut down to what the model needs.

Nothing is kept twice: the files are made from the sources at the moment of the release. Of each module stay the
definitions that the model's classes lead to; `mmhf.models.encoders` becomes `encoders.py`, its imports relative.
"""

from __future__ import annotations

import ast
import functools
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmhf._version import __version__
from mmhf.files import CONFIG_FILE
from mmhf.models.family import Family, families

HANDLER_FILE = "handler.py"
# How sentence-transformers (from 5.4 on) embeds images and texts: by the model's own methods, to length 1.
_SENTENCE_TRANSFORMERS: dict[str, Any] = {
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Normalize", "type": "sentence_transformers.base.modules.Normalize"},
    ],
    "sentence_bert_config.json": {
        "transformer_task": "feature-extraction",
        "modality_config": {
            modality: {"method": f"get_{modality}_features", "method_output_name": "pooler_output"}
            for modality in ("image", "text")
        },
        "module_output_name": "sentence_embedding",
    },
}
# By the name of the class, which an image processor's file has.
_OWN_IMAGE_PROCESSORS = {"NaflexImageProcessor": "mmhf.models.naflex"}
_PACKAGE = "mmhf"
_ROOT = Path(__file__).parents[1]
# What a clean environment has: transformers with all it needs, torch, torchvision, timm and pillow.
_AVAILABLE = {
    *("transformers", "torch", "torchvision", "timm", "PIL", "numpy", "safetensors", "tokenizers", "huggingface_hub"),
    *("yaml", "tqdm", "regex", "packaging", "filelock"),
}
_HEADER = '"""From {module} of mmhf {version}, made by `mmhf release`; with mmhf installed this file is not used."""\n'


def add_remote_code(folder: Path) -> bool:
    """Write the code of a model into its release folder, and into its configuration files where that code is.

    `handler.py` is for endpoints of the Hub, `modules.json` for sentence-transformers.

    Args:
        folder (`Path`): Holds `config.json`, and the processor's files.

    Returns:
        `bool`: Whether the model is one of mmhf's, and needs code at all.
    """
    config_file = folder / CONFIG_FILE
    config = json.loads(config_file.read_text(encoding="utf-8"))
    family = families().get(config.get("model_type"))
    if family is None:
        return False
    image_processor = _refer_processors_to_code(folder, family)
    # What answers requests at an endpoint of the Hub.
    handler = (Path(__file__).parent / "endpoint_handler.py").read_text(encoding="utf-8")
    handler = handler.replace('TASK = ""', f"TASK = {family.pipeline_task!r}")
    for name, source in {**bundle(family, image_processor), HANDLER_FILE: handler}.items():
        (folder / name).write_text(source, encoding="utf-8")
    if family.embedder is not None:
        for name, values in _SENTENCE_TRANSFORMERS.items():
            (folder / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    auto_map = {"AutoConfig": _class_reference(family, "config")}
    auto_map.update({auto_class: _class_reference(family, "model") for auto_class in family.auto_classes})
    _rewrite(config_file, {**config, "auto_map": auto_map})
    return True


def _refer_processors_to_code(folder: Path, family: Family) -> str | None:
    """Say in the processor's files where its code is; gives the image processor's class, where that is mmhf's own."""
    own = None
    for path in (folder / "processor_config.json", folder / "preprocessor_config.json"):
        if not path.is_file():
            continue
        values = json.loads(path.read_text(encoding="utf-8"))
        images = values.get("image_processor", values)
        if (name := images.get("image_processor_type")) in _OWN_IMAGE_PROCESSORS:
            own = name
            images["auto_map"] = {"AutoImageProcessor": f"{_file_stem(_OWN_IMAGE_PROCESSORS[name])}.{name}"}
        if family.processor is not None:
            reference = {"AutoProcessor": _class_reference(family, "processor")}
            values["auto_map"] = {**values.get("auto_map", {}), **reference}
        if family.processor is not None or own is not None:
            _rewrite(path, values)
    return own


@functools.cache
def bundle(family: Family, image_processor: str | None = None) -> dict[str, str]:
    """The code of a family as files that import nothing of mmhf.

    Args:
        family ([`Family`]): The family.
        image_processor (`str`, *optional*): Class of the image processor, where it is one of mmhf's own.

    Returns:
        `dict[str, str]`: File name → source.

    Raises:
        ValueError: The code imports a package that a clean environment lacks, or mmhf in a form that cannot be
            rewritten. This is a defect of mmhf, found by its tests.
    """
    collector = _Collector()
    for name in ("config", "model", "processor", "pipeline"):
        if (target := family.where(name)) is not None:
            collector.need(*target)
    if image_processor is not None:
        collector.need(_OWN_IMAGE_PROCESSORS[image_processor], image_processor)
    files = {f"{_file_stem(module)}.py": collector.source(module) for module in sorted(collector.needed)}
    if len(files) != len(collector.needed):
        raise ValueError(f"two of {', '.join(sorted(collector.needed))} would have one file name")
    (config_module, config_class), (model_module, model_class) = _found(family, "config"), _found(family, "model")
    if family.pipeline is not None:
        # In the code and not in config.json, where it would win over mmhf's own.
        entry = {
            "impl": _class_reference(family, "pipeline"),
            "pt": ["AutoModel"],
            "type": family.pipeline_inputs,
        }
        # A property, because transformers 5.24 changes the dict that it is given.
        files[f"{_file_stem(config_module)}.py"] += (
            f"\n\n{config_class}.custom_pipelines = property(lambda config: {{{family.pipeline_task!r}: {entry!r}}})\n"
        )
    if family.name_table is not None:
        files[f"{_file_stem(model_module)}.py"] += (
            f"\n\nfrom transformers.models.auto.modeling_auto import {family.name_table}  # noqa: E402\n\n"
            f"{family.name_table}[{family.model_type!r}] = {model_class!r}\n"
        )
    return files


def _found(family: Family, name: str) -> tuple[str, str]:
    target = family.where(name)
    assert target is not None
    return target


def _class_reference(family: Family, name: str) -> str:
    module, class_name = _found(family, name)
    return f"{_file_stem(module)}.{class_name}"


def _file_stem(module: str) -> str:
    return module.rpartition(".")[2]


def _rewrite(path: Path, values: dict[str, Any]) -> None:
    path.unlink()  # it may be a link to the run's own file
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@dataclass
class _Module:
    """A source file by its top-level statements."""

    name: str
    text: str
    definitions: dict[str, ast.stmt] = field(default_factory=dict)
    imports: dict[str, tuple[ast.Import | ast.ImportFrom, ast.alias]] = field(default_factory=dict)
    side_effects: list[ast.Expr] = field(default_factory=list)

    @classmethod
    def read(cls, name: str) -> _Module:
        path = _ROOT.joinpath(*name.split(".")[1:])
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        text = path.read_text(encoding="utf-8")
        module = cls(name, text)
        for statement in ast.parse(text).body:
            module._sort(statement)
        return module

    def _sort(self, statement: ast.stmt) -> None:
        if isinstance(statement, (ast.Import, ast.ImportFrom)):
            for alias in statement.names:
                self.imports[alias.asname or alias.name.partition(".")[0]] = (statement, alias)
        elif isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            self.definitions[statement.name] = statement
        elif isinstance(statement, (ast.Assign, ast.AnnAssign)):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            for node in (node for target in targets for node in ast.walk(target)):
                if isinstance(node, ast.Name):
                    self.definitions[node.id] = statement
        elif isinstance(statement, ast.Expr) and not isinstance(statement.value, ast.Constant):
            is_about_another_library = self.definitions.keys().isdisjoint(_names_in(statement))
            if is_about_another_library:  # what registers the module's own classes is left out
                self.side_effects.append(statement)

    def segment(self, statement: ast.stmt) -> str:
        decorators = statement.decorator_list if isinstance(statement, (ast.ClassDef, ast.FunctionDef)) else []
        first = min([statement.lineno, *(decorator.lineno for decorator in decorators)])
        lines = self.text.splitlines()
        imports = (node for node in ast.walk(statement) if isinstance(node, (ast.Import, ast.ImportFrom)))
        for inner in imports:
            if _is_ours(inner):
                raise ValueError(
                    f"{self.name}: line {inner.lineno} imports mmhf inside a function; move it to the top"
                )
            if not _is_available(inner):
                _mark_as_optional(lines, inner)
        while first > 1 and lines[first - 2].startswith("#"):
            first -= 1
        return "\n".join(lines[first - 1 : statement.end_lineno])


class _Collector:
    """Follows names from the classes that are asked for to all that they use."""

    def __init__(self) -> None:
        self.modules: dict[str, _Module] = {}
        self.needed: dict[str, set[str]] = {}

    def need(self, module_name: str, name: str) -> str:
        """Take a name in and all that it uses; returns the module that defines it."""
        module = self._module(module_name)
        if name in module.imports and _is_ours(module.imports[name][0]):
            statement, alias = module.imports[name]
            return self.need(_source_of(statement, module), alias.name)
        if name not in module.definitions:
            raise ValueError(f"{module_name} does not define {name}")
        names = self.needed.setdefault(module_name, set())
        if name not in names:
            is_first = not names
            names.add(name)
            statements = [module.definitions[name], *(module.side_effects if is_first else ())]
            for used in (used for statement in statements for used in _names_in(statement)):
                self._follow(module, used)
        return module_name

    def source(self, module_name: str) -> str:
        """What is left of a module."""
        module, needed = self._module(module_name), self.needed[module_name]
        statements = {id(module.definitions[name]): module.definitions[name] for name in needed}
        kept = sorted([*statements.values(), *module.side_effects], key=lambda statement: statement.lineno)
        used = {name for statement in kept for name in _names_in(statement)}
        imports = _import_block(self._import_of(module, name) for name in used & module.imports.keys())
        parts = [_HEADER.format(module=module_name, version=__version__), "from __future__ import annotations\n"]
        parts += [imports, *("\n" + module.segment(statement) + "\n" for statement in kept)]
        return "\n".join(parts)

    def _follow(self, module: _Module, name: str) -> None:
        if name in module.imports:
            statement, alias = module.imports[name]
            if _is_ours(statement):
                self.need(_source_of(statement, module), alias.name)
            elif not _is_available(statement):
                raise ValueError(
                    f"{module.name}: line {statement.lineno} imports what an environment without mmhf lacks"
                )
        elif name in module.definitions:
            self.need(module.name, name)

    def _import_of(self, module: _Module, name: str) -> tuple[str, str]:
        """The module that a name comes from, empty for a plain import, and the name as the import statement has it."""
        statement, alias = module.imports[name]
        text = f"{alias.name} as {alias.asname}" if alias.asname else alias.name
        if _is_ours(statement):
            return "." + _file_stem(self.need(_source_of(statement, module), alias.name)), text
        return (statement.module or "" if isinstance(statement, ast.ImportFrom) else ""), text

    def _module(self, name: str) -> _Module:
        if name not in self.modules:
            self.modules[name] = _Module.read(name)
        return self.modules[name]


def _import_block(imports: Iterable[tuple[str, str]]) -> str:
    names: dict[str, list[str]] = {}
    for module, text in imports:
        names.setdefault(module, []).append(text)
    plain = [f"import {text}" for text in sorted(names.pop("", []))]
    # One line each: transformers finds relative imports by a pattern.
    return "\n".join(plain + [f"from {module} import {', '.join(sorted(names[module]))}" for module in sorted(names)])


def _names_in(node: ast.AST) -> Iterable[str]:
    names = []
    for child in ast.walk(node):
        if isinstance(child, ast.Name):
            names.append(child.id)
    return dict.fromkeys(names)


def _mark_as_optional(lines: list[str], statement: ast.Import | ast.ImportFrom) -> None:
    """Put an import inside a function under `try`.

    transformers looks at all imports of remote code before it runs, those inside functions that may never be called
    too, and refuses what is not installed, unless it stands there.
    """
    first, last = statement.lineno - 1, (statement.end_lineno or statement.lineno) - 1
    indent = lines[first][: statement.col_offset]
    inside = "\n".join(f"    {line}" for line in lines[first : last + 1])
    lines[first] = f"{indent}try:\n{inside}\n{indent}finally:\n{indent}    pass"
    for index in range(first + 1, last + 1):
        lines[index] = ""


def _is_ours(statement: ast.Import | ast.ImportFrom) -> bool:
    if isinstance(statement, ast.ImportFrom):
        return statement.level > 0 or (statement.module or "").partition(".")[0] == _PACKAGE
    return any(alias.name.partition(".")[0] == _PACKAGE for alias in statement.names)


def _source_of(statement: ast.Import | ast.ImportFrom, module: _Module) -> str:
    if not isinstance(statement, ast.ImportFrom) or statement.level or statement.module in (None, _PACKAGE):
        raise ValueError(f"{module.name}: line {statement.lineno} must be of the form `from mmhf.x.y import NAME`")
    return statement.module or ""


def _is_available(statement: ast.Import | ast.ImportFrom) -> bool:
    names = [statement.module or ""] if isinstance(statement, ast.ImportFrom) else [a.name for a in statement.names]
    packages = {name.partition(".")[0] for name in names}
    return packages <= _AVAILABLE | sys.stdlib_module_names
