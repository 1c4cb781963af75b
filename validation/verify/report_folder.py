"""The folder of a report appears whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from ...errors import InvalidProblemError

__all__ = ["new_folder"]


@contextmanager
def new_folder(folder: Path, contents: Collection[str]) -> Iterator[Path]:
    """A folder beside ``folder``, which takes its place, and that of an earlier report, when the block ends well.

    Raises
    ------
    InvalidProblemError
        If ``folder`` holds anything but ``contents``, which would be lost.
    OSError
        If it cannot be made.
    """
    target = folder.absolute()
    if target.is_dir():
        others = sorted({entry.name for entry in target.iterdir()} - set(contents))
        if others:
            raise InvalidProblemError(f"{folder} holds {others[0]}, which is no part of a report; name another folder.")
    target.parent.mkdir(parents=True, exist_ok=True)
    beside, before = (target.with_name(f".{target.name}.{os.getpid()}.{kind}") for kind in ("partial", "before"))
    beside.mkdir()
    try:
        yield beside
        if target.is_dir():
            target.rename(before)
        beside.rename(target)
    finally:
        for left in (beside, before):
            shutil.rmtree(left, ignore_errors=True)
