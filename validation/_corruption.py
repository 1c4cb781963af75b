"""Gradients of minibatches whose inputs are corrupted afresh at every draw, by dropout or by noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from ..numerics import LeastSquares
from ._draws import Gradient, normals
from ._minibatches import indices, mean_gradient

__all__ = ["dropout_batches", "noisy_batches"]


def dropout_batches(
    problem: LeastSquares,
    replicas: int,
    generator: torch.Generator,
    *,
    rate: float,
    batch_size: int,
    replacement: bool,
) -> Iterator[Gradient]:
    """Inputs whose entries are 0 with probability ``rate``, and divided by what is kept on average otherwise."""

    def mask(inputs: torch.Tensor) -> torch.Tensor:
        kept = torch.rand(inputs.shape, generator=generator, dtype=torch.float64, device=inputs.device) >= rate
        return inputs * kept / (1.0 - rate)

    return _corrupted(problem, replicas, generator, mask, batch_size=batch_size, replacement=replacement)


def noisy_batches(
    problem: LeastSquares,
    replicas: int,
    generator: torch.Generator,
    *,
    std: float,
    batch_size: int,
    replacement: bool,
) -> Iterator[Gradient]:
    """Inputs with independent Gaussian noise on every entry."""
    noise = normals((replicas, batch_size, problem.dim), generator)

    def add(inputs: torch.Tensor) -> torch.Tensor:
        return inputs + std * next(noise)

    return _corrupted(problem, replicas, generator, add, batch_size=batch_size, replacement=replacement)


def _corrupted(
    problem: LeastSquares,
    replicas: int,
    generator: torch.Generator,
    corrupt: Callable[[torch.Tensor], torch.Tensor],
    *,
    batch_size: int,
    replacement: bool,
) -> Iterator[Gradient]:
    device = generator.device
    X, y = torch.tensor(problem.X, device=device), torch.tensor(problem.y, device=device)
    l2 = float(problem.l2)
    for drawn in indices(len(X), replicas, batch_size, generator, replacement=replacement):
        inputs, targets = corrupt(torch.nn.functional.embedding(drawn, X)), y[drawn]

        def grad(x: torch.Tensor, inputs: torch.Tensor = inputs, targets: torch.Tensor = targets) -> torch.Tensor:
            mean = mean_gradient(inputs, x, targets)
            return mean + l2 * x if l2 else mean

        yield grad
