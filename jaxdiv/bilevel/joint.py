"""The directions of (x, y, v) at one point, and the move of all three along them.

    d_y = ∂G/∂y,    d_v = H v − ∂F/∂y,    d_x = ∂F/∂x − J v

All vanish exactly where y = y*(x), v = H⁻¹ ∂F/∂y and ∇Φ(x) = 0, and each is an average over examples where the losses
are: what is known of the variance of gradients applies to the three together.

References:
    Dagréou, Ablin, Vaiter, Moreau (2022), A framework for bilevel optimization that enables stochastic and global
    variance reduction algorithms, section 2.
"""

from typing import NamedTuple

import optax
from jaxtyping import PyTree

from jaxdiv.bilevel.algorithm import apply
from jaxdiv.bilevel.problem import Losses
from jaxdiv.core.types import Scalar


class Directions(NamedTuple):
    """What the three variables move against.

    Attributes:
        inner: d_y.
        adjoint: d_v.
        outer: d_x.
    """

    inner: PyTree
    adjoint: PyTree
    outer: PyTree


class JointState(NamedTuple):
    """What moves beside x and y.

    Attributes:
        adjoint: v, like y; 0 at first.
        inner_tx: State of the transform of y.
        adjoint_tx: State of the transform of v.
        outer_tx: State of the transform of x.
    """

    adjoint: PyTree
    inner_tx: PyTree
    adjoint_tx: PyTree
    outer_tx: PyTree


class Joint(NamedTuple):
    """The transforms of the three variables."""

    inner_tx: optax.GradientTransformation
    adjoint_tx: optax.GradientTransformation
    outer_tx: optax.GradientTransformation

    def init(self, x: PyTree, y: PyTree) -> JointState:
        """The first state."""
        v = optax.tree.zeros_like(y)
        return JointState(v, self.inner_tx.init(y), self.adjoint_tx.init(v), self.outer_tx.init(x))

    def move(
        self, x: PyTree, y: PyTree, state: JointState, directions: Directions
    ) -> tuple[PyTree, PyTree, JointState]:
        """All three at once."""
        y, inner_state = apply(self.inner_tx, directions.inner, state.inner_tx, y)
        v, adjoint_state = apply(self.adjoint_tx, directions.adjoint, state.adjoint_tx, state.adjoint)
        x, outer_state = apply(self.outer_tx, directions.outer, state.outer_tx, x)
        return x, y, JointState(v, inner_state, adjoint_state, outer_state)


def directions(losses: Losses, x: PyTree, y: PyTree, v: PyTree) -> tuple[Scalar, Directions]:
    """F, and the directions on one draw: two gradients and one product."""
    value, (f_x, f_y) = losses.outer_gradients(x, y)
    g_y, product = losses.inner_products(x, y)
    h_v, j_v = product(v)
    return value, Directions(g_y, optax.tree.sub(h_v, f_y), optax.tree.sub(f_x, j_v))
