"""Hyperparameter sweeps on Optuna: a space, a study that many processes share, a worker, and what came of it."""

from __future__ import annotations

from mmhf.sweep.space import SweepSpace, as_overrides, load_space
from mmhf.sweep.study import Patience, SharedStudy

__all__ = ["Patience", "SharedStudy", "SweepSpace", "as_overrides", "load_space"]
