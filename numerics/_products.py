r"""The random matrices whose products make an optimizer's tails: one step of all slots on one batch.

A linear rule that uses the same batch in all its gradients steps the deviation z of its slots by

.. math:: A_B = I + \sum_k D_k \otimes H_B^k ,

whatever the batch's Hessian :math:`H_B`.  Directions that are flat in every batch are left out: nothing happens there.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..theory import Optimizer, recursion
from ._problem import make_problem
from ._second_moment import stretches_flat
from .corruption import DropoutNoise, InputNoise
from .noise import Draw, GaussianMinibatchNoise, GradientNoise, MinibatchNoise, WithAdditive
from .problems import LeastSquares

__all__ = ["Atoms", "Products"]

Array: TypeAlias = NDArray[np.float64]

#: Most batches that are listed, and most corrupted examples.
MOST_BATCHES = 20_000
MOST_EXAMPLES = 5_000
#: Nodes per input of the quadrature that is exact for the eighth moments of a Gaussian (degree 9).
NODES = 5


@dataclass(frozen=True)
class Atoms:
    """Finitely many Hessians and their probabilities."""

    hessians: Array  # (K, r, r)
    chances: Array  # (K,)


@dataclass(frozen=True)
class Products:
    """The factors of one optimizer on one noise."""

    optimizer: Optimizer
    noise: GradientNoise

    @cached_property
    def bare(self) -> GradientNoise:
        """The noise without what was added to it, which multiplies nothing."""
        noise = self.noise
        while isinstance(noise, WithAdditive):
            noise = noise.base
        return noise

    @cached_property
    def layers(self) -> list[Array]:
        """The matrices D_k."""
        return [np.array(layer, dtype=np.float64) for layer in recursion(self.optimizer).increment_coefficients]

    @cached_property
    def basis(self) -> Array | None:
        """Directions that are not flat in every batch, as columns; None if that is all of them."""
        problem = make_problem(self.optimizer, self.noise.hessian, np.zeros_like(self.noise.hessian), None)
        directions = problem.directions
        if not directions.flat.size or stretches_flat(problem, self.noise):
            return None
        vectors = np.eye(self.noise.dim) if directions.basis is None else directions.basis
        return np.ascontiguousarray(vectors[:, directions.moving])

    @property
    def directions(self) -> int:
        """The number of directions that are not flat."""
        return self.noise.dim if self.basis is None else int(self.basis.shape[1])

    @property
    def slots(self) -> int:
        """The number of slots."""
        return len(self.layers[0])

    @property
    def size(self) -> int:
        """The length of a state."""
        return self.slots * self.directions

    @property
    def batch_size(self) -> int:
        """Examples in a batch."""
        return int(getattr(self.bare, "batch_size", 1))

    def step(self, states: Array, draw: Draw) -> Array:
        """States (count, slots, directions) after one step, each on its own batch."""
        out = states.copy()
        slots: list[Array | None] = [states[:, a] for a in range(self.slots)]
        for k, layer in enumerate(self.layers):
            # only what this or a later power of the Hessian needs is multiplied by it once more
            needed = np.any([later != 0.0 for later in self.layers[k:]], axis=(0, 1))
            if k:
                slots = [self._curved(draw, s) if s is not None and needed[b] else None for b, s in enumerate(slots)]
            for a, b in zip(*np.nonzero(layer), strict=True):
                out[:, a] += layer[a, b] * slots[b]
        return out

    def _curved(self, draw: Draw, vectors: Array) -> Array:
        if self.basis is None:
            return draw.curvature(vectors)
        return np.asarray(draw.curvature(vectors @ self.basis.T) @ self.basis)

    def matrices(self, hessians: Array) -> Array:
        """The factors A of given Hessians, shape (K, size, size)."""
        count, r, _ = hessians.shape
        power = np.broadcast_to(np.eye(r), hessians.shape)
        out = np.broadcast_to(np.eye(self.size), (count, self.size, self.size)).copy()
        for layer in self.layers:
            out += np.einsum("ab,kij->kaibj", layer, power).reshape(out.shape)
            power = power @ hessians
        return out

    @cached_property
    def draws(self) -> Atoms | None:
        """The Hessians that one draw of an example can have, for moments up to the fourth; None if too many."""
        noise = self.bare
        if isinstance(noise, GaussianMinibatchNoise):
            if self.noise.dim > 4:
                return None
            h, vectors = np.linalg.eigh(noise.hessian)
            nodes, chances = _gaussian_nodes(h.size)
            return self._of_inputs((nodes * np.sqrt(np.maximum(h, 0.0))) @ vectors.T, chances, 0.0)
        if isinstance(noise, DropoutNoise | InputNoise):
            X = noise.problem.X
            kinds = 2 if isinstance(noise, DropoutNoise) else NODES
            if len(X) * kinds ** X.shape[1] > MOST_EXAMPLES:
                return None
            if isinstance(noise, DropoutNoise):
                masks = np.array(list(itertools.product((0.0, 1.0), repeat=X.shape[1])))
                chances = np.prod(np.where(masks == 0.0, noise.rate, 1.0 - noise.rate), axis=1)
                inputs = X[:, None] * (masks / (1.0 - noise.rate))
            else:
                nodes, chances = _gaussian_nodes(X.shape[1])
                inputs = X[:, None] + noise.std * nodes
            every = np.tile(chances / len(X), len(X))
            return self._of_inputs(inputs.reshape(-1, X.shape[1]), every, noise.problem.l2)
        if isinstance(noise, MinibatchNoise):
            problem = noise.problem
            chances = np.full(problem.num_examples, 1.0 / problem.num_examples)
            if isinstance(problem, LeastSquares):
                return self._of_inputs(problem.X, chances, problem.l2)
            return Atoms(self._reduced(np.asarray(problem.hessians)), chances)
        return None

    @property
    def gaussian(self) -> bool:
        """Whether the inputs have Gaussian tails, so that no curvature is the largest."""
        noise = self.bare
        return isinstance(noise, GaussianMinibatchNoise) or (isinstance(noise, InputNoise) and noise.std > 0)

    @cached_property
    def independent(self) -> bool:
        """Whether the draws of one batch are independent of each other."""
        return bool(getattr(self.bare, "replacement", True)) or self.batch_size == 1

    @cached_property
    def batches(self) -> Atoms | None:
        """The Hessians of all batches, exactly; None if there are too many or a continuum."""
        noise, draws, size = self.bare, self.draws, self.batch_size
        if draws is None or isinstance(noise, GaussianMinibatchNoise | InputNoise):
            return None
        total = len(draws.chances)
        if size == 1:
            return draws
        if not self.independent:
            if isinstance(noise, DropoutNoise) or math.comb(total, size) > MOST_BATCHES:
                return None
            listed = np.array(list(itertools.combinations(range(total), size)))
            return Atoms(draws.hessians[listed].mean(axis=1), np.full(len(listed), 1.0 / len(listed)))
        if math.comb(total + size - 1, size) > MOST_BATCHES:
            return None
        bags = list(itertools.combinations_with_replacement(range(total), size))
        ways = np.array([math.factorial(size) / math.prod(map(math.factorial, Counter(b).values())) for b in bags])
        listed = np.array(bags)
        return Atoms(draws.hessians[listed].mean(axis=1), ways * np.prod(draws.chances[listed], axis=1))

    @cached_property
    def largest_curvature(self) -> float:
        """A bound of the largest eigenvalue that a batch's Hessian can have; infinite for Gaussian inputs."""
        noise = self.bare
        if isinstance(noise, MinibatchNoise | DropoutNoise) and isinstance(noise.problem, LeastSquares):
            kept = 1.0 - noise.rate if isinstance(noise, DropoutNoise) else 1.0
            sizes = np.sort(np.square(np.linalg.norm(noise.problem.X, axis=1) / kept))
            top = sizes[-1:] if self.independent else sizes[-self.batch_size :]
            return float(top.mean()) + noise.problem.l2
        if isinstance(noise, MinibatchNoise) and self.draws is not None:
            values = np.linalg.eigvalsh(self.draws.hessians)
            return float(values[:, -1].max()) if values.min() >= 0.0 else math.inf
        return math.inf

    def _of_inputs(self, inputs: Array, chances: Array, l2: float) -> Atoms:
        seen = inputs if self.basis is None else inputs @ self.basis
        return Atoms(np.einsum("ki,kj->kij", seen, seen) + l2 * np.eye(seen.shape[1]), chances)

    def _reduced(self, hessians: Array) -> Array:
        return hessians if self.basis is None else np.asarray(self.basis.T @ hessians @ self.basis)


def _gaussian_nodes(dim: int) -> tuple[Array, Array]:
    """Nodes and weights for standard normal vectors, exact for polynomials of degree up to 9 in each entry."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    weights = weights / weights.sum()
    grid = np.array(list(itertools.product(nodes, repeat=dim)))
    return grid, np.prod(np.array(list(itertools.product(weights, repeat=dim))), axis=1)
