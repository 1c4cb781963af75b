r"""The covariance and the mean any number of steps after the start, from any start.

From a start of covariance :math:`Z_0` (of all slots), k steps of :math:`Z' = A Z A^\top + B C B^\top` lead to

.. math:: Z_k = A^k Z_0 A^{k\top} + \sum_{t<k} A^t B\, C\, B^\top A^{t\top} ,

what is left of the start (`TransientCovariance.propagated`) and what the noise has built since
(`TransientCovariance.injected`).  In the eigenbasis of the Hessian both are small matrices for every pair of
directions, doubled in double-double arithmetic: :math:`10^9` steps cost thirty doublings.  No
stationary law is asked for: flat directions walk at random, unstable ones grow, both exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InvalidProblemError
from ..theory import Optimizer, recursion
from ._arrays import positive_semidefinite, vector, whole_number
from ._directions import Directions
from ._extended import Extended
from ._forward_error import warn_if_inaccurate
from ._initial import Law, initial_law, initial_mean, rest_factors
from ._log_determinant import log_determinant
from ._noisy_run import NoisyRun
from ._problem import Problem, make_problem
from ._run import Records, Run
from ._slot_law import SlotLaw, slot_indices
from ._spectral_law import CAUSE
from ._step_family import StepFamily
from .mean_square import check_hessian
from .noise import GradientNoise
from .schedules import counted

__all__ = ["TransientCovariance", "transient_covariance", "transient_mean"]

Array: TypeAlias = NDArray[np.float64]
Start: TypeAlias = Law | ArrayLike | None


@dataclass(frozen=True, eq=False, repr=False)
class TransientCovariance(SlotLaw):
    """The covariance after a finite number of steps, of the weights and of every slot.  An array where one is expected.

    Attributes
    ----------
    value : ndarray, shape (d, d)
        Covariance of the first slot, the weights; what ``np.asarray`` gives.
    propagated : ndarray, shape (d, d)
        The part of it that is left of the start.
    injected : ndarray, shape (d, d)
        The part of it that the gradient noise has built since; ``value`` is the sum of the two.
    optimizer : Optimizer
        What made the last step.
    steps : int
        Number of steps since the start.
    error : float or None
        A bound on the relative forward error of ``value`` in the Frobenius norm, against the law of the very doubles
        that were given, start included; None under noise that depends on the weights, where none is known.
    """

    value: Array
    propagated: Array
    injected: Array
    optimizer: Optimizer
    steps: int
    _hessian: Array = field(repr=False)
    _solve_block: Callable[[int, int], Array] = field(repr=False)
    _solve_log_det_and_rank: Callable[[], tuple[float, int]] = field(repr=False)
    error: float | None = None
    _on_demand = (*SlotLaw._on_demand, "_solve_log_det_and_rank")

    def settle(self) -> None:
        """Solve for every block, the log-determinant and the rank."""
        super().settle()
        self._log_det_and_rank  # noqa: B018 - computed and kept

    def __repr__(self) -> str:
        return f"TransientCovariance({self.optimizer!r}, steps={self.steps}, shape={self.value.shape})"

    @property
    def excess_risk(self) -> float:
        """Mean loss above that at the mean, ``tr(H S) / 2``."""
        return 0.5 * float(np.vdot(self._hessian, self.value))

    @property
    def log_det(self) -> float:
        """Logarithm of the product of the nonzero eigenvalues (``rank`` of them): the log-determinant on the range."""
        return self._log_det_and_rank[0]

    @property
    def rank(self) -> int:
        """Number of directions in which the weights vary: the rank of the covariance up to rounding."""
        return self._log_det_and_rank[1]

    @cached_property
    def _log_det_and_rank(self) -> tuple[float, int]:
        return self._solve_log_det_and_rank()


def transient_covariance(
    optimizer: Optimizer,
    hessian: ArrayLike,
    noise: ArrayLike | GradientNoise,
    steps: int,
    *,
    start: Start = None,
    mean: ArrayLike | None = None,
) -> TransientCovariance:
    r"""The covariance of the weights (and every other slot) a number of steps after a start.

    Parameters
    ----------
    optimizer : Optimizer
        Every hyper-parameter bound.  It may be unstable.
    hessian : array_like, shape (d, d)
        H, symmetric positive semidefinite.
    noise : array_like, shape (d, d), or GradientNoise
        C, the covariance of one step's gradient noise; symmetric positive semidefinite.  It need not commute with H.
        Or noise that depends on the weights, such as `MinibatchNoise`.
    steps : int
        How many steps, at least 0.  What it costs does not grow with it (its logarithm apart), but for noise that
        depends on the weights: then every step is taken, one application of the noise's map for each.
    start : StationaryCovariance, TransientCovariance, array_like of shape (d, d), or None
        The law at the start: that of another optimizer of the same slots (before a drop of the learning rate, say), a
        covariance of the weights with every other slot at rest (velocities 0, copies of the weights equal to
        them), or None for a start that does not vary.
    mean : array_like, shape (d,) or (m * d,), optional
        For noise that depends on the weights: their mean at the start, every other slot at rest; or that of all m
        slots, stacked.  The optimum of the noise by default.

    Returns
    -------
    TransientCovariance
        An array wherever one is expected.

    Raises
    ------
    HyperparameterError
        If a hyper-parameter is unbound.
    InvalidProblemError
        If an array is not what it should be, ``steps`` no whole number, or ``start`` of other slots or not positive
        semidefinite.
    DivergenceError
        If the optimizer is unstable and the result overflows.

    Notes
    -----
    In the eigenbasis every entry of each of the two parts is correct to a few units in the last place for up to
    :math:`10^9` steps; with momentum above 0.999 up to three digits fewer.  (Entries between two directions that cancel
    to less than :math:`10^{-14}` of their bound are correct relative to that.)  For that, a stationary ``start`` on the
    same Hessian is computed again to twice the digits; the numbers of any other start are taken as they are.

    Examples
    --------
    A random walk, and the drop of a learning rate from a stationary start:

    >>> from sgdcov.numerics import stationary_covariance
    >>> from sgdcov.theory import sgd
    >>> transient_covariance(sgd(lr=0.5), [[0.0]], [[1.0]], 10**9).value
    array([[2.5e+08]])
    >>> before = stationary_covariance(sgd(lr=1.0), [[1.0]], [[1.0]])
    >>> after = transient_covariance(sgd(lr=0.5), [[1.0]], [[1.0]], 1, start=before)
    >>> after.propagated, after.injected
    (array([[0.25]]), array([[0.25]]))
    """
    count = whole_number("steps", steps)
    if isinstance(noise, GradientNoise):
        return _following(optimizer, hessian, noise, count, start, mean)
    if mean is not None:
        raise InvalidProblemError(
            "with a noise covariance that does not depend on the weights their covariance does not depend on the mean; "
            "leave mean out, or give noise that follows it, such as MinibatchNoise(problem, batch_size)"
        )
    problem = make_problem(optimizer, hessian, noise, None)
    bound = ((problem.optimizer, count),)
    family = StepFamily([problem.optimizer], problem.directions.eigenvalues)
    return _after(Run(bound, family, problem, initial_law(problem, start)), problem, count)


def _following(
    optimizer: Optimizer, hessian: ArrayLike, noise: GradientNoise, count: int, start: Start, mean: ArrayLike | None
) -> TransientCovariance:
    """The same under noise that depends on the weights."""
    target = optimum_of(noise, hessian, None, noise.dim)
    # The noise is asked of its source at every step; at the optimum it may be 0, and negative by rounding.
    problem = make_problem(optimizer, hessian, np.zeros_like(noise.hessian), None)
    law = initial_law(problem, start)
    centred = initial_mean(problem.optimizer, target if mean is None else mean, target, problem.directions)
    bound = ((problem.optimizer, count),)
    return _after(NoisyRun(bound, problem, noise, centred, law, rest_factors(problem.optimizer)), problem, count)


def _after(run: Run, problem: Problem, count: int) -> TransientCovariance:
    """The law at the end of a run."""
    (records,) = run.records([count])
    result = covariance_of(problem, records, 0)
    run.check(bool(np.isfinite(result.value).all()), problem.optimizer, f"{counted(count)} of {problem.optimizer!r}")
    warn_if_inaccurate("transient_covariance", result.error or 0.0, CAUSE, stacklevel=4)
    return result


def optimum_of(noise: object, hessian: ArrayLike, optimum: ArrayLike | None, dim: int) -> Array:
    """The minimiser: the one given, or that of the loss whose noise it is; both must agree."""
    if not isinstance(noise, GradientNoise):
        return np.zeros(dim) if optimum is None else vector("optimum", optimum, dim=dim)
    check_hessian(hessian, noise)
    if optimum is not None and not np.array_equal(vector("optimum", optimum, dim=dim), noise.optimum):
        raise InvalidProblemError("optimum is not that of the loss whose noise was given; leave it out")
    return noise.optimum


def covariance_of(problem: Problem, records: Records, index: int) -> TransientCovariance:
    """The result at one of the times, from its two parts in the eigenbasis."""

    def back(s: Array, a: int, b: int) -> Array:
        return problem.directions.rotate_back(s, symmetric=a == b)

    def block(a: int, b: int) -> Array:
        return back(np.add(*(part[index] for part in records.parts(a, b))), a, b)

    with np.errstate(over="ignore", invalid="ignore"):
        left, built = (part[index] for part in records.parts(0, 0))
        propagated, injected = back(left, 0, 0), back(built, 0, 0)
        value, s = propagated + injected, left + built
    return TransientCovariance(
        value,
        propagated,
        injected,
        records.optimizers[index],
        records.times[index],
        problem.hessian,
        block,
        lambda: log_determinant(s, records.heard),
        None if records.error is None else float(records.error[index]),
    )


def transient_mean(
    optimizer: Optimizer,
    hessian: ArrayLike,
    steps: int,
    *,
    start: ArrayLike,
    optimum: ArrayLike | None = None,
    slots: Sequence[str] = ("w",),
) -> Array:
    r"""The mean of slots a number of steps after a start, stacked in the order given.

    Parameters
    ----------
    optimizer : Optimizer
        Every hyper-parameter bound.  It may be unstable.
    hessian : array_like, shape (d, d)
        Symmetric positive semidefinite.
    steps : int
        How many steps, at least 0.
    start : array_like, shape (d,) or (m * d,)
        The mean of the weights, every other slot at rest; or of all m slots, stacked.
    optimum : array_like, shape (d,), optional
        The minimiser :math:`w^*` of the loss; 0 by default.
    slots : sequence of str
        Slot names; the weights by default.

    Returns
    -------
    ndarray, shape (k * d,)

    Raises
    ------
    HyperparameterError
        If a hyper-parameter is unbound.
    InvalidProblemError
        If an array is not what it should be, ``steps`` no whole number, or the rule has no such slot.
    DivergenceError
        If the optimizer is unstable and the result overflows.

    Examples
    --------
    >>> from sgdcov.theory import sgd
    >>> transient_mean(sgd(lr=0.5), [[1.0]], 2, start=[5.0], optimum=[1.0])
    array([2.])
    """
    optimizer = recursion(optimizer).optimizer
    optimizer.require_bound()
    indices = slot_indices(optimizer, slots)
    count = whole_number("steps", steps)
    checked = positive_semidefinite("hessian", hessian)
    d = checked.shape[0]
    target = np.zeros(d) if optimum is None else vector("optimum", optimum, dim=d)
    problem = make_problem(optimizer, checked, np.zeros_like(checked), None)
    directions = problem.directions
    mean = initial_mean(optimizer, start, target, directions)
    rest = rest_factors(optimizer)
    family = StepFamily([optimizer], directions.eigenvalues, rest)
    run = Run(((optimizer, count),), family, problem, None, mean, directions.rotate(target))
    (records,) = run.records([count])
    return np.concatenate(absolute_mean(records.mean, rest, target, directions)[indices, 0])


def absolute_mean(centred: Extended, rest: Sequence[Fraction], optimum: Array, directions: Directions) -> Array:
    """The mean of every slot, (m, times, d), from that around the state of rest at the optimum in the eigenbasis."""
    along = directions.rotate(optimum)
    centre = Extended.of(np.stack([float(factor) * along for factor in rest])[:, None])
    mean = (centred + centre).hi
    return mean if directions.basis is None else np.asarray(mean @ directions.basis.T)
