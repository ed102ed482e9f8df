"""Every claim script runs at its smoke size; whether the claims hold is for `make claims` to measure."""

import dataclasses
import math
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest

from experiments import claims

CATALOGUE = Path(__file__).resolve().parents[2] / "papers.toml"
SCRIPTS = {p["id"]: p["claim"] for p in tomllib.loads(CATALOGUE.read_text())["paper"] if p["claim"]}


@pytest.mark.parametrize("slug", SCRIPTS)
def test_runs_at_smoke_size(slug):
    module = claims.load(SCRIPTS[slug])
    config = module.SMOKE
    assert type(config) is module.Config
    claim = module.run(config)
    assert type(claim.holds) is bool
    assert claim.measured
    for name, value in claim.measured.items():
        values = value if isinstance(value, Sequence) else [value]
        assert isinstance(name, str)
        assert all(math.isfinite(v) for v in values), name
        assert not isinstance(value, Sequence) or len(value) == config.seeds


@pytest.mark.parametrize("slug", SCRIPTS)
def test_is_a_frozen_config_and_a_sentence(slug):
    module = claims.load(SCRIPTS[slug])
    with pytest.raises(dataclasses.FrozenInstanceError):
        module.Config().seeds = 1
    assert module.__doc__.splitlines()[0].endswith(".")
    assert dataclasses.replace(module.Config(), control=True).control
