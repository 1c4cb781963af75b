"""The ``sgdcov`` command: a thin dispatcher that imports a subcommand only when it is asked for."""

from __future__ import annotations

import importlib
import importlib.util
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from . import __version__, verify_options

__all__ = ["main"]

# name -> (module with ``main(argv) -> int``, what reads its options, one line of help)
COMMANDS = {
    "verify": (
        "sgdcov.validation.verify",
        verify_options.parse,
        "check on real data that theory, numerics and measured runs agree",
    ),
}
# import name -> distribution name, for what comes with the extra ``validation``
OPTIONAL = {"torch": "torch", "sklearn": "scikit-learn", "rich": "rich"}

#: Exit codes: what cannot be written, and an interrupt.
UNWRITABLE, INTERRUPTED = 3, 130

USAGE = "\n".join(
    [
        "usage: sgdcov [--version] [--help] COMMAND ...",
        "",
        "commands:",
        *(f"  {name:<10}{text}" for name, (*_, text) in COMMANDS.items()),
        "",
        "sgdcov COMMAND --help lists the options of a command.",
    ]
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments after the program's name; ``sys.argv[1:]`` when not given.

    Returns
    -------
    int
        0 on success, the command's own code where it fails, 2 for a wrong call or a missing optional package, 3 if
        something cannot be written, 130 if interrupted.

    Examples
    --------
    >>> main(["--help"])  # doctest: +ELLIPSIS
    usage: sgdcov [--version] [--help] COMMAND ...
    0
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    match arguments:
        case ["-V" | "--version"]:
            print(f"sgdcov {__version__}")
            return 0
        case ["-h" | "--help" | "help"]:
            print(USAGE)
            return 0
        case [name, *rest] if name in COMMANDS:
            return _run(name, rest)
        case []:
            print(USAGE, file=sys.stderr)
        case _:
            print(f"sgdcov: unknown command {arguments[0]!r}\n\n{USAGE}", file=sys.stderr)
    return 2


def _run(name: str, arguments: list[str]) -> int:
    module, parse, _ = COMMANDS[name]
    parse(arguments)  # --help and what is wrong need no imports of seconds
    missing = [package for module, package in OPTIONAL.items() if importlib.util.find_spec(module) is None]
    if missing:
        print(
            f"sgdcov {name} needs {', '.join(missing)}, which the extra 'validation' brings:\n\n"
            "    pip install 'sgdcov[validation]'",
            file=sys.stderr,
        )
        return 2
    try:
        with _quiet_interrupt():
            command = importlib.import_module(module)
        code = int(command.main(arguments))
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:  # a pipe that was closed, a disk that is full
        print(f"sgdcov {name}: cannot write: {error.strerror or error}", file=sys.stderr)
        # What is still in the buffer cannot be written either: the interpreter's own attempt would be a traceback.
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        return UNWRITABLE


@contextmanager
def _quiet_interrupt() -> Iterator[None]:
    """Ctrl-C ends the program at once and in silence: half an import leaves nothing to tidy up, only tracebacks."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
