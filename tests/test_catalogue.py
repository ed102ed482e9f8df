"""The catalogue of papers is true: what a row says works is there, tested and measured."""

import ast
import functools
import importlib
import json
import re
import tomllib
from pathlib import Path

import pytest

from experiments import claims, claims_table, claims_workers

ROOT = Path(__file__).resolve().parents[1]
PAPERS = tomllib.loads((ROOT / "papers.toml").read_text())["paper"]
DONE = [paper for paper in PAPERS if paper["status"] != "planned"]
RESULTS = json.loads((ROOT / "experiments" / "results.json").read_text())
FIELDS = {
    "number": int,
    "id": str,
    "title": str,
    "status": str,
    "symbols": list,
    "tests": list,
    "claim": str,
    "notes": str,
}

each_done_paper = pytest.mark.parametrize("paper", DONE, ids=lambda paper: paper["id"])


def marks(node):
    """Numbers in the ``pytest.mark.paper(…)`` decorators of a function or class."""
    return {
        argument.value
        for decorator in node.decorator_list
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.paper"
        for argument in decorator.args
    }


@functools.cache
def marked_tests(file):
    """Node ids of a test file with the papers each is marked with, its class's marks included."""
    found = {}
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = marks(node)
        elif isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef):
                    found[f"{node.name}::{inner.name}"] = marks(node) | marks(inner)
    name = file.relative_to(ROOT).as_posix()
    return {f"{name}::{test}": numbers for test, numbers in found.items() if "test_" in test}


def resolve(symbol):
    """Imports ``jaxdiv.<room>.<name>``."""
    room, _, name = symbol.rpartition(".")
    return getattr(importlib.import_module(room), name)


def test_every_paper_has_one_row():
    assert [paper["number"] for paper in PAPERS] == list(range(1, 211))
    assert len({paper["id"] for paper in PAPERS}) == len(PAPERS)
    for paper in PAPERS:
        assert {name: type(value) for name, value in paper.items()} == FIELDS
        assert re.fullmatch(r"[a-z0-9_]+", paper["id"])
        assert paper["status"] in ("works", "negative", "planned")


def test_every_mark_names_a_paper():
    for file in (ROOT / "tests").rglob("test_*.py"):
        for test, numbers in marked_tests(file).items():
            assert numbers <= set(range(1, 211)), test


def test_every_result_is_of_a_claim_in_the_catalogue():
    assert set(RESULTS) <= {paper["id"] for paper in PAPERS if paper["claim"]}


@each_done_paper
def test_symbols_are_public(paper):
    assert paper["symbols"]
    for symbol in paper["symbols"]:
        assert symbol.startswith("jaxdiv.")
        assert resolve(symbol).__doc__


@each_done_paper
def test_two_tests_carry_its_mark(paper):
    """The first is exact, the last a property."""
    assert len(set(paper["tests"])) >= 2
    for test in paper["tests"]:
        numbers = marked_tests(ROOT / test.partition("::")[0])[test]
        assert paper["number"] in numbers, f"{test} is not marked @pytest.mark.paper({paper['number']})"


@each_done_paper
def test_claim_is_a_script(paper):
    assert Path(paper["claim"]).stem == paper["id"]
    module = claims.load(paper["claim"])
    assert issubclass(module.Config, claims.Config)
    assert callable(module.run)
    assert callable(module.main)
    assert module.Config().exact or module.Config().seeds >= 3


@each_done_paper
def test_status_is_what_was_measured(paper):
    row = RESULTS[paper["id"]]
    assert row["verdict"] == claims_table.verdict(row) == paper["status"]
    module = claims.load(paper["claim"])
    assert row["claim"]["config"] == claims_workers.as_json(module.Config())
    if not row["exact"]:
        assert row["control"]["config"] == claims_workers.as_json(module.Config(control=True))


@each_done_paper
def test_notes_of_a_negative_give_figures(paper):
    if paper["status"] == "negative":
        assert re.search(r"\d+\.\d+|\d+ ?%|\d+×", paper["notes"])


def test_the_table_is_that_of_the_results():
    papers = {paper["id"]: paper for paper in PAPERS}
    assert (ROOT / "experiments" / "RESULTS.md").read_text() == claims_table.markdown(papers, RESULTS)
