"""The contract of the room of solvers, as checks that test classes parametrize over.

A member is described by a `SolverMember`: a solver of a problem whose solution is known in closed form, as a
differentiable function of the problem's arrays. `contract(members)` names one test per member and check:

    class TestContract(chex.TestCase):
        @chex.variants(with_jit=True)
        @parameterized.named_parameters(contract(MEMBERS))
        def test_solver(self, check, member):
            check(member, self.variant)

`linear_system`, `quadratic` and the other functions give the usual problems, on values that are pytrees. `bad`
holds calls that must raise ValueError.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from jaxdiv import core
from jaxdiv.core import Status
from jaxdiv.testing.ot import cast, once, raises

Variant = Callable[[Callable[..., Any]], Callable[..., Any]]
Check = Callable[["SolverMember", Variant], None]


@dataclasses.dataclass(frozen=True)
class SolverMember:
    """A solver and a problem that it solves.

    Attributes:
        name: Unique among the members; letters, digits and underscores.
        make: ``make(tol, option) -> solver``.
        arguments: ``arguments(seed)``, the problem: a tuple of float64 numpy arrays.
        start: ``start() -> y0`` of floats, away from every solution.
        solution: ``solution(*arguments)``, in jax.numpy and differentiable.
        option: A value of a numeric option, which may change the path but not the solution; None if there is none.
        tol: A tolerance within reach of float32, from which the value is within `slack` times of the solution.
        tight: One within reach of float64.
        slack: The distance to the solution per tolerance.
        max_steps: More than any of its runs needs.
        bad: Calls that must raise ValueError.
    """

    name: str
    make: Callable[[Any, Any], core.Solver]
    arguments: Callable[[int], tuple[Any, ...]]
    start: Callable[[], PyTree]
    solution: Callable[..., PyTree]
    option: float | None = None
    tol: float = 1e-5
    tight: float = 1e-10
    slack: float = 50.0
    max_steps: int = 2000
    bad: tuple[Callable[[], Any], ...] = ()


def contract(members: Iterable[SolverMember]) -> list[tuple[str, Check, SolverMember]]:
    """The named parameters of a test method: one case per member and check."""
    return [
        (f"_{member.name}_{check.__name__.removeprefix('check_')}", check, member)
        for member in members
        for check in CHECKS
    ]


def _run(member: SolverMember, y0: PyTree, arguments: Any, tol: Any, option: Any, **keywords: Any) -> Any:
    keywords = {"max_steps": member.max_steps} | keywords
    return core.run(member.make(tol, option), y0, *arguments, **keywords)


def _inputs(member: SolverMember, seed: int, tol: float, dtype: Any) -> tuple[Any, ...]:
    return cast((member.start(), member.arguments(seed), tol, member.option), dtype)


def _checked(member: SolverMember, found: core.Solution, arguments: Any, tol: float) -> None:
    status = Status(int(found.status)).name
    assert status == "CONVERGED", (member.name, status, int(found.steps), float(found.error))
    assert found.error <= tol
    assert found.steps > 0
    expected = member.solution(*cast(arguments, found.error.dtype))
    dtype = found.error.dtype
    chex.assert_trees_all_equal_dtypes(found.value, cast(expected, dtype))
    atol = member.slack * (tol + float(jnp.finfo(dtype).eps))
    chex.assert_trees_all_close(found.value, expected, rtol=atol, atol=atol)


def check_single(member: SolverMember, variant: Variant) -> None:
    """Float32: the closed form within tol, by one trace for all values; how a run ends otherwise; bad input."""
    fn = variant(once(functools.partial(_run, member)))
    for seed in (0, 1):
        _checked(
            member, fn(*_inputs(member, seed, member.tol, jnp.float32)), member.arguments(seed), member.tol
        )
    y0, arguments, _, option = _inputs(member, 0, member.tol, jnp.float32)
    # A measured error of exactly 0 is within every tolerance.
    tight = fn(y0, arguments, jnp.float32(0.0), option)
    assert tight.status == Status.STALLED or (tight.status == Status.CONVERGED and tight.error == 0)
    _checked(member, dataclasses.replace(tight, status=jnp.int32(0)), member.arguments(0), member.tol)
    again = fn(tight.value, arguments, jnp.float32(member.tol), option)
    assert again.status == Status.CONVERGED
    assert again.steps <= 2
    assert fn(y0, arguments, jnp.float32(jnp.nan), option).status != Status.CONVERGED
    for broken in (jnp.nan, jnp.inf):
        bad = jax.tree.map(lambda x, broken=broken: jnp.full_like(x, broken), arguments)
        found = fn(y0, bad, jnp.float32(member.tol), option)
        assert found.status != Status.CONVERGED, (member.name, broken)
        if broken != broken:
            assert found.status == Status.NONFINITE

    solver = member.make(member.tol, member.option)
    state = jax.eval_shape(lambda: solver.init(cast(y0, jnp.bfloat16), *arguments))
    chex.assert_trees_all_equal_dtypes(state.value, y0)
    integers = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.int32), y0)
    calls = (
        lambda: solver.init(integers, *arguments),
        lambda: solver.init((), *arguments),
        lambda: member.make(-1.0, member.option),
    )
    raises(member.name, (*calls, *member.bad))


def check_lanes(member: SolverMember, variant: Variant) -> None:
    """Float64: lanes of problems and tolerances reach their closed forms and stop on their own."""
    with jax.enable_x64(True):
        fn = variant(once(jax.vmap(functools.partial(_run, member))))
        strict, loose = (
            _inputs(member, seed, tol, jnp.float64)
            for seed, tol in ((2, member.tight), (3, 1e3 * member.tight))
        )
        together = fn(*jax.tree.map(lambda *x: jnp.stack(x), strict, loose))
        alone = fn(*jax.tree.map(lambda *x: jnp.stack(x), loose, loose))
        for i, (_, arguments, tol, _) in enumerate((strict, loose)):
            _checked(member, jax.tree.map(lambda x, i=i: x[i], together), arguments, float(tol))
        # A lane that has ended is frozen while the other goes on.
        last = (jax.tree.map(lambda x: x[1], found) for found in (together, alone))
        chex.assert_trees_all_close(*last, rtol=1e-9, atol=1e-12)


def check_resumes(member: SolverMember, variant: Variant) -> None:
    """Two runs of k steps are one of 2k; unfinished runs end MAX_STEPS."""

    def runs(y0: PyTree, arguments: Any, tol: Any, option: Any) -> tuple[core.Solution, ...]:
        run = functools.partial(_run, member, y0, arguments, tol, option)
        first = run(max_steps=2)
        return first, run(max_steps=2, state=first.state), run(max_steps=4)

    inputs = _inputs(member, 4, member.tol, jnp.float32)
    first, second, whole = variant(runs)(*inputs[:2], jnp.float32(0.0), inputs[3])
    assert first.status == Status.MAX_STEPS or first.error == 0
    chex.assert_trees_all_close(second.state, whole.state, rtol=1e-5, atol=1e-6)


def check_derivatives(member: SolverMember, variant: Variant) -> None:
    """Float64: forward and reverse derivatives equal those of the closed form."""
    # Above the core alone: the room below it need not be loaded for the other checks.
    from jaxdiv import implicit

    with jax.enable_x64(True):
        y0, arguments, tol, option = _inputs(member, 5, member.tight, jnp.float64)

        def value(*arguments: Any) -> PyTree:
            solver = member.make(tol, option)
            return implicit.run(solver, y0, *arguments, max_steps=member.max_steps).value

        rng = np.random.default_rng(6)
        tangents = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), arguments)

        def both(fn: Callable[..., PyTree]) -> Any:
            out, forward = jax.jvp(fn, arguments, tangents)
            weights = jax.tree.map(lambda x: jnp.cos(jnp.arange(x.size).reshape(x.shape) + 1.0), out)
            return out, forward, jax.vjp(fn, *arguments)[1](weights)

        got, expected = variant(lambda: both(value))(), both(member.solution)
        chex.assert_trees_all_close(got, expected, rtol=1e-5, atol=1e-6)
        residual = member.make(tol, option).optimality(expected[0], *arguments)  # type: ignore[attr-defined]
        chex.assert_trees_all_close(residual, jax.tree.map(jnp.zeros_like, y0), atol=1e-12)


CHECKS: tuple[Check, ...] = (check_single, check_lanes, check_resumes, check_derivatives)


# --- problems


def split(y: Array) -> PyTree:
    """A vector of 3 as a pytree."""
    return {"a": y[:2], "b": y[2]}


def join(tree: PyTree) -> Array:
    """The vector of `split`."""
    return jnp.append(tree["a"], tree["b"])


def zeros() -> PyTree:
    """The pytree of 3 zeros."""
    return {"a": np.zeros(2), "b": np.zeros(())}


def linear_system(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A symmetric matrix [3, 3] with eigenvalues 1, 2 and 4, and a vector."""
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return q @ np.diag([1.0, 2.0, 4.0]) @ q.T, rng.normal(size=3) + 1.0


def solve_linear(a: Array, b: Array) -> PyTree:
    """``A⁻¹ b``, of the matrix as it stands."""
    return split(jnp.linalg.solve(a, b))


def solve_symmetric(a: Array, b: Array) -> PyTree:
    """The minimizer of `quadratic`, which sees the symmetric part of A alone."""
    return split(jnp.linalg.solve((a + a.T) / 2, b))


def quadratic(y: PyTree, a: Array, b: Array) -> Array:
    """``½ yᵀA y - bᵀy``."""
    y = join(y)
    return 0.5 * y @ a @ y - b @ y
