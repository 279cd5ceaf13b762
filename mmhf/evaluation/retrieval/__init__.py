"""Image-text retrieval and zero-shot classification, from embeddings."""

from __future__ import annotations

from mmhf.evaluation.retrieval.embedding_view import EmbeddingView, embedding_view
from mmhf.evaluation.retrieval.metrics import (
    RETRIEVAL_PROTOCOLS,
    UNIQUE_TEXT_PROTOCOLS,
    RetrievalEvaluation,
    alignment,
    evaluate_retrieval,
    modality_gap,
    retrieval_metrics,
    uniformity,
)
from mmhf.evaluation.retrieval.prefixes import prefix_protocols, prefix_recalls
from mmhf.evaluation.retrieval.templates import NAMED_TEMPLATES, templates_of
from mmhf.evaluation.retrieval.zero_shot import (
    DEFAULT_TEMPLATES,
    ZERO_SHOT_PROTOCOLS,
    fill_templates,
    zero_shot_class_embeddings,
    zero_shot_metrics,
)

__all__ = [
    "DEFAULT_TEMPLATES",
    "NAMED_TEMPLATES",
    "RETRIEVAL_PROTOCOLS",
    "UNIQUE_TEXT_PROTOCOLS",
    "ZERO_SHOT_PROTOCOLS",
    "EmbeddingView",
    "RetrievalEvaluation",
    "alignment",
    "embedding_view",
    "evaluate_retrieval",
    "fill_templates",
    "modality_gap",
    "prefix_protocols",
    "prefix_recalls",
    "retrieval_metrics",
    "templates_of",
    "uniformity",
    "zero_shot_class_embeddings",
    "zero_shot_metrics",
]
