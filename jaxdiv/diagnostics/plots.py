"""Figures of the diagnostics, as a paper shows them; matplotlib is imported when one is drawn.

Each function returns a new ``matplotlib.figure.Figure``, which has ``savefig`` and shows itself in a notebook where
``%matplotlib inline`` was said.
"""

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import ArrayLike, Float

from jaxdiv import linalg
from jaxdiv.diagnostics.double_descent import DoubleDescent
from jaxdiv.diagnostics.learning_rate_transfer import LearningRateTransfer

Figure: TypeAlias = Any


def _axes(width: float = 4.0, height: float = 3.0, columns: int = 1) -> tuple[Figure, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib; install jaxdiv[experiments].") from error
    figure = Figure(figsize=(width * columns, height), layout="constrained")
    return figure, figure.subplots(1, columns)


def _ticks(axes: Any, sizes: ArrayLike) -> None:
    """Labels the sizes themselves on a logarithmic axis."""
    axes.set_xticks(sizes, [f"{size:g}" for size in np.asarray(sizes)])
    axes.minorticks_off()


def sharpness_scatter(
    sharpness: Float[ArrayLike, " models"],
    error: Float[ArrayLike, " models"],
    color: Float[ArrayLike, " models"] | None = None,
    *,
    color_label: str = "",
) -> Figure:
    """Generalization over sharpness, one point per model (papers 188 and 196).

    Args:
        sharpness: Positive, on a logarithmic axis.
        error: Test error of each model.
        color: What the points' color shows, such as the learning rate.
        color_label: Its name.

    Example:
        >>> type(sharpness_scatter(np.array([0.1, 1.0]), np.array([0.2, 0.3]))).__name__
        'Figure'
    """
    figure, axes = _axes()
    points = axes.scatter(sharpness, error, c=color, s=18)
    axes.set(xscale="log", xlabel="sharpness", ylabel="test error")
    if color is not None:
        figure.colorbar(points, label=color_label)
    return figure


def direction_bars(sharpness: Mapping[str, Float[ArrayLike, " seeds"]]) -> Figure:
    """Directional sharpness of each kind of update, one bar each with its range over seeds (paper 192).

    Args:
        sharpness: Positive values for each name.

    Example:
        >>> type(direction_bars({"gradient": [9.0, 8.0], "sign": [1.0, 2.0]})).__name__
        'Figure'
    """
    figure, axes = _axes()
    middle = [np.median(values) for values in sharpness.values()]
    ends = np.array([[np.min(values), np.max(values)] for values in sharpness.values()]).T
    axes.bar(range(len(middle)), middle, yerr=np.abs(ends - middle), capsize=3)
    axes.set_xticks(range(len(middle)), list(sharpness))
    axes.set(yscale="log", ylabel="directional sharpness")
    return figure


def interpolation(
    alphas: Float[ArrayLike, " k"],
    losses: Mapping[str, Float[ArrayLike, " k"]],
    layers: Mapping[str, Float[ArrayLike, " k"]],
) -> Figure:
    """Curves along the segment between two models: of the whole beside those of each layer (paper 196).

    Args:
        alphas: Where they were measured [k].
        losses: Named curves of the whole model, such as losses on two data sets.
        layers: A curve for each layer, such as its sharpness, or the loss when it alone moves.

    Example:
        >>> alphas = np.linspace(0, 1, 3)
        >>> type(interpolation(alphas, {"loss": alphas}, {"in": alphas, "out": alphas})).__name__
        'Figure'
    """
    figure, (left, right) = _axes(columns=2)
    for axes, curves, name in ((left, losses, "whole model"), (right, layers, "one layer")):
        for label, curve in curves.items():
            axes.plot(alphas, curve, "o-", markersize=3, label=label)
        axes.set(xlabel="α", title=name)
        axes.legend()
    return figure


def stability(
    learning_rates: Float[ArrayLike, " k"],
    radii: Mapping[str, Float[ArrayLike, " k"]],
    bounds: Mapping[str, float],
) -> Figure:
    """Growth of the second moment over the learning rate, with critical rates as vertical lines (paper 114).

    Args:
        learning_rates: Learning rates η [k].
        radii: Named curves of the growth factor per step; above 1 the minimum is unstable.
        bounds: Named learning rates.

    Example:
        >>> rates = np.linspace(0.1, 1, 3)
        >>> type(stability(rates, {"B = 1": rates}, {"2/λ": 0.5})).__name__
        'Figure'
    """
    figure, axes = _axes()
    for label, curve in radii.items():
        axes.plot(learning_rates, curve, label=label)
    axes.axhline(1, color="black", linewidth=0.8)
    for index, (label, rate) in enumerate(bounds.items()):
        axes.axvline(rate, linestyle=":", color=f"C{index}", label=label)
    axes.set(xlabel="learning rate", ylabel="growth per step")
    axes.legend(fontsize=7)
    return figure


def spectrum(
    density: linalg.SpectralDensity, *, width: float | None = None, marks: Mapping[str, float] | None = None
) -> Figure:
    """Spectral density of a Hessian on a logarithmic axis, each node smoothed by a Gaussian (paper 064).

    Args:
        density: From `linalg.spectral_density`.
        width: Standard deviation of the Gaussians; 1% of the range by default.
        marks: Named eigenvalues, as vertical lines.

    Example:
        >>> density = linalg.SpectralDensity(np.array([[0.0, 2.0]]), np.array([[9.0, 1.0]]))
        >>> type(spectrum(density, marks={"2/η": 1.5})).__name__
        'Figure'
    """
    nodes, weights = np.asarray(density.nodes), np.asarray(density.weights)
    low, high = nodes.min(), nodes.max()
    if width is None:
        width = 0.01 * (high - low) or 1.0
    grid = np.linspace(low - 5 * width, high + 5 * width, 1000)
    bells = np.exp(-(((grid[:, None] - nodes.ravel()) / width) ** 2) / 2) / (width * np.sqrt(2 * np.pi))
    values = bells @ weights.ravel() / weights.sum()
    figure, axes = _axes()
    axes.semilogy(grid, np.maximum(values, 1e-10 * values.max()))
    axes.set(xlabel="eigenvalue", ylabel="density", ylim=(1e-6 * values.max(), 2 * values.max()))
    for index, (label, value) in enumerate((marks or {}).items(), start=1):
        axes.axvline(value, linestyle=":", color=f"C{index}", label=label)
    if marks:
        axes.legend(fontsize=7)
    return figure


def batch_scaling(
    batch_sizes: Float[ArrayLike, " k"],
    measured: Float[ArrayLike, "k seeds"],
    predicted: Float[ArrayLike, " k"],
    whole: float,
) -> Figure:
    """Largest eigenvalue of the Hessian of batches over their size (paper 064).

    Args:
        batch_sizes: Sizes [k].
        measured: Largest eigenvalues [k, seeds].
        predicted: From `batch_hessian_spike` [k].
        whole: That of all the data.

    Example:
        >>> sizes = np.array([16.0, 64.0])
        >>> type(batch_scaling(sizes, np.ones((2, 3)), np.ones(2), 1.0)).__name__
        'Figure'
    """
    figure, axes = _axes()
    axes.loglog(batch_sizes, measured, "o", color="C0", markersize=3)
    axes.loglog(batch_sizes, predicted, color="C1", label="spiked Wigner")
    axes.axhline(whole, color="black", linewidth=0.8, label="all data")
    axes.set(xlabel="batch size", ylabel="largest eigenvalue")
    _ticks(axes, batch_sizes)
    axes.legend()
    return figure


def opposing_groups(
    changes: Mapping[str, Float[ArrayLike, " steps"]],
    sharpness: Float[ArrayLike, " points"],
    every: int,
    threshold: float | None = None,
) -> Figure:
    """Changes of the groups' losses over steps, beside the sharpness (paper 200).

    Args:
        changes: Mean Δℓ of each group at each step.
        sharpness: Largest eigenvalue at some steps.
        every: Steps between them.
        threshold: 2/η, the edge of stability.

    Example:
        >>> type(opposing_groups({"up": [1.0, -1.0], "down": [-1.0, 1.0]}, [3.0, 4.0], 1, 2.0)).__name__
        'Figure'
    """
    figure, (left, right) = _axes(columns=2)
    for label, change in changes.items():
        left.plot(change, linewidth=0.8, label=label)
    # Early changes are far larger than those of the later oscillation.
    left.set_yscale("symlog", linthresh=1e-4)
    left.set(xlabel="step", ylabel="change of the loss")
    left.legend()
    right.plot(every * np.arange(len(np.asarray(sharpness))), sharpness)
    if threshold is not None:
        right.axhline(threshold, color="black", linestyle=":", label="2/η")
        right.legend()
    right.set(xlabel="step", ylabel="largest eigenvalue")
    return figure


def double_descent(scans: Mapping[str, DoubleDescent]) -> Figure:
    """Median training and test errors over sizes, one color for each scan (paper 029).

    Args:
        scans: Named scans, such as of a few and of many steps.

    Example:
        >>> scan = DoubleDescent((1, 2), np.ones((2, 3)), np.ones((2, 3)))
        >>> type(double_descent({"late": scan})).__name__
        'Figure'
    """
    figure, axes = _axes()
    for index, (label, scan) in enumerate(scans.items()):
        axes.loglog(
            scan.sizes, np.median(scan.test, axis=1), "o-", color=f"C{index}", label=label, markersize=3
        )
        axes.loglog(scan.sizes, np.median(scan.train, axis=1), "--", color=f"C{index}")
    # An error of training that is all but 0 must not flatten the rest.
    lowest = min(scan.test.min() for scan in scans.values())
    axes.set(xlabel="size", ylabel="error (dashed: training)", ylim=(1e-3 * lowest, None))
    _ticks(axes, np.asarray(next(iter(scans.values())).sizes))
    axes.legend()
    return figure


def learning_rates(scan: LearningRateTransfer) -> Figure:
    """Final loss over the learning rate, one curve for each width, with the best marked (paper 198).

    Args:
        scan: From `learning_rate_transfer`.

    Example:
        >>> scan = LearningRateTransfer((1, 2), (0.1, 1.0), np.ones((2, 2, 3)))
        >>> type(learning_rates(scan)).__name__
        'Figure'
    """
    figure, axes = _axes()
    for index, (width, losses) in enumerate(zip(scan.widths, np.median(scan.losses, axis=2), strict=True)):
        axes.loglog(scan.learning_rates, losses, color=f"C{index}", label=f"width {width}")
        best = int(np.argmin(losses))
        axes.loglog(scan.learning_rates[best], losses[best], "o", color=f"C{index}")
    axes.set(xlabel="learning rate", ylabel="final loss")
    axes.legend(fontsize=7)
    return figure


def sharpness_curves(
    curves: Mapping[str, Float[ArrayLike, " k"]], every: int, threshold: float | None = None
) -> Figure:
    """Sharpness over training, such as at several widths in units of the learning rate (paper 198).

    Args:
        curves: Named largest eigenvalues.
        every: Steps between two of them.
        threshold: 2/η, the edge of stability.

    Example:
        >>> type(sharpness_curves({"width 64": [1.0, 2.0]}, 10, 2.0)).__name__
        'Figure'
    """
    figure, axes = _axes()
    for label, curve in curves.items():
        axes.plot(every * np.arange(len(np.asarray(curve))), curve, label=label)
    if threshold is not None:
        axes.axhline(threshold, color="black", linestyle=":", label="2/η")
    axes.set(xlabel="step", ylabel="largest eigenvalue")
    axes.legend(fontsize=7)
    return figure


def pruning(levels: Float[ArrayLike, " k"], metrics: Mapping[str, Float[ArrayLike, "k seeds"]]) -> Figure:
    """A metric after magnitude pruning, such as the accuracy of each optimizer's solution (paper 039).

    Args:
        levels: Shares of the weights that were pruned [k].
        metrics: Named metrics [k, seeds]; the mean and the range over seeds are drawn.

    Example:
        >>> type(pruning([0.0, 0.9], {"sgd": np.ones((2, 3))})).__name__
        'Figure'
    """
    figure, axes = _axes()
    for label, values in metrics.items():
        rows = np.asarray(values)
        axes.plot(levels, rows.mean(axis=1), "o-", label=label, markersize=3)
        axes.fill_between(levels, rows.min(axis=1), rows.max(axis=1), alpha=0.2)
    axes.set(xlabel="share of the weights pruned", ylabel="metric")
    axes.legend()
    return figure
