"""Estimators of the hypergradient in `make_step`."""

import optax

from jaxdiv import bilevel
from jaxdiv.testing import bilevel as contract


def two_loops(estimator, **options):
    def make(case, sampler):
        inner_tx, outer_tx = optax.sgd(case.inner_step), optax.sgd(0.5 * case.outer_step)
        return bilevel.make_step(
            case.problem, estimator, inner_tx, outer_tx, inner_steps=10, sampler=sampler, **options
        )

    return staticmethod(make)


class ImplicitContract(contract.Contract):
    make = two_loops(bilevel.implicit_gradient(rtol=1e-12))
    steps, reached = 1000, 2e-11


class UnrolledContract(contract.Contract):
    """The loop's end is not the solution: a bias remains, less with more steps."""

    make = two_loops(bilevel.unrolled())
    steps, reached = 500, 2e-2


class ForwardContract(contract.Contract):
    make = two_loops(bilevel.unrolled(mode="forward"))
    steps, reached = 500, 2e-2


class TruncatedContract(contract.Contract):
    make = two_loops(bilevel.unrolled(truncate=3))
    steps, reached = 500, 0.2
