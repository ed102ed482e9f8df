"""Geometries and ground costs: the contract, streaming without n m numbers, and geometries of one's own."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import ot as pot
import pytest
import scipy.spatial.distance
from absl.testing import parameterized
from jax.extend.core import jaxprs_in_params

from jaxdiv import core, ot
from jaxdiv.testing import ot as contract
from jaxdiv.testing.ot import GeometryMember

N, M, D = 5, 4, 3


def points(seed):
    rng = np.random.default_rng(seed)
    return {"x": rng.normal(size=(N, D)), "y": 0.5 + rng.normal(size=(M, D))}


def lines(seed):
    """Points on the line, far enough apart that no kernel is large."""
    z = points(seed)
    return {"x": z["x"][:, 0], "y": z["y"][:, 0] + 3.0}


def matrix(seed):
    return np.random.default_rng(seed).uniform(size=(N, M))


def cdist(metric, **options):
    return lambda z, s: scipy.spatial.distance.cdist(z["x"], z["y"], metric, **options)


def own_cost(x, y):
    return jnp.sum(jnp.sqrt(1.0 + (x - y) ** 2) - 1.0)


def own_costs(z, _):
    return np.sum(np.sqrt(1.0 + (z["x"][:, None] - z["y"]) ** 2) - 1.0, axis=-1)


METRIC = ((2.0, 0.5, 0.0), (0.5, 1.0, 0.2), (0.0, 0.2, 1.5))
CLOUD = ot.PointCloud
BAD = (
    lambda: CLOUD(jnp.ones((5, 3)), jnp.ones((4, 2))),
    lambda: CLOUD(jnp.ones(5)),
    lambda: CLOUD(jnp.ones((0, 3))),
    lambda: CLOUD(jnp.ones((5, 3)), block=-1),
    lambda: ot.PNorm(0.5),
    lambda: ot.Mahalanobis(jnp.ones((2, 3))),
    lambda: ot.CostMatrix(jnp.ones(3)),
    lambda: ot.CostMatrix(jnp.ones((0, 3))),
)


def cloud(cost, block):
    """A cloud whose option scales x."""
    return lambda z, s: CLOUD(s * z["x"], z["y"], cost, block)


def scaled(reference):
    return lambda z, s: reference({"x": s * z["x"], "y": z["y"]}, s)


GEOMETRIES = [
    GeometryMember("matrix", lambda c, s: ot.CostMatrix(s * c), matrix, lambda c, s: s * c, bad=BAD),
    GeometryMember("whole", cloud(ot.SqEuclidean(), None), points, scaled(cdist("sqeuclidean"))),
    GeometryMember("streamed", cloud(ot.Euclidean(), 2), points, scaled(cdist("euclidean"))),
    GeometryMember("own_cost", cloud(own_cost, 3), points, scaled(own_costs)),
    GeometryMember(
        "grid", lambda z, s: ot.Grid((s * z["x"],), (s * z["y"],)), lines,
        lambda z, s: (s * (z["x"][:, None] - z["y"])) ** 2,
    ),
    GeometryMember(
        "power", lambda z, s: CLOUD(z["x"], z["y"], ot.PNorm(s)), points,
        lambda z, s: np.sum(np.abs(z["x"][:, None] - z["y"]) ** s, -1), option=1.5,
    ),
    GeometryMember(
        "mahalanobis", lambda z, s: CLOUD(z["x"], z["y"], ot.Mahalanobis(s * jnp.asarray(METRIC))), points,
        lambda z, s: s * cdist("mahalanobis", VI=np.array(METRIC))(z, s) ** 2,
    ),
]  # fmt: skip
# These have no option: only their costs and derivatives are compared.
PLAIN_COSTS = {
    "cosine": (ot.Cosine(), cdist("cosine")),
    "product": (ot.NegDotProduct(), lambda z, _: -z["x"] @ z["y"].T),
}


class TestContract(chex.TestCase):
    @chex.variants(with_jit=True)
    @parameterized.named_parameters(contract.contract(GEOMETRIES, contract.GEOMETRY))
    def test_geometry(self, check, member):
        check(member, self.variant)

    @chex.variants(without_jit=True)
    @parameterized.named_parameters(contract.contract(GEOMETRIES[:1], contract.GEOMETRY[:1]))
    def test_eager(self, check, member):
        check(member, self.variant)


class TestCosts:
    @pytest.mark.parametrize("name", PLAIN_COSTS)
    def test_costs(self, name):
        cost, reference = PLAIN_COSTS[name]
        z = points(0)
        with jax.enable_x64(True):
            x, y = jnp.asarray(z["x"]), jnp.asarray(z["y"])
            got, one = jax.jit(lambda x, y: (CLOUD(x, y, cost).cost_matrix(), cost(x[0], y[1])))(x, y)
        np.testing.assert_allclose(got, reference(z, None), rtol=1e-12)
        np.testing.assert_allclose(one, got[0, 1], rtol=1e-12)

    def test_zero_vectors_and_coincident_points_have_finite_derivatives(self):
        costs = (ot.SqEuclidean(), ot.Euclidean(), ot.PNorm(1.5), ot.Cosine())

        @jax.jit
        @jax.jacrev
        def slopes(x):
            return jnp.stack([jnp.sum(CLOUD(x, x, cost).cost_matrix()) for cost in costs])

        np.testing.assert_array_equal(slopes(jnp.zeros((N, D))), 0.0)

    def test_hessian_where_points_coincide(self):
        """sum_ij |z_i - x_j|^2 has the Hessian 2 n I, at z = x as well."""
        with jax.enable_x64(True):
            x = jnp.asarray(points(1)["x"])
            hessian = jax.jit(jax.hessian(lambda z, x: jnp.sum(CLOUD(z, x).cost_matrix())))(x, x)
        np.testing.assert_allclose(hessian.reshape(N * D, N * D), 2 * N * np.eye(N * D), atol=1e-10)

    def test_options_may_be_numpy_arrays(self):
        z, metric = points(0), np.array(METRIC)
        got = CLOUD(z["x"], z["y"], ot.Mahalanobis(metric)).cost_matrix()
        np.testing.assert_allclose(got, cdist("mahalanobis", VI=metric)(z, None) ** 2, rtol=1e-5)

    def test_distances_far_from_the_origin_keep_float32(self):
        z = {k: np.float32(v) for k, v in points(2).items()}
        far = np.float32(1000.0)
        moved = CLOUD(z["x"] + far, z["y"] + far).cost_matrix()
        expected = cdist("sqeuclidean")({k: np.float64(v + far) for k, v in z.items()}, None)
        np.testing.assert_allclose(moved, expected, rtol=1e-5, atol=1e-5)

    def test_products_take_the_highest_precision(self):
        """TF32 units must not see a cost, a kernel or a plan."""

        def total(x, y, v):
            out = ot.solve(CLOUD(x, y), epsilon=0.1)
            return jnp.sum(out.apply(v)) + out.linear_cost

        shapes = (jnp.ones((N, D)), jnp.ones((M, D)), jnp.ones((M, 2)))
        precisions = [
            equation.params["precision"]
            for equation in equations(jax.make_jaxpr(jax.grad(total))(*shapes).jaxpr)
            if equation.primitive.name == "dot_general" and max(v.aval.ndim for v in equation.invars) > 1
        ]
        assert len(precisions) > 3
        assert {p[0] if isinstance(p, tuple) else p for p in precisions} == {jax.lax.Precision.HIGHEST}


def equations(jaxpr):
    """All equations, those of inner jaxprs too."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)


# --- geometries of one's own


@core.pytree_dataclass
class Lattice:
    """|i - j|^p on integers, without a matrix in memory: the protocol and nothing more."""

    size: int = core.static_field()
    p: float = 2.0

    @property
    def shape(self):
        return self.size, self.size

    @property
    def dtype(self):
        return jnp.asarray(self.p).dtype

    def cost_matrix(self):
        index = jnp.arange(self.size) / self.size
        gap = jnp.abs(index[:, None] - index)
        return jnp.where(gap > 0, jnp.where(gap > 0, gap, 1.0) ** self.p, 0.0).astype(self.dtype)

    def dense(self):
        return ot.CostMatrix(self.cost_matrix())

    def transpose(self):
        return self

    def softmin(self, h, weights, epsilon, axis):
        return self.dense().softmin(h, weights, epsilon, axis)

    def apply(self, f, g, epsilon, v, axis):
        return self.dense().apply(f, g, epsilon, v, axis)

    def map_rows(self, fn, *arrays):
        return fn(self.cost_matrix(), *arrays)


def test_a_geometry_of_ones_own():
    """Its derivative by p is <P, dC/dp>."""

    def value(p):
        a = jnp.array([0.4, 0.3, 0.2, 0.1])
        out = ot.solve(Lattice(4, p), a, a[::-1], epsilon=0.05, solver=ot.Sinkhorn(tol=1e-6, mode="log"))
        return out.cost, (out.status, out.plan())

    p = jnp.float32(1.5)
    (_, (status, plan)), slope = jax.jit(jax.value_and_grad(value, has_aux=True))(p)
    assert status == core.Status.CONVERGED
    np.testing.assert_allclose(plan.sum(0), [0.1, 0.2, 0.3, 0.4], atol=1e-6)
    gap = np.abs(np.arange(4)[:, None] - np.arange(4)) / 4
    np.testing.assert_allclose(slope, np.sum(plan * gap**1.5 * np.log(np.where(gap > 0, gap, 1))), rtol=1e-4)


# --- memory: compiled, never run


def temporary(fn, *shapes):
    compiled = jax.jit(fn).lower(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)).compile()
    return compiled.memory_analysis().temp_size_in_bytes / 2**20


@pytest.mark.parametrize("cost", [ot.SqEuclidean(), own_cost], ids=["sqeuclidean", "own"])
def test_streamed_solves_and_gradients_need_no_matrix(cost):
    """At 20000 x 20000 the cost matrix would be 1526 MiB; two lanes of the squared cost share the bound."""

    def loss(x, y):
        out = ot.solve(CLOUD(x, y, cost), epsilon=0.1, solver=ot.Sinkhorn(max_steps=100))
        return jnp.sum(out.apply(y) ** 2)

    points, gradient = (20_000, 64), jax.grad(loss)
    if isinstance(cost, ot.SqEuclidean):
        assert temporary(jax.vmap(gradient, (0, None)), (2, *points), points) < 600
    else:
        assert temporary(gradient, points, points) < 600


def test_costs_agree_with_pot():
    z = points(3)
    got = CLOUD(*(jnp.asarray(z[k], jnp.float32) for k in "xy"), block=2).cost_matrix()
    np.testing.assert_allclose(got, pot.dist(z["x"], z["y"]), rtol=1e-5)
