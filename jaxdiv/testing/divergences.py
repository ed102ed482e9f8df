"""The contract every divergence keeps, as checks that a test class parametrizes over.

A member of the family is described by a `Member`; `contract(members)` names one test per member and
check, so that a whole family goes through the suite in two test methods:

    class TestContract(chex.TestCase):
        @chex.variants(with_jit=True, without_jit=True)
        @parameterized.named_parameters(contract(MEMBERS, CALLS))
        def test_calls(self, check, member):
            check(member, self.variant)

        @chex.variants(with_jit=True)
        @parameterized.named_parameters(contract(MEMBERS, TRANSFORMS))
        def test_transforms(self, check, member):
            check(member, self.variant)

A member whose call takes a numeric option names a value of it in `option`; it is then also
differentiated and vectorized over that option. `bad` holds calls that must raise ValueError.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

Variant = Callable[[Callable[..., Any]], Callable[..., Any]]
Check = Callable[["Member", Variant], None]


def simplex_logits(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits of two distributions over five classes, three rows: float64 [3, 5] each."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(3, 5)), rng.normal(size=(3, 5))


@dataclasses.dataclass(frozen=True)
class Member:
    """One divergence and what is promised of it.

    Attributes:
        name: Unique among the members; letters, digits and underscores.
        call: ``call(p, q)``, or ``call(p, q, option)`` where `option` is given.
        inputs: ``inputs(seed) -> (p, q)``, two pytrees of float64 numpy arrays.
        batch: Leading axes of the result. If not (), row i depends on row i of `p` and `q` alone.
        option: A value inside the range of the numeric option, or None.
        nonnegative: False for unbiased estimators, which may fall below zero.
        zero_at_equality: Whether ``call(p, p)`` is zero.
        zero_atol: Absolute rounding of that zero in float32.
        symmetric: Whether the arguments may be swapped.
        half: Whether bfloat16 input is offered.
        unbounded: For functions of the logits of two distributions: whether a class that only P lacks,
            and one that only Q lacks, costs +inf. None for others, which do not go through `SIMPLEX`.
        convex: Whether it is jointly convex in two distributions.
        bad: Calls that must raise ValueError at trace time.
    """

    name: str
    call: Callable[..., Float[Array, "*batch"]]
    inputs: Callable[[int], tuple[PyTree, PyTree]] = simplex_logits
    batch: tuple[int, ...] = (3,)
    option: float | None = None
    nonnegative: bool = True
    zero_at_equality: bool = True
    zero_atol: float = 1e-6
    symmetric: bool = False
    half: bool = True
    unbounded: tuple[bool, bool] | None = None
    convex: bool = True
    bad: tuple[Callable[[], Any], ...] = ()


def _arguments(member: Member, seed: int, dtype: Any) -> tuple[Any, ...]:
    p, q = jax.tree.map(lambda x: jnp.asarray(x, dtype), member.inputs(seed))
    option_dtype = jnp.promote_types(dtype, jnp.float32)
    return (p, q) if member.option is None else (p, q, jnp.asarray(member.option, option_dtype))


def check_values(member: Member, variant: Variant) -> None:
    """Shape, dtype, finiteness, non-negativity, zero at equality, symmetry."""
    fn = variant(member.call)
    p, q, *option = _arguments(member, 0, jnp.float32)
    value, swapped, equal = fn(p, q, *option), fn(q, p, *option), fn(p, p, *option)
    chex.assert_shape(value, member.batch)
    chex.assert_type(value, jnp.float32)
    chex.assert_tree_all_finite((value, swapped, equal))
    if member.nonnegative:
        assert np.all(value > 0), f"{member.name} is not positive"
        assert np.all(equal >= 0), f"{member.name} fell below zero at equality"
    if member.zero_at_equality:
        np.testing.assert_allclose(equal, np.zeros(member.batch), atol=member.zero_atol)
    if member.symmetric:
        np.testing.assert_allclose(value, swapped, rtol=1e-5)


def check_gradients(member: Member, variant: Variant) -> None:
    """Directional derivatives, option included, against central differences in float64."""
    with jax.enable_x64(True):
        arguments = _arguments(member, 1, jnp.float64)
        rng = np.random.default_rng(2)
        direction = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), arguments)

        def total(*args: Any) -> Array:
            return jnp.sum(member.call(*args))

        gradients = variant(jax.grad(total, tuple(range(len(arguments)))))(*arguments)
        chex.assert_trees_all_equal_dtypes(gradients, arguments)
        slope = sum(map(jnp.vdot, jax.tree.leaves(gradients), jax.tree.leaves(direction)))

        step = 1e-5
        value = variant(total)
        ahead, behind = (
            value(*jax.tree.map(lambda x, d, s=s: x + s * d, arguments, direction)) for s in (step, -step)
        )
        np.testing.assert_allclose(slope, (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-8)


def check_rows(member: Member, variant: Variant) -> None:
    """Mapping over the rows, and over the option, agrees with one call."""
    arguments = _arguments(member, 3, jnp.float32)
    whole = member.call(*arguments)
    if member.batch:
        axes = (0, 0, None)[: len(arguments)]
        np.testing.assert_allclose(
            variant(jax.vmap(member.call, axes))(*arguments), whole, rtol=1e-5, atol=1e-7
        )
    if member.option is not None:
        p, q, option = arguments
        grid = option * jnp.array([1.0, 0.9], jnp.float32)
        values = variant(jax.vmap(member.call, (None, None, 0)))(p, q, grid)
        np.testing.assert_allclose(values[0], whole, rtol=1e-5, atol=1e-7)
        assert not np.allclose(values[0], values[1], rtol=1e-6), f"{member.name} ignores its option"


def check_dtypes(member: Member, variant: Variant) -> None:
    """bfloat16 is computed in float32; integers raise."""
    fn = variant(member.call)
    if member.half:
        half = _arguments(member, 4, jnp.bfloat16)
        value = fn(*half)
        chex.assert_type(value, jnp.float32)
        raised = jax.tree.map(lambda x: x.astype(jnp.float32), half)
        np.testing.assert_allclose(value, fn(*raised), rtol=1e-5, atol=1e-6)
    p, q, *option = _arguments(member, 4, jnp.float32)
    integers = jax.tree.map(lambda x: x.astype(jnp.int32), (p, q))
    for call in (lambda: fn(*integers, *option), *member.bad):
        try:
            call()
        except ValueError:
            continue
        raise AssertionError(f"{member.name}: bad input did not raise ValueError")


def check_traces(member: Member, variant: Variant) -> None:
    """Equal shapes trace once, whatever the values and the option."""
    chex.clear_trace_counter()
    fn = variant(chex.assert_max_traces(member.call, n=1))
    for seed in (5, 6):
        p, q, *option = _arguments(member, seed, jnp.float32)
        fn(p, q, *(0.9 ** (seed - 5) * x for x in option))


def simplex_faces() -> tuple[np.ndarray, np.ndarray]:
    """Logits of two distributions on every pair of faces of the three-class simplex: [49, 3] each."""
    support = np.array(list(itertools.product([False, True], repeat=3)))[1:]
    rows, columns = (i.ravel() for i in np.mgrid[:7, :7])
    p = np.where(support[rows], [0.3, -0.5, 0.9], -np.inf)
    q = np.where(support[columns], [-0.4, 0.6, 0.2], -np.inf)
    return p, q


def extreme_logits() -> tuple[np.ndarray, np.ndarray]:
    """Logits that move apart up to 1e4, in three ways: [3, 12, 3] each."""
    away = np.geomspace(1e-1, 1e4, 12)[:, None] * np.array([1.0, 0.0, -1.0])
    return np.stack([away, 0.0 * away, away]), np.stack([0.0 * away, away, -away])


def check_simplex(member: Member, variant: Variant) -> None:
    """Vertices, faces and interior of the simplex, from logits, in float32.

    A probability 0 (logit -inf) gives +inf exactly where it must, a gradient 0 at that logit and never
    NaN; finite logits up to 1e4 give finite values and gradients, and values that do not fall as the
    logits move apart. A channel never increases the divergence, and it is convex along mixtures.
    """
    if member.unbounded is None:
        raise ValueError(f"{member.name} has no `unbounded`, which check_simplex needs.")

    @variant
    def fn(p: Array, q: Array, *option: Array) -> tuple[Array, tuple[Array, Array]]:
        value, pull = jax.vjp(lambda p, q: member.call(p, q, *option), p, q)
        return value, pull(jnp.ones_like(value))

    option = () if member.option is None else (jnp.float32(member.option),)

    def evaluate(p: np.ndarray, q: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
        # One shape, one compilation.
        padded = (np.resize(x, (49, 3)) for x in (p, q))
        out = fn(*(jnp.asarray(x, jnp.float32) for x in padded), *option)
        return jax.tree.map(lambda x: np.asarray(x)[: len(p)], out)

    p, q = simplex_faces()
    value, gradients = evaluate(p, q)
    no_p, no_q = p == -np.inf, q == -np.inf
    price_p, price_q = member.unbounded
    infinite = (price_p & (no_p & ~no_q).any(1)) | (price_q & (no_q & ~no_p).any(1))
    np.testing.assert_array_equal(value == np.inf, infinite)
    assert np.all(value >= 0), f"{member.name} is negative or NaN on the boundary"
    for gradient, absent in zip(gradients, (no_p, no_q), strict=True):
        assert not np.isnan(gradient).any(), f"{member.name} has a NaN gradient on the boundary"
        np.testing.assert_array_equal(gradient[absent], 0.0)
    same, gradients = evaluate(p, p)
    np.testing.assert_allclose(same, 0.0, atol=member.zero_atol)
    for gradient in gradients:
        np.testing.assert_allclose(gradient, 0.0, atol=1e-6)

    p, q = extreme_logits()
    value, gradients = evaluate(p.reshape(-1, 3), q.reshape(-1, 3))
    chex.assert_tree_all_finite((value, gradients))
    value = value.reshape(3, -1)
    assert np.all(np.diff(value) >= -1e-6 * value[:, 1:]), f"{member.name} falls as logits move apart"

    rng = np.random.default_rng(7)
    p, q, other_p, other_q = rng.dirichlet(np.full(3, 0.5), (4, 49))
    channel = rng.dirichlet(np.full(3, 0.5), (49, 3))
    value, _ = evaluate(np.log(p), np.log(q))
    processed, _ = evaluate(*(np.log(np.einsum("ni,nij->nj", x, channel)) for x in (p, q)))
    assert np.all(processed <= value * (1 + 1e-4) + 1e-6), f"{member.name} is increased by a channel"
    assert np.any(processed < 0.5 * value)
    if member.convex:
        other, _ = evaluate(np.log(other_p), np.log(other_q))
        mixed, _ = evaluate(np.log(0.7 * p + 0.3 * other_p), np.log(0.7 * q + 0.3 * other_q))
        bound = 0.7 * value + 0.3 * other
        assert np.all(mixed <= bound * (1 + 1e-4) + 1e-6), f"{member.name} is not convex"


# Without jit every single operation compiles anew for each dtype and axis: only `CALLS` run so.
CALLS: tuple[Check, ...] = (check_values,)
TRANSFORMS: tuple[Check, ...] = (check_gradients, check_rows, check_dtypes, check_traces)
CHECKS: tuple[Check, ...] = (*CALLS, *TRANSFORMS)
# For members with `unbounded`: functions of the logits of two distributions.
SIMPLEX: tuple[Check, ...] = (check_simplex,)


def contract(
    members: Iterable[Member], checks: tuple[Check, ...] = CHECKS
) -> list[tuple[str, Check, Member]]:
    """The named parameters of a test method: one case per member and check."""
    return [
        (f"_{member.name}_{check.__name__.removeprefix('check_')}", check, member)
        for member in members
        for check in checks
    ]
