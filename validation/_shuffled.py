"""Gradients of shuffled epochs: every replica passes through the examples in an order of its own, anew each epoch.

The orders are torch's: random keys sorted, or those of a real ``DataLoader(shuffle=True)`` for each replica.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader

from ..numerics import LeastSquares, QuadraticExamples
from ._draws import Gradient
from ._minibatches import mean_gradient

__all__ = ["loaded_gradients", "shuffled_gradients"]

Examples = LeastSquares | QuadraticExamples


def shuffled_gradients(
    problem: Examples, replicas: int, batch_size: int, generator: torch.Generator
) -> Iterator[Gradient]:
    """Gradients of the mean loss of each batch, epoch after epoch; what does not fill a batch is left out."""
    total, of = problem.num_examples, _mean_gradients(problem, generator.device)
    while True:
        keys = torch.rand((replicas, total), generator=generator, dtype=torch.float64, device=generator.device)
        orders = keys.argsort(dim=1)
        for first in range(0, total - batch_size + 1, batch_size):
            yield of(orders[:, first : first + batch_size])


def loaded_gradients(
    problem: Examples, replicas: int, batch_size: int, generator: torch.Generator, *, drop_last: bool
) -> Iterator[Gradient]:
    """The same from the batches of one real ``DataLoader(shuffle=True)`` for each replica; autograd differentiates."""
    seeds = torch.randint(2**62, (replicas,), generator=generator, device=generator.device).tolist()
    examples, device = range(problem.num_examples), generator.device
    loaders: list[DataLoader[int]] = [
        DataLoader(
            examples,  # type: ignore[arg-type]  # what has a length and items is a dataset
            batch_size=batch_size,
            shuffle=True,
            drop_last=drop_last,
            generator=torch.Generator().manual_seed(seed),
        )
        for seed in seeds
    ]
    of = _losses(problem, device)
    while True:
        for batches in zip(*loaders, strict=True):
            yield _differentiated(of(torch.stack(batches).to(device)))


def _mean_gradients(problem: Examples, device: torch.device) -> Callable[[torch.Tensor], Gradient]:
    """The mean gradient of the drawn examples, (replicas, batch_size) of them."""
    if isinstance(problem, LeastSquares):
        X, y, l2 = torch.tensor(problem.X, device=device), torch.tensor(problem.y, device=device), float(problem.l2)
        return lambda drawn: _regression(X[drawn], y[drawn], l2)
    slopes = torch.tensor(problem.gradients, device=device)
    if _common(problem):
        hessian = torch.tensor(problem.hessian, device=device)
        return lambda drawn: _quadratic(hessian, slopes[drawn].mean(dim=1))
    hessians = torch.tensor(problem.hessians, device=device)
    return lambda drawn: _quadratic(hessians[drawn].mean(dim=1), slopes[drawn].mean(dim=1))


def _regression(inputs: torch.Tensor, targets: torch.Tensor, l2: float) -> Gradient:
    def grad(x: torch.Tensor) -> torch.Tensor:
        mean = mean_gradient(inputs, x, targets)
        return mean + l2 * x if l2 else mean

    return grad


def _quadratic(hessian: torch.Tensor, slope: torch.Tensor) -> Gradient:
    """Of one Hessian for all replicas, or of one for each."""
    if hessian.ndim == 2:
        return lambda x: x @ hessian + slope
    return lambda x: torch.bmm(hessian, x.unsqueeze(2)).squeeze(2) + slope


def _losses(problem: Examples, device: torch.device) -> Callable[[torch.Tensor], Gradient]:
    """The mean loss of the drawn examples, one for each replica."""
    if isinstance(problem, LeastSquares):
        X, y, l2 = torch.tensor(problem.X, device=device), torch.tensor(problem.y, device=device), float(problem.l2)

        def squares(drawn: torch.Tensor) -> Gradient:
            inputs, targets = X[drawn], y[drawn]

            def loss(x: torch.Tensor) -> torch.Tensor:
                errors = targets - torch.einsum("rbd,rd->rb", inputs, x)
                return 0.5 * errors.square().mean(dim=1) + 0.5 * l2 * x.square().sum(dim=1)

            return loss

        return squares
    slopes = torch.tensor(problem.gradients, device=device)
    hessians = torch.tensor(np.asarray(problem.hessian if _common(problem) else problem.hessians), device=device)

    def quadratics(drawn: torch.Tensor) -> Gradient:
        curved = hessians if hessians.ndim == 2 else hessians[drawn]
        sloped = slopes[drawn]

        def loss(x: torch.Tensor) -> torch.Tensor:
            pattern = "rd,de,re->r" if curved.ndim == 2 else "rd,rbde,re->rb"
            square = torch.einsum(pattern, x, curved, x).reshape(len(x), -1).mean(dim=1)
            return 0.5 * square + torch.einsum("rd,rbd->rb", x, sloped).mean(dim=1)

        return loss

    return quadratics


def _differentiated(loss: Gradient) -> Gradient:
    """The gradient of each replica's own loss, by autograd."""

    def grad(x: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            (found,) = torch.autograd.grad(loss(leaf).sum(), leaf)
        return found

    return grad


def _common(problem: QuadraticExamples) -> bool:
    """Whether all examples share one Hessian, kept once."""
    return problem.hessians.strides[0] == 0
