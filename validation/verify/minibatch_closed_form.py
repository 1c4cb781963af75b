"""Oracles for minibatches that share nothing with numerics: theory's closed form, and every batch of a small data set.

For Gaussian data theory derives and proves the law of every rule. It is evaluated in 50 digits, for every eigenvalue of
the inputs' covariance, with the sums over all directions that couple them. For a handful of examples all batches are
listed: the rule's own function steps unit vectors with the gradient of each, and the moments of these affine maps make
one linear system.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import mpmath
import numpy as np
import scipy.linalg
import sympy as sp
from numpy.typing import NDArray

from ... import theory
from ...numerics import GaussianMinibatchNoise, MinibatchNoise, QuadraticExamples
from ...theory import Formula, Optimizer
from .closed_form import DIGITS

__all__ = ["formula", "gaussian_covariance", "listed_covariance"]

Array = NDArray[np.float64]


def formula(optimizer: Optimizer) -> Formula:
    """Theory's law under Gaussian minibatches, with a symbol for every hyper-parameter that is not at its default."""
    defaults = {p.name: p.default for p in optimizer.rule.hyperparameters}
    changed = (name for name, value in optimizer.values.items() if value != defaults[name])
    return theory.gaussian_minibatch_covariance(optimizer.free(*changed))


def gaussian_covariance(optimizer: Optimizer, noise: GaussianMinibatchNoise) -> Array:
    """The covariance of the weights by theory's formula, in the coordinates of the inputs."""
    h, vectors = scipy.linalg.eigh(noise.hessian, driver="ev")
    with mpmath.workdps(DIGITS):
        known: dict[str, Any] = {name: mpmath.mpf(int(v.p)) / int(v.q) for name, v in optimizer.exact.items()}
        known |= {"label_noise": mpmath.mpf(noise.noise_std), "batch_size": mpmath.mpf(noise.batch_size)}
        targets = vectors.T @ noise.optimum
        directions = [{"h_i": mpmath.mpf(x), "w_star": mpmath.mpf(t)} for x, t in zip(h, targets, strict=True)]
        found = _in_eigenbasis(formula(optimizer), known, directions)
    return np.asarray(vectors @ np.asarray(found, dtype=np.float64) @ vectors.T)


def _in_eigenbasis(
    law: Formula, known: Mapping[str, Any], directions: list[dict[str, Any]]
) -> NDArray[np.object_]:
    """The covariance of the weights between all pairs of directions."""
    share, moved = _function(law, law.parts["share"]), law.parts.get("displaced")
    sums = {"U": sum(share({**known, **own}) for own in directions)}
    if moved is not None:
        displaced = _function(law, moved)
        sums["V"] = sum(displaced({**known, **own}) for own in directions)
    variance = _function(law, law.expression)
    found = np.full((len(directions), len(directions)), mpmath.mpf(0))
    for i, own in enumerate(directions):
        found[i, i] = variance({**known, **own, **sums})
    if moved is not None:
        mixed = _function(law, law.parts["off_diagonal"])
        for (i, own), (j, other) in itertools.permutations(enumerate(directions), 2):
            second = {"h_j": other["h_i"], "w_star_j": other["w_star"]}
            found[i, j] = mixed({**known, **own, **second})
    return found


def _function(law: Formula, expression: sp.Expr) -> Any:
    """An expression of a formula as a function of numbers by role."""
    roles = {symbol: role for role, symbol in law.symbols.items()}
    symbols = sorted(expression.free_symbols, key=str)
    compiled = sp.lambdify(symbols, expression, "mpmath", cse=True)
    names = [roles.get(symbol, str(symbol)) for symbol in symbols]
    return lambda numbers: compiled(*(numbers[name] for name in names))


def listed_covariance(optimizer: Optimizer, noise: MinibatchNoise) -> tuple[Array, Array, float]:
    """The stationary covariance and mean of all slots over every batch, and what rounding may have done to a variance.

    The slots are stacked. The last is relative to the largest variance: the size of the linear system times its
    condition times the machine's precision.
    """
    transitions, pushes = _affine_maps(optimizer, noise)
    size = transitions.shape[1]
    eye = np.eye(size)
    mean = np.linalg.solve(eye - transitions.mean(axis=0), pushes.mean(axis=0))
    moved = transitions @ mean + pushes - mean
    added = moved.T @ moved / len(moved)
    operator = np.einsum("bij,bkl->ikjl", transitions, transitions).reshape(size**2, size**2) / len(transitions)
    system = np.eye(size**2) - operator
    covariance = np.linalg.solve(system, added.ravel()).reshape(size, size)
    rounding = np.finfo(np.float64).eps * size**2 * float(np.linalg.cond(system))
    return 0.5 * (covariance + covariance.T), mean, rounding


def _affine_maps(optimizer: Optimizer, noise: MinibatchNoise) -> tuple[Array, Array]:
    """Affine maps z' = A z + a of every batch, read off the rule's own function: (batches, n, n) and (batches, n)."""
    problem = noise.problem
    if not isinstance(problem, QuadraticExamples):
        raise TypeError(f"batches are listed of QuadraticExamples, not of {problem!r}")
    slots, d = len(optimizer.rule.slots), problem.dim
    choose: Any = itertools.product if noise.replacement else itertools.combinations
    arguments: Any = {"repeat": noise.batch_size} if noise.replacement else {"r": noise.batch_size}
    numbers = optimizer.replace(**{name: float(value) for name, value in optimizer.values.items()})
    states = np.vstack([np.zeros(slots * d), np.eye(slots * d)])
    transitions, pushes = [], []
    for batch in choose(range(problem.num_examples), **arguments):
        hessian = problem.hessians[list(batch)].mean(axis=0)
        slope = problem.gradients[list(batch)].mean(axis=0)

        def grad(w: Array, hessian: Array = hessian, slope: Array = slope) -> Array:
            return np.asarray(w @ hessian + slope)

        stepped = np.hstack(numbers.step(tuple(np.split(states, slots, axis=1)), grad))
        pushes.append(stepped[0])
        transitions.append((stepped[1:] - stepped[0]).T)
    return np.array(transitions), np.array(pushes)
