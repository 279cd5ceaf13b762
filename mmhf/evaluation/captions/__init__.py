"""Metrics of generated captions, free of Java (ROUGE, BLEU, CIDEr-D, METEOR, CLIPScore), their report and gallery."""

from __future__ import annotations

from mmhf.evaluation.captions.baselines import best_constant_caption, nearest_neighbour_captions
from mmhf.evaluation.captions.caption_files import CaptionFile, read_caption_files
from mmhf.evaluation.captions.clip_score import ClipScorer, clip_scores
from mmhf.evaluation.captions.evaluate_metrics import CocoRouge, RougeScore
from mmhf.evaluation.captions.gallery import (
    CaptionExample,
    caption_gallery,
    scores_of_image,
    small_image,
    spread_rows,
    write_caption_gallery,
)
from mmhf.evaluation.captions.metrics import CaptionEvaluation, caption_metrics, evaluate_captions
from mmhf.evaluation.captions.protocols import BOOTSTRAP_PROTOCOL, CAPTION_PROTOCOLS
from mmhf.evaluation.captions.report import caption_report_sections
from mmhf.evaluation.captions.tokenization import coco_tokens

__all__ = [
    "BOOTSTRAP_PROTOCOL",
    "CAPTION_PROTOCOLS",
    "CaptionEvaluation",
    "CaptionExample",
    "CaptionFile",
    "ClipScorer",
    "CocoRouge",
    "RougeScore",
    "best_constant_caption",
    "caption_gallery",
    "caption_metrics",
    "caption_report_sections",
    "clip_scores",
    "coco_tokens",
    "evaluate_captions",
    "nearest_neighbour_captions",
    "read_caption_files",
    "scores_of_image",
    "small_image",
    "spread_rows",
    "write_caption_gallery",
]
