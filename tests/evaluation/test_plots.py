import numpy as np
import pytest
from PIL import Image

from mmhf.evaluation.classification import evaluate_classification
from mmhf.evaluation.plots import (
    plot_confusion_matrix,
    plot_lr_range,
    plot_per_class,
    shorten,
)
from mmhf.evaluation.report.classification import ClassificationReport
from mmhf.evaluation.report.sections import RunFacts
from mmhf.evaluation.report.target_report import Measured

pytestmark = pytest.mark.usefixtures("drawn_figures")


def evaluate(num_labels, num_rows=200):
    random = np.random.default_rng(0)
    labels = random.integers(num_labels, size=num_rows)
    logits = random.normal(size=(num_rows, num_labels))
    names = [f"Crop_{index}___a $disease^ with a rather long name, number {index}" for index in range(num_labels)]
    return evaluate_classification(logits, labels, names)


@pytest.mark.parametrize("num_labels", [1, 2, 12, 60, 100])
@pytest.mark.filterwarnings("error")
@pytest.mark.slow
def test_figures_grow_with_the_classes_and_stay_readable_files(num_labels, tmp_path):
    evaluation = evaluate(num_labels)
    plot_confusion_matrix(evaluation.confusion, evaluation.label_names, tmp_path / "plots" / "matrix.png")
    plot_per_class(evaluation.per_class, tmp_path / "plots" / "classes.png")
    for name in ("matrix.png", "classes.png"):
        with Image.open(tmp_path / "plots" / name) as image:
            assert 300 < image.width < 2600
            assert 150 < image.height < 2600


def test_the_diagonal_of_a_perfect_matrix_is_dark_and_the_rest_is_light(tmp_path):
    dark = []
    for name, matrix in (("right", np.diag([5, 5, 5])), ("nothing", np.zeros((3, 3), dtype=int))):
        plot_confusion_matrix(matrix, ["a", "b", "c"], tmp_path / f"{name}.png")
        with Image.open(tmp_path / f"{name}.png") as image:
            red = np.asarray(image.convert("RGB"))[:, :, 0]
        dark.append(int((red < 40).sum()))
    assert dark[0] > dark[1] + 10_000


def test_all_figures_of_a_run_are_named_by_split(tmp_path):
    empty = evaluate_classification(np.zeros((0, 2)), np.zeros(0, dtype=int), ["a", "b"])
    run = RunFacts(folder=tmp_path, title="run", log_history=[{"step": 1, "loss": 1.0}])
    paths = ClassificationReport().plots(run, {"validation": Measured(evaluate(2)), "test": Measured(empty)})
    assert set(paths) == {"training_curves", "validation_confusion_matrix", "validation_per_class"}
    assert {path.name for path in paths.values()} == {entry.name for entry in (tmp_path / "plots").iterdir()}
    evaluated = RunFacts(folder=tmp_path / "evaluated", title="run")
    assert "training_curves" not in ClassificationReport().plots(evaluated, {"test": Measured(evaluate(2))})


def test_long_names_lose_their_middle():
    assert shorten("Tomato") == "Tomato"
    assert shorten("two\nlines") == "two lines"
    cut = shorten("Tomato___Spider_mites Two-spotted_spider_mite")
    assert len(cut) == 30
    assert cut.startswith("Tomato___Spider") and cut.endswith("spider_mite") and "…" in cut


RATES = np.logspace(-6, 0, 60)
LOSSES = np.where(RATES < 1e-1, 2.0 - 0.2 * np.log10(RATES / 1e-6), 500.0)


@pytest.fixture
def drawn(figures, tmp_path):
    """Draw, and give the axes that were written to a PNG."""

    def draw(suggestions, **options):
        path = tmp_path / "plots" / "lr.png"
        plot_lr_range(RATES, LOSSES, LOSSES, suggestions, path, title="stage $x_", **options)
        assert path.read_bytes().startswith(b"\x89PNG")
        return figures[-1].axes[0]

    return draw


def test_suggestions_are_marked_on_the_curve_over_a_log_axis(drawn):
    axes = drawn({"steepest descent": 1e-3, "a tenth of the minimum": 1e-2})
    assert axes.get_xscale() == "log"
    points = {line.get_label(): line.get_xydata() for line in axes.lines}
    x, y = points["steepest descent: 1.0e-03"][0]
    assert x == 1e-3 and y == pytest.approx(2.0 - 0.2 * 3)
    dashed = sorted(line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == "--")
    assert dashed == [1e-3, 1e-2]


def test_an_explosion_does_not_flatten_the_curve(drawn):
    low, high = drawn({}, exploded=True).get_ylim()
    assert low < LOSSES.min() and 2.0 < high < 10.0


def test_a_suggestion_below_the_tested_rates_stays_in_the_picture(drawn):
    assert drawn({"a tenth of the minimum": 2e-7}).get_xlim()[0] <= 2e-7
