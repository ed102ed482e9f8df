"""Algorithms that move all variables in one loop."""

import optax

from jaxdiv import bilevel
from jaxdiv.testing import bilevel as contract


class SobaContract(contract.Contract):
    make = staticmethod(
        lambda case, sampler: bilevel.soba(
            case.problem, optax.sgd(case.inner_step), optax.sgd(0.2 * case.outer_step), sampler=sampler
        )
    )
    steps, reached = 4000, 1e-13
