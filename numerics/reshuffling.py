r"""Shuffled epochs where every example has a Hessian of its own: the noise depends on the weights and on the order.

Without replacement across an epoch, batches are neither independent of each other nor of where earlier ones have led:
unlike with independent batches the mean is biased.  Two methods answer:

``"enumeration"``  exact, any rule, few examples: the moments of the epoch averaged over every order of the examples
``"expansion"``    plain SGD, any number: leading order in the learning rate :math:`\eta`; an approximation

To leading order, with :math:`g_i` the gradients at the optimum, j and l batches, :math:`p = (N-B)/(B(N-1))`,

.. math:: E w - w^* = -\tfrac{\eta}{2} H^{-1} p\, \overline{H_i g_i} , \qquad
          H S + S H = \frac{\eta^3}{M} \operatorname{Cov}\Big(\sum_{j<l} H_l g_j\Big)

at the ends of epochs.  The second is as large as the covariance of the additive model (`EpochNoise`) at ends of epochs:
there the additive model is not even right for small learning rates.  Inside an epoch and on time average it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Literal, TypeAlias

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from ..errors import InvalidProblemError, InvalidRuleError, MeanSquareUnstableError, NonStationaryError
from ..theory import Optimizer, recursion, sgd
from ._arrays import positive_semidefinite, symmetric
from ._epoch_moments import MomentMap, affine_maps, check_size, epoch_moments
from ._epoch_noise import EpochNoise, check_epoch_batches
from ._log_determinant import log_determinant
from ._slot_law import SlotLaw, slot_index
from .epochs import Position, checked_position, epoch_stationary_covariance
from .mean import stationary_mean
from .problems import LeastSquares
from .quadratic_examples import QuadraticExamples
from .stability import max_learning_rate

__all__ = ["ReshufflingLaw", "reshuffling_law"]

Array: TypeAlias = NDArray[np.float64]
Problem: TypeAlias = LeastSquares | QuadraticExamples
ReshufflingMethod: TypeAlias = Literal["enumeration", "expansion"]

#: Numbers in the Hessians that are formed at once.
_PART = 1 << 20


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
        what = "of the noise at the optimum" if self.position != 0 else "of the epoch"
        return f"periodic, {where}; approximation: leading order in the learning rate {what}, its error is linear in it"

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
        return np.concatenate([self._means[slot_index(self.optimizer, name)] for name in slots])

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
        After how many steps of the epoch; 0 is the end of the last, where checkpoints are taken.  "average" is the
        law at a uniformly random position.
    method : {"enumeration", "expansion"}
        "enumeration" is exact, for any rule, and for up to 16 examples one by one.
        "expansion" is of leading order in the learning rate, for plain `sgd`: at ends of epochs from the order of the
        examples, at other positions the covariance of the noise at the optimum (`EpochNoise`), with the bias of the
        ends.  Its relative error is linear in the learning rate.
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
        If the expansion is asked of another rule than `sgd`.
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
        raise InvalidProblemError(
            f"the problem must be a LeastSquares or QuadraticExamples, got {type(problem).__name__}"
        )
    size = check_epoch_batches(problem.num_examples, batch_size, drop_last=drop_last)
    where = checked_position(position, problem.num_examples // size)
    if method == "enumeration":
        return _enumerated(optimizer, problem, size, where)
    if method == "expansion":
        return _expanded(optimizer, problem, size, where)
    raise InvalidProblemError(f"unknown method {method!r}; the methods are 'enumeration' and 'expansion'")


def _enumerated(optimizer: Optimizer, problem: Problem, size: int, position: Position) -> ReshufflingLaw:
    total, d, slots = problem.num_examples, problem.dim, optimizer.rule.slots
    check_size(total, size, 1 + d * len(slots))
    centre = stationary_mean(optimizer, problem.hessian, problem.optimum, slots=slots)
    hessians = np.concatenate([part for _, part in _hessians(problem)])
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
    if optimizer.rule is not sgd:
        raise InvalidRuleError(
            f"the expansion is that of plain sgd, got {optimizer!r}; enumerate few examples, or take the additive law, "
            f"stationary_covariance with epoch_noise(problem, batch_size), which on time average is right to leading "
            f"order for every rule"
        )
    total = problem.num_examples
    if total % size:
        raise InvalidProblemError(
            f"the expansion is that of epochs whose noise sums to zero, but {size} does not divide {total}"
        )
    lr, decay = float(optimizer.values["lr"]), float(optimizer.values["weight_decay"])
    centre = stationary_mean(optimizer, problem.hessian, problem.optimum)
    gradients = problem.per_example_gradients(centre) + decay * centre
    gradients = gradients - gradients.mean(axis=0)
    hessian = positive_semidefinite("hessian", problem.hessian) + decay * np.eye(problem.dim)
    noise = symmetric("noise", gradients.T @ gradients / total) * ((total - size) / (size * (total - 1)))
    additive = epoch_stationary_covariance(
        optimizer, problem.hessian, EpochNoise(noise, total // size), position=position
    )
    if additive.flat:
        raise NonStationaryError(
            f"{len(additive.flat)} of {problem.dim} directions have no curvature, and shuffling pushes the mean along "
            f"them without end where Hessians differ. Add weight_decay, or project them out.",
            modes=additive.flat,
        )
    pushed, order = _order_sums(problem, decay, gradients, size)
    bias = -0.5 * lr * np.linalg.solve(hessian, pushed) * ((total - size) / (size * (total - 1)))
    value = additive.value
    if position == 0:
        value = scipy.linalg.solve_continuous_lyapunov(hessian, lr**3 * order * size / total)
        value = 0.5 * (value + value.T)
    return ReshufflingLaw(
        value, centre + bias, centre, optimizer, position, "expansion", None, problem.hessian, problem.optimum,
        (centre + bias)[None], lambda a, b: value,
    )  # fmt: skip


def _order_sums(problem: Problem, decay: float, gradients: Array, size: int) -> tuple[Array, Array]:
    r"""The mean of H_i g_i, and the covariance over orders of :math:`\sum_{j<l} H_l g_j`, sums of batches j and l.

    With :math:`X_{ab} = H_a g_b` for examples a and b, the sum is :math:`B^{-2} \sum X_{ab}` over the pairs with b in
    an earlier batch than a.  Half of it is symmetric in the order, :math:`-\frac12 \sum_{a \ne b} X_{ab} [a \sim b]` up
    to a constant (:math:`a \sim b`: same batch), half antisymmetric,
    :math:`\frac12 \sum_{a<b} (X_{ab} - X_{ba})\,\mathrm{sign}`, and reversing the order shows them uncorrelated.
    Their second moments are those of patterns of two, three and four examples, and as :math:`\sum_a g_a = 0` all their
    sums are sums over single examples.
    """
    total, d = gradients.shape
    spread = gradients.T @ gradients / total
    own = np.empty_like(gradients)  # H_a g_a
    squares = np.zeros((d, d))  # sum_a H_a C H_a
    mixed = np.zeros((d * d, d))  # sum_a H_a (x) g_a
    mean = np.zeros((d, d))
    for rows, part in _hessians(problem):
        own[rows] = np.einsum("nij,nj->ni", part, gradients[rows]) + decay * gradients[rows]
        stacked = part.reshape(-1, d * d)
        mixed += stacked.T @ gradients[rows]
        decayed = part + decay * np.eye(d)
        squares += np.einsum("nij,nkj->ik", decayed @ spread, decayed)
        mean += decayed.sum(axis=0)
    tensor = mixed.reshape(d, d, d)  # the decay adds nothing: the gradients sum to zero
    crossed = np.einsum("ijk,lkj->il", tensor, tensor)  # sum_ab H_a g_b g_a' H_b
    full = gradients @ mean  # N H g_a

    odd = 2.0 * (total * squares - crossed)  # sum of (X_ab - X_ba)(X_ab - X_ba)'
    odd_chains = full.T @ full - odd
    even = 2.0 * (total * squares + crossed) - 4.0 * own.T @ own
    even_rows = full - 2.0 * own
    even_chains = even_rows.T @ even_rows - even
    whole = np.outer(even_rows.sum(axis=0), even_rows.sum(axis=0))
    even_rest = whole - 2.0 * even - 4.0 * even_chains

    together, three, four, apart, chain = (float(f) for f in _patterns(total, size))
    covariance = 2.0 * together * even + 4.0 * three * even_chains + four * even_rest - together**2 * whole
    covariance += 2.0 * apart * odd + 4.0 * chain * odd_chains
    return own.mean(axis=0), covariance / (16.0 * float(size) ** 4)


def _patterns(total: int, size: int) -> tuple[Fraction, Fraction, Fraction, Fraction, Fraction]:
    """Means over orders of what two, three and four distinct examples do.

    Of a ~ b; of a ~ b ~ c; of a ~ b and c ~ d; of a and b apart; and of sign(a - b) sign(a - c), by the order of their
    batches: 1 where b ~ c, and a third of the time where all three are apart.
    """

    def share(numerator: int, denominator: int) -> Fraction:
        return Fraction(numerator, denominator) if numerator else Fraction(0)

    together = share(size - 1, total - 1)
    three = together * share(size - 2, total - 2) if size > 1 else Fraction(0)
    four = Fraction(0)
    if size > 1 and total > 3:
        pairs = (size - 2) * (size - 3) + (total - size) * (size - 1)
        four = together * share(pairs, (total - 2) * (total - 3))
    chain = Fraction(0)
    if total > 2:
        all_apart = Fraction((total - size) * (total - 2 * size), (total - 1) * (total - 2))
        chain = all_apart / 3 + together * Fraction(total - size, total - 2)
    return together, three, four, 1 - together, chain


def _hessians(problem: Problem) -> Iterator[tuple[slice, Array]]:
    """The examples' Hessians in parts, shape (., d, d)."""
    d = problem.dim
    length = max(1, _PART // (d * d))
    for first in range(0, problem.num_examples, length):
        rows = slice(first, min(first + length, problem.num_examples))
        if isinstance(problem, LeastSquares):
            inputs = problem.X[rows]
            yield rows, inputs[:, :, None] * inputs[:, None] + problem.l2 * np.eye(d)
        else:
            yield rows, np.asarray(problem.hessians[rows])
