r"""Optimistic online mirror descent: a guess of the gradient moves the play, the gradient itself the center.

With a center x̂_t, a hint M_t and the gradient g_t of the round's loss at the play x_t, over a convex set X,

    x_t = argmin_{x ∈ X} η_t ⟨M_t, x⟩ + D_ψ(x, x̂_t),    x̂_{t+1} = argmin_{x ∈ X} η_t ⟨g_t, x⟩ + D_ψ(x, x̂_t)

where the hint is the last gradient, g_{t-1} (0 at first), unless another is given. Two mirror maps ψ are known:

    euclidean   ½ ‖x‖²          x = P_X(x̂ - η g)             X by its projection
    entropy     Σ x log x       x ∝ x̂ exp(-η g)              X the simplex, per last axis; the center is kept in logs

and three schedules of the step, with V_t = Σ_{s<=t} ‖g_s - M_s‖²:

    constant             η
    convex, smooth       η_t = D / √(δ + 4 G² + V_{t-1})     D the diameter of X, ‖g‖, ‖M‖ <= G
    λ-strongly convex    η_t = 2 / (λ t)

For the second one and ψ Euclidean, against any u in X,

    Σ_t ⟨g_t, x_t - u⟩ <= D² / (2 η_T) + ½ Σ_t η_t ‖g_t - M_t‖² <= (3/2) D √(δ + 4 G² + V_T),

so that gradients which hardly change cost hardly any regret.

References:
    Chen, Zhang, Tu, Zhao, Zhang (2024), Optimistic online mirror descent for bridging stochastic and adversarial
    online convex optimization.
    Rakhlin, Sridharan (2013), Online learning with predictable sequences.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from jaxdiv.core import checks, pytree_dataclass, static_field
from jaxdiv.core.types import Numeric
from jaxdiv.solvers import stopping


class OptimisticOMDState(NamedTuple):
    """State of `OptimisticOMD`.

    Attributes:
        center: x̂, or its logarithm with the entropy.
        gradient: The last feedback g.
        hint: The hint M of the last play.
        step_size: The step η of the last play.
        variation: V, the sum of ‖g - M‖².
        rounds: Rounds completed.
    """

    center: PyTree
    gradient: PyTree
    hint: PyTree
    step_size: Float[Array, ""]
    variation: Float[Array, ""]
    rounds: Int[Array, ""]


@pytree_dataclass
class OptimisticOMD:
    """Plays against gradients that it can guess; a `core.Learner`.

    Exactly one of `learning_rate`, `diameter` and `strong_convexity` sets the steps.

    Args:
        project: ``project(x)``, the Euclidean projection onto X, for example one of `jaxdiv.convex`; None is the whole
            space. Not used with the entropy. Static.
        mirror: ``"euclidean"`` or ``"entropy"``. Static.
        learning_rate: The constant step η.
        diameter: D, which chooses the steps of convex smooth losses.
        strong_convexity: λ, which chooses those of strongly convex ones.
        gradient_bound: G; only used with `diameter`.
        offset: δ, positive; only used with `diameter`. The paper takes 10 D² L² for gradients with constant L.

    Raises:
        ValueError: If an option is out of its range, not one schedule is given, or the entropy has a projection.

    Note:
        Without a projection, at a constant step, the plays move as those of ``optax.optimistic_gradient_descent``
        from the third on. Plays of the entropy are never 0 unless x0 is.

    References:
        Chen, Zhang, Tu, Zhao, Zhang (2024), Optimistic online mirror descent for bridging stochastic and adversarial
        online convex optimization.

    Example:
        >>> learner = OptimisticOMD(mirror="entropy", learning_rate=0.5)
        >>> state = learner.init(jnp.array([0.5, 0.5]))
        >>> for _ in range(20):
        ...     play, state = learner.play(state)
        ...     state = learner.update(state, jnp.array([1.0, 0.0]))
        >>> play.round(3).tolist()
        [0.0, 1.0]
    """

    project: Callable[[Any], Any] | None = static_field(default=None)
    mirror: str = static_field(default="euclidean")
    learning_rate: Numeric | None = None
    diameter: Numeric | None = None
    strong_convexity: Numeric | None = None
    gradient_bound: Numeric = 0.0
    offset: Numeric = 1.0

    def __post_init__(self) -> None:
        checks.one_of("mirror", self.mirror, ("euclidean", "entropy"))
        if self.project is not None:
            stopping.check_functions(project=self.project)
            if self.mirror == "entropy":
                raise ValueError(
                    "project must be None with the entropy, whose set is the simplex; leave it out."
                )
        schedules = {name: getattr(self, name) for name in ("learning_rate", "diameter", "strong_convexity")}
        given = [name for name, value in schedules.items() if value is not None]
        if len(given) != 1:
            raise ValueError(
                f"exactly one of {', '.join(schedules)} must be given; got {', '.join(given) or 'none'}."
            )
        checks.in_range(given[0], schedules[given[0]], 0.0, open_low=True)
        checks.in_range("gradient_bound", self.gradient_bound, 0.0)
        checks.in_range("offset", self.offset, 0.0, open_low=True)

    def init(self, x0: PyTree) -> OptimisticOMDState:
        """The first state, centered at `x0`: a point of X, with the entropy of its simplex."""
        center = stopping.start("x0", x0)
        zeros = jax.tree.map(jnp.zeros_like, center)
        zero = jnp.zeros((), jnp.result_type(*jax.tree.leaves(center)))
        if self.mirror == "entropy":
            center = jax.tree.map(jnp.log, center)
        return OptimisticOMDState(center, zeros, zeros, zero, zero, jnp.zeros((), jnp.int32))

    def play(
        self, state: OptimisticOMDState, hint: PyTree | None = None
    ) -> tuple[PyTree, OptimisticOMDState]:
        """The play, and the state that remembers its hint; without one the last gradient is the hint."""
        hint = state.gradient if hint is None else stopping.same_space("hint", hint, state.gradient)
        step_size = self._step_size(state)
        point = self._moved(state.center, hint, step_size)
        if self.mirror == "entropy":
            point = jax.tree.map(jnp.exp, point)
        return point, state._replace(hint=hint, step_size=step_size)

    def update(self, state: OptimisticOMDState, feedback: PyTree) -> OptimisticOMDState:
        """The state after the gradient at the last play."""
        gradient = stopping.same_space("feedback", feedback, state.gradient)
        surprise = optax.tree.norm(optax.tree.sub(gradient, state.hint), squared=True)
        return state._replace(
            center=self._moved(state.center, gradient, state.step_size),
            gradient=gradient,
            variation=state.variation + surprise.astype(state.variation.dtype),
            rounds=state.rounds + 1,
        )

    def _step_size(self, state: OptimisticOMDState) -> Array:
        dtype = state.step_size.dtype
        if self.learning_rate is not None:
            return jnp.asarray(self.learning_rate, dtype)
        if self.strong_convexity is not None:
            return 2 / (jnp.asarray(self.strong_convexity, dtype) * (state.rounds + 1).astype(dtype))
        bound, offset = (jnp.asarray(x, dtype) for x in (self.gradient_bound, self.offset))
        return jnp.asarray(self.diameter, dtype) / jnp.sqrt(offset + 4 * bound**2 + state.variation)

    def _moved(self, center: PyTree, slope: PyTree, step_size: Array) -> PyTree:
        """Argmin η ⟨slope, x⟩ + D_ψ(x, center), in logs with the entropy."""
        moved = jax.tree.map(lambda c, s: (c - step_size * s).astype(c.dtype), center, slope)
        if self.mirror == "entropy":
            return jax.tree.map(jax.nn.log_softmax, moved)
        if self.project is None:
            return moved
        return stopping.same_space("the output of project", self.project(moved), center)
