"""Covariances of Gaussians, full or diagonal, through their Cholesky factors.

A covariance is a matrix [*b, d, d] or a vector of variances [*b, d]; its factor `L`, `S = L Lᵀ`, is of
the same kind, told from the other by its rank against the mean's.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxdiv.core import checks


def arguments(mean1: Array, cov1: Array, mean2: Array, cov2: Array) -> tuple[Array, Array, Array]:
    """Returns mean1 - mean2 and two covariances of one kind: both full or both diagonal."""
    names = {"mean1": mean1, "cov1": cov1, "mean2": mean2, "cov2": cov2}
    arrays = {name: checks.floating(name, value) for name, value in names.items()}
    shape = arrays["mean1"].shape
    if not shape:
        raise ValueError("mean1 must have rank at least 1; got a scalar; use mean1[None].")
    checks.same_shape(mean1=arrays["mean1"], mean2=arrays["mean2"])
    dtype = jnp.result_type(*arrays.values())
    full = (*shape, shape[-1])
    for name in ("cov1", "cov2"):
        if arrays[name].shape not in (shape, full):
            raise ValueError(
                f"{name} must have shape {full}, or {shape} for variances; got {arrays[name].shape}."
            )
    first, second = arrays["cov1"].astype(dtype), arrays["cov2"].astype(dtype)
    if first.ndim != second.ndim:
        eye = jnp.eye(shape[-1], dtype=dtype)
        first, second = (c if c.ndim == len(full) else c[..., None] * eye for c in (first, second))
    return arrays["mean1"].astype(dtype) - arrays["mean2"].astype(dtype), first, second


def factor(cov: Array, delta: Array) -> Array:
    """Cholesky factor, or standard deviations; the factor of a diagonal has the rank of `delta`."""
    return jnp.sqrt(cov) if cov.ndim == delta.ndim else jnp.linalg.cholesky(cov)


def solve(factor: Array, b: Array) -> Array:
    """Returns `factor⁻¹ b` for a vector b."""
    if factor.ndim == b.ndim:
        return b / factor
    return jax.lax.linalg.triangular_solve(factor, b[..., None], left_side=True, lower=True)[..., 0]


def log_det(factor: Array, delta: Array) -> Array:
    """Returns the log-determinant of the covariance with this factor."""
    diagonal = factor if factor.ndim == delta.ndim else jnp.diagonal(factor, axis1=-2, axis2=-1)
    return 2.0 * jnp.sum(jnp.log(diagonal), axis=-1)


def ratio(factor1: Array, factor2: Array, delta: Array) -> Array:
    """Returns `M = L_2⁻¹ L_1`, or the ratio of standard deviations."""
    if factor1.ndim == delta.ndim:
        return factor1 / factor2
    return jax.lax.linalg.triangular_solve(factor2, factor1, left_side=True, lower=True)
