"""Evaluations of one generator: from samples, by a critic, as a worst case; they agree with the logits."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special

from jaxdiv import divergences
from jaxdiv.testing import divergences as contract

RNG = np.random.default_rng(0)
P, Q = RNG.dirichlet(np.ones(5), (2, 3))
LOSSES = np.array([0.3, -1.0, 2.0, 0.9])
BASE = np.array([0.1, 0.4, 0.2, 0.3])
NAMES = ("kl", "reverse_kl", "js", "squared_hellinger", "tv", "pearson_chi2")
FORMULAS = {
    "kl": lambda r: scipy.special.xlogy(r, r) - r + 1,
    "reverse_kl": lambda r: -np.log(r),
    "js": lambda r: 0.5 * (scipy.special.xlogy(r, r) - (r + 1) * np.log((r + 1) / 2)),
    "squared_hellinger": lambda r: 1 - np.sqrt(r),
    "tv": lambda r: 0.5 * np.abs(r - 1),
    "pearson_chi2": lambda r: (r - 1) ** 2,
}
get = divergences.get


def exact(name, p, q):
    return (q * FORMULAS[name](p / q)).sum(-1)


def double(*arrays):
    return tuple(jnp.asarray(x, jnp.float64) for x in arrays)


class TestFromSamples:
    @pytest.mark.parametrize("name", NAMES)
    def test_all_points_with_their_weights_are_exact(self, name):
        with jax.enable_x64(True):
            log_p, log_q, p, q = double(np.log(P), np.log(Q), P, Q)
            of_q = divergences.from_samples(get(name), log_p, log_q, weights=q)
            of_p = divergences.from_samples(get(name), log_p, log_q, sampled_from="p", weights=7 * p)
        np.testing.assert_allclose(of_q, exact(name, P, Q), rtol=1e-12)
        np.testing.assert_allclose(of_p, exact(name, P, Q), rtol=1e-12)

    @pytest.mark.parametrize("sampled_from", ["p", "q"])
    def test_unbiased_and_never_negative(self, sampled_from):
        """Over all 125 samples of size 3 from five points, each with its probability."""
        p, q = P[0], Q[0]
        draws = np.array(list(itertools.product(range(5), repeat=3)))
        chance = (p if sampled_from == "p" else q)[draws].prod(-1)
        log_p, log_q = (jnp.asarray(np.log(x)[draws], jnp.float32) for x in (p, q))
        for name in ("kl", "reverse_kl"):
            value = divergences.from_samples(get(name), log_p, log_q, sampled_from=sampled_from)
            assert np.all(value >= 0)
            np.testing.assert_allclose(np.sum(chance * value), exact(name, p, q), rtol=1e-5)

    def test_support(self):
        """A sample P lacks costs f(0) less f'(1)(0 - 1); one Q lacks, though it was sampled from Q, +inf."""
        log_p, log_q = jnp.array([-jnp.inf, -1.0]), jnp.array([-1.0, -1.0])
        assert divergences.from_samples(get("js"), log_p, log_q) == pytest.approx(np.log(2) / 4)
        assert divergences.from_samples(get("reverse_kl"), log_p, log_q) == np.inf
        assert divergences.from_samples(get("kl"), log_q, log_p) == np.inf

    def test_weight_zero_removes(self):
        log_p = jnp.array([[0.1, -jnp.inf, -2.0, 0.3], [0.1, -1.0, 0.0, 0.3]])
        log_q = jnp.array([[0.0, -1.0, -1.0, 0.2], [0.0, -1.0, -1.0, 0.2]])
        weights = jnp.array([1.0, 0.0, 2.0, 1.0]) * jnp.ones((2, 1))

        def estimate(log_p, log_q, weights):
            return divergences.from_samples(get("reverse_kl"), log_p, log_q, weights=weights).sum()

        value, gradient = jax.jit(jax.value_and_grad(estimate))(log_p, log_q, weights)
        r = np.exp(np.where(np.isfinite(log_p), log_p - log_q, 0.0))
        terms = (r - 1 - np.log(r))[:, [0, 2, 2, 3]]
        np.testing.assert_allclose(value, terms.mean(-1).sum(), rtol=1e-5)
        chex.assert_tree_all_finite(gradient)
        np.testing.assert_array_equal(gradient[:, 1], 0.0)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"sampled_from": "r"}, "sampled_from must be one of 'p', 'q'"),
            ({"weights": jnp.ones(2)}, "weights must have the samples' shape"),
            ({"log_q": jnp.ones(2)}, "log_p and log_q must have the same shape"),
            ({"log_q": jnp.ones(3, jnp.int32)}, "log_q must be floating"),
            ({"log_p": jnp.ones(0), "log_q": jnp.ones(0)}, "must not be empty"),
        ],
    )
    def test_bad_input(self, options, message):
        arguments = {"log_p": jnp.ones(3), "log_q": jnp.ones(3), **options}
        with pytest.raises(ValueError, match=message):
            divergences.from_samples(get("kl"), **arguments)


class TestVariationalBound:
    @pytest.mark.parametrize("name", NAMES)
    def test_tight_at_the_optimal_critic_only(self, name):
        """T = f'(p/q) gives D_f, by either output; any other critic gives less (Nowozin et al., eq. 4)."""
        d = get(name)
        with jax.enable_x64(True):
            p, q, ratio = double(P, Q, np.log(P / Q))
            noise = jnp.asarray(RNG.normal(size=(3, 5)))

            def bound(critic, output):
                return divergences.variational_bound(
                    d, critic, critic, output=output, weights_p=p, weights_q=q
                )

            tight, pull = jax.vjp(lambda v: bound(v, "log_ratio"), ratio)
            looser, constant = (bound(v, "log_ratio") for v in (ratio + noise, 0 * ratio))
            slope = bound(d.f_prime(ratio), "slope")
            results = tight, looser, constant, slope, pull(jnp.ones(3))[0]
            tight, looser, constant, as_slope, stationary = map(np.asarray, results)
        np.testing.assert_allclose(tight, exact(name, P, Q), rtol=1e-10)
        np.testing.assert_allclose(as_slope, tight, rtol=1e-10)
        np.testing.assert_allclose(constant, 0.0, atol=1e-12)
        np.testing.assert_allclose(stationary, 0.0, atol=1e-12)
        assert np.all(looser <= tight + 1e-12)
        if name != "tv":  # whose optimal critic only needs the right signs
            assert np.all(looser < tight - 1e-3)

    def test_samples_of_their_own_size(self):
        """Different numbers of samples, equal weights: the plain means."""
        v, u = jnp.array([0.3, -0.2]), jnp.array([0.1, 0.5, -1.0])
        bound = divergences.variational_bound(get("kl"), v, u)
        np.testing.assert_allclose(bound, np.mean(v + 1) - np.mean(np.exp(u)), rtol=1e-6)

    def test_extreme_critics(self):
        v = jnp.resize(jnp.array([-1e4, 1e4, 0.0, 1.0, -1.0]), (3, 5))
        for name in ("kl", "js", "tv"):
            bound = functools.partial(divergences.variational_bound, get(name))
            value, pull = jax.vjp(bound, v, v)
            gradient = pull(jnp.ones(3))
            chex.assert_tree_all_finite((value, gradient))

    def test_slope_out_of_reach(self):
        """T above f'(inf) = 1/2 certifies nothing."""
        high = jnp.array([0.6, 0.0])
        assert divergences.variational_bound(get("tv"), high, high, output="slope") == -np.inf

    def test_bad_input(self):
        v = jnp.ones(3)
        with pytest.raises(ValueError, match="output must be one of 'log_ratio', 'slope'"):
            divergences.variational_bound(get("kl"), v, v, output="ratio")
        with pytest.raises(ValueError, match="critic_q must be floating"):
            divergences.variational_bound(get("kl"), v, jnp.ones(3, jnp.int32))
        with pytest.raises(ValueError, match="weights must have the samples' shape"):
            divergences.variational_bound(get("kl"), v, v, weights_q=jnp.ones(2))


@jax.jit
def solve(divergence, losses, penalty, base):
    return divergences.worst_case(divergence, losses, penalty=penalty, weights=base)


MOVE = np.array([0.5, -0.3, 1.0, 0.2])


@jax.jit
def solve_radius(divergence, losses, radius, base):
    """The solution, and the tangent of its value as the losses move by MOVE and the radius by 1/10."""

    def value(losses, radius):
        result = divergences.worst_case(divergence, losses, radius=radius, weights=base)
        return result.value, result

    directions = jnp.asarray(MOVE, losses.dtype), jnp.asarray(0.1, losses.dtype)
    _, tangent, result = jax.jvp(value, (losses, radius), directions, has_aux=True)
    return result, tangent


def danskin(result):
    return result.weights @ MOVE + 0.1 * result.penalty


class TestWorstCasePenalty:
    @pytest.mark.parametrize("name", NAMES)
    def test_is_the_dual_and_the_primal(self, name):
        """min over eta of eta + lambda E f*((l - eta) / lambda), and max over q, both by scipy."""
        d, f, lam = get(name), FORMULAS[name], 0.8
        with jax.enable_x64(True):
            losses, base, penalty = double(LOSSES, BASE, lam)
            result = jax.tree.map(np.asarray, solve(d, losses, penalty, base))
            levels = np.linspace(-3.0, 3.0, 6001)
            slopes = jnp.asarray((LOSSES - levels[:, None]) / lam)
            dual = levels + lam * np.asarray(d.conjugate(slopes)) @ BASE
        q = result.weights

        def primal(q):
            return q @ LOSSES - lam * BASE @ f(q / BASE)

        np.testing.assert_allclose(q.sum(), 1.0, rtol=1e-12)
        assert np.all(q >= 0)
        np.testing.assert_allclose(result.value, primal(q), rtol=1e-10)
        assert result.value <= dual.min() + 1e-9
        np.testing.assert_allclose(result.value, dual.min(), atol=2e-3 if name == "tv" else 1e-5)
        search = scipy.optimize.minimize(
            lambda q: -primal(q),
            BASE,
            method="SLSQP",
            bounds=[(1e-12, 1)] * 4,
            constraints={"type": "eq", "fun": lambda q: q.sum() - 1},
            options={"ftol": 1e-13, "maxiter": 300},
        )
        assert result.value >= -search.fun - 1e-9
        if name != "tv":  # where SLSQP stops at the kink
            np.testing.assert_allclose(q, search.x, atol=1e-5)

    def test_kl_is_log_mean_exp(self):
        """Softmax weights: Ben-Tal et al., and the closed form of Qiu et al., eq. (4)."""
        losses = jnp.asarray([LOSSES, 2 * LOSSES, LOSSES - 1], jnp.float32)
        penalty, base = jnp.array([0.5, 1.0, 30.0]), jnp.asarray([BASE] * 3, jnp.float32)
        result = solve(get("kl"), losses, penalty, base)
        scaled = np.asarray(losses) / np.asarray(penalty)[:, None]
        value = penalty * scipy.special.logsumexp(scaled, b=BASE, axis=-1)
        np.testing.assert_allclose(result.value, value, rtol=1e-5)
        np.testing.assert_allclose(
            result.weights, scipy.special.softmax(scaled + np.log(BASE), axis=-1), rtol=1e-5
        )
        chex.assert_shape((result.value, result.penalty), (3,))
        assert isinstance(result, divergences.WorstCase)

    @pytest.mark.parametrize("name", ["kl", "js"])
    def test_between_mean_and_maximum(self, name):
        """Falls in the penalty from the largest loss to the mean; exact in float32 at both ends."""
        penalties = jnp.array([1e-6, 0.3, 1e4])
        losses, base = (jnp.asarray([x] * 3, jnp.float32) for x in (LOSSES, BASE))
        result = solve(get(name), losses, penalties, base)
        assert np.all(np.diff(result.value) < 0)
        np.testing.assert_allclose(result.value[0], LOSSES.max(), rtol=1e-4)
        np.testing.assert_allclose(result.value[-1], LOSSES @ BASE, rtol=1e-3)
        equal = solve(get(name), jnp.full((3, 4), 2.0), penalties, base)
        np.testing.assert_allclose(equal.value, 2.0, rtol=1e-6)
        np.testing.assert_allclose(equal.weights, base, rtol=1e-5)
        masked = solve(get(name), losses.at[:, 2].set(jnp.nan), penalties, base.at[:, 2].set(0.0))
        np.testing.assert_array_equal(masked.weights[:, 2], 0.0)
        np.testing.assert_allclose(masked.value[0], 0.9, rtol=1e-4)

    def test_tangents(self):
        """Danskin: dV = q dl - D_f(q‖p) dlambda, and an option of one's own generator, by bisection.

        f = c (r - 1)^2, whose worst case at penalty lambda is that of c = 1 at lambda c.
        """
        scaled = divergences.Generator(
            below=lambda a, c: c * jnp.square(jnp.expm1(-a)),
            f_prime=lambda x, c: 2 * c * jnp.expm1(x),
            log_weight=lambda x, c: jnp.log(2 * c) + 2 * x,
            slope=jnp.zeros_like,
            at_zero=lambda c: c,
            prime_at_zero=lambda c: -2 * c,
            conjugate=lambda y, c: y + 0.25 * y * y / c,
        )
        chi2 = get("neyman_chi2").generator
        mirror = chi2._replace(
            below=lambda a, c: c * chi2.below(a),
            at_zero=lambda c: chi2.at_zero(),
            prime_at_zero=lambda c: -jnp.inf,
        )

        def value(losses, penalty, scale):
            d = divergences.FDivergence("scaled", scaled, mirror, "mirrored", (scale,))
            result = divergences.worst_case(d, losses, penalty=penalty, weights=base)
            return result.value, result.weights

        with jax.enable_x64(True):
            losses, base = double(LOSSES, BASE)
            grad = jax.jit(jax.value_and_grad(value, (0, 1, 2), has_aux=True))
            (_, q), gradients = jax.tree.map(np.asarray, grad(losses, *double(0.8, 2.0)))
        distance = exact("pearson_chi2", q, BASE)
        np.testing.assert_allclose(gradients[0], q, rtol=1e-9)
        np.testing.assert_allclose(gradients[1], -2.0 * distance, rtol=1e-9)
        np.testing.assert_allclose(gradients[2], -0.8 * distance, rtol=1e-9)
        with jax.enable_x64(True):
            same = solve(get("pearson_chi2"), losses, jnp.float64(1.6), base)
        np.testing.assert_allclose(q, same.weights, rtol=1e-9)

    def test_weights_differentiate(self):
        """The maximizer's derivative, against differences in float64."""
        with jax.enable_x64(True):
            losses, base, direction = double(LOSSES, BASE, MOVE)

            def weights(losses):
                return divergences.worst_case(get("js"), losses, penalty=0.8, weights=base).weights

            _, tangent = jax.jit(lambda x, v: jax.jvp(weights, (x,), (v,)))(losses, direction)
            shifted = (losses + s * direction for s in (1e-5, -1e-5))
            ahead, behind = (np.asarray(solve(get("js"), x, jnp.float64(0.8), base).weights) for x in shifted)
        np.testing.assert_allclose(tangent, (ahead - behind) / 2e-5, rtol=1e-6, atol=1e-9)


class TestWorstCaseRadius:
    @pytest.mark.parametrize("name", ["kl", "pearson_chi2"])
    def test_is_the_primal(self, name):
        """max q·l over D_f(q‖p) <= rho by scipy; dV = q dl + lambda drho."""
        f, rho = FORMULAS[name], 0.05
        with jax.enable_x64(True):
            out = solve_radius(get(name), *double(LOSSES, rho, BASE))
            result, tangent = jax.tree.map(np.asarray, out)
        search = scipy.optimize.minimize(
            lambda q: -q @ LOSSES,
            BASE,
            method="SLSQP",
            bounds=[(1e-12, 1)] * 4,
            constraints=[
                {"type": "eq", "fun": lambda q: q.sum() - 1},
                {"type": "ineq", "fun": lambda q: rho - BASE @ f(q / BASE)},
            ],
            options={"ftol": 1e-13, "maxiter": 300},
        )
        np.testing.assert_allclose(result.value, -search.fun, rtol=1e-7)
        np.testing.assert_allclose(result.weights, search.x, atol=1e-5)
        np.testing.assert_allclose(BASE @ f(np.asarray(result.weights) / BASE), rho, rtol=1e-8)
        np.testing.assert_allclose(tangent, danskin(result), rtol=1e-7)

    def test_chi2_is_mean_plus_deviation(self):
        """Ben-Tal et al.: E l + sqrt(rho Var l) while no weight vanishes."""
        with jax.enable_x64(True):
            result, _ = solve_radius(get("pearson_chi2"), *double(LOSSES, 0.02, BASE))
        mean = LOSSES @ BASE
        variance = (LOSSES - mean) ** 2 @ BASE
        np.testing.assert_allclose(result.value, mean + np.sqrt(0.02 * variance), rtol=1e-8)

    def test_tv_moves_mass_from_the_smallest_to_the_largest(self):
        with jax.enable_x64(True):
            out = solve_radius(get("tv"), *double(LOSSES, 0.15, BASE))
            result, tangent = jax.tree.map(np.asarray, out)
        np.testing.assert_allclose(result.weights, BASE + np.array([0, -0.15, 0.15, 0]), atol=1e-9)
        np.testing.assert_allclose(result.value, LOSSES @ BASE + 0.15 * 3.0, rtol=1e-9)
        np.testing.assert_allclose(tangent, result.weights @ MOVE + 0.1 * 3.0, rtol=1e-6)

    def test_a_radius_that_reaches_the_maximum(self):
        """KL from the base to the vertex of the largest loss is log 5 < 3: the bound at min_penalty."""
        with jax.enable_x64(True):
            result, tangent = solve_radius(get("kl"), *double(LOSSES, 3.0, BASE))
        chex.assert_tree_all_finite((result, tangent))
        np.testing.assert_allclose(result.value, 2.0, atol=1e-3)
        np.testing.assert_allclose(result.penalty, 3e-4, rtol=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one of penalty and radius"),
        ({"penalty": 1.0, "radius": 1.0}, "exactly one of penalty and radius"),
        ({"penalty": 0.0}, r"penalty must lie in \(0, inf"),
        ({"radius": -1.0}, r"radius must lie in \(0, inf"),
        ({"penalty": jnp.ones(3)}, "penalty must be a number or have shape"),
        ({"penalty": 1.0, "weights": jnp.ones(3)}, "losses and weights must have the same shape"),
        ({"penalty": 1.0, "losses": jnp.ones((2, 4), jnp.int32)}, "losses must be floating"),
        ({"penalty": 1.0, "losses": jnp.ones((2, 0))}, "losses must not be empty"),
        ({"penalty": 1.0, "losses": jnp.ones(())}, "losses must have rank 1 or more"),
    ],
)
def test_worst_case_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        divergences.worst_case(get("kl"), **{"losses": jnp.ones((2, 4)), **options})


@pytest.mark.parametrize("name", NAMES)
def test_routes_agree(name):
    """Logits, samples of either side and the critic's bound are one number, in float32."""
    d = get(name)
    p, q, log_p, log_q = (jnp.asarray(x, jnp.float32) for x in (P, Q, np.log(P), np.log(Q)))
    value = d.on_logits(log_p, log_q)
    ratio = log_p - log_q
    routes = (
        divergences.from_samples(d, log_p, log_q, weights=q),
        divergences.from_samples(d, log_p, log_q, sampled_from="p", weights=p),
        divergences.variational_bound(d, ratio, ratio, weights_p=p, weights_q=q),
    )
    for route in routes:
        np.testing.assert_allclose(route, value, rtol=1e-5, atol=1e-6)


class TestWorstCaseContract(chex.TestCase):
    """The divergence between a base and the distribution that is worst for given losses."""

    def tilt(self, p, q):
        tilted = divergences.worst_case(get("kl"), p - q, penalty=1.0, weights=jax.nn.softmax(q))
        return get("kl").on_logits(jnp.log(tilted.weights), q)

    @chex.variants(with_jit=True)
    def test_exponential_tilting_undoes_the_ratio(self):
        """Of the losses log(p/q) the worst case at penalty 1 is p itself, so the distance is D(p‖q)."""
        member = contract.Member("tilt", self.tilt)
        contract.check_values(member, self.variant)
        contract.check_gradients(member, self.variant)
        p, q = (jnp.asarray(x, jnp.float32) for x in member.inputs(0))
        np.testing.assert_allclose(self.variant(self.tilt)(p, q), get("kl").on_logits(p, q), rtol=1e-4)
