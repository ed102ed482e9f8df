"""The Gaussian sketch: S_ij ~ N(0, 1/m), so that E[Sᵀ S] = I.

References:
    Woodruff (2014), Sketching as a tool for numerical linear algebra, theorem 2.3.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiv.core import checks
from jaxdiv.core.pytree import pytree_dataclass
from jaxdiv.core.types import Key


@pytree_dataclass
class GaussianSketch:
    """A dense random map from n to m rows.

    Attributes:
        matrix: S. [m, n]
    """

    matrix: Float[Array, "m n"]

    def __call__(self, x: Float[Array, "n *rest"]) -> Float[Array, "m *rest"]:
        """Returns S x."""
        return _product(self.matrix, "x", x)

    def transpose(self, y: Float[Array, "m *rest"]) -> Float[Array, "n *rest"]:
        """Returns Sᵀ y."""
        return _product(self.matrix.T, "y", y)


def _product(matrix: Array, name: str, x: Array) -> Array:
    x = checks.floating(name, x)
    if x.ndim == 0 or x.shape[0] != matrix.shape[1]:
        raise ValueError(f"{name} must have {matrix.shape[1]} rows; got shape {x.shape}.")
    return jnp.tensordot(matrix.astype(x.dtype), x, axes=1, precision=jax.lax.Precision.HIGHEST)


def gaussian_sketch(n: int, m: int, *, key: Key) -> GaussianSketch:
    """Draws a Gaussian sketch.

    Args:
        n: Rows of what is sketched.
        m: Rows of the result.
        key: Random key.

    Returns:
        A callable ``x [n, ...] -> S x [m, ...]`` with its `transpose`.

    Raises:
        ValueError: If n or m is not positive.

    Note:
        Stores m n numbers; a product costs m n a column.

    References:
        Woodruff (2014), Sketching as a tool for numerical linear algebra, theorem 2.3.

    Example:
        >>> gaussian_sketch(8, 4, key=jax.random.key(0))(jnp.ones((8, 2))).shape
        (4, 2)
    """
    checks.in_range("n", n, 1)
    checks.in_range("m", m, 1)
    return GaussianSketch(jax.random.normal(key, (m, n)) / jnp.sqrt(m))
