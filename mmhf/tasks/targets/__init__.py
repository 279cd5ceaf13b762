"""What models of labels or numbers learn, one file a kind."""

from __future__ import annotations

from typing import Any

from mmhf.recipe.classification import ClassificationRecipe
from mmhf.recipe.target_sections import MultiLabelSection, OrdinalSection, RegressionSection, TargetSection
from mmhf.tasks.targets.base import ClassifierTarget, Predicted
from mmhf.tasks.targets.multi_label import MultiLabelTarget
from mmhf.tasks.targets.ordinal import OrdinalTarget
from mmhf.tasks.targets.regression import RegressionTarget
from mmhf.tasks.targets.single_label import SingleLabelTarget

__all__ = ["ClassifierTarget", "Predicted", "classifier_target"]

_KINDS: dict[type[TargetSection], type[ClassifierTarget[Any]]] = {
    MultiLabelSection: MultiLabelTarget,
    RegressionSection: RegressionTarget,
    OrdinalSection: OrdinalTarget,
}


def classifier_target(recipe: ClassificationRecipe) -> ClassifierTarget[Any]:
    """What a model of this recipe learns."""
    section = recipe.data.target
    return SingleLabelTarget(recipe) if section is None else _KINDS[type(section)](recipe)
