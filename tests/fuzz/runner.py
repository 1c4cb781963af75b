"""One problem of the fuzz: drawn, called, judged; in blocks, as worker processes take them."""

from __future__ import annotations

import signal
import time
import traceback
import warnings

from sgdcov.errors import SgdcovError

from . import garbage
from .draw import Draw
from .judge import Wrong
from .table import CALLS

OUTCOMES = ("right", "refused", "warned", "WRONG", "untyped", "slow")
BAD = ("WRONG", "untyped", "slow")
LIMIT = 60
#: The share of problems in which one argument is garbage.
GARBAGE_SHARE = 0.25


class TooSlow(BaseException):
    """The watchdog's; no handler of the library may swallow it."""


def alarm(signum, frame):
    raise TooSlow


def problem(seed, index):
    """The name of the function, its case and the garbage in it, or None."""
    draw = Draw(seed, index)
    names = list(CALLS)
    weights = [CALLS[name][0] for name in names]
    name = names[draw.rng.choice(len(names), p=[w / sum(weights) for w in weights])]
    spoiled = draw.chance(GARBAGE_SHARE)
    case = CALLS[name][1](draw)
    if not spoiled or getattr(case, "fixed", False):
        return name, case, None
    argument = draw.pick(*case.arguments)
    kinds = [k for k in garbage.GARBAGE if k not in garbage.TORCH or draw.chance(0.2)]
    kind = kinds[draw.rng.integers(len(kinds))]
    return name, case, (argument, kind)


def run(seed, index):
    """(name, outcome, what there is to say)."""
    name, case, spoiled = problem(seed, index)
    changed = {}
    if spoiled:
        changed = {spoiled[0]: garbage.GARBAGE[spoiled[1]]()}
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            signal.alarm(LIMIT)
            try:
                result = case(**changed)
                if spoiled:
                    repr(result)
            finally:
                signal.alarm(0)
            case.warned = [type(w.message).__name__ for w in caught]
            other = [w for w in caught if type(w.message).__name__ != "AccuracyWarning"]
            if other:
                return name, "untyped", f"{type(other[0].message).__name__}: {other[0].message}"
            if spoiled:
                if spoiled[1] in garbage.NEVER and spoiled[0] not in case.free:
                    return name, "WRONG", f"{spoiled[0]} = {spoiled[1]!r} was taken: {result!r}"[:300]
                return name, "right", ""
            if case.answer is False:
                return name, "WRONG", f"an answer where there is none: {result!r}"[:300]
            signal.alarm(LIMIT)
            try:
                if case.judge is not None:
                    case.judge(result)
            finally:
                signal.alarm(0)
    except Wrong as wrong:
        return name, "WRONG", str(wrong)[:600]
    except SgdcovError as error:
        if case.answer is True and not spoiled:
            return name, "WRONG", f"an ordinary problem was refused: {type(error).__name__}: {error}"[:400]
        return name, "refused", ""
    except TooSlow:
        return name, "slow", f"more than {LIMIT} s"
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what is looked for
        where = traceback.extract_tb(error.__traceback__)[-1]
        note = f"{spoiled[0]} = {spoiled[1]!r}: " if spoiled else ""
        return name, "untyped", f"{note}{type(error).__name__}: {error} ({where.filename}:{where.lineno})"[:400]
    return name, "warned" if "AccuracyWarning" in case.warned else "right", ""


def block(task):
    """A run of problems in a worker."""
    seed, first, last = task
    signal.signal(signal.SIGALRM, alarm)
    out = []
    for index in range(first, last):
        begin = time.perf_counter()
        try:
            name, outcome, text = run(seed, index)
        except TooSlow:
            name, outcome, text = "(making the problem)", "slow", "the oracle"
        except Exception:  # noqa: BLE001 - a mistake of the fuzz itself is a finding too
            name, outcome, text = "(making the problem)", "untyped", traceback.format_exc()[-500:]
        out.append((index, name, outcome, text, time.perf_counter() - begin))
    return out


def ignore_interrupt():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
