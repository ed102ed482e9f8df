"""Attacks on inputs; `oracles.adversarial` trains against them."""

from jaxdiv.adversarial.sign_gradient import Attack as Attack
from jaxdiv.adversarial.sign_gradient import sign_gradient as sign_gradient
