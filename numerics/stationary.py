r"""The stationary covariance of an optimizer on a quadratic loss with given Hessian and gradient noise.

The state Z of all slots follows :math:`Z' = (I + D) Z + B \xi`; its stationary covariance solves the Stein equation

.. math:: D Z + Z D^\top + D Z D^\top + B C B^\top = 0 ,

which in the eigenbasis of the Hessian falls apart into one small equation per pair of directions, whether or not C
commutes with H.  Three methods solve it, each by itself:

============== ==================================================== ======================================
``spectral``   exact solution of the pair equation, evaluated at    one ``eigh`` and four matrix products
               all pairs to the last bits (`sgdcov.numerics`'s
               default)
``doubling``   squared Smith iteration on the stacked recursion     no eigen-decomposition
``kronecker``  one dense linear system                              small problems: the oracle
============== ==================================================== ======================================
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, TypeAlias, get_args, overload

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike, NDArray

from ..errors import InvalidProblemError, MeanSquareUnstableError, NonStationaryError
from ..theory import Optimizer, recursion
from ._arrays import choice, finite_array, rounding_level
from ._companion import equation_residual, stacked_law
from ._forward_error import warn_if_inaccurate
from ._kernel import pair_kernel
from ._margins import check_stable, has_unit_root
from ._polynomial import binary_exponent
from ._problem import Problem
from ._provenance import batches_of
from ._slot_law import SlotLaw
from ._spectral_law import CAUSE, SpectralLaw, law_condition, law_error
from .epochs import EpochCovariance, EpochNoise, Position, epoch_stationary_covariance
from .mean_square import additive_problem
from .noise import GradientNoise, MinibatchNoise

__all__ = ["Method", "StationaryCovariance", "pair_covariance", "stationary_covariance"]

Array: TypeAlias = NDArray[np.float64]
Method: TypeAlias = Literal["auto", "spectral", "doubling", "kronecker"]


@dataclass(frozen=True, eq=False, repr=False)
class StationaryCovariance(SlotLaw):
    """The stationary covariance of the weights, and on demand of every slot.  An array wherever one is expected.

    Attributes
    ----------
    value : ndarray, shape (d, d)
        Covariance of the first slot, the weights; what ``np.asarray`` gives.
    optimizer : Optimizer
    method : str
        The method that computed it.
    error : float
        A bound on the relative forward error in the Frobenius norm, against the law of the very doubles that were
        given; infinite where none is known.  Above 1e-6 it was warned of.
    """

    value: Array
    optimizer: Optimizer
    method: str
    error: float
    _problem: Problem = field(repr=False)
    _solve_block: Callable[[int, int], Array] = field(repr=False)
    _eigenbasis_value: Array | None = field(repr=False, default=None)
    _source: GradientNoise | None = field(repr=False, default=None)

    def __repr__(self) -> str:
        return f"StationaryCovariance({self.optimizer!r}, shape={self.value.shape}, method={self.method!r})"

    @property
    def eigenvalues(self) -> Array:
        """Eigenvalues of the Hessian (of the preconditioned one), flat ones exactly 0; as given if it is diagonal."""
        return self._problem.directions.eigenvalues

    @property
    def flat(self) -> tuple[int, ...]:
        """Indices, among the eigenvalues, of the flat directions: reached by no noise, covariance 0."""
        return tuple(int(i) for i in self._problem.directions.flat)

    @property
    def status(self) -> str:
        """What kind of law this is, in words."""
        flat = self.flat
        if not flat:
            return "stationary"
        which = ", ".join(str(i) for i in flat[:8]) + (", ..." if len(flat) > 8 else "")
        zero = "0" if self._problem.directions.basis is None else "0 up to rounding"
        return (
            f"stationary, with {len(flat)} of {self.value.shape[0]} directions flat (indices {which}: Hessian "
            f"eigenvalue {zero}); no noise reaches them, so they stay where they started and their covariance is 0"
        )

    @cached_property
    def residual(self) -> float:
        r"""Relative residual of the Stein equation of all slots, recomputed in the caller's coordinates from H and C.

        The largest, over the pairs of slots, of :math:`\|DZ + ZD^\top + DZD^\top + BCB^\top\|_F` over the sum of the
        norms of the four terms.  The eigenbasis plays no part in it.
        """
        hessian, noise, root = self._problem.hessian, self._problem.noise, self._problem.root
        if root is not None:
            square = np.diag(root**2) if root.ndim == 1 else root @ root
            hessian, noise = square @ hessian, square @ noise @ square
        size = len(self.slots)
        blocks = [[self._block(a, b) for b in range(size)] for a in range(size)]
        return equation_residual(recursion(self.optimizer), hessian, noise, blocks)

    @cached_property
    def condition(self) -> float:
        r"""Relative change of the covariance per relative change of H and of C, at most, to first order.

        The changes are measured by :math:`\|dS\|_F / \|S\|_F`, :math:`\|dH\|_2 / \|H\|_2` and
        :math:`\|dC\|_2 / \|C\|_2`.  It grows like the ratio of
        the largest to the smallest curvature that noise reaches, and like the inverse distance from the stability edge;
        ``error`` is about it times the rounding of H and C where they are full matrices, and less where something
        better is known of them.  It is 0 if the covariance is.
        """
        return law_condition(self._problem, self.value)

    @property
    def excess_risk(self) -> float:
        """Mean loss above that at the mean, ``tr(H S) / 2``."""
        return 0.5 * float(np.vdot(self._problem.hessian, self.value))

    @property
    def gradient_noise(self) -> Array:
        """The covariance of one step's gradient noise, shape (d, d): averaged over this law, if it depends on it."""
        return self._problem.noise

    @cached_property
    def additive_error(self) -> float:
        r"""How far the additive model is from the exact law: :math:`\|S_{add} - S\|_F / \|S\|_F`.

        The additive model freezes the noise at the optimum; it is what a covariance such as `LeastSquares.noise` gives.
        Infinite where the exact law has no covariance although the additive model has.

        Raises
        ------
        InvalidProblemError
            If the noise was a plain array: nothing is known of its dependence on the weights.
        """
        if self._source is None:
            raise InvalidProblemError(
                "the noise was given as a plain covariance, of which nothing says how it depends on the weights; give "
                "MinibatchNoise(problem, batch_size), or the array problem.noise(batch_size) itself"
            )
        hessian, root = self._problem.hessian, self._problem.root
        preconditioner = None if root is None else root**2 if root.ndim == 1 else root @ root
        laws = []
        for noise in (self._source.covariance(), self._source):
            try:
                laws.append(stationary_covariance(self.optimizer, hessian, noise, preconditioner=preconditioner).value)
            except MeanSquareUnstableError:
                return float("inf")
        size = float(np.linalg.norm(laws[1]))
        return float(np.linalg.norm(laws[0] - laws[1])) / size if size else 0.0

    @property
    def rank(self) -> int:
        """Number of directions in which the weights move: the rank of the covariance up to rounding."""
        return self._log_det_and_rank[1]

    @property
    def log_det(self) -> float:
        """Logarithm of the product of the nonzero eigenvalues (``rank`` of them): the log-determinant on the range."""
        return self._log_det_and_rank[0]

    @cached_property
    def _log_det_and_rank(self) -> tuple[float, int]:
        problem = self._problem
        # Variances taken out first, in the eigenbasis, tiny eigenvalues keep their digits.
        s = self._eigenbasis_value
        if s is None:
            s = problem.directions.rotate(problem.enter(self.value))
        heard = np.flatnonzero(problem.heard & (np.diagonal(s) > 0))
        deviation = np.sqrt(np.diagonal(s)[heard])
        spectrum = _eigenvalues_of(s[np.ix_(heard, heard)] / deviation / deviation[:, None])
        rank = int(spectrum.size)
        if rank == heard.size and (problem.root is None or rank == s.shape[0]):
            return float(np.sum(np.log(spectrum)) + 2 * np.sum(np.log(deviation)) + 2 * problem.root_log_det), rank
        whole = scipy.linalg.eigvalsh(self.value, check_finite=False)[self.value.shape[0] - rank :]
        return float(np.sum(np.log(whole))), rank


@overload
def stationary_covariance(
    optimizer: Optimizer,
    hessian: ArrayLike,
    noise: EpochNoise,
    *,
    method: Method = ...,
    preconditioner: ArrayLike | None = ...,
    position: Position | None = ...,
) -> EpochCovariance: ...


@overload
def stationary_covariance(
    optimizer: Optimizer,
    hessian: ArrayLike,
    noise: ArrayLike | GradientNoise,
    *,
    method: Method = ...,
    preconditioner: ArrayLike | None = ...,
    position: None = ...,
) -> StationaryCovariance: ...


def stationary_covariance(
    optimizer: Optimizer,
    hessian: ArrayLike,
    noise: ArrayLike | GradientNoise | EpochNoise,
    *,
    method: Method = "auto",
    preconditioner: ArrayLike | None = None,
    position: Position | None = None,
) -> StationaryCovariance | EpochCovariance:
    r"""The stationary covariance of the weights (and every other slot) under white gradient noise.

    Parameters
    ----------
    optimizer : Optimizer
        Every hyper-parameter bound, as ``heavy_ball(lr=0.1, momentum=0.9)``.
    hessian : array_like, shape (d, d)
        H, symmetric positive semidefinite.
    noise : array_like, shape (d, d), or GradientNoise or EpochNoise
        C, the covariance of one step's gradient noise; symmetric positive semidefinite.  It need not commute with H.
        Or noise that depends on the weights, such as `MinibatchNoise`: the law is then exact for it.  Or noise that
        is correlated within an epoch, `EpochNoise`: the law is then periodic.
    method : {"auto", "spectral", "doubling", "kronecker"}
        How to solve the Stein equation; "auto" is "spectral".
    preconditioner : array_like, shape (d, d) or (d,), optional
        P, symmetric positive definite or a positive diagonal: the rule is given P g for the gradient g.  See
        `damped_newton`, `natural_gradient`, `adam`, `rmsprop`.
    position : int or "average", optional
        For an `EpochNoise` only: after how many steps of the epoch the law is wanted, 0 (where checkpoints are taken)
        by default, or its average over the epoch.

    Returns
    -------
    StationaryCovariance, or EpochCovariance for an `EpochNoise`
        An array wherever one is expected.

    Raises
    ------
    HyperparameterError
        If a hyper-parameter is unbound.
    InvalidProblemError
        If an array is not what it should be, or the method unknown or not meant for this size.
    UnstableError
        If the recursion does not contract along some direction; names the worst eigenvalue and its largest learning
        rate.
    MeanSquareUnstableError
        If the mean settles but, with noise that depends on the weights, no covariance exists; names both thresholds.
    NonStationaryError
        If noise reaches a flat direction, which then is a random walk.
    InvalidRuleError
        With noise that depends on the weights, if the rule takes more than one gradient from a batch.

    Notes
    -----
    A direction is flat if the recursion has the eigenvalue 1 along it (h = 0, without weight decay).
    Where no noise reaches it its covariance is 0, and `StationaryCovariance.status` says so.  Unless the Hessian is
    diagonal, an eigenvalue of at most ``d * eps`` times the largest is indistinguishable from 0 and counts as 0.

    In the eigenbasis, entries are correct to a few units in the last place given the eigenvalues and the rotated noise.

    Examples
    --------
    Plain SGD has the variance ``lr c / (h (2 - lr h))``:

    >>> import numpy as np
    >>> from sgdcov.theory import sgd
    >>> stationary_covariance(sgd(lr=0.5), [[2.0]], [[3.0]]).value
    array([[0.75]])
    >>> np.trace(stationary_covariance(sgd(lr=0.5), np.diag([2.0, 1.0]), np.diag([3.0, 0.0])))
    np.float64(0.75)
    """
    method = choice("method", method, get_args(Method))
    if isinstance(noise, EpochNoise):
        if method not in ("auto", "spectral"):
            raise InvalidProblemError(f"method={method!r} solves for independent steps; an EpochNoise needs 'spectral'")
        return epoch_stationary_covariance(optimizer, hessian, noise, position=position, preconditioner=preconditioner)
    if position is not None:
        raise InvalidProblemError(
            f"position={position!r} is of noise that is correlated within an epoch; give it as an EpochNoise"
        )
    batches = batches_of(noise)
    source = noise if isinstance(noise, GradientNoise) else None if batches is None else MinibatchNoise(*batches)
    problem = additive_problem(optimizer, hessian, noise, preconditioner)
    return replace(_SOLVERS[method](problem), _source=source)


def pair_covariance(optimizer: Optimizer, h_i: ArrayLike, h_j: ArrayLike) -> Array:
    """The slot covariances of pairs of directions whose gradient noises have unit covariance.

    Parameters
    ----------
    optimizer : Optimizer
        Every hyper-parameter bound.
    h_i, h_j : array_like
        Hessian eigenvalues, broadcast against each other.

    Returns
    -------
    ndarray, shape (..., m, m)
        Entry (a, b) is the covariance of slot a in direction i with slot b in direction j, to a few units in the last
        place.  Multiply by ``c_ij``.

    Raises
    ------
    HyperparameterError
        If a hyper-parameter is unbound.
    InvalidProblemError
        If an eigenvalue is negative or not finite.
    UnstableError
        If the recursion does not contract at one of the eigenvalues.
    NonStationaryError
        If one of them is flat.

    Examples
    --------
    >>> from sgdcov.theory import sgd
    >>> pair_covariance(sgd(lr=0.5), [2.0, 1.0], 1.0)
    array([[[0.25      ]],
    <BLANKLINE>
           [[0.33333333]]])
    """
    optimizer = recursion(optimizer).optimizer
    optimizer.require_bound()
    entries = pair_kernel(optimizer).entries
    x, y = (_eigenvalues(name, h) for name, h in (("h_i", h_i), ("h_j", h_j)))
    both = np.unique(np.concatenate([x.ravel(), y.ravel()]))
    if has_unit_root(optimizer) and both.size and both[0] == 0.0:
        raise NonStationaryError(
            f"an eigenvalue is 0: {optimizer!r} never forgets its start there, and noise makes it a random walk",
            modes=(0.0,),
        )
    check_stable(optimizer, both)
    return np.stack([np.stack([q(x, y) for q in row], axis=-1) for row in entries], axis=-2)


def _eigenvalues(name: str, h: ArrayLike) -> Array:
    out = finite_array(name, h)
    bad = out < 0
    if bad.any():
        raise InvalidProblemError(f"{name} must hold finite eigenvalues of at least 0, got {out[bad].flat[0]!r}")
    return out


def _eigenvalues_of(covariance: Array) -> Array:
    """The eigenvalues of a covariance that are above rounding."""
    if not covariance.size:
        return np.zeros(0)
    spectrum = scipy.linalg.eigvalsh(covariance, check_finite=False)
    return np.asarray(spectrum[spectrum > rounding_level(covariance)])


def _spectral(problem: Problem) -> StationaryCovariance:
    problem.check()
    law = SpectralLaw(problem)
    error = law_error(problem, law)
    warn_if_inaccurate("stationary_covariance", error, CAUSE, stacklevel=4)
    return StationaryCovariance(
        law.value(0, 0), problem.optimizer, "spectral", error, problem, law.value, law.in_eigenbasis(0, 0)
    )


def _doubling(problem: Problem) -> StationaryCovariance:
    return _independent(problem, "doubling")


def _kronecker(problem: Problem) -> StationaryCovariance:
    return _independent(problem, "kronecker")


def _independent(problem: Problem, method: Method) -> StationaryCovariance:
    """The result of a method without an error bound of its own: that of the spectral law, and the distance from it."""
    problem.check()
    stacked, law = stacked_law(problem, method), SpectralLaw(problem)
    value, exact = stacked.block(0, 0), law.value(0, 0)
    scale = -binary_exponent(exact, value)
    size, gap = (float(np.linalg.norm(np.ldexp(a, scale))) for a in (exact, value - exact))
    error = law_error(problem, law) + (gap / size if size else np.inf if gap else 0.0)
    warn_if_inaccurate(f"stationary_covariance with method={method!r}", error, CAUSE, stacklevel=5)
    return StationaryCovariance(value, problem.optimizer, method, error, problem, stacked.block)


_SOLVERS: dict[Method, Callable[[Problem], StationaryCovariance]] = {
    "auto": _spectral,
    "spectral": _spectral,
    "doubling": _doubling,
    "kronecker": _kronecker,
}
