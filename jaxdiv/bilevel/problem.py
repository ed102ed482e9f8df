"""Two losses, one inside the other.

    min_x  Φ(x) = F(x, y*(x)),    y*(x) ∈ argmin_y G(x, y)  [subject to g(x, y) ≤ 0]

x is the outer variable (hyperparameters), y the inner one (weights), F the outer loss and G the inner loss. With
H = ∂²G/∂y² and J v = ∂⟨∂G/∂y, v⟩/∂x the gradient of Φ, the hypergradient, is

    ∇Φ = ∂F/∂x − J v,    H v = ∂F/∂y.

The signs of v and J are those; some codes store −v.

References:
    Pedregosa (2016), Hyperparameter optimization with approximate gradient, section 2.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxdiv.core.types import Key, Scalar
from jaxdiv.objectives import Objective


class Problem(NamedTuple):
    """An inner and an outer loss over the pair ``(outer, inner)``; see `problem`.

    Attributes:
        inner: G, as an `Objective` whose parameters are the pair.
        outer: F, alike.
        constraint: g, for algorithms that know constraints.
        project: The projection of the pair after each step.
    """

    inner: Objective
    outer: Objective
    constraint: Callable[[PyTree, PyTree], Float[Array, " l"]] | None = None
    project: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]] | None = None


class Data(NamedTuple):
    """What the losses are evaluated on.

    Attributes:
        inner: Data of the inner loss, such as the training set: a pytree of arrays with one row per example, but
            for the entry ``"shared"`` of a mapping, or None.
        outer: Data of the outer loss, such as the validation set, alike.
    """

    inner: PyTree = None
    outer: PyTree = None


def problem(
    inner: Callable[..., Scalar] | Objective,
    outer: Callable[..., Scalar] | Objective,
    *,
    constraint: Callable[[PyTree, PyTree], Float[Array, " l"]] | None = None,
    project: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]] | None = None,
) -> Problem:
    """Makes a bilevel problem of two losses.

    Args:
        inner: ``(outer, inner, batch[, key]) -> scalar``, minimized in its second argument; or an `Objective` whose
            parameters are the pair ``(outer, inner)``.
        outer: Likewise, what the outer variable shall minimize. An `Objective` is evaluated without a key: no
            dropout, and its memories stay as they are at the start.
        constraint: ``(outer, inner) -> [l]``, values that shall not be positive.
        project: ``(outer, inner) -> (outer, inner)``, the projection onto the set that both may not leave, made after
            each step.

    Returns:
        The problem, for the algorithms of this room.

    Raises:
        ValueError: If a function takes neither three nor four arguments.

    Example:
        >>> from jaxdiv import bilevel
        >>> ridge = bilevel.problem(
        ...     lambda x, y, batch: jnp.sum((batch[0] @ y - batch[1]) ** 2) + jnp.exp(x) * jnp.sum(y**2),
        ...     lambda x, y, batch: jnp.sum((batch[0] @ y - batch[1]) ** 2),
        ... )
        >>> ridge.constraint is None
        True
    """
    return Problem(_objective("inner", inner, False), _objective("outer", outer, True), constraint, project)


def _objective(name: str, loss: Callable[..., Any] | Objective, evaluates: bool) -> Objective:
    if isinstance(loss, Objective):
        apply = loss.apply
        if not evaluates:
            return loss
        return Objective(loss.init, lambda params, state, batch, key: apply(params, state, batch, None))
    takes_key = _arguments(name, loss) == 4

    def of_pair(params: Any, state: Any, batch: Any, key: Key | None) -> Any:
        value = loss(*params, batch, key) if takes_key else loss(*params, batch)
        return value, (state, {"terms": {name: value}, "losses": {}, "metrics": {}})

    return Objective(lambda params, batch, key: (), of_pair)


def _arguments(name: str, loss: Callable[..., Any]) -> int:
    """How many arguments the loss takes, 3 or 4."""
    expected = f"{name} must be a function (outer, inner, batch[, key]) -> scalar or an Objective"
    if not callable(loss):
        raise ValueError(f"{expected}; got {type(loss).__name__}.")
    signature = inspect.signature(loss)
    for count in (4, 3):
        try:
            signature.bind(*range(count))
        except TypeError:
            continue
        return count
    raise ValueError(f"{expected}; got one with the arguments {signature}.")


class Losses(NamedTuple):
    """The two losses of a problem on one draw of data, and their derivatives.

    Attributes:
        problem: The problem.
        memory: States of the two objectives.
        batch: The draw.
        key: Randomness of the losses on it.
    """

    problem: Problem
    memory: tuple[PyTree, PyTree]
    batch: Data
    key: Key

    def inner(self, x: PyTree, y: PyTree) -> Scalar:
        """G(x, y)."""
        value = self.problem.inner.apply((x, y), self.memory[0], self.batch.inner, self.key)[0]
        return _scalar("inner", value)

    def outer(self, x: PyTree, y: PyTree) -> Scalar:
        """F(x, y)."""
        value = self.problem.outer.apply((x, y), self.memory[1], self.batch.outer, self.key)[0]
        return _scalar("outer", value)

    def inner_gradient(self, x: PyTree, y: PyTree) -> PyTree:
        """∂G/∂y."""
        return jax.grad(self.inner, 1)(x, y)

    def inner_gradients(self, x: PyTree, y: PyTree) -> tuple[Scalar, tuple[PyTree, PyTree]]:
        """G, and its gradients by x and y."""
        return jax.value_and_grad(self.inner, (0, 1))(x, y)

    def outer_gradients(self, x: PyTree, y: PyTree) -> tuple[Scalar, tuple[PyTree, PyTree]]:
        """F, and its gradients by x and y."""
        return jax.value_and_grad(self.outer, (0, 1))(x, y)

    def inner_products(
        self, x: PyTree, y: PyTree
    ) -> tuple[PyTree, Callable[[PyTree], tuple[PyTree, PyTree]]]:
        """∂G/∂y, and the map from v to (H v, J v).

        The inner gradient is linearized once. H is symmetric, so that one transposed product gives both; what is not
        used of the two is not computed under jit.
        """
        gradient, pull = jax.vjp(self.inner_gradient, x, y)

        def product(v: PyTree) -> tuple[PyTree, PyTree]:
            j_v, h_v = pull(v)
            return h_v, j_v

        return gradient, product


def _scalar(name: str, value: Any) -> Scalar:
    if jnp.shape(value) != ():
        raise ValueError(
            f"the {name} loss must be a scalar; got shape {jnp.shape(value)}; take the mean or sum over examples."
        )
    return jnp.asarray(value)
