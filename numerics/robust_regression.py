r"""Adversarial linear regression in the population: Gaussian inputs, every quantity in closed form but the optimum.

With :math:`x \sim N(0, A)`, :math:`y = x^\top w_0 + \sigma \xi`, :math:`e = w - w_0`,
:math:`v^2 = e^\top A e + \sigma^2` and :math:`t = \epsilon |w|_q`, a residual is :math:`N(0, v^2)`, so

.. math:: R(w) = \tfrac12 \mathrm E (|r| + t)^2 = \tfrac12 \big[v^2 + 2 c_0 t v + t^2\big] , \qquad
          c_0 = \sqrt{2/\pi} ,

and inputs are :math:`x = b r + x_\perp`, :math:`b = -A e / v^2`, with :math:`x_\perp` independent of the residual.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InvalidProblemError
from . import _arrays
from ._batches import checked_batch_size
from ._dual_norm import DualNorm
from ._gaussian_risk import C0, GaussianRisk, Units
from ._kinks import Kinks, check_smooth
from ._robust_solver import (
    Certificate,
    Solution,
    assembled,
    minimise,
    unresolved_weights,
)
from .adversarial import AdversarialLeastSquares
from .problems import Quadratic

__all__ = ["GaussianAdversarialRegression"]

Array: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, eq=False, repr=False)
class GaussianAdversarialRegression:
    r"""Robust linear regression on fresh Gaussian data, :math:`x \sim N(0, A)`, :math:`y = x^\top w_0 + \sigma \xi`.

    Parameters
    ----------
    covariance : array_like, shape (d, d)
        A, the covariance of the inputs; symmetric positive semidefinite.
    weights : array_like, shape (d,)
        :math:`w_0`, which make the labels.
    label_noise : float
        :math:`\sigma > 0`, the STANDARD DEVIATION of the labels about the line.
    radius : float
        :math:`\epsilon`, at least 0.
    norm : float, default 2
        p, the order of the attack's norm: 2, ``numpy.inf``, 1 or any number between.

    Raises
    ------
    InvalidProblemError
        Arrays that are not what they should be, a negative radius, no label noise, a norm below 1.

    Notes
    -----
    Without label noise the residuals vanish together at :math:`w_0`, which is a kink of the risk; that case is refused.

    References
    ----------
    javanmard2020, xing2021

    Examples
    --------
    The attack shrinks the weights; under this one, of the 2-norm, as ridge regression does:

    >>> import numpy as np
    >>> problem = GaussianAdversarialRegression([[1.0]], [1.0], label_noise=1.0, radius=0.5)
    >>> w, ridge = problem.optimum, problem.ridge
    >>> bool(np.isclose(w[0], 1 / (1 + ridge))), round(problem.collapse_radius, 12)
    (True, 0.886226925453)
    """

    covariance: Array
    weights: Array
    label_noise: float
    radius: float
    norm: float = 2

    def __post_init__(self) -> None:
        covariance = _arrays.positive_semidefinite("covariance", self.covariance)
        weights = _arrays.vector("weights", self.weights, dim=len(covariance))
        covariance.flags.writeable = weights.flags.writeable = False
        noise = _arrays.nonnegative("label_noise", self.label_noise)
        if not noise:
            raise InvalidProblemError(
                "label_noise must be positive: without it all residuals vanish together at the weights that make the "
                "labels, a kink of the risk at which it may have its minimum and no Hessian"
            )
        object.__setattr__(self, "covariance", covariance)
        object.__setattr__(self, "weights", weights)
        object.__setattr__(self, "label_noise", noise)
        object.__setattr__(self, "radius", _arrays.nonnegative("radius", self.radius))
        object.__setattr__(self, "norm", self._dual_norm.p)

    def __repr__(self) -> str:
        return (
            f"GaussianAdversarialRegression(dim={self.dim}, label_noise={self.label_noise:g}, radius={self.radius:g}, "
            f"norm={self.norm:.15g})"
        )

    @cached_property
    def _dual_norm(self) -> DualNorm:
        return DualNorm.of_attack(self.norm)

    @cached_property
    def _units(self) -> Units:
        return Units.of(self.covariance, self.weights, self.label_noise)

    @cached_property
    def _risk(self) -> GaussianRisk:
        """The risk in these units, in which all that follows is computed."""
        norm = self._dual_norm if self.radius else DualNorm.of_attack(2)
        return self._units.risk(self.covariance, self.weights, self.label_noise, self.radius, norm)

    @property
    def dim(self) -> int:
        """The number d of parameters."""
        return len(self.weights)

    @property
    def dual(self) -> float:
        """The order q of the norm of the weights that the attack puts into the loss: 1/p + 1/q = 1."""
        return self._dual_norm.q

    def residual_std(self, w: ArrayLike) -> Array:
        """The standard deviation v of the residuals.

        Parameters
        ----------
        w : array_like, shape (..., d)

        Returns
        -------
        ndarray, shape (...)
        """
        std = self._risk.residual_std(self._units.scaled(_arrays.points("w", w, self.dim)))
        return self._units.restored("the standard deviation of residuals", std, 1, 1)

    def risk(self, w: ArrayLike) -> Array:
        """The robust risk, the mean of (|r| + radius |w|_q)^2 / 2.

        Parameters
        ----------
        w : array_like, shape (..., d)

        Returns
        -------
        ndarray, shape (...)
        """
        w = self._units.scaled(_arrays.points("w", w, self.dim))
        v, t = self._risk.residual_std(w), self._risk.radius * self._dual_norm.of(w)
        return self._units.restored("the risk", 0.5 * v**2 + C0 * t * v + 0.5 * t**2, 2, 2)

    loss = risk

    def gradient(self, w: ArrayLike) -> Array:
        """The gradient of the risk; on a kink of the norm, a subgradient.

        Parameters
        ----------
        w : array_like, shape (..., d)

        Returns
        -------
        ndarray, shape (..., d)
        """
        gradient = self._scaled_gradient(self._units.scaled(_arrays.points("w", w, self.dim)))
        return self._units.restored("the gradient", gradient, 2, 1)

    def _scaled_gradient(self, w: Array) -> Array:
        risk = self._risk
        v, t = risk.residual_std(w)[..., None], risk.radius * self._dual_norm.of(w)[..., None]
        along = (1.0 + C0 * t / v) * ((w - risk.weights) @ risk.covariance)
        return np.asarray(along + risk.radius * (C0 * v + t) * self._dual_norm.gradient(w))

    @cached_property
    def collapse_radius(self) -> float:
        """The radius from which on 0 is the minimiser: the attack's norm of A w_0, over c_0 times v at w = 0."""
        risk = self._risk
        pull = self._dual_norm.attack_norm(risk.covariance @ risk.weights)
        radius = pull / (C0 * float(risk.residual_std(np.zeros(self.dim))))
        return float(self._units.restored("the collapse radius", np.array(radius), 1, 0))

    @cached_property
    def _solution(self) -> Solution:
        none = np.zeros(0, dtype=np.intp)
        if not self.radius:
            return Solution(self.weights, none, none, np.zeros(0), Certificate("gradient norm", 0.0, 0.0))
        if self.radius >= self.collapse_radius:
            zero = np.zeros(self.dim)
            return Solution(zero, none, np.arange(self.dim), np.zeros(0), Certificate("gradient norm", 0.0, 0.0))
        found = minimise(self._risk, repr(self))
        with np.errstate(over="ignore"):
            size = float(np.ldexp(found.certificate.value, self._units.power(2, 1)))
        certificate = replace(found.certificate, value=size)
        return replace(found, w=self._units.restored("the minimiser", found.w, 0, 1), certificate=certificate)

    @cached_property
    def optimum(self) -> Array:
        """The robust minimiser, shape (d,), to a `certificate`; 0 from `collapse_radius` on."""
        w = np.array(self._solution.w)
        w.flags.writeable = False
        return w

    @property
    def certificate(self) -> Certificate:
        """How the `optimum` is known to be one."""
        return self._solution.certificate

    @cached_property
    def kinks(self) -> Kinks:
        """The kinks of the norm on which the `optimum` rests; those of residuals are smoothed by their density."""
        if not self.radius:
            return Kinks((), (), False)
        solution = self._solution
        return Kinks((), tuple(map(int, solution.coordinates)), not solution.w.any())

    @property
    def ridge(self) -> float:
        r"""The strength :math:`\lambda` for which the optimum is ridge regression's, :math:`(A + \lambda)^{-1} A w_0`.

        :math:`\lambda = \epsilon(\epsilon + c_0 v / |w|) / (1 + c_0 \epsilon |w| / v)` at the optimum, which it makes
        an equation; for attacks of the 2-norm.

        Raises
        ------
        InvalidProblemError
            For other norms, and from the collapse radius on.
        """
        if self.dual != 2.0:
            raise InvalidProblemError(f"the optimum is a ridge solution for attacks of norm 2, not {self.norm:g}")
        self._require_smooth("ridge form")
        if not self.radius:
            return 0.0
        w, risk = self._units.scaled(self.optimum), self._risk
        n, v, eps = float(risk.norm.of(w)), float(risk.residual_std(w)), risk.radius
        return float(
            self._units.restored("the ridge", np.array(eps * (eps + C0 * v / n) / (1.0 + C0 * eps * n / v)), 2, 0)
        )

    @cached_property
    def _unresolved(self) -> NDArray[np.intp]:
        """Weights of a minimiser off the kinks that are not known well enough for the norm's curvature."""
        w, norm = self._units.scaled(self.optimum), self._risk.norm
        terms = norm.terms(w)
        partials = self._risk.partials(w, terms[0])
        return unresolved_weights(norm, w, *assembled(partials, terms), partials.n * terms[2])

    def _require_smooth(self, what: str) -> None:
        check_smooth(self, f"the risk has no {what}", self._unresolved if self.kinks.smooth and self.radius else ())

    def _point(self, w: ArrayLike | None, what: str) -> Array:
        if w is None:
            self._require_smooth(what)
            return self.optimum
        point = _arrays.vector("w", w, dim=self.dim)
        kinked = self._dual_norm.kinked_coordinates(point)
        if self.radius and (not point.any() or len(kinked)):
            raise InvalidProblemError(
                f"the risk has no {what} at this w: {Kinks((), tuple(map(int, kinked)), not point.any())}"
            )
        return point

    def hessian_at(self, w: ArrayLike) -> Array:
        """The Hessian of the risk at a point, with the curvature of the residuals' kinks.

        Parameters
        ----------
        w : array_like, shape (d,)

        Returns
        -------
        ndarray, shape (d, d)

        Raises
        ------
        InvalidProblemError
            On a kink of the norm.
        """
        point = self._units.scaled(self._point(w, "Hessian"))
        terms = self._risk.norm.terms(point)
        return self._units.restored("the Hessian", assembled(self._risk.partials(point, terms[0]), terms)[1], 2, 0)

    @cached_property
    def hessian(self) -> Array:
        """The Hessian of the risk at the optimum, shape (d, d), with the curvature of the residuals' kinks.

        Raises
        ------
        InvalidProblemError
            If the optimum rests on a kink of the norm, or is 0.
        """
        self._require_smooth("Hessian")
        out = self.hessian_at(self.optimum)
        out.flags.writeable = False
        return out

    def mean_ae_hessian(self, w: ArrayLike | None = None) -> Array:
        r"""The mean of the Hessians of single examples, what averaging automatic differentiation gives.

        The Hessian exceeds it by the kinks' :math:`2 t f_r(0)\,\mathrm E[x x^\top \mid r = 0]`, with the density
        :math:`f_r(0) = 1/(\sqrt{2\pi} v)` of the residual.

        Parameters
        ----------
        w : array_like, shape (d,), optional
            The optimum by default.

        Returns
        -------
        ndarray, shape (d, d)

        Raises
        ------
        InvalidProblemError
            On a kink of the norm.
        """
        point, risk = self._units.scaled(self._point(w, "Hessian")), self._risk
        n, g, bend = risk.norm.terms(point)
        v, eps = float(risk.residual_std(point)), risk.radius
        turned = -C0 / v * (risk.covariance @ (point - risk.weights))  # the mean of sgn(r) x
        out = risk.covariance - eps * (np.outer(turned, g) + np.outer(g, turned))
        out = out + eps**2 * np.outer(g, g) + eps * (C0 * v + eps * n) * bend
        return self._units.restored("the mean of the Hessians", 0.5 * (out + out.T), 2, 0)

    def noise(self, batch_size: int, w: ArrayLike | None = None) -> Array:
        """The covariance of the mean gradient of fresh examples.

        Parameters
        ----------
        batch_size : int
            B, at least 1.
        w : array_like, shape (d,), optional
            The optimum by default.

        Returns
        -------
        ndarray, shape (d, d)

        Raises
        ------
        InvalidProblemError
            On a kink of the norm, or if ``batch_size`` is not a positive integer.
        """
        size = checked_batch_size(batch_size, None)
        point, risk = self._units.scaled(self._point(w, "gradient of every example")), self._risk
        n, g, _ = risk.norm.terms(point)
        v, eps = float(risk.residual_std(point)), risk.radius
        t = eps * n
        b = -(risk.covariance @ (point - risk.weights)) / v**2
        across = risk.covariance - v**2 * np.outer(b, b)  # the covariance of the part of x that the residual leaves
        m1, m2, m3, m4 = C0 * v, v**2, 2.0 * C0 * v**3, 3.0 * v**4  # means of |r|^k
        square = m2 + 2.0 * t * m1 + t**2  # of (|r| + t)^2, and of its products with |r| and r^2:
        by_length, by_square = m3 + 2.0 * t * m2 + t**2 * m1, m4 + 2.0 * t * m3 + t**2 * m2
        mixed = -eps * by_length * np.outer(b, g)
        out = by_square * np.outer(b, b) + square * (across + eps**2 * np.outer(g, g)) + mixed + mixed.T
        mean = self._scaled_gradient(point)
        out = (out - np.outer(mean, mean)) / size
        return self._units.restored("the gradient noise", 0.5 * (out + out.T), 4, 2)

    def quadratic(self, batch_size: int) -> Quadratic:
        """The quadratic loss of the same Hessian and optimum, with the noise of `noise` at every point.

        Parameters
        ----------
        batch_size : int

        Returns
        -------
        Quadratic

        Raises
        ------
        InvalidProblemError
            As for `hessian` and `noise`.
        """
        return Quadratic(self.hessian, self.noise(batch_size), self.optimum)

    def face(self) -> GaussianAdversarialRegression:
        """The same problem without the weights that the norm's kink holds at 0.

        What the left-out inputs say of the labels goes partly into the other weights, and the rest into label noise.

        Returns
        -------
        GaussianAdversarialRegression
            Of the other weights, in their order; its optimum has theirs.

        Raises
        ------
        InvalidProblemError
            If all weights are 0, or tie for the largest.
        """
        if self.kinks.collapsed:
            self._require_smooth("face")
        if np.isinf(self.dual) and self.kinks.coordinates:
            raise InvalidProblemError(
                "the weights on the kink tie for the largest (attack norm 1): their face is not one of coordinates"
            )
        out = np.array(self.kinks.coordinates, dtype=np.intp)
        kept = np.setdiff1d(np.arange(self.dim), out)
        inner, cross = self.covariance[np.ix_(kept, kept)], self.covariance[np.ix_(kept, out)]
        carried = np.linalg.lstsq(inner, cross @ self.weights[out], rcond=None)[0]
        left = self.weights[out] @ self.covariance[np.ix_(out, out)] @ self.weights[out] - carried @ inner @ carried
        noise = float(np.sqrt(self.label_noise**2 + max(float(left), 0.0)))
        return GaussianAdversarialRegression(inner, self.weights[kept] + carried, noise, self.radius, self.norm)

    def sample(self, num_examples: int, rng: np.random.Generator | int) -> AdversarialLeastSquares:
        """Independent examples of this population.

        Parameters
        ----------
        num_examples : int
            N, at least 1.
        rng : numpy.random.Generator or int

        Returns
        -------
        AdversarialLeastSquares
            Of the same radius and norm.
        """
        generator = _arrays.random_generator(rng)
        count = _arrays.whole_number("num_examples", num_examples, least=1, most=10**9 // self.dim)
        h, basis = np.linalg.eigh(self.covariance)
        root = basis * np.sqrt(np.maximum(h, 0.0))
        X = generator.standard_normal((count, self.dim)) @ root.T
        y = X @ self.weights + self.label_noise * generator.standard_normal(count)
        return AdversarialLeastSquares(X, y, self.radius, self.norm)
