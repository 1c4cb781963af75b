r"""Gradient noise that depends on the weights, in the eigenbasis of a Hessian, and how well it is known there.

The gradients of a data set's examples are multiples of its rows, so with the rows :math:`z_n` of the Hessian's factor
in the eigenbasis (`FactorDirections.rows`, which carry :math:`1/\sqrt N`) nothing has to be rotated:

.. math:: c = p \sum_n (r_n - \bar{}\,) z_n z_n^\top , \qquad
          \mathcal V(M) = p \Big[ N \sum_n z_n (z_n^\top M z_n) z_n^\top - (Z^\top Z) M (Z^\top Z) \Big] .

Every entry is accurate in proportion to the sizes of its two directions, however small they are beside the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ._directions import EPS, Directions
from ._polynomial import binary_exponent
from ._problem import Problem
from ._rotated_noise import RotatedNoise, rotated_noise
from .noise import GradientNoise, MinibatchNoise, WithAdditive
from .problems import LeastSquares
from .vector_least_squares import VectorMinibatchNoise

__all__ = ["DataNoise", "data_noise", "diagonal_above", "eigenvalue_errors", "settled_noise"]

Array: TypeAlias = NDArray[np.float64]


class Examples(Protocol):
    """What a data set says of itself; see `LeastSquares`."""

    @property
    def num_examples(self) -> int: ...

    def _hessian_factor(self) -> tuple[Array, float]: ...

    def _noise_factor(self, w: Array, rows: Array) -> Array: ...

    def _noise_terms(self, w: Array, rows: Array) -> Array: ...

    def _second_moment(self, rows: Array, spread: Array) -> Array: ...


@dataclass(frozen=True, eq=False)
class DataNoise:
    """The noise of batches of a data set, and whatever is added to it."""

    examples: Examples
    factor: float
    additive: Array | None = None

    @property
    def hessian_factor(self) -> tuple[Array, float]:
        """A factor A and a shift with the Hessian ``A'A + shift I``."""
        return self.examples._hessian_factor()

    def rows(self, directions: Directions) -> Array:
        """The data in the eigenbasis, without what weight decay adds to the factor."""
        assert directions.rows is not None
        return directions.rows[: len(self.hessian_factor[0])]

    def at(self, weights: Array, problem: Problem) -> RotatedNoise:
        """The noise at given weights, in the eigenbasis of a problem made with `hessian_factor`."""
        directions = problem.directions
        rows = self.rows(directions)
        factor = np.sqrt(self.factor) * self.examples._noise_factor(weights, rows)
        lengths = np.linalg.norm(factor, axis=0)
        # What is the same for all examples is taken out of the factor, but its rounding stays; none is made of one.
        terms = np.sqrt(self.factor) * self.examples._noise_terms(weights, rows) if len(factor) > 1 else factor
        sizes = np.linalg.norm(terms, axis=0)
        out = _in_units(factor.T @ factor, self.row_errors(directions) * sizes, lengths)
        if self.additive is None:
            return out
        return _sum(out, rotated_noise(self.additive, directions, problem.root))

    def added(self, rows: Array, spread: Array) -> Array:
        """What a spread of the weights adds to the noise, both in the eigenbasis."""
        gram = rows.T @ rows
        out = self.examples._second_moment(rows, spread) - gram @ spread @ gram
        return np.asarray(0.5 * self.factor * (out + out.T))

    def row_errors(self, directions: Directions) -> Array:
        """The relative error of the data along each direction, and of products and sums of them."""
        rounding = (2.0 * np.sqrt(self.examples.num_examples) + 2.0 * len(directions.eigenvalues) + 8.0) * EPS
        return np.asarray(0.5 * eigenvalue_errors(directions) + rounding)


def data_noise(noise: GradientNoise) -> DataNoise | None:
    """The noise as that of a data set, where it is one."""
    if isinstance(noise, WithAdditive):
        base = data_noise(noise.base)
        return None if base is None else DataNoise(base.examples, base.factor, _total(base.additive, noise.additive))
    if isinstance(noise, VectorMinibatchNoise):
        return DataNoise(noise.problem, noise.factor)
    if isinstance(noise, MinibatchNoise) and isinstance(noise.problem, LeastSquares):
        return DataNoise(noise.problem, noise.factor)
    return None


def _in_units(covariance: Array, deviations: Array, lengths: Array) -> RotatedNoise:
    """A covariance whose entries are known up to ``deviations`` of one direction times the ``lengths`` of the other."""
    error = np.outer(deviations, lengths)
    error = error + error.T + np.outer(deviations, deviations)
    exponent = binary_exponent(covariance)
    return RotatedNoise(np.ldexp(covariance, -exponent), np.ldexp(error, -exponent), exponent)


def eigenvalue_errors(directions: Directions) -> Array:
    """The relative error of each eigenvalue; 0 for those that are 0."""
    h = directions.eigenvalues
    entries = np.broadcast_to(directions.error.entries, (h.size, h.size))
    return np.asarray(np.divide(np.diagonal(entries), h, out=np.zeros(h.size), where=h > 0))


def diagonal_above(entries: Array, sizes: Array) -> Array:
    """A diagonal matrix, as a vector, that is above every symmetric matrix with entries of at most these.

    That of the row sums is, in any units of the directions; here those of the ``sizes``.
    """
    unit = np.where(sizes > 0, sizes, 1.0)
    return np.asarray(unit * (entries @ (1.0 / unit)))


def settled_noise(
    base: RotatedNoise, moving: NDArray[np.intp], sizes: Array, errors: Array, majorant: Callable[[Array], Array]
) -> RotatedNoise:
    r"""The noise over a law with the errors of its fixed point, :math:`C = C(m) + \mathcal V(f \circ C)`.

    Among the directions that move, one application of the right side is known up to
    :math:`|\delta_{ij}| \le (e_i + e_j) u_i u_j`, ``sizes`` u and ``errors`` e, besides what ``base`` says.  So
    :math:`\pm\delta` is below a diagonal matrix, and as the feedback keeps the order of covariances, what becomes of it
    is below what becomes of that: ``majorant`` maps the diagonal to a covariance above :math:`\pm\delta C`.
    """
    inner = np.ix_(moving, moving)
    error = np.ldexp(base.error, base.exponent)
    own = np.outer(errors * sizes, sizes)
    own = own + own.T + error[inner]
    whole = np.sqrt(np.maximum(np.diagonal(majorant(diagonal_above(own, sizes))), 0.0))
    error[inner] = np.maximum(own, np.outer(whole, whole))
    return replace(base, error=np.ldexp(error, -base.exponent))


def _sum(a: RotatedNoise, b: RotatedNoise) -> RotatedNoise:
    exponent = max(a.exponent, b.exponent)
    covariance, error = (
        np.ldexp(x, a.exponent - exponent) + np.ldexp(y, b.exponent - exponent)
        for x, y in ((a.covariance, b.covariance), (a.error, b.error))
    )
    return RotatedNoise(covariance, error + EPS * np.abs(covariance), exponent, a.definite and b.definite)


def _total(a: Array | None, b: Array) -> Array:
    return b if a is None else a + b
