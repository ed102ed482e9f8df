"""Checkpoints of any pytree by orbax: atomic, the last two kept."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree


class Checkpoints:
    """A folder of checkpoints, one per saved step.

    Typed PRNG keys are stored as their words. A checkpoint is written beside and renamed when complete, so
    a killed run leaves only whole ones.

    Args:
        folder: Where the checkpoints are; made at the first save.
        keep: How many of the latest to keep.
    """

    def __init__(self, folder: str | Path, keep: int = 2):
        # Orbax takes a second to import, which only those who save should pay.
        import orbax.checkpoint as ocp

        logging.getLogger("absl").setLevel(logging.ERROR)
        self.folder = Path(folder).absolute()
        self._ocp = ocp
        with self._explained("write"):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(
                self.folder,
                options=ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False),
            )

    @contextlib.contextmanager
    def _explained(self, action: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(
                f"cannot {action} checkpoints in {self.folder}: {error}; "
                "free space or name a writable folder. Checkpoints saved earlier are untouched."
            ) from error

    def latest(self) -> int | None:
        """The latest saved step, or None."""
        return self._manager.latest_step()

    def save(self, step: int, tree: PyTree) -> None:
        """Saves a pytree under a step's number.

        Raises:
            OSError: If the folder cannot be written; what was saved earlier stays.
        """
        leaves = {str(i): _storable(leaf) for i, leaf in enumerate(jax.tree.leaves(tree))}
        with self._explained("write"):
            self._manager.save(step, args=self._ocp.args.StandardSave(leaves))

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
        leaves, treedef = jax.tree.flatten(like)
        template = {str(i): _storable(leaf) for i, leaf in enumerate(leaves)}
        try:
            found = self._manager.restore(step, args=self._ocp.args.StandardRestore(template))
            restored = [_like(leaf, found[str(i)]) for i, leaf in enumerate(leaves)]
        except Exception as error:
            others = [other for other in self._manager.all_steps() if other != step]
            earlier = (
                f"or delete it to go on from step {max(others)}" if others else "or delete it to start over"
            )
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(
                f"checkpoint {self.folder / str(step)} cannot be restored into this run: it is damaged or "
                f"of another configuration ({reason}); name another folder, {earlier}."
            ) from error
        return jax.tree.unflatten(treedef, restored)


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _storable(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if _is_key(leaf) else np.asarray(leaf) if np.isscalar(leaf) else leaf


def _like(leaf: Any, found: Any) -> Any:
    expected = _storable(leaf)
    if found.shape != expected.shape or found.dtype != expected.dtype:
        raise ValueError(f"expected {expected.dtype}{expected.shape}, got {found.dtype}{found.shape}")
    if _is_key(leaf):
        return jax.random.wrap_key_data(found, impl=jax.random.key_impl(leaf))
    return found if isinstance(leaf, jax.Array) else np.asarray(found)
