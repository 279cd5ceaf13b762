"""Views of an image, chosen for a model that is loaded already."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from transformers import PreTrainedModel, ProcessorMixin

from mmhf.conventions import Processor
from mmhf.errors import InputError
from mmhf.models.classifier_config import ClassifierConfig
from mmhf.models.naflex import NaflexImageProcessor
from mmhf.recipe.classification import ViewsSection
from mmhf.recipe.node import Origin
from mmhf.recipe.validation import check_section
from mmhf.recipe.yaml_loader import parse_yaml

ChosenViews = Mapping[str, Any] | Literal["off"] | str
"""Values of a recipe's `evaluation.views`, the same as YAML, or `off`: the image as it is."""


def set_views(model: PreTrainedModel, processor: Processor, views: ChosenViews) -> None:
    """Choose what a classifier averages its answers over, in place of what it was saved with.

    Args:
        model (`PreTrainedModel`): Its config is changed.
        processor (`Processor`): What makes its inputs.
        views (`Mapping[str, Any]` or `str`): Such as `{"horizontal_flip": True}`, or `"off"`.

    Raises:
        InputError: There are no such views, or the model is no classifier that looks at images of one shape.
    """
    config: Any = model.config
    if not isinstance(config, ClassifierConfig) or vars(config).get("mask") == "image":
        raise InputError("views: only classifiers that look at images average over views of them")
    if views == "off":
        config.views = None
        return
    images = processor.image_processor if isinstance(processor, ProcessorMixin) else processor
    if isinstance(images, NaflexImageProcessor):
        raise InputError("views: the model takes images in their own shape (data.resize: naflex), which have none")
    given = parse_yaml(views, "views").plain() if isinstance(views, str) else dict(views)
    if not isinstance(given, dict):
        raise InputError(f"views: expected off, or names of views such as {{horizontal_flip: true}}; got {views!r}")
    section, problems = check_section(ViewsSection, given)
    if section is None:
        raise InputError("\n".join(problem.line(Origin("views")) for problem in problems))
    config.views = section.model_dump()
