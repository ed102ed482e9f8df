"""A progress bar for `run`, drawn by rich."""

import contextlib
from collections.abc import Iterator

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from jaxdiv.core.solver import Progress


@contextlib.contextmanager
def progress_bar(description: str, max_steps: int, *, console: Console | None = None) -> Iterator[Progress]:
    """Shows steps and error while the body runs.

    Args:
        description: What is being solved.
        max_steps: The limit given to `run`.
        console: Where to draw; rich's own by default.

    Yields:
        The callback for ``progress=``. Each bar is a new callback, so that `run` compiles anew.

    Example:
        >>> import io
        >>> with progress_bar("roots", 10, console=Console(file=io.StringIO())) as report:
        ...     report(5, 0.25)
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("error {task.fields[error]:.2e}"),
        TimeElapsedColumn(),
    )
    with Bar(*columns, console=console) as bar:
        task = bar.add_task(description, total=max_steps, error=float("inf"))
        yield lambda steps, error: bar.update(task, completed=steps, error=error)
        # Callbacks arrive asynchronously; the last one belongs on the bar.
        jax.effects_barrier()
