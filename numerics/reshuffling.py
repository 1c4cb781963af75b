r"""Shuffled epochs where every example has a Hessian of its own: the noise depends on the weights and on the order.

Without replacement across an epoch, batches are neither independent of each other nor of where earlier ones have led:
unlike with independent batches the mean is biased.  Two methods answer:

``"enumeration"``  exact, any rule, few examples: the moments of the epoch averaged over every order of the examples
``"expansion"``    any number of examples: leading order in the learning rate :math:`\eta`; an approximation

To leading order, for plain SGD, with :math:`g_i` the gradients at the optimum, j and l batches and
:math:`p = (N-B)/(B(N-1))`,

.. math:: E w - w^* = -\tfrac{\eta}{2} H^{-1} p\, \overline{H_i g_i} , \qquad
          H S + S H = \frac{\eta^3}{M} \operatorname{Cov}\Big(\sum_{j<l} H_l g_j\Big)

at the ends of epochs.  The second is as large as the covariance of the additive model (`EpochNoise`) at ends of epochs:
there the additive model is not even right for small learning rates.  Inside an epoch and on time average it is, and
with momentum at the ends too: what has not yet reached the weights there is of the order :math:`\eta^2`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, TypeAlias

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from ..errors import InvalidProblemError, InvalidRuleError, MeanSquareUnstableError, NonStationaryError
from ..theory import Optimizer, recursion, sgd
from ._arrays import choice, shown, symmetric
from ._epoch_moments import MomentMap, affine_maps, check_size, epoch_moments
from ._epoch_noise import EpochNoise, check_epoch_batches
from ._kernel import to_fraction
from ._log_determinant import log_determinant
from ._order_sums import hessians_in_parts, order_sums
from ._second_moment import gradient_point
from ._slot_law import SlotLaw, slot_indices
from .epochs import Position, checked_position, epoch_stationary_covariance
from .mean import stationary_mean
from .problems import LeastSquares
from .quadratic_examples import QuadraticExamples
from .stability import max_learning_rate

__all__ = ["ReshufflingLaw", "reshuffling_law"]

Array: TypeAlias = NDArray[np.float64]
Problem: TypeAlias = LeastSquares | QuadraticExamples
ReshufflingMethod: TypeAlias = Literal["enumeration", "expansion"]


@dataclass(frozen=True, eq=False, repr=False)
class ReshufflingLaw(SlotLaw):
    """Mean and covariance of shuffled epochs at one position or on time average.  An array where one is expected.

    Attributes
    ----------
    value : ndarray, shape (d, d)
        Covariance of the first slot, the weights; what ``np.asarray`` gives.
    mean : ndarray, shape (d,)
        Of the weights.
    fixed_point : ndarray, shape (d,)
        Where the run without noise rests, and runs with independent batches are on average.
    optimizer : Optimizer
    position : int or "average"
        After how many steps of the epoch; "average" is the law at a uniformly random position.
    method : str
    spectral_radius : float or None
        Of the second moments, over an epoch; below 1.  None for the expansion.
    error : None
        No bound on the forward error is known.  The enumeration rounds products of an epoch's maps and solves for the
        moments that an epoch keeps, whose condition is at least ``1 / (1 - spectral_radius)``; what the expansion
        leaves out, linear in the learning rate, is much more than rounding.
    """

    value: Array
    mean: Array
    fixed_point: Array
    optimizer: Optimizer
    position: Position
    method: str
    spectral_radius: float | None
    _hessian: Array = field(repr=False)
    _optimum: Array = field(repr=False)
    _means: Array = field(repr=False)
    _solve_block: Callable[[int, int], Array] = field(repr=False)
    error: None = None

    def __repr__(self) -> str:
        return (
            f"ReshufflingLaw({self.optimizer!r}, shape={self.value.shape}, position={self.position!r}, "
            f"method={self.method!r})"
        )

    @property
    def bias(self) -> Array:
        """What shuffling adds to the mean of the weights, shape (d,)."""
        return self.mean - self.fixed_point

    @property
    def status(self) -> str:
        """What kind of law this is, in words."""
        where = "on average over an epoch" if self.position == "average" else f"after {self.position} steps of an epoch"
        if self.method == "enumeration":
            return f"periodic, {where}; exact, over every order of the examples"
        return f"periodic, {where}; approximation: leading order in the learning rate, relative error linear in it"

    def slot_mean(self, slots: Sequence[str]) -> Array:
        """The means of slots, stacked in the order given.

        Parameters
        ----------
        slots : sequence of str

        Returns
        -------
        ndarray, shape (k * d,)

        Raises
        ------
        InvalidProblemError
            If the rule has no such slot.
        """
        return np.concatenate(self._means[slot_indices(self.optimizer, slots)])

    @property
    def excess_risk(self) -> float:
        """Mean loss above the minimum, that of the bias included."""
        delta = self.mean - self._optimum
        return 0.5 * float(np.vdot(self._hessian, self.value) + delta @ self._hessian @ delta)

    @property
    def rank(self) -> int:
        """Number of directions in which the weights vary: the rank of the covariance up to rounding."""
        return self._log_det_and_rank[1]

    @property
    def log_det(self) -> float:
        """Logarithm of the product of the nonzero eigenvalues (``rank`` of them): the log-determinant on the range."""
        return self._log_det_and_rank[0]

    @cached_property
    def _log_det_and_rank(self) -> tuple[float, int]:
        return log_determinant(self.value, np.ones(len(self.value), dtype=np.bool_))


def reshuffling_law(
    optimizer: Optimizer,
    problem: LeastSquares | QuadraticExamples,
    batch_size: int,
    *,
    position: Position = 0,
    method: ReshufflingMethod = "enumeration",
    drop_last: bool = False,
) -> ReshufflingLaw:
    r"""Mean and covariance of an optimizer that passes through the examples in a new random order each epoch.

    Parameters
    ----------
    optimizer : Optimizer
        Every hyper-parameter bound.
    problem : LeastSquares or QuadraticExamples
    batch_size : int
        B; at least two batches an epoch.
    position : int or "average"
        After how many steps of the epoch; 0 is the end of the last, where checkpoints are taken (their number M is
        the 0 of the next).  "average" is the law at a uniformly random position.
    method : {"enumeration", "expansion"}
        "enumeration" is exact, for any rule, and for up to 16 examples one by one.
        "expansion" is of leading order in the learning rate, everything else fixed, for rules that take one gradient
        in a step: the bias, and for plain `sgd` at ends of epochs the covariance that the order of the examples makes;
        elsewhere that of the noise at the optimum (`EpochNoise`).  Its relative error is linear in the learning rate.
    drop_last : bool
        For enumeration: leave out what remains where B does not divide N, other examples in every epoch.

    Returns
    -------
    ReshufflingLaw

    Raises
    ------
    HyperparameterError
        If a hyper-parameter is unbound.
    InvalidProblemError
        If an argument does not fit, or there are too many orders to enumerate; it names their number.
    InvalidRuleError
        If the expansion is asked of a rule that takes several gradients in a step, or at ends of epochs of momentum 0
        by another name than `sgd`.
    UnstableError
        If the run without noise is unstable.
    MeanSquareUnstableError
        If the second moments of the epoch grow: there is no covariance.
    NonStationaryError
        If a direction is never forgotten.

    Notes
    -----
    The bias is of the first order in the learning rate, the deviations at ends of epochs too: it is no small part of
    what is seen there.

    Examples
    --------
    Two parabolas, in both orders: the mean is not at the minimum, 0.5.

    >>> from sgdcov.numerics import QuadraticExamples
    >>> from sgdcov.theory import sgd
    >>> problem = QuadraticExamples([[[1.0]], [[3.0]]], [[1.0], [-3.0]])
    >>> law = reshuffling_law(sgd(lr=0.125), problem, 1)
    >>> law.mean.round(6), law.value.round(6)
    (array([0.551724]), array([[0.003135]]))
    """
    optimizer = recursion(optimizer).optimizer
    optimizer.require_bound()
    if not isinstance(problem, LeastSquares | QuadraticExamples):
        raise InvalidProblemError(f"the problem must be a LeastSquares or QuadraticExamples, got {shown(problem)}")
    size = check_epoch_batches(problem.num_examples, batch_size, drop_last=drop_last)
    where = checked_position(position, problem.num_examples // size)
    make = _enumerated if choice("method", method, ("enumeration", "expansion")) == "enumeration" else _expanded
    return make(optimizer, problem, size, where)


def _enumerated(optimizer: Optimizer, problem: Problem, size: int, position: Position) -> ReshufflingLaw:
    total, d, slots = problem.num_examples, problem.dim, optimizer.rule.slots
    check_size(total, size, 1 + d * len(slots))
    centre = stationary_mean(optimizer, problem.hessian, problem.optimum, slots=slots)
    hessians = np.concatenate([part for _, part in hessians_in_parts(problem)])
    gradients = problem.per_example_gradients(np.zeros(d))
    sets, maps = affine_maps(optimizer, hessians, gradients, centre, size)
    after = list(epoch_moments(total, size, sets, maps))
    start, radius = _stationary_moments(optimizer, problem, after[-1], len(after) - 1)
    if position == "average":
        moments = sum((step(start) for step in after[:-1]), np.zeros_like(start)) / (len(after) - 1)
    else:
        moments = after[position](start)
    mean = moments[0, 1:]
    covariance = moments[1:, 1:] - np.outer(mean, mean)
    means = (centre + mean).reshape(len(slots), d)

    def block(a: int, b: int) -> Array:
        return covariance[a * d : (a + 1) * d, b * d : (b + 1) * d].copy()

    return ReshufflingLaw(
        block(0, 0), means[0], centre[:d], optimizer, position, "enumeration", radius, problem.hessian,
        problem.optimum, means, block,
    )  # fmt: skip


def _stationary_moments(optimizer: Optimizer, problem: Problem, epoch: MomentMap, steps: int) -> tuple[Array, float]:
    """The moments of (1, z) at the end of an epoch, and the factor by which second moments shrink in one."""
    spread = epoch.spread
    radius = float(np.max(np.abs(np.linalg.eigvals(spread))))
    if radius > 1.0 - len(spread) * float(np.finfo(np.float64).eps) * 16:
        _check_curved(optimizer, problem, radius)
        lr = float(optimizer.values["lr"]) if "lr" in optimizer.values else None
        bound = None if lr is None else max_learning_rate(optimizer, problem.hessian)
        raise MeanSquareUnstableError(lr, radius ** (1.0 / steps), None, bound)
    power, shift = epoch.mean
    mean = np.linalg.solve(np.eye(len(power)) - power, shift)
    both = np.concatenate([[1.0], mean])
    moments = np.outer(both, both)
    injected = epoch(moments)[1:, 1:] - np.outer(mean, mean)
    upper = np.triu_indices(len(mean))
    covariance = np.zeros_like(injected)
    covariance[upper] = np.linalg.solve(np.eye(len(spread)) - spread, injected[upper])
    moments[1:, 1:] += np.triu(covariance) + np.triu(covariance, 1).T
    return moments, radius


def _check_curved(optimizer: Optimizer, problem: Problem, radius: float) -> None:
    """Tell a direction that nothing forgets from one along which second moments grow."""
    # The run without noise: refuses an unstable one, and tells which directions are flat.
    law = epoch_stationary_covariance(optimizer, problem.hessian, EpochNoise(np.zeros_like(problem.hessian), 2))
    if law.flat and radius < 1.0 + 1e-9:
        raise NonStationaryError(
            f"{len(law.flat)} of {problem.dim} directions have no curvature, so their start is never forgotten "
            f"(spectral radius {radius:.17g} of an epoch). Add weight_decay, or project them out.",
            rho=radius,
            modes=law.flat,
        )


def _expanded(optimizer: Optimizer, problem: Problem, size: int, position: Position) -> ReshufflingLaw:
    point = np.array(gradient_point(optimizer))  # refuses a rule that takes several gradients from a batch
    total, d, slots = problem.num_examples, problem.dim, optimizer.rule.slots
    if total % size:
        raise InvalidProblemError(
            f"the expansion is that of epochs whose noise sums to zero, but {size} does not divide {total}"
        )
    by_order = position == 0 and not _has_memory(optimizer)
    if by_order and optimizer.rule is not sgd:
        raise InvalidRuleError(
            f"{optimizer!r} has no memory, so that at ends of epochs the order of the examples decides; the expansion "
            f"of that is for plain sgd"
        )
    centre = stationary_mean(optimizer, problem.hessian, problem.optimum, slots=slots)
    gradients = problem.per_example_gradients(centre[:d])
    gradients = gradients - gradients.mean(axis=0)
    share = (total - size) / (size * (total - 1))
    noise = EpochNoise(symmetric("noise", gradients.T @ gradients / total) * share, total // size)
    additive = epoch_stationary_covariance(optimizer, problem.hessian, noise, position=position)
    if additive.flat:
        raise NonStationaryError(
            f"{len(additive.flat)} of {problem.dim} directions have no curvature, and shuffling pushes the mean along "
            f"them without end where Hessians differ. Add weight_decay, or project them out.",
            modes=additive.flat,
        )
    decay = float(optimizer.values["weight_decay"]) if by_order else 0.0
    pushed, order = order_sums(problem, decay, gradients, size)
    h, basis = scipy.linalg.eigh(problem.hessian)
    response = _mean_response(optimizer, point, h, total // size)
    bias = (response * (basis.T @ pushed) / (total - 1)) @ basis.T
    means = centre.reshape(len(slots), d) + bias
    value, block = additive.value, additive.block
    if by_order:
        lr = float(optimizer.values["lr"])
        hessian = problem.hessian + decay * np.eye(d)
        value = scipy.linalg.solve_continuous_lyapunov(hessian, lr**3 * order * size / total)
        value = 0.5 * (value + value.T)
    return ReshufflingLaw(
        value, means[0], centre[:d], optimizer, position, "expansion", None, problem.hessian, problem.optimum, means,
        lambda a, b: block(slots[a], slots[b]),
    )  # fmt: skip


def _has_memory(optimizer: Optimizer) -> bool:
    r"""Whether the weights' response to one gradient goes on after the step, on a flat direction.

    Then noise of the last steps is still on its way at the end of an epoch, and of the order of the learning rate; else
    the responses :math:`u_t` form a geometric sequence (constant without weight decay) and it has cancelled.
    """
    step = recursion(optimizer)
    transition, state = step.transition.subs(step.h, 0), step.noise_gain.subs(step.h, 0)
    responses = []
    for _ in range(3):
        responses.append(to_fraction(state[0]))
        state = transition * state
    return responses[0] * responses[2] != responses[1] ** 2


def _mean_response(optimizer: Optimizer, point: Array, h: Array, steps: int) -> Array:
    r"""The stationary mean of all slots, shape (m, n), where every batch pushes away from what earlier ones have done.

    A gradient g of an earlier step of the epoch is correlated with the Hessian now, :math:`E H_l g_j = -E H_i g_i /
    (N - 1)`, and has moved the point of the gradient by :math:`q^\top v_t`, t steps later.  Over an epoch of M steps
    that is a constant push of :math:`-\sum_t (M - 1 - t)\, q^\top v_t / M`, to leading order with v at h = 0.
    """
    step = recursion(optimizer)
    layers = [np.array(layer, dtype=np.float64) for layer in step.increment_coefficients]
    gain = np.array(step.noise_gain_coefficients[0], dtype=np.float64)
    moved, summed, total = gain, np.zeros_like(gain), 0.0
    for _ in range(steps - 1):
        summed = summed + moved
        total += float(point @ summed)
        moved = moved + layers[0] @ moved
    increments = layers[0] + h[:, None, None] * layers[1]
    fixed = np.linalg.solve(increments, np.broadcast_to(gain, (h.size, gain.size))[..., None])[..., 0].T
    return np.asarray(fixed * (total / steps), dtype=np.float64)
