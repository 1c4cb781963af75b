"""Where the gradients of a run come from: one draw per step for all replicas, shared by every call within the step.

A source is an endless iterator of functions ``grad(x)``, one per step, that map (replicas, d) weights to (replicas, d)
gradients. A rule may call its ``grad`` more than once (SAM does): each call sees the same draw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from .. import numerics
from ..errors import InvalidProblemError
from ..numerics import (
    AdversarialLeastSquares,
    DropoutNoise,
    GaussianAdversarialRegression,
    GaussianMinibatchNoise,
    GradientNoise,
    InputNoise,
    LeastSquares,
    MinibatchNoise,
    Quadratic,
    QuadraticExamples,
    RobustUnhinged,
)
from ..numerics._arrays import flag, whole_number
from ..numerics.noise import WithAdditive
from ..theory import Optimizer
from ._attacked_batches import AttackedExamples, attacked_batches, attacked_fresh_batches
from ._corruption import dropout_batches, noisy_batches
from ._draws import Gradient, normals, range_factor
from ._minibatches import example_batches, fresh_batches, general_batches

__all__ = ["Gradient", "GradientSource", "Measurable", "dim_of", "gradient_source"]

Array = NDArray[np.float64]
#: What a run can be measured on.
Measurable: TypeAlias = (
    Quadratic | LeastSquares | QuadraticExamples | GradientNoise | AttackedExamples | GaussianAdversarialRegression
)


@dataclass(frozen=True)
class GradientSource:
    """One gradient per step, and what kind they are in words.

    Attributes
    ----------
    gradients : iterator
    kind : str
    quadratic : Quadratic
        The mean loss that the steps see, with the noise that they have at its minimum. Of a loss that is not
        quadratic, its expansion there; on kinks, that over the law of the iterates.
    noise : ndarray or GradientNoise
        The noise as numerics takes it: a covariance where it is additive, or where no more is known of it.
    """

    gradients: Iterator[Gradient]
    kind: str
    quadratic: Quadratic
    noise: Array | GradientNoise


def dim_of(problem: Measurable) -> int:
    """The number d of weights.

    Raises
    ------
    InvalidProblemError
        If it is nothing that a run is measured on.
    """
    if not isinstance(problem, Measurable):
        raise InvalidProblemError(
            f"the problem must be a Quadratic, a LeastSquares, QuadraticExamples or one of the adversarial problems "
            f"with its batch_size, or a GradientNoise, got {type(problem).__name__}."
        )
    return int(problem.dim)


def gradient_source(
    problem: Measurable,
    replicas: int,
    generator: torch.Generator,
    *,
    optimizer: Optimizer,
    batch_size: int | None,
    replacement: bool,
) -> GradientSource:
    """The gradients of ``problem``; refuses a batch size that does not fit.

    The optimizer makes no gradients; where they jump, it decides over which weights the curvature is averaged.
    """
    dim_of(problem)  # refuses what is none of these
    if batch_size is not None:
        batch_size = whole_number("batch_size", batch_size, least=1)
    replacement = flag("replacement", replacement)
    if isinstance(problem, AttackedExamples | GaussianAdversarialRegression):
        return _attacked(problem, replicas, generator, optimizer, batch_size, replacement)
    if isinstance(problem, LeastSquares | QuadraticExamples):
        if batch_size is None:
            raise InvalidProblemError(
                f"a {type(problem).__name__} problem with {problem.num_examples} examples needs batch_size=... to draw "
                f"minibatches from; for Gaussian noise of the same covariance pass problem.quadratic(batch_size)."
            )
        problem, batch_size = MinibatchNoise(problem, batch_size, replacement), None
    if isinstance(problem, Quadratic | GradientNoise) and batch_size is not None:
        what = (
            "a Quadratic has no examples to draw from: the noise of one step has the covariance problem.noise"
            if isinstance(problem, Quadratic)
            else f"{problem!r} has its own batches"
        )
        raise InvalidProblemError(
            f"batch_size={batch_size} was given, but {what}. Leave batch_size out, or pass the LeastSquares problem "
            f"itself."
        )
    if isinstance(problem, Quadratic):
        gradients = _additive(problem, replicas, generator)
        return GradientSource(gradients, "Gaussian noise", problem, problem.noise)
    if isinstance(problem, GradientNoise):
        gradients, kind = _drawn(problem, replicas, generator)
        quadratic = Quadratic(problem.hessian, problem.covariance(), problem.optimum)
        return GradientSource(gradients, kind, quadratic, problem)
    raise AssertionError(problem)


def _attacked(
    problem: AttackedExamples | GaussianAdversarialRegression,
    replicas: int,
    generator: torch.Generator,
    optimizer: Optimizer,
    batch_size: int | None,
    replacement: bool,
) -> GradientSource:
    """Robust losses, every draw attacked anew at the weights of its replica."""
    if batch_size is None:
        raise InvalidProblemError(f"{problem!r} needs batch_size=... to draw minibatches for.")
    order = 2.0 if isinstance(problem, RobustUnhinged) else problem.norm
    attack = f"attacked anew at each step (l{order:g}, radius {problem.radius:g})"
    if isinstance(problem, GaussianAdversarialRegression):
        quadratic = problem.quadratic(batch_size)
        fresh = attacked_fresh_batches(problem, replicas, generator, batch_size=batch_size)
        return GradientSource(
            fresh, f"minibatches of {batch_size} fresh Gaussian examples, {attack}", quadratic, quadratic.noise
        )
    quadratic = _quadratic_near(problem, optimizer, batch_size, replacement)
    noise: Array | GradientNoise = quadratic.noise
    if isinstance(problem, AdversarialLeastSquares) and problem.kinks.smooth:
        noise = MinibatchNoise(problem.cell(), batch_size, replacement)
    gradients = attacked_batches(problem, replicas, generator, batch_size=batch_size, replacement=replacement)
    with_or_without = "with" if replacement else "without"
    kind = f"minibatches of {batch_size} {with_or_without} replacement, {attack}"
    return GradientSource(gradients, kind, quadratic, noise)


def _quadratic_near(problem: AttackedExamples, optimizer: Optimizer, batch_size: int, replacement: bool) -> Quadratic:
    """The quadratic by which runs about the optimum are planned: how long they take to forget, and where they start."""
    if isinstance(problem, RobustUnhinged) or problem.kinks.smooth:
        return problem.quadratic(batch_size, replacement)
    # A weight on the norm's kink is driven back to 0 harder than by its inputs' curvature, however near it is.
    weights = np.ones(problem.num_examples) if problem.sample_weight is None else problem.sample_weight
    own = (weights / problem.num_examples) @ problem.X**2 + problem.l2
    if problem.kinks.collapsed:
        return Quadratic(np.diag(own), np.zeros((problem.dim, problem.dim)), np.zeros(problem.dim))
    held = np.array(problem.kinks.coordinates, dtype=np.intp)
    face = problem.face() if held.size else problem
    if isinstance(face, AdversarialLeastSquares):
        law = numerics.kink_corrected_covariance(optimizer, face, batch_size, replacement=replacement)
        parts = law.hessian, law.noise, law.mean
    else:
        parts = face.hessian, face.noise(batch_size, replacement), face.optimum
    others = np.setdiff1d(np.arange(problem.dim), held)
    hessian, noise, centre = np.diag(own), np.zeros((problem.dim, problem.dim)), np.zeros(problem.dim)
    inner = np.ix_(others, others)
    hessian[inner], noise[inner], centre[others] = parts
    return Quadratic(hessian, noise, centre)


def _drawn(noise: GradientNoise, replicas: int, generator: torch.Generator) -> tuple[Iterator[Gradient], str]:
    """The gradients whose noise this is, and what kind they are."""
    if isinstance(noise, WithAdditive):
        base, kind = _drawn(noise.base, replicas, generator)
        return _with_gaussian(base, noise.additive, replicas, generator), f"{kind}, and Gaussian noise besides"
    if isinstance(noise, MinibatchNoise | DropoutNoise | InputNoise):
        batches, corruption = _batches(noise)
        gradients = batches(replicas, generator, batch_size=noise.batch_size, replacement=noise.replacement)
        with_or_without = "with" if noise.replacement else "without"
        return gradients, f"minibatches of {noise.batch_size} {with_or_without} replacement{corruption}"
    if isinstance(noise, GaussianMinibatchNoise):
        gradients = fresh_batches(
            noise.hessian, noise.noise_std, noise.optimum, replicas, generator, batch_size=noise.batch_size
        )
        return gradients, f"minibatches of {noise.batch_size} fresh Gaussian examples"
    raise InvalidProblemError(
        f"no run is known that has the noise {noise!r}: measured are MinibatchNoise, GaussianMinibatchNoise, "
        f"DropoutNoise and InputNoise, each also with a covariance added."
    )


def _batches(noise: MinibatchNoise | DropoutNoise | InputNoise) -> tuple[Callable[..., Iterator[Gradient]], str]:
    """What makes the gradients of minibatches, and what is done to their inputs."""
    problem = noise.problem
    if isinstance(problem, QuadraticExamples):
        return partial(general_batches, problem), ""
    if isinstance(noise, DropoutNoise):
        return partial(dropout_batches, problem, rate=noise.rate), f", {noise.rate:g} of the inputs dropped"
    if isinstance(noise, InputNoise):
        return partial(noisy_batches, problem, std=noise.std), f", noise of {noise.std:g} on the inputs"
    return partial(example_batches, problem), ""


def _additive(problem: Quadratic, replicas: int, generator: torch.Generator) -> Iterator[Gradient]:
    """Gradients ``H (x - optimum) + xi`` with Gaussian xi of covariance ``problem.noise``.

    The factor L of C = L L^T, and with it all of xi, lives in double precision on the range of C, so that a direction
    without noise gets none. Products run on the (d, replicas) transposes, where the long axis comes last: more than
    twice as fast for small d.
    """
    device = generator.device
    hessian = torch.tensor(problem.hessian, device=device)
    optimum = torch.tensor(problem.optimum, device=device).unsqueeze(1)
    for xi in _gaussian(problem.noise, replicas, generator):

        def grad(x: torch.Tensor, xi: torch.Tensor = xi) -> torch.Tensor:
            return torch.addmm(xi, hessian, x.T - optimum).T

        yield grad


def _with_gaussian(
    base: Iterator[Gradient], covariance: Array, replicas: int, generator: torch.Generator
) -> Iterator[Gradient]:
    """Other gradients, with Gaussian noise besides that is the same for every call within a step."""
    for other, xi in zip(base, _gaussian(covariance, replicas, generator), strict=False):

        def grad(x: torch.Tensor, other: Gradient = other, xi: torch.Tensor = xi) -> torch.Tensor:
            return other(x) + xi.T

        yield grad


def _gaussian(covariance: Array, replicas: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Gaussian columns of this covariance, shape (d, replicas), again and again."""
    factor = torch.tensor(range_factor(covariance), device=generator.device)
    for drawn in normals((factor.shape[1], replicas), generator):
        yield factor @ drawn
