r"""Regularizers of a transport plan.

The plan minimizes ``<C, P> + R(P)``. The entropy is a function of all of P; the others add up over its
columns t_j, ``R(P) = sum_j Omega(t_j)`` on t >= 0, and enter the dual by their conjugates

    Omega*(s) = sup_{t >= 0} <s, t> - Omega(t),      t(s) = grad Omega*(s) the maximizer,

at s = f + g_j - C_j. With [.]_+ the positive part, and s_G the entries of s in group G:

    Quadratic    gamma/2 |t|^2                            Omega* = |[s]_+|^2 / (2 gamma)
    TopK         the same, at most k entries not 0        the same over the k largest entries
    GroupLasso   gamma/2 |t|^2 + eta sum_G |t_G|          sum_G [|[s_G]_+| - eta]_+^2 / (2 gamma)

Where the mass b of the column is given, the supremum over ``t >= 0, sum t = b`` is

    Omega*_b(s) = min_g Omega*(s + g) - g b,

whose g is minus the threshold of the projection of s (of its k largest entries) onto the simplex of mass
gamma b: the support of t is that of the largest s, whatever g. Entries of s may be -inf and get no mass.

References:
    Blondel, Seguy, Rolet (2018), Smooth and sparse optimal transport.
    Liu, Puigcerver, Blondel (2023), Sparsity-constrained optimal transport.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdiv.core import checks, pytree_dataclass, static_field
from jaxdiv.core.types import Numeric


@pytree_dataclass
class Entropy:
    """``epsilon KL(P | a b^T)``: dense plans, Sinkhorn's algorithm.

    Args:
        epsilon: Strength, positive, in the unit of the costs.

    Raises:
        ValueError: If a concrete `epsilon` is not positive.
    """

    epsilon: Numeric

    def __post_init__(self) -> None:
        _positive("epsilon", self.epsilon)


@pytree_dataclass
class Quadratic:
    """``gamma/2 |P|^2``: sparse plans, whose sparsity falls as gamma grows.

    Args:
        gamma: Strength, positive, in the unit of cost per mass.

    Raises:
        ValueError: If a concrete `gamma` is not positive.

    Example:
        >>> Quadratic(0.5).conjugate(jnp.array([[1.0, -2.0]]))
        Array([1.], dtype=float32)
    """

    gamma: Numeric

    def __post_init__(self) -> None:
        _positive("gamma", self.gamma)

    def value(self, t: Float[Array, "m n"]) -> Float[Array, " m"]:
        """``Omega`` of each column."""
        return 0.5 * _like(self.gamma, t) * jnp.sum(t * t, axis=-1)

    def conjugate(self, s: Float[Array, "m n"]) -> Float[Array, " m"]:
        """``Omega*``; the gradient is the maximizer."""
        return _half_squares(s, self.gamma)

    def scaled_conjugate(
        self, s: Float[Array, "m n"], b: Float[Array, " m"]
    ) -> tuple[Float[Array, " m"], Float[Array, " m"]]:
        """``Omega*_b`` and its g; the gradient in s is the maximizer, the one in b is -g."""
        return _scaled(s, b, self.gamma)


@pytree_dataclass
class TopK:
    """``gamma/2 |P|^2`` with at most k entries in each column, as the capacity of an expert in a mixture.

    The constraint is not convex: what is solved is the dual, that is, the convex hull of the problem. With
    k = 1 it is transport without regularization, with k = n it is `Quadratic`.

    Args:
        gamma: Strength, positive, in the unit of cost per mass.
        k: Most nonzeros of a column, at least 1.

    Raises:
        ValueError: If a concrete `gamma` is not positive, or k < 1.

    Note:
        Where the solution has ties for the k-th place, no choice of k entries meets the marginals; the
        solver then ends STALLED at the optimum of the dual, with the marginal error in `error`. Ties are
        the rule for k = 2, 3 and rare once k exceeds the supports of the quadratic plan.

    Example:
        >>> TopK(0.5, 1).conjugate(jnp.array([[1.0, 2.0]]))
        Array([4.], dtype=float32)
    """

    gamma: Numeric
    k: int = static_field()

    def __post_init__(self) -> None:
        _positive("gamma", self.gamma)
        checks.in_range("k", self.k, 1)

    def value(self, t: Float[Array, "m n"]) -> Float[Array, " m"]:
        """``Omega`` of each column."""
        return 0.5 * _like(self.gamma, t) * jnp.sum(t * t, axis=-1)

    def conjugate(self, s: Float[Array, "m n"]) -> Float[Array, " m"]:
        """``Omega*``; the gradient is a maximizer, the one of lowest indices among ties."""
        return _half_squares(self._largest(s), self.gamma)

    def scaled_conjugate(
        self, s: Float[Array, "m n"], b: Float[Array, " m"]
    ) -> tuple[Float[Array, " m"], Float[Array, " m"]]:
        """``Omega*_b`` and its g; the gradient in s is a maximizer, the one in b is -g."""
        return _scaled(self._largest(s), b, self.gamma)

    def _largest(self, s: Array) -> Array:
        return s if self.k >= s.shape[-1] else jax.lax.top_k(s, self.k)[0]


@pytree_dataclass
class GroupLasso:
    """``gamma/2 |P|^2 + eta sum_j sum_G |P_Gj|``: each column takes its mass from few groups of rows.

    Args:
        gamma: Strength of the squares, positive, in the unit of cost per mass.
        eta: Strength of the norms, at least 0, in the unit of the costs.
        groups: The group of each row [n], integers in [0, n).

    Raises:
        ValueError: If a concrete `gamma` is not positive or `eta` negative, or if `groups` is not an
            integer vector or a concrete label is out of range.

    Example:
        >>> GroupLasso(0.5, 1.0, jnp.array([0, 0, 1])).conjugate(jnp.array([[3.0, 4.0, 1.0]]))
        Array([16.], dtype=float32)
    """

    gamma: Numeric
    eta: Numeric
    groups: Int[Array, " n"]

    def __post_init__(self) -> None:
        _positive("gamma", self.gamma)
        checks.in_range("eta", self.eta, 0.0, open_high=True)
        groups = checks.integers("groups", self.groups)
        checks.rank("groups", groups, 1)
        checks.in_range("groups", groups, 0, groups.size - 1)
        object.__setattr__(self, "groups", groups)

    def value(self, t: Float[Array, "m n"]) -> Float[Array, " m"]:
        """``Omega`` of each column."""
        squares = self._squares(t)
        present = squares > 0
        norms = jnp.where(present, jnp.sqrt(jnp.where(present, squares, 1.0)), 0.0)
        half = 0.5 * _like(self.gamma, t) * jnp.sum(squares, axis=-1)
        return half + _like(self.eta, t) * jnp.sum(norms, axis=-1)

    def conjugate(self, s: Float[Array, "m n"]) -> Float[Array, " m"]:
        """``Omega*``; the gradient is the maximizer."""
        squares = self._squares(jnp.where(s <= 0, 0.0, s))
        eta = _like(self.eta, s)
        # Below it the second derivative of a norm overflows.
        floor = jnp.finfo(s.dtype).tiny ** (2 / 3)
        active = squares > jnp.maximum(eta * eta, floor)
        excess = jnp.where(active, jnp.sqrt(jnp.where(active, squares, 1.0)) - eta, 0.0)
        return jnp.sum(excess * excess, axis=-1) / (2.0 * _like(self.gamma, s))

    def _squares(self, t: Array) -> Array:
        """``|t_G|^2`` of the groups, [m, n]."""
        if t.shape[-1:] != self.groups.shape:
            raise ValueError(
                f"groups must have one label for each of the {t.shape[-1]} rows; got {self.groups.shape}."
            )
        return jnp.zeros_like(t).at[:, self.groups].add(t * t)


def maximizer(regularizer: Quadratic | TopK | GroupLasso, s: Float[Array, "m n"]) -> Float[Array, "m n"]:
    """The t >= 0 that attains ``Omega*`` of each column."""
    return jax.grad(lambda s: jnp.sum(regularizer.conjugate(s)))(s)


def _half_squares(s: Array, gamma: Numeric) -> Array:
    positive = jnp.where(s <= 0, 0.0, s)
    return jnp.sum(positive * positive, axis=-1) / (2.0 * _like(gamma, s))


def _scaled(s: Array, b: Array, gamma: Numeric) -> tuple[Array, Array]:
    # g attains a minimum, so that its own derivative does not count in the value's.
    g = -_threshold(*jax.lax.stop_gradient((s, _like(gamma, s) * b)))
    return _half_squares(s + g[:, None], gamma) - g * b, g


def _threshold(s: Array, mass: Array) -> Array:
    """The tau with ``sum_i [s_i - tau]_+ = mass`` of each row, its maximum where the mass is 0.

    The sum is convex and piecewise linear, so that Newton's method from below ascends to the root in as many
    steps as it meets pieces: 2 to 10 passes, where sorting takes 20 times as long.
    """
    # Relative to the maximum, sums do not cancel.
    top = jnp.max(s, axis=-1)
    below = s - top[:, None]

    def step(state: tuple[Array, Array]) -> tuple[Array, Array]:
        tau, _ = state
        active = below > tau[:, None]
        total = jnp.sum(jnp.where(active, below, 0.0), axis=-1) - mass
        new = jnp.maximum(tau, total / jnp.maximum(jnp.sum(active, axis=-1), 1))
        return new, jnp.any(new > tau)

    tau, _ = jax.lax.while_loop(lambda state: state[1], step, (-mass, jnp.array(True)))
    return tau + top


def _like(x: Numeric, array: Array) -> Array:
    return jnp.asarray(x, array.dtype)


def _positive(name: str, x: Numeric) -> None:
    checks.in_range(name, x, 0.0, open_low=True, open_high=True)
