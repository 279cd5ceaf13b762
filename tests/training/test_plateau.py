"""Plateaus and best checkpoints, of metrics that are better when greater and of those that are better when smaller."""

import pytest

from mmhf.recipe import recipe_from_dict
from mmhf.recipe.training_sections import PlateauSection
from mmhf.training.arguments import training_arguments
from mmhf.training.boundary import scores_since, stalled

FALLING = [40.0, 30.0, 20.0, 10.0]


def history(key, values):
    return [{"step": step, key: value} for step, value in enumerate(values, start=1)]


@pytest.mark.parametrize(
    ("metric", "is_stalled"),
    [
        ("loss", False),
        ("image_to_text_median_rank", False),
        ("alignment", False),
        ("text_uniformity", False),
        ("mean_recall", True),
        ("f1_macro", True),
    ],
)
def test_a_falling_metric_has_stalled_only_where_more_is_better(metric, is_stalled):
    settings = PlateauSection(metric=metric, patience=3)
    falling = scores_since(history(f"eval_{metric}", FALLING), f"eval_{metric}", 0)
    rising = scores_since(history(f"eval_{metric}", FALLING[::-1]), f"eval_{metric}", 0)
    assert stalled(falling.values(), settings) == is_stalled
    assert stalled(rising.values(), settings) != is_stalled


def test_a_rank_must_fall_by_more_than_min_delta():
    scores = scores_since(
        history("eval_text_to_image_median_rank", [9.0, 8.5, 8.2]), "eval_text_to_image_median_rank", 0
    )
    settings = {"metric": "text_to_image_median_rank", "patience": 2}
    assert stalled(scores.values(), PlateauSection(**settings, min_delta=1.0))
    assert not stalled(scores.values(), PlateauSection(**settings, min_delta=0.4))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"metric_for_best_model": "image_to_text_median_rank"}, False),
        ({"metric_for_best_model": "eval_alignment"}, False),
        ({"metric_for_best_model": "loss"}, False),
        ({"metric_for_best_model": "mean_recall"}, True),
        ({"metric_for_best_model": "alignment", "greater_is_better": True}, True),
    ],
)
def test_the_best_checkpoint_is_best_the_way_its_metric_is(given, expected, tmp_path):
    values = {"task": "contrastive", "data": {"source": "sample"}, "training": {**given, "use_cpu": True}}
    recipe = recipe_from_dict(values, name="best").recipe
    args = training_arguments(recipe, str(tmp_path), has_validation=True)
    assert args.load_best_model_at_end
    assert args.greater_is_better is expected
