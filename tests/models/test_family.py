"""What the families say of themselves."""

from __future__ import annotations

import subprocess
import sys

import pytest

import mmhf
from mmhf.models.family import Family, families, family_of_task
from mmhf.recipe.by_task import RECIPE_BY_TASK

PARTS = ("config", "model", "processor", "pipeline", "predictor", "embedder", "subject")


@pytest.mark.parametrize("family", families().values(), ids=families())
def test_what_a_record_names_is_there(family: Family):
    found = {name: family.load(name) for name in PARTS if vars(family)[name] is not None}
    assert found["config"].model_type == family.model_type
    assert found["model"].config_class is found["config"]
    assert family.task in RECIPE_BY_TASK and family_of_task(family.task) is family
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        family.attribute("Nothing")


def test_the_package_has_every_class_of_every_family_by_name():
    names = [name for family in families().values() for name in family.classes]
    assert len(set(names)) == len(names) >= 11
    for name in names:
        assert getattr(mmhf, name).__name__ == name
        assert name in dir(mmhf) and name in mmhf.__all__
    with pytest.raises(AttributeError, match="no attribute 'FusionTransformer'"):
        mmhf.FusionTransformer  # noqa: B018


def test_a_family_without_an_embedder_says_so():
    with pytest.raises(ValueError, match="mmhf_fusion has no embedder"):
        families()["mmhf_fusion"].load("embedder")


def test_records_are_read_without_torch():
    script = (
        "import sys; from mmhf.models.family import families; assert families(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
