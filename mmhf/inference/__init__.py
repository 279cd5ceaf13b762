"""Serving a trained model: pipelines and batch prediction."""

from __future__ import annotations

from mmhf.inference.captioning import ImageCaptioningPipeline
from mmhf.inference.pipelines import ImageTextClassificationPipeline, pipeline
from mmhf.inference.predictors import predict_table
from mmhf.inference.table_job import JobSettings, JobSummary

__all__ = [
    "ImageCaptioningPipeline",
    "ImageTextClassificationPipeline",
    "JobSettings",
    "JobSummary",
    "pipeline",
    "predict_table",
]
