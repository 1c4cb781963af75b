"""Where the gradients of a run come from: one draw per step for all replicas, shared by every call within the step.

A source is an endless iterator of functions ``grad(x)``, one per step, that map (replicas, d) weights to (replicas, d)
gradients. A rule may call its ``grad`` more than once (SAM does): each call sees the same draw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InvalidProblemError
from ..numerics import LeastSquares, Quadratic

__all__ = ["Gradient", "GradientSource", "gradient_source", "range_factor"]

Gradient = Callable[[torch.Tensor], torch.Tensor]
Array = NDArray[np.float64]

#: Random numbers drawn at once: enough steps to make the call cheap, few enough to stay in the cache.
DRAWS_AT_ONCE = 1 << 17


@dataclass(frozen=True)
class GradientSource:
    """One gradient per step, what kind they are in words, and the problem with additive noise that they follow."""

    gradients: Iterator[Gradient]
    kind: str
    additive: Quadratic
    exact: bool  # whether the noise is additive, or only near the optimum


def gradient_source(
    problem: Quadratic | LeastSquares,
    replicas: int,
    generator: torch.Generator,
    *,
    batch_size: int | None,
    replacement: bool,
) -> GradientSource:
    """The gradients of ``problem``; refuses a batch size that does not fit."""
    if isinstance(problem, Quadratic):
        if batch_size is not None:
            raise InvalidProblemError(
                f"batch_size={batch_size} was given, but a Quadratic has no examples to draw from: the noise of one "
                f"step has the covariance problem.noise. Leave batch_size out, or pass the LeastSquares problem itself."
            )
        return GradientSource(_gaussian(problem, replicas, generator), "Gaussian noise", problem, exact=True)
    if isinstance(problem, LeastSquares):
        if batch_size is None:
            raise InvalidProblemError(
                f"a LeastSquares problem with {problem.num_examples} examples needs batch_size=... to draw minibatches "
                f"from; for Gaussian noise of the same covariance pass problem.quadratic(batch_size)."
            )
        additive = problem.quadratic(batch_size, replacement)
        gradients = _minibatches(problem, replicas, generator, batch_size=batch_size, replacement=replacement)
        kind = f"minibatches of {batch_size} {'with' if replacement else 'without'} replacement"
        return GradientSource(gradients, kind, additive, exact=False)
    raise InvalidProblemError(f"the problem must be a Quadratic or a LeastSquares, got {type(problem).__name__}.")


def _gaussian(problem: Quadratic, replicas: int, generator: torch.Generator) -> Iterator[Gradient]:
    """Gradients ``H (x - optimum) + xi`` with Gaussian xi of covariance ``problem.noise``.

    The standard normals are drawn in single precision and cast, several times faster than drawing doubles; their
    covariance is exact to about 1e-7. The factor L of C = L L^T, and with it all of xi, lives in double precision on
    the range of C, so that a direction without noise gets none. Products run on the (d, replicas) transposes, where the
    long axis comes last: more than twice as fast for small d.
    """
    device = generator.device
    hessian = torch.tensor(problem.hessian, device=device)
    optimum = torch.tensor(problem.optimum, device=device).unsqueeze(1)
    factor = torch.tensor(range_factor(problem.noise), device=device)
    rank = factor.shape[1]
    steps = max(1, DRAWS_AT_ONCE // (replicas * max(1, rank)))
    normals = torch.empty((steps, rank, replicas), dtype=torch.float32, device=device)
    while True:
        normals.normal_(generator=generator)
        for drawn in normals:
            xi = factor @ drawn.double()

            def grad(x: torch.Tensor, xi: torch.Tensor = xi) -> torch.Tensor:
                return torch.addmm(xi, hessian, x.T - optimum).T

            yield grad


def _minibatches(
    problem: LeastSquares, replicas: int, generator: torch.Generator, *, batch_size: int, replacement: bool
) -> Iterator[Gradient]:
    """Gradients of the mean loss over a minibatch that each replica draws afresh at each step."""
    device = generator.device
    X, y = torch.tensor(problem.X, device=device), torch.tensor(problem.y, device=device)
    l2 = float(problem.l2)
    shape = (replicas, batch_size)
    while True:
        if replacement:
            drawn = torch.randint(len(X), shape, generator=generator, device=device)
        else:
            drawn = _distinct_rows(len(X), shape, generator)
        # (replicas, batch_size, d): one gather serves every call within the step.
        inputs, targets = torch.nn.functional.embedding(drawn, X), y[drawn].unsqueeze(2)

        def grad(x: torch.Tensor, inputs: torch.Tensor = inputs, targets: torch.Tensor = targets) -> torch.Tensor:
            residual = torch.bmm(inputs, x.unsqueeze(2)) - targets
            mean = torch.bmm(inputs.transpose(1, 2), residual).squeeze(2) / batch_size
            return mean + l2 * x if l2 else mean

        yield grad


def range_factor(noise: Array) -> Array:
    """L of shape (d, rank) with L L^T = noise; eigenvalues that are rounding of the largest are left out."""
    values, vectors = np.linalg.eigh(noise)
    kept = values > len(values) * np.finfo(np.float64).eps * values[-1]
    factor = vectors[:, kept] * np.sqrt(values[kept])
    factor[np.diag(noise) == 0.0] = 0.0  # a variance of exactly 0 stays exactly 0
    return np.ascontiguousarray(factor)


def _distinct_rows(examples: int, shape: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    """Rows of distinct indices, each row a uniformly random subset.

    Draws that repeat an earlier one of their row are drawn again until none is left. The procedure treats all examples
    alike, hence so does the law of the set it ends with: every subset is equally likely.
    """
    device = generator.device
    if 2 * shape[1] > examples:
        keys = torch.rand((shape[0], examples), generator=generator, dtype=torch.float64, device=device)
        return keys.topk(shape[1], dim=1, sorted=False).indices
    drawn = torch.randint(examples, shape, generator=generator, device=device).sort(dim=1).values
    rows = torch.arange(shape[0], device=device)
    while len(rows):
        part = drawn[rows]
        repeated = torch.zeros_like(part, dtype=torch.bool)
        repeated[:, 1:] = part[:, 1:] == part[:, :-1]
        again = torch.randint(examples, (int(repeated.sum()),), generator=generator, device=device)
        part[repeated] = again
        part = part.sort(dim=1).values
        drawn[rows] = part
        rows = rows[repeated.any(dim=1)]
    return drawn
