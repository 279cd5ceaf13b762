"""The README.md of a release."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmhf.hub.manifest import ReleaseReference

_EXAMPLES = {
    "image-text-classification": 'classifier = pipeline("image-text-classification", model="{model}")\n'
    'classifier({{"image": "photo.jpg", "text": "what the photo shows"}})',
}


def model_card(
    name: str,
    version: str,
    *,
    task: str,
    metrics: Mapping[str, float],
    parent: ReleaseReference | None,
    model_path: str,
) -> str:
    """Markdown with front matter for one release.

    Args:
        name (`str`): Name of the repository.
        version (`str`): The version, as `v1.8`.
        task (`str`): The recipe's `task`.
        metrics (`Mapping[str, float]`): `metrics.json` of the run.
        parent (`ReleaseReference`, *optional*): What training started from.
        model_path (`str`): What a user passes as `model=`.
    """
    lines = ["---", "library_name: transformers", "tags:", "- mmhf", f"- {task}", "---", "", f"# {name} {version}", ""]
    started = "its backbones" if parent is None else f"`{parent}` (commit `{(parent.commit or 'unknown')[:12]}`)"
    lines += [f"A model for {task}, trained with mmhf from {started}.", ""]
    if task in _EXAMPLES:
        example = _EXAMPLES[task].format(model=model_path)
        lines += ["```python", "from mmhf import pipeline", "", example, "```", ""]
    lines += ["| metric | value |", "|---|---|"]
    lines += [f"| {metric} | {_number(value)} |" for metric, value in sorted(metrics.items())]
    lines += ["", "`recipe.yaml` reruns the training; `release.json` holds lineage, data fingerprint and file hashes."]
    return "\n".join(lines) + "\n"


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
