"""Image-text retrieval and zero-shot classification, from embeddings."""

from __future__ import annotations

from mmhf.evaluation.retrieval.geometry import alignment, uniformity
from mmhf.evaluation.retrieval.metrics import (
    RETRIEVAL_PROTOCOLS,
    RetrievalEvaluation,
    evaluate_retrieval,
    retrieval_metrics,
)
from mmhf.evaluation.retrieval.plots import save_retrieval_plots
from mmhf.evaluation.retrieval.report import RetrievalExample, retrieval_report_sections, worst_captions
from mmhf.evaluation.retrieval.zero_shot import (
    DEFAULT_TEMPLATES,
    ZERO_SHOT_PROTOCOLS,
    fill_templates,
    zero_shot_class_embeddings,
    zero_shot_metrics,
)

__all__ = [
    "DEFAULT_TEMPLATES",
    "RETRIEVAL_PROTOCOLS",
    "ZERO_SHOT_PROTOCOLS",
    "RetrievalEvaluation",
    "RetrievalExample",
    "alignment",
    "evaluate_retrieval",
    "fill_templates",
    "retrieval_metrics",
    "retrieval_report_sections",
    "save_retrieval_plots",
    "uniformity",
    "worst_captions",
    "zero_shot_class_embeddings",
    "zero_shot_metrics",
]
