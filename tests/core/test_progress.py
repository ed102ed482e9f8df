import io

import chex
from rich.console import Console

from jaxdiv import core


class ProgressBarTest(chex.TestCase):
    def test_shows_the_last_step_and_error(self):
        out = io.StringIO()
        console = Console(file=out, force_terminal=True, width=100)
        with core.progress_bar("roots", 200, console=console) as report:
            report(5, 1.0)
            report(125, 0.25)
        assert "roots" in out.getvalue()
        assert "125/200" in out.getvalue()
        assert "error 2.50e-01" in out.getvalue()
