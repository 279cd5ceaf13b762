"""Which encoders a model is saved without, because they can be had again from where they come."""

from __future__ import annotations

from mmhf.models.backbones import reference_of
from mmhf.models.layer_groups import layer_of
from mmhf.models.partition import Partition
from mmhf.models.tower import TowerModel
from mmhf.recipe.schema import RecipeBase


def references_of(recipe: RecipeBase, model: TowerModel, *, all_frozen: bool) -> dict[str, str]:
    """Encoders that no stage trains → where they come from.

    Args:
        recipe ([`RecipeBase`]): The run's recipe.
        model ([`TowerModel`]): As the run begins, with the references of the release that it is from.
        all_frozen (`bool`): Every such encoder; False: those whose weights have few bits, and those that were only
            referred to before.
    """
    if recipe.release is not None and recipe.release.include_frozen:
        return {}
    partition = Partition.of(model)
    selectors = [stage.train for stage in recipe.stages or []] or [recipe.model.trained_by_default()]
    groups = {group for selector in selectors for group in partition.select(selector)}
    trained = {group.partition(".")[0] for group in groups if layer_of(group) == group}
    found = {}
    for name in model.encoders():
        reference = model.config.references.get(name)
        # What an earlier run has trained, and therefore stored, is not what the backbone's name stands for.
        if reference is None and recipe.init_from is None and (all_frozen or model.bits_of(name) is not None):
            section = getattr(recipe.model, name)
            reference = reference_of(section.backbone) if section.pretrained else None
        if reference is not None and name not in trained:
            found[name] = reference
    return found
