"""Checkpoints of any pytree by orbax: atomic, verified, the last two kept."""

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree


class Checkpoints:
    """A folder of checkpoints, one per saved step.

    A checkpoint is written beside and renamed when complete, so a killed run leaves only whole ones.
    Checksums of its files are kept with it, for a flipped bit of a parameter would else go unseen. Typed
    PRNG keys are stored as their words.

    Args:
        folder: Where the checkpoints are; made if it is not there.
        keep: How many of the latest to keep.

    Raises:
        OSError: If the folder cannot be made or written.
    """

    def __init__(self, folder: str | Path, keep: int = 2):
        # Orbax takes a second to import, which only those who save should pay.
        import orbax.checkpoint as ocp

        self.folder = Path(folder).absolute()
        self._ocp = ocp
        with self._explained():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(
                self.folder,
                item_handlers=ocp.StandardCheckpointHandler(),
                options=ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False),
            )

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            with _quiet():
                yield
        # Beneath orbax, tensorstore reports a full disk as a ValueError.
        except (OSError, ValueError) as error:
            raise OSError(
                f"cannot write checkpoints in {self.folder}: {_first_line(error)}; "
                "free space or name a writable folder. Checkpoints saved earlier are untouched."
            ) from error

    def latest(self) -> int | None:
        """The latest saved step, or None."""
        return self._manager.latest_step()

    def save(self, step: int, tree: PyTree) -> None:
        """Saves a pytree under a step's number.

        Args:
            step: The number; above those saved before.
            tree: A pytree of arrays and numbers.

        Raises:
            ValueError: If the step is not above those saved before.
            OSError: If the folder cannot be written; what was saved earlier stays.
        """
        latest = self.latest()
        if latest is not None and step <= latest:
            raise ValueError(f"step must be above the latest saved one, {latest}; got {step}.")
        with self._explained():
            self._manager.save(step, args=self._ocp.args.StandardSave(_stored(jax.tree.leaves(tree))))
            if jax.process_index() == 0:
                folder = self.folder / str(step)
                write_whole(folder / "checksums.json", json.dumps(_checksums(folder)))

    def restore(self, step: int, like: PyTree) -> PyTree:
        """Restores a pytree.

        Args:
            step: Which checkpoint.
            like: A pytree of the same structure, shapes and dtypes.

        Returns:
            The saved pytree, bit for bit; numpy leaves where `like` has numpy leaves.

        Raises:
            ValueError: If the checkpoint is damaged or belongs to something else.
        """
        paths, treedef = jax.tree.flatten_with_path(like)
        leaves = [leaf for _, leaf in paths]
        template = _stored(leaves)
        others = [other for other in self._manager.all_steps() if other < step]
        remedy = f"delete it to go on from step {max(others)}" if others else "delete it to start over"
        try:
            with _quiet():
                self._verify(step)
                found = self._manager.item_metadata(step).tree
                difference = _difference(template, found, [jax.tree_util.keystr(path) for path, _ in paths])
                if not difference:
                    found = self._manager.restore(step, args=self._ocp.args.StandardRestore(template))
        except Exception as error:
            raise ValueError(
                f"checkpoint {self.folder / str(step)} is damaged: {_first_line(error)}; "
                f"name another folder, or {remedy}."
            ) from error
        if difference:
            raise ValueError(
                f"checkpoint {self.folder / str(step)} belongs to another configuration: {difference}; "
                f"name another folder, or {remedy}."
            )
        restored = [_like(leaf, found.get(str(i))) for i, leaf in enumerate(leaves)]
        return jax.tree.unflatten(treedef, restored)

    def _verify(self, step: int) -> None:
        """Compares the files with their checksums; a run killed between the two left none to compare."""
        folder = self.folder / str(step)
        sums = folder / "checksums.json"
        if not folder.is_dir():
            raise ValueError("it is not there")
        if not sums.exists():
            return
        expected, found = json.loads(sums.read_text()), _checksums(folder)
        changed = sorted(name for name in expected if found.get(name) != expected[name])
        if changed:
            state = "has changed since it was written" if changed[0] in found else "is missing"
            raise ValueError(f"its file {changed[0]} {state}")


def write_whole(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    half = path.with_name(f"{path.name}.tmp")
    with half.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    half.replace(path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences orbax's log: what it reports there it also raises."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")


def _checksums(folder: Path) -> dict[str, str]:
    sums = {}
    for path in sorted((folder / "default").rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                sums[str(path.relative_to(folder))] = hashlib.file_digest(file, "blake2b").hexdigest()
    return sums


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _storable(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if _is_key(leaf) else np.asarray(leaf) if np.isscalar(leaf) else leaf


def _stored(leaves: list[Any]) -> dict[str, Any]:
    """What a checkpoint holds: the leaves by position, but for empty ones, which orbax cannot store."""
    arrays = {str(i): _storable(leaf) for i, leaf in enumerate(leaves)}
    return {"count": np.array(len(leaves))} | {name: x for name, x in arrays.items() if x.size}


def _difference(expected: dict[str, Any], found: dict[str, Any], names: list[str]) -> str:
    """Says in what the arrays differ from those expected, if they do."""
    for i, name in enumerate(names):
        there, here = (
            f"{x.dtype}{tuple(x.shape)}" if x is not None else "nothing"
            for x in (arrays.get(str(i)) for arrays in (found, expected))
        )
        if there != here:
            return f"{name or 'the state'} is {there} there and {here} here"
    if len(found) != len(expected):
        return f"it holds {len(found) - 1} arrays, and this run {len(expected) - 1}"
    return ""


def _like(leaf: Any, found: Any) -> Any:
    if found is None:
        return leaf
    if _is_key(leaf):
        return jax.random.wrap_key_data(found, impl=jax.random.key_impl(leaf))
    return found if isinstance(leaf, jax.Array) else np.asarray(found)
