"""The table of claims: verdicts, and RESULTS.md from results.json."""

from collections.abc import Mapping, Sequence
from typing import Any

HEADER = """# Claims of the papers
Written by `make claims`; the figures behind the statuses in `papers.toml`. Each claim is measured as it
stands and with the method switched off (control). *works*: it holds and its control does not. *negative*: it
does not hold, or its control holds as well. Lists have one entry per seed.

| paper | claim | measured | holds | control | control holds | verdict | seeds | seconds | versions | device |
|---|---|---|---|---|---|---|---|---|---|---|
"""


def verdict(row: Mapping[str, Any]) -> str:
    """``"works"``, ``"negative"``, ``"failed"``, or ``"pending"`` while a run is missing."""
    roles = ("claim",) if row.get("exact") else ("claim", "control")
    if any("error" in row.get(role, {}) for role in roles):
        return "failed"
    if not all(role in row for role in roles):
        return "pending"
    control_holds = not row.get("exact") and row["control"]["holds"]
    return "works" if row["claim"]["holds"] and not control_holds else "negative"


def number(value: float | Sequence[float]) -> str:
    """A number with three digits, or a list of them."""
    if isinstance(value, Sequence):
        return f"[{', '.join(map(number, value))}]"
    return f"{float(value):.3g}"


def markdown(papers: Mapping[str, Mapping[str, Any]], results: Mapping[str, Any]) -> str:
    """RESULTS.md: one row per paper with results, in the catalogue's order."""
    rows = [_row(paper, results[slug]) for slug, paper in papers.items() if slug in results]
    return HEADER + "".join(f"| {' | '.join(cell.replace('|', '∣') for cell in row)} |\n" for row in rows)


def _row(paper: Mapping[str, Any], row: Mapping[str, Any]) -> list[str]:
    claim, control = row.get("claim", {}), row.get("control", {})
    runs = [run for run in (claim, control) if "key" in run]
    first = runs[0] if runs else {}
    return [
        f"{paper['number']:03d} {paper['id']}",
        claim.get("words", paper["title"]),
        _measured(claim),
        _holds(claim),
        "exact, none needed" if row.get("exact") else _measured(control),
        "" if row.get("exact") else _holds(control),
        row["verdict"],
        str(first.get("config", {}).get("seeds", "")),
        f"{sum(run['seconds'] for run in runs):.0f}",
        ", ".join(f"{name} {version}" for name, version in sorted(first.get("versions", {}).items())),
        first.get("device", ""),
    ]


def _measured(run: Mapping[str, Any]) -> str:
    if "error" in run:
        return "failed: " + " ".join(run["error"].split())
    return "<br>".join(f"{name} {number(value)}" for name, value in run.get("measured", {}).items())


def _holds(run: Mapping[str, Any]) -> str:
    return {True: "yes", False: "no", None: ""}[run.get("holds")]
