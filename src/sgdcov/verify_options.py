"""The options of ``sgdcov verify``, read before anything that takes seconds to import."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

__all__ = ["DEFAULT_SEED", "parse"]

DEFAULT_SEED = 2025


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line; ``--help`` and what is wrong end the program with codes 0 and 2.

    Parameters
    ----------
    argv : sequence of str
        The arguments after ``verify``.

    Returns
    -------
    argparse.Namespace
        With ``quick``, ``report``, ``seed`` and ``only``.

    Examples
    --------
    >>> parse(["--quick", "--only", "sgd/digits"]).only
    ['sgd/digits']
    """
    parser = argparse.ArgumentParser(
        prog="sgdcov verify",
        description="Check on real data that derived, solved and measured laws agree, stationary, over time, with "
        "real minibatches and under attacks, for every rule and every public question, and that wrong predictions are "
        "rejected. Exit code 0 only if both hold, 1 if not, 2 for a wrong call, 3 if something cannot be written, 130 "
        "if interrupted.",
    )
    parser.add_argument("--quick", action="store_true", help="fewer replicas, still every rule: under a minute")
    parser.add_argument(
        "--report",
        type=Path,
        metavar="DIR",
        help="also write report.md, report.json and figures to DIR: new, empty, or an earlier report (replaced)",
    )
    parser.add_argument("--seed", type=_seed, default=DEFAULT_SEED, metavar="N", help="of all runs (%(default)s)")
    parser.add_argument(
        "--only",
        nargs="+",
        default=(),
        metavar="RULE/PROBLEM/QUESTION",
        help="only these rows and their wrong predictions, as sgd, 'sgd/digits', '*/diabetes' or '*/*/drop'",
    )
    return parser.parse_args(list(argv))


def _seed(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is negative; a seed is not")
    return value
