import math

import pytest
from PIL import Image

from mmhf.evaluation.curves import (
    Series,
    StageSpan,
    has_values,
    plot_training_curves,
    rate_series,
    series,
    stage_spans,
)

pytestmark = pytest.mark.usefixtures("drawn_figures")

GROUPS = ["vision.stem", "vision.stages.0", "vision.stages.1", "fusion", "head"]


@pytest.fixture
def log_history():
    """Two stages of 20 steps, logged every 5, evaluated every 10, and the best model evaluated again at the end."""
    log = []
    for step in range(5, 41, 5):
        stage, base = ("head", 1e-3) if step <= 20 else ("all of it", 1e-5)
        rates = {
            f"lr/{group}": base / step if stage != "head" or group in ("fusion", "head") else 0.0 for group in GROUPS
        }
        log.append(
            {"step": step, "epoch": step / 20, "loss": 1 / step, "learning_rate": base, "stage": stage, **rates}
        )
        if step % 10 == 0:
            log.append({"step": step, "eval_loss": 2 / step, "eval_accuracy": step / 80, "eval_f1_macro": step / 90})
    log.append({"step": 40, "train_runtime": 3.0, "train_loss": 0.1})
    log.append({"step": 40, "eval_loss": 9.0, "eval_accuracy": 0.1, "eval_f1_macro": 0.1})
    return log


def test_a_series_keeps_what_was_measured_in_training(log_history):
    assert series(log_history, "eval_accuracy") == Series([10, 20, 30, 40], [0.125, 0.25, 0.375, 0.5])
    assert series(log_history, "loss").steps == [5, 10, 15, 20, 25, 30, 35, 40]
    assert series(log_history, "eval_bleu") == Series([], [])


def test_stages_end_where_the_next_begins(log_history):
    assert stage_spans(log_history) == [StageSpan("head", 0, 20), StageSpan("all of it", 20, 40)]
    assert stage_spans([{"step": 1, "loss": 1.0}]) == []


def test_a_stage_that_comes_back_is_a_new_span():
    log = [{"step": step, "stage": stage} for step, stage in ((3, "a"), (6, "b"), (9, "a"))]
    assert stage_spans(log) == [StageSpan("a", 0, 3), StageSpan("b", 3, 6), StageSpan("a", 6, 9)]


def test_groups_with_equal_rates_share_a_curve(log_history):
    curves = rate_series(log_history)
    assert list(curves) == ["vision.stem … vision.stages.1 (3 groups)", "fusion, head"]
    assert curves["fusion, head"].values[0] == 1e-3 / 5
    assert curves["vision.stem … vision.stages.1 (3 groups)"].values[0] == 0.0


def test_without_groups_the_one_rate_stands_alone():
    assert rate_series([{"step": 1, "learning_rate": 0.5}]) == {"learning rate": Series([1], [0.5])}
    assert rate_series([{"step": 1, "eval_loss": 0.5}]) == {}


def test_has_values():
    assert has_values([{"step": 1, "eval_loss": 1.0}])
    assert not has_values([{"step": 9, "train_runtime": 1.0}])
    assert not has_values([])


def ink(path):
    """How many pixels are not white."""
    with Image.open(path) as image:
        return sum(image.convert("L").histogram()[:200])


@pytest.mark.slow
def test_curves_are_drawn_the_same_each_time(log_history, tmp_path):
    for name in ("one.png", "two.png"):
        plot_training_curves(log_history, tmp_path / "plots" / name)
    first, second = ((tmp_path / "plots" / name).read_bytes() for name in ("one.png", "two.png"))
    assert first == second
    without_stages = [{key: value for key, value in entry.items() if key != "stage"} for entry in log_history]
    plot_training_curves(without_stages, tmp_path / "bare.png")
    assert ink(tmp_path / "plots" / "one.png") > ink(tmp_path / "bare.png")


@pytest.mark.parametrize(
    "log",
    [
        [],
        [{"step": 1, "loss": 1.0, "learning_rate": 0.0}],
        [{"step": 1, "loss": math.nan}, {"step": 1, "eval_loss": math.nan, "eval_accuracy": math.nan}],
        [{"step": 5, "eval_loss": 0.3, "eval_accuracy": 1.0, "eval_f1_macro": 1.0}],
        [
            {"step": 3 * at, "loss": 1.0, "stage": f"the $stage_{at} with a <long> name", "lr/$a": at}
            for at in range(9)
        ],
        [{"step": 1, "loss": 1.0, **{f"lr/group{at}": 1e-3 / (at + 1) for at in range(30)}}],
    ],
    ids=["empty", "no rate", "nan", "evaluation only", "nine long stages", "thirty groups"],
)
@pytest.mark.filterwarnings("error")
@pytest.mark.slow
def test_unusual_logs_are_drawn_without_a_warning(log, tmp_path):
    plot_training_curves(log, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        assert image.width > 1000


@pytest.fixture
def panels(figures, tmp_path):
    """Draw, and give the titles of the panels with the number of curves in each."""

    def draw(log, **options):
        plot_training_curves(log, tmp_path / "curves.png", **options)
        return {
            axes.get_title(loc="left"): [line for line in axes.lines if len(line.get_xdata()) > 1]
            for axes in figures[-1].axes
        }

    return draw


@pytest.mark.parametrize(
    ("metrics", "titles"),
    [
        (("accuracy", "f1_macro"), ["Accuracy (validation)", "Macro-F1 (validation)"]),
        (("rougeL", "cider", "rouge1"), ["ROUGE-L (validation)", "CIDEr-D (validation)"]),
        (
            [f"{way}_recall@{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)],
            ["Recall, image to text (validation)", "Recall, text to image (validation)"],
        ),
        ((), []),
    ],
)
@pytest.mark.slow
def test_each_task_draws_its_own_metrics_and_no_panel_is_empty(panels, metrics, titles):
    log = [{"step": step, "loss": 1.0, "learning_rate": 1e-3} for step in (1, 2, 3)]
    log += [{"step": step, **{f"eval_{name}": 0.1 * step for name in metrics}} for step in (2, 3)]
    drawn = panels(log)
    assert list(drawn) == ["Loss", *titles, "Learning rate"]
    assert all(drawn.values())
    if "Recall" in "".join(titles):
        assert all(len(drawn[title]) == 3 for title in titles)


def test_what_checkpoints_are_chosen_by_is_drawn_and_its_best_marked(panels):
    log = [{"step": step, "eval_ece": value} for step, value in ((1, 0.5), (2, 0.2), (3, 0.3))]
    drawn = panels(log, best_metric="ece")
    (line,) = drawn["ece (validation)"]
    assert line.get_label() == "best 0.2000, step 2"
