"""The contract suite that every transform goes through.

A test class says how the transform is made and inherits the checks:

    from jaxdiv.testing import transforms as contract

    class LionKContract(contract.Contract):
        transform = staticmethod(transforms.scale_by_lion_k)
        learning_rate = 0.05

Gradients are drawn, and the parameters stand still but for the toys. Compilations take most of the time, so
that one program holds all compositions. Import the module, not its classes: test runners collect every class
they see in a test file.
"""

import functools
import unittest
from collections.abc import Callable
from typing import Any, ClassVar

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

IN, OUT, EXAMPLES, STEPS = 4, 3, 12, 150
Tree = Any


def draw(seed: int, bias: tuple[int, ...], dtype: Any = jnp.float32) -> dict[str, Any]:
    """Draws a tree like the parameters: a matrix "w" and a bias "b"."""
    rng = np.random.default_rng(seed)
    tree = {"w": rng.normal(size=(IN, OUT)), "b": rng.normal(size=bias)}
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), tree)


def quadratic(params: Tree, target: Tree) -> Any:
    """Curvatures from 1/2 to 2 around the target."""
    curvature = jax.tree.map(lambda x: jnp.linspace(0.5, 2.0, x.size).reshape(x.shape), target)
    return sum(
        jnp.sum(c * (x - t) ** 2) / 2
        for c, x, t in zip(*map(jax.tree.leaves, (curvature, params, target)), strict=True)
    )


def angles(params: Tree, target: Tree) -> Any:
    """One minus the cosine between each leaf and its target: the length of a leaf does not matter."""
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(target), strict=True)
    return sum(1 - jnp.sum(x * t) / jnp.sqrt(jnp.sum(x**2) * jnp.sum(t**2)) for x, t in pairs)


def classes(params: Tree, target: Tree) -> Any:
    """Softmax regression on the target's own probabilities, less their entropy."""
    inputs = jnp.asarray(np.random.default_rng(9).normal(size=(EXAMPLES, IN)), jnp.float32)
    student, teacher = (jax.nn.log_softmax(inputs @ p["w"] + p["b"]) for p in (params, target))
    return jnp.mean(jnp.sum(jnp.exp(teacher) * (teacher - student), -1))


TOYS = {"quadratic": quadratic, "angles": angles, "classes": classes}


def updates_of(tx: Any, params: Tree, gradients: tuple[Tree, ...], **extra: Any) -> tuple[list[Tree], Tree]:
    """The updates for one gradient after the other, at the same parameters, and the last state."""
    state, updates = tx.init(params), []
    for gradient in gradients:
        update, state = tx.update(gradient, state, params, **extra)
        updates.append(update)
    return updates, state


def assert_close(actual: Any, desired: Any, *, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    """Checks two pytrees leaf by leaf."""
    chex.assert_trees_all_close(actual, desired, rtol=rtol, atol=atol)


class Contract(chex.TestCase):
    """The contract of every transform.

    Attributes:
        transform: ``(**options) -> optax.GradientTransformation``, as a staticmethod.
        learning_rate: Of the toys, decayed to 0 behind the transform; None for an optimizer, whose updates are
            the increments of the parameters.
        option: A numeric option and a value inside its range; None if it has none.
        smooth: Whether the updates are differentiable in the option there.
        needs_params: Whether an update without parameters is an error.
        bias: Shape of the bias; ``(1, OUT)`` for a transform of matrices alone.
        toys: Those of the toys whose loss it brings to less than a fiftieth.
    """

    transform: ClassVar[Callable[..., Any]]
    learning_rate: ClassVar[float | None]
    option: ClassVar[tuple[str, float] | None] = None
    smooth: ClassVar[bool] = True
    needs_params: ClassVar[bool] = False
    bias: ClassVar[tuple[int, ...]] = (OUT,)
    toys: ClassVar[tuple[str, ...]] = tuple(TOYS)
    compiled: ClassVar[Any]
    step: ClassVar[Any]

    @classmethod
    def setUpClass(cls) -> None:
        """Compiles the transform once for all tests of the class."""
        super().setUpClass()
        cls.compiled = staticmethod(jax.jit(lambda *args: updates_of(cls.transform(), *args)))
        cls.step = staticmethod(jax.jit(cls.transform().update))

    @classmethod
    def arguments(cls, dtype: Any = jnp.float32, seed: int = 0) -> tuple[Tree, tuple[Tree, ...]]:
        """Draws ``(params, (gradient, next gradient))``."""
        params, *gradients = (draw(3 * seed + i, cls.bias, dtype) for i in range(3))
        return params, tuple(gradients)

    @classmethod
    @functools.cache
    def compositions(cls) -> dict[str, Any]:
        """The updates of all compositions, by one program."""
        tx, only_w = cls.transform(), {"w": True, "b": False}
        composed = {
            "chain": optax.chain(optax.scale(2.0), tx, optax.scale(-0.5)),
            "masked": optax.masked(tx, only_w),
            "partition": optax.partition({"tx": tx, "sgd": optax.sgd(0.5)}, {"w": "tx", "b": "sgd"}),
            "multi_steps": optax.MultiSteps(tx, 2).gradient_transformation(),
        }
        if cls.option is not None:
            name, number = cls.option
            composed["inject"] = optax.inject_hyperparams(cls.transform)(**{name: number})

        @jax.jit
        def program(params: Tree, gradients: tuple[Tree, ...]) -> dict[str, Any]:
            given = dict.fromkeys(composed, gradients)
            given["chain"] = jax.tree.map(lambda g: g / 2, gradients)
            given["multi_steps"] = tuple(
                jax.tree.map(lambda g, s=s: (1 + s) * g, g) for g in gradients for s in (0.5, -0.5)
            )
            out = {name: updates_of(tx, params, given[name])[0] for name, tx in composed.items()}
            part = jax.tree.map(lambda x: {**x, "b": None}, (params, gradients), is_leaf=lambda x: "w" in x)
            out["none"] = updates_of(tx, *part)[0]
            extra = {"value": jnp.ones(()), "grad": params, "value_fn": lambda params: 0.0}
            out["extra"] = updates_of(optax.with_extra_args_support(tx), params, gradients, **extra)[0]
            return out

        return program(*cls.arguments())

    def test_without_jit(self) -> None:
        """Compilation changes nothing."""
        eager = updates_of(self.transform(), *self.arguments())
        assert_close(eager, self.compiled(*self.arguments()))

    def test_in_a_chain(self) -> None:
        """What stands before scales the gradient, what stands after the update."""
        expected = jax.tree.map(lambda u: -0.5 * u, self.compiled(*self.arguments())[0])
        assert_close(self.compositions()["chain"], expected)

    def test_masked_and_partitioned(self) -> None:
        """On a part of the tree it is as on that part alone; the rest goes its own way; None is no leaf."""
        composed, gradients = self.compositions(), self.arguments()[1]
        for masked, parted, alone, gradient in zip(
            *(composed[name] for name in ("masked", "partition", "none")), gradients, strict=True
        ):
            assert_close(masked, {"w": alone["w"], "b": gradient["b"]})
            assert_close(parted, {"w": alone["w"], "b": -0.5 * gradient["b"]})

    def test_multi_steps(self) -> None:
        """Every second mini-batch moves, by the update of the mean gradient."""
        waiting, first, still, second = self.compositions()["multi_steps"]
        assert_close([first, second], self.compiled(*self.arguments())[0])
        chex.assert_trees_all_equal(*(jax.tree.map(jnp.abs, u) for u in (waiting, still)))

    def test_extra_arguments_and_injected_hyperparameters(self) -> None:
        """Arguments that it does not know do no harm; options may be arrays in the state."""
        expected = self.compiled(*self.arguments())[0]
        assert_close(self.compositions()["extra"], expected)
        assert_close(self.compositions().get("inject", expected), self.with_option())

    def with_option(self) -> list[Tree]:
        """The updates with the option's value given as a number."""
        options = {} if self.option is None else {self.option[0]: self.option[1]}
        return jax.jit(lambda *args: updates_of(self.transform(**options), *args)[0])(*self.arguments())

    def test_half_precision_parameters_have_float32_state(self) -> None:
        """Bfloat16 gradients give what their float32 values give, rounded once."""
        half = self.arguments(jnp.bfloat16)
        raised = jax.tree.map(lambda x: x.astype(jnp.float32), half)
        (updates, state), (expected, expected_state) = self.compiled(*half), self.compiled(*raised)
        chex.assert_trees_all_equal_shapes_and_dtypes(state, expected_state)
        chex.assert_trees_all_equal_shapes_and_dtypes(updates, list(half[1]))
        wide = jax.tree.map(lambda x: x.astype(jnp.float32), updates)
        assert_close(wide, expected, rtol=2**-7, atol=2**-8)

    def test_float64_stays_float64(self) -> None:
        """Float64 gradients give float64 updates and states close to the float32 ones."""
        expected = self.compiled(*self.arguments())
        with jax.enable_x64(True):
            result = self.compiled(*self.arguments(jnp.float64))
            inexact = [x.dtype for x in jax.tree.leaves(result) if jnp.issubdtype(x.dtype, jnp.inexact)]
            assert set(inexact) <= {jnp.dtype(jnp.float64)}
            result = jax.tree.map(lambda x, y: np.asarray(x, y.dtype), result, expected)
        assert_close(result, expected, rtol=1e-4, atol=1e-5)

    def test_second_call_does_not_retrace_and_a_saved_state_goes_on(self) -> None:
        """The state keeps its type; written to arrays and read again it gives the same update bit by bit."""
        params, gradients = self.arguments()
        state = self.transform().init(params)
        _, state = self.step(gradients[0], state, params)
        programs = self.step._cache_size()
        expected = self.step(gradients[1], state, params)
        leaves, structure = jax.tree.flatten(state)
        restored = jax.tree.unflatten(structure, [jnp.asarray(np.array(leaf)) for leaf in leaves])
        chex.assert_trees_all_equal(self.step(gradients[1], restored, params), expected)
        assert self.step._cache_size() == programs

    def test_zero_gradient_is_finite(self) -> None:
        """Where nothing pulls, nothing becomes NaN, nor where parameters are 0 and gradients tiny."""
        params, gradients = self.arguments()
        zero, tiny = (jax.tree.map(lambda g, s=s: s * g, gradients) for s in (0.0, 1e-30))
        for arguments in ((params, zero), (zero[0], zero), (zero[0], tiny)):
            chex.assert_tree_all_finite(self.compiled(*arguments))

    def test_converges(self) -> None:
        """In a scan, mapped over three toys."""

        def train(which: Any) -> tuple[Any, Any]:
            def loss(params: Tree) -> Any:
                target = draw(7, self.bias)
                return jax.lax.switch(
                    which, [functools.partial(f, target=target) for f in TOYS.values()], params
                )

            tx = self.transform()
            if self.learning_rate is not None:
                schedule = optax.cosine_decay_schedule(self.learning_rate, STEPS)
                tx = optax.chain(tx, optax.scale_by_learning_rate(schedule))

            def body(carry: Any, _: None) -> Any:
                params, state = carry
                value, gradient = jax.value_and_grad(loss)(params)
                updates, state = tx.update(gradient, state, params)
                return (optax.apply_updates(params, updates), state), value

            params = draw(8, self.bias)
            (params, _), values = jax.lax.scan(body, (params, tx.init(params)), length=STEPS)
            return values[0], loss(params)

        start, end = jax.jit(jax.vmap(train))(jnp.arange(len(TOYS)))
        for name, first, last in zip(TOYS, start, end, strict=True):
            if name in self.toys:
                assert last < first / 50, f"{name}: {first} to {last}"

    def test_numeric_option_may_be_traced(self) -> None:
        """Forward derivative and vmap, against central differences in float64."""
        if self.option is None:
            raise unittest.SkipTest("has no numeric option")
        (name, number), size = self.option, 1e-6
        with jax.enable_x64(True):
            arguments = self.arguments(jnp.float64)

            def projected(x: Any) -> Any:
                updates, _ = updates_of(self.transform(**{name: x}), *arguments)
                return sum(jnp.sum(jnp.cos(u + i)) for i, u in enumerate(jax.tree.leaves(updates)))

            @jax.jit
            def derivatives(x: Any) -> Any:
                around = jax.vmap(projected)(x + size * jnp.array([-1.0, 0.0, 1.0]))
                return around, jax.jvp(projected, (x,), (jnp.ones_like(x),))

            around, (value, slope) = derivatives(jnp.asarray(number))
            np.testing.assert_allclose(around[1], value, rtol=1e-10)
            if self.smooth:
                np.testing.assert_allclose(slope, (around[2] - around[0]) / (2 * size), rtol=1e-5, atol=1e-8)
                assert abs(slope) > 1e-6

    def test_missing_parameters_raise(self) -> None:
        """An update that needs them says so."""
        if not self.needs_params:
            self.skipTest("needs none")
        params, (gradient, _) = self.arguments()
        tx = self.transform()
        with self.assertRaisesRegex(ValueError, "params"):  # noqa: PT027
            tx.update(gradient, tx.init(params))
