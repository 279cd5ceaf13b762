"""Serving a trained model: pipelines and batch prediction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers
from transformers.pipelines import PIPELINE_REGISTRY

from mmhf.inference.jobs import JobSettings, JobSummary
from mmhf.inference.predictors import predict_table
from mmhf.models.family import families, register_families

__all__ = ["JobSettings", "JobSummary", "pipeline", "predict_table"]

register_families()
for _family in families().values():
    if _family.pipeline is not None:
        PIPELINE_REGISTRY.register_pipeline(
            _family.pipeline_task,
            pipeline_class=_family.load("pipeline"),
            pt_model=_family.load("model"),
            type=_family.pipeline_inputs,
        )

pipeline: Callable[..., Any] = transformers.pipeline
"""transformers', whose types name none but its own tasks."""
