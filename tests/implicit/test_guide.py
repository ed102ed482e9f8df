"""What the guide for users of jaxopt shows, runs."""

import re
from pathlib import Path

import jax

GUIDE = (Path(__file__).parents[2] / "docs" / "coming-from-jaxopt.md").read_text()


def test_every_call_runs():
    """Traced, which runs all of their Python and compiles nothing."""
    (block,) = re.findall(r"```python\n(.*?)```", GUIDE, flags=re.DOTALL)
    scope: dict = {}
    exec(compile(block, "coming-from-jaxopt.md", "exec"), scope)
    calls = [re.fullmatch(r"\| `.*?` \| `(.+)` \|", line) for line in GUIDE.splitlines()]
    calls = [match[1] for match in calls if match and "(" in match[1]]
    assert len(calls) == 15

    def found(call):
        result = eval(call, scope)
        return () if callable(result) else result

    for call in calls:
        jax.eval_shape(lambda call=call: found(call))
