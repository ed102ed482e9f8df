"""What a norm offers: its value, its dual, the linear minimization oracle and the projection of its ball.

    ‖y‖_* = max {⟨x, y⟩ : ‖x‖ ≤ 1}
    lmo(g, r) ∈ argmin {⟨g, x⟩ : ‖x‖ ≤ r},   so that ⟨g, lmo(g, r)⟩ = -r ‖g‖_*
    project(x, r) = argmin {‖z - x‖_2 : ‖z‖ ≤ r}

References:
    Jaggi (2013), Revisiting Frank–Wolfe: projection-free sparse convex optimization, section 4.
"""

import abc
import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar, Self

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiv.core import checks
from jaxdiv.core.pytree import pytree_dataclass, static_field
from jaxdiv.core.types import Numeric

Axes = tuple[int, ...]


@pytree_dataclass
class Norm(abc.ABC):
    """A norm on some axes of an array; the other axes are a batch of independent vectors.

    A pytree without leaves: it may be an argument of a compiled function, and it is hashable. Trees of
    parameters are mapped leaf by leaf, ``jax.tree.map(norm.lmo, gradient)``.

    A new norm is a subclass, itself a `pytree_dataclass`, with the four functions that start with an
    underscore. They get `x` in float32 or float64 with the axes of the norm moved to the end, those axes
    as negative numbers, and a radius that broadcasts with `x`.

    Attributes:
        axis: Axis or axes of the norm; None is the whole array.

    Note:
        ``value``, ``dual`` are float32 (float64 for float64 input); ``lmo`` and ``project`` are computed
        so and come back in the dtype of their input, in bfloat16 therefore within its rounding of the
        ball. NaN in the input gives NaN.

    Example:
        >>> from jaxdiv import convex
        >>> x = jnp.array([[3.0, 4.0], [0.0, 2.0]])
        >>> convex.l1.value(x), convex.l1.over(-1).value(x).tolist()
        (Array(9., dtype=float32), [7.0, 2.0])
    """

    axis: int | Axes | None = static_field(default=None)

    matrix: ClassVar[bool] = False
    """Whether the norm is one of matrices and so needs exactly two axes."""

    def over(self, axis: int | Sequence[int] | None) -> Self:
        """The same norm on other axes.

        Args:
            axis: Axis or axes of the norm; None is the whole array.

        Returns:
            A norm whose ``value`` keeps the remaining axes.

        Example:
            >>> from jaxdiv import convex
            >>> convex.linf.over(0).value(jnp.array([[1.0, -2.0], [3.0, 0.0]])).tolist()
            [3.0, 2.0]
        """
        return dataclasses.replace(self, axis=axis if axis is None or isinstance(axis, int) else tuple(axis))

    def value(self, x: Float[Array, "..."]) -> Float[Array, "*b"]:
        """``‖x‖``.

        Args:
            x: Any shape that has the norm's axes.

        Returns:
            One norm per batch element, with zero derivative at 0.

        Raises:
            ValueError: If `x` is not floating point, is empty or lacks an axis of the norm.

        Example:
            >>> from jaxdiv import convex
            >>> float(convex.linf.value(jnp.array([3.0, -4.0])))
            4.0
        """
        moved, axes, _ = self._enter("x", x)
        return self._value(moved, axes)

    def dual(self, y: Float[Array, "..."]) -> Float[Array, "*b"]:
        """The dual norm, ``max {⟨x, y⟩ : ‖x‖ ≤ 1}``.

        Args:
            y: Any shape that has the norm's axes.

        Returns:
            One norm per batch element, with zero derivative at 0.

        Raises:
            ValueError: If `y` is not floating point, is empty or lacks an axis of the norm.

        Example:
            >>> from jaxdiv import convex
            >>> float(convex.linf.dual(jnp.array([3.0, -4.0])))
            7.0
        """
        moved, axes, _ = self._enter("y", y)
        return self._dual(moved, axes)

    def lmo(self, g: Float[Array, "*s"], radius: Numeric | Float[Array, "*b"] = 1.0) -> Float[Array, "*s"]:
        """Linear minimization oracle: a point of the ball where ``⟨g, x⟩`` is least.

        Args:
            g: Any shape that has the norm's axes.
            radius: Of the ball, not negative; one number, or one per batch element.

        Returns:
            The minimizer, in the dtype of `g`; 0 where `g` is 0 and every point is one.

        Raises:
            ValueError: If `g` is not floating point, is empty or lacks an axis of the norm, or if `radius`
                is negative, infinite or of another shape.

        Example:
            >>> from jaxdiv import convex
            >>> convex.linf.lmo(jnp.array([3.0, -4.0, 0.0]), 0.5).tolist()
            [-0.5, 0.5, 0.0]
        """
        moved, axes, order = self._enter("g", g)
        radius = _radius(radius, moved, axes, finite=True)
        # Subtracted and not negated, so that no entry is -0.
        out = 0.0 - radius * self._ascent(moved, axes)
        return jnp.moveaxis(out, axes, order).astype(jnp.result_type(g))

    def project(
        self, x: Float[Array, "*s"], radius: Numeric | Float[Array, "*b"] = 1.0
    ) -> Float[Array, "*s"]:
        """Euclidean projection onto the ball.

        Args:
            x: Any shape that has the norm's axes.
            radius: Of the ball, not negative; one number, or one per batch element.

        Returns:
            The nearest point of the ball, in the dtype of `x`; inside the ball that is `x`.

        Raises:
            ValueError: If `x` is not floating point, is empty or lacks an axis of the norm, or if `radius`
                is negative or of another shape.

        Example:
            >>> from jaxdiv import convex
            >>> x, radius = jnp.array([[3.0, -4.0], [0.5, 2.0]]), jnp.array([3.5, 1.0])
            >>> convex.linf.over(-1).project(x, radius).tolist()
            [[3.0, -3.5], [0.5, 1.0]]
        """
        moved, axes, order = self._enter("x", x)
        out = self._project(moved, _radius(radius, moved, axes), axes)
        return jnp.moveaxis(out, axes, order).astype(jnp.result_type(x))

    @abc.abstractmethod
    def _value(self, x: Array, axes: Axes) -> Array:
        """The norm."""

    @abc.abstractmethod
    def _dual(self, y: Array, axes: Axes) -> Array:
        """The dual norm."""

    @abc.abstractmethod
    def _ascent(self, g: Array, axes: Axes) -> Array:
        """A point of the unit ball where ``⟨g, x⟩`` is greatest, 0 where g is 0."""

    @abc.abstractmethod
    def _project(self, x: Array, radius: Array, axes: Axes) -> Array:
        """The projection onto the ball."""

    def _enter(self, name: str, x: Array) -> tuple[Array, Axes, Axes]:
        x = checks.floating(name, x)
        checks.not_empty(name, x)
        order = checks.axes(name, x, self.axis)
        if self.matrix and len(order) != 2:
            raise ValueError(
                f"axis of a matrix norm must name two axes of {name}, which has shape {x.shape}; "
                f"got {self.axis}; choose them with over((i, j))."
            )
        axes = tuple(range(-len(order), 0))
        return jnp.moveaxis(x, order, axes), axes, order


def magnitude(x: Array) -> Array:
    """``|x|`` with derivative 0 at 0, where that of ``jnp.abs`` is 1."""
    return x * jnp.sign(x)


def per_batch(name: str, value: Numeric | Array, x: Array, axes: Axes) -> Array:
    """`value`, one number or one per batch element, in the dtype of `x` and ready to broadcast with it."""
    value = jnp.asarray(value, x.dtype)
    batch = x.shape[: x.ndim - len(axes)]
    if value.ndim == 0:
        return value
    if value.shape != batch:
        raise ValueError(f"{name} must be a scalar or have the batch shape {batch}; got shape {value.shape}.")
    return jnp.expand_dims(value, axes)


def _radius(radius: Numeric | Array, x: Array, axes: Axes, *, finite: bool = False) -> Array:
    checks.in_range("radius", radius, 0.0, math.inf, open_high=finite)
    return per_batch("radius", radius, x, axes)
