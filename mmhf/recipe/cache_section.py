"""The `cache:` section: whether what frozen encoders make of each sample is kept on disk."""

from __future__ import annotations

from typing import Literal

from mmhf.recipe.sections import PositiveInt, Section

CacheMode = Literal["auto", "on", "off"]


class CacheSection(Section):
    mode: CacheMode = "auto"
    """`auto`: where it saves time, as `mmhf plan` shows; `on`: wherever it is possible."""
    folder: str | None = None
    """Absent: `$MMHF_FEATURES`, else `mmhf/features` in the cache folder of Hugging Face (`$HF_HOME`). Several runs
    may share it."""
    max_bytes: PositiveInt | None = None
    """What all features in the folder may take; those that were not used for the longest time go first. Absent: as
    much as the disk has."""
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """How features are stored; absent: as the encoder gives them, so that nothing is lost."""
    views: PositiveInt | None = None
    """Random changes to images: each image is changed in this many ways, drawn once, and each epoch sees one of them;
    absent: images that change at random are not cached."""


CacheChoice = CacheMode | CacheSection
"""What a recipe may write behind `cache:`, `cache: on` being short for `cache: {mode: on}`."""


def cache_section(choice: CacheChoice) -> CacheSection:
    """The section that a recipe's `cache:` stands for."""
    return choice if isinstance(choice, CacheSection) else CacheSection(mode=choice)
