"""What is running: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

__all__ = ["progress"]

#: Seconds between two lines where there is no terminal.
EVERY = 10.0


@contextmanager
def progress(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """A function to call with what is running, how much is done, and of how much."""
    if not console.is_terminal:
        with _lines(console) as show:
            yield show
        return
    text = TextColumn("{task.description}")
    columns = (SpinnerColumn(), BarColumn(30), MofNCompleteColumn(), TimeElapsedColumn(), text)
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda text, done, total: bar.update(task, description=escape(text), completed=done, total=total)


@contextmanager
def _lines(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """A thread of its own prints, so that a run of minutes is not silent either."""
    started, ended = time.monotonic(), threading.Event()
    state = ["starting"]

    def show(text: str, done: int, total: int) -> None:
        state[0] = f"{done} of {total} done, now {text}"

    def report() -> None:
        while not ended.wait(EVERY):
            line = f"sgdcov verify: {state[0]} ({time.monotonic() - started:.0f} s)"
            console.print(line, highlight=False, markup=False, soft_wrap=True)

    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
        yield show
    finally:
        ended.set()
        thread.join()
