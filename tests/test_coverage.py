"""Every public name of a family goes through that family's contract suite.

A name is covered if a test file that imports the suite ``jaxdiv.testing.<room>`` uses it. What is no member
of the family (types, protocols, tables) is listed here with the reason.
"""

import ast
import importlib
import inspect
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
FAMILIES = ("bilevel", "divergences", "losses", "objectives", "oracles", "ot", "solvers", "transforms")
NOT_MEMBERS = {
    "bilevel": {
        "Algorithm": "protocol",
        "BilevelState": "type",
        "Constants": "type",
        "Estimate": "type",
        "Estimator": "protocol",
        "HparamSpace": "type",
        "Info": "type",
        "Loop": "type",
        "Problem": "type",
        "Range": "type",
        "StnState": "type",
        "full_batch": "a sampler; the suite's default",
        "hparam_space": "maps of hyperparameters; test_hyperparameter_space",
        "inexact_hypergradient": "an estimate with a bound; test_maid",
        "minibatches": "a sampler; the suite draws with it",
        "mix_weights": "a function of weights; test_darts",
        "stn": "its losses get a hyperparameter for each example; test_stn",
        "trajectory_matching": "an objective; test_trajectory_matching",
    },
    "divergences": {},
    "losses": {},
    "objectives": {
        "Objective": "protocol",
        "Link": "protocol",
        "Record": "protocol",
    },
    "oracles": {"Oracle": "protocol", "Evaluation": "type"},
    "ot": {
        "Geometry": "protocol",
        "Marginal": "protocol",
        "Transport": "type",
        "Divergence": "type",
        "MongeGap": "type",
        "PartialAssignment": "type",
        "SemanticAssignment": "type",
        "Sharded": "needs a mesh; equals its geometry in test_sharded",
        "univariate_plan": "gives a plan; test_univariate",
        "project_birkhoff": "takes a matrix; test_project",
        "project_transport": "takes a matrix; test_project",
        "round_plan": "takes a plan; test_round",
        "monge_gap": "of a map, not of two clouds; test_monge_gap",
        "progressive_partial": "of one cloud and its clusters; test_progressive_partial",
        "semantic_partial": "of one cloud and its clusters; test_progressive_partial",
        "soft_quantile": "of one vector; test_soft_sort",
        "soft_rank": "of one vector; test_soft_sort",
        "soft_sort": "of one vector; test_soft_sort",
        "soft_top_k": "of one vector; test_soft_sort",
    },
    "solvers": {
        "OptimisticOMD": "a learner; test_optimistic_omd",
        "Regret": "type",
        "TreeBlock": "type",
        "dynamic_regret": "a function of losses; test_dynamic_regret",
        "tree_blocks": "a function of a graph; test_tree_block",
        "tree_solve": "a linear solve; test_tree_block",
    },
    "transforms": {
        "Ball": "protocol",
        "Kappa": "type",
        "LMO": "type",
        "MuPScaling": "type",
        "add_noise": "optax's own; test_gradient_noise",
        "cosine_power_schedule": "a schedule; test_cosine_power",
    },
}


def names_used(file: Path, room: str) -> set[str]:
    """Attributes of the room, and names imported from it, that a test file uses; none without its suite."""
    tree = ast.parse(file.read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    suite = any(
        node.module == f"jaxdiv.testing.{room}"
        or (node.module == "jaxdiv.testing" and room in {alias.name for alias in node.names})
        for node in imports
    )
    if not suite:
        return set()
    attributes = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == room
    }
    return attributes | {
        alias.name
        for node in imports
        if (node.module or "").startswith(f"jaxdiv.{room}")
        for alias in node.names
    }


@pytest.mark.parametrize("room", FAMILIES)
def test_every_public_name_is_in_a_suite(room):
    module = importlib.import_module(f"jaxdiv.{room}")
    public = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    covered = set().union(*(names_used(file, room) for file in (TESTS / room).rglob("test_*.py")))
    assert not public - covered - set(NOT_MEMBERS[room]), "in no suite"
    assert set(NOT_MEMBERS[room]) <= public, "no longer public"
