"""What the README shows, runs."""

import re
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_python_blocks_run():
    first, *others = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len([line for line in first.splitlines() if line.strip()]) <= 24
    scope: dict = {}
    for block in (first, *others):
        small = block.replace("steps=300", "steps=6").replace("(2, 500, 3)", "(2, 20, 3)")
        exec(compile(small, "README.md", "exec"), scope)
    assert scope["params"]
    assert scope["out"].status == 0


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
