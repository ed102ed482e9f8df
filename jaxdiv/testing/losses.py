"""Contract suites that every loss goes through.

A per-example loss returns one value per row, rows independent; a batch loss returns one scalar. A test
class names the loss and the kinds of its arguments, and inherits the checks that apply:

    from jaxdiv.testing import losses as contract

    class KDContract(contract.PerExample, contract.ClassMask, contract.NumericOption):
        loss = staticmethod(losses.kd)
        targets = ("logits",)
        option = ("temperature", 2.0)

Kinds of arguments are ``"logits"`` and ``"values"`` [B, C], ``"distributions"`` [B, C] and ``"labels"``
[B]. Import the module, not its classes: test runners collect every class they see in a test file.
"""

import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

BATCH, CLASSES = 4, 3
FLOATING = ("logits", "values", "distributions")


def draw(kind: str, batch: int, classes: int, rng: np.random.Generator, scale: float = 2.0) -> Any:
    """Draws one argument of a loss as a numpy array, float64 or int32."""
    if kind == "labels":
        return rng.integers(0, classes, batch).astype(np.int32)
    if kind == "distributions":
        return rng.dirichlet(np.ones(classes), batch)
    if kind in FLOATING:
        return scale * rng.normal(size=(batch, classes))
    raise ValueError(f"kind must be 'labels' or one of {FLOATING}; got {kind!r}.")


def cast(arguments: tuple[Any, ...], dtype: Any) -> tuple[np.ndarray, ...]:
    """Casts the floating arguments to a dtype and leaves labels as they are."""
    return tuple(x.astype(dtype) if x.dtype == np.float64 else x for x in arguments)


class Contract(chex.TestCase):
    """What the suites share: the loss under test and its arguments.

    Attributes:
        loss: The loss, as a staticmethod.
        outputs: Kind of the first argument.
        targets: Kinds of the further positional arguments.
        differentiable: Whether the first derivative is continuous in the outputs.
        compiled: ``(outputs, *targets, **options) -> (loss, gradient of its sum)`` under jit, made
            by the suite and shared by its tests, since compilations take most of their time.
    """

    loss: ClassVar[Callable[..., Any]]
    outputs: ClassVar[str] = "logits"
    targets: ClassVar[tuple[str, ...]] = ("labels",)
    differentiable: ClassVar[bool] = True
    compiled: ClassVar[Any]

    @classmethod
    def setUpClass(cls) -> None:
        """Compiles the loss once for all tests of the class."""
        super().setUpClass()

        def loss_and_gradient(outputs: Any, *targets: Any, **options: Any) -> tuple[Any, Any]:
            loss, pull = jax.vjp(lambda x: cls.loss(x, *targets, **options), outputs)
            return loss, pull(jnp.ones_like(loss))[0]

        cls.compiled = staticmethod(jax.jit(loss_and_gradient))

    def setUp(self) -> None:
        """Starts every test with a fresh count of traces."""
        super().setUp()
        chex.clear_trace_counter()

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of all positional arguments."""
        return (self.outputs, *self.targets)

    @property
    def names(self) -> list[str]:
        """Names of the positional arguments."""
        return list(inspect.signature(self.loss).parameters)[: len(self.kinds)]

    def draw(self, batch: int = BATCH, classes: int = CLASSES, seed: int = 0) -> tuple[Any, ...]:
        """Draws float64 arguments."""
        rng = np.random.default_rng(seed)
        return tuple(draw(kind, batch, classes, rng) for kind in self.kinds)

    def single(self, seed: int = 0) -> tuple[np.ndarray, ...]:
        """Draws float32 arguments."""
        return cast(self.draw(seed=seed), jnp.float32)

    def assert_raises_naming(self, name: str, *arguments: Any, **options: Any) -> None:
        """Checks that a ValueError is raised at trace time whose message holds `name`."""
        with self.assertRaisesRegex(ValueError, rf"\b{name}\b"):  # noqa: PT027
            jax.eval_shape(lambda *xs: self.loss(*xs, **options), *arguments)

    def assert_gradient(self, function: Callable[[Any], Any], x: Any) -> None:
        """Checks forward and reverse derivatives against central differences in float64."""
        step = 1e-5

        @jax.jit
        def derivatives(direction: Any) -> tuple[Any, Any, Any]:
            value, forward = jax.jvp(function, (x,), (direction,))
            (reverse,) = jax.vjp(function, x)[1](jnp.cos(jnp.arange(value.size)).reshape(value.shape))
            difference = function(x + step * direction) - function(x - step * direction)
            return difference / (2 * step), forward, jnp.vdot(reverse, direction)

        for seed in range(2):
            direction = np.random.default_rng(seed).normal(size=x.shape)
            numeric, forward, reverse = derivatives(direction)
            np.testing.assert_allclose(forward, numeric, rtol=1e-6, atol=1e-7)
            total = np.vdot(np.cos(np.arange(forward.size)), forward)
            np.testing.assert_allclose(reverse, total, rtol=1e-9, atol=1e-10)

    def test_gradient_equals_finite_differences(self) -> None:
        """The derivative with respect to the outputs, in float64."""
        if not self.differentiable:
            self.skipTest("has kinks")
        with jax.enable_x64(True):
            outputs, *targets = cast(self.draw(), jnp.float64)
            self.assert_gradient(lambda x: self.loss(x, *targets), outputs)

    def test_second_call_does_not_retrace(self) -> None:
        """Equal shapes compile once."""
        self.compiled(*self.single())
        programs = self.compiled._cache_size()
        self.compiled(*self.single(seed=1))
        assert self.compiled._cache_size() == programs

    def test_half_precision_is_computed_in_float32(self) -> None:
        """Bfloat16 arguments give what their float32 values give, in float32."""
        half = cast(self.draw(), jnp.bfloat16)
        raised = tuple(x.astype(np.float32) if x.dtype == jnp.bfloat16 else x for x in half)
        (result, gradient), (expected, _) = self.compiled(*half), self.compiled(*raised)
        assert result.dtype == jnp.float32
        assert gradient.dtype == jnp.bfloat16
        np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-7)

    def test_float64_stays_float64(self) -> None:
        """Float64 arguments give a float64 loss and gradient close to the float32 ones."""
        expected = self.compiled(*self.single())
        with jax.enable_x64(True):
            result = self.compiled(*cast(self.draw(), jnp.float64))
            assert result[0].dtype == result[1].dtype == jnp.float64
        for exact, rounded in zip(result, expected, strict=True):
            np.testing.assert_allclose(exact, rounded, rtol=1e-4, atol=1e-5)

    def test_integer_outputs_raise(self) -> None:
        """Integers where floats are meant are an error, not a cast."""
        outputs, *targets = self.single()
        self.assert_raises_naming(self.names[0], outputs.astype(np.int32), *targets)
        for position, kind in enumerate(self.kinds):
            arguments = list(self.single())
            if kind == "logits":
                arguments[position] = arguments[position].astype(np.int32)
                self.assert_raises_naming(self.names[position], *arguments)

    def test_mismatched_shapes_raise(self) -> None:
        """A short or a misranked argument is an error naming it."""
        for position in range(len(self.kinds)):
            right = self.single()[position]
            for wrong in (right[:-1], right[0], right[..., None]):
                arguments = list(self.single())
                arguments[position] = wrong
                self.assert_raises_naming(self.names[position], *arguments)

    def test_empty_batch_raises(self) -> None:
        """A batch without rows is an error naming the outputs."""
        self.assert_raises_naming(self.names[0], *(x[:0] for x in self.single()))


class PerExample(Contract):
    """The contract of a per-example loss: [B] out, rows independent."""

    @chex.variants(with_jit=True, without_jit=True)
    def test_rows_are_independent(self) -> None:
        """Each row's value is that of the row alone, whatever the order of the batch."""
        arguments = self.single()
        loss = self.variant(self.loss)
        losses = loss(*arguments)
        chex.assert_shape(losses, (BATCH,))
        assert losses.dtype == jnp.float32
        order = np.roll(np.arange(BATCH), 1)
        permuted = loss(*(x[order] for x in arguments))
        np.testing.assert_allclose(permuted, losses[order], rtol=1e-6, atol=1e-7)

    def test_rows_may_be_mapped(self) -> None:
        """Under vmap each row, a batch of one, gives its value in the batch."""
        arguments = self.single()
        rows = jax.jit(jax.vmap(lambda *row: self.loss(*(x[None] for x in row))[0]))
        np.testing.assert_allclose(rows(*arguments), self.compiled(*arguments)[0], rtol=1e-5, atol=1e-6)

    @parameterized.named_parameters(("float32", jnp.float32), ("bfloat16", jnp.bfloat16))
    def test_extreme_outputs_are_finite(self, dtype: Any) -> None:
        """Scores of ±1e4 on either side give finite values and derivatives."""
        rng = np.random.default_rng(0)
        arguments = [
            1e4 * rng.choice([-1.0, 1.0], x.shape) if kind in ("logits", "values") else x
            for kind, x in zip(self.kinds, self.draw(), strict=True)
        ]
        # One row far from, one row equal to its target.
        arguments[0][0] = 1e4 * np.where(np.arange(CLASSES) == 1, 1.0, -1.0)
        outputs, *targets = cast(tuple(arguments), dtype)
        losses, gradient = self.compiled(outputs, *targets)
        chex.assert_tree_all_finite((losses, gradient))
        assert gradient.dtype == dtype

    @parameterized.named_parameters(("two", 2), ("hundred_thousand", 100_000))
    def test_few_and_many_classes(self, classes: int) -> None:
        """Float32 agrees with float64 from 2 to 100,000 classes."""
        arguments = self.draw(8, classes)
        compiled = jax.jit(self.loss)
        result = compiled(*cast(arguments, jnp.float32))
        with jax.enable_x64(True):
            expected = np.asarray(compiled(*cast(arguments, jnp.float64)))
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)

    def test_invalid_row_is_nan_alone(self) -> None:
        """A NaN row or an out-of-range label spoils neither value nor gradient of another row."""
        clean, clean_gradient = self.compiled(*self.single())
        others = np.arange(BATCH) != 1
        for position, kind in enumerate(self.kinds):
            for spoiled in (-1, CLASSES) if kind == "labels" else (np.nan,):
                arguments = list(self.single())
                arguments[position][1] = spoiled
                losses, gradient = self.compiled(*arguments)
                assert np.isnan(losses[1])
                np.testing.assert_allclose(losses[others], clean[others], rtol=1e-6, atol=1e-7)
                np.testing.assert_allclose(gradient[others], clean_gradient[others], rtol=1e-6, atol=1e-7)


class ClassMask(Contract):
    """The contract of ``where=``: an excluded class is as good as absent."""

    def test_excluded_class_is_absent(self) -> None:
        """Excluding a column equals deleting it, with NaN in it and in value and derivative."""
        excluded, classes = 1, CLASSES + 1
        kept = [k for k in range(classes) if k != excluded]
        full, reduced = [], []
        for kind, x in zip(self.kinds, self.draw(BATCH, classes), strict=True):
            if kind == "labels":
                labels = np.resize([0, 2, 3], BATCH).astype(np.int32)
                full.append(labels)
                reduced.append(labels - (labels > excluded))
                continue
            wide = x.copy()
            wide[:, excluded] = 0.0 if kind == "distributions" else np.nan
            if kind == "distributions":
                wide /= wide.sum(1, keepdims=True)
            full.append(wide)
            reduced.append(wide[:, kept])

        where = np.arange(classes) != excluded
        losses, gradient = self.compiled(*cast(tuple(full), jnp.float32), where=where)
        expected, narrow_gradient = self.compiled(*cast(tuple(reduced), jnp.float32))
        np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(gradient[:, kept], narrow_gradient, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(gradient[:, excluded], 0.0)

    def test_mask_is_checked(self) -> None:
        """A mask of numbers or of the wrong shape is an error naming it."""
        arguments = self.single()
        self.assert_raises_naming("where", *arguments, where=np.ones(CLASSES))
        self.assert_raises_naming("where", *arguments, where=np.ones(CLASSES + 1, bool))


class NumericOption(Contract):
    """The contract of a numeric option: it may be traced.

    Attributes:
        option: The option's name and a value inside its range.
    """

    option: ClassVar[tuple[str, float]]

    def test_numeric_option_may_be_traced(self) -> None:
        """Derivative, vmap and one trace for all values; a Python number means the same."""
        name, value = self.option
        arguments = self.single()

        def loss(v: Any) -> Any:
            return self.loss(*arguments, **{name: v})

        compiled = jax.jit(chex.assert_max_traces(loss, n=1))
        values = np.asarray([value, 1.5 * value], np.float32)
        each = np.stack([compiled(v) for v in values])
        mapped = jax.jit(jax.vmap(loss))(values)
        np.testing.assert_allclose(mapped, each, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(jax.jit(lambda: loss(value))(), each[0], rtol=1e-5, atol=1e-6)
        with jax.enable_x64(True):
            arguments = cast(self.draw(), jnp.float64)
            self.assert_gradient(loss, np.asarray(value))


class Batch(Contract):
    """The contract of a batch loss: a scalar, invariant to the order of the rows."""

    weighted: ClassVar[bool] = True

    @chex.variants(with_jit=True, without_jit=True)
    def test_order_does_not_matter(self) -> None:
        """A permutation of the batch leaves the scalar as it is."""
        arguments = self.single()
        loss = self.variant(self.loss)(*arguments)
        chex.assert_shape(loss, ())
        assert loss.dtype == jnp.float32
        order = np.roll(np.arange(BATCH), 1)
        permuted = self.variant(self.loss)(*(x[order] for x in arguments))
        np.testing.assert_allclose(permuted, loss, rtol=1e-5, atol=1e-6)

    def test_weight_zero_is_absence(self) -> None:
        """A row of weight zero changes neither value nor derivative."""
        if not self.weighted:
            self.skipTest("has no weights")
        weights = np.arange(BATCH, dtype=np.float32)  # the first row is absent
        outputs, *targets = self.single()
        present = [x[1:] for x in targets]

        loss, gradient = self.compiled(outputs, *targets, weights=weights)
        expected, part = self.compiled(outputs[1:], *present, weights=weights[1:])
        np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(gradient[1:], part, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(gradient[0], 0.0)

    @chex.variants(with_jit=True, without_jit=True)
    def test_vmap_over_batches(self) -> None:
        """Mapped over several batches it gives each batch's value."""
        batches = [self.single(seed) for seed in range(2)]
        stacked = tuple(np.stack(xs) for xs in zip(*batches, strict=True))
        mapped = self.variant(jax.vmap(self.loss))(*stacked)
        each = np.stack([self.compiled(*batch)[0] for batch in batches])
        np.testing.assert_allclose(mapped, each, rtol=1e-5, atol=1e-6)

    def test_nan_is_not_hidden(self) -> None:
        """A NaN in the outputs makes the scalar NaN."""
        arguments = self.single()
        arguments[0][0] = np.nan
        assert np.isnan(self.compiled(*arguments)[0])
