"""Bilevel problems in closed form, and the contract suite that every bilevel algorithm goes through.

A test class says how the algorithm is made, how long it runs and how small the exact hypergradient must be in the end:

    from jaxdiv.testing import bilevel as contract

    class SobaContract(contract.Contract):
        make = staticmethod(lambda quadratic, sampler: bilevel.soba(
            quadratic.problem, optax.sgd(quadratic.inner_step), optax.sgd(0.2 * quadratic.outer_step), sampler=sampler
        ))
        steps, reached = 4000, 1e-14

Import the module, not its classes: test runners collect every class they see in a test file.
"""

import functools
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from jaxdiv import bilevel
from jaxdiv.core import Status

INNER, OUTER, EXAMPLES = 8, 5, 16


class Quadratic(NamedTuple):
    """A bilevel problem whose hypergradient is known.

    Attributes:
        problem: The problem.
        data: What its losses take.
        outer: A first x.
        inner: A first y.
        solution: ``x -> y*(x)``.
        hypergradient: ``x -> ∇Φ(x)``, like x.
        inner_step: 1 over the largest eigenvalue of H.
        outer_step: 1 over the Lipschitz constant of ∇Φ.
        coupling: Largest singular value of the mixed derivative.
    """

    problem: bilevel.Problem
    data: bilevel.Data
    outer: PyTree
    inner: PyTree
    solution: Callable[[PyTree], PyTree]
    hypergradient: Callable[[PyTree], PyTree]
    inner_step: float
    outer_step: float
    coupling: float


def _flat(tree: PyTree) -> jax.Array:
    return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])


def _outer(x: jax.Array) -> dict[str, jax.Array]:
    return {"first": x[:2], "rest": x[2:]}


def _inner(y: jax.Array) -> dict[str, jax.Array]:
    return {"bias": y[:2], "weights": y[2:].reshape(2, 3)}


def quadratic(seed: int = 0, *, noise: float = 0.0, dtype: Any = np.float64) -> Quadratic:
    """Sums of quadratics over examples, both variables pytrees.

        G = mean_i ½ yᵀ H_i y − yᵀ (B x + c_i),    F = mean_i ½ ‖y − t_i‖² + 0.05 ‖x‖²

        y*(x) = H⁻¹ (B x + c),    ∇Φ = 0.1 x + Bᵀ H⁻¹ (y* − t),    H, c, t the means

    Args:
        seed: Draws H = A Aᵀ / 8 + I, B, c and t.
        noise: Spread of H_i, c_i and t_i, whose means do not depend on it.
        dtype: Of all arrays.

    Returns:
        The problem with 8 inner and 5 outer numbers and 16 examples of each loss.
    """
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(INNER, INNER))
    hessian, mixed = root @ root.T / INNER + np.eye(INNER), rng.normal(size=(INNER, OUTER))
    linear, target = rng.normal(size=(2, INNER))

    def spread(mean: np.ndarray) -> np.ndarray:
        deviations = rng.normal(size=(EXAMPLES, *mean.shape))
        return np.asarray(mean + noise * (deviations - deviations.mean(0)), dtype)

    deviation = spread(hessian)
    data = bilevel.Data(
        inner={"hessian": (deviation + deviation.swapaxes(1, 2)) / 2, "linear": spread(linear)},
        outer={"target": spread(target)},
    )
    b = jnp.asarray(mixed, dtype)
    largest = np.linalg.eigvalsh(hessian)[-1]
    inverse = np.linalg.inv(hessian)
    curvature = 0.1 * np.eye(OUTER) + mixed.T @ inverse @ inverse @ mixed

    def inner(x: PyTree, y: PyTree, batch: Any) -> jax.Array:
        z = _flat(y)
        h, c = jnp.mean(batch["hessian"], 0), jnp.mean(batch["linear"], 0)
        return 0.5 * z @ h @ z - z @ (b @ _flat(x) + c)

    def outer(x: PyTree, y: PyTree, batch: Any) -> jax.Array:
        gaps = jnp.sum((_flat(y) - batch["target"]) ** 2, -1)
        return 0.5 * jnp.mean(gaps) + 0.05 * jnp.sum(_flat(x) ** 2)

    def solution(x: PyTree) -> PyTree:
        return _inner(jnp.asarray(inverse, dtype) @ (b @ _flat(x) + jnp.asarray(linear, dtype)))

    def hypergradient(x: PyTree) -> PyTree:
        gap = _flat(solution(x)) - jnp.asarray(target, dtype)
        return _outer(0.1 * _flat(x) + b.T @ (jnp.asarray(inverse, dtype) @ gap))

    return Quadratic(
        bilevel.problem(inner, outer), data, _outer(jnp.ones(OUTER, dtype)), _inner(jnp.zeros(INNER, dtype)),
        solution, hypergradient, float(1 / largest), float(1 / np.linalg.norm(curvature, 2)),
        float(np.linalg.norm(mixed, 2)),
    )  # fmt: skip


class Contract(chex.TestCase):
    """The contract of every algorithm.

    Attributes:
        make: ``(quadratic, sampler) -> Algorithm``, as a staticmethod.
        steps: Steps of the check on the closed form.
        reached: What the norm of the exact hypergradient there may be, relative to the first one.
    """

    make: ClassVar[Callable[..., bilevel.Algorithm]]
    steps: ClassVar[int]
    reached: ClassVar[float]

    @classmethod
    @functools.cache
    def runner(cls, noise: float = 0.0, dtype: Any = np.float32) -> Any:
        """``(x, y, key, data, steps) -> (state, info of the last step)``, compiled."""
        case = quadratic(noise=noise, dtype=dtype)
        sampler = bilevel.minibatches(inner=2, outer=2) if noise else bilevel.full_batch
        init, step = cls.make(case, sampler)

        def run(x: PyTree, y: PyTree, key: Any, data: Any, steps: Any) -> Any:
            state = init(x, y, data, key)
            info = jax.tree.map(
                lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(step, state, data)[1]
            )
            return jax.lax.fori_loop(0, steps, lambda _, carry: step(carry[0], data), (state, info))

        return case, jax.jit(run)

    def short(self, steps: int = 3) -> tuple[Quadratic, Any]:
        """A few steps in float32."""
        case, run = self.runner()
        return case, run(case.outer, case.inner, jax.random.key(0), case.data, steps)

    def test_closed_form(self) -> None:
        """The exact hypergradient where the run ends."""
        with jax.enable_x64(True):
            case, run = self.runner(dtype=np.float64)
            state, info = run(case.outer, case.inner, jax.random.key(0), case.data, self.steps)
            ends, begins = (optax.tree.norm(case.hypergradient(x)) for x in (state.outer, case.outer))
            assert info.status == Status.CONVERGED
            assert ends <= self.reached * begins, f"reached {ends / begins:.2g}"
            assert state.step == self.steps

    def test_shapes_and_dtypes(self) -> None:
        """Variables keep their types; the report has what it promises."""
        case, (state, info) = self.short()
        chex.assert_trees_all_equal_shapes_and_dtypes(state.outer, case.outer)
        chex.assert_trees_all_equal_shapes_and_dtypes(state.inner, case.inner)
        chex.assert_tree_all_finite(info.metrics)
        assert info.value.shape == info.status.shape == ()
        assert info.metrics["gradients"] + info.metrics["products"] >= 1
        assert not jnp.allclose(_flat(state.outer), _flat(case.outer))

    def test_lanes_are_single_problems(self) -> None:
        """Under vmap."""
        case, (state, info) = self.short()
        _, run = self.runner()
        lanes = jax.tree.map(lambda leaf: jnp.stack([leaf + 1, leaf]), (case.outer, case.inner))
        many, infos = jax.jit(jax.vmap(run, (0, 0, None, None, None)))(
            *lanes, jax.random.key(0), case.data, 3
        )
        one = jax.tree.map(lambda leaf: leaf[1], (many.outer, many.inner, infos.value))
        chex.assert_trees_all_close(one, (state.outer, state.inner, info.value), rtol=1e-4, atol=1e-5)

    def test_steps_do_not_trace_again(self) -> None:
        """A state that `init` or a step gave, concrete or traced, has one type."""
        case, _ = self.runner()
        init, step = self.make(case, bilevel.full_batch)
        state = init(case.outer, case.inner, case.data, jax.random.key(0))
        first, second = (
            jax.eval_shape(lambda s: s, s) for s in (state, jax.eval_shape(step, state, case.data)[0])
        )
        chex.assert_trees_all_equal_shapes_and_dtypes(first, second)
        assert jax.tree.all(jax.tree.map(lambda a, b: a.weak_type == b.weak_type, first, second))

    def test_draws(self) -> None:
        """Minibatches: equal keys give equal runs, others do not, and the run stays finite."""
        case, run = self.runner(noise=0.1)
        runs = [run(case.outer, case.inner, jax.random.key(k), case.data, 5)[0] for k in (0, 0, 1)]
        ends = [(state.outer, state.inner) for state in runs]
        chex.assert_trees_all_equal(ends[0], ends[1])
        chex.assert_tree_all_finite(ends[2])
        assert not jnp.allclose(_flat(ends[0]), _flat(ends[2]), rtol=1e-6, atol=1e-7)

    def test_nan_is_told(self) -> None:
        """Data without values end in a status."""
        case, run = self.runner()
        bad = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), case.data)
        _, info = run(case.outer, case.inner, jax.random.key(0), bad, 2)
        assert info.status == Status.NONFINITE


class Solved(NamedTuple):
    """A bilevel problem whose solution is known.

    Attributes:
        problem: The problem; its losses take no data.
        outer: A first x.
        inner: A first y.
        solution: The pair (x, y) that solves it.
        multipliers: Those of the inner constraint there [l].
        equality: Whether the constraint is an equation.
    """

    problem: bilevel.Problem
    outer: PyTree
    inner: PyTree
    solution: tuple[PyTree, PyTree]
    multipliers: jax.Array
    equality: bool = False


def degenerate(dtype: Any = np.float64) -> Solved:
    """An inner loss with a line of minimizers, among which the outer loss chooses.

        G = ½ (y₁ − x)²,    F = ½ (y₁ − 1)² + ½ (y₂ − x)²

    The chosen one is y = (x, x), and ∇Φ = x − 1. H = diag(1, 0) is singular and ∂G/∂y never moves y₂.

    Args:
        dtype: Of the variables.

    Returns:
        The problem, from x = −1 and y = (0, 3).
    """
    x, y = jnp.asarray(-1.0, dtype), jnp.asarray([0.0, 3.0], dtype)
    return Solved(
        bilevel.problem(
            lambda x, y, batch: 0.5 * (y[0] - x) ** 2,
            lambda x, y, batch: 0.5 * (y[0] - 1) ** 2 + 0.5 * (y[1] - x) ** 2,
        ),
        x, y, (jnp.ones_like(x), jnp.ones_like(y)), jnp.zeros(0, dtype),
    )  # fmt: skip


def coupled(dtype: Any = np.float64) -> Solved:
    """One inner constraint that couples two numbers.

        F = ½ (x − 2)² + ½ (y − 1.5)²,    G = ½ (y − 2x)²,    x + y ≤ 2

    For x ≥ 2/3 the constraint holds y at 2 − x, so that the solution is (1.25, 0.75) and λ = 2x − y = 1.75. Who
    answers with y = 2x and projects after small steps ends near (2/3, 4/3).

    Args:
        dtype: Of the variables.

    Returns:
        The problem with its projection onto the half-space, from x = y = 0.
    """

    def project(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        excess = jnp.maximum(x + y - 2, 0) / 2
        return x - excess, y - excess

    zero = jnp.zeros((), dtype)
    return Solved(
        bilevel.problem(
            lambda x, y, batch: 0.5 * (y - 2 * x) ** 2,
            lambda x, y, batch: 0.5 * (x - 2) ** 2 + 0.5 * (y - 1.5) ** 2,
            constraint=lambda x, y: (x + y - 2)[None],
            project=project,
        ),
        zero, zero, (zero + 1.25, zero + 0.75), jnp.asarray([1.75], dtype),
    )  # fmt: skip


def coupled_equation(n: int = 20, dtype: Any = np.float64) -> Solved:
    """One equation that couples all numbers, over an inner loss that is linear in half of them.

        F = ½ ‖x − y₂‖² + ½ ‖y₁ − 1‖²,    G = ½ ‖y₁‖² − xᵀ y₁ + 1ᵀ y₂,    1ᵀ (x + y₁ + y₂) = 0

    Stationarity in y₂ gives λ = −1 and in y₁ then y₁ = x + 1; the equation leaves x = −0.3, y₁ = 0.7, y₂ = −0.4.
    Without it G has no minimum.

    Args:
        n: Entries of each of the three vectors.
        dtype: Of the variables.

    Returns:
        The problem with its projection onto the hyperplane, from x = −20 and y = 10.
    """

    def project(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        mean = (jnp.sum(x) + jnp.sum(y)) / (3 * n)
        return x - mean, y - mean

    ones = jnp.ones(n, dtype)
    return Solved(
        bilevel.problem(
            lambda x, y, batch: 0.5 * jnp.sum(y[0] ** 2) - x @ y[0] + jnp.sum(y[1]),
            lambda x, y, batch: 0.5 * jnp.sum((x - y[1]) ** 2) + 0.5 * jnp.sum((y[0] - 1) ** 2),
            constraint=lambda x, y: (jnp.sum(x) + jnp.sum(y))[None],
            project=project,
        ),
        -20 * ones, 10 * jnp.stack([ones, ones]),
        (-0.3 * ones, jnp.stack([0.7 * ones, -0.4 * ones])), jnp.asarray([-1.0], dtype), True,
    )  # fmt: skip
