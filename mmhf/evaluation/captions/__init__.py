"""Metrics of generated captions, free of Java: ROUGE, BLEU, CIDEr-D, METEOR, CLIPScore."""

from __future__ import annotations

from mmhf.evaluation.captions.baselines import (
    best_constant_caption,
    frequent_answers,
    nearest_answers,
    nearest_neighbour_captions,
)
from mmhf.evaluation.captions.caption_files import CaptionFile, read_caption_files
from mmhf.evaluation.captions.clip_score import ClipScorer, clip_scores
from mmhf.evaluation.captions.metrics import (
    BOOTSTRAP_PROTOCOL,
    CAPTION_PROTOCOLS,
    CaptionEvaluation,
    caption_metrics,
    evaluate_captions,
)
from mmhf.evaluation.captions.tokenization import coco_tokens

__all__ = [
    "BOOTSTRAP_PROTOCOL",
    "CAPTION_PROTOCOLS",
    "CaptionEvaluation",
    "CaptionFile",
    "ClipScorer",
    "best_constant_caption",
    "caption_metrics",
    "clip_scores",
    "coco_tokens",
    "evaluate_captions",
    "frequent_answers",
    "nearest_answers",
    "nearest_neighbour_captions",
    "read_caption_files",
]
