"""Plots show the numbers they were given."""

import inspect

import numpy as np
import pytest

from jaxdiv import linalg
from jaxdiv.diagnostics import plots
from jaxdiv.diagnostics.double_descent import DoubleDescent
from jaxdiv.diagnostics.learning_rate_transfer import LearningRateTransfer

pytest.importorskip("matplotlib")


def test_matplotlib_is_imported_on_call_only():
    assert "matplotlib" not in vars(plots)
    module_level = [
        line for line in inspect.getsource(plots).splitlines() if line.startswith(("import", "from"))
    ]
    assert not any("matplotlib" in line for line in module_level)


@pytest.mark.paper(188)
def test_scatter_has_every_model():
    figure = plots.sharpness_scatter(
        np.array([0.1, 1.0]), np.array([0.2, 0.3]), np.array([1.0, 2.0]), color_label="η"
    )
    axes, bar = figure.axes
    np.testing.assert_allclose(axes.collections[0].get_offsets(), [[0.1, 0.2], [1.0, 0.3]])
    assert bar.get_ylabel() == "η"


@pytest.mark.paper(64)
def test_spectrum_is_a_density():
    """Two nodes of weights 3 and 1: the area is 1 and three quarters of it lie around the first."""
    density = linalg.SpectralDensity(np.array([[0.0, 10.0]]), np.array([[3.0, 1.0]]))
    figure = plots.spectrum(density, width=0.5, marks={"2/η": 5.0})
    line, mark = figure.axes[0].lines
    x, y = line.get_data()
    np.testing.assert_allclose(np.trapezoid(y, x), 1, rtol=1e-3)
    np.testing.assert_allclose(np.trapezoid(np.where(x < 5, y, 0), x), 0.75, rtol=1e-3)
    assert mark.get_xdata()[0] == 5
    single = plots.spectrum(linalg.SpectralDensity(np.ones((1, 1)), np.ones((1, 1))))
    assert np.isfinite(single.axes[0].lines[0].get_ydata()).all()


@pytest.mark.paper(29)
def test_double_descent_draws_medians():
    scan = DoubleDescent((1, 2), np.array([[1.0, 2, 9], [1, 1, 1]]), np.array([[3.0, 4, 5], [2, 2, 2]]))
    test, train = plots.double_descent({"late": scan}).axes[0].lines
    assert test.get_ydata().tolist() == [4, 2]
    assert train.get_ydata().tolist() == [2, 1]


@pytest.mark.paper(198)
def test_learning_rates_mark_the_best():
    losses = np.array([[[3.0], [1.0]], [[1.0], [2.0]]])
    lines = plots.learning_rates(LearningRateTransfer((1, 2), (0.1, 1.0), losses)).axes[0].lines
    assert [float(np.squeeze(line.get_xdata())) for line in lines[1::2]] == [1.0, 0.1]


@pytest.mark.parametrize(
    "figure",
    [
        lambda: plots.direction_bars({"gradient": [9.0, 8.0], "sign": [1.0, 2.0]}),
        lambda: plots.interpolation([0.0, 1.0], {"loss": [1.0, 2.0]}, {"in": [1.0, 2.0]}),
        lambda: plots.stability([0.1, 0.2], {"B = 1": [0.9, 1.1]}, {"2/λ": 0.15}),
        lambda: plots.batch_scaling([16, 64], np.ones((2, 3)), np.ones(2), 1.0),
        lambda: plots.opposing_groups({"up": [1.0, -1.0]}, [3.0, 4.0], 2, 2.0),
        lambda: plots.sharpness_curves({"64": [1.0, 2.0]}, 10, 2.0),
        lambda: plots.pruning([0.0, 0.9], {"sgd": np.ones((2, 3))}),
    ],
)
def test_the_others_draw(figure, tmp_path):
    drawn = figure()
    drawn.savefig(tmp_path / "figure.png", dpi=20)
    assert all(axes.get_xlabel() or axes.get_ylabel() for axes in drawn.axes)
