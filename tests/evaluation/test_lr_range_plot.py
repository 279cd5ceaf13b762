import numpy as np
import pytest
from matplotlib.figure import Figure

from mmhf.evaluation.lr_range_plot import plot_lr_range

RATES = np.logspace(-6, 0, 60)
LOSSES = np.where(RATES < 1e-1, 2.0 - 0.2 * np.log10(RATES / 1e-6), 500.0)


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draw, and give the axes that were written to a PNG."""
    figures = []
    original = Figure.savefig

    def savefig(figure, *args, **kwargs):
        figures.append(figure)
        return original(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", savefig)

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
