"""How fast: the stationary covariance of heavy ball against what else computes it, and the simulation against a loop.

Run ``python benchmarks/stationary.py`` (``--help`` for options) on an otherwise idle machine. The contenders of a line
take turns, times are medians over the turns, and only the ratios mean anything on another machine.

==============  ====================================================================================================
``ours``        `sgdcov.numerics.stationary_covariance`, everything in it (checks, eigenbasis, kernel, transforms)
``eigh``        one ``scipy.linalg.eigh`` of the Hessian: the floor of any spectral method
``4 products``  the four d x d matrix products that any spectral method needs
``scipy``       ``scipy.linalg.solve_discrete_lyapunov`` on the 2d x 2d companion problem
``slycot``      ``control.dlyap`` with slycot on the same, where it is installed
==============  ====================================================================================================
"""

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable

import numpy as np
import scipy.linalg

from sgdcov.numerics import Quadratic, max_learning_rate, stationary_covariance
from sgdcov.theory import heavy_ball

MOMENTUM = 0.9


def problem(d: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A Hessian and a noise covariance that do not commute."""
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(2 * d, d)), rng.normal(size=(2 * d, d))
    return x.T @ x / (2 * d), y.T @ y / (2 * d)


def median_times(contenders: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """The median time of each contender; they take turns, so that a slow moment of the machine hits all."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(t) for name, t in times.items()}


def companion(lr: float, hessian: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The recursion of (w, v) as one matrix, and the covariance of what one step adds."""
    eye = np.eye(len(hessian))
    transition = np.block([[eye - lr * hessian, -lr * MOMENTUM * eye], [hessian, MOMENTUM * eye]])
    gain = np.vstack([-lr * eye, eye])
    return transition, gain @ noise @ gain.T


def slycot_dlyap() -> Callable[[np.ndarray, np.ndarray], np.ndarray] | None:
    """``control.dlyap``, if it and slycot are installed."""
    if importlib.util.find_spec("control") is None or importlib.util.find_spec("slycot") is None:
        return None
    import control

    return lambda a, q: control.dlyap(a, q, method="slycot")


def time_solvers(dimensions: list[int], repeats: int, largest_companion: int) -> None:
    """Print one line per dimension."""
    dlyap = slycot_dlyap()
    print(f"Stationary covariance of heavy_ball(momentum={MOMENTUM}); median seconds of {repeats} turns")
    print(f"slycot: {'measured' if dlyap else 'not installed'}\n")
    floor = "ours/(eigh+4 products)"
    columns = ("d", "ours", "eigh", "4 products", "scipy", "slycot", floor, "scipy/ours", "slycot/ours", "difference")
    print("  ".join(f"{c:>10}" for c in columns))
    for d in dimensions:
        hessian, noise = problem(d)
        lr = 0.5 * max_learning_rate(heavy_ball(momentum=MOMENTUM), hessian)
        optimizer = heavy_ball(lr=lr, momentum=MOMENTUM)
        a, q = companion(lr, hessian, noise)
        ours = np.asarray(stationary_covariance(optimizer, hessian, noise))  # also warms up every cache
        fast = median_times(
            {
                "ours": lambda optimizer=optimizer, h=hessian, c=noise: stationary_covariance(optimizer, h, c),
                "eigh": lambda h=hessian: scipy.linalg.eigh(h, driver="evd"),
                "4 products": lambda h=hessian, c=noise: [h @ c for _ in range(4)],
            },
            repeats,
        )
        slow, defect = {}, None
        if d <= largest_companion:
            reference = scipy.linalg.solve_discrete_lyapunov(a, q)[:d, :d]
            defect = np.linalg.norm(reference - ours) / np.linalg.norm(ours)
            contenders = {"scipy": lambda a=a, q=q: scipy.linalg.solve_discrete_lyapunov(a, q)}
            if dlyap:
                contenders["slycot"] = lambda a=a, q=q: dlyap(a, q)
            slow = median_times(contenders, min(repeats, 3))
        cells = [
            f"{d}",
            *(f"{fast[name]:.4f}" for name in ("ours", "eigh", "4 products")),
            *(f"{slow[name]:.3f}" if name in slow else "-" for name in ("scipy", "slycot")),
            f"{fast['ours'] / (fast['eigh'] + fast['4 products']):.2f}x",
            *(f"{slow[name] / fast['ours']:.0f}x" if name in slow else "-" for name in ("scipy", "slycot")),
            "-" if defect is None else f"{defect:.1e}",
        ]
        widths = [max(10, len(c)) for c in columns]
        print("  ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)), flush=True)


def time_simulation(d: int, replicas: int, repeats: int) -> None:
    """Print replica-steps per second of the batched simulation and of a loop over ``torch.optim.SGD``."""
    import torch

    from sgdcov import validation

    hessian, noise = problem(d)
    optimizer = heavy_ball(lr=0.1, momentum=MOMENTUM)
    quadratic = Quadratic(hessian=hessian, noise=noise, optimum=np.zeros(d))
    steps, loop_steps = 2000, 2000
    h = torch.as_tensor(hessian, dtype=torch.float64)
    root = torch.as_tensor(np.linalg.cholesky(noise), dtype=torch.float64)

    def loop() -> None:
        generator = torch.Generator().manual_seed(0)
        w = torch.zeros(d, dtype=torch.float64)
        optim = torch.optim.SGD([w], lr=0.1, momentum=MOMENTUM)
        for _ in range(loop_steps):
            w.grad = h @ w + root @ torch.randn(d, generator=generator).double()
            optim.step()

    def batched(engine: str) -> Callable[[], object]:
        return lambda: validation.stationary_covariance(
            optimizer, quadratic, replicas=replicas, steps=steps, rng=0, engine=engine, progress=False
        )

    batched("rule")()
    times = median_times({"rule": batched("rule"), "torch.optim": batched("torch.optim"), "loop": loop}, repeats)
    loop_rate = loop_steps / times["loop"]
    print(f"\nSimulation of heavy_ball, d={d}; replica-steps per second, median of {repeats} turns\n")
    rows = [
        ("loop over torch.optim.SGD, one replica at a time", loop_rate),
        (f"batched, {replicas} replicas, the rule's own step", replicas * steps / times["rule"]),
        (f"batched, {replicas} replicas, torch.optim.SGD", replicas * steps / times["torch.optim"]),
    ]
    for name, rate in rows:
        print(f"{name:<52} {rate:>14,.0f}  {rate / loop_rate:>6.0f}x")


def main() -> None:
    """Run both benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dimensions", type=int, nargs="*", default=[100, 300, 600, 1000])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--largest-companion", type=int, default=600, help="largest d for the companion solvers")
    parser.add_argument("--replicas", type=int, default=1000)
    options = parser.parse_args()
    time_solvers(options.dimensions, options.repeats, options.largest_companion)
    if importlib.util.find_spec("torch") is None:
        print("\nSimulation: torch is not installed")
    else:
        time_simulation(10, options.replicas, options.repeats)


if __name__ == "__main__":
    main()
