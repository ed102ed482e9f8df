"""What the README shows, runs."""

import re
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_python_block_runs():
    (block,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len([line for line in block.splitlines() if line.strip()]) <= 24
    scope: dict = {}
    exec(compile(block.replace("steps=300", "steps=6"), "README.md", "exec"), scope)
    assert scope["params"]


def test_commands_and_rooms_exist():
    import jaxdiv

    makefile = (Path(__file__).parents[1] / "Makefile").read_text()
    commands = re.findall(r"^make (\w+)|`(?:PYTHON=\S+ )?make (\w+)`", README, flags=re.MULTILINE)
    assert commands
    for target in {first or second for first, second in commands}:
        assert f"\n{target}:" in makefile, target
    table = re.findall(r"^\| `(\w+)` \|", README, flags=re.MULTILINE)
    assert table == list(jaxdiv.ROOMS)


def test_pictures_exist():
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert (Path(__file__).parents[1] / picture).is_file(), picture
