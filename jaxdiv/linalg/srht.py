"""The subsampled randomized Hadamard transform, and the fast Walsh-Hadamard transform.

    S = m^{-1/2} R H D,   D random signs, H the Walsh-Hadamard matrix with entries ±1, R m sampled rows.

The n rows are padded with zeros to a power of two N. R samples without replacement (E[Sᵀ S] = I as with
it, and m = N leaves an orthogonal map).

References:
    Ailon and Chazelle (2009), The fast Johnson-Lindenstrauss transform.
    Tropp (2011), Improved analysis of the subsampled randomized Hadamard transform, section 1.
    Song, Ye, Yin and Zhang (2023), A nearly-optimal bound for fast regression with ℓ∞ guarantee.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdiv.core import checks
from jaxdiv.core.pytree import pytree_dataclass
from jaxdiv.core.types import Key


def walsh_hadamard(x: Float[Array, "n *rest"]) -> Float[Array, "n *rest"]:
    """Returns H x along the first axis, with H in Sylvester's order and entries ±1.

    Args:
        x: Floating, with n a power of two.

    Returns:
        H x; applied twice it gives n x.

    Raises:
        ValueError: If n is not a power of two.

    Note:
        log₂ n stages of n additions a column; the error grows as log n · eps.

    References:
        Fino and Algazi (1976), Unified matrix treatment of the fast Walsh-Hadamard transform.

    Example:
        >>> walsh_hadamard(jnp.array([1.0, 2.0, 3.0, 4.0]))
        Array([10., -2., -4.,  0.], dtype=float32)
    """
    x = checks.floating("x", x)
    shape = x.shape
    if not shape or shape[0] < 1 or shape[0] & (shape[0] - 1):
        raise ValueError(f"x must have a power of two of rows; got shape {shape}; pad it with zeros.")
    half = 1
    while half < shape[0]:
        x = x.reshape(-1, 2, half, *shape[1:])
        x = jnp.stack([x[:, 0] + x[:, 1], x[:, 0] - x[:, 1]], axis=1)
        half *= 2
    return x.reshape(shape)


@pytree_dataclass
class SRHT:
    """A structured random map from n to m rows.

    Attributes:
        signs: The diagonal of D. [n]
        rows: Which of the N rows of H are kept. [m]
    """

    signs: Float[Array, " n"]
    rows: Int[Array, " m"]

    def __call__(self, x: Float[Array, "n *rest"]) -> Float[Array, "m *rest"]:
        """Returns S x."""
        x = checks.floating("x", x)
        n = self.signs.size
        if x.ndim == 0 or x.shape[0] != n:
            raise ValueError(f"x must have {n} rows; got shape {x.shape}.")
        signs = self.signs.astype(x.dtype).reshape(n, *[1] * (x.ndim - 1))
        padded = jnp.pad(signs * x, [(0, _power_of_two(n) - n), *[(0, 0)] * (x.ndim - 1)])
        return walsh_hadamard(padded)[self.rows] / jnp.sqrt(jnp.asarray(self.rows.size, x.dtype))

    def transpose(self, y: Float[Array, "m *rest"]) -> Float[Array, "n *rest"]:
        """Returns Sᵀ y."""
        y = checks.floating("y", y)
        n, m = self.signs.size, self.rows.size
        if y.ndim == 0 or y.shape[0] != m:
            raise ValueError(f"y must have {m} rows; got shape {y.shape}.")
        like = jax.ShapeDtypeStruct((n, *y.shape[1:]), y.dtype)
        return jax.linear_transpose(self.__call__, like)(y)[0]


def srht(n: int, m: int, *, key: Key) -> SRHT:
    """Draws a subsampled randomized Hadamard transform.

    Args:
        n: Rows of what is sketched.
        m: Rows of the result, at most n rounded up to a power of two.
        key: Random key.

    Returns:
        A callable ``x [n, ...] -> S x [m, ...]`` with its `transpose`.

    Raises:
        ValueError: If n or m is out of range.

    Note:
        A product costs n log n a column and stores n signs.

    References:
        Tropp (2011), Improved analysis of the subsampled randomized Hadamard transform.

    Example:
        >>> srht(6, 4, key=jax.random.key(0))(jnp.ones((6, 2))).shape
        (4, 2)
    """
    checks.in_range("n", n, 1)
    checks.in_range("m", m, 1, _power_of_two(n))
    signs_key, rows_key = jax.random.split(key)
    rows = jax.random.choice(rows_key, _power_of_two(n), (m,), replace=False)
    return SRHT(jax.random.rademacher(signs_key, (n,), jnp.float32), rows)


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()
