"""Preconditioning by the inverse of an empirical Fisher matrix over a window of gradients: M-FAC.

With g the gradient, put into the window in place of its oldest, and G the m gradients of the window,

    u = (λ I + Gᵀ G / m)⁻¹ g.

References:
    Frantar, Kurtic and Alistarh (2021), M-FAC: Efficient matrix-free approximations of second-order information,
    section 3.2 and appendix A.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdiv.core import checks
from jaxdiv.core.types import Numeric
from jaxdiv.linalg import vectors
from jaxdiv.linalg.mfac_window import MFACWindow, mfac_window


class ScaleByMFACState(NamedTuple):
    """State of the transform.

    Attributes:
        window: The last gradients and their products.
    """

    window: MFACWindow


def scale_by_mfac(window: int = 1024, damping: Numeric = 1e-5) -> optax.GradientTransformation:
    """Multiplies the gradient by the inverse of the damped empirical Fisher matrix of the last gradients.

    The paper's optimizer is ``chain(add_decayed_weights(…), scale_by_mfac(), ema(0.9, debias=False),
    scale_by_learning_rate(1e-3))``: decay and preconditioner see one and the same gradient.

    Args:
        window: Number m of gradients kept, each a copy of the parameters in float32 or wider. Beside these there are
            m² numbers, and a step costs O(dm + m³).
        damping: λ > 0; the paper has 1e-5 and 1e-6.

    Returns:
        A transform; the update has the dtypes of the gradient.

    Raises:
        ValueError: If `window` is below 1 or a concrete `damping` is not positive.

    Note:
        Until the window is full the missing gradients count as zero, so the first updates, g/(λ + ‖g‖²/m), are long:
        warm the learning rate up, or take `window` such that this is harmless. λ is at least 4 eps times the
        mean squared norm of the gradients. A gradient that is not finite stays for m steps; put
        ``optax.apply_if_finite`` around the transform where that can happen.

    References:
        Frantar, Kurtic and Alistarh (2021).

    Example:
        >>> import optax
        >>> tx = optax.chain(scale_by_mfac(window=4, damping=0.1), optax.scale_by_learning_rate(0.1))
        >>> state = tx.init(jnp.zeros(2))
        >>> update, state = tx.update(jnp.array([1.0, 2.0]), state)
        >>> [round(float(u), 4) for u in update]
        [-0.0741, -0.1481]
    """
    if window < 1:
        raise ValueError(f"window must be at least 1; got {window}.")
    checks.in_range("damping", damping, 0.0, open_low=True)

    def init(params: optax.Params) -> ScaleByMFACState:
        return ScaleByMFACState(mfac_window(params, window))

    def update(
        updates: optax.Updates, state: ScaleByMFACState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, ScaleByMFACState]:
        del params
        moved = state.window.push(updates)
        preconditioned = vectors.cast_like(moved.inverse_newest(damping), jax.tree.map(jnp.asarray, updates))
        return preconditioned, ScaleByMFACState(moved)

    return optax.GradientTransformation(init, update)
