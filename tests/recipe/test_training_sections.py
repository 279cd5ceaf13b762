"""Each number that a task measures is known to be better when it is greater, or when it is smaller."""

import pytest

from mmhf.evaluation.calibration import CALIBRATION_PROTOCOLS
from mmhf.evaluation.captions import CAPTION_PROTOCOLS
from mmhf.evaluation.classification import PROTOCOLS
from mmhf.evaluation.retrieval import RETRIEVAL_PROTOCOLS, ZERO_SHOT_PROTOCOLS
from mmhf.recipe.training_sections import greater_is_better

LOWER = {
    "loss", "image_to_text_median_rank", "text_to_image_median_rank", "alignment", "image_uniformity",
    "text_uniformity", "modality_gap", "ece", "ece_uncalibrated", "nll", "brier", "aurc",
}  # fmt: skip
MEASURED = [
    *PROTOCOLS, *CALIBRATION_PROTOCOLS, *CAPTION_PROTOCOLS, *RETRIEVAL_PROTOCOLS, *ZERO_SHOT_PROTOCOLS,
]  # fmt: skip


@pytest.mark.parametrize("metric", sorted(set(MEASURED)))
def test_every_measured_number_has_its_direction_under_each_of_its_names(metric):
    expected = metric not in LOWER
    assert [greater_is_better(f"{prefix}{metric}") for prefix in ("", "eval_", "test_")] == [expected] * 3


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("sex_f1_macro_gap", False),
        ("sex_f1_macro_worst", True),
        ("image_to_text_mean_rank", False),
        ("recall_at_rank_1", True),
        ("floss", True),
    ],
)
def test_only_whole_words_at_the_end_count(metric, expected):
    assert greater_is_better(metric) == expected
