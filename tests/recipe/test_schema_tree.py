from __future__ import annotations

import json
from typing import Any

from mmhf.recipe import json_schema
from mmhf.recipe.by_task import RECIPE_BY_TASK
from mmhf.recipe.fusion_recipe import FusionRecipe
from mmhf.recipe.training_arguments import training_fields

SCHEMA = json_schema()


def definition(name: str) -> dict[str, Any]:
    return SCHEMA["$defs"][name]


def test_it_is_json_and_every_reference_exists() -> None:
    text = json.dumps(SCHEMA)
    references = {part.split('"')[0] for part in text.split("#/$defs/")[1:]}
    assert references <= set(SCHEMA["$defs"])
    assert SCHEMA["anyOf"] == [{"$ref": f"#/$defs/{recipe.__name__}"} for recipe in RECIPE_BY_TASK.values()]


def test_every_section_is_closed_and_described() -> None:
    for name, schema in SCHEMA["$defs"].items():
        assert schema["additionalProperties"] is False, name
    assert set(definition("FusionRecipe")["properties"]) == {*FusionRecipe.model_fields, "extends"}
    assert "description" in definition("StageSection")["properties"]["train"]


def test_training_has_the_fields_of_training_arguments() -> None:
    assert definition("FusionRecipe")["properties"]["training"] == {"$ref": "#/$defs/TrainingArguments"}
    properties = definition("TrainingArguments")["properties"]
    assert set(properties) == set(training_fields())
    strategy, null = properties["eval_strategy"]["anyOf"]
    assert (strategy["enum"], null) == (["no", "steps", "epoch"], {"type": "null"})
    assert strategy["description"]
    assert {"type": "number"}.items() <= properties["learning_rate"]["anyOf"][0].items()


def test_a_partial_recipe_that_extends_another_is_accepted() -> None:
    assert '"required"' not in json.dumps(SCHEMA)
    assert '"oneOf"' not in json.dumps(SCHEMA)
    sources = definition("FusionRecipe")["properties"]["data"]["anyOf"]
    constants = [SCHEMA["$defs"][source["$ref"].split("/")[-1]]["properties"]["source"]["const"] for source in sources]
    assert constants == ["fakeddit", "table", "clinical", "sample", "hub", "joined"]
