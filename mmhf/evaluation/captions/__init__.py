"""Metrics of generated captions, free of Java: ROUGE, BLEU, CIDEr-D, METEOR and CLIPScore."""

from __future__ import annotations

from mmhf.evaluation.captions.metrics import CaptionEvaluation, caption_metrics, evaluate_captions
from mmhf.evaluation.captions.protocols import BOOTSTRAP_PROTOCOL, CAPTION_PROTOCOLS

__all__ = ["BOOTSTRAP_PROTOCOL", "CAPTION_PROTOCOLS", "CaptionEvaluation", "caption_metrics", "evaluate_captions"]
