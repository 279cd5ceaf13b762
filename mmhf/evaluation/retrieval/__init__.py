"""Image-text retrieval and zero-shot classification, from embeddings."""

from __future__ import annotations

from mmhf.evaluation.retrieval.geometry import alignment, uniformity
from mmhf.evaluation.retrieval.metrics import (
    RETRIEVAL_PROTOCOLS,
    RetrievalEvaluation,
    evaluate_retrieval,
    retrieval_metrics,
)

__all__ = [
    "RETRIEVAL_PROTOCOLS",
    "RetrievalEvaluation",
    "alignment",
    "evaluate_retrieval",
    "retrieval_metrics",
    "uniformity",
]
