"""The ``sgdcov`` command: a thin dispatcher that imports a subcommand only when it is asked for."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence

from . import __version__

__all__ = ["main"]

# name -> (module with ``main(argv) -> int``, one line of help)
COMMANDS = {
    "verify": ("sgdcov.validation.verify", "check on real data that theory, numerics and measured runs agree"),
}
# import name -> distribution name, for what comes with the extra ``validation``
OPTIONAL = {"torch": "torch", "sklearn": "scikit-learn", "rich": "rich"}

USAGE = "\n".join(
    [
        "usage: sgdcov [--version] [--help] COMMAND ...",
        "",
        "commands:",
        *(f"  {name:<10}{text}" for name, (_, text) in COMMANDS.items()),
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
        0 on success, the command's own code where it fails, 2 for a wrong call or a missing optional package.

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
    missing = [package for module, package in OPTIONAL.items() if importlib.util.find_spec(module) is None]
    if missing:
        print(
            f"sgdcov {name} needs {', '.join(missing)}, which the extra 'validation' brings:\n\n"
            "    pip install 'sgdcov[validation]'",
            file=sys.stderr,
        )
        return 2
    return int(importlib.import_module(COMMANDS[name][0]).main(arguments))
