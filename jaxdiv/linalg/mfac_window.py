"""Inverse of a damped empirical Fisher matrix over a sliding window: the dynamic algorithm of M-FAC.

The window holds m gradients, the rows of G, and their products G Gᵀ. A new gradient takes the place of the oldest;
that changes one row and one column of G Gᵀ, O(dm). With K = mλ I + G Gᵀ and F = λ I + Gᵀ G / m,

    F⁻¹ x   = (x − Gᵀ K⁻¹ G x)/λ,              O(dm + m³), for any x,
    F⁻¹ g_j = m Gᵀ K⁻¹ e_j,                    for a gradient of the window itself, without a difference.

K⁻¹ is applied by a Cholesky factorization, which is the paper's unpivoted LU of K/λ. The window starts with zero
gradients; m does not change while it fills.

References:
    Frantar, Kurtic and Alistarh (2021), M-FAC: Efficient matrix-free approximations of second-order information,
    section 3.2.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from jaxdiv.core import checks
from jaxdiv.core.pytree import pytree_dataclass
from jaxdiv.core.types import Numeric
from jaxdiv.linalg import vectors
from jaxdiv.linalg.mfac import factored_gram


@pytree_dataclass
class MFACWindow:
    """The last m gradients and what the inverse needs of them.

    Attributes:
        grads: The gradients, in the order of their slots; leaves have a leading axis m.
        gram: G Gᵀ. [m, m]
        newest: Slot of the gradient pushed last; −1 before the first.
    """

    grads: PyTree
    gram: Float[Array, "m m"]
    newest: Int[Array, ""]

    def push(self, grad: PyTree) -> "MFACWindow":
        """Returns the window with a gradient in place of the oldest, in O(dm)."""
        slot = (self.newest + 1) % self.gram.shape[0]
        grads = vectors.insert(self.grads, slot, self._like(grad, "grad"))
        products = vectors.coefficients(grads, jax.tree.map(lambda rows: rows[slot], grads))
        gram = self.gram.at[slot, :].set(products).at[:, slot].set(products)
        return MFACWindow(grads, gram, slot)

    def inverse(self, x: PyTree, damping: Numeric) -> PyTree:
        """Returns F⁻¹ x for a pytree like a gradient, in its dtypes; see the note on `mfac` for its rounding."""
        checks.in_range("damping", damping, 0.0, open_low=True)
        wide = self._like(x, "x")
        cholesky, damping = factored_gram(self.gram, damping)
        inner = jax.scipy.linalg.cho_solve((cholesky, True), vectors.coefficients(self.grads, wide))
        rest = optax.tree.sub(wide, vectors.combine(self.grads, inner))
        return vectors.cast_like(optax.tree.scale(1 / damping, rest), jax.tree.map(jnp.asarray, x))

    def inverse_newest(self, damping: Numeric) -> PyTree:
        """Returns F⁻¹ g for the gradient pushed last, in the dtype of the window."""
        checks.in_range("damping", damping, 0.0, open_low=True)
        m = self.gram.shape[0]
        cholesky, _ = factored_gram(self.gram, damping)
        unit = jax.nn.one_hot(self.newest, m, dtype=self.gram.dtype)
        return vectors.combine(self.grads, m * jax.scipy.linalg.cho_solve((cholesky, True), unit))

    def _like(self, tree: PyTree, name: str) -> PyTree:
        one = jax.eval_shape(lambda grads: jax.tree.map(lambda rows: rows[0], grads), self.grads)
        vectors.same_space(name, tree, "a gradient of the window", one)
        return optax.tree.cast(vectors.widened(name, tree), self.gram.dtype)


def mfac_window(like: PyTree, m: int) -> MFACWindow:
    """An empty window of m gradients.

    Args:
        like: A floating pytree of d numbers, such as the parameters. The gradients are kept in its widest dtype,
            at least float32: m copies of it.
        m: Number of gradients.

    Returns:
        A window of zeros, with the methods `push`, `inverse` and `inverse_newest`. It has no state besides: each
        method is a pure function.

    Raises:
        ValueError: If `m` is below 1 or `like` is not floating.

    Note:
        While it fills, F is smaller than it will be, for the sum is over few gradients and still divided by m: the
        product with the first one is g / (λ + ‖g‖²/m). A gradient that is not finite spoils the next m products.
        λ is at least 4 eps times the mean squared norm of the window.

    References:
        Frantar, Kurtic and Alistarh (2021), section 3.2.

    Example:
        >>> window = mfac_window(jnp.zeros(2), 2).push(jnp.array([2.0, 0.0])).push(jnp.array([0.0, 4.0]))
        >>> [round(float(x), 4) for x in (*window.inverse_newest(1.0), *window.inverse(jnp.ones(2), 1.0))]
        [0.0, 0.4444, 0.3333, 0.1111]
    """
    if m < 1:
        raise ValueError(f"m must be at least 1; got {m}.")
    like = vectors.uniform(vectors.widened("like", like))
    dtype = jnp.result_type(*jax.tree.leaves(like))
    return MFACWindow(vectors.empty_basis(like, m), jnp.zeros((m, m), dtype), jnp.asarray(-1, jnp.int32))
