"""``python -m tests.fuzz``: random problems, hard ones and garbage, over every public function of numerics.

Every problem follows from the seed and its index alone; ``--only INDEX`` runs one again and shows it.  An outcome is

========  ============================================================================================
right     within the result's own error bound of an oracle in mpmath, and true in all else that is checked
refused   an error of the library's own (`SgdcovError`)
warned    right, with an `AccuracyWarning`
WRONG     outside the bound, or an answer where there is none, or none to an ordinary problem
untyped   any other exception
slow      more than 60 s
========  ============================================================================================

The exit code is 1 if any was WRONG, untyped or slow.
"""

from __future__ import annotations

import argparse
import collections
import multiprocessing
import os
import signal
import sys
import time

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # before NumPy is imported: the processes share the cores

import numpy as np

from . import runner
from .runner import BAD, OUTCOMES
from .table import CALLS, missing


def show(counts, seconds):
    """The table of counts, function by function and in all."""
    names = [n for n in (*CALLS, "(making the problem)") if n in counts]
    lines = [f"{'':32s}" + "".join(f"{o:>10s}" for o in OUTCOMES) + f"{'ms each':>10s}"]
    total = collections.Counter()
    for name in names:
        row = counts[name]
        total += row
        mean = 1e3 * seconds[name] / max(1, sum(row.values()))
        lines.append(f"{name:32s}" + "".join(f"{row[o]:10d}" for o in OUTCOMES) + f"{mean:10.1f}")
    lines.append(f"{'in all, ' + format(sum(total.values()), ','):32s}" + "".join(f"{total[o]:10d}" for o in OUTCOMES))
    print("\n".join(lines), flush=True)
    return sum(total[o] for o in BAD)


def single(seed, index):
    """Run one problem and show it."""
    np.set_printoptions(precision=17)
    name, case, spoiled = runner.problem(seed, index)
    print(f"{name}, seed {seed}, index {index}")
    for key, value in case.arguments.items():
        print(f"  {key} = {value!r}")
    if spoiled:
        print(f"  but {spoiled[0]} = {spoiled[1]}")
    signal.signal(signal.SIGALRM, runner.alarm)
    name, outcome, text = runner.run(seed, index)
    print(f"{outcome}: {text}")
    return int(outcome in BAD)


def main(arguments=None):
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=100_000, help="number of problems (100,000)")
    parser.add_argument("--first", type=int, default=0, help="index of the first (0)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, metavar="INDEX", help="run this problem alone and show it")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (all cores)")
    parser.add_argument("--findings", type=int, default=50, help="how many findings are printed (50)")
    given = parser.parse_args(arguments)
    if missing():
        print(f"the table and the public names of numerics differ by {', '.join(sorted(missing()))}", file=sys.stderr)
        return 2
    if given.only is not None:
        return single(given.seed, given.only)
    last, chunk = given.first + given.count, 25
    tasks = [(given.seed, k, min(k + chunk, last)) for k in range(given.first, last, chunk)]
    counts, seconds = collections.defaultdict(collections.Counter), collections.Counter()
    begin, told, shown, done = time.perf_counter(), 0.0, 0, 0
    pool = None
    if given.workers > 1:
        pool = multiprocessing.get_context("spawn").Pool(given.workers, runner.ignore_interrupt)
    try:
        for results in pool.imap_unordered(runner.block, tasks) if pool else map(runner.block, tasks):
            for index, name, outcome, text, took in results:
                counts[name][outcome] += 1
                seconds[name] += took
                if outcome in BAD and shown < given.findings:
                    shown += 1
                    print(f"{index}: {name}: {outcome}: {text}", flush=True)
            done += len(results)
            now = time.perf_counter() - begin
            if now - told > 10:
                told = now
                print(f"# {done:,} of {given.count:,} in {now:.0f} s, {now / done * (given.count - done):.0f} s to go",
                      file=sys.stderr, flush=True)  # fmt: skip
    except KeyboardInterrupt:
        print("interrupted; the counts so far:", flush=True)
    finally:
        if pool:
            pool.terminate()
    bad = show(counts, seconds)
    print(f"seed {given.seed}, {time.perf_counter() - begin:.0f} s with {given.workers} processes")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
