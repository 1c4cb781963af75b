r"""Mean-square stability: whether a covariance exists when the gradient noise depends on the weights.

The second moment of the slots obeys a linear recursion, whose spectral radius decides: below 1 the covariance settles,
above it grows for ever although the mean may settle.  The linear system for a stationary covariance has a finite
solution on either side, which beyond the edge is no covariance; so the radius is computed first, always.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeAlias

import numpy as np
import scipy.optimize
from numpy.typing import ArrayLike, NDArray

from ..errors import HyperparameterError, InvalidProblemError, MeanSquareUnstableError, UnstableError
from ..theory import Optimizer
from ._arrays import finite_array, rounding_level
from ._margins import has_unit_root
from ._problem import Problem, make_problem
from ._result import Frozen
from ._rotated_noise import RotatedNoise
from ._second_moment import Feedback, gradient_point, perron_root
from ._source_noise import DataNoise, data_noise, diagonal_above, eigenvalue_errors, settled_noise
from .mean import stationary_mean
from .noise import GradientNoise
from .stability import max_learning_rate, spectral_radius

__all__ = ["MeanSquareStability", "additive_problem", "check_hessian", "mean_square_stability"]

Array: TypeAlias = NDArray[np.float64]

EPS = float(np.finfo(np.float64).eps)
#: Learning rates tried below the mean's limit before the edge is bracketed; the feedback grows from 0 at lr = 0.
_SCAN = 12
#: How near the mean's own limit (relatively) the noise must be harmless for that to be the limit.
_EDGE = 1e-13
#: Growth in a step, or a learning rate, beyond which no more is looked for.
_HIGHEST = 1e150


@dataclass(frozen=True, eq=False, repr=False)
class MeanSquareStability(Frozen):
    """Whether an optimizer has a covariance under a gradient noise, and up to which learning rate.

    Attributes
    ----------
    optimizer : Optimizer
    noise : GradientNoise
    """

    optimizer: Optimizer
    noise: GradientNoise
    _feedback: Feedback = field(repr=False)

    def __repr__(self) -> str:
        verdict = "stable" if self.stable else "unstable"
        return f"MeanSquareStability({self.optimizer!r}, {verdict}, spectral_radius={self.spectral_radius:.6g})"

    @property
    def stable(self) -> bool:
        """Whether the stationary covariance exists."""
        return self.feedback_radius < 1.0

    @cached_property
    def feedback_radius(self) -> float:
        r"""The spectral radius of :math:`(I - \mathcal A)^{-1}\mathcal B`, with :math:`\mathcal A` the mean's part.

        It is below 1 exactly where `spectral_radius` is, and infinite where the mean itself does not settle; by
        ``1 / (1 - feedback_radius)`` at most the state-dependence of the noise inflates the covariance.
        """
        if self._feedback.stretches_flat:
            return float("inf")
        try:
            self._feedback.problem.check()
        except UnstableError:
            return float("inf")
        return self._feedback.radius(self._feedback.gain(self.optimizer))

    @cached_property
    def spectral_radius(self) -> float:
        r"""The factor by which second moments grow or shrink in a step, in the long run.

        Directions that are flat in every batch are left out.  One that is flat in the mean only makes it larger than
        1: nothing damps it, and its curvature, now positive and now negative, stretches it.
        """
        feedback = self._feedback
        h = feedback.eigenvalues
        if not h.size:
            return 0.0
        mean_growth = spectral_radius(self.optimizer, np.diag(h)) ** 2
        if feedback.stretches_flat:
            mean_growth = max(mean_growth, 1.0)

        def excess(growth: float) -> float:
            # The reciprocal: the feedback has a pole at the growth of the mean, near which it is nearly straight.
            try:
                radius = feedback.radius(feedback.gain_at_growth(self.optimizer, growth))
            except np.linalg.LinAlgError:  # at the pole itself
                return 1.0
            return 1.0 - 1.0 / radius if radius else -np.inf

        low = mean_growth * (1 + 1e-12) + 1e-300
        if excess(low) <= 0:
            return max(mean_growth, np.nextafter(1.0, 2.0)) if feedback.stretches_flat else mean_growth
        high = max(2.0 * low, 1.0)
        while excess(high) > 0:
            high *= 2.0
            if not high < _HIGHEST:
                raise InvalidProblemError(
                    f"the second moments grow by more than {_HIGHEST:.0e} in a step, which double precision does not "
                    f"hold: the largest Hessian eigenvalue is {h.max():.6g}"
                )
        while high / 16.0 > low and excess(high / 16.0) <= 0:  # the mean may forget at once, so low may be very low
            high /= 16.0
        low = max(low, high / 16.0)
        return float(scipy.optimize.brentq(excess, low, high, xtol=1e-15 * low, rtol=4 * EPS))

    @cached_property
    def largest_lr(self) -> float:
        """The least upper bound of the learning rates that have a covariance, everything else as it is.

        0 where no learning rate has one: batches that curve a direction which is flat in the mean.  Infinite where all
        do: all directions are flat in every batch.

        Raises
        ------
        HyperparameterError
            If the rule has no ``lr``.
        """
        if "lr" not in self.optimizer.values:
            raise HyperparameterError(f"{self.optimizer.rule.name} has no lr to bound", name="lr")
        feedback = self._feedback
        if feedback.stretches_flat:
            return 0.0
        if not feedback.eigenvalues.size:
            return float("inf")
        mean_bound = max_learning_rate(self.optimizer, np.diag(feedback.eigenvalues))

        def excess(lr: float) -> float:
            radius = feedback.radius(feedback.gain(self.optimizer.replace(lr=lr)))
            return 1.0 - 1.0 / radius if radius else -np.inf

        top = mean_bound if np.isfinite(mean_bound) else 1.0 / float(feedback.eigenvalues.max())
        low = top
        for _ in range(200):  # from where it is certainly stable ...
            low *= 0.5
            if excess(low) < 0:
                break
        else:
            return 0.0
        step = (top / low) ** (1.0 / _SCAN) if np.isfinite(mean_bound) else 2.0
        high = low
        while True:  # ... up to the first crossing
            low, high = high, high * step
            if not high < _HIGHEST:
                return float("inf")
            if high >= mean_bound * (1 - _EDGE):
                high = mean_bound * (1 - _EDGE)
                if excess(high) <= 0:
                    return mean_bound
                break
            if excess(high) > 0:
                break
        return float(scipy.optimize.brentq(excess, low, high, xtol=1e-300, rtol=4 * EPS))

    @property
    def largest_mean_lr(self) -> float:
        """The least upper bound of the learning rates at which the mean settles."""
        return max_learning_rate(self.optimizer, np.diag(self._feedback.eigenvalues))

    @cached_property
    def mulayoff_michaeli(self) -> float:
        r"""The threshold :math:`2 / \lambda_{\max}(\mathbf C^\dagger \mathbf D)` of Mulayoff and Michaeli, Theorem 3.

        With :math:`\mathbf C = (H \oplus H)/2` and
        :math:`\mathbf D = (1-p) H \otimes H + p\,\mathrm{mean}\, H_n \otimes H_n`: the largest learning rate of plain
        SGD with a covariance, one symmetric eigenvalue problem.  For plain SGD it equals `largest_lr`; it knows
        nothing of momentum.
        """
        feedback = self._feedback
        h = feedback.eigenvalues
        if feedback.stretches_flat or feedback.stretches(h == 0.0):  # the range of D leaves that of C
            return 0.0
        if not np.any(h > 0.0):
            return float("inf")
        root = np.sqrt(0.5 * (h[:, None] + h))
        scale = feedback.triangle.pack(np.divide(1.0, root, where=root > 0.0, out=np.zeros_like(root)))
        scale /= feedback.triangle._weights
        product = feedback.triangle.pack(np.outer(h, h)) / feedback.triangle._weights

        def operate(v: Array) -> Array:
            return np.asarray(scale * (product * (scale * v) + feedback.added(scale * v)))

        return 2.0 / perron_root(operate, feedback.triangle, symmetric=True)


def mean_square_stability(
    optimizer: Optimizer, noise: GradientNoise, *, preconditioner: ArrayLike | None = None
) -> MeanSquareStability:
    r"""Whether a covariance exists under gradient noise that depends on the weights.

    Parameters
    ----------
    optimizer : Optimizer
        Every hyper-parameter bound.
    noise : GradientNoise
        Its own Hessian is used.
    preconditioner : array_like, shape (d, d) or (d,), optional
        As for `stationary_covariance`.

    Returns
    -------
    MeanSquareStability
        Everything in it is computed when it is asked for.

    Raises
    ------
    HyperparameterError
        If a hyper-parameter is unbound.
    InvalidRuleError
        If the rule takes more than one gradient from a batch.
    InvalidProblemError
        If ``noise`` is a plain covariance: additive noise is stable wherever the mean is.

    References
    ----------
    mulayoff2024exact, Theorem 3

    Examples
    --------
    One Gaussian example a step, of covariance diag(1, 2): stable below 4 / (9 + sqrt(17)).

    >>> from sgdcov.numerics import GaussianMinibatchNoise
    >>> from sgdcov.theory import sgd
    >>> noise = GaussianMinibatchNoise([[1.0, 0.0], [0.0, 2.0]], label_noise=1.0, batch_size=1)
    >>> round(mean_square_stability(sgd(lr=0.1), noise).largest_lr, 12)
    0.304805898399
    """
    if not isinstance(noise, GradientNoise):
        raise InvalidProblemError(
            "noise must be a GradientNoise such as MinibatchNoise(problem, batch_size); additive noise of a fixed "
            "covariance is mean-square stable wherever the mean is: see max_learning_rate"
        )
    data = data_noise(noise)
    factor = None if data is None else data.hessian_factor
    zero = np.zeros_like(noise.hessian)
    problem = make_problem(optimizer, noise.hessian, zero, preconditioner, hessian_factor=factor)
    gradient_point(problem.optimizer)
    return MeanSquareStability(problem.optimizer, noise, Feedback(problem, noise))


def _settle(
    optimizer: Optimizer, hessian: ArrayLike, noise: GradientNoise, preconditioner: ArrayLike | None
) -> Problem:
    """The problem with additive noise that has the same stationary second-order law.

    Raises
    ------
    MeanSquareUnstableError
        If there is none.
    """
    check_hessian(hessian, noise)
    data = data_noise(noise)
    factor = None if data is None else data.hessian_factor
    bare = make_problem(optimizer, hessian, np.zeros_like(noise.hessian), preconditioner, hessian_factor=factor)
    mean = mean_at_rest(bare, noise)
    known = None if data is None else data.at(mean, bare)
    at_mean = bare.with_noise(noise.covariance(mean), known)
    at_mean.check()
    feedback = Feedback(at_mean, noise)
    stability = MeanSquareStability(at_mean.optimizer, noise, feedback)
    if not stability.stable:
        has_lr = "lr" in at_mean.optimizer.values
        raise MeanSquareUnstableError(
            float(at_mean.optimizer.values["lr"]) if has_lr else None,
            stability.spectral_radius,
            stability.largest_lr if has_lr else None,
            stability.largest_mean_lr if has_lr else None,
        )
    gain = feedback.gain(at_mean.optimizer)
    inner = np.ix_(feedback.moving, feedback.moving)
    settled = feedback.solve(gain, at_mean.rotated_noise[inner])
    spread = np.zeros_like(at_mean.rotated_noise)
    spread[inner] = gain * settled
    spread_of_weights = at_mean.leave(at_mean.directions.rotate_back(spread))
    added = noise.multiplicative(spread_of_weights)
    total = at_mean.with_noise(at_mean.noise + added)
    known = at_mean.scaled_noise if data is not None else _summed(total, noise.rounding(mean, spread_of_weights))
    problem = total.with_noise(total.noise, _settled_noise(feedback, gain, settled, total, known, data))
    problem.check()
    return problem


def _summed(problem: Problem, rounding: Array) -> RotatedNoise:
    """The noise of a problem in the eigenbasis where its entries are known as well as this in the caller's."""
    base, root, basis = problem.scaled_noise, problem.root, problem.directions.basis
    for turn in (root if root is None or root.ndim == 2 else np.diag(root), basis):
        if turn is not None:
            rounding = np.abs(turn.T) @ rounding @ np.abs(turn)
    return replace(base, error=base.error + np.ldexp(rounding, -base.exponent))


def _settled_noise(
    feedback: Feedback, gain: Array, settled: Array, total: Problem, base: RotatedNoise, data: DataNoise | None
) -> RotatedNoise:
    """The noise over the law in the eigenbasis, with its error: of sums and products, and of the spread's own."""
    directions, moving = total.directions, feedback.moving
    inner = np.ix_(moving, moving)
    if data is None:
        # Summed in the caller's coordinates, where a direction of little noise takes part in the rounding of all.
        roots = np.sqrt(np.maximum(np.diagonal(total.plain_noise), 0.0))
        sizes = roots if directions.basis is None else np.abs(directions.basis.T) @ roots
        sizes, errors = sizes[moving], np.full(moving.size, (2.0 * len(roots) + 32.0) * EPS)
        error = base.error.copy()
        flat = directions.flat
        level = np.broadcast_to(total.noise_level, len(roots))[flat]
        error[flat, flat] = np.maximum(error[flat, flat], np.ldexp(level, -base.exponent))
        base = replace(base, error=error)
    else:
        covariance = np.ldexp(base.covariance, base.exponent)
        covariance[inner] = settled
        base = replace(base, covariance=np.ldexp(covariance, -base.exponent), definite=False)
        sizes, errors = np.sqrt(np.maximum(np.diagonal(settled), 0.0)), data.row_errors(directions)[moving]
    spread_error = feedback.gain_error(eigenvalue_errors(directions)[moving]) + errors[:, None] + errors
    spread = np.abs(gain * settled)
    turned = feedback.map(np.diag(diagonal_above(spread_error * spread, np.sqrt(np.diagonal(spread)))))

    def majorant(diagonal: Array) -> Array:
        return feedback.solve(gain, np.diag(diagonal) + turned, refinements=1)

    return settled_noise(base, moving, sizes, errors, majorant)


def additive_problem(
    optimizer: Optimizer, hessian: ArrayLike, noise: ArrayLike | GradientNoise, preconditioner: ArrayLike | None = None
) -> Problem:
    """The problem with additive noise of the same stationary second-order law: as given, unless the noise follows w."""
    if isinstance(noise, GradientNoise):
        return _settle(optimizer, hessian, noise, preconditioner)
    return make_problem(optimizer, hessian, noise, preconditioner)


def mean_at_rest(problem: Problem, noise: GradientNoise) -> Array:
    """Where the rule takes its gradient at the stationary mean, which weight decay moves away from the optimum."""
    if has_unit_root(problem.optimizer):
        return noise.optimum  # to the last bit, which the data may multiply by much
    point = gradient_point(problem.optimizer)
    target = problem.enter(noise.optimum)
    means = stationary_mean(problem.optimizer, problem.plain_hessian, target, slots=problem.optimizer.rule.slots)
    plain = np.array(point) @ means.reshape(len(point), -1)
    return problem.leave(plain)


def check_hessian(hessian: ArrayLike, noise: GradientNoise) -> None:
    """Refuse a Hessian that is not the one of the loss whose noise it is."""
    given = finite_array("hessian", hessian)
    own = noise.hessian
    if given.shape != own.shape:
        raise InvalidProblemError(f"hessian has shape {given.shape}, but the noise is that of a loss with {own.shape}")
    gap = float(np.max(np.abs(given - own)))
    if not gap <= rounding_level(own):
        raise InvalidProblemError(
            f"hessian is not that of the loss whose noise was given: they differ by up to {gap:.3g}; pass noise.hessian"
        )
