r"""The stationary law of robust training as a function of the attack's radius."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InvalidProblemError, NonStationaryError, ScaleError, UnstableError
from ..theory import Optimizer, recursion
from . import _arrays
from ._batches import checked_batch_size
from ._result import Frozen
from .adversarial import AdversarialLeastSquares, AdversarialLogistic
from .kink_corrected import kink_corrected_covariance
from .mean_square import mean_square_stability
from .noise import MinibatchNoise
from .problems import LeastSquares
from .quadratic_examples import QuadraticExamples
from .stability import max_learning_rate
from .stationary import StationaryCovariance, stationary_covariance

__all__ = ["RadiusPath", "radius_path"]

Array: TypeAlias = NDArray[np.float64]
PathLaw: TypeAlias = Literal["auto", "local", "kink-corrected"]


@dataclass(frozen=True, eq=False, repr=False)
class RadiusPath(Frozen):
    """What becomes of the stationary law along the radius; nan where there is none, and `status` says why.

    Attributes
    ----------
    radii : ndarray, shape (K,)
    curvature : ndarray, shape (K,)
        The largest eigenvalue of the Hessian H.
    gradient_noise : ndarray, shape (K,)
        The trace of the covariance C of one step's gradient noise.
    spread : ndarray, shape (K,)
        The trace of the stationary covariance S.
    error : ndarray, shape (K,)
        A bound on the relative error of S, that of its law.
    excess_risk : ndarray, shape (K,)
        ``tr(H S) / 2``, the excess robust risk of the quadratic that H is.
    excess_robust_risk : ndarray, shape (K,)
        The excess robust risk averaged over the law: the loss itself where the law is kink-corrected, otherwise as
        ``excess_risk``.
    least_risk : ndarray, shape (K,)
        The robust risk of the optimum.
    largest_lr : ndarray, shape (K,)
        The least upper bound of the learning rates at which the mean settles.
    largest_mean_square_lr : ndarray, shape (K,)
        That of those which have a covariance under the minibatches of the problem's ``cell()``; nan where the optimum
        rests on a kink, or there are no examples.
    curvature_alone, noise_alone : ndarray, shape (K,)
        The spread with the Hessian of the radius and the noise of the first one that has a law, and the other way
        round.
    optima : tuple of ndarray or None
    laws : tuple of StationaryCovariance or None
    status : tuple of str
        "stationary", or why not.

    Notes
    -----
    Where the norm's kink holds weights at 0, the law is that of the other weights (``face()``), and ``status`` says so.
    """

    radii: Array
    curvature: Array
    gradient_noise: Array
    spread: Array
    error: Array
    excess_risk: Array
    excess_robust_risk: Array
    least_risk: Array
    largest_lr: Array
    largest_mean_square_lr: Array
    curvature_alone: Array
    noise_alone: Array
    optima: tuple[Array | None, ...]
    laws: tuple[StationaryCovariance | None, ...]
    status: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.radii)

    def __repr__(self) -> str:
        stationary = sum(law is not None for law in self.laws)
        return (
            f"RadiusPath({len(self)} radii from {self.radii[0]:g} to {self.radii[-1]:g}, {stationary} with a "
            f"stationary law)"
        )


def radius_path(
    problem_at: Callable[[float], Any],
    radii: ArrayLike,
    optimizer: Optimizer,
    batch_size: int,
    *,
    replacement: bool = True,
    law: PathLaw = "auto",
) -> RadiusPath:
    """Curvature, noise, stationary covariance, risk and stability along the radius of an attack.

    Parameters
    ----------
    problem_at : callable
        Maps a radius to a problem: `AdversarialLeastSquares`, `AdversarialLogistic`, `GaussianAdversarialRegression`
        or anything with ``hessian``, ``optimum``, ``loss(w)`` and ``noise(batch_size)``.  The path may as well be
        along anything else, such as a number of random features.
    radii : array_like, shape (K,)
    optimizer : Optimizer
        Every hyper-parameter bound.
    batch_size : int
    replacement : bool, default True
        Whether the examples of a batch are drawn independently; for problems with examples.
    law : {"auto", "local", "kink-corrected"}
        "local" is the law of the quadratic at the optimum, which does not exist on kinks; "kink-corrected" is
        `kink_corrected_covariance`; "auto" is the latter for `AdversarialLeastSquares` and "local" otherwise.

    Returns
    -------
    RadiusPath

    Raises
    ------
    InvalidProblemError
        If an argument is not what it should be.  A radius without a law is not an error: see ``status``.

    Examples
    --------
    In one dimension an attack adds curvature and noise, and shrinks the weight towards 0:

    >>> from sgdcov.numerics import GaussianAdversarialRegression
    >>> from sgdcov.theory import sgd
    >>> path = radius_path(lambda radius: GaussianAdversarialRegression([[1.0]], [1.0], 1.0, radius),
    ...                    [0.0, 0.2, 2.0], sgd(lr=0.1), batch_size=4)
    >>> path
    RadiusPath(3 radii from 0 to 2, 2 with a stationary law)
    >>> bool(path.curvature[1] > path.curvature[0])
    True
    """
    law = _arrays.choice("law", law, get_args(PathLaw))
    if not callable(problem_at):
        raise InvalidProblemError(f"problem_at must be a function of a radius, got {_arrays.shown(problem_at)}")
    optimizer = recursion(optimizer).optimizer
    optimizer.require_bound()
    along = _arrays.vector("radii", radii)
    points = [_point(problem_at(float(radius)), optimizer, batch_size, replacement, law) for radius in along]
    reference = next((point for point in points if point.law is not None), _Point())
    columns = {name: np.array([getattr(point, name) for point in points]) for name in _COLUMNS}
    for column in columns.values():
        column.flags.writeable = False
    return RadiusPath(
        radii=along,
        **columns,
        curvature_alone=_spreads(optimizer, [(point.hessian, reference.noise) for point in points]),
        noise_alone=_spreads(optimizer, [(reference.hessian, point.noise) for point in points]),
        optima=tuple(point.optimum for point in points),
        laws=tuple(point.law for point in points),
        status=tuple(point.status for point in points),
    )


_COLUMNS = (
    "curvature",
    "gradient_noise",
    "spread",
    "error",
    "excess_risk",
    "excess_robust_risk",
    "least_risk",
    "largest_lr",
    "largest_mean_square_lr",
)


@dataclass
class _Point:
    """What is known at one radius."""

    status: str = "stationary"
    hessian: Array | None = None
    noise: Array | None = None
    optimum: Array | None = None
    law: StationaryCovariance | None = None
    error: float = float("nan")
    excess_robust_risk: float = float("nan")
    least_risk: float = float("nan")
    largest_lr: float = float("nan")
    largest_mean_square_lr: float = float("nan")

    @property
    def curvature(self) -> float:
        return float("nan") if self.hessian is None else float(np.linalg.eigvalsh(self.hessian)[-1])

    @property
    def gradient_noise(self) -> float:
        return float("nan") if self.noise is None else float(np.trace(self.noise))

    @property
    def spread(self) -> float:
        return float("nan") if self.law is None else float(np.trace(self.law.value))

    @property
    def excess_risk(self) -> float:
        return float("nan") if self.law is None else self.law.excess_risk


def _point(problem: Any, optimizer: Optimizer, batch_size: int, replacement: bool, law: PathLaw) -> _Point:
    out = _Point()
    missing = sorted({"optimum", "loss", "hessian", "noise"} - set(dir(problem)))
    if missing:
        raise InvalidProblemError(
            f"problem_at must return a problem; {_arrays.shown(problem)} has no {', '.join(missing)}"
        )
    examples = hasattr(problem, "num_examples")
    checked_batch_size(batch_size, problem.num_examples if examples else None)
    corrected = law == "kink-corrected" or (law == "auto" and isinstance(problem, AdversarialLeastSquares))
    try:
        out.optimum = problem.optimum
        out.least_risk = float(problem.loss(problem.optimum))
        kinks = getattr(problem, "kinks", None)
        if kinks is not None and kinks.coordinates and not kinks.collapsed:
            dim, problem = problem.dim, problem.face()
            out.status = f"stationary on the face of {problem.dim} of {dim} weights, the others 0"
        if corrected:
            found = kink_corrected_covariance(optimizer, problem, batch_size, replacement=replacement)
            out.hessian, out.noise, out.law = found.hessian, found.noise, found.law
            out.excess_robust_risk, out.error = found.excess_risk, found.error
        else:
            out.hessian = problem.hessian
            noise = problem.noise(batch_size, replacement) if examples else problem.noise(batch_size)
            out.noise = np.asarray(noise)
            out.law = stationary_covariance(optimizer, out.hessian, out.noise)
            out.excess_robust_risk, out.error = out.law.excess_risk, out.law.error
    except (UnstableError, NonStationaryError, InvalidProblemError, ScaleError) as error:
        out.status = f"{type(error).__name__}: {error}"
    if out.hessian is not None and "lr" in optimizer.values:
        out.largest_lr = max_learning_rate(optimizer, out.hessian)
        out.largest_mean_square_lr = _mean_square(problem, optimizer, batch_size, replacement)
    return out


def _mean_square(problem: Any, optimizer: Optimizer, batch_size: int, replacement: bool) -> float:
    if isinstance(problem, AdversarialLeastSquares | AdversarialLogistic):
        if not problem.kinks.smooth:
            return float("nan")
        problem = problem.cell()
    if not isinstance(problem, LeastSquares | QuadraticExamples):
        return float("nan")
    return mean_square_stability(optimizer, MinibatchNoise(problem, batch_size, replacement)).largest_lr


def _spreads(optimizer: Optimizer, pairs: Sequence[tuple[Array | None, Array | None]]) -> Array:
    """The trace of the stationary covariance for pairs of a Hessian and a noise; nan where there is none."""
    out = np.full(len(pairs), np.nan)
    for k, (hessian, noise) in enumerate(pairs):
        if hessian is None or noise is None or hessian.shape != noise.shape:
            continue
        try:
            out[k] = np.trace(stationary_covariance(optimizer, hessian, noise).value)
        except (UnstableError, NonStationaryError, ScaleError):
            continue
    out.flags.writeable = False
    return out
