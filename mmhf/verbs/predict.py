"""Predict every row of a table or folder."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import transformers
import yaml

from mmhf.errors import InputError
from mmhf.files import RECIPE_FILE
from mmhf.hub import resolve_model
from mmhf.inference import JobSettings, predict_table
from mmhf.recipe import load_recipe
from mmhf.verbs._table_job import job_settings, tell
from mmhf.verbs.own_data import OwnData, columns_of, columns_to_read, write_table
from mmhf.verbs.run import Run


def run(options: argparse.Namespace) -> None:
    transformers.logging.disable_progress_bar()
    summary = predict_table(
        resolve_model(options.model).path,
        options.input,
        options.output,
        job_settings(options),
        threshold=options.threshold,
        generation=_generation(options.generation),
        views=options.views,
        text_embeddings=options.text_embeddings,
        defuse_formulas=options.defuse_formulas,
    )
    labels = sorted(summary.labels.items(), key=lambda each: -each[1])
    made = ", ".join(f"{name} {count:,}" for name, count in labels)
    tell(summary, made or f"{summary.filled.get('caption', 0):,} captions")


def predict(
    model: str | Path | Run,
    data: str | Path | OwnData,
    *,
    output: str | Path | None = None,
    settings: JobSettings | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Predict for every row of a table, a folder, or of data in memory.

    Args:
        model (`str`, `Path` or [`Run`]): A run, its folder, a release, or `REPO@vX.Y`.
        data: A table's file or a folder of images; or a DataFrame, data set or list of dicts with the columns that the
            model was trained on, whose images are paths, PIL images or bytes. A list of paths or PIL images will do
            where the model reads images alone.
        output (`str` or `Path`, *optional*): CSV or parquet file to keep, too.
        settings ([`JobSettings`], *optional*): Columns, batch size, workers, device.
        options (`Any`): `threshold`, `generation`, `views` and `text_embeddings`, as `mmhf predict` has them.

    Returns:
        `pandas.DataFrame`: The rows, in their order, with the columns that were made, as `label` and `confidence`;
        `error` says why a row has none.

    Raises:
        InputError: The model, the data or a column is not there.
    """
    transformers.logging.disable_progress_bar()
    model_dir = resolve_model(str(model.folder if isinstance(model, Run) else model)).path
    settings = settings or JobSettings()
    with tempfile.TemporaryDirectory() as scratch:
        written = Path(scratch) / "predictions.parquet" if output is None else Path(output)
        source = Path(data) if isinstance(data, str | Path) else None
        if source is None:
            rows = data
            if isinstance(data, list | tuple) and data and not isinstance(data[0], Mapping):
                rows = [{"image": image} for image in data]
            read = columns_to_read(load_recipe(model_dir / RECIPE_FILE).recipe, list(columns_of(rows)))
            table = write_table(rows, read.get("image", "image"))
            source = table.path
            settings = replace(settings, columns=read, image_root=table.image_root)
        predict_table(model_dir, source, written, settings, **options)
        return pd.read_parquet(written) if written.suffix == ".parquet" else pd.read_csv(written)


def _generation(pairs: list[str]) -> dict[str, Any]:
    options = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise InputError(f"--generation {pair}: write KEY=VALUE, such as num_beams=4")
        try:
            options[name] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise InputError(f"--generation {pair}: {value!r} is no value") from error
    return options
