"""The contract every divergence keeps, as checks that a test class parametrizes over.

A member of the family is described by a `Member`; `contract(members)` names one test per member and
check, so that a whole family goes through the suite in one test method:

    class TestContract(chex.TestCase):
        @chex.variants(with_jit=True, without_jit=True)
        @parameterized.named_parameters(contract(MEMBERS))
        def test_contract(self, check, member):
            check(member, self.variant)

A member whose call takes a numeric option names a value of it in `option`; it is then also
differentiated and vectorized over that option. `bad` holds calls that must raise ValueError.
"""

import dataclasses
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

        def along(t: Array) -> Array:
            return total(*jax.tree.map(lambda x, d: x + t * d, arguments, direction))

        step = 1e-5
        ahead, behind = jax.jit(jax.vmap(along))(step * jnp.array([1.0, -1.0]))
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
    del variant
    chex.clear_trace_counter()
    fn = jax.jit(chex.assert_max_traces(member.call, n=1))
    for seed in (5, 6):
        p, q, *option = _arguments(member, seed, jnp.float32)
        fn(p, q, *(0.9 ** (seed - 5) * x for x in option))


CHECKS: tuple[Check, ...] = (check_values, check_gradients, check_rows, check_dtypes, check_traces)


def contract(members: Iterable[Member]) -> list[tuple[str, Check, Member]]:
    """The named parameters of a test method: one case per member and check."""
    return [
        (f"_{member.name}_{check.__name__.removeprefix('check_')}", check, member)
        for member in members
        for check in CHECKS
    ]
