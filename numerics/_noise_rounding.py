r"""How well a covariance of gradients is known that is summed in the caller's coordinates, entry by entry.

Near interpolation the gradients at the minimiser are what is left of terms that cancel.  A minimiser in doubles
is wrong by at most :math:`|H^{-1}|\,\gamma\,(|H|\,|w| + |r|)`, the sizes those of the sums' terms, and every sum by
:math:`\gamma` of the sizes of its terms.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from .quadratic_examples import QuadraticExamples

__all__ = ["examples_rounding", "minimiser_rounding", "outer_errors", "unit_of_sums"]

Array: TypeAlias = NDArray[np.float64]


def unit_of_sums(count: int, dim: int) -> float:
    """What a sum over so many examples, of products over so many coordinates, loses of the sizes of its terms."""
    return (2.0 * float(np.sqrt(count)) + 2.0 * dim + 8.0) * float(np.finfo(np.float64).eps)


def minimiser_rounding(hessian: Array, residual: Array) -> Array:
    """Bounds on the errors of a minimiser, from bounds on those of the gradient that it makes 0, shape (d,)."""
    scales = np.sqrt(np.maximum(np.diagonal(hessian), 0.0))
    unit = np.where(scales > 0, scales, 1.0)
    inverse = np.linalg.pinv(hessian / unit / unit[:, None], hermitian=True)
    return np.asarray(np.abs(inverse) @ (residual / unit) / unit)


def outer_errors(vectors: Array, errors: Array) -> Array:
    """Bounds on the errors of ``V' V``, from those of the entries of V."""
    product = errors.T @ np.abs(vectors)
    return np.asarray(product + product.T + errors.T @ errors)


def examples_rounding(problem: QuadraticExamples, mean: Array, spread: Array) -> Array:
    """The same for the covariance over examples with Hessians of their own, of their gradients at such weights."""
    count, w, sizes = problem.num_examples, np.abs(mean), np.abs(problem.hessians)
    if np.all(problem.hessians == problem.hessians[0]) and np.all(problem.gradients == problem.gradients[0]):
        return np.zeros_like(problem.hessian)  # equal examples have no noise
    unit = unit_of_sums(count, problem.dim)
    terms = unit * (sizes @ w + np.abs(problem.gradients))
    gradients = problem.per_example_gradients(mean)
    if not gradients.any() and _vanish(problem, mean):
        terms = np.zeros_like(terms)
    errors = (
        terms
        if not terms.any()
        else terms + sizes @ (unit * w + minimiser_rounding(problem.hessian, terms.mean(axis=0)))
    )
    out = outer_errors(gradients - gradients.mean(axis=0), errors + errors.mean(axis=0)) / count
    centred = np.abs(problem.hessians - problem.hessian) + unit * sizes
    return np.asarray(out + unit * np.mean(centred @ np.abs(spread) @ centred, axis=0))


def _vanish(problem: QuadraticExamples, w: Array) -> bool:
    """Whether the gradients of all examples are 0 at these very doubles, and not by rounding."""
    exact = [Fraction(x) for x in w.tolist()]
    rows = zip(problem.hessians.reshape(-1, problem.dim).tolist(), problem.gradients.ravel().tolist(), strict=True)
    return not any(sum((Fraction(a) * x for a, x in zip(h, exact, strict=True)), Fraction(r)) for h, r in rows)
