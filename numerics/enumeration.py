r"""Rules that take several gradients from one batch, made plain SGD on the batches themselves.

Sharpness-aware minimisation steps with :math:`H_B (I + \rho H_B)`: its second moments are fourth moments of the batch.
Where the batches can be listed, each is one example of a finite sum,

.. math:: w' = A(H_B)\, w + b(H_B)\, r_B = w - (\tilde H_B w + \tilde r_B) ,

and SGD with the learning rate 1 that draws one of them a step is the same rule, exactly.
"""

from __future__ import annotations

import itertools
import math
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidProblemError, InvalidRuleError
from ..theory import Optimizer, recursion, sgd
from .noise import GradientNoise, MinibatchNoise
from .problems import LeastSquares
from .quadratic_examples import QuadraticExamples

__all__ = ["one_gradient_form"]

Array: TypeAlias = NDArray[np.float64]

#: Most batches that are listed.
MOST_BATCHES = 20_000


def one_gradient_form(optimizer: Optimizer, noise: GradientNoise) -> tuple[Optimizer, MinibatchNoise]:
    """Plain SGD, and the noise of single batches drawn by it, that make the same steps as a rule of one slot.

    Parameters
    ----------
    optimizer : Optimizer
        Of a rule with one slot, such as `sam`; every hyper-parameter bound.
    noise : MinibatchNoise
        Whose batches can be listed: batch size 1, or a small data set.

    Returns
    -------
    optimizer : Optimizer
        ``sgd(lr=1)``.
    noise : MinibatchNoise
        Of a `QuadraticExamples` with one example for each batch.  Give both to `stationary_covariance`,
        `transient_covariance`, `mean_square_stability`, with ``noise.hessian``: the Hessian of what is run, not that of
        the loss.  ``noise.optimum`` is where the mean of the iterates settles, which is not the minimiser of the loss
        where the examples' own gradients and Hessians are correlated.

    Raises
    ------
    HyperparameterError
        If a hyper-parameter is unbound.
    InvalidRuleError
        If the rule has more than one slot.
    InvalidProblemError
        If there are no batches to list, or too many.

    Examples
    --------
    >>> from sgdcov.numerics import LeastSquares, MinibatchNoise, stationary_covariance
    >>> from sgdcov.theory import sam
    >>> data = LeastSquares([[1.0], [1.0]], [-1.0, 1.0])
    >>> plain, noise = one_gradient_form(sam(lr=0.25, rho=1.0), MinibatchNoise(data, batch_size=1))
    >>> plain, noise.hessian, stationary_covariance(plain, noise.hessian, noise).value
    (sgd(lr=1.0), array([[0.5]]), array([[0.33333333]]))
    """
    step = recursion(optimizer)
    optimizer = step.optimizer
    if len(optimizer.rule.slots) != 1:
        raise InvalidRuleError(
            f"{optimizer.rule.name} has the slots {', '.join(optimizer.rule.slots)}; a rule of one slot is plain SGD"
        )
    increments = [float(layer[0][0]) for layer in step.increment_coefficients]
    gains = [float(layer[0]) for layer in step.noise_gain_coefficients]
    hessians, slopes = _batches(noise)
    eye = np.broadcast_to(np.eye(hessians.shape[1]), hessians.shape)
    curvature = -_polynomial(increments, hessians, eye)
    return sgd(lr=1.0), MinibatchNoise(
        QuadraticExamples(
            0.5 * (curvature + curvature.transpose(0, 2, 1)), -_polynomial(gains, hessians, slopes[..., None])[..., 0]
        ),
        batch_size=1,
    )


def _polynomial(coefficients: list[float], hessians: Array, start: Array) -> Array:
    """``sum_k c_k H^k start`` for every H, by Horner's rule."""
    out = np.zeros_like(start)
    for c in reversed(coefficients):
        out = hessians @ out + c * start
    return out


def _batches(noise: GradientNoise) -> tuple[Array, Array]:
    """The Hessian of every batch, and its gradient at w = 0."""
    if not isinstance(noise, MinibatchNoise):
        raise InvalidProblemError(
            f"only the batches of a MinibatchNoise can be listed, not those of a {type(noise).__name__}"
        )
    problem, size = noise.problem, noise.batch_size
    total = problem.num_examples
    count = total**size if noise.replacement else math.comb(total, size)
    if count > MOST_BATCHES:
        raise InvalidProblemError(
            f"{total} examples in batches of {size} {'with' if noise.replacement else 'without'} replacement make "
            f"{count:.6g} batches; at most {MOST_BATCHES} are listed. Use batch_size=1 or fewer examples."
        )
    indices = range(total)
    listed = itertools.product(indices, repeat=size) if noise.replacement else itertools.combinations(indices, size)
    drawn = np.array(list(listed))
    if isinstance(problem, LeastSquares):
        inputs, labels = problem.X[drawn], problem.y[drawn]
        hessians = np.einsum("cbi,cbj->cij", inputs, inputs) / size + problem.l2 * np.eye(problem.dim)
        return hessians, -np.einsum("cb,cbi->ci", labels, inputs) / size
    return problem.hessians[drawn].mean(axis=1), problem.gradients[drawn].mean(axis=1)
