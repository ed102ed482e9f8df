"""The hypergradient by a truncated Neumann series after the inner loop.

    v = a Σ_{k=0}^{K} Π_{i=1}^{k} (I − a H(b_i)) ∂F/∂y,    ∇Φ ≈ ∂F/∂x − J v

K = 0 puts 1/a in the place of H. At y = y*(x) and on all data, this is the derivative of the last K + 1 inner steps
y ← y − a ∂G/∂y. A bias of the order (1 − a μ)^{K+1} remains however many outer steps are taken.

References:
    Lorraine, Vicol, Duvenaud (2020), Optimizing millions of hyperparameters by implicit differentiation, section 3.
    Luketina, Berglund, Greff, Raiko (2016), Scalable gradient-based tuning of continuous regularization
    hyperparameters (T1−T2: K = 0).
    Ji, Yang, Liang (2021), Bilevel optimization: convergence analysis and enhanced design, algorithm 3.
    Ghadimi, Wang (2018), Approximation methods for bilevel programming, algorithm 3 (randomized).
"""

from jaxtyping import PyTree

from jaxdiv.bilevel.make_step import Estimate, Estimator, Loop
from jaxdiv.bilevel.series import hypergradient
from jaxdiv.core import checks
from jaxdiv.core.types import Numeric


def neumann(*, terms: int = 10, step_size: Numeric, randomized: bool = False) -> Estimator:
    """Sums the series, each factor on its own draw.

    Args:
        terms: K, the products of the sum; where randomized Q, the terms that one product stands for. Static.
        step_size: a, below 2 over the largest eigenvalue of H, and best at most 1 over it.
        randomized: Whether ``Q a Π_{i≤p} (I − a H(b_i)) ∂F/∂y`` with p uniform on 0, …, Q − 1 stands for the sum with
            K = Q − 1: the same mean, more variance, half the products. No reverse mode goes through it.

    Returns:
        The estimator. It has no state.

    Raises:
        ValueError: If `terms` is negative, or 0 where randomized; if `step_size` is not positive.

    References:
        Lorraine, Vicol, Duvenaud (2020), section 3; Ghadimi, Wang (2018), algorithm 3.

    Example:
        >>> from jaxdiv import bilevel
        >>> bilevel.neumann(terms=20, step_size=0.1)._fields
        ('init', 'estimate')
    """
    checks.in_range("terms", terms, 1 if randomized else 0)
    checks.in_range("step_size", step_size, 0, open_low=True)

    def estimate(loop: Loop, x: PyTree, state: PyTree) -> Estimate:
        inner = loop.solve(x)
        value, direction, _, products = hypergradient(
            loop.draws, loop.length, x, inner.value, terms=terms, step_size=step_size, randomized=randomized
        )
        counts = {"gradients": loop.length + 1, "products": products}
        return Estimate(inner, value, direction, state, counts)

    return Estimator(lambda x, y: (), estimate)


def t1_t2(step_size: Numeric) -> Estimator:
    """The series without products: ``∂F/∂x − a J ∂F/∂y``.

    Args:
        step_size: a, which stands for the inverse of H.

    Returns:
        The estimator. It has no state.

    Raises:
        ValueError: If `step_size` is not positive.

    References:
        Luketina, Berglund, Greff, Raiko (2016).

    Example:
        >>> from jaxdiv import bilevel
        >>> bilevel.t1_t2(0.1)._fields
        ('init', 'estimate')
    """
    return neumann(terms=0, step_size=step_size)
