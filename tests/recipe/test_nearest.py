from __future__ import annotations

import pytest

from mmhf.recipe.nearest import did_you_mean, edit_distance, nearest_names


@pytest.mark.parametrize(
    ("first", "second", "distance"),
    [("", "abc", 3), ("abc", "abc", 0), ("abc", "acb", 1), ("abc", "abx", 1), ("kitten", "sitting", 3)],
)
def test_edit_distance(first: str, second: str, distance: int) -> None:
    assert edit_distance(first, second) == distance
    assert edit_distance(second, first) == distance


@pytest.mark.parametrize(
    ("name", "valid", "nearest"),
    [
        ("bp16", ["fp16", "bf16", "tf32"], ("fp16", "bf16")),
        ("ix", ["image", "id", "label"], ("id",)),
        ("adamw", ["sgd", "adamw_torch", "adamw_8bit"], ("adamw_torch", "adamw_8bit")),
        ("Dropout", ["dropout"], ("dropout",)),
        ("per_device_batch_size", ["per_device_train_batch_size", "seed"], ("per_device_train_batch_size",)),
        ("banana", ["seed", "path"], ()),
        ("a", [], ()),
    ],
)
def test_nearest_names(name: str, valid: list[str], nearest: tuple[str, ...]) -> None:
    assert nearest_names(name, valid) == nearest


def test_nothing_near_says_nothing() -> None:
    assert did_you_mean(()) == ""
    assert did_you_mean(("a", "b")) == "; did you mean a or b?"
