"""f-divergences: contract, every generator against its textbook f in float64, parity, limits, masks."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.spatial.distance
import scipy.special
import scipy.stats
from absl.testing import parameterized

from jaxdiv import divergences
from jaxdiv.testing import divergences as contract

LOG2 = np.log(2.0)
ALPHA, SKEW = 0.3, 0.2
OPTIONS = {"alpha": ALPHA, "skewed_js": SKEW, "skewed_kl": SKEW, "skewed_reverse_kl": SKEW}

# f(r) as papers write it; nothing here is shared with the library.
TEXTBOOK = {
    "kl": lambda r: r * jnp.log(r),
    "reverse_kl": lambda r: -jnp.log(r),
    "js": lambda r: 0.5 * (r * jnp.log(r) - (r + 1) * jnp.log((r + 1) / 2)),
    "js2": lambda r: r * jnp.log(r) - (r + 1) * jnp.log((r + 1) / 2),
    "jeffreys": lambda r: (r - 1) * jnp.log(r),
    "softened_reverse_kl": lambda r: (r + 1) * jnp.log(0.5 + 0.5 / r),
    "softened_kl": lambda r: (r + 1) * jnp.log((r + 1) / 2),
    "squared_hellinger": lambda r: 1 - jnp.sqrt(r),
    "tv": lambda r: 0.5 * jnp.abs(r - 1),
    "pearson_chi2": lambda r: (r - 1) ** 2,
    "neyman_chi2": lambda r: (r - 1) ** 2 / r,
    "le_cam": lambda r: (r - 1) ** 2 / (2 * (r + 1)),
    "alpha": lambda r, a=ALPHA: (r**a - a * r - (1 - a)) / (a * (a - 1)),
    "skewed_kl": lambda r, a=SKEW: r * jnp.log(r / (a * r + 1 - a)),
    "skewed_reverse_kl": lambda r, a=SKEW: -jnp.log(a + (1 - a) * r),
    "skewed_js": lambda r, a=SKEW: a * r * jnp.log(r) - (a * r + 1 - a) * jnp.log(a * r + 1 - a),
}
# f(0) and f'(inf), by hand.
LIMITS = {
    "kl": (0, np.inf),
    "reverse_kl": (np.inf, 0),
    "js": (LOG2 / 2, LOG2 / 2),
    "js2": (LOG2, LOG2),
    "jeffreys": (np.inf, np.inf),
    "softened_reverse_kl": (np.inf, -LOG2),
    "softened_kl": (-LOG2, np.inf),
    "squared_hellinger": (1, 0),
    "tv": (0.5, 0.5),
    "pearson_chi2": (1, np.inf),
    "neyman_chi2": (np.inf, 1),
    "le_cam": (0.5, 0.5),
    "alpha": (1 / ALPHA, 1 / (1 - ALPHA)),
    "skewed_kl": (0, -np.log(SKEW)),
    "skewed_reverse_kl": (-np.log(SKEW), 0),
    "skewed_js": (-(1 - SKEW) * np.log(1 - SKEW), -SKEW * np.log(SKEW)),
}
SYMMETRIC = {"js", "js2", "jeffreys", "squared_hellinger", "tv", "le_cam"}
PLAIN = [name for name in divergences.NAMES if name not in OPTIONS]
each_name = pytest.mark.parametrize("name", divergences.NAMES)

# Few shapes: without jit every shape compiles its operations, which all generators then share.
MATRIX_P, MATRIX_Q = np.random.default_rng(0).dirichlet(np.ones(5), (2, 3))
P, Q = jnp.log(jnp.asarray(MATRIX_P, jnp.float32)), jnp.log(jnp.asarray(MATRIX_Q, jnp.float32))


def get(name):
    return divergences.get(name, **({"alpha": OPTIONS[name]} if name in OPTIONS else {}))


on_logits = jax.jit(lambda divergence, p, q: divergence.on_logits(p, q))


def softmax(z):
    return scipy.special.softmax(np.asarray(z, np.float64), axis=-1)


# --- the contract


def by_name(name):
    # Not a partial: chex wants a function's name and source.
    return lambda p, q, *option: divergences.get(
        name, **dict(zip(("alpha",), option, strict=False))
    ).on_logits(p, q)


KL = divergences.get("kl")
BAD = (
    lambda: KL.on_logits(jnp.ones((3, 5)), jnp.ones((3, 4))),
    lambda: KL.on_logits(jnp.ones((3, 5)), jnp.ones(5)),
    lambda: KL.on_logits(jnp.ones((3, 0)), jnp.ones((3, 0))),
    lambda: KL.on_logits(jnp.ones((3, 5)), jnp.ones((3, 5)), axis=2),
    lambda: KL.on_logits(jnp.ones(()), jnp.ones(())),
    lambda: KL.on_logits(jnp.ones((3, 5)), jnp.ones((3, 5), jnp.int32)),
)
MEMBERS = {
    name: contract.Member(
        name,
        by_name(name),
        option=OPTIONS.get(name),
        symmetric=name in SYMMETRIC,
        unbounded=tuple(bool(np.isinf(x)) for x in LIMITS[name]),
        bad=BAD if name == "kl" else (),
    )
    for name in divergences.NAMES
}


def scaled_le_cam(r, scale):
    return scale * (r - 1) ** 2 / (2 * (r + 1))


FROM_F = contract.Member(
    "from_f",
    lambda p, q, scale: divergences.FDivergence.from_f(scaled_le_cam, scale).on_logits(p, q),
    option=0.7,
    symmetric=True,
    unbounded=(False, False),
)
SAMPLES = contract.Member("from_samples", lambda p, q: divergences.from_samples(divergences.get("js"), p, q))
# These are compiled; the others differ in their generator alone, whose single operations are compiled once
# for all of them.
KINDS = [MEMBERS["kl"], FROM_F]


class TestContract(chex.TestCase):
    @chex.variants(with_jit=True)
    @parameterized.named_parameters(contract.contract(KINDS, contract.CHECKS))
    def test_compiled(self, check, member):
        check(member, self.variant)

    @chex.variants(without_jit=True)
    @parameterized.named_parameters(contract.contract([*KINDS, SAMPLES], contract.CALLS))
    def test_eager(self, check, member):
        check(member, self.variant)

    @chex.variants(without_jit=True)
    @parameterized.named_parameters(contract.contract([*MEMBERS.values(), FROM_F], contract.SIMPLEX))
    def test_simplex(self, check, member):
        check(member, self.variant)

    @chex.variants(with_jit=True)
    @parameterized.named_parameters(contract.contract([SAMPLES], contract.TRANSFORMS))
    def test_samples(self, check, member):
        check(member, self.variant)


# --- the table, in float64

LOG_RATIOS = np.array(
    [[-3.0, -1.5, -0.7, -0.2, -1e-3], [1e-3, 0.3, 0.9, 1.7, 2.5], [-2.0, -0.4, 0.1, 0.5, 1.2]]
)


@functools.cache
def table_row(name):
    """Everything a generator gives, with the textbook's f and its derivatives.

    Not compiled: single operations are shared by all generators, whole programs are not.
    """
    f = TEXTBOOK[name]

    def evaluate(x, log_p, log_q):
        d, r = get(name), jnp.exp(x)
        prime = lambda r: jax.jvp(f, (r,), (jnp.ones_like(r),))[1]  # noqa: E731
        second = lambda r: jax.jvp(prime, (r,), (jnp.ones_like(r),))[1]  # noqa: E731
        slopes = d.f_prime(x)
        adjoint = d.adjoint()
        ours = {
            "f": d.f(x),
            "f_prime": slopes,
            "f_second": d.f_second(x),
            "score_weight": d.score_weight(x),
            "log_score_weight": jnp.exp(d.log_score_weight(x)),
            "pseudo_reward": d.pseudo_reward(x),
            "integrand": d.integrand(x + log_q, log_q),
            "adjoint": adjoint.f(-x),
            "adjoint_score_weight": adjoint.score_weight(-x),
            "on_logits": d.on_logits(log_p, log_q),
            "adjoint_on_logits": adjoint.on_logits(log_q, log_p),
        }
        value = (jnp.exp(log_q) * f(jnp.exp(log_p - log_q))).sum(-1)
        theirs = {
            "f": f(r),
            "f_prime": prime(r),
            "f_second": second(r),
            "score_weight": r**2 * second(r),
            "log_score_weight": r**2 * second(r),
            "pseudo_reward": -prime(r),
            "integrand": f(r) - (0.0 if name == "tv" else prime(jnp.ones_like(r))) * (r - 1),
            "adjoint": f(r) / r,
            "adjoint_score_weight": r * second(r),
            "on_logits": value,
            "adjoint_on_logits": value,
        }
        low, high = d.f_prime(jnp.array([-jnp.inf, jnp.inf]))
        # One call, since a numeric conjugate is compiled at each: slopes inside, then at both ends.
        y = slopes.at[2, 1:].set(jnp.stack([low - 1.0, low, high, high + 1.0]))
        if name == "skewed_js":  # a sum of two whose root is differentiated anyway
            conjugate, derivative = d.conjugate(y), r
        else:
            conjugate, pull = jax.vjp(d.conjugate, y)
            derivative = pull(jnp.ones_like(x))[0]
        closed = d.generator.conjugate is not None or name == "jeffreys"
        at_slopes = conjugate, d.conjugate_prime(slopes) if closed else r, derivative
        return ours, theirs, at_slopes, (d.at_zero, d.at_infinity, low, high)

    with jax.enable_x64(True):
        out = evaluate(jnp.asarray(LOG_RATIOS), jnp.log(MATRIX_P), jnp.log(MATRIX_Q))
        return jax.tree.map(np.asarray, out)


@each_name
class TestTable:
    def test_is_the_textbook(self, name):
        """f, f', f'', h and D_f against automatic differentiation of the plain formula."""
        ours, theirs, *_ = table_row(name)
        for key in ours:
            # The formulas cancel at r = 1 +- 1e-3, by f / f'' ~ 1e-6 of the rounding.
            np.testing.assert_allclose(ours[key], theirs[key], rtol=1e-8, atol=1e-14, err_msg=key)

    def test_limits(self, name):
        _, _, (conjugate, *_), (at_zero, at_infinity, low, high) = table_row(name)
        ends = conjugate[2, 1:]
        np.testing.assert_allclose((at_zero, at_infinity), LIMITS[name], rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(high, LIMITS[name][1], rtol=1e-12, atol=1e-15)
        r = 1e-250 if np.isinf(low) else 1e-12
        with jax.enable_x64(True):
            slope = float(jax.grad(TEXTBOOK[name])(jnp.float64(r)))
        if np.isinf(low):
            assert slope < -50
        else:
            np.testing.assert_allclose(low, slope, rtol=1e-6)
        assert ends[3] == np.inf
        np.testing.assert_allclose(ends[:2], -LIMITS[name][0], rtol=1e-12, atol=1e-15)

    def test_conjugate_is_a_supremum(self, name):
        """A grid search with the plain formula, and the equality of Fenchel and Young."""
        ours, _, (conjugate, maximizer, derivative), _ = table_row(name)
        y, f, r = ours["f_prime"], ours["f"], np.exp(LOG_RATIOS)
        if name != "tv":  # whose maximizer is 1 between its two slopes and not unique at them
            np.testing.assert_allclose(maximizer, r, rtol=1e-7)
            np.testing.assert_allclose(derivative.ravel()[:11], r.ravel()[:11], rtol=1e-7)
        conjugate, y, f, r = (x.ravel()[:11] for x in (conjugate, y, f, r))
        with jax.enable_x64(True):
            grid = np.exp(np.linspace(-9.0, 6.0, 20001))
            values = np.asarray(TEXTBOOK[name](jnp.asarray(grid)))
        brute = np.max(y[..., None] * grid - values, axis=-1)
        np.testing.assert_allclose(conjugate, brute, rtol=2e-6, atol=2e-4 if name == "tv" else 1e-6)
        assert np.all(conjugate >= brute - 1e-12)
        np.testing.assert_allclose(conjugate, r * y - f, rtol=1e-9, atol=1e-12)


# What each D_f is, in terms of probabilities.
def kl(p, q):
    return scipy.special.rel_entr(p, q).sum(-1)


MEANING = {
    "kl": kl,
    "reverse_kl": lambda p, q: kl(q, p),
    "js": lambda p, q: scipy.spatial.distance.jensenshannon(p, q, axis=-1) ** 2,
    "js2": lambda p, q: kl(p, (p + q) / 2) + kl(q, (p + q) / 2),
    "jeffreys": lambda p, q: kl(p, q) + kl(q, p),
    "softened_reverse_kl": lambda p, q: 2 * kl((p + q) / 2, p),
    "softened_kl": lambda p, q: 2 * kl((p + q) / 2, q),
    "squared_hellinger": lambda p, q: 1 - np.sqrt(p * q).sum(-1),
    "tv": lambda p, q: scipy.spatial.distance.cdist(p, q, "cityblock").diagonal() / 2,
    "pearson_chi2": lambda p, q: scipy.stats.chisquare(p, q, axis=-1, sum_check=False).statistic,
    "neyman_chi2": lambda p, q: scipy.stats.power_divergence(p, q, axis=-1, lambda_=-2).statistic,
    "le_cam": lambda p, q: ((p - q) ** 2 / (p + q)).sum(-1) / 2,
    "alpha": lambda p, q: scipy.stats.power_divergence(p, q, axis=-1, lambda_=ALPHA - 1).statistic / 2,
    "skewed_kl": lambda p, q: kl(p, SKEW * p + (1 - SKEW) * q),
    "skewed_reverse_kl": lambda p, q: kl(q, SKEW * q + (1 - SKEW) * p),
    "skewed_js": lambda p, q: (
        SKEW * kl(p, SKEW * p + (1 - SKEW) * q) + (1 - SKEW) * kl(q, SKEW * p + (1 - SKEW) * q)
    ),
}


@each_name
def test_means_what_it_says(name):
    """Also by scipy: rel_entr, jensenshannon, chisquare, power_divergence."""
    ours = table_row(name)[0]["on_logits"]
    np.testing.assert_allclose(ours, MEANING[name](MATRIX_P, MATRIX_Q), rtol=1e-9)


def test_table_is_complete():
    assert set(divergences.NAMES) == set(TEXTBOOK) == set(LIMITS) == set(MEANING)
    assert isinstance(get("kl").generator, divergences.Generator)
    for name in PLAIN:
        d = get(name)
        assert (d.name, d.adjoint().adjoint()) == (name, d)
        assert (d.adjoint() == d) == (name in SYMMETRIC - {"squared_hellinger"})
    assert divergences.skewed_kl(0.3).adjoint() == divergences.skewed_reverse_kl(0.3)
    assert divergences.skewed_js(0.3) == divergences.get("skewed_js", alpha=0.3)


@pytest.mark.parametrize("name", ["tv", "pearson_chi2"])
def test_real_conjugate(name):
    """The supremum over all reals, of the formula as it stands."""
    y = np.array([-9.0, -2.5, -0.5, -0.2, 0.3, 0.5, 0.7, 4.0])
    grid = np.linspace(-20.0, 20.0, 40001)
    brute = np.max(y[:, None] * grid - np.asarray(TEXTBOOK[name](grid)), axis=1)
    if name == "tv":
        brute = np.where(np.abs(y) > 0.5, np.inf, brute)
    with jax.enable_x64(True):
        np.testing.assert_allclose(get(name).conjugate(jnp.asarray(y), domain="real"), brute, atol=1e-6)


def test_inequalities_between_them():
    """Pinsker, Le Cam, Lin, Gibbs-Su and the orders that tie the scales of the table together."""
    rng = np.random.default_rng(3)
    z = rng.normal(size=(2, 49, 3)) * np.geomspace(0.1, 12, 49)[:, None]
    p, q = jnp.asarray(z, jnp.float32)
    d = {name: np.asarray(get(name).on_logits(p, q), np.float64) for name in divergences.NAMES}
    slack = 1e-5

    def less(a, b):
        assert np.all(a <= b * (1 + slack) + slack)

    less(2 * d["tv"] ** 2, d["kl"])
    less(d["squared_hellinger"], d["tv"])
    less(d["tv"], np.sqrt(d["squared_hellinger"] * (2 - d["squared_hellinger"])))
    less(d["js"], LOG2 * d["tv"])
    less(d["le_cam"], d["tv"])
    less(d["kl"], np.log1p(d["pearson_chi2"]))
    less(d["skewed_kl"], np.minimum((1 - SKEW) * d["kl"], -np.log(SKEW)))
    less(d["skewed_js"], -SKEW * np.log(SKEW) - (1 - SKEW) * np.log(1 - SKEW))
    np.testing.assert_allclose(d["jeffreys"], d["kl"] + d["reverse_kl"], rtol=1e-4)
    np.testing.assert_allclose(d["js2"], 2 * d["js"], rtol=1e-5)


def test_parity_with_optax():
    log_p, log_q = jax.nn.log_softmax(P), jax.nn.log_softmax(Q)
    ours, pull = jax.vjp(KL.on_logits, P, Q)
    theirs, push = jax.vjp(
        lambda p, q: optax.losses.kl_divergence_with_log_targets(
            jax.nn.log_softmax(q), jax.nn.log_softmax(p)
        ),
        P,
        Q,
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    np.testing.assert_allclose(ours, optax.losses.kl_divergence(log_q, jnp.exp(log_p)), rtol=1e-5)
    for a, b in zip(pull(jnp.ones(3)), push(jnp.ones(3)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


# --- numerics


@each_name
def test_boundary_values(name):
    """Every pair of faces, in closed form: Q f(0) for a class P lacks, P f'(inf) for one Q lacks."""
    p_logits, q_logits = contract.simplex_faces()
    p, q = softmax(p_logits), softmax(q_logits)
    at_zero, at_infinity = LIMITS[name]
    both = (p > 0) & (q > 0)
    with jax.enable_x64(True):
        ratio = jnp.asarray(np.where(both, p, 1.0) / np.where(both, q, 1.0))
        terms = np.where(both, q * np.asarray(TEXTBOOK[name](ratio)), 0.0)
    with np.errstate(invalid="ignore"):
        terms = np.where((p == 0) & (q > 0), q * at_zero, terms)
        terms = np.where((q == 0) & (p > 0), p * at_infinity, terms)
    value = get(name).on_logits(*(jnp.asarray(x, jnp.float32) for x in (p_logits, q_logits)))
    np.testing.assert_allclose(value, terms.sum(-1), rtol=1e-5, atol=1e-6)


@each_name
def test_gradient_in_the_logits(name):
    """Of P: p (f' - E_p f'); of Q: q (g - E_q g) with g = f - r f'. Float32, on random pairs."""
    rng = np.random.default_rng(5)
    z = rng.normal(size=(2, 49, 3))
    p, q = softmax(z)
    r = p / q
    with jax.enable_x64(True):
        f, slope = jax.jvp(TEXTBOOK[name], (jnp.asarray(r),), (jnp.ones_like(r),))
        f, slope = np.asarray(f), np.asarray(slope)
    value, pull = jax.vjp(get(name).on_logits, *jnp.asarray(z, jnp.float32))
    gradients = pull(jnp.ones_like(value))
    for gradient, weight, inner in zip(gradients, (p, q), (slope, f - r * slope), strict=True):
        expected = weight * (inner - (weight * inner).sum(-1, keepdims=True))
        scale = np.abs(expected).max(-1, keepdims=True)
        np.testing.assert_allclose(gradient / scale, expected / scale, atol=2e-5)


@each_name
def test_functions_of_extreme_log_ratios(name):
    """Finite and monotone up to 1e4 in float32; limits, never NaN, at infinity."""
    side = np.geomspace(1e-3, 1e4, 72)
    far = np.concatenate([[-np.inf], -side[::-1], [0.0], side, [np.inf]])
    d, x = get(name), jnp.asarray(far.reshape(49, 3), jnp.float32)
    log_p, log_q = jnp.where(x == jnp.inf, 0.0, x), jnp.where(x == jnp.inf, -jnp.inf, 0.0)
    centered, pull = jax.vjp(lambda x: d.integrand(x, log_q), log_p)
    f_prime, pull_prime = jax.vjp(d.f_prime, x)
    slopes = *pull(jnp.ones_like(x)), *pull_prime(jnp.ones_like(x))
    results = centered, f_prime, d.score_weight(x), d.log_score_weight(x), *slopes
    centered, f_prime, weight, log_weight, *slopes = (np.asarray(y).ravel() for y in results)
    assert not np.isnan(np.stack([centered, f_prime, weight, log_weight, *slopes])).any()
    assert centered[-1] == np.inf, "f grows without bound where P has mass and Q has none"
    if np.isinf(LIMITS[name][1]):
        assert f_prime[-1] == np.inf
    finite = np.isfinite(far)
    far, centered, f_prime, weight = (y[finite] for y in (far, centered, f_prime, weight))
    chex.assert_tree_all_finite((centered, f_prime, weight, [s[finite] for s in slopes]))
    falls, rises = np.diff(centered[far <= 0]), np.diff(centered[far >= 0])
    assert np.all(falls <= 1e-6 * centered[far <= 0][:-1])
    assert np.all(rises >= -1e-6 * centered[far >= 0][1:])
    assert np.all(np.diff(f_prime) >= -2e-6 * np.abs(f_prime[1:]))
    assert np.all(weight >= 0)


@each_name
def test_near_equality_keeps_its_digits(name):
    """f ~ f''(1) (log r)^2 / 2: float32 keeps relative accuracy where the plain formula has none."""
    x = jnp.resize(jnp.array([-1e-2, -1e-4, 1e-6, 1e-3, 3e-5]), (49, 3))
    value = get(name).integrand(x, jnp.zeros_like(x)).ravel()[:15]
    x = x.ravel()[:15].reshape(3, 5)
    with jax.enable_x64(True):
        exact = get(name).integrand(jnp.asarray(x, jnp.float64), jnp.zeros((3, 5), jnp.float64))
    np.testing.assert_allclose(value, exact.ravel(), rtol=1e-5)
    if name != "tv":
        weight = table_row(name)[1]["score_weight"]  # at +-1e-3
        curvature = (weight[0, 4] + weight[1, 0]) / 2
        np.testing.assert_allclose(exact[0, 2], curvature * 1e-12 / 2, rtol=1e-4)


def test_f_near_equality_keeps_its_digits():
    x = jnp.array([-1e-5, 1e-6])
    expected = np.exp(np.float64(x)) * np.float64(x)
    np.testing.assert_allclose(KL.f(x), expected, rtol=1e-5)


def test_nan_stays_in_its_row():
    p = P.at[0, 1].set(jnp.nan)
    value = on_logits(KL, p, Q)
    assert np.isnan(value[0])
    np.testing.assert_array_equal(value[1], on_logits(KL, P, Q)[1])


# --- masks, axes, batches


class TestMask:
    where = np.array([True, False, True, True, True])

    @pytest.mark.parametrize("name", ["kl", "tv"])
    def test_removes_classes_and_what_they_hold(self, name):
        d, where = get(name), jnp.asarray(self.where)
        poisoned = P.at[:, 1].set(jnp.nan), Q.at[:, 1].set(jnp.inf)

        def total(p, q):
            return d.on_logits(p, q, where=where).sum()

        value, gradients = jax.jit(jax.value_and_grad(total, (0, 1)))(*poisoned)
        expected = MEANING[name](softmax(P[:, self.where]), softmax(Q[:, self.where])).sum()
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        for gradient in gradients:
            chex.assert_tree_all_finite(gradient)
            np.testing.assert_array_equal(gradient[:, 1], 0.0)
            assert np.abs(gradient[:, self.where]).max() > 1e-2

    def test_row_without_classes(self):
        """Broadcast along the classes."""
        where = jnp.array([[False], [True], [True]])

        def total(p):
            value = KL.on_logits(p, Q, where=where)
            return value.sum(), value

        (_, value), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(P)
        np.testing.assert_array_equal(value[0], 0.0)
        np.testing.assert_array_equal(gradient[0], 0.0)
        np.testing.assert_allclose(value[1:], on_logits(KL, P, Q)[1:], rtol=1e-6)


def test_axis_and_leading_axes():
    whole = on_logits(KL, P, Q)
    first = jax.jit(lambda p, q: KL.on_logits(p, q, axis=0))
    np.testing.assert_allclose(first(P.T, Q.T), whole, rtol=1e-6)
    cube = on_logits(KL, jnp.stack([P, Q]), jnp.stack([Q, P]))
    chex.assert_shape(cube, (2, 3))
    np.testing.assert_allclose(cube[0], whole, rtol=1e-6)
    chex.assert_shape(on_logits(KL, P[0], Q[0]), ())


def test_dtypes():
    with jax.enable_x64(True):
        double = KL.on_logits(jnp.log(MATRIX_P), jnp.log(MATRIX_Q))
        assert double.dtype == jnp.float64
    mixed = on_logits(get("tv"), P.astype(jnp.bfloat16), Q)
    assert mixed.dtype == jnp.float32
    np.testing.assert_allclose(double, kl(MATRIX_P, MATRIX_Q), rtol=1e-12)


# --- options


class TestOptions:
    def test_divergence_is_a_pytree_argument(self):
        """Options are leaves: one trace serves them all; the kind is static."""
        fn = jax.jit(chex.assert_max_traces(lambda d, p, q: d.on_logits(p, q), n=1))
        values = [fn(divergences.skewed_kl(a), P, Q) for a in (0.1, 0.3, 0.9)]
        assert np.all(values[0] > values[1])
        assert np.all(values[1] > values[2])
        with pytest.raises(AssertionError):
            fn(divergences.skewed_reverse_kl(0.1), P, Q)

    def test_map_over_a_stack_of_divergences(self):
        orders = jnp.array([0.2, 0.7, 3.0])
        stack = divergences.alpha_divergence(orders)
        mapped = jax.vmap(lambda d: on_logits(d, P[0], Q[0]))(stack)
        expected = [
            scipy.stats.power_divergence(MATRIX_P[0], MATRIX_Q[0], lambda_=a - 1).statistic / 2
            for a in np.asarray(orders, np.float64)
        ]
        np.testing.assert_allclose(mapped, expected, rtol=1e-5)

    def test_alpha_joins_the_table(self):
        """Cressie and Read's family, at the orders where its formula is 0/0 and around them."""
        names = ("reverse_kl", "kl", "squared_hellinger", "pearson_chi2", "neyman_chi2")
        scales = (1, 1, 4, 0.5, 0.5)
        p, q = MATRIX_P[:1], MATRIX_Q[:1]
        expected = [c * MEANING[name](p, q).item() for c, name in zip(scales, names, strict=True)]
        with jax.enable_x64(True):
            orders = jnp.array([0.0, 1.0, 0.5, 2.0, -1.0]) + 1e-5 * jnp.array([[-1.0], [0.0], [1.0]])
            (behind, value, ahead), (_, slope, _) = alpha_and_slope(orders, jnp.log(p[0]), jnp.log(q[0]))
            np.testing.assert_allclose(value, expected, rtol=1e-9)
            np.testing.assert_allclose(slope, (ahead - behind) / 2e-5, rtol=1e-7)

    @pytest.mark.parametrize(
        ("make", "option", "name"),
        [
            (divergences.skewed_kl, 0.0, "kl"),
            (divergences.skewed_reverse_kl, 0.0, "reverse_kl"),
            (divergences.skewed_js, 0.5, "js"),
        ],
    )
    def test_skewed_ends(self, make, option, name):
        with jax.enable_x64(True):
            value = make(option).on_logits(jnp.log(MATRIX_P), jnp.log(MATRIX_Q))
        np.testing.assert_allclose(value, MEANING[name](MATRIX_P, MATRIX_Q), rtol=1e-9)

    def test_skewed_js_tends_to_kl(self):
        """JS_a / a -> KL(P‖Q) as a -> 0, and / (1 - a) -> KL(Q‖P) as a -> 1 (GKD, section 2)."""
        with jax.enable_x64(True):
            p, q = jnp.log(MATRIX_P), jnp.log(MATRIX_Q)
            low = divergences.skewed_js(1e-6).on_logits(p, q) / 1e-6
            high = divergences.skewed_js(1 - 1e-6).on_logits(p, q) / 1e-6
        np.testing.assert_allclose(low, kl(MATRIX_P, MATRIX_Q), rtol=1e-4)
        np.testing.assert_allclose(high, kl(MATRIX_Q, MATRIX_P), rtol=1e-4)


@jax.jit
def alpha_and_slope(orders, p, q):
    def value(orders):
        return jax.vmap(lambda a: divergences.alpha_divergence(a).on_logits(p, q))(orders.ravel())

    value, slope = jax.jvp(value, (orders,), (jnp.ones_like(orders),))
    return value.reshape(orders.shape), slope.reshape(orders.shape)


# --- a user's f


class TestFromF:
    @pytest.mark.parametrize("name", ["reverse_kl", "tv"])
    def test_agrees_with_the_table(self, name):
        user = divergences.FDivergence.from_f(TEXTBOOK[name])
        with jax.enable_x64(True):
            x = jnp.asarray(LOG_RATIOS)
            args = (user, x, jnp.log(MATRIX_P), jnp.log(MATRIX_Q))
            ours, conjugate, limits = jax.tree.map(np.asarray, user_row(*args))
        _, theirs, (table_conjugate, *_), table_limits = table_row(name)
        for key, value in ours.items():
            np.testing.assert_allclose(value, theirs[key], rtol=1e-7, atol=1e-10, err_msg=key)
        table_conjugate, conjugate = (x.ravel()[:11] for x in (table_conjugate, conjugate))
        np.testing.assert_allclose(conjugate, table_conjugate, rtol=1e-7, atol=1e-10)
        np.testing.assert_allclose(limits, table_limits[:2], rtol=1e-6, atol=1e-7)

    def test_boundary(self):
        p, q = (jnp.asarray(x, jnp.float32) for x in contract.simplex_faces())
        for name in ("kl", "neyman_chi2"):
            user = divergences.FDivergence.from_f(TEXTBOOK[name])
            ours, theirs = user.on_logits(p, q), get(name).on_logits(p, q)
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)

    def test_must_vanish_at_one(self):
        with pytest.raises(ValueError, match=r"f\(1\) must be 0; got 1"):
            divergences.FDivergence.from_f(lambda r: r**2)

    def test_is_named(self):
        d = divergences.FDivergence.from_f(lambda r: (r - 1) ** 4, name="quartic")
        assert (d.name, d.adjoint().name, d.adjoint().adjoint().name) == (
            "quartic",
            "quartic_adjoint",
            "quartic",
        )
        with pytest.raises(ValueError, match="quartic"):
            d.conjugate(jnp.zeros(2), domain="real")


@jax.jit
def user_row(d, x, log_p, log_q):
    ours = {
        "f": d.f(x),
        "f_prime": d.f_prime(x),
        "score_weight": d.score_weight(x),
        "on_logits": d.on_logits(log_p, log_q),
        "adjoint_on_logits": d.adjoint().on_logits(log_q, log_p),
    }
    return ours, d.conjugate(ours["f_prime"]), (d.at_zero, d.at_infinity)


# --- bad input


class TestBadInput:
    def test_unknown_name_lists_the_known(self):
        with pytest.raises(ValueError, match=r"'softened_reverse_kl'.*'skewed_js'.*got 'chi2'"):
            divergences.get("chi2")

    def test_unknown_option(self):
        with pytest.raises(ValueError, match="the option of kl"):
            divergences.get("kl", alpha=0.1)
        with pytest.raises(ValueError, match="the option of alpha must be one of 'alpha'"):
            divergences.get("alpha", beta=0.1)

    @pytest.mark.parametrize(
        ("make", "bad"),
        [
            *itertools.product([divergences.skewed_kl, divergences.skewed_reverse_kl], [-0.1, 1.0, np.nan]),
            *itertools.product([divergences.skewed_js], [0.0, 1.0, -2.0]),
        ],
    )
    def test_options_out_of_range(self, make, bad):
        with pytest.raises(ValueError, match="alpha must lie in"):
            make(bad)

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: KL.on_logits(jnp.ones((2, 3)), jnp.ones((2, 4))), "p_logits and q_logits must have"),
            (lambda: KL.on_logits(jnp.ones(3, jnp.int32), jnp.ones(3)), "p_logits must be floating"),
            (lambda: KL.on_logits(jnp.ones((2, 0)), jnp.ones((2, 0))), "p_logits must not be empty"),
            (lambda: KL.on_logits(jnp.ones(3), jnp.ones(3), axis=1), "axis must be an axis"),
            (lambda: KL.conjugate(jnp.ones(3), domain="all"), "domain must be one of 'positive', 'real'"),
            (lambda: KL.conjugate(jnp.ones(3), domain="real"), "domain='real' needs"),
            (lambda: KL.f_prime(jnp.ones(3, jnp.int32)), "log_ratio must be floating"),
        ],
    )
    def test_messages(self, call, message):
        with pytest.raises(ValueError, match=message):
            call()
