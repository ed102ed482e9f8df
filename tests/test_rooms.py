"""A room imports only rooms below it, and importing the package loads nothing heavy."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import jaxdiv

PACKAGE = Path(jaxdiv.__file__).parent


def imported_rooms(file: Path) -> set[str]:
    """Rooms that a file names in its imports."""
    rooms = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            parts = node.module.split(".")
            if parts[0] == "jaxdiv":
                rooms |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            rooms |= {parts[1] for parts in names if parts[0] == "jaxdiv" and len(parts) > 1}
    return rooms


@pytest.mark.parametrize("room", jaxdiv.ROOMS)
def test_imports_go_down(room):
    below = set(jaxdiv.ROOMS[jaxdiv.ROOMS.index(room) :])
    for file in (PACKAGE / room).rglob("*.py"):
        upward = imported_rooms(file) - below
        assert not upward, f"{file.relative_to(PACKAGE)} imports {upward}"


def test_every_folder_is_a_room():
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders == {*jaxdiv.ROOMS, "testing"}


@pytest.mark.parametrize("room", jaxdiv.ROOMS)
def test_rooms_reexport_and_hold_nothing_else(room):
    module = importlib.import_module(f"jaxdiv.{room}")
    tree = ast.parse(Path(module.__file__).read_text())
    docstring, *imports = tree.body
    assert isinstance(docstring, ast.Expr)
    for node in imports:
        assert isinstance(node, ast.ImportFrom)
        assert all(alias.asname == alias.name for alias in node.names), ast.unparse(node)


def test_import_is_light():
    code = "import sys, jaxdiv; sys.exit(bool({'jax', 'numpy', 'flax'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_unknown_room_names_the_rooms():
    with pytest.raises(AttributeError, match="divergences"):
        _ = jaxdiv.transport
