import dataclasses

import chex
import jax
import jax.numpy as jnp
import pytest

from jaxdiv import core


@core.pytree_dataclass
class Options:
    tol: float = 0.1
    norm: str = core.static_field(default="l2")

    def __post_init__(self):
        core.checks.in_range("tol", self.tol, 0.0, open_low=True)
        core.checks.one_of("norm", self.norm, ("l1", "l2"))


class PytreeDataclassTest(chex.TestCase):
    def test_numbers_are_leaves_and_choices_are_structure(self):
        paths, structure = jax.tree.flatten_with_path(Options(0.5, "l1"))
        assert [(jax.tree_util.keystr(p), x) for p, x in paths] == [(".tol", 0.5)]
        assert structure != jax.tree.structure(Options(0.5, "l2"))

    def test_is_frozen(self):
        with pytest.raises(dataclasses.FrozenInstanceError):
            Options().tol = 1.0

    def test_options_are_checked_where_built_and_not_where_rebuilt(self):
        with pytest.raises(ValueError, match="tol must lie in"):
            Options(-1.0)
        # Transformations rebuild objects from placeholders, which no range check could read.
        leaves, structure = jax.tree.flatten(Options())
        assert isinstance(jax.tree.unflatten(structure, [object()] * len(leaves)), Options)
        assert jax.tree.map(lambda x: -x, Options(0.5)).tol == -0.5

    def test_a_new_number_does_not_retrace_and_a_new_choice_does(self):
        traced = chex.assert_max_traces(lambda o: o.tol * (2 if o.norm == "l2" else 3), n=2)
        f = jax.jit(traced)
        assert [float(f(Options(t))) for t in (1.0, 2.0, 3.0)] == [2.0, 4.0, 6.0]
        assert float(f(Options(1.0, "l1"))) == 3.0
        with pytest.raises(AssertionError, match="traced"):
            f(Options(jnp.ones(2)))

    def test_built_inside_transformations(self):
        grads = jax.vmap(jax.grad(lambda t: Options(t).tol ** 2))(jnp.array([1.0, 2.0]))
        chex.assert_trees_all_close(grads, jnp.array([2.0, 4.0]))
