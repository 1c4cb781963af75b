"""A progress bar on standard error that is only there when somebody can see it."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["progress_bar"]

#: Moving the bar takes as long as a few steps do.
STEPS_PER_UPDATE = 100


@contextmanager
def progress_bar(total: int, label: str, progress: bool) -> Iterator[Callable[[int], None]]:
    """A function to call with the number of steps done; it moves a bar, if one is wanted and can be shown.

    That is, if ``progress`` and standard error is a terminal and rich is installed. Leaving the block, by whatever
    exception, takes the bar off the screen.
    """
    if not (progress and sys.stderr.isatty() and importlib.util.find_spec("rich")):
        yield lambda done: None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(escape(label), total=total)

        def advance(done: int) -> None:
            if done % STEPS_PER_UPDATE == 0:
                bar.update(task, completed=done)

        yield advance
