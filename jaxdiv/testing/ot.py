"""The contracts of optimal transport, as checks that test classes parametrize over.

There is one for geometries, one for marginals, one for solvers and one for functions of point clouds. A
member is described by a `GeometryMember`, `MarginalMember`, `SolverMember` or `FunctionMember`, and
`contract(members, checks)` names one test per member and check:

    class TestContract(chex.TestCase):
        @chex.variants(with_jit=True)
        @parameterized.named_parameters(contract(MEMBERS, GEOMETRY))
        def test_geometry(self, check, member):
            check(member, self.variant)

Each kind compiles one function of a problem, so that a member costs a handful of compilations. `bad` holds calls
that must raise ValueError.
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

from jaxdiv import core, ot
from jaxdiv.core import Status

Variant = Callable[[Callable[..., Any]], Callable[..., Any]]
Check = Callable[[Any, Variant], None]
Bad = tuple[Callable[[], Any], ...]
# The solver contract's problem: rows and columns, and the first column without weight.
ROWS, COLUMNS = 5, 4


def contract(members: Iterable[Any], checks: tuple[Check, ...]) -> list[tuple[str, Check, Any]]:
    """The named parameters of a test method: one case per member and check."""
    return [
        (f"_{member.name}_{check.__name__.removeprefix('check_')}", check, member)
        for member in members
        for check in checks
    ]


def cast(tree: PyTree, dtype: Any) -> PyTree:
    """The tree as jax arrays of one floating dtype."""
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), tree)


def once(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which may be traced once until `chex.clear_trace_counter`."""
    chex.clear_trace_counter()
    # chex wants a function with a name.
    return chex.assert_max_traces(lambda *args: fn(*args), n=1)


def raises(name: str, calls: Bad) -> None:
    """Asserts that each call raises ValueError."""
    for index, call in enumerate(calls):
        try:
            call()
        except ValueError:
            continue
        raise AssertionError(f"{name}: bad input {index} did not raise ValueError")


def differences(fn: Callable[..., Array], arguments: tuple[Any, ...], gradients: PyTree) -> None:
    """Asserts that a directional derivative of a scalar agrees with central differences, in float64."""
    rng = np.random.default_rng(2)
    direction = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), arguments)
    slope = sum(map(jnp.vdot, jax.tree.leaves(gradients), jax.tree.leaves(direction)))
    ahead, behind = (
        fn(*jax.tree.map(lambda x, d, s=s: x + s * d, arguments, direction)) for s in (1e-5, -1e-5)
    )
    np.testing.assert_allclose(slope, (ahead - behind) / 2e-5, rtol=1e-6, atol=1e-8)


# --- geometries


@dataclasses.dataclass(frozen=True)
class GeometryMember:
    """A geometry and what its costs are.

    Attributes:
        name: Unique among the members; letters, digits and underscores.
        make: ``make(inputs, option) -> geometry``.
        inputs: ``inputs(seed)``, a pytree of float64 numpy arrays.
        reference: ``reference(inputs, option) -> C``, in numpy.
        option: A value of the numeric option.
        bad: Calls that must raise ValueError.
    """

    name: str
    make: Callable[[Any, Any], ot.Geometry]
    inputs: Callable[[int], Any]
    reference: Callable[[Any, float], np.ndarray]
    option: float = 0.7
    bad: Bad = ()


def _reductions(member: GeometryMember, inputs: Any, option: Any, weights: Any) -> dict[str, Any]:
    """All that solvers ask of a geometry."""
    f, g, a, b, v, u = weights
    geometry = member.make(inputs, option)
    turned = geometry.transpose()
    return {
        "costs": geometry.cost_matrix(),
        "rows": geometry.softmin(g, b, 0.3, 1),
        "columns": geometry.softmin(f, a, 0.3, 0),
        "turned": turned.softmin(g, b, 0.3, 0),
        "product": geometry.apply(f, g, 0.3, v, 1),
        "transposed": geometry.apply(f, g, 0.3, u, 0),
        "sums": geometry.map_rows(lambda cost, f: (jnp.sum(cost, 1), cost @ g + f), f),
        "dense": geometry.dense().cost_matrix(),
        "turned_costs": turned.cost_matrix(),
    }


def _expected(costs: np.ndarray, weights: Any) -> dict[str, Any]:
    f, g, a, b, v, u = weights
    kernel = np.exp((f[:, None] + g - costs) / 0.3)
    rows = -0.3 * np.log(np.exp((g - costs) / 0.3) @ b)
    return {
        "costs": costs,
        "rows": rows,
        "columns": -0.3 * np.log(a @ np.exp((f[:, None] - costs) / 0.3)),
        "turned": rows,
        "product": np.tensordot(kernel, v, 1),
        "transposed": np.tensordot(kernel.T, u, 1),
        "sums": (costs.sum(1), costs @ g + f),
        "dense": costs,
        "turned_costs": costs.T,
    }


def _vectors(shape: tuple[int, int], seed: int) -> tuple[np.ndarray, ...]:
    """Potentials, weights of which the first are 0, and arrays to multiply."""
    (n, m), rng = shape, np.random.default_rng(seed)
    a, b = rng.dirichlet(np.ones(n)), rng.dirichlet(np.ones(m))
    a[0] = b[0] = 0.0
    f, g = 0.3 * rng.normal(size=n), 0.3 * rng.normal(size=m)
    return f, g, a, b, rng.normal(size=(m, 2)), rng.normal(size=n)


def check_reductions(member: GeometryMember, variant: Variant) -> None:
    """Costs, softmins with weights of 0, products, blocks and the transpose, in float32."""
    inputs = member.inputs(0)
    costs = member.reference(inputs, member.option)
    weights = _vectors(costs.shape, 0)
    fn = variant(functools.partial(_reductions, member))
    got = fn(*cast((inputs, member.option, weights), jnp.float32))
    chex.assert_trees_all_equal_dtypes(got, cast(got, jnp.float32))
    chex.assert_trees_all_close(got, _expected(costs, weights), rtol=2e-5, atol=2e-5)


def check_geometry_lanes(member: GeometryMember, variant: Variant) -> None:
    """Lanes of inputs and options, in float64, by one trace for all values."""
    with jax.enable_x64(True):
        fn = variant(once(jax.vmap(functools.partial(_reductions, member), (0, 0, None))))
        for seed in (0, 2):
            lanes = [(member.inputs(seed + i), scale * member.option) for i, scale in enumerate((1.0, 0.9))]
            stacked = jax.tree.map(lambda *x: np.stack(x), *lanes)
            references = [member.reference(*lane) for lane in lanes]
            weights = _vectors(references[0].shape, seed)
            got = fn(*cast((*stacked, weights), jnp.float64))
            chex.assert_trees_all_equal_dtypes(got, cast(got, jnp.float64))
            for i, costs in enumerate(references):
                lane = jax.tree.map(lambda x, i=i: x[i], got)
                chex.assert_trees_all_close(lane, _expected(costs, weights), rtol=1e-11, atol=1e-11)


def check_geometry_gradients(member: GeometryMember, variant: Variant) -> None:
    """Derivatives of the reductions by inputs, option, potentials and weights."""
    with jax.enable_x64(True):
        inputs = member.inputs(3)
        f, g, a, b, *others = _vectors(member.reference(inputs, member.option).shape, 3)
        # From a weight of 0 there is no way down.
        weights = (f, g, a + 0.1, b + 0.1, *others)

        def total(*args: Any) -> Array:
            out = _reductions(member, *args)
            kept = (
                out["costs"],
                out["rows"],
                out["columns"],
                out["product"],
                out["transposed"],
                *out["sums"],
            )
            return jnp.sum(jnp.stack([jnp.sum(jnp.sin(x + i)) for i, x in enumerate(kept)]))

        arguments = cast((inputs, member.option, weights), jnp.float64)
        fn = variant(jax.value_and_grad(total, (0, 1, 2)))
        differences(lambda *args: fn(*args)[0], arguments, fn(*arguments)[1])


def check_geometry_input(member: GeometryMember, variant: Variant) -> None:
    """Half precision is raised; integers and values that are not finite raise; concrete arrays do under jit."""
    inputs = member.inputs(4)
    half = member.make(cast(inputs, jnp.bfloat16), member.option)
    assert half.dtype == jnp.float32
    with_nan = jax.tree.map(lambda x: np.where(np.arange(x.size).reshape(x.shape) == 0, np.nan, x), inputs)
    integers = jax.tree.map(lambda x: np.ones(x.shape, np.int32), inputs)
    raises(member.name, (lambda: member.make(with_nan, 1.0), lambda: member.make(integers, 1), *member.bad))
    constants = cast(inputs, jnp.float32)
    assert np.all(np.isfinite(variant(lambda: member.make(constants, member.option).cost_matrix())()))


GEOMETRY: tuple[Check, ...] = (
    check_reductions,
    check_geometry_lanes,
    check_geometry_gradients,
    check_geometry_input,
)


# --- marginals


@dataclasses.dataclass(frozen=True)
class MarginalMember:
    """A marginal and its penalty.

    Attributes:
        name: Unique among the members; letters, digits and underscores.
        make: ``make(option) -> marginal``.
        value: ``value(f, a, option)``, the least ``D(r | a) + f·r`` over r >= 0, in numpy, by other means.
        penalty: ``penalty(r, a, option) -> D(r | a)`` in numpy; inf outside of a constraint.
        option: A value of the numeric option, or None.
        bad: Calls that must raise ValueError.
    """

    name: str
    make: Callable[[Any], ot.Marginal]
    value: Callable[[np.ndarray, np.ndarray, float | None], float]
    penalty: Callable[[np.ndarray, np.ndarray, float | None], float]
    option: float | None = 0.4
    bad: Bad = ()


def _half_step(member: MarginalMember, s: Array, a: Array, option: Any, epsilon: Any) -> dict[str, Any]:
    marginal = member.make(option)
    f = marginal.update(s, a, epsilon)
    mass = a * jnp.exp((f - s) / epsilon)
    return {
        "f": f,
        "mass": mass,
        "value": jnp.sum(marginal.value(f, a)),
        "penalty": jnp.sum(marginal.penalty(mass, a)),
        "residual": jnp.sum(jnp.abs(marginal.residual(mass, f, a))),
        "stiffness": marginal.stiffness(f, a),
        "slope": jax.jvp(lambda f: marginal.residual(mass, f, a), (f,), (jnp.ones_like(f),))[1],
    }


# s on both sides of every bound; the last weight is 0.
SOFTMIN = np.array([-0.9, -0.2, 0.1, 0.3, 0.8, 0.2])
WEIGHTS = np.array([0.3, 0.1, 0.25, 0.2, 0.15, 0.0])


def check_half_step(member: MarginalMember, variant: Variant) -> None:
    """The update is the best f: its mass is what f asks for, value and penalty are conjugate, both dtypes."""
    fn = variant(once(functools.partial(_half_step, member)))
    for dtype, atol in ((jnp.float32, 2e-6), (jnp.float64, 1e-13)):
        with jax.enable_x64(dtype == jnp.float64):
            chex.clear_trace_counter()
            for epsilon in (0.05, 0.3):
                out = fn(*cast((SOFTMIN, WEIGHTS, member.option, epsilon), dtype))
                chex.assert_trees_all_equal_dtypes(out, cast(out, dtype))
                finite = {k: v for k, v in out.items() if k != "stiffness"}
                chex.assert_tree_all_finite(finite)
                assert out["residual"] <= atol, (member.name, epsilon, out["residual"])
                assert np.all(out["stiffness"] >= 0)
                assert out["mass"][-1] == 0
                f, mass = (np.asarray(out[k], np.float64) for k in ("f", "mass"))
                size = 10 * atol * max(1.0, mass.sum())
                # Fenchel and Young, with equality at the mass that f asks for.
                np.testing.assert_allclose(out["penalty"] + f @ mass, out["value"], atol=size)
                penalty = member.penalty(mass, WEIGHTS, member.option)
                np.testing.assert_allclose(out["penalty"], penalty, atol=size)
                value = member.value(f, WEIGHTS, member.option)
                np.testing.assert_allclose(out["value"], value, rtol=1e-5, atol=1e-6)
    raises(member.name, member.bad)


def check_half_step_derivatives(member: MarginalMember, variant: Variant) -> None:
    """Derivatives of the update; the stiffness is minus that of what f asks for; lanes of the option."""
    with jax.enable_x64(True):
        # From a weight of 0 there is no way down.
        weights = WEIGHTS + 0.05
        arguments = cast((SOFTMIN, weights, member.option, 0.3), jnp.float64)
        weighted = jnp.asarray(np.random.default_rng(0).normal(size=SOFTMIN.shape))

        def total(*args: Any) -> tuple[Array, Any]:
            out = _half_step(member, *args)
            return jnp.vdot(weighted, out["f"]), out

        fn = variant(jax.value_and_grad(total, (0, 1, 2, 3), has_aux=True))
        (_, out), gradients = fn(*arguments)
        differences(lambda *args: fn(*args)[0][0], arguments, gradients)
        # A residual may have entries beyond those of f.
        slope, moves = out["slope"][: weights.size], np.isfinite(out["stiffness"])
        np.testing.assert_allclose(slope[moves], out["stiffness"][moves], atol=1e-12)
        if member.option is None:
            return
        lanes = variant(
            jax.vmap(lambda option: total(arguments[0], arguments[1], option, arguments[3])[1]["f"])
        )
        got = lanes(member.option * jnp.array([1.0, 0.8]))
        np.testing.assert_allclose(got[0], out["f"], atol=1e-14)
        assert not np.allclose(got[0], got[1]), f"{member.name} ignores its option"


MARGINAL: tuple[Check, ...] = (check_half_step, check_half_step_derivatives)


# --- solvers


@dataclasses.dataclass(frozen=True)
class SolverMember:
    """A solver and a kind of problem that it solves.

    Attributes:
        name: Unique among the members; letters, digits and underscores.
        make: ``make(tol, max_steps) -> solver``.
        options: ``options(strength) -> keywords`` of `ot.solve`, such as the regularizer.
        strength: A value of the regularizer's strength at which tens of steps are needed.
        tol: A tolerance that is within reach of float32.
        tight: One that is within reach of float64.
        balanced: Whether both marginals are exact.
        bad: Calls that must raise ValueError.
    """

    name: str
    make: Callable[[Any, int], core.Solver]
    options: Callable[[Any], dict[str, Any]]
    strength: float = 0.05
    tol: float = 1e-4
    tight: float = 1e-9
    balanced: bool = True
    bad: Bad = ()


def _problem(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Costs and weights, the first column without one."""
    rng = np.random.default_rng(seed)
    b = rng.dirichlet(np.ones(COLUMNS))
    b[0] = 0.0
    return rng.uniform(size=(ROWS, COLUMNS)), rng.dirichlet(np.ones(ROWS)), b / b.sum()


def _solve(
    member: SolverMember, cost: Array, a: Array, b: Array, strength: Any, tol: Any, max_steps: int = 3000
) -> dict[str, Any]:
    solver = member.make(tol, max_steps)
    out = ot.solve(ot.CostMatrix(cost), a, b, solver=solver, **member.options(strength))
    names = ("status", "iterations", "error", "dual", "gap", "f", "g")
    return {name: getattr(out, name) for name in names} | {"plan": out.plan()}


_COUNTS = ("status", "iterations")


def _checked(member: SolverMember, out: dict[str, Any], a: np.ndarray, b: np.ndarray, tol: float) -> None:
    """What a converged result promises."""
    assert out["status"] == Status.CONVERGED, (member.name, Status(int(out["status"])).name, out["error"])
    chex.assert_tree_all_finite(out)
    assert out["error"] <= tol
    plan = np.asarray(out["plan"], np.float64)
    rounding = 50 * float(jnp.finfo(out["plan"].dtype).eps) / min(member.strength, 1.0)
    assert np.all(plan >= 0)
    assert np.all(plan[:, b == 0] == 0)
    if member.balanced:
        error = np.abs(plan.sum(1) - a).sum() + np.abs(plan.sum(0) - b).sum()
        assert error <= tol + rounding, (member.name, error)
        assert abs(out["gap"]) <= 10 * tol + rounding, (member.name, out["gap"])


def check_converges(member: SolverMember, variant: Variant) -> None:
    """Converged means so, in float64, and weight 0 takes no part; lanes of uneven difficulty.

    Each lane is its single solve and stops when that stops.
    """
    with jax.enable_x64(True):
        single = variant(once(functools.partial(_solve, member)))
        lanes = [(*_problem(seed), scale * member.strength) for seed, scale in ((3, 1.0), (4, 0.3), (5, 4.0))]
        alone = []
        for cost, a, b, strength in lanes:
            out = single(*cast((cost, a, b, strength, member.tight), jnp.float64))
            chex.assert_trees_all_equal_dtypes(
                out, {k: out[k] if k in _COUNTS else cast(out[k], float) for k in out}
            )
            _checked(member, out, a, b, member.tight)
            alone.append(out)
        other = np.where(b > 0, cost, 3.0 - cost)
        again = single(*cast((other, a, b, strength, member.tight), jnp.float64))
        for name in ("plan", "dual", "iterations"):
            np.testing.assert_allclose(again[name], out[name], rtol=1e-5, atol=10 * member.tight)

        stacked = jax.tree.map(lambda *x: jnp.stack(cast(x, jnp.float64)), *lanes)
        mapped = variant(jax.vmap(functools.partial(_solve, member), (0, 0, 0, 0, None)))
        together = mapped(*stacked, member.tight)
        for i, one in enumerate(alone):
            lane = jax.tree.map(lambda x, i=i: x[i], together)
            assert lane["status"] == Status.CONVERGED
            # The replay of a step in log space counts as one.
            assert abs(int(lane["iterations"]) - int(one["iterations"])) <= 1
            for name in ("plan", "dual"):
                np.testing.assert_allclose(lane[name], one[name], atol=10 * member.tight)
        assert len(set(np.asarray(together["iterations"]).tolist())) > 1


def check_failures(member: SolverMember, variant: Variant) -> None:
    """Float32: bad values that are traced end in a status, as does a tolerance out of reach."""
    fn = variant(once(functools.partial(_solve, member)))
    cost, a, b = _problem(2)

    def found(**changed: Any) -> dict[str, Any]:
        fine = {"cost": cost, "a": a, "b": b, "strength": member.strength, "tol": member.tol}
        return fn(*cast(tuple((fine | changed).values()), jnp.float32))

    def status(**changed: Any) -> Status:
        return Status(int(found(**changed)["status"]))

    _checked(member, found(), a, b, member.tol)
    assert status(cost=np.where(cost == cost[1, 1], np.nan, cost)) == Status.NONFINITE
    assert status(a=np.where(a == a[1], -a, a)) == Status.INFEASIBLE
    assert status(a=0 * a) == Status.INFEASIBLE
    assert status(a=np.where(a == a[1], np.nan, a)) == Status.INFEASIBLE
    if member.balanced:
        assert status(b=1.1 * b) == Status.INFEASIBLE
    for strength in (0.0, -1.0, np.nan):
        assert status(strength=strength) != Status.CONVERGED
    assert status(tol=0.0) in (Status.STALLED, Status.CONVERGED)
    raises(member.name, (*member.bad, lambda: member.make(-1.0, 10), lambda: member.make(1e-3, 0)))


SOLVER: tuple[Check, ...] = (check_converges, check_failures)


# --- functions of point clouds


@dataclasses.dataclass(frozen=True)
class FunctionMember:
    """A scalar function of two weighted clouds of points.

    Attributes:
        name: Unique among the members; letters, digits and underscores.
        call: ``call(x, y, a, b, option) -> scalar``; nonnegative, 0 where both are one.
        option: A value of the numeric option.
        rank: Rank of x and y, 1 or 2.
        half: Whether bfloat16 points are offered.
        bad: Calls that must raise ValueError.
    """

    name: str
    call: Callable[..., Array]
    option: float = 2.0
    rank: int = 2
    half: bool = True
    bad: Bad = ()


def clouds(seed: int, rank: int = 2) -> tuple[np.ndarray, ...]:
    """Points [6] or [6, 2], [5] or [5, 2], and weights, of which the first are 0."""
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(6, 2)), 0.5 + rng.normal(size=(5, 2))
    a, b = rng.dirichlet(np.ones(6)), rng.dirichlet(np.ones(5))
    a[0] = b[0] = 0.0
    x, y = (x, y) if rank == 2 else (x[:, 0], y[:, 0])
    return x, y, a / a.sum(), b / b.sum()


def check_function_values(member: FunctionMember, variant: Variant) -> None:
    """Dtype, sign, 0 at equality, points of weight 0 do not count, one trace."""
    fn = variant(once(member.call))
    for seed in (0, 1):
        x, y, a, b, option = cast((*clouds(seed, member.rank), member.option), jnp.float32)
        value = fn(x, y, a, b, option)
        chex.assert_shape(value, ())
        chex.assert_type(value, jnp.float32)
        assert value > 0
        far = fn(x.at[0].set(1e3), y.at[0].set(-1e3), a, b, option)
        np.testing.assert_allclose(far, value, rtol=1e-4)
        option = 0.9 * option
    # y and one point without weight.
    same = jnp.concatenate([x[:1], y])
    np.testing.assert_allclose(fn(same, y, jnp.append(0.0, b), b, option), 0.0, atol=1e-5)
    if member.half:
        chex.clear_trace_counter()
        half = [z.astype(jnp.bfloat16) for z in (x, y)]
        chex.assert_type(fn(*half, a, b, option), jnp.float32)
    raises(member.name, (lambda: member.call(x.astype(jnp.int32), y, a, b, member.option), *member.bad))


def check_function_derivatives(member: FunctionMember, variant: Variant) -> None:
    """Derivatives by points, weights that keep their mass and the option; lanes of clouds and options."""
    with jax.enable_x64(True):
        arguments = cast((*clouds(2, member.rank), member.option), jnp.float64)

        def moved(x: Array, y: Array, u: Array, v: Array, option: Array) -> Array:
            a, b = (
                w * jnp.exp(z) / jnp.sum(w * jnp.exp(z)) for w, z in ((arguments[2], u), (arguments[3], v))
            )
            return member.call(x, y, a, b, option)

        point = (*arguments[:2], 0.0 * arguments[2], 0.0 * arguments[3], arguments[4])
        fn = variant(jax.value_and_grad(moved, (0, 1, 2, 3, 4)))
        value, gradients = fn(*point)
        differences(lambda *args: fn(*args)[0], point, gradients)
        chex.assert_tree_all_finite(gradients)
        options = member.option * jnp.array([1.0, 0.8])
        lanes = variant(jax.vmap(member.call, (0, 0, None, None, 0)))
        x, y = (jnp.stack([z, z]) for z in arguments[:2])
        got = lanes(x, y, arguments[2], arguments[3], options)
        np.testing.assert_allclose(got[0], value, rtol=1e-10)
        assert abs(got[0] - got[1]) > 1e-6, f"{member.name} ignores its option"


FUNCTION: tuple[Check, ...] = (check_function_values, check_function_derivatives)
