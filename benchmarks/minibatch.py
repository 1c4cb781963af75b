"""How fast and how large: the exact law under minibatch noise against the Kronecker system, and against a simulation.

Run ``python benchmarks/minibatch.py`` (``--help`` for options) on an otherwise idle machine. The contenders of a line
take turns, times are medians over the turns, and only the ratios mean anything on another machine.

==============  ====================================================================================================
``ours``        `sgdcov.numerics.stationary_covariance` with a `MinibatchNoise`, everything in it: the existence of
                the law (an eigenvalue problem), then the law (conjugate gradients), neither ever d^2 x d^2
``kronecker``   one dense linear system of d^2 unknowns, built from the N Kronecker products of the examples
``simulation``  `sgdcov.validation.stationary_covariance` with true minibatches, for its error to fall to 1%: measured
                with few replicas, whose number is then scaled by the square of the error
==============  ====================================================================================================
"""

import argparse
import importlib.util
import statistics
import time
import tracemalloc
from collections.abc import Callable

import numpy as np

from sgdcov.numerics import LeastSquares, MinibatchNoise, mean_square_stability, stationary_covariance
from sgdcov.theory import heavy_ball, sgd

BATCH_SIZE = 8


def data(d: int, num_examples: int, seed: int = 0) -> LeastSquares:
    """A regression whose input variances spread over two decades."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(num_examples, d)) * np.exp(rng.uniform(-2.3, 0.0, d))
    return LeastSquares(X, X @ rng.normal(size=d) + rng.normal(size=num_examples))


def median_times(contenders: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """The median time of each contender; they take turns."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(t) for name, t in times.items()}


def kronecker(problem: LeastSquares, lr: float) -> np.ndarray:
    """Plain SGD's stationary covariance from one dense system, batches drawn with replacement."""
    X, d = problem.X, problem.dim
    pairs = np.einsum("ni,nj->nij", X, X).reshape(len(X), -1)
    h, eye = problem.hessian, np.eye(d)
    fluctuation = (pairs.T @ pairs / len(X)).reshape(d, d, d, d)  # E x_i x_j x_k x_l
    second = fluctuation.transpose(0, 2, 1, 3).reshape(d * d, d * d) - np.kron(h, h)
    drift = eye - lr * h
    system = np.eye(d * d) - np.kron(drift, drift) - lr**2 / BATCH_SIZE * second
    return np.linalg.solve(system, lr**2 * problem.noise(BATCH_SIZE).ravel()).reshape(d, d)


def against_kronecker(dimensions: list[int], repeats: int) -> None:
    """Print one line per dimension, plain SGD."""
    print(f"Plain SGD, N = 500, batches of {BATCH_SIZE}; median seconds of {repeats} turns\n")
    print(f"{'d':>6}  {'ours':>9}  {'kronecker':>9}  {'kronecker/ours':>14}  {'difference':>10}")
    for d in dimensions:
        problem = data(d, 500)
        noise = MinibatchNoise(problem, BATCH_SIZE)
        lr = 0.5 * mean_square_stability(sgd(lr=1.0), noise).mulayoff_michaeli
        ours = np.asarray(stationary_covariance(sgd(lr=lr), noise.hessian, noise))
        difference = np.linalg.norm(kronecker(problem, lr) - ours) / np.linalg.norm(ours)
        times = median_times(
            {
                "ours": lambda lr=lr, n=noise: stationary_covariance(sgd(lr=lr), n.hessian, n),
                "kronecker": lambda lr=lr, p=problem: kronecker(p, lr),
            },
            repeats,
        )
        ratio = times["kronecker"] / times["ours"]
        print(f"{d:>6}  {times['ours']:>9.4f}  {times['kronecker']:>9.4f}  {ratio:>13.1f}x  {difference:>10.1e}")


def against_simulation(d: int, replicas: int) -> None:
    """Print how long a simulation needs for an error of 1%."""
    from sgdcov import validation

    problem = data(d, 2000)
    noise = MinibatchNoise(problem, BATCH_SIZE)
    optimizer = heavy_ball(lr=1.0, momentum=0.9)
    optimizer = optimizer.replace(lr=0.5 * mean_square_stability(optimizer, noise).largest_lr)
    start = time.perf_counter()
    law = stationary_covariance(optimizer, noise.hessian, noise)
    ours = time.perf_counter() - start
    start = time.perf_counter()
    estimate = validation.stationary_covariance(
        optimizer, problem, batch_size=BATCH_SIZE, replicas=replicas, rng=0, progress=False
    )
    seconds = time.perf_counter() - start
    error = np.linalg.norm(estimate.value - law.value) / np.linalg.norm(law.value)
    scaled = seconds * (error / 0.01) ** 2
    print(f"\nHeavy ball, d = {d}, N = 2000, batches of {BATCH_SIZE}: ours {ours:.2f} s")
    print(f"simulation of {replicas} replicas x {estimate.steps} steps: {seconds:.1f} s for an error of {error:.1%}")
    print(f"for an error of 1% it takes {scaled:.0f} s, {scaled / ours:.0f}x ours")


def at_size(d: int, num_examples: int) -> None:
    """Print time and memory of one large problem."""
    noise = MinibatchNoise(data(d, num_examples), BATCH_SIZE)
    print(f"\nd = {d}, N = {num_examples}, batches of {BATCH_SIZE}: seconds, and memory at the peak of it")
    for optimizer in (sgd(lr=1.0), heavy_ball(lr=1.0, momentum=0.9)):
        times = {}
        start = time.perf_counter()
        stability = mean_square_stability(optimizer, noise)
        largest = stability.largest_lr
        times["largest_lr"] = time.perf_counter() - start
        bound = optimizer.replace(lr=0.5 * largest)
        tracemalloc.start()
        start = time.perf_counter()
        law = stationary_covariance(bound, noise.hessian, noise)
        times["law"] = time.perf_counter() - start
        peak = tracemalloc.get_traced_memory()[1] / 2**20
        tracemalloc.stop()
        start = time.perf_counter()
        radius = mean_square_stability(bound, noise).spectral_radius
        times["spectral_radius"] = time.perf_counter() - start
        shown = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in times.items())
        print(f"{bound.rule.name}: {shown}; {peak:.0f} MB; residual {law.residual:.1e}, radius {radius:.6f}")
    print(f"(the dense operator would have {d**4 * 8 / 2**30:.0f} GB)")


def main() -> None:
    """Run all three."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dimensions", type=int, nargs="*", default=[5, 10, 20, 40, 60])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--simulated", type=int, default=100, help="d of the simulation")
    parser.add_argument("--replicas", type=int, default=500)
    parser.add_argument("--large", type=int, nargs=2, default=[300, 2000], metavar=("d", "N"))
    options = parser.parse_args()
    against_kronecker(options.dimensions, options.repeats)
    at_size(*options.large)
    if importlib.util.find_spec("torch") is None:
        print("\nSimulation: torch is not installed")
    else:
        against_simulation(options.simulated, options.replicas)


if __name__ == "__main__":
    main()
