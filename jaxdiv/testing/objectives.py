"""The contract that every link keeps, checked inside a chain.

A test class names the link and what stands around it, and inherits the checks:

    from jaxdiv.testing import objectives as contract

    class SmoothLabelsContract(contract.NumericOption, contract.Contract):
        link = staticmethod(objectives.smooth_labels)
        before, after = (contract.FORWARD,), (contract.CROSS_ENTROPY, contract.MEAN)
        option = ("alpha", 0.2)
        missing = "smooth_labels needs 'logits'"

Import the module, not its classes: test runners collect every class they see in a test file.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxdiv import losses, objectives

BATCH, INPUTS, FEATURES, CLASSES, EXAMPLES = 4, 3, 2, 3, 7
INIT_KEY, KEY = 0, 1


def model(params: Any, state: Any, inputs: Any, key: Any) -> Any:
    """A small network with named outputs ``"features"`` [B, 2] and ``"logits"`` [B, 3]."""
    features = jnp.tanh(inputs @ params["w"])
    return {"features": features, "logits": features @ params["v"]}, state


def raised(params: Any, state: Any, inputs: Any, key: Any) -> Any:
    """The same network, its outputs cast to at least float32."""
    outputs, state = model(params, state, inputs, key)
    return jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), outputs), state


FORWARD = objectives.forward(model)
CROSS_ENTROPY = objectives.loss(losses.cross_entropy, name="ce")
MEAN = objectives.mean()


def draw_params(seed: int = 0, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    """Draws the parameters of `model`."""
    rng = np.random.default_rng([0, seed])
    shapes = {"w": (INPUTS, FEATURES), "v": (FEATURES, CLASSES)}
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


def draw_batch(
    seed: int = 0, targets: str = "labels", dtype: Any = np.float32, size: int = BATCH
) -> dict[str, np.ndarray]:
    """Draws a batch with weights and index.

    Args:
        seed: Of the numbers.
        targets: ``"labels"`` [B], ``"distributions"`` or ``"values"`` [B, 3].
        dtype: Of the floating entries.
        size: Number of examples, at most 7.
    """
    rng = np.random.default_rng([1, seed])
    drawn = {
        "labels": rng.integers(0, CLASSES, size).astype(np.int32),
        "distributions": rng.dirichlet(np.ones(CLASSES), size).astype(dtype),
        "values": rng.normal(size=(size, CLASSES)).astype(dtype),
    }
    return {
        "inputs": rng.normal(size=(size, INPUTS)).astype(dtype),
        "targets": drawn[targets],
        "weights": rng.uniform(0.5, 2.0, size).astype(dtype),
        "index": rng.permutation(EXAMPLES)[:size].astype(np.int32),
    }


class Contract(chex.TestCase):
    """What every link promises.

    Attributes:
        link: ``link(**options) -> Link``, as a staticmethod.
        before: Links in front of it; `FORWARD` is replaced where a test needs another model.
        after: Links behind it, down to the reduction.
        targets: Kind of the targets, see `draw_batch`.
        missing: Pattern of the error when nothing stands before the link, or None if it needs nothing.
        exact_gradient: False if the link stops a gradient that the value depends on.
        draws: True for a link whose random numbers depend on the size of the batch and take seconds to
            compile: padding is then compared with other padding, and of float64 and options the types alone
            are checked.
        compiled: ``(params, state, batch, key) -> (value, gradient, state, aux)`` under jit, shared by the
            tests of a class, since compilations take most of their time.
        traces: One entry for each time that `compiled` was traced.
        visited: Parameters, and a state in which the first batch was visited under others before.
    """

    link: ClassVar[Callable[..., objectives.Link]]
    before: ClassVar[tuple[objectives.Link, ...]] = (FORWARD,)
    after: ClassVar[tuple[objectives.Link, ...]] = ()
    targets: ClassVar[str] = "labels"
    missing: ClassVar[str | None] = None
    exact_gradient: ClassVar[bool] = True
    draws: ClassVar[bool] = False
    compiled: ClassVar[Callable[..., Any]]
    traces: ClassVar[list[None]]
    visited: ClassVar[tuple[Any, Any]]

    @classmethod
    def setUpClass(cls) -> None:
        """Compiles the chain once for all tests of the class."""
        super().setUpClass()
        cls.traces = []
        cls.compiled = staticmethod(jax.jit(cls.step))
        batch = cls.batch()
        state = cls.first(draw_params(), batch)
        cls.visited = draw_params(), cls.compiled(draw_params(1), state, batch, jax.random.key(KEY))[2]

    @classmethod
    def objective(cls, apply: Any = model, **options: Any) -> objectives.Objective:
        """The chain with the link under test."""
        links = (*cls.before, cls.link(**options), *cls.after)
        return objectives.chain(*(objectives.forward(apply) if link is FORWARD else link for link in links))

    @classmethod
    def step(cls, params: Any, state: Any, batch: Any, key: Any) -> tuple[Any, ...]:
        """One evaluation with its gradient."""
        cls.traces.append(None)
        function = jax.value_and_grad(cls.objective().apply, has_aux=True)
        (value, (state, aux)), gradient = function(params, state, batch, key)
        return value, gradient, state, aux

    @classmethod
    def batch(cls, seed: int = 0, dtype: Any = np.float32) -> dict[str, Any]:
        """Draws a batch of the right kind of targets."""
        return draw_batch(seed, cls.targets, dtype)

    @classmethod
    def first(cls, params: Any, batch: Any) -> Any:
        """The chain's first state."""
        return cls.objective().init(params, batch, jax.random.key(INIT_KEY))

    def test_value_is_the_sum_of_differentiable_terms(self) -> None:
        """Float32 numbers come out, finite and with a gradient, the same without jit."""
        params, state = self.visited
        arguments = (params, state, self.batch(), jax.random.key(KEY))
        value, gradient, new_state, aux = self.compiled(*arguments)
        chex.assert_trees_all_close(
            (value, (new_state, aux)), self.objective().apply(*arguments), rtol=1e-5, atol=1e-6
        )
        chex.assert_shape(value, ())
        chex.assert_tree_all_finite((value, gradient))
        chex.assert_trees_all_equal_shapes_and_dtypes(gradient, params)
        assert any(np.any(leaf != 0) for leaf in jax.tree.leaves(gradient)), (
            "no gradient reaches the parameters"
        )
        np.testing.assert_allclose(value, sum(aux["terms"].values()), rtol=1e-6)
        for leaf in jax.tree.leaves((value, aux)):
            assert leaf.dtype == jnp.float32

    def test_init_reads_shapes_alone(self) -> None:
        """The first state is that of the shapes, whatever the values, and is made under eval_shape too."""
        params, batch, key = draw_params(), self.batch(), jax.random.key(INIT_KEY)
        init = self.objective().init
        state = init(params, batch, key)
        shapes = jax.eval_shape(lambda: batch)
        chex.assert_trees_all_equal(init(params, shapes, key), state)
        chex.assert_trees_all_equal_shapes_and_dtypes(jax.eval_shape(init, params, batch, key), state)

    def test_state_keeps_its_type(self) -> None:
        """Structure, shapes and strong dtypes are final from the first state on, as a scan needs."""
        params, visited = self.visited
        first = self.first(params, self.batch())
        assert jax.tree.map(jax.typeof, visited) == jax.tree.map(jax.typeof, first)
        assert not any(jax.typeof(leaf).weak_type for leaf in jax.tree.leaves(first))

        def body(state: Any, key: Any) -> Any:
            value, (state, _) = self.objective().apply(params, state, self.batch(), key)
            return state, value

        keys = jax.random.split(jax.random.key(KEY), 2)
        last, _ = jax.eval_shape(lambda: jax.lax.scan(body, first, keys))
        chex.assert_trees_all_equal_shapes_and_dtypes(last, first)

    def test_equal_shapes_trace_once(self) -> None:
        """Neither new values, nor a new state, nor a new key compile anew."""
        count = len(self.traces)
        _, state = self.visited
        for seed in range(2):
            state = self.compiled(draw_params(seed), state, self.batch(seed), jax.random.key(seed))[2]
        assert len(self.traces) == count

    def test_evaluation_draws_nothing_and_leaves_the_state(self) -> None:
        """With ``key=None`` no random number is drawn and the very state comes back."""
        params, state = self.visited

        def evaluate(state: Any, params: Any, batch: Any) -> tuple[Any, Any]:
            value, (state, _) = self.objective().apply(params, state, batch, None)
            return state, value

        traced = jax.make_jaxpr(evaluate)(state, params, self.batch())
        count = len(jax.tree.leaves(state))
        assert traced.jaxpr.outvars[:count] == traced.jaxpr.invars[:count]
        for random in ("random_", "threefry"):
            assert random not in str(traced)

    def test_batch_of_padding_is_harmless(self) -> None:
        """Where every row is padding, value and gradient are finite."""
        params, state = self.visited
        batch = {**self.batch(), "weights": np.zeros(BATCH, np.float32)}
        batch["inputs"] = np.full_like(batch["inputs"], np.nan)
        batch["targets"] = np.full_like(batch["targets"], -1 if self.targets == "labels" else np.nan)
        value, gradient, new_state, _ = self.compiled(params, state, batch, jax.random.key(KEY))
        chex.assert_tree_all_finite((value, gradient, new_state))

    def test_half_precision_is_reduced_in_float32(self) -> None:
        """From bfloat16 outputs on everything is float32; the gradient is of the parameters' dtype."""
        params, batch = draw_params(0, jnp.bfloat16), self.batch(0, jnp.bfloat16)
        state, key = self.first(params, batch), jax.random.key(KEY)
        value, gradient, _, aux = jax.eval_shape(self.step, params, state, batch, key)
        chex.assert_trees_all_equal_shapes_and_dtypes(gradient, params)
        for leaf in jax.tree.leaves((value, aux)):
            assert leaf.dtype == jnp.float32
        if self.draws:
            return

        half, exact = (self.objective(apply).apply(params, state, batch, key)[0] for apply in (model, raised))
        np.testing.assert_allclose(half, exact, rtol=1e-5)

    def test_float64_gradient_mapped_without_padding(self) -> None:
        """Float64 stays float64, its derivative is the central difference, and padding is absence.

        The padded batch holds NaN, invalid labels and any index; its value, gradient and state in float32 are
        those of the batch without it in float64, mapped over parameters and keys.
        """
        params, state = self.visited
        batch, kept = self.batch(), [1, 2]
        padded = {name: np.array(entry) for name, entry in batch.items()}
        for row, index in ((0, EXAMPLES), (3, -1)):
            padded["inputs"][row] = np.nan
            padded["targets"][row] = -1 if self.targets == "labels" else np.nan
            padded["weights"][row] = 0.0
            padded["index"][row] = index
        got = self.compiled(params, state, padded, jax.random.key(KEY))
        if self.draws:
            other = self.compiled(params, state, {**batch, "weights": padded["weights"]}, jax.random.key(KEY))
            chex.assert_trees_all_close(got, other, rtol=1e-4, atol=1e-5)
        with jax.enable_x64(True):
            params, short = (
                {name: np.float64(x) if x.dtype == np.float32 else x for name, x in tree.items()}
                for tree in (params, {name: entry[kept] for name, entry in batch.items()})
            )
            key = jax.random.key(KEY)
            value, gradient, new_state, aux = jax.eval_shape(self.compiled, params, state, short, key)
            for leaf in jax.tree.leaves((value, gradient, aux)):
                assert leaf.dtype == jnp.float64
            chex.assert_trees_all_equal_dtypes(new_state, got[2])
            if self.draws:
                return
            rng, steps = np.random.default_rng(2), 1e-6 * np.array([0.0, 1.0, -1.0])
            direction = {name: rng.normal(size=x.shape) for name, x in params.items()}
            moved = {
                name: np.stack([x + step * direction[name] for step in steps]) for name, x in params.items()
            }
            mapped = jax.jit(jax.vmap(self.step, (0, None, None, 0)))(
                moved, state, short, jnp.stack([key, key, key])
            )
            first = jax.tree.map(lambda x: x[0], mapped[:3])
            chex.assert_trees_all_close(got[:3], first, rtol=1e-4, atol=1e-5)
            if self.exact_gradient:
                slope = sum(np.vdot(first[1][name], direction[name]) for name in params)
                difference = (mapped[0][1] - mapped[0][2]) / 2e-6
                np.testing.assert_allclose(slope, difference, rtol=1e-6, atol=1e-8)

    def test_missing_field_names_the_link(self) -> None:
        """Where what the link needs is not in the record, the error names link and field."""
        if self.missing is None:
            self.skipTest("needs nothing but the inputs")
        with self.assertRaisesRegex(ValueError, self.missing):  # noqa: PT027
            objectives.chain(self.link()).init(
                draw_params(), {"inputs": self.batch()["inputs"]}, jax.random.key(INIT_KEY)
            )


class NumericOption(Contract):
    """The contract of a numeric option: it may be traced.

    Attributes:
        option: The option's name and a value inside its range, as is 0.9 times it.
    """

    option: ClassVar[tuple[str, float]]

    def test_numeric_option_may_be_traced(self) -> None:
        """The chain is built inside jit, grad and vmap; a Python number means the same."""
        name, value = self.option
        params, state = self.visited
        batch, key = self.batch(), jax.random.key(KEY)

        def of_option(v: Any) -> Any:
            return self.objective(**{name: v}).apply(params, state, batch, key)[0]

        single = np.asarray([value, 0.9 * value], np.float32)
        shapes = jax.eval_shape(jax.vmap(jax.value_and_grad(of_option)), single)
        assert all(x.dtype == jnp.float32 and x.shape == (2,) for x in shapes)
        if self.draws:
            return
        number = of_option(value)
        np.testing.assert_allclose(of_option(single[0]), number, rtol=1e-6)
        assert not np.allclose(of_option(single[1]), number, rtol=1e-6), "the option is ignored"
        with jax.enable_x64(True):
            params, batch = draw_params(0, np.float64), self.batch(0, np.float64)
            step = 1e-6
            mapped = jax.jit(jax.vmap(jax.value_and_grad(of_option)))
            each, slopes = mapped(value + step * np.array([0.0, 1.0, -1.0]))
            np.testing.assert_allclose(each[0], number, rtol=1e-4)
            np.testing.assert_allclose(slopes[0], (each[1] - each[2]) / (2 * step), rtol=1e-6, atol=1e-8)


class Schedule(NumericOption):
    """The contract of an option that may be an optax schedule of the link's own updates."""

    def test_schedule_counts_updates(self) -> None:
        """The n-th update uses ``schedule(n)``, from 0 on; evaluations do not count."""
        name, value = self.option

        def schedule(count: Any) -> Any:
            return value * (1 - 0.3 * count)

        params, batch, key = draw_params(), self.batch(), jax.random.key(KEY)
        scheduled = self.objective(**{name: schedule})
        state = scheduled.init(params, batch, jax.random.key(INIT_KEY))
        _, (state, _) = scheduled.apply(params, state, batch, None)
        for count in range(3):
            constant = self.objective(**{name: np.float32(schedule(count))})
            expected, _ = constant.apply(params, state, batch, key)
            got, (state, _) = scheduled.apply(params, state, batch, key)
            np.testing.assert_allclose(got, expected, rtol=1e-6)


class PerExampleMemory(Contract):
    """The contract of a link that remembers something of each example by ``batch["index"]``."""

    def test_index_is_needed(self) -> None:
        """A batch without index is an error naming the link."""
        batch = {name: entry for name, entry in self.batch().items() if name != "index"}
        with self.assertRaisesRegex(ValueError, r"link \w+ .*batch\['index'\]"):  # noqa: PT027
            self.first(draw_params(), batch)

    def test_last_of_duplicates_is_remembered(self) -> None:
        """An example that comes twice in a batch is remembered as its last row has it, visited once."""
        params, state = self.visited
        twice = {**self.batch(), "index": np.array([2, 5, 2, 0], np.int32)}
        last = {**twice, "weights": twice["weights"] * np.array([0, 1, 1, 1], np.float32)}
        key = jax.random.key(KEY)
        got, expected = (self.compiled(params, state, batch, key)[2] for batch in (twice, last))
        chex.assert_trees_all_equal(got, expected)

    def test_index_out_of_range_spoils_its_row_alone(self) -> None:
        """Its losses are NaN, the others' and the memory are untouched."""
        params, state = self.visited
        batch, key = self.batch(), jax.random.key(KEY)
        *_, clean_state, clean = self.compiled(params, state, batch, key)
        for wrong in (-1, EXAMPLES):
            index = batch["index"].copy()
            index[1] = wrong
            *_, new_state, aux = self.compiled(params, state, {**batch, "index": index}, key)
            for name, values in aux["losses"].items():
                assert np.isnan(values[1])
                np.testing.assert_allclose(
                    np.delete(values, 1), np.delete(clean["losses"][name], 1), rtol=1e-6
                )
            kept = np.delete(np.arange(EXAMPLES), batch["index"][1])
            for new, old in zip(jax.tree.leaves(new_state), jax.tree.leaves(clean_state), strict=True):
                if new.shape[:1] == (EXAMPLES,):
                    np.testing.assert_array_equal(new[kept], old[kept])
