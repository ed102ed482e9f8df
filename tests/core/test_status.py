import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiv import core
from jaxdiv.core import RUNNING, Status


class StatusTest(chex.TestCase):
    def test_every_status_has_a_message_and_running_is_none_of_them(self):
        assert next(s.name for s in Status) == "CONVERGED"
        assert len({s.message for s in Status}) == 5
        assert RUNNING not in [int(s) for s in Status]

    def test_success_passes(self):
        core.raise_if_failed(jnp.zeros((2, 3), jnp.int32))
        core.raise_if_failed(jnp.int32(Status.CONVERGED))

    def test_failed_lanes_are_named_with_status_steps_and_error(self):
        status = jnp.array([[0, 1], [3, 0]], jnp.int32)
        steps = jnp.array([[4, 9], [2, 5]])
        error = jnp.array([[0.0, 0.25], [1.5, 0.0]])
        with pytest.raises(RuntimeError) as caught:
            core.raise_if_failed(status, steps=steps, error=error)
        message = str(caught.value)
        assert "2 of 4 lanes failed" in message
        assert "[0, 1] MAX_STEPS after 9 steps at error 0.25" in message
        assert "[1, 0] NONFINITE after 2 steps at error 1.5" in message
        assert "[0, 0]" not in message

    def test_many_failed_lanes_are_counted(self):
        with pytest.raises(RuntimeError, match=r"20 of 20 lanes failed.*and 12 more"):
            core.raise_if_failed(np.full(20, Status.STALLED))

    def test_one_result_has_no_lane(self):
        with pytest.raises(RuntimeError, match="the solver failed: INFEASIBLE \\(no point"):
            core.raise_if_failed(jnp.int32(Status.INFEASIBLE))

    def test_unfinished_state_has_failed(self):
        with pytest.raises(RuntimeError, match="RUNNING"):
            core.raise_if_failed(jnp.int32(RUNNING))

    def test_traced_status_raises(self):
        with pytest.raises(ValueError, match="outside jit"):
            jax.jit(lambda s: core.raise_if_failed(s))(jnp.int32(0))
