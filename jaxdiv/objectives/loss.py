"""Loss links: name a loss, weigh it, and say what it compares."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdiv.core import checks
from jaxdiv.core.types import Key, Params, Scalar
from jaxdiv.objectives.record import Link, Option, Record, add_term, of_present, raised, resolve, select


def _named(fn: Callable[..., Any], name: str | None) -> str:
    name = name or getattr(fn, "__name__", None)
    if not name or name == "<lambda>":
        raise ValueError("a loss without a name of its own needs name=; got a lambda or a partial.")
    return name


def _counting(update: Callable[[Params, Int[Array, ""], Record, Key | None], Record]) -> Link:
    """A link whose only state is the count of its updates, which its schedules read."""
    return Link(
        init=lambda params, record, key: jnp.zeros((), jnp.int32),
        update=lambda params, count, record, key: (update(params, count, record, key), count + 1),
    )


def loss(
    fn: Callable[[Any, Any], Float[Array, " B"]],
    *,
    name: str | None = None,
    weight: Option = 1.0,
    output: str = "logits",
    target: str = "targets",
) -> Link:
    """Adds ``weight * fn(output, target)``, one value per example, to the record's losses.

    Args:
        fn: A per-example loss ``(outputs, targets) -> [B]``; bind its options with `functools.partial`.
        name: Name of the term; the function's own by default.
        weight: A number, a traced scalar, or an optax schedule of this link's updates.
        output: What the loss looks at: a key of the outputs, or anything `select` finds.
        target: What it is compared with: ``"targets"``, or e.g. ``"teacher"``.

    Returns:
        A link whose state counts its updates.

    Raises:
        ValueError: If a field is missing, the name is taken, or `fn` does not give floating values [B].

    Example:
        >>> import functools
        >>> from jaxdiv import losses, objectives
        >>> soft = objectives.loss(functools.partial(losses.kd, temperature=4.0), name="kd", target="teacher")
    """
    name = _named(fn, name)
    return _per_example(f"loss({name!r})", fn, name, weight, (output, target))


def _per_example(
    link: str, fn: Callable[..., Float[Array, " B"]], name: str, weight: Option, fields: tuple[str, ...]
) -> Link:
    def update(params: Params, count: Int[Array, ""], record: Record, key: Key | None) -> Record:
        values = fn(*(raised(select(link, record, field)) for field in fields))
        if jnp.shape(values) != record.weights.shape:
            raise ValueError(
                f"link {link} must give one value per example, shape {record.weights.shape}; got "
                f"{jnp.shape(values)}; use objectives.batch_loss for a loss without per-example values."
            )
        if name in record.losses:
            raise ValueError(f"link {link}: a loss of this name exists already; give another name=.")
        values = resolve(weight, count) * checks.floating(f"link {link}: the loss", values)
        return record._replace(losses={**record.losses, name: values})

    return _counting(update)


def batch_loss(
    fn: Callable[..., Scalar],
    *,
    name: str | None = None,
    weight: Option = 1.0,
    output: str = "logits",
    target: str = "targets",
) -> Link:
    """Adds ``weight * fn(output, target, weights=)``, a scalar of the whole batch, to the record's terms.

    Args:
        fn: A batch loss ``(outputs, targets, *, weights) -> scalar``; `weights` [B] are the record's. The
            term of a batch of pure padding is 0.
        name: Name of the term; the function's own by default.
        weight: A number, a traced scalar, or an optax schedule of this link's updates.
        output: What the loss looks at: a key of the outputs, or anything `select` finds.
        target: What it is compared with, e.g. ``"inputs"`` or a protected attribute among the extras.

    Returns:
        A link whose state counts its updates.

    Raises:
        ValueError: If a field is missing, the name is taken, or `fn` does not give a scalar.

    Example:
        >>> from jaxdiv import divergences, objectives
        >>> fair = objectives.batch_loss(
        ...     lambda y, s, weights: divergences.distance_covariance(y, s, weights=weights),
        ...     name="dcov", output="probability", target="protected", weight=3.0,
        ... )
    """
    name = _named(fn, name)

    def update(params: Params, count: Int[Array, ""], record: Record, key: Key | None) -> Record:
        link = f"batch_loss({name!r})"
        fields = [raised(select(link, record, field)) for field in (output, target)]
        value = of_present(lambda weights: fn(*fields, weights=weights), record.weights)
        return add_term(link, record, name, value, resolve(weight, count))

    return _counting(update)


def parameter_regularizer(
    fn: Callable[[Any], Scalar],
    *,
    name: str | None = None,
    weight: Option = 1.0,
    where: Callable[[Params], Any] = lambda params: params,
) -> Link:
    """Adds ``weight * fn(where(params))`` to the record's terms.

    Args:
        fn: A function of (part of) the parameters, e.g. ``optax.tree.norm``.
        name: Name of the term; the function's own by default.
        weight: A number, a traced scalar, or an optax schedule of this link's updates.
        where: Picks the part of the parameters to look at.

    Returns:
        A link whose state counts its updates.

    Example:
        >>> import functools, optax
        >>> from jaxdiv import objectives
        >>> square = functools.partial(optax.tree.norm, squared=True)
        >>> ridge = objectives.parameter_regularizer(square, name="ridge", weight=1e-4)
    """
    name = _named(fn, name)

    def update(params: Params, count: Int[Array, ""], record: Record, key: Key | None) -> Record:
        link = f"parameter_regularizer({name!r})"
        return add_term(link, record, name, fn(raised(where(params))), resolve(weight, count))

    return _counting(update)


def feature_regularizer(
    fn: Callable[[Any], Float[Array, " B"]],
    *,
    name: str | None = None,
    weight: Option = 1.0,
    output: str = "features",
) -> Link:
    """Adds ``weight * fn(output)``, one value per example, to the record's losses.

    It stands before the reduction, with the losses; for a penalty of the whole batch use `batch_loss`.

    Args:
        fn: A function of one output, ``[B, ...] -> [B]``.
        name: Name of the term; the function's own by default.
        weight: A number, a traced scalar, or an optax schedule of this link's updates.
        output: Which output to look at.

    Returns:
        A link whose state counts its updates.

    Example:
        >>> from jaxdiv import objectives
        >>> small = objectives.feature_regularizer(lambda f: jnp.sum(f**2, -1), name="energy", weight=1e-3)
    """
    name = _named(fn, name)
    return _per_example(f"feature_regularizer({name!r})", fn, name, weight, (output,))
