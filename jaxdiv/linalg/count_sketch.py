"""CountSketch: each row is added, with a random sign, to one random bucket; E[Sᵀ S] = I.

References:
    Charikar, Chen and Farach-Colton (2004), Finding frequent items in data streams.
    Clarkson and Woodruff (2013), Low rank approximation and regression in input sparsity time, section 2.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdiv.core import checks
from jaxdiv.core.pytree import pytree_dataclass, static_field
from jaxdiv.core.types import Key


@pytree_dataclass
class CountSketch:
    """A sparse random map from n to m rows, with one entry ±1 a column.

    Attributes:
        signs: [n]
        buckets: The row to which each input row goes. [n]
        m: Rows of the result.
    """

    signs: Float[Array, " n"]
    buckets: Int[Array, " n"]
    m: int = static_field()

    def __call__(self, x: Float[Array, "n *rest"]) -> Float[Array, "m *rest"]:
        """Returns S x."""
        x = checks.floating("x", x)
        if x.ndim == 0 or x.shape[0] != self.signs.size:
            raise ValueError(f"x must have {self.signs.size} rows; got shape {x.shape}.")
        return jax.ops.segment_sum(self._signs(x) * x, self.buckets, num_segments=self.m)

    def transpose(self, y: Float[Array, "m *rest"]) -> Float[Array, "n *rest"]:
        """Returns Sᵀ y."""
        y = checks.floating("y", y)
        if y.ndim == 0 or y.shape[0] != self.m:
            raise ValueError(f"y must have {self.m} rows; got shape {y.shape}.")
        return self._signs(y) * y[self.buckets]

    def _signs(self, x: Array) -> Array:
        return self.signs.astype(x.dtype).reshape(-1, *[1] * (x.ndim - 1))


def count_sketch(n: int, m: int, *, key: Key) -> CountSketch:
    """Draws a CountSketch.

    Args:
        n: Rows of what is sketched.
        m: Rows of the result.
        key: Random key.

    Returns:
        A callable ``x [n, ...] -> S x [m, ...]`` with its `transpose`.

    Raises:
        ValueError: If n or m is not positive.

    Note:
        A product costs n a column. A subspace of dimension d is embedded with m of order d².

    References:
        Clarkson and Woodruff (2013), Low rank approximation and regression in input sparsity time.

    Example:
        >>> count_sketch(6, 4, key=jax.random.key(0))(jnp.ones((6, 2))).shape
        (4, 2)
    """
    checks.in_range("n", n, 1)
    checks.in_range("m", m, 1)
    signs_key, buckets_key = jax.random.split(key)
    return CountSketch(
        jax.random.rademacher(signs_key, (n,), jnp.float32),
        jax.random.randint(buckets_key, (n,), 0, m),
        m,
    )
