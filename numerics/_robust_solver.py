r"""The minimiser of a convex loss with the kinks of a norm and of absolute residuals, to a certificate.

A loss :math:`F(w, |w|_q)` is smoothed, minimised by Newton's method, and the smoothing withdrawn in steps.  After each
the kinks at which the minimiser seems to rest (residuals of 0, coordinates of 0, tied coordinates) are taken as
equations, Newton's method solves the loss that is smooth along them exactly, and the certificate, which knows
nothing of how the point was found, decides.  Nothing that is returned depends on the smoothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from ..errors import InvalidProblemError
from ._dual_norm import DualNorm, NormTerms

__all__ = [
    "Certificate",
    "Objective",
    "Partials",
    "Solution",
    "assembled",
    "minimise",
    "unresolved_weights",
]

Array: TypeAlias = NDArray[np.float64]

#: A certificate of this relative size ends the search; one above `_GOOD` makes the smoothed minimiser a candidate;
#: one above `_REFUSED` is no certificate.
_ENOUGH = 1e-14
_GOOD = 1e-11
_REFUSED = 1e-8
#: The smoothing, relative to the scales of the problem, in steps of the root of 10.
_SMOOTHING = 10.0 ** -np.arange(0.0, 12.5, 0.5)
#: By how much more than its strength a kink may have to hold a point.
_HOLD = 1.0 + 1e-9
#: Up to this multiple of the smoothing a residual or coordinate seems to rest on its kink.
_NEAR = 200.0
#: More residuals on kinks than there are weights are believed from this smoothing on.
_REDUNDANT = 1e-8
#: The relative change of the curvature that what is not known of a minimiser may make.
_RESOLVED = 1e-6
_NEWTON_STEPS = 60
_POLISHING_STEPS = 30
#: A step so many times the weights' size is none towards a minimiser nearby.
_TOO_FAR = 1e3


@dataclass(frozen=True)
class Certificate:
    """How an optimum is known to be one.

    Attributes
    ----------
    kind : str
        "duality gap": the loss is at most ``value`` above the minimum, by a feasible point of the dual problem;
        "gradient norm": the least subgradient has the length ``value``.
    value : float
        Evaluated in double precision: below about 1e-16 times the loss it is rounding, of either sign.
    relative : float
        ``value`` over the loss, or over the gradient, at w = 0.
    """

    kind: str
    value: float
    relative: float


@dataclass(frozen=True)
class Partials:
    """A loss F(w, n) at a point, with its first and second derivatives by w and by n."""

    value: float
    w: Array
    n: float
    ww: Array
    wn: Array
    nn: float


class Objective(Protocol):
    """What the solver must know of a loss."""

    @property
    def dim(self) -> int:
        """The number of weights."""

    @property
    def norm(self) -> DualNorm:
        """The norm of the weights in the loss."""

    @property
    def weight_scale(self) -> float:
        """The size of weights."""

    @property
    def residual_scale(self) -> float:
        """The size of residuals."""

    def partials(self, w: Array, size: float, mu: float, held: NDArray[np.intp] | None = None) -> Partials:
        """Partials with residuals smoothed by mu; those ``held`` are 0 and enter through n alone."""

    def residuals(self, w: Array) -> tuple[Array, Array]:
        """Residuals that have a kink at 0, and the rows by which they depend on w."""

    def strength(self, w: Array) -> Array:
        """Half the jump of the loss's slope by each of the residuals at its kink."""

    def certify(self, w: Array, signs: Array) -> Certificate:
        """A certificate for w, given signs of the residuals, between -1 and 1 for those on their kink."""

    def check(self, w: Array) -> None:
        """Raise if w shows that there is no minimiser."""


@dataclass(frozen=True)
class Solution:
    """A minimiser, the kinks on which it rests, and why it is one."""

    w: Array
    residuals: NDArray[np.intp]
    coordinates: NDArray[np.intp]
    signs: Array
    certificate: Certificate


def assembled(partials: Partials, terms: NormTerms) -> tuple[Array, Array]:
    """Gradient and Hessian by w of F(w, |w|)."""
    _, g, bend = terms
    hessian = partials.ww + np.outer(g, partials.wn) + np.outer(partials.wn, g)
    hessian += partials.nn * np.outer(g, g) + partials.n * bend
    return partials.w + partials.n * g, 0.5 * (hessian + hessian.T)


def minimise(objective: Objective, what: str) -> Solution:
    """The minimiser with the best certificate that is found.

    Raises
    ------
    InvalidProblemError
        If none is good enough.
    """
    w = np.zeros(objective.dim)
    best: Solution | None = None
    rough: Solution | None = None
    for mu in _SMOOTHING:
        with np.errstate(over="ignore", invalid="ignore"):  # of steps that are then rejected
            w = _newton(objective, w, float(mu))
            if mu > 1e-2:
                continue
            found, near = _polished(objective, w, float(mu)), _unpolished(objective, w, float(mu))
        if found is not None and (best is None or found.certificate.relative < best.certificate.relative):
            best = found
        if rough is None or near.certificate.relative < rough.certificate.relative:
            rough = near
        if best is not None and best.certificate.relative <= _ENOUGH:
            break
    if rough is not None and (best is None or best.certificate.relative > _GOOD):
        best = rough if best is None or rough.certificate.relative < best.certificate.relative else best
    if best is None or not best.certificate.relative <= _REFUSED:
        size = np.inf if best is None else best.certificate.relative
        raise InvalidProblemError(
            f"no minimiser of {what} could be certified: the best point found has a relative "
            f"{'certificate' if best is None else best.certificate.kind} of {size:.3g} (needed: {_REFUSED:g}), "
            f"|w| = {np.linalg.norm(w):.3g}. Is there a finite minimiser? Weight decay (l2 > 0) makes one; inputs "
            f"of very different scales, and attack norms next to 1 or large but finite, are hard."
        )
    return best


def _newton(objective: Objective, w: Array, mu: float) -> Array:
    """Damped Newton on the smoothed loss."""
    smoothing = mu * objective.weight_scale

    def evaluate(point: Array) -> tuple[Partials, NormTerms]:
        terms = objective.norm.smoothed(point, smoothing)
        return objective.partials(point, terms[0], mu), terms

    partials, terms = evaluate(w)
    for _ in range(_NEWTON_STEPS):
        gradient, hessian = assembled(partials, terms)
        step = -_solve(hessian, gradient)
        slope = float(gradient @ step)
        rounding = 1e-15 * abs(partials.value)
        if not -slope > rounding:
            break
        length = 1.0
        while True:
            trial = w + length * step
            new = evaluate(trial)
            if new[0].value <= partials.value + 1e-4 * length * slope + rounding:
                break
            length *= 0.5
            if length < 1e-10:
                return w
        w, (partials, terms) = trial, new
        objective.check(w)
    return w


def _polished(objective: Objective, w: Array, mu: float) -> Solution | None:
    """Newton on the loss along the kinks at which w seems to rest, where it is smooth."""
    embedding, coordinates = _face(objective.norm, w, _NEAR * mu * objective.weight_scale)
    residual, rows = objective.residuals(w)
    near = _NEAR * mu * objective.residual_scale
    held = np.flatnonzero((np.abs(residual) <= near) & (objective.strength(w) > 0))
    if not embedding.shape[1] or (held.size > embedding.shape[1] and mu > _REDUNDANT):
        return None
    guess = residual[held] / np.hypot(residual[held], mu * objective.residual_scale)
    v = np.linalg.lstsq(embedding, w, rcond=None)[0]
    constraints = rows[held] @ embedding
    targets = residual[held] + rows[held] @ w
    last = np.inf
    for _ in range(_POLISHING_STEPS):
        point = embedding @ v
        if not point.any():
            return None
        gradient, hessian = assembled(
            objective.partials(point, float(objective.norm.of(point)), 0.0, held), objective.norm.terms(point)
        )
        inner, slope = embedding.T @ hessian @ embedding, embedding.T @ gradient
        if not (np.all(np.isfinite(inner)) and np.all(np.isfinite(slope))):
            return None
        step = _kkt(inner, constraints, -slope, targets - constraints @ v)
        size = float(np.linalg.norm(step))
        if not size <= _TOO_FAR * (np.linalg.norm(v) + objective.weight_scale):
            return None
        if size >= 0.5 * last and size <= 1e-10 * np.linalg.norm(v):
            break
        v, last = v + step, size
        if size <= 1e-16 * np.linalg.norm(v):
            break
    point = embedding @ v
    if not np.all(np.isfinite(point)) or not point.any():
        return None
    signs = np.sign(objective.residuals(point)[0])
    partials = objective.partials(point, float(objective.norm.of(point)), 0.0, held)
    pull = partials.w
    if held.size:
        gradient, _ = assembled(partials, objective.norm.terms(point))
        strength = objective.strength(point)[held]
        forces = constraints.T * strength
        missing = embedding.T @ gradient - forces @ guess
        signs[held] = guess + np.linalg.lstsq(forces, missing, rcond=None)[0]
        if np.max(np.abs(signs[held])) > _HOLD:
            return None
        signs[held] = np.clip(signs[held], -1.0, 1.0)
        pull = pull - rows[held].T @ (strength * signs[held])
    if not _holds(objective.norm, point, coordinates, pull, partials.n):
        return None
    return Solution(point, held, coordinates, signs, objective.certify(point, signs))


def _holds(norm: DualNorm, w: Array, coordinates: NDArray[np.intp], pull: Array, strength: float) -> bool:
    """Whether the norm's kinks are strong enough to hold the coordinates on them."""
    if norm.q == 1.0:
        return bool(np.all(np.abs(pull[coordinates]) <= _HOLD * strength))
    if np.isinf(norm.q):
        return bool(np.all(-pull[coordinates] * np.sign(w[coordinates]) >= (1.0 - _HOLD) * strength))
    return True


def _unpolished(objective: Objective, w: Array, mu: float) -> Solution:
    """The smoothed minimiser itself, with the kinks near it."""
    residual, _ = objective.residuals(w)
    signs = residual / np.hypot(residual, mu * objective.residual_scale)
    held = np.flatnonzero((np.abs(residual) <= _NEAR * mu * objective.residual_scale) & (objective.strength(w) > 0))
    coordinates = _face(objective.norm, w, _NEAR * mu * objective.weight_scale)[1]
    return Solution(w, held, coordinates, signs, objective.certify(w, signs))


def _face(norm: DualNorm, w: Array, near: float) -> tuple[Array, NDArray[np.intp]]:
    """A matrix M such that w = M v rests on the norm's kinks, and the coordinates on them."""
    identity = np.eye(len(w))
    if norm.q == 1.0:
        at_zero = np.flatnonzero(np.abs(w) <= near)
        return np.delete(identity, at_zero, axis=1), at_zero
    if np.isinf(norm.q):
        tied = np.flatnonzero(np.abs(w) >= np.abs(w).max() - near)
        shared = np.zeros((len(w), 1))
        shared[tied, 0] = np.sign(w[tied])
        return np.hstack([shared, np.delete(identity, tied, axis=1)]), tied if len(tied) > 1 else tied[:0]
    return identity, norm.kinked_coordinates(w)


def unresolved_weights(norm: DualNorm, w: Array, gradient: Array, hessian: Array, bend: Array) -> NDArray[np.intp]:
    """The weights that are not known well enough for the norm's curvature there; ``bend`` is its part of the Hessian.

    A norm of order 1 < q < 2 has a curvature that grows without bound towards weights of 0, one of a large order a
    curvature that changes over a relative distance of 1/q.  A certificate of the loss says little of either: what is
    left of the gradient, and the rounding of the weights, must not change the curvature by more than `_RESOLVED`.
    """
    if norm.q in (1.0, 2.0) or np.isinf(norm.q):
        return np.zeros(0, dtype=np.intp)
    moved = np.abs(_solve(hessian, gradient)) + np.finfo(np.float64).eps * np.abs(w)
    own = np.abs(np.diagonal(bend)) * abs(norm.q - 2.0)
    return np.flatnonzero(own * moved > _RESOLVED * np.abs(w) * np.abs(np.diagonal(hessian)))


def _solve(a: Array, b: Array) -> Array:
    """The solution of a positive semidefinite system, the least one where it is singular."""
    try:
        return np.asarray(scipy.linalg.cho_solve(scipy.linalg.cho_factor(a, check_finite=False), b))
    except np.linalg.LinAlgError:
        return np.asarray(np.linalg.lstsq(a, b, rcond=None)[0])


def _kkt(hessian: Array, constraints: Array, right: Array, gap: Array) -> Array:
    """The step that minimises a quadratic form under linear equations, redundant ones included."""
    if not len(constraints):
        return _solve(hessian, right)
    k = len(constraints)
    matrix = np.block([[hessian, constraints.T], [constraints, np.zeros((k, k))]])
    return np.asarray(np.linalg.lstsq(matrix, np.concatenate([right, gap]), rcond=None)[0][: len(hessian)])
