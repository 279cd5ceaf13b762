"""A finished run, as Python has it."""

from __future__ import annotations

import base64
import functools
import html
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmhf.errors import InputError
from mmhf.files import METRICS_FILE, PLOTS_FOLDER, REPORT_FILE, read_json_object

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FOLD_FOLDER = "fold_{}"
"""Of a cross-validation, by the fold's number from 1."""
_FIRST_PICTURES = ("curves.png", "training.png")
_SHOWN = 12


@dataclass(frozen=True)
class Run:
    """A run's folder. In a notebook it shows its numbers and curves.

    Args:
        folder (`Path`): The folder.
    """

    folder: Path

    @functools.cached_property
    def metrics(self) -> dict[str, float]:
        """The final numbers, by split and name: `test_accuracy`.

        Raises:
            InputError: The run is not finished.
        """
        if not (self.folder / METRICS_FILE).is_file():
            raise InputError(f"{self.folder}: no {METRICS_FILE}: not the folder of a run, or the run is unfinished")
        return read_json_object(self.folder / METRICS_FILE)

    @property
    def report(self) -> Path:
        """The page of the report."""
        return self.folder / REPORT_FILE

    @property
    def plots(self) -> dict[str, Path]:
        """Name → picture."""
        return {path.stem: path for path in sorted((self.folder / PLOTS_FOLDER).glob("*.png"))}

    @property
    def folds(self) -> list[Run]:
        """The runs of a cross-validation, in the order of the folds; none of another run."""
        paths = map(self.folder.joinpath, map(FOLD_FOLDER.format, itertools.count(1)))
        return [Run(path) for path in itertools.takewhile(Path.is_dir, paths)]

    @functools.cached_property
    def model(self) -> PreTrainedModel:
        """The trained model, in eval mode, on the accelerator of this machine or the CPU."""
        return self._loaded[0]

    @functools.cached_property
    def processor(self) -> Any:
        """What makes the model's inputs."""
        return self._loaded[1]

    @functools.cached_property
    def _loaded(self) -> tuple[PreTrainedModel, Any]:
        from mmhf.inference.loading import load_model

        return load_model(self.folder)

    def release(self, repo: str, version: str, **settings: Any) -> str:
        """Keep this run as an immutable version.

        Args:
            repo (`str`): Folder that holds the versions of the model, or with `push=True` ORG/NAME on the Hub.
            version (`str`): Such as `1.8`.
            settings (`Any`): Further keys of a recipe's `release:` section, such as `push` and `card`.

        Returns:
            `str`: The folder of the new version, or its name and address on the Hub.

        Raises:
            InputError: The version exists already, or the run is not finished.
        """
        from mmhf.hub.lineage import release_run, release_settings

        return release_run(self.folder, release_settings({"repo": repo, "version": version, **settings}))

    def __str__(self) -> str:
        shown = list(self.metrics.items())[:_SHOWN]
        numbers = "\n".join(f"  {name:<32} {_number(value)}" for name, value in shown)
        return f"{self.folder}\n{numbers}\n  report: {self.report}"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td style='text-align:left'>{html.escape(name)}</td><td>{_number(value)}</td></tr>"
            for name, value in list(self.metrics.items())[:_SHOWN]
        )
        pictures = [self.folder / PLOTS_FOLDER / name for name in _FIRST_PICTURES]
        picture = next((path for path in pictures if path.is_file()), None)
        drawn = ""
        if picture is not None:
            content = base64.b64encode(picture.read_bytes()).decode()
            drawn = f"<img alt='curves' style='max-width:100%' src='data:image/png;base64,{content}'>"
        link = f"<a href='{html.escape(str(self.report))}'>report</a>"
        return f"<p><b>{html.escape(str(self.folder))}</b> · {link}</p><table>{rows}</table>{drawn}"


def _number(value: object) -> str:
    return "undefined" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
