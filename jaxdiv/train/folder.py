"""The folder of a run: one line of JSON per chunk, and checkpoints."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

from jaxtyping import PyTree

from jaxdiv.train.checkpoint import Checkpoints, write_whole

Row: TypeAlias = dict[str, Any]


class RunFolder:
    """What a run writes, and from what it goes on.

    Args:
        folder: Where; made if it is not there.
        resume: Whether the folder may hold a run already.

    Raises:
        ValueError: If it holds a run and `resume` is False.
        OSError: If it cannot be written.
    """

    def __init__(self, folder: str | Path, resume: bool):
        folder = Path(folder)
        self.path = folder / "metrics.jsonl"
        with _explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self.checkpoints = Checkpoints(folder / "checkpoints")
        if not resume and self.checkpoints.latest() is not None:
            raise ValueError(
                f"out={folder} holds a run at step {self.checkpoints.latest()}; "
                "pass resume=True or name another folder."
            )

    def restore(self, tree: PyTree, steps: int) -> tuple[int, PyTree, list[Row]]:
        """Restores the latest checkpoint and the rows up to it; without one, the run starts afresh.

        Raises:
            ValueError: If the checkpoint is damaged, of another configuration, or beyond `steps`.
            OSError: If the folder cannot be written.
        """
        done = self.checkpoints.latest()
        if done is None:
            with _explained(self.path):
                self.path.unlink(missing_ok=True)
            return 0, tree, []
        if done > steps:
            raise ValueError(
                f"steps must be at least those taken already, {done} in out={self.path.parent}; "
                f"got {steps}; raise it or name another folder."
            )
        tree = self.checkpoints.restore(done, tree)
        # A row is written before its checkpoint, so there may be one too many, or half of one.
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        rows = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
        rows = [row for row in rows if row["step"] <= done]
        with _explained(self.path):
            write_whole(self.path, "".join(json.dumps(row) + "\n" for row in rows))
        return done, tree, rows

    def save(self, step: int, tree: PyTree, row: Row) -> None:
        """Appends a row and saves a checkpoint.

        Raises:
            OSError: If the folder cannot be written; what was saved earlier stays.
        """
        with _explained(self.path), self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.checkpoints.save(step, tree)

    def last_checkpoint(self) -> str:
        """Path of the latest checkpoint, for messages."""
        step = self.checkpoints.latest()
        return "none" if step is None else str(self.checkpoints.folder / str(step))


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(
            f"cannot write {path}: {error}; free space or name a writable folder. "
            "Checkpoints saved earlier are untouched."
        ) from error
