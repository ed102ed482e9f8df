"""The runner of claims: verdicts, failures, resuming, and the names it knows."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from experiments import claims_table
from experiments.__main__ import main

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
    \"\"\"A claim for tests that
    {words}.

    More about it.
    \"\"\"

    import dataclasses, pathlib
    from experiments.claims import Claim, Config as Base

    @dataclasses.dataclass(frozen=True)
    class Config(Base):
        pass

    def run(config):
        log = pathlib.Path(__file__).with_suffix(".log")
        with log.open("a") as file:
            file.write("x")
        {body}

    """


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A folder of claim scripts with a catalogue; ``lab(slug=body, …)`` writes them."""
    area = tmp_path / f"area_{tmp_path.name}"
    area.mkdir()
    monkeypatch.syspath_prepend(tmp_path)

    def write(**bodies):
        rows = []
        for number, (slug, body) in enumerate(bodies.items(), start=1):
            text = textwrap.dedent(SCRIPT).format(words=f"is about {slug}", body=body)
            (area / f"{slug}.py").write_text(text)
            rows.append(
                f'[[paper]]\nnumber = {number}\nid = "{slug}"\ntitle = "T"\nclaim = "{area.name}/{slug}.py"\n'
            )
        (tmp_path / "papers.toml").write_text("\n".join(rows))
        return Lab(tmp_path, area)

    yield write
    for name in [name for name in sys.modules if name.startswith(area.name)]:
        del sys.modules[name]


class Lab:
    def __init__(self, root, area):
        self.root, self.area = root, area
        self.options = [f"--out={root / 'out'}", f"--catalogue={root / 'papers.toml'}"]

    def run(self, *args, jobs=0):
        return main(["claims", *args, *self.options, f"--jobs={jobs}"])

    def results(self):
        return json.loads((self.root / "out" / "results.json").read_text())

    def table(self):
        return (self.root / "out" / "RESULTS.md").read_text()

    def runs(self, slug):
        log = self.area / f"{slug}.log"
        return len(log.read_text()) if log.exists() else 0


GOOD = "return Claim({'ratio': [0.5, 0.25, 0.125]}, holds=not config.control)"
FALSE = "return Claim({'ratio': 2.0}, holds=False)"
EMPTY = "return Claim({'ratio': 1.0}, holds=True)"
BROKEN = "raise RuntimeError('no | convergence')"
NAN = "return Claim({'ratio': float('nan')}, holds=True)"


def test_verdicts(lab):
    here = lab(good=GOOD, false=FALSE, empty=EMPTY)
    assert here.run() == 0
    verdicts = {slug: row["verdict"] for slug, row in here.results().items()}
    assert verdicts == {"good": "works", "false": "negative", "empty": "negative"}


def test_table_has_a_row_of_words_and_figures_for_each(lab):
    here = lab(good=GOOD, false=FALSE)
    here.run()
    good, false = here.table().strip().splitlines()[-2:]
    assert "001 good | A claim for tests that is about good. | ratio [0.5, 0.25, 0.125] | yes" in good
    assert "| no | works | 3 |" in good
    assert "002 false" in false
    assert "| no | negative | 3 |" in false


@pytest.mark.parametrize(
    ("body", "message"), [(BROKEN, "RuntimeError: no ∣ convergence"), (NAN, "must be finite")]
)
def test_a_failing_claim_is_a_row_and_the_others_go_on(lab, body, message):
    here = lab(bad=body, good=GOOD)
    assert here.run() == 1
    assert here.results()["bad"]["verdict"] == "failed"
    assert here.results()["good"]["verdict"] == "works"
    assert message in here.table()


def test_a_script_that_does_not_import_is_a_row(lab):
    here = lab(bad=GOOD, good=GOOD)
    (here.area / "bad.py").write_text("import nothing_of_this_name")
    assert here.run() == 1
    assert "ModuleNotFoundError" in here.table()
    assert here.results()["good"]["verdict"] == "works"


def test_what_is_unchanged_is_not_measured_again(lab):
    here = lab(good=GOOD)
    here.run()
    before = here.results()
    here.run()
    assert here.runs("good") == 2
    assert here.results() == before
    here.run("--fresh")
    assert here.runs("good") == 4


def test_other_seeds_are_another_measurement(lab):
    here = lab(good=GOOD)
    here.run()
    here.run("--seeds", "5")
    assert here.runs("good") == 4
    assert here.results()["good"]["control"]["config"] == {"seeds": 5, "control": True}


def test_what_failed_is_measured_again(lab):
    here = lab(good=BROKEN)
    assert here.run() == 1
    assert here.run() == 1
    assert here.runs("good") == 4


def test_named_claims_leave_the_others_alone(lab):
    here = lab(good=GOOD, false=FALSE)
    here.run()
    assert here.run("good", "--fresh") == 0
    assert (here.runs("good"), here.runs("false")) == (4, 2)
    assert set(here.results()) == {"good", "false"}


def test_exact_claims_need_no_control(lab):
    here = lab(good="return Claim({'gap': 0.0}, holds=True)")
    script = here.area / "good.py"
    script.write_text(script.read_text().replace("    pass", "    exact = True"))
    here.run()
    assert here.runs("good") == 1
    assert here.results()["good"]["verdict"] == "works"


def test_a_figure_is_saved_with_the_runs(lab):
    plot = "from matplotlib.figure import Figure; return Claim({}, holds=not config.control, figure=Figure())"
    here = lab(good=plot)
    assert here.run() == 0
    assert (here.root / "out" / "runs" / "good-claim.png").exists()


@pytest.mark.parametrize("args", [["bda_kd"], ["good", "bda_kd"]])
def test_unknown_slug_lists_the_known(lab, capsys, args):
    here = lab(good=GOOD, false=FALSE)
    assert here.run(*args) == 2
    assert "no claim named bda_kd; known are good, false." in capsys.readouterr().err
    assert not (here.root / "out").exists()


@pytest.mark.parametrize("options", [["--seeds", "0"], ["--jobs", "-1"]])
def test_counts_are_checked(lab, capsys, options):
    here = lab(good=GOOD)
    assert main(["claims", *here.options, *options]) == 2
    assert "at least" in capsys.readouterr().err


def test_verdict_while_a_run_is_missing():
    assert claims_table.verdict({"claim": {"holds": True}}) == "pending"


DONE = {("good", "claim"), ("good", "control"), ("dies", "claim"), ("dies", "control")}


def records(results):
    return {(slug, role) for slug, row in results.items() for role in ("claim", "control") if role in row}


def test_a_killed_run_goes_on(lab):
    """One process per run; the one killed half-way keeps what was measured, and a dying worker is a row."""
    hang = "import time; time.sleep(0 if (log.parent / 'go').exists() else 600); " + GOOD
    here = lab(good=GOOD, dies="import os; os._exit(7)", hangs=hang)
    command = [sys.executable, "-m", "experiments", "claims", *here.options]
    environment = {**os.environ, "PYTHONPATH": f"{here.root}{os.pathsep}{ROOT}"}
    first = subprocess.Popen([*command, "--jobs=3"], env=environment, cwd=ROOT, stderr=subprocess.DEVNULL)
    store = here.root / "out" / "results.json"
    try:
        until = time.monotonic() + 60
        while not store.exists() or not records(json.loads(store.read_text())) >= DONE:
            assert first.poll() is None
            assert time.monotonic() < until
            time.sleep(0.1)
        first.send_signal(signal.SIGTERM)
        assert first.wait(timeout=30) == 143
    finally:
        first.kill()
    assert here.results()["good"]["claim"]["holds"]
    assert "status 7" in here.results()["dies"]["claim"]["error"]

    (here.area / "go").touch()
    assert here.run("good", "hangs") == 0
    assert here.runs("good") == 2
    assert here.results()["hangs"]["verdict"] == "works"
