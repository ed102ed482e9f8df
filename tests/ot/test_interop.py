"""POT's and OTT's numbers through their own calls, and every line of the migration table."""

import re
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import ot as pot
import pytest

from jaxdiv import ot
from jaxdiv.ot import interop

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of jaxopt, which OTT imports
    from ott.geometry import costs, geometry, grid, pointcloud
    from ott.problems.linear import linear_problem
    from ott.solvers.linear import sinkhorn

GUIDE = (Path(__file__).parents[2] / "docs" / "coming-from.md").read_text()
RNG = np.random.default_rng(41)
A, B, M = RNG.dirichlet(np.ones(5)), RNG.dirichlet(np.ones(4)), RNG.random((5, 4))
C = RNG.random((5, 4))
X, Y = RNG.normal(size=(5, 2)), RNG.normal(size=(4, 2))
REG, INF = 0.1, float("inf")


class TestPot:
    def test_sinkhorn(self):
        """Plan, cost, scalings that rebuild the plan, and a start from them."""
        plan, log = interop.sinkhorn(A, B, M, REG, log=True)
        expected, theirs = pot.sinkhorn(A, B, M, REG, method="sinkhorn_log", stopThr=1e-12, log=True)
        assert isinstance(plan, np.ndarray)
        assert plan.dtype == np.float64
        np.testing.assert_allclose(plan, expected, atol=1e-9)
        np.testing.assert_allclose(log["u"][:, None] * np.exp(-M / REG) * log["v"], plan, rtol=1e-9)
        np.testing.assert_allclose(np.ptp(log["log_u"] - theirs["log_u"]), 0.0, atol=1e-7)
        _, again = interop.sinkhorn(A, B, M, REG, log=True, warmstart=(theirs["log_u"], theirs["log_v"]))
        assert again["niter"] < 3 < log["niter"]
        np.testing.assert_allclose(interop.sinkhorn2(A, B, M, REG), np.sum(M * expected), rtol=1e-9)
        np.testing.assert_allclose(interop.sinkhorn([], [], M, REG), pot.sinkhorn([], [], M, REG), atol=1e-6)

    def test_many_histograms(self):
        b = RNG.dirichlet(np.ones(4), 3).T
        found, log = interop.sinkhorn(A, b, M, REG, log=True)
        np.testing.assert_allclose(found, pot.sinkhorn(A, b, M, REG), atol=1e-7)
        assert log["u"].shape == (5, 3)
        assert log["v"].shape == (4, 3)

    def test_weight_zero(self):
        a = np.append(A, 0.0)
        plan, log = interop.sinkhorn(a, B, np.vstack([M, M[:1]]), REG, log=True)
        np.testing.assert_allclose(plan[:5], interop.sinkhorn(A, B, M, REG), atol=1e-9)
        assert not plan[5].any()
        assert log["u"][5] == 0

    @pytest.mark.parametrize("reg_type", ["kl", "entropy"])
    @pytest.mark.parametrize(("reg_m", "c"), [(1.0, None), ((0.5, 2.0), C), ((INF, 1.0), None), (INF, None)])
    def test_sinkhorn_unbalanced(self, reg_type, reg_m, c):
        """Plan, scalings, linear and total cost, for masses 2 and 1 unless both are exact."""
        args = (A if reg_m == INF else 2 * A, B, M, REG, reg_m)
        options = {"reg_type": reg_type, "c": c, "log": True, "numItermax": 5000}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that c is overwritten
            expected, theirs = pot.unbalanced.sinkhorn_unbalanced(*args, stopThr=1e-13, **options)
        plan, log = interop.sinkhorn_unbalanced(*args, stopThr=1e-11, **options)
        np.testing.assert_allclose(plan, expected, atol=1e-10)
        np.testing.assert_allclose(log["cost"], theirs["cost"], rtol=1e-8)
        # 0 where both marginals are relaxed: the terms of mass that it leaves out are all that remains.
        np.testing.assert_allclose(log["total_cost"], theirs["total_cost"], rtol=1e-8, atol=1e-9)
        if reg_m != INF:
            np.testing.assert_allclose(log["logu"], theirs["logu"], atol=1e-8)
            np.testing.assert_allclose(log["logv"], theirs["logv"], atol=1e-8)

    def test_costs_of_sinkhorn_unbalanced(self):
        for kind in ("linear", "total"):
            args, options = (2 * A, B, M, REG, 1.0), {"returnCost": kind, "stopThr": 1e-11}
            expected = pot.unbalanced.sinkhorn_unbalanced2(*args, **options)
            np.testing.assert_allclose(interop.sinkhorn_unbalanced2(*args, **options), expected, 1e-7, 1e-9)

    @pytest.mark.parametrize("m", [0.3, None])
    def test_entropic_partial_wasserstein(self, m):
        args, options = (2 * A, B, M, REG, m), {"numItermax": 20000, "log": True}
        expected, theirs = pot.partial.entropic_partial_wasserstein(*args, stopThr=1e-13, **options)
        plan, log = interop.entropic_partial_wasserstein(*args, **options)
        np.testing.assert_allclose(plan, expected, atol=1e-9)
        np.testing.assert_allclose(log["partial_w_dist"], theirs["partial_w_dist"], rtol=1e-8)

    def test_jax_arrays_stay_and_differentiate(self):
        """d<M, P>/dM by finite differences."""
        with jax.enable_x64(True):
            a, b, cost = (jnp.asarray(z) for z in (A, B, M))
            fn = jax.jit(jax.value_and_grad(lambda cost: interop.sinkhorn2(a, b, cost, REG, stopThr=1e-13)))
            _, slope = fn(cost)
            there, back = (float(fn(cost + h * C)[0]) for h in (1e-5, -1e-5))
            assert isinstance(slope, jax.Array)
            np.testing.assert_allclose(np.vdot(slope, C), (there - back) / 2e-5, rtol=1e-6)

    def test_warns_and_raises(self):
        with pytest.warns(UserWarning, match="ended MAX_STEPS"):
            interop.sinkhorn(A, B, M, 1e-3, numItermax=2)
        with pytest.raises(ValueError, match="method must be one of"):
            interop.sinkhorn(A, B, M, REG, method="greedy")
        with pytest.raises(ValueError, match="reg_type must be one of"):
            interop.sinkhorn_unbalanced(A, B, M, REG, 1.0, reg_type="l2")
        with pytest.raises(ValueError, match="M must have rank 2"):
            interop.sinkhorn(A, B, M[0], REG)


class TestOtt:
    def test_geometries(self):
        """The same cost matrices, there and back."""
        x, y, axis = (jnp.asarray(z, jnp.float32) for z in (X, Y, np.linspace(0, 1, 3)))
        matrix = jnp.asarray(M, jnp.float32)
        theirs = {
            "points": pointcloud.PointCloud(x, y),
            "cosine": pointcloud.PointCloud(x, y, cost_fn=costs.Cosine()),
            "scaled": pointcloud.PointCloud(x, y, cost_fn=costs.PNormP(3.0), scale_cost=2.0),
            "matrix": geometry.Geometry(cost_matrix=matrix),
        }
        for name, other in theirs.items():
            ours = interop.from_ott(other)
            np.testing.assert_allclose(
                ours.cost_matrix(), other.cost_matrix, rtol=1e-5, atol=1e-6, err_msg=name
            )
            back = interop.to_ott(ours, epsilon=0.5)
            assert float(back.epsilon) == 0.5
            np.testing.assert_allclose(
                back.cost_matrix, other.cost_matrix, rtol=1e-5, atol=1e-6, err_msg=name
            )
        assert isinstance(interop.to_ott(ot.PointCloud(x, y)), pointcloud.PointCloud)
        ours = interop.from_ott(grid.Grid(x=[axis, axis], cost_fns=[costs.SqEuclidean(), costs.PNormP(1.0)]))
        gap = np.abs(axis[:, None] - axis)
        expected = gap[:, None, :, None] ** 2 + gap[None, :, None, :]
        np.testing.assert_allclose(ours.cost_matrix(), expected.reshape(9, 9), rtol=1e-5, atol=1e-6)
        assert isinstance(interop.to_ott(ot.Grid((axis, axis))), grid.Grid)
        assert not isinstance(interop.to_ott(ours), grid.Grid)

    @pytest.mark.parametrize(("tau_a", "tau_b"), [(1.0, 1.0), (0.8, 1.0), (0.8, 0.6)])
    def test_problems(self, tau_a, tau_b):
        """Plans; for exact marginals both regularized costs and the potentials."""
        with jax.enable_x64(True):
            cloud = pointcloud.PointCloud(jnp.asarray(X), jnp.asarray(Y), epsilon=0.5)
            problem = linear_problem.LinearProblem(cloud, jnp.asarray(A), jnp.asarray(B), tau_a, tau_b)
            theirs = sinkhorn.Sinkhorn(threshold=1e-10, max_iterations=5000)(problem)
            out = ot.solve(**interop.from_ott(problem), solver=ot.Sinkhorn(tol=1e-11))
            np.testing.assert_allclose(out.plan(), theirs.matrix, atol=1e-9)
            if tau_a == 1.0:
                np.testing.assert_allclose(out.linear_cost, theirs.primal_cost, rtol=1e-8)
                entropies = np.sum(A * np.log(A)) + np.sum(B * np.log(B))
                np.testing.assert_allclose(out.cost, theirs.reg_ot_cost, rtol=1e-8)
                np.testing.assert_allclose(theirs.ent_reg_cost, out.cost + 0.5 * entropies, rtol=1e-8)
                np.testing.assert_allclose(np.ptp(theirs.f - out.f - 0.5 * np.log(A)), 0.0, atol=1e-8)


def cells(section, column):
    """The code of one column of a section's table."""
    table = GUIDE.split(f"## {section}")[1].split("\n## ")[0]
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| ")][1:]
    return [code for row in rows for code in re.findall(r"`([^`]+)`", row[column])]


@pytest.fixture(scope="module")
def scope():
    (block,) = re.findall(r"```python\n(.*?)```", GUIDE, flags=re.DOTALL)
    names: dict = {}
    exec(compile(block, "coming-from.md", "exec"), names)
    cloud = pointcloud.PointCloud(names["x"], names["y"], epsilon=names["eps"])
    problem = linear_problem.LinearProblem(cloud, names["a"], names["b"])
    return names | {"geometry": cloud, "problem": problem}


@pytest.mark.parametrize("section", ["If you know OTT", "If you know POT", "If you know GeomLoss"])
def test_the_guides_lines_run(section, scope):
    """Traced, which runs all of their Python and compiles nothing."""
    lines = cells(section, 2)
    assert len(lines) >= 5
    for line in lines:
        assert jax.eval_shape(lambda line=line: eval(line, scope)) is not None


def test_the_guides_other_code_runs(scope):
    calls = [code for code in cells("Without rewriting anything", 1) if "(" in code]
    calls += [
        code
        for code in re.findall(r"`([^`]+)`", GUIDE.split("## What the numbers mean")[1])
        if "out.cost +" in code
    ]
    assert len(calls) == 5
    for line in calls:
        eval(line, scope)


def test_the_guides_lines_for_pot_run(scope):
    names = {
        **scope,
        "pot": pot,
        "M": np.asarray(scope["cost"], np.float64),
        "reg": 0.5,
        "gamma": 1.0,
        "m": 0.8,
    }
    names |= {name: np.asarray(scope[name], np.float64) for name in ("a", "b", "x", "y")}
    for line in cells("If you know POT", 1):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # POT's own, and of what it calls
            on_line = {"x": names["x"][:, 0], "y": names["y"][:, 0]} if "1d" in line else {}
            eval(line, names | on_line)
