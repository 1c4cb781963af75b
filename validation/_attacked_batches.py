r"""Gradients of robust losses over true minibatches: every draw attacked anew at the weights of its replica.

For linear models the inner maximum is in closed form, so an exactly attacked batch costs what an ordinary one does. A
loss is a function of :math:`z = x^\top w` and of what the attack takes, :math:`t = \epsilon|w|_q`; with its derivatives
in both,

.. math:: g = \frac1B \sum_b a_b \big(\partial_z \ell_b\, x_b + \epsilon\, \partial_t \ell_b\, \nabla|w|_q\big)
              + \lambda w .
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import torch

from ..numerics import AdversarialLeastSquares, AdversarialLogistic, GaussianAdversarialRegression, RobustUnhinged
from ._draws import Gradient, normals, range_factor
from ._minibatches import indices, row_products, weighted_rows

__all__ = ["AttackedExamples", "AttackedGradient", "attacked_batches", "attacked_fresh_batches"]

AttackedExamples: TypeAlias = AdversarialLeastSquares | AdversarialLogistic | RobustUnhinged
#: Maps z and t of shape (replicas, batch_size) and (replicas, 1), and targets, to the derivatives by z and by t.
Slopes = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def squares(z: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of (|y - z| + t)^2/2."""
    residual = y - z
    total = residual.abs() + t
    return -residual.sign() * total, total


def logistic(z: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of log(1 + exp(t - y z))."""
    chance = torch.sigmoid(t - y * z)
    return -y * chance, chance


def unhinged(z: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of 1 - y z + t."""
    return -y, torch.ones_like(y)


@dataclass(frozen=True)
class AttackedGradient:
    """The gradient of the mean robust loss over one draw; a call attacks it at the weights it is called with.

    Attributes
    ----------
    products : callable
        Maps weights (replicas, d) to their products with the drawn inputs, (replicas, batch_size).
    combined : callable
        Maps factors (replicas, batch_size) to the mean over the batch of the inputs with these factors, (replicas, d).
    targets : Tensor, shape (replicas, batch_size)
    weights : Tensor, shape (replicas, batch_size), or None
    slopes : callable
    radius, dual, l2 : float
    """

    products: Callable[[torch.Tensor], torch.Tensor]
    combined: Callable[[torch.Tensor], torch.Tensor]
    targets: torch.Tensor
    weights: torch.Tensor | None
    slopes: Slopes
    radius: float
    dual: float
    l2: float

    def __call__(self, w: torch.Tensor) -> torch.Tensor:
        size, direction = dual_norm(w, self.dual)
        by_product, by_attack = self.slopes(self.products(w), self.radius * size, self.targets)
        return self._mean(w, by_product, by_attack, direction)

    def held(self, w: torch.Tensor) -> Gradient:
        """The gradient over the inputs as they are attacked at these weights, wherever it is called."""
        size, direction = dual_norm(w, self.dual)
        found, _ = self.slopes(self.products(w), self.radius * size, self.targets)
        moved = self.radius * found.sign()  # along the direction: uphill

        def grad(x: torch.Tensor) -> torch.Tensor:
            along = (direction * x).sum(dim=1, keepdim=True)
            z = self.products(x) + moved * along
            by_product, _ = self.slopes(z, torch.zeros_like(along), self.targets)
            return self._mean(x, by_product, by_product * found.sign(), direction)

        return grad

    def _mean(
        self, w: torch.Tensor, by_product: torch.Tensor, by_attack: torch.Tensor, direction: torch.Tensor
    ) -> torch.Tensor:
        if self.weights is not None:
            by_product, by_attack = self.weights * by_product, self.weights * by_attack
        mean = self.combined(by_product) + self.radius * by_attack.mean(dim=1, keepdim=True) * direction
        return mean + self.l2 * w if self.l2 else mean


def dual_norm(w: torch.Tensor, q: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The q-norm of every row, (replicas, 1), and its gradient; 0 where a row is."""
    size = torch.linalg.vector_norm(w, ord=q, dim=1, keepdim=True)
    if q == 1.0:
        return size, w.sign()
    if math.isinf(q):
        top = (w.abs() == size) * w.sign()
        return size, top / top.abs().sum(dim=1, keepdim=True).clamp(min=1.0)
    scaled = w / torch.where(size > 0, size, 1.0)
    return size, scaled if q == 2.0 else scaled.sign() * scaled.abs() ** (q - 1.0)


def attacked_batches(
    problem: AttackedExamples, replicas: int, generator: torch.Generator, *, batch_size: int, replacement: bool
) -> Iterator[AttackedGradient]:
    """Gradients over minibatches of examples that exist."""
    device = generator.device
    X, y = torch.tensor(problem.X, device=device), torch.tensor(problem.y, device=device)
    given = problem.sample_weight
    weights = None if given is None else torch.tensor(given, device=device)
    ones = torch.ones((replicas, batch_size), dtype=torch.float64, device=device)
    slopes, dual = _loss(problem)
    for drawn in indices(len(X), replicas, batch_size, generator, replacement=replacement):
        yield AttackedGradient(
            products=lambda w, drawn=drawn: row_products(drawn, X, w, ones),  # type: ignore[misc]
            combined=lambda factors, drawn=drawn: weighted_rows(drawn, X, factors / batch_size),  # type: ignore[misc]
            targets=y[drawn],
            weights=None if weights is None else weights[drawn],
            slopes=slopes,
            radius=float(problem.radius),
            dual=dual,
            l2=float(problem.l2),
        )


def attacked_fresh_batches(
    problem: GaussianAdversarialRegression, replicas: int, generator: torch.Generator, *, batch_size: int
) -> Iterator[AttackedGradient]:
    """Gradients over fresh Gaussian examples."""
    device = generator.device
    factor = torch.tensor(range_factor(problem.covariance), device=device)
    centre = torch.tensor(problem.weights, device=device)
    rank = factor.shape[1]
    for drawn in normals((replicas, batch_size, rank + 1), generator):
        inputs = drawn[..., :rank] @ factor.T
        yield AttackedGradient(
            products=lambda w, inputs=inputs: torch.bmm(inputs, w.unsqueeze(2)).squeeze(2),  # type: ignore[misc]
            combined=lambda factors, inputs=inputs: (  # type: ignore[misc]
                torch.bmm((factors / batch_size).unsqueeze(1), inputs).squeeze(1)
            ),
            targets=inputs @ centre + problem.label_noise * drawn[..., rank],
            weights=None,
            slopes=squares,
            radius=float(problem.radius),
            dual=float(problem.dual),
            l2=0.0,
        )


def _loss(problem: AttackedExamples) -> tuple[Slopes, float]:
    """The derivatives of its loss, and the order of the norm of the weights in it."""
    if isinstance(problem, RobustUnhinged):
        return unhinged, 2.0
    return squares if isinstance(problem, AdversarialLeastSquares) else logistic, float(problem.dual)
