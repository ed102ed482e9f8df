"""Contract suites that every oracle goes through.

The loss has everything that an oracle must carry along: randomness, a count of its calls, a memory per
example, two named losses, weights, a regularizer and a metric. It is written out instead of chained, since
compilations take most of the suites' time. A test class says how the oracle is made and what it costs, and
inherits the checks that apply:

    from jaxdiv.testing import oracles as contract

    class SAMContract(contract.Wrapper, contract.NumericOption):
        wrap = staticmethod(oracles.sam)
        neutral = (("rho", 0.0),)
        cost = (2, 2)
        option = ("rho", 0.1)

Import the module, not its classes: test runners collect every class they see in a test file.
"""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdiv import core, objectives, oracles, train
from jaxdiv.core.types import Aux, Batch, Key, LossFn, Params, Scalar, State
from jaxdiv.oracles import Evaluation, Oracle

BATCH, FEATURES, HIDDEN, EXAMPLES = 6, 3, 4, 8


def loss_fn(params: Params, state: State, batch: Batch, key: Key) -> tuple[Scalar, tuple[State, Aux]]:
    """A regression on noisy inputs that also pulls each prediction towards its predecessor.

    Its terms are ``"fit"`` and ``"past"``, which conflict, and ``"ridge"``.
    """
    inputs, index = batch["inputs"], batch["index"]
    # The bits of the key itself: a generator would take longer to compile than all the rest.
    noise = jax.random.key_data(key)[-1] % 16 / 64
    hidden = jnp.tanh((inputs + noise.astype(inputs.dtype)) @ params["w"] + params["b"])
    predictions = hidden @ params["v"]
    past = state["memory"][index]
    losses = {"fit": (predictions - batch["targets"]) ** 2, "past": 0.5 * (predictions - past) ** 2}
    shares = batch["weights"] / jnp.sum(batch["weights"])
    terms = {name: jnp.sum(shares * values) for name, values in losses.items()}
    terms["ridge"] = 0.1 * jnp.sum(params["v"] ** 2)
    predictions = jax.lax.stop_gradient(predictions)
    new_state = {"memory": state["memory"].at[index].set(predictions), "calls": state["calls"] + 1}
    aux = Aux(terms=terms, losses=losses, metrics={"mean": jnp.sum(shares * predictions)})
    return terms["fit"] + terms["past"] + terms["ridge"], (new_state, aux)


def arguments(seed: int = 0, dtype: Any = jnp.float32) -> tuple[Params, State, dict[str, Any], Key]:
    """Draws ``(params, loss_state, batch, key)``."""
    rng = np.random.default_rng(seed)
    params = {
        "w": rng.normal(size=(FEATURES, HIDDEN)),
        "b": rng.normal(size=HIDDEN),
        "v": rng.normal(size=HIDDEN),
    }
    batch = {
        "inputs": rng.normal(size=(BATCH, FEATURES)),
        "targets": rng.normal(size=BATCH),
        "weights": rng.uniform(0.5, 1.5, BATCH),
    }
    state = {"memory": rng.normal(size=EXAMPLES)}
    params, batch, state = jax.tree.map(lambda x: jnp.asarray(x, dtype), (params, batch, state))
    batch["index"] = jnp.asarray(rng.permutation(EXAMPLES)[:BATCH], jnp.int32)
    state["calls"] = jnp.zeros((), jnp.int32)
    return params, state, batch, jax.random.key(7)


def attack(loss_of_inputs: Any, inputs: Any, key: Any) -> Any:
    """An attack that never asks for the loss, for what wraps or is wrapped."""
    return 1.2 * inputs - 0.1


def doubled(base: Oracle) -> Oracle:
    """Twice the base oracle's direction, with a state that counts the calls."""

    def value_and_grad(loss_fn: LossFn, params: Params, calls: State, *rest: Any) -> Evaluation:
        result, direction, _, loss_state = base.value_and_grad(loss_fn, params, (), *rest)
        return result, jax.tree.map(lambda d: 2 * d, direction), calls + 1, loss_state

    return Oracle(lambda params: jnp.zeros((), jnp.int32), value_and_grad)


def evaluate(oracle: Oracle, params: Params, state: State, batch: Batch, key: Key) -> Evaluation:
    """Asks an oracle, fresh from its `init`, for value and gradient of the suites' loss."""
    return oracle.value_and_grad(loss_fn, params, oracle.init(params), state, batch, key)


@jax.jit
def plain(*args: Any) -> Evaluation:
    """Evaluates the plain oracle; compiled once for all suites."""
    return evaluate(oracles.plain(), *args)


def assert_close(actual: Any, desired: Any, *, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    """Checks two pytrees leaf by leaf, keys apart."""
    chex.assert_trees_all_close(actual, desired, rtol=rtol, atol=atol)


class Contract(chex.TestCase):
    """The contract of every oracle.

    Attributes:
        oracle: ``(**options) -> Oracle``, as a staticmethod.
        limit: ``() -> Oracle``, as a staticmethod: the oracle where it is to equal `plain`; None if it has no
            such limit or is a `Wrapper`, which has a check of its own.
        cost: Evaluations of the loss and reverse passes through it that one call takes.
        compiled: The oracle's evaluation under jit, made by the suite and shared by its tests, since
            compilations take most of their time.
    """

    oracle: ClassVar[Callable[..., Oracle]]
    limit: ClassVar[Any] = None
    cost: ClassVar[tuple[int, int]] = (1, 1)
    evaluation: ClassVar[Callable[..., Evaluation]]
    compiled: ClassVar[Callable[..., Evaluation]]
    traces: ClassVar[list[None]]

    @classmethod
    def setUpClass(cls) -> None:
        """Compiles the oracle once for all tests of the class."""
        super().setUpClass()
        cls.traces = []

        def evaluation(*args: Any) -> Evaluation:
            cls.traces.append(None)
            return evaluate(cls.oracle(), *args)

        cls.evaluation = staticmethod(evaluation)
        cls.compiled = staticmethod(jax.jit(evaluation))

    @classmethod
    def expected(cls, params: Params, state: State, batch: Batch, key: Key) -> Any:
        """``(value, (state, aux))`` that the oracle is to report: one evaluation of the loss."""
        return loss_fn(params, state, batch, key)

    @chex.variants(with_jit=True, without_jit=True)
    def test_value_aux_and_state_are_those_of_one_evaluation(self) -> None:
        """Nothing but the evaluation at the unperturbed parameters is reported, and nothing is lost."""
        args = arguments()
        (value, aux), gradient, _, state = self.variant(self.evaluation)(*args)
        expected, (expected_state, expected_aux) = jax.jit(self.expected)(*args)
        assert_close((value, aux, state), (expected, expected_aux, expected_state))
        chex.assert_trees_all_equal_shapes_and_dtypes(gradient, args[0])
        chex.assert_trees_all_equal_shapes_and_dtypes(state, args[1])
        assert_close(gradient, self.compiled(*args)[1])

    def test_limit_is_plain(self) -> None:
        """Where the oracle is to do nothing, it does nothing."""
        if self.limit is None:
            self.skipTest("has no such limit")
        args, limit = arguments(), self.limit()
        result = jax.jit(lambda *args: evaluate(limit, *args))(*args)
        assert_close(result, plain(*args), rtol=1e-5, atol=1e-6)

    def test_cost(self) -> None:
        """One call runs the loss forward and backward exactly as often as it says."""
        counts = [0, 0]

        def count(way: int) -> None:
            counts[way] += 1

        def forward(x: Any) -> Any:
            jax.debug.callback(functools.partial(count, 0))
            return x, None

        def backward(_: None, cotangent: Any) -> Any:
            jax.debug.callback(functools.partial(count, 1))
            return (cotangent,)

        @jax.custom_vjp
        def tap(x: Any) -> Any:
            return forward(x)[0]

        tap.defvjp(forward, backward)

        def loss(params: Params, state: State, batch: Batch, key: Key) -> Any:
            rows = jnp.sum(batch["inputs"] * params["w"], axis=-1)
            terms = {"fit": jnp.mean(rows**2), "past": jnp.mean(jnp.cos(rows))}
            terms = tap(terms)
            aux = {"terms": terms, "losses": {"fit": rows}, "metrics": {}}
            return terms["fit"] + terms["past"], (state, aux)

        oracle, params = self.oracle(), {"w": jnp.arange(1.0, FEATURES + 1)}
        batch = {"inputs": jnp.ones((BATCH, FEATURES)) / jnp.arange(1.0, FEATURES + 1) ** 2}
        key = jax.random.key(7)
        run = jax.jit(lambda params: oracle.value_and_grad(loss, params, oracle.init(params), (), batch, key))
        jax.block_until_ready(run(params))
        jax.effects_barrier()
        self.assertEqual(tuple(counts), self.cost)  # noqa: PT009

    def test_second_call_does_not_retrace(self) -> None:
        """The state that comes back is of the type that went in."""
        params, state, batch, key = arguments()
        _, gradient, _, state = self.compiled(params, state, batch, key)
        traces = len(self.traces)
        self.compiled(gradient, state, batch, jax.random.key(3))
        assert len(self.traces) == traces

    def test_vmap_over_models(self) -> None:
        """Mapped over parameters and states it gives what each alone gives."""
        several = [arguments(seed) for seed in range(2)]
        stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *several)
        mapped = jax.jit(jax.vmap(self.evaluation))(*stacked)
        each = jax.tree.map(lambda *xs: jnp.stack(xs), *(self.compiled(*args) for args in several))
        assert_close(mapped, each)

    def test_half_precision_leaf_keeps_its_dtype(self) -> None:
        """A bfloat16 leaf among float32 ones gets a bfloat16 gradient, computed in float32."""
        params, *rest = arguments()
        mixed = {**params, "b": params["b"].astype(jnp.bfloat16)}
        raised = {**mixed, "b": mixed["b"].astype(jnp.float32)}
        (value, _), gradient, _, _ = self.compiled(mixed, *rest)
        (expected, _), full, _, _ = self.compiled(raised, *rest)
        assert value.dtype == jnp.float32
        chex.assert_trees_all_equal_shapes_and_dtypes(gradient, mixed)
        assert_close(value, expected)
        wide = jax.tree.map(lambda x: x.astype(jnp.float32), gradient)
        assert_close(wide, full, rtol=2**-7, atol=2**-8)

    def test_float64_stays_float64(self) -> None:
        """Float64 arguments give float64 values and gradients close to the float32 ones."""
        expected = self.compiled(*arguments())
        with jax.enable_x64(True):
            result = self.compiled(*arguments(dtype=jnp.float64))
            inexact = [x for x in jax.tree.leaves(result) if jnp.issubdtype(x.dtype, jnp.inexact)]
            assert {x.dtype for x in inexact} == {jnp.dtype(jnp.float64)}
        assert_close(jax.tree.map(lambda x, y: x.astype(y.dtype), result, expected), expected)

    def test_sam_wraps_it(self) -> None:
        """SAM asks it twice: its own direction perturbs the parameters, its own direction comes back."""
        args, rho = arguments(), 0.2
        result, gradient, _, state = jax.jit(
            lambda *args: evaluate(oracles.sam(self.oracle(), rho=rho), *args)
        )(*args)
        expected, direction, _, expected_state = self.compiled(*args)
        _, moved, _, _ = self.compiled(core.perturb(args[0], direction, rho), *args[1:])
        assert_close((result, gradient, state), (expected, moved, expected_state))

    def test_adversarial_wraps_it(self) -> None:
        """It sees the perturbed inputs and the key of the call."""
        params, state, batch, key = arguments()

        wrapped = jax.jit(lambda *args: evaluate(oracles.adversarial(self.oracle(), attack), *args))
        moved = {**batch, "inputs": attack(None, batch["inputs"], None)}
        assert_close(wrapped(params, state, batch, key), self.compiled(params, state, moved, key))

    def test_runs_in_a_training_step_under_scan(self) -> None:
        """Three scanned steps of `make_step` are three calls; a leaf that is not inexact stays."""
        params, first, batch, key = arguments()
        apply: Any = loss_fn
        objective = objectives.Objective(lambda params, batch, key: first, apply)
        init, step = train.make_step(objective, self.oracle(), optax.sgd(0.1))
        start = init({**params, "count": jnp.int32(5)}, batch, key)
        end, metrics = jax.jit(lambda s: jax.lax.scan(lambda s, _: step(s, batch), s, length=3))(start)
        state, values = start.loss_state, []
        for position in range(3):
            (value, _), gradient, _, state = self.compiled(
                params, state, batch, jax.random.fold_in(start.key, position)
            )
            params = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)
            values.append(value)
        assert_close(end.params, {**params, "count": jnp.int32(5)})
        assert_close(end.loss_state, state)
        assert_close(metrics["value"], jnp.stack(values))
        assert metrics["losses"].shape == (3, BATCH)


class Gradient(Contract):
    """The contract of an oracle whose result is the gradient of its value, not a displacement."""

    def test_gradient_equals_finite_differences(self) -> None:
        """Central differences of the value along two directions, in float64."""
        size = 1e-5
        with jax.enable_x64(True):
            params, *rest = arguments(dtype=jnp.float64)
            _, gradient, _, _ = self.compiled(params, *rest)
            for seed in range(2):
                direction = arguments(seed + 5, jnp.float64)[0]
                ends = [
                    self.compiled(jax.tree.map(lambda p, d, s=s: p + s * d, params, direction), *rest)[0][0]
                    for s in (size, -size)
                ]
                slope = (ends[0] - ends[1]) / (2 * size)
                np.testing.assert_allclose(optax.tree.vdot(gradient, direction), slope, rtol=1e-7)


class Wrapper(Contract):
    """The contract of an oracle that asks another.

    Attributes:
        wrap: ``(base, **options) -> Oracle``, as a staticmethod.
        neutral: Names and values of the options with which it equals its base.
    """

    wrap: ClassVar[Callable[..., Oracle]]
    neutral: ClassVar[tuple[tuple[str, Any], ...]]

    @classmethod
    def setUpClass(cls) -> None:
        """Wraps the plain oracle for the common checks."""
        cls.oracle = staticmethod(lambda **options: cls.wrap(oracles.plain(), **options))
        super().setUpClass()

    def test_neutral_wrapper_is_its_base(self) -> None:
        """What comes back is the base's result, not the plain one; the base's state advances once."""
        args = arguments()
        wrapped = self.wrap(doubled(oracles.plain()), **dict(self.neutral))
        result, direction, calls, state = jax.jit(lambda *args: evaluate(wrapped, *args))(*args)
        expected, gradient, _, expected_state = plain(*args)
        twice = jax.tree.map(lambda g: 2 * g, gradient)
        assert_close((result, direction, state), (expected, twice, expected_state), rtol=1e-5, atol=1e-6)
        assert int(calls) == 1


class NumericOption(Contract):
    """The contract of a numeric option: it may be traced.

    Attributes:
        option: The option's name and a value inside its range.
    """

    option: ClassVar[tuple[str, float]]

    def test_numeric_option_may_be_traced(self) -> None:
        """Forward and reverse derivative and vmap, against central differences."""
        name, number = self.option
        size = 1e-5
        with jax.enable_x64(True):
            args = arguments(dtype=jnp.float64)

            def projected(x: Any) -> Any:
                (value, _), gradient, _, _ = evaluate(self.oracle(**{name: x}), *args)
                return value + sum(jnp.sum(jnp.cos(g)) for g in jax.tree.leaves(gradient))

            @jax.jit
            def derivatives(x: Any) -> Any:
                around = jax.vmap(projected)(x + size * jnp.array([-1.0, 0.0, 1.0]))
                return around, jax.jvp(projected, (x,), (jnp.ones_like(x),)), jax.grad(projected)(x)

            around, (value, forward), reverse = derivatives(jnp.asarray(number))
            np.testing.assert_allclose(around[1], value, rtol=1e-10)
            np.testing.assert_allclose(forward, (around[2] - around[0]) / (2 * size), rtol=1e-6, atol=1e-8)
            np.testing.assert_allclose(reverse, forward, rtol=1e-9, atol=1e-10)
            assert abs(forward) > 1e-4
