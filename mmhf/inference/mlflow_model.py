"""A trained model as an artifact of MLflow, which `mlflow.pyfunc.load_model` loads and predicts with.

Whoever loads it needs mmhf; MLflow finds `_load_pyfunc` by its name.
"""

from __future__ import annotations

import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
from transformers import AutoConfig

from mmhf.inference import pipeline
from mmhf.models.family import families

_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
_REQUIREMENTS = ("mmhf", "torch", "torchvision", "transformers", "timm")


class PipelineModel:
    """The pipeline of a model's family, for the rows of a table.

    Args:
        folder (`str`): The model.
    """

    def __init__(self, folder: str) -> None:
        family = families()[AutoConfig.from_pretrained(folder).model_type]
        self._takes_pairs = family.pipeline_task == "image-text-classification"
        self._pipeline: Any = pipeline(family.pipeline_task, model=folder)

    def predict(self, model_input: pd.DataFrame | list[dict[str, Any]], params: Any = None) -> list[Any]:
        """What the pipeline says of each row.

        Args:
            model_input (`DataFrame` or `list[dict]`): Rows with `image` (path, URL or base64), and whatever else the
                pipeline takes, such as `text` or `candidate_labels`.
            params (`Any`): What MLflow passes; not used.
        """
        rows = model_input.to_dict("records") if isinstance(model_input, pd.DataFrame) else model_input
        answers = []
        for row in rows:
            named = {str(name): value for name, value in row.items()}
            answers.append(self._pipeline(named) if self._takes_pairs else self._pipeline(named.pop("image"), **named))
        return answers


def _load_pyfunc(path: str) -> PipelineModel:
    return PipelineModel(path)


def log_model(run_dir: Path) -> None:
    """Log the model of a run folder as the artifact `model` of MLflow's active run.

    Args:
        run_dir (`Path`): A finished run.
    """
    import mlflow

    with tempfile.TemporaryDirectory() as folder:
        for path in (path for pattern in _FILES for path in run_dir.glob(pattern)):
            (Path(folder) / path.name).symlink_to(path.resolve())
        mlflow.pyfunc.log_model(
            name="model",
            loader_module=__name__,
            data_path=folder,
            pip_requirements=[f"{name}=={metadata.version(name)}" for name in _REQUIREMENTS],
        )
