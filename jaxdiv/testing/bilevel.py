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
