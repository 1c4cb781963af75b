"""Gradients of true minibatches: of examples that exist, or of Gaussian data made afresh at every draw.

Nothing here calls numerics' own sampler: the batches of a measured run are drawn by torch, for every replica anew at
every step.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..numerics import LeastSquares, QuadraticExamples
from ._draws import Gradient, distinct_rows, normals, range_factor

__all__ = [
    "example_batches",
    "fresh_batches",
    "general_batches",
    "indices",
    "mean_gradient",
    "row_products",
    "weighted_rows",
]

Array = NDArray[np.float64]


def indices(
    examples: int, replicas: int, batch_size: int, generator: torch.Generator, *, replacement: bool
) -> Iterator[torch.Tensor]:
    """One batch of indices for every replica, shape (replicas, batch_size), again and again."""
    shape = (replicas, batch_size)
    while True:
        if replacement or batch_size == 1:
            yield torch.randint(examples, shape, generator=generator, device=generator.device)
        else:
            yield distinct_rows(examples, shape, generator)


def example_batches(
    problem: LeastSquares, replicas: int, generator: torch.Generator, *, batch_size: int, replacement: bool
) -> Iterator[Gradient]:
    """Gradients of the mean squared loss over a minibatch of examples.

    The rows of a batch are never copied out of the data, which would take most of the time: PyTorch's embedding bag
    adds up weighted rows in place, and its derivative by the weights is their product with a vector.
    """
    device = generator.device
    X, y = torch.tensor(problem.X, device=device), torch.tensor(problem.y, device=device)
    l2 = float(problem.l2)
    ones = torch.ones((replicas, batch_size), dtype=torch.float64, device=device)
    for drawn in indices(len(X), replicas, batch_size, generator, replacement=replacement):
        targets = y[drawn]

        def grad(x: torch.Tensor, drawn: torch.Tensor = drawn, targets: torch.Tensor = targets) -> torch.Tensor:
            mean = weighted_rows(drawn, X, (row_products(drawn, X, x, ones) - targets) / batch_size)
            return mean + l2 * x if l2 else mean

        yield grad


def weighted_rows(drawn: torch.Tensor, rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Sums of the drawn rows, each with its weight: (replicas, d)."""
    return torch.nn.functional.embedding_bag(drawn, rows, mode="sum", per_sample_weights=weights)


def row_products(drawn: torch.Tensor, rows: torch.Tensor, x: torch.Tensor, ones: torch.Tensor) -> torch.Tensor:
    """Products of each replica's drawn rows with its own vector: (replicas, batch_size)."""
    with torch.enable_grad():
        weights = ones.requires_grad_()
        (found,) = torch.autograd.grad(weighted_rows(drawn, rows, weights), weights, x.detach())
    return found


def general_batches(
    problem: QuadraticExamples, replicas: int, generator: torch.Generator, *, batch_size: int, replacement: bool
) -> Iterator[Gradient]:
    """Gradients ``H_B w + r_B`` of the mean loss over a minibatch of general quadratic examples."""
    device = generator.device
    examples, d = problem.gradients.shape
    flat = np.hstack([np.asarray(problem.hessians).reshape(examples, d * d), problem.gradients])
    table = torch.tensor(flat, device=device)
    for drawn in indices(examples, replicas, batch_size, generator, replacement=replacement):
        mean = torch.nn.functional.embedding_bag(drawn, table, mode="mean")
        hessians, slopes = mean[:, : d * d].view(replicas, d, d), mean[:, d * d :]

        def grad(x: torch.Tensor, hessians: torch.Tensor = hessians, slopes: torch.Tensor = slopes) -> torch.Tensor:
            return torch.bmm(hessians, x.unsqueeze(2)).squeeze(2) + slopes

        yield grad


def fresh_batches(
    covariance: Array, label_noise: float, optimum: Array, replicas: int, generator: torch.Generator, *, batch_size: int
) -> Iterator[Gradient]:
    """Gradients of the mean squared loss over fresh Gaussian inputs with linear labels and Gaussian noise."""
    device = generator.device
    factor = torch.tensor(range_factor(covariance), device=device)
    centre = torch.tensor(optimum, device=device)
    rank = factor.shape[1]
    for drawn in normals((replicas, batch_size, rank + 1), generator):
        inputs = drawn[..., :rank] @ factor.T
        errors = label_noise * drawn[..., rank]

        def grad(x: torch.Tensor, inputs: torch.Tensor = inputs, errors: torch.Tensor = errors) -> torch.Tensor:
            return mean_gradient(inputs, x - centre, errors)

        yield grad


def mean_gradient(inputs: torch.Tensor, x: torch.Tensor, targets: Any) -> torch.Tensor:
    """Mean over a batch of ``input (input . x - target)``, for inputs (replicas, batch_size, d)."""
    residuals = torch.bmm(inputs, x.unsqueeze(2)).squeeze(2) - targets
    return torch.bmm(residuals.unsqueeze(1), inputs).squeeze(1) / inputs.shape[1]
