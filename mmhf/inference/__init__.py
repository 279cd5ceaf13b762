"""Serving a trained model: pipelines and batch prediction."""

from __future__ import annotations

from mmhf.inference.batch import PredictionSettings, PredictionSummary, predict_table
from mmhf.inference.captioning import ImageCaptioningPipeline
from mmhf.inference.pipelines import ImageTextClassificationPipeline, pipeline

__all__ = [
    "ImageCaptioningPipeline",
    "ImageTextClassificationPipeline",
    "PredictionSettings",
    "PredictionSummary",
    "pipeline",
    "predict_table",
]
