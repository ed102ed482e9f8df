r"""f-divergences `D_f(P‖Q) = E_Q[f(r)]`, `r = P/Q`, from one generator.

`f` is convex with `f(1) = 0`. Everything is a function of the log-ratio `l = log r`:

    D_f on logits         sum_i Q_i f(r_i)  where r_i <= 1,   P_i f(r_i) / r_i  where r_i > 1
    pseudo-reward         -f'(r)              gradient of D_f(P‖Q) in P by REINFORCE
    score weight          h(r) = r^2 f''(r)   weight of the score difference in the gradient of D_f
    conjugate             f*(y) = sup_{r >= 0} r y - f(r),  its derivative is the maximizer
    swapped arguments     D_f(Q‖P) = D_g(P‖Q),  g(r) = r f(1/r)

Terms are those of the centered `f(r) - f'(1) (r - 1)`, which is the same divergence with every term
nonnegative. `f`, `f_prime` and `conjugate` are those of the f in the table of `generators`.

References:
    Csiszár (1967), Information-type measures of difference of probability distributions.
    Nowozin, Cseke, Tomioka (2016), f-GAN, arXiv 1606.00709.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxdiv.core import checks
from jaxdiv.core.types import Numeric
from jaxdiv.divergences.from_f import generator_from_f, mirrored
from jaxdiv.divergences.generator import Generator
from jaxdiv.divergences.log_ratio import bounded_exp, continued
from jaxdiv.divergences.scalar_root import increasing_root


@dataclasses.dataclass(frozen=True)
class FDivergence:
    """An f-divergence; a pytree whose leaves are its numeric options.

    Two divergences that differ in an option only share one compiled function, and the option may be
    traced. Build one by name with `get`, by a constructor such as `skewed_kl`, or from any convex f
    with `FDivergence.from_f`.

    Attributes:
        name: Its name in the table.
        generator: The centered f.
        mirror: The centered ``r f(1/r)``.
        mirror_name: The name with swapped arguments.
        options: Numeric options of the generators.

    Note:
        A factor ``f(r)`` or ``f(r)/r`` is followed up to about the root of the largest float and goes
        on linearly in the log-ratio, so logits of any finite size give finite, monotone values and
        gradients. A probability is exactly 0 only at a logit of -inf: the value is then +inf where D_f
        is, and the gradient with respect to that logit is 0.

    Example:
        >>> from jaxdiv import divergences
        >>> p, q = jnp.array([0.0, 0.0]), jnp.array([jnp.log(3.0), 0.0])
        >>> kl = divergences.get("kl")
        >>> print(f"{kl.on_logits(p, q):.4f} {kl.adjoint().on_logits(q, p):.4f}")
        0.1438 0.1438
        >>> square = FDivergence.from_f(lambda r: (r - 1) ** 2)
        >>> print(f"{square.on_logits(p, q):.4f}")
        0.3333
    """

    name: str
    generator: Generator
    mirror: Generator
    mirror_name: str
    options: tuple[Numeric, ...] = ()

    @staticmethod
    def from_f(
        f: Callable[..., Float[Array, ""]],
        *options: Numeric,
        name: str = "from_f",
    ) -> "FDivergence":
        """Builds a divergence from a convex f of the ratio.

        Args:
            f: Convex, ``f(1) = 0``, written in jax.numpy, elementwise; called as ``f(r, *options)``
                with r > 0.
            *options: Numeric options of f; they may be traced and differentiated.
            name: Its name in messages.

        Returns:
            The divergence. f' and f'' come from automatic differentiation, the limits at 0 and
            infinity from f at the ends of the floating range, the conjugate from a root of f'.

        Raises:
            ValueError: If ``f(1)`` is known and not 0.

        Note:
            Near equality it has the rounding of `f`: a formula whose terms cancel at r = 1 loses there
            the digits that the table's generators keep. Factors are followed up to the fourth root of
            the largest float, where derivatives of f still fit, and go on linearly from there.
        """
        at_one = f(jnp.ones(()), *options)
        if checks.concrete(at_one) and not abs(float(at_one)) < 1e-5:
            raise ValueError(f"f(1) must be 0; got {float(at_one):g}; subtract f(1) from f.")
        generator, mirror = generator_from_f(f), generator_from_f(mirrored(f))

        return FDivergence(name, generator, mirror, f"{name}_adjoint", options)

    def adjoint(self) -> "FDivergence":
        """The divergence with swapped arguments: ``D_f(Q‖P)`` as a function of (P, Q)."""
        return FDivergence(self.mirror_name, self.mirror, self.generator, self.name, self.options)

    @property
    def at_zero(self) -> Float[Array, ""]:
        """``f(0)``, the price of a class that P lacks; may be inf."""
        options = self._options(None)
        return jnp.asarray(self.generator.at_zero(*options) - self.generator.slope(*options))

    @property
    def at_infinity(self) -> Float[Array, ""]:
        """``lim f(r)/r = f'(inf)``, the price of a class that Q lacks; may be inf."""
        options = self._options(None)
        return jnp.asarray(self.mirror.at_zero(*options) + self.generator.slope(*options))

    def f(self, log_ratio: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """Returns ``f(r)`` at ``r = exp(log_ratio)``, [*n]."""
        log_ratio = checks.floating("log_ratio", log_ratio)
        slope = self.generator.slope(*self._options(log_ratio.dtype))
        near = log_ratio < 1.0
        excess = jnp.where(near, jnp.expm1(jnp.where(near, log_ratio, 0.0)), bounded_exp(log_ratio) - 1.0)
        return self._centered(log_ratio) + slope * excess

    def f_prime(self, log_ratio: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """Returns ``f'(r)`` at ``r = exp(log_ratio)``, [*n]; the limits at infinite log-ratios."""
        x = checks.floating("log_ratio", log_ratio)
        g, options = self.generator, self._options(x.dtype)
        up, finite = x > 0, jnp.isfinite(x)
        rise = continued(lambda a: g.f_prime(a, *options), jnp.where(up & finite, x, 0.0))
        fall = continued(lambda a: -g.f_prime(-a, *options), jnp.where(up | ~finite, 0.0, -x))
        centered = jnp.where(up, rise, -fall)
        centered = jnp.where(x == jnp.inf, self.mirror.at_zero(*options), centered)
        centered = jnp.where(x == -jnp.inf, g.prime_at_zero(*options), centered)
        return jnp.where(jnp.isnan(x), x, centered) + g.slope(*options)

    def f_second(self, log_ratio: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """Returns ``f''(r)`` at ``r = exp(log_ratio)``, [*n]."""
        x = _clipped(checks.floating("log_ratio", log_ratio))
        return bounded_exp(self.log_score_weight(x) - 2.0 * x)

    def pseudo_reward(self, log_ratio: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """Returns ``-f'(r)``: REINFORCE with it on samples of P descends ``D_f(P‖Q)``.

        Args:
            log_ratio: log P - log Q of the samples, [*n].

        Returns:
            Rewards, [*n]. A constant may be added: f and ``f + c (r - 1)`` are one divergence.

        References:
            Go et al. (2023), Aligning language models with preferences through f-divergence
            minimization, arXiv 2302.08215, theorem 1.
        """
        return -self.f_prime(log_ratio)

    def log_score_weight(self, log_ratio: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """Returns ``log h``, the logarithm of `score_weight`, [*n]; -inf where h is 0."""
        x = _clipped(checks.floating("log_ratio", log_ratio))
        return self.generator.log_weight(x, *self._options(x.dtype))

    def score_weight(self, log_ratio: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """Returns ``h(r) = r^2 f''(r)``, the weight of ``grad log P - grad log Q`` in descent on Q.

        Args:
            log_ratio: log P - log Q of the samples, [*n].

        Returns:
            Nonnegative weights, [*n]; linear in the log-ratio past the root of the largest float.

        References:
            Xu et al. (2025), One-step diffusion models with f-divergence distribution matching,
            arXiv 2502.15681.
        """
        return bounded_exp(self.log_score_weight(log_ratio))

    def conjugate(
        self, y: Float[Array, "*n"], *, domain: Literal["positive", "real"] = "positive"
    ) -> Float[Array, "*n"]:
        """Returns ``f*(y) = sup_r r y - f(r)``; its derivative is the maximizer.

        Args:
            y: Slopes, [*n].
            domain: "positive" takes the supremum over r >= 0, "real" over all reals, which is
                defined for an f that extends to them (`tv`, `pearson_chi2`).

        Returns:
            Values, [*n]: ``-f(0)`` for ``y <= f'(0)``, +inf for ``y > f'(inf)``.

        Raises:
            ValueError: If `domain` is unknown, or "real" and f does not extend to the reals.
        """
        y = checks.floating("y", y)
        g, options = self.generator, self._options(y.dtype)
        slope = g.slope(*options)
        y = y - slope
        if checks.one_of("domain", domain, ("positive", "real")) == "real":
            if g.real_conjugate is None:
                raise ValueError(
                    f"domain='real' needs an f on all reals; {self.name} has r >= 0 only; "
                    "use domain='positive'."
                )
            return g.real_conjugate(y, *options) + slope
        low, high = g.prime_at_zero(*options), self.mirror.at_zero(*options)
        inside = (y > low) & (y < high)
        if g.conjugate:
            value = g.conjugate(jnp.where(inside, y, 0.0), *options)
        else:
            # An f that is linear from some r on has the slope f'(inf) already there.
            x = self._log_maximizer(jnp.where((y > low) & (y <= high), y, 0.0))
            inside = inside | ((y == high) & (x < self._end(y.dtype)))
            x = jnp.where(inside, x, 0.0)
            value = jnp.exp(x) * jnp.where(inside, y, 0.0) - self._centered(x)
        # At y = f'(inf) the supremum is the limit of r f'(r) - f(r), which is -g'(0) of the mirror g.
        outer = jnp.where(y == high, -self.mirror.prime_at_zero(*options), jnp.inf)
        outer = jnp.where(y <= low, -jnp.asarray(g.at_zero(*options)), outer)
        outer = jnp.where(jnp.isnan(y), y, outer)
        return jnp.where(inside, value, outer) + slope

    def conjugate_prime(self, y: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """Returns the maximizer r >= 0 of ``r y - f(r)``, [*n]: 0 up to f'(0), inf from f'(inf) on."""
        y = checks.floating("y", y)
        g, options = self.generator, self._options(y.dtype)
        y = y - g.slope(*options)
        low, high = g.prime_at_zero(*options), self.mirror.at_zero(*options)
        inner = jnp.where((y > low) & (y < high), y, 0.0)
        if g.conjugate is None:
            maximizer = jnp.exp(self._log_maximizer(inner))
        else:
            conjugate = g.conjugate
            _, maximizer = jax.jvp(lambda y: conjugate(y, *options), (inner,), (jnp.ones_like(inner),))
        maximizer = jnp.where(y <= low, 0.0, maximizer)
        return jnp.where(y >= high, jnp.inf, jnp.where(jnp.isnan(y), y, maximizer))

    def on_logits(
        self,
        p_logits: Float[Array, "..."],
        q_logits: Float[Array, "..."],
        *,
        where: Bool[Array, "..."] | None = None,
        axis: int = -1,
    ) -> Float[Array, "..."]:
        """Returns ``D_f(P‖Q)`` of two categorical distributions.

        Args:
            p_logits: Unnormalized log-probabilities of P, [*, classes] with the classes on `axis`.
            q_logits: The same of Q, in the shape of `p_logits`.
            where: Classes to keep, broadcastable to the logits; others are removed from both
                distributions. A row without classes has divergence 0.
            axis: The class axis.

        Returns:
            Divergences of the leading axes, [*], in float32 or float64.

        Raises:
            ValueError: If the logits are not floating, differ in shape or have no class.
        """
        p_logits, q_logits = (
            checks.floating("p_logits", p_logits),
            checks.floating("q_logits", q_logits),
        )
        checks.same_shape(p_logits=p_logits, q_logits=q_logits)
        checks.not_empty("p_logits", p_logits)
        if p_logits.ndim == 0 or not -p_logits.ndim <= axis < p_logits.ndim:
            raise ValueError(f"axis must be an axis of the logits {p_logits.shape}; got {axis}.")
        terms = self._terms(
            _log_probabilities(p_logits, where, axis), _log_probabilities(q_logits, where, axis)
        )
        return jnp.sum(terms, axis=axis)

    def integrand(self, log_p: Float[Array, "*n"], log_q: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """Returns the centered ``f(r) >= 0``, whose mean under Q is ``D_f(P‖Q)``, [*n].

        Args:
            log_p: Log-density of P, [*n]; -inf outside its support.
            log_q: Log-density of Q, [*n].
        """
        no_p, no_q = log_p == -jnp.inf, log_q == -jnp.inf
        x = jnp.where(no_p | no_q, 0.0, log_p) - jnp.where(no_p | no_q, 0.0, log_q)
        options = self._options(x.dtype)
        value = jnp.where(no_p, self.generator.at_zero(*options), self._centered(x))
        value = jnp.where(no_q, jnp.inf, value)
        return jnp.where(no_p & no_q, 0.0, value)

    def _options(self, dtype: jnp.dtype | None) -> tuple[Array, ...]:
        return tuple(jnp.asarray(option, dtype) for option in self.options)

    def _centered(self, x: Float[Array, "*n"]) -> Float[Array, "*n"]:
        options = self._options(x.dtype)
        low, high = self.generator.below, self.mirror.below
        up = x > 0
        rise = continued(lambda a: jnp.exp(a) * high(a, *options), jnp.where(up, x, 0.0))
        fall = continued(lambda a: low(a, *options), jnp.where(up, 0.0, -x))
        return jnp.where(up, rise, fall)

    def _terms(self, log_p: Float[Array, "*n"], log_q: Float[Array, "*n"]) -> Float[Array, "*n"]:
        options = self._options(log_p.dtype)
        no_p, no_q = log_p == -jnp.inf, log_q == -jnp.inf
        p, q = jnp.exp(log_p), jnp.exp(log_q)
        x = jnp.where(no_p | no_q, 0.0, log_p) - jnp.where(no_p | no_q, 0.0, log_q)
        up = x > 0
        low = continued(lambda a: self.generator.below(a, *options), jnp.where(up, 0.0, -x))
        high = continued(lambda a: self.mirror.below(a, *options), jnp.where(up, x, 0.0))
        terms = jnp.where(up, p * high, q * low)
        terms = jnp.where(no_p, _charge(q, self.generator.at_zero(*options)), terms)
        terms = jnp.where(no_q, _charge(p, self.mirror.at_zero(*options)), terms)
        return jnp.where(no_p & no_q, 0.0, terms)

    def _log_maximizer(self, y: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """The root in l of ``f'(exp(l)) = y``, for the centered f."""
        options = self._options(y.dtype)

        def excess(x: Array) -> Array:
            prime = self.generator.f_prime(x, *options)
            # Far out, a derivative of the user's f may be inf - inf; f' increases.
            return jnp.where(jnp.isnan(prime), jnp.sign(x) * jnp.inf, prime) - y

        end = jnp.full_like(y, self._end(y.dtype))
        return increasing_root(excess, -end, end)

    @staticmethod
    def _end(dtype: jnp.dtype) -> float:
        """The largest log-ratio whose exponential is a float, rounded down."""
        return 0.999 * math.log(float(jnp.finfo(dtype).max))


jax.tree_util.register_dataclass(
    FDivergence,
    data_fields=["options"],
    meta_fields=["name", "generator", "mirror", "mirror_name"],
)


def _clipped(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Infinite log-ratios, made finite so that their multiples may be subtracted."""
    return jnp.clip(x, -1e9, 1e9)


def _charge(mass: Float[Array, "*n"], price: Numeric) -> Float[Array, "*n"]:
    """Mass times a price that may be infinite, without the gradient inf."""
    price = jnp.asarray(price, mass.dtype)
    free = jnp.isinf(price)
    return jnp.where(free, jnp.inf, mass * jnp.where(free, 0.0, price))


def _log_probabilities(
    logits: Float[Array, "..."], where: Bool[Array, "..."] | None, axis: int
) -> Float[Array, "..."]:
    if where is None:
        return jax.nn.log_softmax(logits, axis=axis)
    where = jnp.broadcast_to(where, logits.shape)
    some = jnp.any(where, axis=axis, keepdims=True)
    log_p = jax.nn.log_softmax(jnp.where(where, logits, jnp.where(some, -jnp.inf, 0.0)), axis=axis)
    return jnp.where(where, log_p, -jnp.inf)


def weighted_mean(x: Float[Array, "*b n"], weights: Float[Array, "*b n"] | None) -> Float[Array, "*b"]:
    """Returns the mean over the last axis; a weight of 0 removes a sample, infinite values included."""
    checks.not_empty("the samples", x)
    if weights is None:
        return jnp.mean(x, axis=-1)
    weights = jnp.asarray(weights).astype(x.dtype)
    if weights.shape != x.shape:
        raise ValueError(f"weights must have the samples' shape {x.shape}; got {weights.shape}.")
    x = jnp.where(weights > 0, x, 0.0)
    return jnp.sum(weights * x, axis=-1) / jnp.sum(weights, axis=-1)
