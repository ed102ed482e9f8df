"""What all bilevel algorithms share: their state, what a step reports, and the draws it makes."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxdiv.bilevel.problem import Data, Losses, Problem
from jaxdiv.bilevel.sampler import Sampler
from jaxdiv.core import Status, strong
from jaxdiv.core.types import Key, Scalar

# A number that no step and no draw reaches.
_APART = 2**32 - 1


class BilevelState(NamedTuple):
    """State of a bilevel algorithm, one pytree.

    Attributes:
        outer: x.
        inner: y.
        extra: What the algorithm itself remembers: states of its transforms, adjoint, averages, tables.
        memory: States of the two losses, where they are objectives.
        key: Never changes; each step folds in its count.
        step: Steps taken.
    """

    outer: PyTree
    inner: PyTree
    extra: PyTree
    memory: PyTree
    key: Key
    step: Int[Array, ""]


class Info(NamedTuple):
    """What a step reports.

    Attributes:
        value: The outer loss where the step evaluated it, on its draw.
        status: `Status` of what the hypergradient rests on: CONVERGED if every system it solves is solved to its
            tolerance and the direction is finite.
        metrics: Numbers by name: ``"hypergradient"``, the norm of the direction of x; ``"residual"``, the relative
            residual of the adjoint where a system is solved; ``"gradients"`` and ``"products"``, how many gradients
            of a loss (both variables together count once) and products with second derivatives (H v and J v together
            count once) the step has taken; and the algorithm's own.
    """

    value: Scalar
    status: Int[Array, ""]
    metrics: dict[str, Array]


class Algorithm(NamedTuple):
    """A bilevel algorithm: two pure functions.

    Attributes:
        init: ``(outer, inner, data, key) -> BilevelState``.
        step: ``(state, data) -> (state, Info)``.
    """

    init: Callable[[PyTree, PyTree, Data, Key], BilevelState]
    step: Callable[[BilevelState, Data], tuple[BilevelState, Info]]


class Draws(NamedTuple):
    """The draws that one step may make.

    Attributes:
        problem: The problem.
        memory: States of the two objectives.
        data: All data.
        sampler: Draws from them.
        key: The step's own key.
    """

    problem: Problem
    memory: PyTree
    data: Data
    sampler: Sampler
    key: Key

    def __call__(self, i: int | Int[Array, ""]) -> Losses:
        """The losses on the step's i-th draw; equal numbers give equal draws."""
        # Keys of their own: parts of a split key are the key folded with small numbers.
        key = jax.random.fold_in(self.key, i)
        return self.on(self.sampler(self.data, jax.random.fold_in(key, 0)), jax.random.fold_in(key, 1))

    @property
    def own_key(self) -> Key:
        """Randomness of the algorithm itself, apart from that of all draws."""
        return jax.random.fold_in(self.key, _APART)

    def on(self, batch: Data, key: Key) -> Losses:
        """The losses on given examples."""
        return Losses(self.problem, self.memory, batch, key)


Advance: TypeAlias = Callable[
    [Draws, PyTree, PyTree, PyTree, Int[Array, ""]], tuple[PyTree, PyTree, PyTree, Info]
]
"""``(draws, x, y, extra, step) -> (x, y, extra, info)``."""


def algorithm(
    problem: Problem,
    sampler: Sampler,
    start: Callable[[Draws, PyTree, PyTree], PyTree],
    advance: Advance,
    *,
    constrained: bool = False,
) -> Algorithm:
    """Makes an algorithm of its first ``extra`` and its step.

    Projection, memories of objectives, keys and counts are the same for all and done here.

    Args:
        problem: The problem.
        sampler: ``(data, key) -> data``.
        start: ``(draws, x, y) -> extra``.
        advance: The step.
        constrained: Whether it knows what to do with a constraint.

    Returns:
        The algorithm. `init` raises ValueError if a variable is not a floating pytree or has no element.

    Raises:
        ValueError: If the problem has a constraint that the algorithm would ignore.
    """
    if problem.constraint is not None and not constrained:
        raise ValueError(
            "constraint must be None for this algorithm, which would ignore it; use bilevel.lv_hba."
        )

    def init(outer: PyTree, inner: PyTree, data: Data, key: Key) -> BilevelState:
        if not isinstance(data, Data):
            raise ValueError(f"data must be bilevel.Data(inner=..., outer=...); got {type(data).__name__}.")
        x, y = _variable("outer", outer), _variable("inner", inner)
        if problem.project is not None:
            x, y = like((x, y), problem.project(x, y))
        keys = jax.random.split(jax.random.fold_in(key, _APART), 3)
        memory = (
            problem.inner.init((x, y), data.inner, keys[0]),
            problem.outer.init((x, y), data.outer, keys[1]),
        )
        extra = strong(start(Draws(problem, memory, data, sampler, keys[2]), x, y))
        return BilevelState(x, y, extra, strong(memory), key, jnp.zeros((), jnp.int32))

    def step(state: BilevelState, data: Data) -> tuple[BilevelState, Info]:
        x, y, memory = state.outer, state.inner, state.memory
        draws = Draws(problem, memory, data, sampler, jax.random.fold_in(state.key, state.step))
        if jax.tree.leaves(memory[0]):
            # Once a step, at the variables before it.
            first = draws(0)
            advanced, _ = problem.inner.apply((x, y), memory[0], first.batch.inner, first.key)[1]
            memory = (advanced, memory[1])
        x, y, extra, info = advance(draws, x, y, state.extra, state.step)
        if problem.project is not None:
            x, y = problem.project(x, y)
        x, y, extra = like((state.outer, state.inner, state.extra), (x, y, extra))
        return BilevelState(x, y, extra, memory, state.key, state.step + 1), info

    return Algorithm(init, step)


def report(
    value: Scalar,
    direction: PyTree,
    *,
    gradients: int | Int[Array, ""],
    products: int | Int[Array, ""] = 0,
    residual: Float[Array, ""] | float = 0.0,
    status: Int[Array, ""] | int = Status.CONVERGED,
    **metrics: Array,
) -> Info:
    """The `Info` of a step that moves x along `direction`."""
    norm = optax.tree.norm(direction)
    finite: Bool[Array, ""] = jnp.isfinite(norm) & jnp.isfinite(value)
    status = jnp.where(finite, status, Status.NONFINITE).astype(jnp.int32)
    counts = {"gradients": jnp.asarray(gradients, jnp.int32), "products": jnp.asarray(products, jnp.int32)}
    residual = jnp.asarray(residual, norm.dtype)
    return Info(value, status, {"hypergradient": norm, "residual": residual} | counts | metrics)


def apply(
    tx: optax.GradientTransformation, gradient: PyTree, state: PyTree, variable: PyTree, **extra_args: Any
) -> tuple[PyTree, PyTree]:
    """The variable after one update of `tx`, and the transform's state."""
    updates, state = optax.with_extra_args_support(tx).update(gradient, state, variable, **extra_args)
    return optax.apply_updates(variable, updates), state


def _variable(name: str, tree: PyTree) -> PyTree:
    leaves = jax.tree.leaves(tree)
    dtypes = {jnp.result_type(leaf) for leaf in leaves}
    if not leaves or not all(jnp.issubdtype(dtype, jnp.floating) for dtype in dtypes):
        got = ", ".join(map(str, dtypes)) or "none"
        raise ValueError(
            f"{name} must be a pytree of floating arrays; got {got}; put what is not optimized into the data."
        )
    return strong(tree)


def like(old: PyTree, new: PyTree) -> PyTree:
    """The new values in the old dtypes."""
    return jax.tree.map(lambda a, b: jnp.asarray(b).astype(jnp.asarray(a).dtype), old, new)
