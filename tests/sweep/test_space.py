import pytest

from mmhf.errors import InputError
from mmhf.recipe.overrides import parse_override
from mmhf.sweep import as_overrides, load_space


@pytest.fixture
def space(tmp_path):
    def write(text):
        path = tmp_path / "space.yaml"
        path.write_text(text, encoding="utf-8")
        return load_space(path)

    return write


def test_a_grid_has_every_combination(space):
    grid = space(
        "metric: accuracy\nsampler: grid\nspace:\n"
        "  stages.0.epochs: {low: 1, high: 3}\n"
        "  model.fusion.dropout: {low: 0, high: 0.3, step: 0.1}\n"
        "  model.text.pooling: [cls, mean]\n"
    )
    assert grid.num_trials == 24 == len({tuple(point.values()) for point in grid.grid()})
    assert grid.grid()[0] == {"stages.0.epochs": 1, "model.fusion.dropout": 0, "model.text.pooling": "cls"}
    assert {point["model.fusion.dropout"] for point in grid.grid()} == {0, 0.1, 0.2, 0.3}


def test_whole_numbers_stay_whole(space):
    distributions = space(
        "metric: accuracy\nspace:\n  a: {low: 1, high: 3}\n  b: {low: 1, high: 3.0}\n"
        "  c: {low: 1e-5, high: 1e-3, log: true}\n"
    ).distributions()
    assert [type(distribution).__name__ for distribution in distributions.values()] == [
        "IntDistribution",
        "FloatDistribution",
        "FloatDistribution",
    ]
    assert distributions["c"].log


@pytest.mark.parametrize(
    ("text", "is_maximized"),
    [
        ("metric: accuracy", True),
        ("metric: loss", False),
        ("metric: text_to_image_median_rank", False),
        ("metric: loss\ndirection: maximize", True),
        ("metric: accuracy\ndirection: minimize", False),
    ],
)
def test_a_loss_is_minimized_unless_told_otherwise(space, text, is_maximized):
    assert space(f"{text}\nspace: {{a: [1]}}\n").is_maximized == is_maximized


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        1e-05,
        0.1,
        "cls",
        "1.10",
        "null",
        "2e-5",
        "",
        "timm/efficientnet_b0.ra_in1k",
        " x",
        "no",
        [1, 2],
        {"a": 1},
    ],
)
def test_every_value_reaches_the_recipe_as_it_is(space, value):
    import json

    stored = space(f"metric: accuracy\nspace:\n  a.b: [{json.dumps(value)}, 7]\n").distributions()["a.b"].choices[0]
    (override,) = as_overrides({"a.b": stored})
    assert parse_override(override).value.plain() == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "must be a mapping"),
        ("metric: accuracy\nspace: {}\n", "space: must have at least 1 item"),
        ("metric: accuracy\nspaces: {a: [1]}\n", "spaces: unknown key.*space"),
        ("metric: accuracy\nsampler: tpee\nspace: {a: [1]}\n", "sampler: must be tpe, random or grid"),
        ("metric: accuracy\nspace:\n  a: {low: 3, high: 1}\n", r"space.a: low 3 is not below high 1"),
        ("metric: accuracy\nspace:\n  a: {low: 0, high: 1, log: true}\n", "above 0"),
        ("metric: accuracy\nsampler: grid\nspace:\n  a: {low: 0.5, high: 1}\n", "needs a step.* for a"),
        ("metric: accuracy\nspace:\n  a: {low: 1, hihg: 3}\n", "hihg"),
        ("metric: accuracy\ntrials: 0\nspace: {a: [1]}\n", "trials: .*greater than 0"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(space, text, message):
    with pytest.raises(InputError, match=message) as error:
        space(text)
    assert "space.yaml" in str(error.value)
