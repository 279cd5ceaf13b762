"""Numbers of the values of a column, for families without subgroups of their own."""

from __future__ import annotations

from typing import Any

import datasets
import numpy as np
import pytest

from mmhf.errors import InputError
from mmhf.evaluation.retrieval import retrieval_metrics
from mmhf.recipe import recipe_from_dict
from mmhf.tasks.contrastive import SplitEmbeddings
from mmhf.tasks.subgroup_tables import subgroup_columns, subgroup_values, tables_by_value


def test_recall_of_each_value_is_within_it():
    rng = np.random.default_rng(0)
    images, texts = rng.normal(size=(6, 4)).astype(np.float32), rng.normal(size=(12, 4)).astype(np.float32)
    owners = np.repeat(np.arange(6), 2)
    owners[3] = -1  # its image could not be read
    found = SplitEmbeddings(images, texts, owners, rows=np.array([0, 1, 2, 4, 5, 7]))  # rows 3 and 6 could not, either
    columns = {"origin": ["few"] * 3 + ["many"] * 5}
    [many, few] = tables_by_value(columns, found.measure)["By origin"]
    assert (few["origin"], few["rows"], many["origin"], many["rows"]) == ("few", 3, "many", 5)
    kept = [0, 1, 2, 4, 5]
    expected = retrieval_metrics(images[:3], texts[kept], owners[kept])
    assert {name: few[name] for name in expected} == expected
    expected = retrieval_metrics(images[3:], texts[6:], owners[6:] - 3)
    assert {name: many[name] for name in expected} == expected
    assert tables_by_value(columns, lambda places: None) == {}
    view = found.view(columns)
    assert view is not None and view.groups == {"origin": ["few"] * 3 + ["many"] * 3}


def test_columns_are_those_of_joined_data_and_of_the_recipe():
    members = {name: {"source": "table", "path": f"{name}.csv"} for name in ("a", "b")}
    data = {"source": "joined", "datasets": members, "column": "origin"}
    values = {"task": "contrastive", "data": data, "evaluation": {"subgroups": ["group", "origin"]}}
    recipe = recipe_from_dict(values, name="tables").recipe
    assert subgroup_columns(recipe) == ["origin", "group"]
    rows = datasets.Dataset.from_dict({"extra.origin": ["a", "b"], "extra.group": ["x", None]})
    assert subgroup_values(recipe, rows) == {"origin": ["a", "b"], "group": ["x", "(missing)"]}
    assert subgroup_values(recipe, iter([])) == {}


def test_a_stream_has_no_subgroups():
    values: dict[str, Any] = {"task": "contrastive", "data": {"source": "webdataset", "train": "x.tar"}}
    with pytest.raises(InputError, match="evaluation.subgroups: groups are found in tables"):
        recipe_from_dict({**values, "evaluation": {"subgroups": ["group"]}}, name="stream")
