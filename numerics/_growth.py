r"""Growth rates of moments of random products, exactly.

.. math:: \log k(s) = \lim_{n \to \infty} \tfrac1n \log \mathrm E |A_n \cdots A_1|^s

Where one factor's growth does not depend on the direction, it is an expectation: one dimension, and isotropic
Gaussian data.  For states of two entries it is the leading eigenvalue of an operator on functions of the direction,

.. math:: (P_s f)(e) = \mathrm E\, |A e|^s f(A e / |A e|) ,

and for s = 4 the spectral radius of :math:`\mathrm E\,A^{\otimes 4}` on symmetric tensors.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import scipy.sparse
import scipy.sparse.linalg
import scipy.special
from numpy.typing import NDArray

from ..errors import NonStationaryError
from ._products import Atoms, Products
from .noise import GaussianMinibatchNoise, MinibatchNoise

__all__ = ["LARGEST_ORDER", "ScalarGrowth", "circle_growth", "fourth_growth", "planar", "scalar_growth"]

Array: TypeAlias = NDArray[np.float64]

#: The largest order for which quadratures reach far enough, and for which an index is looked for.
LARGEST_ORDER = 64.0
#: The longest state whose fourth moments are solved exactly.
LARGEST_FOURTH = 12


@dataclass(frozen=True)
class ScalarGrowth:
    """Factors by which a step stretches, whatever the direction, and their probabilities."""

    factors: Array
    chances: Array
    coarse: ScalarGrowth | None = None

    def log_moment(self, order: float) -> float:
        """The logarithm of the mean of the factors' power."""
        with np.errstate(divide="ignore"):
            logs = order * np.log(self.factors)
        return float(scipy.special.logsumexp(logs, b=self.chances))

    def error(self, order: float) -> float:
        """The numerical error of `log_moment`."""
        rounding = 8.0 * float(np.finfo(np.float64).eps) * max(1.0, order)
        if self.coarse is None:
            return rounding
        return abs(self.log_moment(order) - self.coarse.log_moment(order)) + rounding

    @property
    def lyapunov(self) -> float:
        """The mean of the logarithm."""
        with np.errstate(divide="ignore"):
            return float(np.sum(self.chances * np.log(self.factors)))


def scalar_growth(products: Products) -> ScalarGrowth | None:
    """The growth of one step where it does not depend on the direction; None where it does."""
    if products.slots != 1:
        return None
    coefficients = [float(layer[0, 0]) for layer in products.layers]
    coefficients[0] += 1.0
    polynomial = np.polynomial.Polynomial(coefficients)
    if products.directions == 1 and products.batches is not None:
        atoms = products.batches
        return ScalarGrowth(np.abs(polynomial(atoms.hessians[:, 0, 0])), atoms.chances)
    noise = products.bare
    if not isinstance(noise, GaussianMinibatchNoise):
        return None
    values = np.linalg.eigvalsh(noise.hessian)
    moving = values[values.size - products.directions :]
    if products.directions > 1 and (
        np.ptp(moving) > 8 * np.finfo(np.float64).eps * moving[-1] or len(coefficients) > 2
    ):
        return None
    scale = float(moving.mean()) / noise.batch_size
    rules = [_gaussian_growth(polynomial, scale, noise.batch_size, products.directions, nodes) for nodes in (14, 9)]
    return ScalarGrowth(*rules[0], ScalarGrowth(*rules[1]))


def _gaussian_growth(
    polynomial: np.polynomial.Polynomial, scale: float, batch: int, dim: int, nodes: int
) -> tuple[Array, Array]:
    r"""Factors and weights: ``|a(c r^2)|`` in one dimension, :math:`\sqrt{a^2 + (c r t)^2}` in several.

    r has the chi law of ``batch`` degrees of freedom, t that of ``dim - 1``.
    """
    roots = polynomial.roots()
    real = roots.real[(np.abs(roots.imag) < 1e-12) & (roots.real > 0)]
    r, weights = _chi_rule(batch, [float(x) for x in np.sqrt(real / scale)], nodes)
    along = polynomial(scale * r**2)
    if dim == 1:
        return np.abs(along), weights
    t, others = _chi_rule(dim - 1, [0.0], nodes)
    slope = float(polynomial.coef[1]) * scale
    factors = np.hypot(along[:, None], slope * r[:, None] * t)
    return factors.ravel(), np.outer(weights, others).ravel()


def _chi_rule(dof: int, kinks: list[float], nodes: int) -> tuple[Array, Array]:
    """Nodes and weights for the chi law, on panels that get finer towards points where the integrand has a kink."""
    top = math.sqrt(dof + 2.0 * LARGEST_ORDER) + 9.0
    cuts = set(np.linspace(0.0, top, int(2 * top) + 1))
    for kink in kinks:
        for distance in 0.5 ** np.arange(0.0, 24.0):
            cuts |= {kink - distance, kink + distance}
        cuts.add(kink)
    edges = np.array(sorted(c for c in cuts if 0.0 <= c <= top))
    x, w = np.polynomial.legendre.leggauss(nodes)
    half = 0.5 * np.diff(edges)[:, None]
    r = (0.5 * (edges[1:] + edges[:-1])[:, None] + half * x).ravel()
    density = np.exp((dof - 1) * np.log(r) - 0.5 * r**2 - (0.5 * dof - 1) * math.log(2.0) - math.lgamma(0.5 * dof))
    return r, density * (half * w).ravel()


def planar(products: Products) -> Atoms | None:
    """Matrices (K, 2, 2) of a state of two entries and their probabilities; None for another state or a continuum."""
    if products.size != 2:
        return None
    atoms = products.batches
    noise = products.bare
    if atoms is None and isinstance(noise, GaussianMinibatchNoise) and products.directions == 1:
        r, weights = _chi_rule(noise.batch_size, [], 10)
        kept = weights > 1e-300
        hessians = (float(np.linalg.eigvalsh(noise.hessian)[-1]) / noise.batch_size * r[kept] ** 2)[:, None, None]
        atoms = Atoms(hessians, weights[kept])
    return None if atoms is None else Atoms(products.matrices(atoms.hessians), atoms.chances)


def circle_growth(atoms: Atoms, order: float, points: int) -> float:
    """The leading eigenvalue's logarithm of the operator on functions of the direction, at so many directions."""
    angles = np.pi * np.arange(points) / points
    directions = np.stack([np.cos(angles), np.sin(angles)])
    moved = atoms.hessians @ directions  # (K, 2, points)
    lengths = np.hypot(moved[:, 0], moved[:, 1])
    with np.errstate(divide="ignore"):
        weights = atoms.chances[:, None] * np.exp(order * np.log(lengths))
    places = np.mod(np.arctan2(moved[:, 1], moved[:, 0]), np.pi) * points / np.pi
    first = np.floor(places).astype(np.intp) - 3
    offsets = places - first  # from 3 to 4, between the nodes 0, ..., 7
    rows = np.broadcast_to(np.arange(points), places.shape)
    matrix = scipy.sparse.csr_array((points, points))
    for node in range(8):
        lagrange = np.ones_like(offsets)
        for other in range(8):
            if other != node:
                lagrange *= (offsets - other) / (node - other)
        columns = np.mod(first + node, points)
        part = scipy.sparse.coo_array(((weights * lagrange).ravel(), (rows.ravel(), columns.ravel())), matrix.shape)
        matrix = matrix + part.tocsr()
    found = scipy.sparse.linalg.eigs(matrix, k=1, which="LM", v0=np.ones(points), return_eigenvectors=False)
    return float(np.log(np.abs(found[0])))


def fourth_growth(products: Products) -> float | None:
    r"""The logarithm of the spectral radius of :math:`\mathrm E A^{\otimes 4}`; None where it is not solved exactly.

    A batch's factor is the mean of its examples' factors, where the rule takes one gradient a step; the fourth power of
    a mean of B draws is a sum over the ways in which four positions fall on the same draw, and for distinct draws
    the sums over distinct examples follow from those over all by inclusion and exclusion.
    """
    draws, size = products.draws, products.batch_size
    if draws is None or products.size > LARGEST_FOURTH or (len(products.layers) > 2 and size > 1):
        return None
    if not products.independent and not isinstance(products.bare, MinibatchNoise):
        return None  # distinct examples, but corruptions of their own
    n = products.size
    apply = _fourth_operator(products.matrices(draws.hessians), draws.chances, size, products.independent)
    start = np.zeros((n,) * 4)
    for i in range(n):
        start[i, i, i, i] = 1.0
    start = _symmetrised(start + np.einsum("ij,kl->ijkl", np.eye(n), np.eye(n)))
    system = scipy.sparse.linalg.LinearOperator(
        (n**4, n**4), matvec=lambda v: apply(_symmetrised(v.reshape((n,) * 4))).ravel(), dtype=np.float64
    )
    if n == 1:
        return float(np.log(np.abs(system @ np.ones(1))[0]))
    try:
        found = scipy.sparse.linalg.eigs(
            system, k=1, which="LM", v0=start.ravel(), return_eigenvectors=False, tol=1e-13, ncv=min(40, n**4 - 1)
        )
    except scipy.sparse.linalg.ArpackNoConvergence as error:
        raise NonStationaryError("the fourth moments' growth was not found: their eigenvalues are too close") from error
    return float(np.log(np.abs(found[0])))


def _fourth_operator(A: Array, chances: Array, size: int, independent: bool) -> Callable[[Array], Array]:
    n, total = A.shape[1], float(len(chances))
    flat = A.reshape(len(A), -1)
    one = np.tensordot(chances, A, 1)
    two = np.einsum("k,kab,kcd->acbd", chances, A, A, optimize=True).reshape(n * n, n * n)
    squares = np.einsum("kab,kcd->kacbd", A, A).reshape(len(A), -1)
    three = ((squares.T * chances) @ flat).reshape(n, n, n, n, n, n) if size > 1 else None
    # (a c)(b d), e f -> (a c e)(b d f)
    triple = None if three is None else three.transpose(0, 1, 4, 2, 3, 5).reshape(n**3, n**3)
    rows, columns = np.triu_indices(n)
    double = squares.reshape(len(A), n, n, n, n)[:, rows, columns]
    double = 0.5 * (double[:, :, rows, columns] + double[:, :, columns, rows])
    length = len(rows)
    flat_double = double.reshape(len(A), -1)
    four = ((flat_double.T * chances) @ flat_double).reshape((length,) * 4).transpose(0, 2, 1, 3).reshape(length**2, -1)
    multiplicity = np.where(rows == columns, 1.0, 2.0)

    def falling(x: float, count: int) -> float:
        return math.prod(x - i for i in range(count))

    def apply(T: Array) -> Array:
        packed = T[rows, columns][:, rows, columns] * np.outer(multiplicity, multiplicity)
        image = (four @ packed.ravel()).reshape(length, length)
        p4 = np.empty((n * n, n * n))
        upper, lower = rows * n + columns, columns * n + rows
        for a, b in itertools.product((upper, lower), repeat=2):
            p4[np.ix_(a, b)] = image
        p4 = p4.reshape((n,) * 4)
        if size == 1:
            return np.asarray(p4)
        assert triple is not None
        pairs = T.reshape(n * n, n * n)
        p31 = (triple @ T.reshape(n**3, n) @ one.T).reshape((n,) * 4)
        p22 = (two @ pairs @ two.T).reshape((n,) * 4)
        both = np.kron(one, one)
        p211 = (two @ pairs @ both.T).reshape((n,) * 4)
        p1111 = (both @ pairs @ both.T).reshape((n,) * 4)
        if independent:
            parts = [p4, p31, p22, p211, p1111]
        else:
            N = total
            parts = [
                p4,
                (N**2 * p31 - N * p4) / max(falling(N, 2), 1.0),
                (N**2 * p22 - N * p4) / max(falling(N, 2), 1.0),
                (N**3 * p211 - N**2 * p22 - 2 * N**2 * p31 + 2 * N * p4) / max(falling(N, 3), 1.0),
                (N**4 * p1111 - 6 * N**3 * p211 + 3 * N**2 * p22 + 8 * N**2 * p31 - 6 * N * p4)
                / max(falling(N, 4), 1.0),
            ]
        ways = [falling(size, 1), 4 * falling(size, 2), 3 * falling(size, 2), 6 * falling(size, 3), falling(size, 4)]
        return _symmetrised(sum((w / size**4 * p for w, p in zip(ways, parts, strict=True)), np.zeros((n,) * 4)))

    return apply


def _symmetrised(T: Array) -> Array:
    return np.asarray(sum(T.transpose(p) for p in itertools.permutations(range(4))) / 24.0)
