r"""Linear models trained against attacks on their inputs: robust losses of finite data in closed form.

Within a ball of radius :math:`\epsilon` in the p-norm, with :math:`1/p + 1/q = 1`,

.. math:: \max_{|\delta|_p \le \epsilon} \tfrac12 (y - (x + \delta)^\top w)^2
             = \tfrac12 \big(|y - x^\top w| + \epsilon |w|_q\big)^2 , \qquad
          \max_{|\delta|_p \le \epsilon} \log(1 + e^{-y (x + \delta)^\top w})
             = \log\big(1 + e^{-(y x^\top w - \epsilon |w|_q)}\big) .

Both are convex, and smooth but for kinks: residuals of 0, and the kinks of the norm.  At a minimiser on a kink the loss
has no Hessian, which is refused, never ignored.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import scipy.special
from numpy.typing import ArrayLike, NDArray

from ..errors import InvalidProblemError
from . import _arrays
from ._batches import batch_factor, checked_batch_size
from ._dual_norm import DualNorm
from ._gaussian_smoothing import Smoothed
from ._kinks import Facets, Kinks, LeavingProbability
from ._robust_examples import RobustExamples
from ._robust_losses import RobustLogistic, RobustSquares
from ._robust_solver import Certificate, Solution
from .problems import LeastSquares
from .quadratic_examples import QuadraticExamples

__all__ = ["AdversarialLeastSquares", "AdversarialLogistic", "Certificate", "Kinks", "LeavingProbability"]

Array: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, eq=False, repr=False)
class AdversarialLeastSquares(RobustExamples):
    r"""Linear regression against an attack: the mean of :math:`\frac12(|y - x^\top w| + \epsilon |w|_q)^2`.

    .. math:: L(w) = \frac1N \sum_n \frac{a_n}2 \big(|y_n - x_n^\top w| + \epsilon |w|_q\big)^2 + \frac\lambda2 |w|^2

    Parameters
    ----------
    X : array_like, shape (N, d)
        One example a row.
    y : array_like, shape (N,)
    radius : float
        :math:`\epsilon`, at least 0.
    norm : float, default 2
        p, the order of the ATTACK's norm: 2, ``numpy.inf``, 1 or any number between.
    l2 : float, default 0
        The weight-decay strength :math:`\lambda`, at least 0.
    sample_weight : array_like, shape (N,), optional
        Weights :math:`a_n \ge 0`, used as given, the mean still being over N.

    Raises
    ------
    InvalidProblemError
        Arrays not finite or of unfitting shapes; a negative radius, ``l2`` or weight; a norm below 1.

    Notes
    -----
    Under an attack of norm ``inf`` (or 1) the loss is, as long as no residual and no weight changes its sign, that of
    ordinary least squares with shifted features, :math:`x - \epsilon\,\mathrm{sgn}(r)\,\nabla|w|_q`: `cell` is
    that problem, so `MinibatchNoise` is exact while iterates stay there (`leaving_probability`).  Under other norms an
    example's Hessian :math:`zz^\top + (|r| + \epsilon|w|_q)\,\epsilon\nabla^2|w|_q` depends on w; `cell` is then the
    expansion to second order.

    On finite data the minimiser rests on kinks of residuals as soon as the radius is large enough to hold it there.
    And where residuals are near 0 in great number, their kinks act like a curvature that `hessian` does not have: see
    `smoothed_hessian` and `kink_corrected_covariance`.

    References
    ----------
    javanmard2020, xing2021

    Examples
    --------
    >>> import numpy as np
    >>> problem = AdversarialLeastSquares([[1.0], [1.0]], [1.0, 3.0], radius=0.5, norm=np.inf)
    >>> problem.optimum, problem.hessian  # the mean of (|1 - w| + w/2)^2/2 and (|3 - w| + w/2)^2/2
    (array([1.2]), array([[1.25]]))
    >>> problem.cell().X, problem.certificate.kind
    (array([[1.5],
           [0.5]]), 'duality gap')
    """

    def _check_labels(self) -> None:
        """Any finite label is one."""

    def _losses(self, z: Array, t: Array) -> Array:
        return np.asarray(0.5 * (np.abs(self.y - z) + t) ** 2)

    def _slopes(self, z: Array, t: Array) -> tuple[Array, Array]:
        r = self.y - z
        total = np.abs(r) + t
        return -np.sign(r) * total - (r == 0) * r, total

    def _curvatures(self, z: Array, t: Array) -> tuple[Array, Array, Array]:
        one = np.ones_like(z)
        return one, -np.sign(self.y - z), one

    def _signs(self, w: Array) -> Array:
        return np.where(self.y - self.X @ w > 0, -1.0, 1.0)

    def _solver_loss(self) -> RobustSquares:
        kept = self._kept
        shares = self._weights[kept] / self.num_examples
        return RobustSquares.of(self.X[kept], self.y[kept], shares, self.radius, self._dual_norm, self.l2, labels=True)

    @cached_property
    def _solution(self) -> Solution:
        if self.radius:
            return super()._solution
        w = LeastSquares(self.X, self.y, self.l2, self.sample_weight).optimum
        size = float(np.linalg.norm(self.gradient(w)))
        at_zero = float(np.linalg.norm(self.gradient(np.zeros(self.dim))))
        none = np.zeros(0, dtype=np.intp)
        certificate = Certificate("gradient norm", size, size / at_zero if at_zero else 0.0)
        return Solution(w, none, none, np.sign(self.y - self.X @ w), certificate)

    @property
    def _exact_cell(self) -> bool:
        return not self.radius or self.dual == 1.0 or bool(np.isinf(self.dual))

    def cell(self) -> LeastSquares | QuadraticExamples:
        """The finite quadratic problem that this one is within the smooth piece about its optimum.

        Returns
        -------
        LeastSquares or QuadraticExamples
            For attacks of norm ``inf`` and 1, ordinary least squares with shifted features: example by example the
            same losses up to the boundaries of the piece.  Otherwise every example's expansion to second order.

        Raises
        ------
        InvalidProblemError
            If the optimum rests on a kink.
        """
        if not self._exact_cell:
            return super().cell()
        self._require_smooth("smooth piece")
        w = self.optimum
        sides = np.sign(self.y - self.X @ w)
        shifted = self.X - self.radius * sides[:, None] * self._dual_norm.gradient(w)
        return LeastSquares(shifted, self.y, self.l2, self.sample_weight)

    def _smoothed(self, covariance: ArrayLike, mean: ArrayLike | None) -> Smoothed:
        centre = self.optimum if mean is None else _arrays.vector("mean", mean, dim=self.dim)
        kinked = self._dual_norm.kinked_coordinates(centre)
        if self.radius and self.dual != 1.0 and (not centre.any() or len(kinked)):
            kinks = Kinks((), tuple(map(int, kinked)), not centre.any())
            raise InvalidProblemError(
                f"the norm in the loss has a kink at the centre of the Gaussian: {kinks}. Kinks are averaged in closed "
                f"form for residuals and, under attacks of norm inf, for weights of 0."
            )
        spread = _arrays.positive_semidefinite("covariance", covariance, dim=self.dim)
        return Smoothed.of(self.X, self.y, self.radius, self._dual_norm, centre, spread, self._weights)

    def smoothed_loss(self, covariance: ArrayLike, mean: ArrayLike | None = None) -> float:
        """The mean of the loss over Gaussian weights.

        Parameters
        ----------
        covariance : array_like, shape (d, d)
            Of the weights.
        mean : array_like, shape (d,), optional
            The optimum by default.

        Returns
        -------
        float
            Exact for attacks of norm ``inf`` and 1 as far as the norm's own smooth piece reaches; weights that change
            their signs (``inf``) enter to leading order, and so do other norms, in the covariance over the squared
            norm.
        """
        smoothed = self._smoothed(covariance, mean)
        centre = self.optimum if mean is None else _arrays.vector("mean", mean, dim=self.dim)
        decay = float(centre @ centre) + float(np.trace(smoothed.spread))
        return float(smoothed.losses() @ self._weights) / self.num_examples + 0.5 * self.l2 * decay

    def smoothed_gradient(self, covariance: ArrayLike, mean: ArrayLike | None = None) -> Array:
        """The gradient of the mean loss, averaged over Gaussian weights.

        Parameters
        ----------
        covariance : array_like, shape (d, d)
            Of the weights.
        mean : array_like, shape (d,), optional
            The optimum by default.

        Returns
        -------
        ndarray, shape (d,)
            Exact as `smoothed_loss` is.
        """
        smoothed = self._smoothed(covariance, mean)
        centre = self.optimum if mean is None else _arrays.vector("mean", mean, dim=self.dim)
        return np.asarray(self._weights @ smoothed.gradients() / self.num_examples + self.l2 * centre)

    def smoothed_hessian(self, covariance: ArrayLike, mean: ArrayLike | None = None) -> Array:
        r"""The Hessian of the loss averaged over Gaussian weights, the kinks' curvature included.

        To the mean of the examples' Hessians the kinks add
        :math:`rac{2\epsilon}N \sum_n a_n\,\mathrm E[|w|_q \mid r_n = 0]\,f_n(0)\,x_n x_n^	op`, with the density
        of the residual :math:`r_n` over the weights.  It is what an ensemble of this law is driven back by.

        Parameters
        ----------
        covariance : array_like, shape (d, d)
            Of the weights; positive along the inputs of residuals that are 0.
        mean : array_like, shape (d,), optional
            The optimum by default.

        Returns
        -------
        ndarray, shape (d, d)
            Exact as `smoothed_loss` is.

        Raises
        ------
        InvalidProblemError
            If the norm has a kink at the mean that is not one of weights at 0 under an attack of norm ``inf``, or if
            what is 0 does not vary.

        Notes
        -----
        On N independent examples this is a kernel estimate, with the bandwidth :math:`\tau_n`, of the density of
        residuals at 0: it tends to the Hessian of the population as N grows and the covariance shrinks more slowly
        than :math:`1/N^2`, which the mean of the examples' Hessians does not.
        """
        smoothed = self._smoothed(covariance, mean)
        return smoothed.hessian(self._weights / self.num_examples) + self.l2 * np.eye(self.dim)

    def smoothed_noise(
        self, batch_size: int, covariance: ArrayLike, mean: ArrayLike | None = None, replacement: bool = True
    ) -> Array:
        """The covariance of a minibatch's mean gradient, averaged over Gaussian weights.

        Parameters
        ----------
        batch_size : int
            B, from 1 to N.
        covariance : array_like, shape (d, d)
            Of the weights.
        mean : array_like, shape (d,), optional
            The optimum by default.
        replacement : bool, default True
            Whether the examples of a batch are drawn independently, or are distinct.

        Returns
        -------
        ndarray, shape (d, d)
            The moments of the examples' gradients are exact as `smoothed_loss` is.  The mean gradient of all of them
            varies over the law like that of a quadratic loss with `smoothed_hessian`, which is exact at radius 0 and
            otherwise up to terms in which the whole data set's gradient bends over the law.

        Raises
        ------
        InvalidProblemError
            As for `smoothed_hessian`, or if ``batch_size`` is not an integer from 1 to N.
        """
        size = checked_batch_size(batch_size, self.num_examples)
        smoothed = self._smoothed(covariance, mean)
        return smoothed.between(self._weights) * batch_factor(size, self.num_examples, replacement)

    def face(self) -> AdversarialLeastSquares:
        """The same problem without the weights that the norm's kink holds at 0.

        Returns
        -------
        AdversarialLeastSquares
            Of the other weights, in their order; its optimum has theirs.

        Raises
        ------
        InvalidProblemError
            If all weights are 0, or tie for the largest.

        Notes
        -----
        The mean loss rises linearly to both sides of the kink, so the weights that are left out jump about 0 by
        O(lr) and add O(lr^2) to the covariance, where the others have O(lr).
        """
        kept = self._face_columns()
        return AdversarialLeastSquares(self.X[:, kept], self.y, self.radius, self.norm, self.l2, self.sample_weight)

    def _facets(self) -> Facets:
        own = super()._facets()
        w = self.optimum
        if not self.radius:
            return own
        residuals = (self.y - self.X @ w)[self._kept]
        rows = -np.where(residuals < 0, -1.0, 1.0)[:, None] * self.X[self._kept]
        return Facets(np.vstack([rows, own.rows]), np.concatenate([np.abs(residuals), own.distances]))


@dataclass(frozen=True, eq=False, repr=False)
class AdversarialLogistic(RobustExamples):
    r"""Logistic regression against an attack: the mean of :math:`\log(1 + e^{-m})`, m the margin that is left.

    .. math:: L(w) = \frac1N \sum_n a_n \log\big(1 + e^{-(y_n x_n^\top w - \epsilon |w|_q)}\big)
                     + \frac\lambda2 |w|^2

    Parameters
    ----------
    X : array_like, shape (N, d)
        One example a row.
    y : array_like, shape (N,)
        Labels, -1 or 1.
    radius : float
        :math:`\epsilon`, at least 0.
    norm : float, default 2
        p, the order of the ATTACK's norm: 2, ``numpy.inf``, 1 or any number between.
    l2 : float, default 0
        The weight-decay strength :math:`\lambda`, at least 0.
    sample_weight : array_like, shape (N,), optional
        Weights :math:`a_n \ge 0`, used as given, the mean still being over N.

    Raises
    ------
    InvalidProblemError
        Labels other than -1 and 1; arrays not finite or of unfitting shapes; a negative radius, ``l2`` or weight; a
        norm below 1.  And, when the optimum is asked for, data that are separable by more than the attack reaches, if
        there is no weight decay: the loss then has no finite minimiser.

    Notes
    -----
    The loss is not quadratic; `hessian`, `noise` and `cell` are those of its expansion at the optimum.  It has no
    kinks but those of the norm.

    Examples
    --------
    Three of four examples are on the right side; an attack of radius 1/2 leaves nothing to be learnt from that:

    >>> import numpy as np
    >>> problem = AdversarialLogistic([[1.0], [1.0], [1.0], [1.0]], [1, 1, 1, -1], radius=0.25)
    >>> problem.collapse_radius, problem.kinks.smooth
    (0.5, True)
    """

    def _check_labels(self) -> None:
        wrong = np.flatnonzero(np.abs(self.y) != 1.0)
        if wrong.size:
            raise InvalidProblemError(
                f"labels must be -1 or 1, got y[{wrong[0]}] = {self.y[wrong[0]]:g} ({wrong.size} of {len(self.y)} are "
                f"neither); labels 0 and 1 become -1 and 1 as 2*y - 1"
            )

    def _losses(self, z: Array, t: Array) -> Array:
        return np.logaddexp(0.0, -(self.y * z - t))

    def _slopes(self, z: Array, t: Array) -> tuple[Array, Array]:
        chance = scipy.special.expit(-(self.y * z - t))
        return -self.y * chance, chance

    def _curvatures(self, z: Array, t: Array) -> tuple[Array, Array, Array]:
        m = self.y * z - t
        bend = scipy.special.expit(m) * scipy.special.expit(-m)
        return bend, -self.y * bend, bend

    def _signs(self, w: Array) -> Array:
        return -self.y

    def _solver_loss(self) -> RobustLogistic:
        kept = self._kept
        norm = self._dual_norm if self.radius else DualNorm.of_attack(2)
        shares = self._weights[kept] / self.num_examples
        return RobustLogistic.of(self.X[kept], self.y[kept], shares, self.radius, norm, self.l2, labels=False)

    def face(self) -> AdversarialLogistic:
        """The same problem without the weights that the norm's kink holds at 0.

        Returns
        -------
        AdversarialLogistic
            Of the other weights, in their order; its optimum has theirs.

        Raises
        ------
        InvalidProblemError
            If all weights are 0, or tie for the largest.
        """
        kept = self._face_columns()
        return AdversarialLogistic(self.X[:, kept], self.y, self.radius, self.norm, self.l2, self.sample_weight)
