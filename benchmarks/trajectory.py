"""How fast through time: the covariance along a schedule against propagating it step by step in NumPy.

Run ``python benchmarks/trajectory.py`` (``--help`` for options) on an otherwise idle machine. A schedule of three
phases of heavy ball, each with its own learning rate, from a deterministic start: the covariance of the weights at
the end.

===============  ===================================================================================================
``ours``         `sgdcov.numerics.trajectory`, everything in it (checks, eigenbasis, doubling, transforms)
``dense``        ``Z = A @ Z @ A.T + Q`` with the 2d x 2d matrices of the whole state
``blocks``       the same by d x d blocks: a quarter of the multiplications
``eigenbasis``   the same in the eigenbasis of the Hessian, where a step is elementwise: what is left to gain by hand
===============  ===================================================================================================

The step-by-step contenders are measured over short runs of the same schedule and extrapolated to the whole of it, for
every step costs the same; the table says so. That all four compute the same is checked on a short run, and ``--whole``
checks the end of the whole schedule against the fastest of them, step by step (hours at full size).
"""

import argparse
import time
import tracemalloc
from collections.abc import Callable

import numpy as np

from sgdcov.numerics import Phase, Schedule, max_learning_rate, trajectory
from sgdcov.theory import heavy_ball

MOMENTUM = 0.9
#: Share of the steps and fraction of the largest stable learning rate of each phase.
PHASES = ((0.5, 0.25), (0.3, 0.025), (0.2, 0.0025))

Array = np.ndarray
Propagation = Callable[[Schedule, Array, Array], Array]


def problem(d: int, seed: int = 0) -> tuple[Array, Array]:
    """A Hessian and a noise covariance that do not commute."""
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(2 * d, d)), rng.normal(size=(2 * d, d))
    return x.T @ x / (2 * d), y.T @ y / (2 * d)


def three_phases(steps: int, largest_lr: float) -> Schedule:
    """A schedule of that many steps in all."""
    return Schedule([Phase(round(share * steps), lr=fraction * largest_lr) for share, fraction in PHASES])


def ours(schedule: Schedule, hessian: Array, noise: Array) -> Array:
    """The covariance of the weights at the end, by doubling."""
    result = trajectory(heavy_ball(momentum=MOMENTUM), schedule, hessian, noise, record=[schedule.steps])
    return result.covariance[0]


def dense(schedule: Schedule, hessian: Array, noise: Array) -> Array:
    """Step by step, the whole state as one vector."""
    d = len(hessian)
    eye = np.eye(d)
    z = np.zeros((2 * d, 2 * d))
    for phase in schedule:
        lr = phase.values["lr"]
        transition = np.block([[eye - lr * hessian, -lr * MOMENTUM * eye], [hessian, MOMENTUM * eye]])
        gain = np.vstack([-lr * eye, eye])
        excitation = gain @ noise @ gain.T
        for _ in range(phase.steps):
            z = transition @ z @ transition.T + excitation
    return z[:d, :d]


def blocks(schedule: Schedule, hessian: Array, noise: Array) -> Array:
    """Step by step, by the covariances of w and v: v <- momentum v + H w + noise, w <- w - lr v."""
    ww, wv, vv = (np.zeros_like(hessian) for _ in range(3))
    for phase in schedule:
        lr = phase.values["lr"]
        for _ in range(phase.steps):
            hw = hessian @ ww
            hwv, hwh = hessian @ wv, hw @ hessian
            # Exactly symmetric: the rounding of the asymmetric part would grow.
            vv = MOMENTUM**2 * vv + MOMENTUM * (hwv + hwv.T) + (hwh + hwh.T) / 2 + noise
            wv = MOMENTUM * wv + hw.T
            ww = ww - lr * (wv + wv.T) + lr**2 * vv
            wv = wv - lr * vv
    return ww


def eigenbasis(schedule: Schedule, hessian: Array, noise: Array) -> Array:
    """Step by step, elementwise on the covariances of w and v in the eigenbasis."""
    h, basis = np.linalg.eigh(hessian)
    c = basis.T @ noise @ basis
    c = (c + c.T) / 2
    left, both = h[:, None], np.outer(h, h)
    ww, wv, vv = (np.zeros_like(hessian) for _ in range(3))
    for phase in schedule:
        lr = phase.values["lr"]
        for _ in range(phase.steps):
            hwv = left * wv
            vv = MOMENTUM**2 * vv + MOMENTUM * (hwv + hwv.T) + both * ww + c
            wv = MOMENTUM * wv + ww * h
            ww = ww - lr * (wv + wv.T) + lr**2 * vv
            wv = wv - lr * vv
    return basis @ ww @ basis.T


def least_time(run: Callable[[], object], repeats: int) -> float:
    """The least seconds of some runs, which is what the machine can do."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def peak_memory(run: Callable[[], object]) -> float:
    """The most that a run had allocated at a time, in MB, its arguments not counted."""
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dimension", type=int, default=500)
    parser.add_argument("--steps", type=int, default=10**6, help="steps of the schedule (default 1000000)")
    parser.add_argument("--measured", type=int, default=30, help="steps of the short run; the long one has 3 times")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--whole", action="store_true", help="check the end of the whole schedule step by step")
    options = parser.parse_args()
    hessian, noise = problem(options.dimension)
    largest_lr = max_learning_rate(heavy_ball(momentum=MOMENTUM), hessian)
    whole, short = three_phases(options.steps, largest_lr), three_phases(options.measured, largest_lr)
    long = three_phases(3 * options.measured, largest_lr)
    reference = ours(short, hessian, noise)  # also warms up every cache

    seconds = least_time(lambda: ours(whole, hessian, noise), options.repeats)
    memory = peak_memory(lambda: ours(whole, hessian, noise))
    print(f"heavy_ball(momentum={MOMENTUM}), d={options.dimension}, {len(whole)} phases, {whole.steps} steps in all")
    print(f"step by step: from {long.steps} steps, extrapolated; least of {options.repeats} runs each\n")
    columns = ("", "seconds", "per step", "ratio to ours", "peak MB", "difference")
    print("  ".join(f"{c:>13}" for c in columns))
    print("  ".join(f"{c:>13}" for c in ("ours", f"{seconds:.3f}", "-", "1", f"{memory:.0f}", "-")))
    contenders: dict[str, Propagation] = {"dense": dense, "blocks": blocks, "eigenbasis": eigenbasis}
    for name, run in contenders.items():
        # The difference of two lengths leaves out what is done once, such as the eigenbasis.
        once, twice = (
            least_time(lambda run=run, schedule=schedule: run(schedule, hessian, noise), options.repeats)
            for schedule in (short, long)
        )
        step = (twice - once) / (long.steps - short.steps)
        total = once + step * (whole.steps - short.steps)
        memory = peak_memory(lambda run=run: run(short, hessian, noise))
        defect = np.linalg.norm(run(short, hessian, noise) - reference) / np.linalg.norm(reference)
        cells = (name, f"{total:.0f} *", f"{step:.5f}", f"{total / seconds:.0f}", f"{memory:.0f}", f"{defect:.1e}")
        print("  ".join(f"{c:>13}" for c in cells))
    print(f"\n* extrapolated. difference: from ours after {short.steps} steps, relative (Frobenius)")
    if options.whole:
        end, mine = eigenbasis(whole, hessian, noise), ours(whole, hessian, noise)
        print(f"at the end of all {whole.steps} steps: {np.linalg.norm(end - mine) / np.linalg.norm(mine):.1e}")


if __name__ == "__main__":
    main()
