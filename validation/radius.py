r"""Real robust training along the radius of an attack: what numerics' `radius_path` predicts, measured.

Nothing here asks for a Hessian of the loss. With states w of the stationary run and the gradient of the mean loss,

.. math:: \operatorname{tr}(HS) = \mathrm E\,(w - \bar w)^\top \nabla L(w) , \qquad
          H = \operatorname{Cov}(\nabla L(w), w)\, S^{-1} ,

the first by definition where L is quadratic, and both for any L under Gaussian w, where that H is the Hessian averaged
over the law, kinks included (Stein's lemma). The gradient noise at a state is half the mean squared distance of the
gradients of two minibatches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ..errors import InvalidProblemError, NonStationaryError, UnstableError
from ..numerics._arrays import finite_array, whole_number
from ..numerics._result import Frozen
from ..theory import Optimizer
from ._gradients import gradient_source
from ._runs import ENGINES, Engine, check_engine, seed_of
from .stationary import Estimate, stationary_covariance

__all__ = ["MeasuredRadiusPath", "radius_path"]

Array: TypeAlias = NDArray[np.float64]

#: Blocks of replicas that are left out in turn for the standard error of an eigenvalue.
BLOCKS = 20


@dataclass(frozen=True, eq=False, repr=False)
class MeasuredRadiusPath(Frozen):
    """What was measured along the radius; nan where there is no stationary run, and `status` says why.

    Every array has shape (K,), and beside it stands its standard error, from the spread between replicas.

    Attributes
    ----------
    radii : ndarray
    curvature, curvature_error : ndarray
        The largest eigenvalue of the Hessian that the iterates see.
    gradient_noise, gradient_noise_error : ndarray
        The trace of the covariance of one minibatch's gradient, averaged over the iterates.
    spread, spread_error : ndarray
        The trace of the stationary covariance S.
    excess_risk, excess_risk_error : ndarray
        ``tr(H S) / 2``.
    excess_robust_risk, excess_robust_risk_error : ndarray
        The robust risk itself, averaged over the iterates, above that of the optimum.
    estimates : tuple of Estimate or None
    status : tuple of str
    """

    radii: Array
    curvature: Array
    curvature_error: Array
    gradient_noise: Array
    gradient_noise_error: Array
    spread: Array
    spread_error: Array
    excess_risk: Array
    excess_risk_error: Array
    excess_robust_risk: Array
    excess_robust_risk_error: Array
    estimates: tuple[Estimate | None, ...]
    status: tuple[str, ...]

    def __repr__(self) -> str:
        found = sum(estimate is not None for estimate in self.estimates)
        along = f"from {self.radii.min():g} to {self.radii.max():g}" if len(self.radii) else "of none"
        return f"MeasuredRadiusPath({len(self.radii)} radii {along}, {found} measured)"


def radius_path(
    problem_at: Callable[[float], Any],
    radii: ArrayLike,
    optimizer: Optimizer,
    batch_size: int,
    *,
    replicas: int,
    replacement: bool = True,
    engine: Engine = "rule",
    rng: np.random.Generator | int | None = None,
    progress: bool = True,
) -> MeasuredRadiusPath:
    """Measure curvature, noise, stationary covariance and risk along the radius of an attack.

    Parameters
    ----------
    problem_at : callable
        Maps a radius to a problem that `stationary_covariance` measures with a batch size and that has ``loss(w)``,
        ``gradient(w)`` and ``optimum``. Where its optimum has weights of 0, those of its ``face()`` are run.
    radii : array_like, shape (K,)
    optimizer : Optimizer
        Every hyper-parameter bound.
    batch_size : int
    replicas : int
        At each radius; at least 100.
    replacement : bool, default True
    engine : {"rule", "torch.optim"}
    rng : numpy.random.Generator or int, optional
        Of all runs, each of which has a seed of its own.
    progress : bool

    Returns
    -------
    MeasuredRadiusPath

    Raises
    ------
    InvalidProblemError
        If an argument is not what it should be. A radius without a stationary law is not an error: see ``status``.

    Examples
    --------
    >>> from sgdcov import numerics
    >>> from sgdcov.theory import sgd
    >>> def problem_at(radius):
    ...     return numerics.GaussianAdversarialRegression([[1.0]], [1.0], 1.0, radius)
    >>> measured = radius_path(problem_at, [0.0, 0.2], sgd(lr=0.1), 4, replicas=1000, rng=0, progress=False)
    >>> predicted = numerics.radius_path(problem_at, [0.0, 0.2], sgd(lr=0.1), 4)
    >>> bool((abs(measured.curvature / predicted.curvature - 1) < 0.03).all())
    True
    """
    along = np.atleast_1d(finite_array("radii", radii))
    if along.ndim != 1 or not callable(problem_at):
        raise InvalidProblemError("radii must be a sequence of finite numbers, and problem_at a function of one.")
    check_engine(engine, ENGINES)
    if whole_number("replicas", replicas, least=2) < 5 * BLOCKS:
        raise InvalidProblemError(f"{replicas} replicas are too few for standard errors; take at least {5 * BLOCKS}.")
    seeds = np.random.SeedSequence(seed_of(rng)).generate_state(2 * len(along))
    estimates: list[Estimate | None] = []
    status, found = [], {name: np.full((2, len(along)), np.nan) for name in _QUANTITIES}
    for k, radius in enumerate(along):
        problem = problem_at(float(radius))
        estimate, text = None, "measured"
        try:
            kinks = getattr(problem, "kinks", None)
            if kinks is not None and kinks.coordinates and not kinks.collapsed:
                dim, problem = problem.dim, problem.face()
                text = f"measured on the face of {problem.dim} of {dim} weights, the others 0"
            estimate = stationary_covariance(
                optimizer, problem, replicas=replicas, batch_size=batch_size, replacement=replacement, engine=engine,
                rng=int(seeds[2 * k]), progress=progress,
            )  # fmt: skip
        except (UnstableError, NonStationaryError, InvalidProblemError) as error:
            text = f"{type(error).__name__}: {error}"
        if estimate is not None:
            quantities = _quantities(estimate, problem, batch_size, replacement, int(seeds[2 * k + 1]))
            for name, values in quantities.items():
                found[name][:, k] = values
        estimates.append(estimate)
        status.append(text)
    columns = {name: values[0] for name, values in found.items()}
    errors = {f"{name}_error": values[1] for name, values in found.items()}
    return MeasuredRadiusPath(radii=along, **columns, **errors, estimates=tuple(estimates), status=tuple(status))


_QUANTITIES = ("curvature", "gradient_noise", "spread", "excess_risk", "excess_robust_risk")


def _quantities(
    estimate: Estimate, problem: Any, batch_size: int, replacement: bool, seed: int
) -> dict[str, tuple[float, float]]:
    """Every quantity with its standard error."""
    states = estimate.samples  # (snapshots, replicas, d)
    centred = states - estimate.mean
    slopes = np.array([problem.gradient(w) for w in states])
    slopes -= slopes.mean(axis=(0, 1))
    # One degree of freedom goes into the mean.
    unbiased = states.shape[0] * states.shape[1] / (states.shape[0] * states.shape[1] - 1.0)
    losses = np.array([problem.loss(w) for w in states]) - float(problem.loss(problem.optimum))
    return {
        "curvature": _largest_curvature(slopes, centred),
        "gradient_noise": _gradient_noise(estimate, problem, batch_size, replacement, seed),
        "spread": _average(unbiased * np.sum(centred**2, axis=2)),
        "excess_risk": _average(0.5 * unbiased * np.sum(centred * slopes, axis=2)),
        "excess_robust_risk": _average(losses),
    }


def _average(values: Array) -> tuple[float, float]:
    """Mean of (snapshots, replicas) values, with the standard error that independent replicas give it."""
    by_replica = values.mean(axis=0)
    return float(by_replica.mean()), float(by_replica.std(ddof=1) / np.sqrt(len(by_replica)))


def _largest_curvature(slopes: Array, centred: Array) -> tuple[float, float]:
    """The largest eigenvalue of the symmetric part of Cov(slope, w) S^-1, less the bias that the jackknife finds."""
    cross = np.einsum("sri,srj->rij", slopes, centred)
    spread = np.einsum("sri,srj->rij", centred, centred)
    blocks = np.array_split(np.arange(len(cross)), BLOCKS)
    left_out = np.array([_largest(cross, spread, block) for block in blocks])
    everything = _largest(cross, spread, np.zeros(0, dtype=np.intp))
    without_bias = BLOCKS * everything - (BLOCKS - 1) * left_out.mean()
    error = np.sqrt((BLOCKS - 1) * np.mean((left_out - left_out.mean()) ** 2))
    return float(without_bias), float(error)


def _largest(cross: Array, spread: Array, left_out: NDArray[np.intp]) -> float:
    kept = np.setdiff1d(np.arange(len(cross)), left_out)
    hessian = np.linalg.lstsq(spread[kept].sum(axis=0), cross[kept].sum(axis=0).T, rcond=None)[0]
    return float(np.linalg.eigvalsh(0.5 * (hessian + hessian.T))[-1])


def _gradient_noise(
    estimate: Estimate, problem: Any, batch_size: int, replacement: bool, seed: int
) -> tuple[float, float]:
    """The trace of the covariance of a minibatch's gradient at the states of the run."""
    source = gradient_source(
        problem, estimate.samples.shape[1], torch.Generator().manual_seed(seed), optimizer=estimate.optimizer,
        batch_size=batch_size, replacement=replacement,
    )  # fmt: skip
    found = []
    for w in torch.tensor(estimate.samples):
        first, second = (next(source.gradients)(w) for _ in range(2))
        found.append(0.5 * torch.sum((first - second) ** 2, dim=1).numpy())
    return _average(np.array(found))
