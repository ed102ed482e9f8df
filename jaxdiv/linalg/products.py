"""Products with curvature matrices, without the matrices.

For a scalar f, a model m and a convex loss ℓ of its outputs, at parameters θ with J = ∂m/∂θ:

    Hessian             H v = ∂²f(θ) v
    Gauss-Newton        G v = Jᵀ (∂²ℓ(m(θ)) (J v))
    Fisher              F v = mean_b J_bᵀ (diag(p_b) − p_b p_bᵀ) J_b v,   p_b = softmax(m_b(θ))
    empirical Fisher    F̂ v = mean_b g_b ⟨g_b, v⟩ = Jᵀ (J v) / B,          J the Jacobian of the B losses

Each operator linearizes once; its products then repeat only the linear part.

References:
    Pearlmutter (1994), Fast exact multiplication by the Hessian.
    Schraudolph (2002), Fast curvature matrix-vector products for second-order gradient descent.
    Kunstner, Balles and Hennig (2019), Limitations of the empirical Fisher approximation, eqs. (2)-(4).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxdiv.core import checks
from jaxdiv.linalg import vectors
from jaxdiv.linalg.vectors import Matvec, Vector


def _lifted(linear: Matvec, params: Vector) -> Matvec:
    """Returns the map with vectors checked, cast to the dtypes of `params`, and cast back."""

    def product(v: PyTree) -> PyTree:
        vectors.same_space("v", v, "params", params)
        v = jax.tree.map(jnp.asarray, v)
        return vectors.cast_like(linear(vectors.cast_like(v, params)), v)

    return product


def _scalar(name: str, fun: Callable[[Any], Any], x: Any) -> None:
    shape = jax.eval_shape(fun, x)
    if jnp.shape(shape) != ():
        raise ValueError(f"{name} must return a scalar; got {shape}; take its mean or sum.")


def hvp(fun: Callable[[PyTree], Float[Array, ""]], params: PyTree, v: PyTree) -> PyTree:
    """Returns the Hessian of `fun` at `params` times `v`.

    Forward over reverse, in one pass that stores nothing beyond a gradient. For several products at
    the same parameters use `hessian_operator`.

    Args:
        fun: Scalar function of the parameters.
        params: Floating pytree; half precisions are raised to float32.
        v: A vector like `params`.

    Returns:
        A vector with the structure and dtypes of `v`.

    Raises:
        ValueError: If `fun` is not scalar, `params` is not floating or `v` does not match it.

    References:
        Pearlmutter (1994), Fast exact multiplication by the Hessian.

    Example:
        >>> hvp(lambda x: jnp.sum(x**3), jnp.array([1.0, 2.0]), jnp.array([1.0, 1.0]))
        Array([ 6., 12.], dtype=float32)
    """
    params = vectors.widened("params", params)
    _scalar("fun", fun, params)
    return _lifted(lambda u: jax.jvp(jax.grad(fun), (params,), (u,))[1], params)(v)


def hessian_operator(fun: Callable[[PyTree], Float[Array, ""]], params: PyTree) -> Matvec:
    """Returns ``v -> H v`` for the Hessian of `fun` at `params`, linearized once.

    Args:
        fun: Scalar function of the parameters.
        params: Floating pytree; half precisions are raised to float32.

    Returns:
        A linear map on vectors like `params`, transposable and differentiable.

    Raises:
        ValueError: If `fun` is not scalar or `params` is not floating.

    Example:
        >>> matvec = hessian_operator(lambda x: jnp.sum(x**3), jnp.array([1.0, 2.0]))
        >>> matvec(jnp.array([1.0, 1.0]))
        Array([ 6., 12.], dtype=float32)
    """
    params = vectors.widened("params", params)
    _scalar("fun", fun, params)
    return _lifted(jax.linearize(jax.grad(fun), params)[1], params)


def gauss_newton_operator(
    model_fn: Callable[[PyTree], PyTree],
    loss_fn: Callable[[PyTree], Float[Array, ""]],
    params: PyTree,
) -> Matvec:
    """Returns ``v -> J^T H J v`` with J of the model and H of the loss in the outputs.

    Args:
        model_fn: From parameters to outputs (a floating pytree).
        loss_fn: Scalar function of the outputs.
        params: Floating pytree; half precisions are raised to float32.

    Returns:
        A linear map on vectors like `params`, positive semidefinite where the loss is convex.

    Raises:
        ValueError: If `loss_fn` is not scalar or `params` is not floating.

    References:
        Schraudolph (2002), Fast curvature matrix-vector products for second-order gradient descent.

    Example:
        >>> matvec = gauss_newton_operator(lambda w: w**2, jnp.sum, jnp.array([1.0, 2.0]))
        >>> matvec(jnp.ones(2))
        Array([0., 0.], dtype=float32)
    """
    params = vectors.widened("params", params)
    outputs, push = jax.linearize(model_fn, params)
    outputs = vectors.widened("model_fn(params)", outputs)
    _scalar("loss_fn", loss_fn, outputs)
    curvature = jax.linearize(jax.grad(loss_fn), outputs)[1]
    return _sandwich(push, curvature, params, outputs)


def gnvp(
    model_fn: Callable[[PyTree], PyTree],
    loss_fn: Callable[[PyTree], Float[Array, ""]],
    params: PyTree,
    v: PyTree,
) -> PyTree:
    """Returns the Gauss-Newton matrix at `params` times `v`; see `gauss_newton_operator`.

    Example:
        >>> gnvp(lambda w: 3 * w, lambda y: jnp.sum(y**2), jnp.ones(2), jnp.ones(2))
        Array([18., 18.], dtype=float32)
    """
    return gauss_newton_operator(model_fn, loss_fn, params)(v)


def fisher_operator(logits_fn: Callable[[PyTree], Float[Array, "... K"]], params: PyTree) -> Matvec:
    """Returns ``v -> F v`` for the exact Fisher matrix of a categorical model.

    The expectation over labels is taken under the model, in closed form; it equals the Gauss-Newton
    matrix of the mean softmax cross-entropy, whatever its labels.

    Args:
        logits_fn: From parameters to logits; the leading axes are averaged over.
        params: Floating pytree; half precisions are raised to float32.

    Returns:
        A positive semidefinite linear map on vectors like `params`.

    Raises:
        ValueError: If the logits have no class axis or something is not floating.

    References:
        Kunstner, Balles and Hennig (2019), Limitations of the empirical Fisher approximation, eq. (3).

    Example:
        >>> matvec = fisher_operator(lambda w: w[None], jnp.zeros(2))
        >>> matvec(jnp.array([1.0, 0.0]))
        Array([ 0.25, -0.25], dtype=float32)
    """
    params = vectors.widened("params", params)
    logits, push = jax.linearize(logits_fn, params)
    logits = checks.floating("logits_fn(params)", logits)
    if logits.ndim == 0:
        raise ValueError("logits_fn(params) must have a class axis; got a scalar.")
    probs = jax.nn.softmax(logits)
    examples = max(logits.size // max(logits.shape[-1], 1), 1)

    def curvature(u: Array) -> Array:
        weighted = probs * u
        return (weighted - probs * jnp.sum(weighted, -1, keepdims=True)) / examples

    return _sandwich(push, curvature, params, logits)


def empirical_fisher_operator(losses_fn: Callable[[PyTree], Float[Array, " B"]], params: PyTree) -> Matvec:
    """Returns ``v -> mean_b g_b <g_b, v>`` with g_b the gradients of the per-example losses.

    Args:
        losses_fn: From parameters to the losses of B examples.
        params: Floating pytree; half precisions are raised to float32.

    Returns:
        A positive semidefinite linear map on vectors like `params`.

    Raises:
        ValueError: If the losses are not a floating vector or `params` is not floating.

    Note:
        The B gradients are never stored: they are the rows of the Jacobian of `losses_fn`.

    References:
        Kunstner, Balles and Hennig (2019), Limitations of the empirical Fisher approximation, eq. (4).

    Example:
        >>> matvec = empirical_fisher_operator(lambda w: jnp.array([1.0, 3.0]) * w, jnp.ones(()))
        >>> matvec(jnp.ones(()))
        Array(5., dtype=float32)
    """
    params = vectors.widened("params", params)
    losses, push = jax.linearize(losses_fn, params)
    losses = checks.floating("losses_fn(params)", losses)
    checks.rank("losses_fn(params)", losses, 1)
    return _sandwich(push, lambda u: u / losses.size, params, losses)


def _sandwich(push: Matvec, curvature: Matvec, params: Vector, outputs: Vector) -> Matvec:
    """Returns ``v -> J^T C J v``; C acts in the dtypes of `outputs`, J in its own."""
    pull = jax.linear_transpose(push, params)

    def product(v: Vector) -> Vector:
        u = push(v)
        return pull(vectors.cast_like(curvature(vectors.cast_like(u, outputs)), u))[0]

    return _lifted(product, params)
