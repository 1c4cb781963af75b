r"""Heavy tails: which moments of the stationary law exist when the gradient noise multiplies the weights.

The iterates follow :math:`z' = A_B z + b_B` with a random factor.  The moment of order s of their stationary law exists
where that of the products of factors shrinks,

.. math:: k(s) = \lim_{n \to \infty} \big(\mathrm E |A_{B_n} \cdots A_{B_1}|^s\big)^{1/n} < 1 ,

and the law's tail falls like :math:`|z|^{-\alpha}` with the root :math:`k(\alpha) = 1` (Kesten).  The covariance exists
if and only if :math:`\alpha > 2`, which is mean-square stability: :math:`k(2)` is the spectral radius of the
second-moment operator.  :math:`\log k(s)` is convex and 0 at s = 0, so there is one root at most.

How k(s) is found, in the order in which it is tried:

=====================  =======================================================================  ================
method                 where                                                                    error
=====================  =======================================================================  ================
``batches``            one dimension, one slot: a sum over all batches                          rounding
``quadrature``         the same for Gaussian data, also isotropic Gaussian data in any          shown
                       dimension
``mean square``        s = 2: `mean_square_stability`                                           rounding
``fourth moments``     s = 4, up to 12 state entries, moments of the draws known: the operator  rounding
                       on symmetric tensors
``directions``         states of two entries: the leading eigenvalue of an operator on          shown
                       functions of the direction
``particles``          everything else: unit vectors that are stretched, weighted, resampled    standard error
=====================  =======================================================================  ================
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..errors import InvalidProblemError, NonStationaryError
from ..theory import Optimizer, recursion
from . import _arrays
from ._growth import LARGEST_ORDER
from ._growth_rates import GrowthRates, Method, Verdict
from ._products import Products
from ._result import Frozen
from .noise import GradientNoise

__all__ = ["MomentGrowth", "TailIndex", "moment_growth", "tail_index"]


@dataclass(frozen=True)
class MomentGrowth(Frozen):
    """How fast the moment of one order of the products grows, and whether that of the stationary law exists.

    Attributes
    ----------
    order : float
        The order s.
    log : float
        Logarithm of ``value``: growth rate in a step.
    standard_error : float
        Of ``log``: statistical for particles, numerical otherwise.
    method : str
        How it was found; see the module's table.
    verdict : {"exists", "does not exist", "undecided"}
        Whether the stationary law has the moment of this order.
    status : str
        What the verdict rests on, in words.
    """

    order: float
    log: float
    standard_error: float
    method: str
    verdict: Verdict
    status: str

    @property
    def value(self) -> float:
        """k(s): the factor by which the moment grows or shrinks in a step, in the long run."""
        return math.exp(self.log)

    @property
    def error(self) -> float:
        """The error of ``value``."""
        return self.value * self.standard_error


@dataclass(frozen=True)
class TailIndex(Frozen):
    """The tail index of a stationary law.  A number wherever one is expected.

    Attributes
    ----------
    value : float
        alpha: moments of lower order exist, of this and higher order do not.  Infinite where all exist.
    error : float
        Of ``value``: a standard error for particles, numerical otherwise.  Infinite where the index is only known to be
        larger than ``value``, the highest order that is looked at (64).
    method : str
        How growth rates were found; see the module's table.
    status : str
        What kind of answer it is, in words.
    """

    value: float
    error: float
    method: str
    status: str

    def __float__(self) -> float:
        return self.value


def moment_growth(
    optimizer: Optimizer,
    noise: GradientNoise,
    order: float,
    *,
    method: Method = "auto",
    particles: int = 1000,
    steps: int = 500,
    repetitions: int = 8,
    rng: np.random.Generator | int | None = 0,
) -> MomentGrowth:
    r"""The growth k(s) of the moments of order s of an optimizer's random products.

    Parameters
    ----------
    optimizer : Optimizer
        Every hyper-parameter bound.
    noise : GradientNoise
        Its batches are the random factors; what was added to it plays no part.
    order : float
        s, positive and at most 64.
    method : {"auto", "exact", "particles"}
        "exact" refuses to estimate, "particles" does nothing else; "auto" estimates where nothing else is known.
    particles, steps, repetitions : int
        Size, length and number of the populations of the estimate.
    rng : numpy.random.Generator or int, default 0
        For the estimate.

    Returns
    -------
    MomentGrowth

    Raises
    ------
    InvalidProblemError
        If an argument is not what it should be, or ``method="exact"`` where nothing exact is known.
    NonStationaryError
        If exact fourth moments do not converge, or all directions are flat.

    Notes
    -----
    Particles find the rate of the fastest way to grow only once some have found that way.  Near k = 1 this takes as
    long as the slowest direction takes to forget, some :math:`1/(lr\,h_{\min})` steps: let ``steps`` be several times
    that.  Along the slowest direction the noise of a step's growth is as small as the growth itself, so that it does
    not hide the sign.  A population that still drifts has its drift counted into the standard error.

    The verdict also uses that :math:`\log k` is convex and 0 at s = 0: without a second moment there is no higher one.

    References
    ----------
    kesten1973, vanneste2010

    Examples
    --------
    One standard Gaussian input a step at lr = 2/3: on the edge of mean-square stability.

    >>> from sgdcov.numerics import GaussianMinibatchNoise
    >>> from sgdcov.theory import sgd
    >>> noise = GaussianMinibatchNoise([[1.0]], label_noise=1.0, batch_size=1)
    >>> abs(moment_growth(sgd(lr=2/3), noise, order=2).log) < 1e-12
    True
    >>> moment_growth(sgd(lr=0.5), noise, order=4).verdict
    'does not exist'
    """
    s = _checked_order(order)
    growth = GrowthRates(
        _products(optimizer, noise), method, particles=particles, steps=steps, repetitions=repetitions, rng=rng
    )
    log, error, how = growth.at(s)
    verdict, why = growth.verdict(s, log, error, how)
    return MomentGrowth(s, log, error, how, verdict, why)


def tail_index(
    optimizer: Optimizer,
    noise: GradientNoise,
    *,
    method: Method = "auto",
    particles: int = 1000,
    steps: int = 500,
    repetitions: int = 8,
    rng: np.random.Generator | int | None = 0,
    progress: Callable[[str], object] | None = None,
) -> TailIndex:
    r"""The tail index of the stationary law: the order :math:`\alpha` with :math:`k(\alpha) = 1`.

    Parameters
    ----------
    optimizer : Optimizer
        Every hyper-parameter bound.
    noise : GradientNoise
    method : {"auto", "exact", "particles"}
        As for `moment_growth`.
    particles, steps, repetitions : int
        Size, length and number of the populations, where k(s) is estimated.  Some ten populations of an eighth of that
        size find the root roughly, two or three whole ones polish it: at d = 10 that takes a few seconds.
    rng : numpy.random.Generator or int, default 0
    progress : callable, optional
        Called with a line of text before every estimate, such as ``print``: at which order, how large, how long that
        may take.

    Returns
    -------
    TailIndex
        Infinite where no batch stretches anything, as when lr times the largest curvature of a batch is below 2: the
        iterates then stay in a bounded set.

    Raises
    ------
    NonStationaryError
        If the products do not shrink at all, so that there is no stationary law.
    InvalidProblemError
        If an argument is not what it should be, or ``method="exact"`` where nothing exact is known.

    Notes
    -----
    For a law to have the tail it must not be degenerate, and Kesten's theorem has conditions of its own (in one
    dimension: that the logarithms of the factors do not lie on a lattice).  The moments need none of them: those below
    the index exist, those above do not.

    References
    ----------
    kesten1973, goldie1991, hodgkinson2021, gurbuzbalaban2021

    Examples
    --------
    >>> from sgdcov.numerics import GaussianMinibatchNoise, LeastSquares, MinibatchNoise
    >>> from sgdcov.theory import sgd
    >>> noise = GaussianMinibatchNoise([[1.0]], label_noise=1.0, batch_size=1)
    >>> round(float(tail_index(sgd(lr=2/3), noise)), 10)
    2.0
    >>> data = MinibatchNoise(LeastSquares([[1.0], [2.0]], [0.0, 1.0]), batch_size=1)
    >>> tail_index(sgd(lr=0.4), data).value
    inf
    """
    growth = GrowthRates(
        _products(optimizer, noise), method, particles=particles, steps=steps, repetitions=repetitions, rng=rng,
        progress=progress,
    )  # fmt: skip
    if growth.bounded:
        return TailIndex(math.inf, 0.0, "bounded", "no batch stretches anything: the iterates stay in a bounded set")
    return TailIndex(*growth.index())


def _products(optimizer: Optimizer, noise: GradientNoise) -> Products:
    optimizer = recursion(optimizer).optimizer
    optimizer.require_bound()
    if not isinstance(noise, GradientNoise):
        raise InvalidProblemError(
            "noise must be a GradientNoise such as MinibatchNoise(problem, batch_size); additive noise multiplies "
            "nothing, and its law has the tails of the noise"
        )
    products = Products(optimizer, noise)
    if not products.directions:
        raise NonStationaryError("all directions are flat: nothing ever moves back to an optimum")
    return products


def _checked_order(order: float) -> float:
    s = _arrays.number("order", order, least=0.0, most=LARGEST_ORDER)
    if s == 0.0:
        raise InvalidProblemError(f"order must be positive and at most {LARGEST_ORDER:g}, got {_arrays.shown(order)}")
    return s
