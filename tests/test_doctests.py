"""The examples in the docstrings run."""

import doctest
import importlib
import pkgutil

import jax
import jax.numpy as jnp
import pytest

import jaxdiv

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(jaxdiv.__path__, "jaxdiv.")
    if not module.ispkg and not module.name.startswith("jaxdiv.version")
)
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    module = importlib.import_module(name)
    names = {"jax": jax, "jnp": jnp, **vars(module)}
    result = doctest.testmod(module, extraglobs=names, optionflags=OPTIONS)
    assert not result.failed


def test_the_package_example_runs():
    assert not doctest.testmod(jaxdiv, optionflags=OPTIONS).failed
