"""The contract every norm keeps: axioms, duality, oracle, projection, derivatives, dtypes, axes.

A test class names the norm and inherits the checks:

    from jaxdiv.testing import convex as contract

    class L1(contract.NormContract):
        norm = convex.l1

Import the module, not its class: test runners collect every class they see in a test file.
"""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxdiv.convex import Norm

DRAWS, SHAPE = 24, (3, 4)
ZERO, EYE = np.zeros(SHAPE), np.eye(*SHAPE)
CORNERS: tuple[tuple[np.ndarray, float], ...] = (
    (ZERO, 0.0),
    (ZERO, 0.5),
    (ZERO, np.inf),
    (EYE, 0.0),
    (EYE, np.inf),
)


def _outputs(norm: Norm, x: Any, radius: Any) -> tuple[Any, Any, Any, Any]:
    return norm.value(x), norm.dual(x), norm.lmo(x, radius), norm.project(x, radius)


_compiled = jax.jit(_outputs)


def _measure(norm: Norm, x: Any, radius: Any, weights: Any) -> dict[str, Any]:
    """All functions and their derivatives at each x, with the radius of the oracle at most 2."""

    def functions(x: Any, radius: Any) -> Any:
        lmo = norm.lmo(x, jnp.minimum(radius, 2.0))
        return norm.value(x), norm.dual(x), jnp.stack([lmo, norm.project(x, radius)])

    def at(x: Any, radius: Any) -> dict[str, Any]:
        (value, dual, (lmo, point)), pull = jax.vjp(functions, x, radius)
        rows = jnp.eye(3, dtype=weights.dtype)
        by_x, by_radius = jax.vmap(lambda e: pull((e[0], e[1], e[2] * weights)))(rows)
        total = value + dual + jnp.sum(weights * jnp.stack([lmo, point]))
        names = ("value", "dual", "lmo", "point", "total", "by_x", "by_radius")
        return dict(zip(names, (value, dual, lmo, point, total, by_x, by_radius), strict=True))

    return jax.vmap(at)(x, radius)


_measured = jax.jit(_measure)


def _single(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)


def _inner(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sum(x * y, axis=(-2, -1))


class NormContract(chex.TestCase):
    """What every norm of matrices or vectors promises, on arrays of 3 × 4 numbers.

    Attributes:
        norm: The norm under test, of whole arrays.
        x: Random arrays in float64, of which the first third lies inside the ball and the last far outside.
        radius: One per array.
        at_x: The functions and derivatives at `x`, and at `CORNERS` after it.
    """

    norm: ClassVar[Norm]
    x: ClassVar[np.ndarray]
    radius: ClassVar[np.ndarray]
    at_x: ClassVar[dict[str, np.ndarray]]

    @classmethod
    def setUpClass(cls) -> None:
        """Measures once for all tests of the class."""
        super().setUpClass()
        rng = np.random.default_rng(0)
        x = rng.normal(size=(DRAWS, *SHAPE))
        cls.radius = rng.uniform(0.1, 2.0, DRAWS)
        scale = cls.radius / cls.measure(x)["value"][:DRAWS]
        third = DRAWS // 3
        scale = np.concatenate(
            [0.99 * scale[:third], 1.5 * scale[third : 2 * third], 20 * scale[2 * third :]]
        )
        cls.x = x * scale[:, None, None]
        cls.at_x = cls.measure(cls.x)

    @classmethod
    def measure(cls, x: np.ndarray, radius: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """The functions and derivatives in float64 at `x` and `CORNERS`, compiled once."""
        arrays, radii = [x for x, _ in CORNERS], [r for _, r in CORNERS]
        weights = np.random.default_rng(1).normal(size=(2, *SHAPE))
        radius = cls.radius if radius is None else radius
        with jax.enable_x64(True):
            out = _measured(cls.norm, np.stack([*x, *arrays]), np.append(radius, radii), weights)
            return {name: np.asarray(value) for name, value in out.items()}

    def assert_raises_naming(self, name: str, call: Callable[[], Any]) -> None:
        """Checks that `call` raises a ValueError whose message starts with `name`."""
        with self.assertRaisesRegex(ValueError, rf"^{name}\b"):  # noqa: PT027
            call()

    def test_axioms(self) -> None:
        """Positive, homogeneous, subadditive."""
        y = np.roll(self.x, 1, axis=0)
        value = self.at_x["value"][:DRAWS]
        total, scaled = (self.measure(z)["value"][:DRAWS] for z in (self.x + y, -2.5 * self.x))
        assert np.all(value > 0)
        np.testing.assert_allclose(scaled, 2.5 * value, rtol=1e-12)
        assert np.all(total <= value + np.roll(value, 1) + 1e-12)

    def test_duality(self) -> None:
        """Hölder's inequality, and the gradient of the norm as the dual vector that attains the bidual."""
        m = self.at_x
        value, dual, gradient = m["value"][:DRAWS], m["dual"][:DRAWS], m["by_x"][:DRAWS, 0]
        for shift in range(4):
            inner = _inner(self.x, np.roll(self.x, shift, axis=0))
            assert np.all(np.abs(inner) <= value * np.roll(dual, shift) * (1 + 1e-12))
        np.testing.assert_allclose(_inner(self.x, gradient), value, rtol=1e-12)
        np.testing.assert_allclose(self.measure(gradient)["dual"][:DRAWS], 1.0, rtol=1e-12)

    def test_oracle_attains_the_dual_norm(self) -> None:
        """``⟨g, lmo(g, r)⟩ = -r ‖g‖_*`` on the sphere of radius r, and ``lmo = -r ∇‖·‖_*``."""
        m = self.at_x
        lmo, dual, gradient = m["lmo"][:DRAWS], m["dual"][:DRAWS], m["by_x"][:DRAWS, 1]
        np.testing.assert_allclose(_inner(self.x, lmo), -self.radius * dual, rtol=1e-12)
        np.testing.assert_allclose(self.measure(lmo)["value"][:DRAWS], self.radius, rtol=1e-12)
        np.testing.assert_allclose(lmo, -self.radius[:, None, None] * gradient, atol=1e-12)

    def test_projection_is_the_nearest_point(self) -> None:
        """Feasible, and ``⟨x - Px, z - Px⟩ ≤ 0`` for drawn z of the ball and for the worst one."""
        point = self.at_x["point"][:DRAWS]
        residual, value = self.x - point, self.measure(point)["value"][:DRAWS]
        assert np.all(value <= self.radius * (1 + 1e-12))
        for shift in range(1, 4):
            z = np.roll(point / value[:, None, None], shift, axis=0) * self.radius[:, None, None]
            assert np.all(_inner(residual, z - point) <= 1e-11)
        support = self.radius * self.measure(residual)["dual"][:DRAWS]
        np.testing.assert_allclose(_inner(residual, point), support, atol=1e-11)

    def test_projection_is_idempotent_and_leaves_the_ball_alone(self) -> None:
        """To rounding on the sphere, and exactly inside."""
        point, third = self.at_x["point"][:DRAWS], DRAWS // 3
        np.testing.assert_allclose(self.measure(point)["point"][:DRAWS], point, atol=1e-12)
        np.testing.assert_array_equal(point[:third], self.x[:third])
        assert np.all(np.any(point[third:] != self.x[third:], axis=(-2, -1)))

    def test_derivatives_equal_finite_differences(self) -> None:
        """Of all four functions together, by the array and by the radius."""
        direction = np.random.default_rng(2).normal(size=self.x.shape)
        by_x, by_radius = (self.at_x[name][:DRAWS].sum(1) for name in ("by_x", "by_radius"))
        slope = _inner(by_x, direction) + 0.7 * by_radius
        ahead, behind = (
            self.measure(self.x + t * direction, self.radius + 0.7 * t)["total"][:DRAWS]
            for t in (1e-6, -1e-6)
        )
        np.testing.assert_allclose(slope, (ahead - behind) / 2e-6, rtol=1e-6, atol=1e-7)

    def test_zeros_and_bounds_of_the_radius(self) -> None:
        """At 0 and at radius 0 or infinity: finite values and derivatives, 0 for the norms at 0."""
        corners = {name: value[DRAWS:] for name, value in self.at_x.items()}
        chex.assert_tree_all_finite(corners)
        for i, (x, radius) in enumerate(CORNERS):
            np.testing.assert_allclose(corners["point"][i], ZERO if radius == 0 else x, atol=1e-12)
            if x is ZERO:
                assert corners["value"][i] == corners["dual"][i] == 0
                np.testing.assert_array_equal(corners["by_x"][i, :2], [ZERO, ZERO])
                np.testing.assert_array_equal(corners["lmo"][i], ZERO)

    def test_second_call_does_not_retrace(self) -> None:
        """Equal shapes trace once, whatever the values and the radius."""
        traced = jax.jit(chex.assert_max_traces(_outputs, n=1))
        for seed, radius in ((0, 0.5), (1, 0.7)):
            traced.eval_shape(self.norm, _single(seed), radius)

    @chex.variants(with_jit=True, without_jit=True)
    def test_with_and_without_jit(self) -> None:
        """Shapes, dtypes and values are those of the compiled function."""
        x = _single(0)
        value, dual, lmo, point = outputs = self.variant(_outputs)(self.norm, x, np.float32(0.7))
        chex.assert_shape((value, dual), ())
        chex.assert_shape((lmo, point), SHAPE)
        chex.assert_type(outputs, jnp.float32)
        chex.assert_trees_all_close(outputs, _compiled(self.norm, x, np.float32(0.7)), rtol=1e-5, atol=1e-6)

    def test_other_axes_are_a_batch(self) -> None:
        """With a radius per element."""
        x, radius = np.stack([_single(2), _single(3)]), np.array([0.3, 0.9], np.float32)
        each = [_compiled(self.norm, *pair) for pair in zip(x, radius, strict=True)]
        expected = [np.stack(outputs) for outputs in zip(*each, strict=True)]
        value, dual, lmo, point = _compiled(self.norm.over((0, 1)), np.moveaxis(x, 0, 2), radius)
        moved = [value, dual, jnp.moveaxis(lmo, 2, 0), jnp.moveaxis(point, 2, 0)]
        chex.assert_trees_all_close(moved, expected, rtol=1e-5, atol=1e-6)

    def test_dtypes(self) -> None:
        """Half precision is computed in float32 and arrays return in it; NaN stays NaN."""
        x, radius = jnp.asarray(_single(4), jnp.bfloat16), np.float32(1.0)
        half = _compiled(self.norm, x, radius)
        single = _compiled(self.norm, np.asarray(x, np.float32), radius)
        assert [a.dtype for a in half] == [jnp.float32, jnp.float32, jnp.bfloat16, jnp.bfloat16]
        chex.assert_trees_all_close(half[:2], single[:2], rtol=1e-6)
        for ours, exact in zip(half[2:], single[2:], strict=True):
            np.testing.assert_allclose(np.asarray(ours, np.float32), exact, rtol=2**-8, atol=1e-6)
        assert {a.dtype for a in self.at_x.values()} == {np.dtype("float64")}
        with jax.enable_x64(True):
            arrays = jnp.stack([jnp.asarray(x, jnp.float32)] * 2)
            abstract = jax.eval_shape(_measure, self.norm, arrays, arrays[0, :2, 0], arrays)
            assert {a.dtype for a in abstract.values()} == {jnp.dtype("float32")}
        for output in _compiled(self.norm, np.full(SHAPE, np.nan, np.float32), radius):
            assert np.all(np.isnan(output))

    def test_the_norm_is_a_static_argument(self) -> None:
        """Hashable, equal to its like, and a pytree without leaves."""
        assert self.norm.over((0, 1)) == self.norm.over([0, 1]) != self.norm.over((1, 2))
        assert len({self.norm.over((0, 1)), self.norm.over([0, 1])}) == 1
        assert jax.tree.leaves(self.norm) == []

    def test_bad_input(self) -> None:
        """Dtype, shape, axis and radius raise."""
        x = jnp.asarray(_single(0))
        for name, method in zip("xygx", ("value", "dual", "lmo", "project"), strict=True):
            for bad in (np.ones(SHAPE, np.int32), np.ones((0, 4), np.float32)):
                self.assert_raises_naming(name, functools.partial(getattr(self.norm, method), bad))
        self.assert_raises_naming("axis", lambda: self.norm.over((0, 2)).value(x))
        self.assert_raises_naming("axis", lambda: self.norm.over((0, 0)).lmo(x))
        for radius in (-1.0, np.nan, jnp.ones(3)):
            self.assert_raises_naming("radius", functools.partial(self.norm.lmo, x, radius))
            self.assert_raises_naming("radius", functools.partial(self.norm.project, x, radius))
        self.assert_raises_naming("radius", lambda: self.norm.lmo(x, np.inf))
