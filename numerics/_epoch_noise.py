r"""Gradient noise that is drawn without replacement across an epoch, as a value, and that of given examples.

A batch of B of N examples has the mean gradient noise C, another batch of the same epoch has other examples, and all
examples together have none: the covariance of the two is :math:`-C/(N/B - 1)`, whether or not B divides N.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidProblemError
from ._arrays import flag, positive_semidefinite, shown, whole_number

__all__ = ["EpochNoise", "Examples", "check_epoch_batches", "epoch_noise"]

Array: TypeAlias = NDArray[np.float64]

EPS = float(np.finfo(np.float64).eps)


class Examples(Protocol):
    """A mean over examples."""

    @property
    def num_examples(self) -> int:
        """N."""

    def noise(self, batch_size: int, replacement: bool = True) -> Array:
        """The covariance of a batch's mean gradient at the optimum."""


@dataclass(frozen=True, eq=False, repr=False)
class EpochNoise:
    r"""Gradient noise of shuffled epochs: C within a step, ``correlation`` times C between two steps of one epoch.

    Parameters
    ----------
    noise : array_like, shape (d, d)
        C, the covariance of ONE batch's gradient noise; symmetric positive semidefinite.
    batches_per_epoch : int
        M, the number of steps an epoch has, at least 2.
    correlation : Fraction or float, optional
        From -1/(M - 1), the default, with which the noises of an epoch sum to zero, to 0, which is white noise.
        Batches of B of N examples of which a remainder is left out have -1/(N/B - 1): see `epoch_noise`.

    Raises
    ------
    InvalidProblemError
        If ``noise`` is no covariance, there are fewer than 2 batches, or the correlation is out of range.

    Examples
    --------
    >>> EpochNoise([[1.0]], 10)
    EpochNoise(dim=1, batches_per_epoch=10, correlation=-1/9)
    """

    noise: Array
    batches_per_epoch: int
    correlation: Fraction = None  # type: ignore[assignment]  # a Fraction once checked

    def __post_init__(self) -> None:
        noise = positive_semidefinite("noise", self.noise)
        noise.flags.writeable = False
        count = whole_number("batches_per_epoch", self.batches_per_epoch, least=2)
        object.__setattr__(self, "noise", noise)
        object.__setattr__(self, "batches_per_epoch", count)
        object.__setattr__(self, "correlation", _checked_correlation(self.correlation, count))

    def __repr__(self) -> str:
        rho = self.correlation
        shown = str(rho) if rho.denominator < 10**6 else f"{float(rho):.6g}"
        return f"EpochNoise(dim={self.dim}, batches_per_epoch={self.batches_per_epoch}, correlation={shown})"

    @property
    def dim(self) -> int:
        """The number d of parameters."""
        return int(self.noise.shape[0])

    @property
    def sums_to_zero(self) -> bool:
        """Whether the noises of every epoch sum to zero."""
        return self.correlation == Fraction(-1, self.batches_per_epoch - 1)

    def __array__(self, dtype: object = None, copy: object = None) -> None:
        """Refuse: where an array is wanted, the steps are independent."""
        raise InvalidProblemError(
            f"{self!r} is noise that is correlated within an epoch; stationary_covariance and average_covariance take "
            f"it, everything else wants the covariance of independent steps (its .noise is the one of a single step)."
        )


def _checked_correlation(correlation: float | Fraction | None, count: int) -> Fraction:
    least = Fraction(-1, count - 1)
    if correlation is None:
        return least
    try:
        value = Fraction(correlation)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidProblemError(f"correlation must be a number, got {shown(correlation)}") from error
    if isinstance(correlation, float) and abs(value - least) <= 4 * EPS * abs(least):
        return least
    if not least <= value <= 0:
        raise InvalidProblemError(
            f"correlation must be from -1/(batches_per_epoch - 1) = {float(least):.6g} to 0, got {correlation!r}"
        )
    return value


def epoch_noise(problem: Examples, batch_size: int, *, drop_last: bool = False) -> EpochNoise:
    r"""The noise of passing through the examples of a problem in a new random order each epoch.

    Parameters
    ----------
    problem : LeastSquares or QuadraticExamples
        N examples; the noise is that at the optimum.
    batch_size : int
        B, below N.
    drop_last : bool
        What is done with the remainder where B does not divide N: it is left out, other examples in every epoch, as
        with the option of this name of PyTorch's ``DataLoader``.  The noises of an epoch then no longer sum to zero;
        their correlation is -1/(N/B - 1).

    Returns
    -------
    EpochNoise

    Raises
    ------
    InvalidProblemError
        If ``batch_size`` does not divide N and ``drop_last`` is not set (a smaller last batch would have another
        noise), or fewer than two batches fit into an epoch.

    Examples
    --------
    >>> from sgdcov.numerics import LeastSquares
    >>> problem = LeastSquares([[1.0], [1.0], [1.0], [1.0]], [0.0, 1.0, 2.0, 5.0])
    >>> epoch_noise(problem, 1).noise, epoch_noise(problem, 2)
    (array([[3.5]]), EpochNoise(dim=1, batches_per_epoch=2, correlation=-1))
    """
    if not hasattr(problem, "num_examples") or not hasattr(problem, "noise"):
        raise InvalidProblemError(f"problem must have examples, such as LeastSquares, got {shown(problem)}")
    total = problem.num_examples
    size = check_epoch_batches(total, batch_size, drop_last=drop_last)
    return EpochNoise(problem.noise(size, replacement=False), total // size, Fraction(-size, total - size))


def check_epoch_batches(total: int, batch_size: int, *, drop_last: bool = False) -> int:
    """The batch size, once it is known to make at least two batches an epoch and leave none smaller."""
    size = whole_number("batch_size", batch_size, least=1)
    batches, remainder = divmod(total, size)
    if batches < 2:
        raise InvalidProblemError(
            f"batch_size={size} makes fewer than two whole batches of {total} examples; an epoch needs at least two, "
            f"so batch_size of at most {total // 2}."
        )
    if not flag("drop_last", drop_last) and remainder:
        below = next(b for b in range(size, 0, -1) if total % b == 0)
        above = next(b for b in range(size, total + 1) if total % b == 0)
        near = f"{below} or {above}" if above <= total // 2 else f"{below}"
        raise InvalidProblemError(
            f"batch_size={size} does not divide the {total} examples: a last batch of {remainder} would have noise of "
            f"its own. Take a batch_size of {near}, or leave the remainder out with drop_last=True."
        )
    return size
