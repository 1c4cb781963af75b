r"""Adam and RMSProp with frozen second moments, where the law itself says which.

Adam divides the gradient, coordinate by coordinate, by :math:`\sqrt{v_t} + \epsilon`, with :math:`v_t` an exponential
average of the squared gradients.  Held at its stationary mean, that is the preconditioner :math:`P` of a linear rule;
and the mean is the one that this rule's own stationary law has:

.. math::

   P = \frac{1}{\sqrt v + \epsilon} , \qquad v_k = \mathrm E\, g_k^2 = (H S H)_{kk} + C_{kk} , \qquad
   S = \text{the stationary covariance with the preconditioner } P .

This fixed point is an *approximation* of Adam.  What it leaves out are the fluctuations of :math:`v_t` about its mean,
of relative variance about :math:`1 - \beta_2` (a filter of that memory, fed with squares of Gaussians), and their
correlation with the gradients that they are made of.  Both change the law by a relative amount of order
:math:`1 - \beta_2`.  Measured on two correlated coordinates, RMSprop's total variance is 3.2%, 0.36% and 0.04% below
that of the fixed point at :math:`\beta_2` = 0.9, 0.99 and 0.999, and its covariance 11%, 2.7% and less than 0.4%; with
the v of the noise alone the total is off by 11% at the last.

What it does not leave out is that gradients also come from the distance to the optimum.  The v of the noise alone makes
the steps too long: in one dimension, the rule of plain SGD with that v is unstable from :math:`lr\,h = 2 \sqrt c` on,
while the fixed point

.. math:: \sqrt v = \tfrac14 \big(lr\,h + \sqrt{lr^2 h^2 + 16 c}\big)

is stable at every learning rate: Adam lengthens its denominator until it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import scipy.sparse.linalg
from numpy.typing import ArrayLike, NDArray

from ..errors import InvalidProblemError, InvalidRuleError, NonStationaryError, UnstableError
from ..theory import Optimizer, recursion
from . import _arrays
from ._margins import has_unit_root
from ._result import ArrayResult
from ._second_moment import gradient_point
from .noise import GradientNoise
from .preconditioners import adam
from .stationary import StationaryCovariance, stationary_covariance

__all__ = ["AdaptiveCovariance", "adaptive_covariance"]

Array: TypeAlias = NDArray[np.float64]

#: Relative difference of a second moment from that of its law below which the fixed point counts as found.
_TOLERANCE = 1e-12
#: A Newton step, relative to the second moments, that counts as rounding where it no longer helps.
_ROUNDING = 1e-9
#: Above this residual the status says that rounding has decided.
_LARGEST_RESIDUAL = 1e-8
#: Newton steps at one learning rate, and in all.
_MOST_STEPS = 20
_MOST_ITERATIONS = 300
#: The longest step of the logarithm of a second moment, and the step of its numerical derivatives.
_LONGEST_STEP = 3.0
_PROBE = 1e-6


@dataclass(frozen=True, eq=False, repr=False)
class AdaptiveCovariance(ArrayResult):
    """The self-consistent law of Adam or RMSProp with frozen second moments.  An array wherever one is expected.

    Attributes
    ----------
    covariance : StationaryCovariance
        The law of the weights and every other slot, with the frozen preconditioner.
    second_moment : ndarray, shape (d,)
        The mean squared gradients v, self-consistent.
    preconditioner : ndarray, shape (d,)
        ``1 / (sqrt(v) + eps)``.
    eps : float
    iterations : int
        Newton steps to the fixed point.
    residual : float
        Largest relative change of a second moment by one more substitution.
    status : str
        What kind of answer it is, in words.
    """

    covariance: StationaryCovariance
    second_moment: Array
    preconditioner: Array
    eps: float
    iterations: int
    residual: float
    status: str

    def __repr__(self) -> str:
        return (
            f"AdaptiveCovariance({self.covariance.optimizer!r}, shape={self.value.shape}, "
            f"iterations={self.iterations}, residual={self.residual:.1e})"
        )

    @property
    def value(self) -> Array:
        """Covariance of the weights, shape (d, d)."""
        return self.covariance.value

    @property
    def error(self) -> float:
        """A bound on the relative error of the covariance as the law of this preconditioner, in the Frobenius norm.

        That of the fixed point, `residual`, and of the model come on top.
        """
        return self.covariance.error


def adaptive_covariance(
    optimizer: Optimizer, hessian: ArrayLike, noise: ArrayLike | GradientNoise, *, eps: float = 1e-8
) -> AdaptiveCovariance:
    r"""The stationary law of Adam or RMSProp with second moments frozen where their own law has them.

    ============================================  =================================================================
    rule                                          PyTorch
    ============================================  =================================================================
    ``heavy_ball(lr, momentum=b, dampening=b)``   ``Adam(lr, betas=(b, beta2), eps=eps)``
    ``sgd(lr)``                                   ``RMSprop(lr, alpha=beta2, eps=eps)``, ``Adam(betas=(0, beta2))``
    ``heavy_ball(lr, momentum)``                  ``RMSprop(lr, alpha=beta2, eps=eps, momentum=momentum)``
    ============================================  =================================================================

    Parameters
    ----------
    optimizer : Optimizer
        What is done with the preconditioned gradient; every hyper-parameter bound, no weight decay.
    hessian : array_like, shape (d, d)
        H, symmetric positive semidefinite, in the coordinates whose gradients are squared.
    noise : array_like, shape (d, d), or GradientNoise
        C, the covariance of one step's gradient noise, or noise that depends on the weights.
    eps : float, default 1e-8
        Outside the root, as in PyTorch; not negative.

    Returns
    -------
    AdaptiveCovariance
        An approximation of the real optimizer, the better the nearer ``beta2`` is to 1; ``beta2`` itself does not
        enter.

    Raises
    ------
    InvalidRuleError
        If the rule has weight decay, or takes more than one gradient in a step.
    InvalidProblemError
        If an array is not what it should be, or a gradient has neither noise nor anything else that moves it.
    NonStationaryError
        If noise reaches a flat direction, or no fixed point was found.

    Notes
    -----
    With :math:`F(v)` the second moments of the law that v makes, :math:`v / F(v) = 1` is solved for the logarithms of
    v by Newton's method with a matrix-free derivative, where need be from smaller learning rates upwards; only v with
    a stable law are ever accepted.

    References
    ----------
    kingma2015, tieleman2012rmsprop

    Examples
    --------
    One dimension: the closed form of the module's text.

    >>> from sgdcov.theory import sgd
    >>> law = adaptive_covariance(sgd(lr=1.0), [[2.0]], [[1.0]], eps=0.0)
    >>> float(law.second_moment[0]), (2 + 20**0.5) ** 2 / 16  # doctest: +ELLIPSIS
    (2.618033988..., 2.618033988...)
    """
    optimizer = recursion(optimizer).optimizer
    optimizer.require_bound()
    _check_rule(optimizer)
    h = _arrays.positive_semidefinite("hessian", hessian)
    c = noise if isinstance(noise, GradientNoise) else _arrays.positive_semidefinite("noise", noise, dim=h.shape[0])
    moments = _SecondMoments(optimizer, h, c, _arrays.nonnegative("eps", eps))
    v, iterations = moments.solve()
    law = moments.law(v)
    residual = float(np.max(np.abs(moments.of(law)[moments.active] / v[moments.active] - 1.0), initial=0.0))
    status = (
        "approximation: second moments frozen at their stationary mean, found self-consistently; the relative error is "
        "of order 1 - beta2"
    )
    if residual > _LARGEST_RESIDUAL:
        status += (
            f". The noise is so small that the law sits at the edge of stability: second moments and covariance agree "
            f"only up to {residual:.1e}"
        )
    return AdaptiveCovariance(law, v, adam(v, moments.eps), moments.eps, iterations, residual, status)


def _check_rule(optimizer: Optimizer) -> None:
    if not has_unit_root(optimizer):
        raise InvalidRuleError(
            f"{optimizer!r} has weight decay, which Adam squares together with the gradient. Put the L2 term into the "
            f"loss instead (hessian + weight_decay*I, and the noise at its minimiser) and leave it out of the rule."
        )
    try:
        gradient_point(optimizer)
    except InvalidRuleError as error:
        raise InvalidRuleError(
            f"{optimizer!r} takes more than one gradient in a step; which of them is squared is not its own to say."
        ) from error


@dataclass(frozen=True, eq=False)
class _SecondMoments:
    """The map from frozen second moments to those of the law that they make."""

    optimizer: Optimizer
    hessian: Array
    noise: Array | GradientNoise
    eps: float

    @cached_property
    def own(self) -> Array:
        """The noise's own share of the second moments, at the optimum."""
        c = self.noise.covariance() if isinstance(self.noise, GradientNoise) else self.noise
        return np.array(np.diagonal(c))

    @cached_property
    def active(self) -> NDArray[np.intp]:
        """The coordinates whose gradients are not always 0."""
        return np.flatnonzero((self.own > 0.0) | np.any(self.hessian != 0.0, axis=1))

    def law(self, v: Array, share: float = 1.0) -> StationaryCovariance:
        """The law with second moments v, at a share of the learning rate."""
        preconditioner = share * adam(v, self.eps)
        return stationary_covariance(self.optimizer, self.hessian, self.noise, preconditioner=preconditioner)

    def of(self, law: StationaryCovariance) -> Array:
        """The mean squared gradients at a law."""
        q = gradient_point(self.optimizer)
        slots = range(len(q))
        spread = sum(
            (q[a] * q[b] * law._block(a, b) for a in slots for b in slots if q[a] and q[b]), np.zeros_like(self.hessian)
        )
        moved = np.einsum("ij,jk,ki->i", self.hessian, spread, self.hessian)
        return np.asarray(moved + np.diagonal(law.gradient_noise))

    def excess(self, log_v: Array, share: float = 1.0) -> Array | None:
        r"""By how much active moments v exceed those of their law, :math:`v / F(v) - 1`; None where that is unstable.

        Unlike :math:`F(v)`, which grows without bound, this goes straight through the edge of stability: in one
        dimension it is a parabola in :math:`\sqrt v`.
        """
        v = self._spread_out(log_v)
        try:
            new = self.of(self.law(v, share))[self.active]
        except UnstableError:
            return None
        if not np.all(new > 0.0):
            k = int(self.active[int(np.argmin(new))])
            raise InvalidProblemError(
                f"coordinate {k} has curvature but nothing moves its gradient: noise[{k}, {k}] = {self.own[k]:.6g}. "
                f"Its second moment would be 0 and its step unbounded; leave the coordinate out, or give it noise."
            )
        return np.asarray(v[self.active] / new - 1.0)

    def _spread_out(self, log_v: Array) -> Array:
        v = np.zeros(self.hessian.shape[0])
        v[self.active] = np.exp(log_v)
        return v

    def solve(self) -> tuple[Array, int]:
        """The fixed point, and the Newton steps that it took.

        Where Newton's method fails at the learning rate asked for, it follows the solution up from smaller ones.
        """
        if not self.active.size:
            return np.zeros(self.hessian.shape[0]), 0
        own = self.own[self.active]
        if not np.any(own > 0.0):
            raise InvalidProblemError(
                "the noise is 0: nothing moves the weights, the second moments tend to 0 and the steps grow without "
                "bound. Adam without noise has no stationary law of this kind; give it noise."
            )
        x, share, spent = self._start(np.log(np.where(own > 0.0, own, own[own > 0.0].mean()))), 1.0, 0
        slope, factor = np.zeros_like(x), 4.0
        found = self._newton(x, share)
        solved = 0.0  # the largest share with a solution
        while True:
            spent += found[1]
            if found[0] is not None:
                if solved:
                    slope = (found[0] - x) / np.log(share / solved)
                x, solved, factor = found[0], share, min(factor**1.5, 4.0)
                if share == 1.0:
                    return self._spread_out(x), spent
                share = min(1.0, share * factor)
            elif solved:
                factor = factor**0.4
                share = min(1.0, solved * factor)
            else:
                share /= 4.0
            if spent > _MOST_ITERATIONS or factor < 1.001:
                raise NonStationaryError(
                    f"no self-consistent second moments found for {self.optimizer!r} in {spent} Newton steps, only up "
                    f"to {solved:.3g} of the learning rate, which is far beyond what its noise can balance. Take a "
                    f"smaller one."
                )
            trial = x + slope * np.log(share / solved) if solved else self._start(x, share)
            if solved and self.excess(trial, share) is None:
                trial = x + 2.0 * np.log(share / solved)  # v like the squared learning rate: as stable as before
            found = self._newton(trial, share)

    def _start(self, log_v: Array, share: float = 1.0) -> Array:
        """Logarithms at which the law is stable: those given, made larger until it is."""
        for attempt in range(200):
            if self.excess(log_v, share) is not None:
                # Well inside rather than at the edge, where the moments of the law are anything.
                return np.asarray(log_v + np.log(4.0)) if attempt else np.asarray(log_v)
            log_v = log_v + np.log(4.0)
        self.law(self._spread_out(log_v))  # raises, and says why
        raise AssertionError

    def _newton(self, x: Array, share: float) -> tuple[Array | None, int]:
        """The solution at a share of the learning rate, None if it was not found, and the steps taken."""
        excess = self.excess(x, share)
        if excess is None:
            return None, 0
        for iteration in range(_MOST_STEPS):
            if np.max(np.abs(excess)) <= _TOLERANCE:
                return x, iteration
            step = self._newton_step(x, excess, share)
            length = 1.0
            while length > 1e-3:
                trial = self.excess(x + length * step, share)
                if trial is not None and np.linalg.norm(trial) <= (1.0 - 1e-4 * length) * np.linalg.norm(excess):
                    break
                length *= 0.5
            else:
                return (x if np.max(np.abs(step)) <= _ROUNDING else None), iteration + 1
            x, excess = x + length * step, trial
        return None, _MOST_STEPS

    def _newton_step(self, x: Array, excess: Array, share: float) -> Array:
        """A step to where the excess would be 0 if it were linear; half the substitution where that fails."""

        def slope(direction: Array) -> Array:
            scale = _PROBE / max(float(np.max(np.abs(direction))), 1e-300)
            for side in (scale, -scale):  # the edge of stability may be nearer than the probe
                probed = self.excess(x + side * direction, share)
                if probed is not None:
                    return np.asarray((probed - excess) / side)
            return direction

        system = scipy.sparse.linalg.LinearOperator((x.size, x.size), matvec=slope, dtype=np.float64)
        step, failed = scipy.sparse.linalg.gmres(system, -excess, rtol=1e-4, atol=0.0, maxiter=10)
        if failed or not np.all(np.isfinite(step)):
            step = -0.5 * np.log1p(excess)
        return np.asarray(step * min(1.0, _LONGEST_STEP / float(np.max(np.abs(step), initial=1e-300))))
