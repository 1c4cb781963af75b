r"""Adversarial weight perturbation (AWP), measured: real minibatch runs whose gradients are taken at perturbed weights.

On each minibatch, at weights w of gradient g, an optimizer is given the gradient at :math:`w + v` with

.. math:: v = \rho\, g/|g| \;(\text{"normalised"}), \qquad v = \rho\,|w|\, g/|g| \;(\text{"relative"}), \qquad
          v = \rho\, g \;(\text{"gradient"}) ,

on the same examples, attacked at w. "relative" is AWP as published, for a model of one layer; "normalised" is
sharpness-aware minimisation. Only "gradient" is linear in g: for plain SGD it is the rule `sam`, of which numerics
knows the exact law.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch

from ..numerics import Quadratic
from ..numerics._arrays import choice, nonnegative
from ..theory import Optimizer
from ._attacked_batches import AttackedGradient
from ._draws import Gradient
from ._gradients import Measurable
from ._runs import Engine, set_up
from .stationary import Estimate, measured

__all__ = ["Perturbation", "perturbed_covariance"]

Perturbation: TypeAlias = Literal["normalised", "relative", "gradient"]
#: Maps gradients and weights, (replicas, d), to the factors of the gradients, (replicas, 1).
_FACTORS: Mapping[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "normalised": lambda g, w: 1.0 / _length(g),
    "relative": lambda g, w: torch.linalg.vector_norm(w, dim=1, keepdim=True) / _length(g),
    "gradient": lambda g, w: torch.ones_like(g[:, :1]),
}


def perturbed_covariance(
    optimizer: Optimizer,
    problem: Measurable,
    rho: float,
    *,
    perturbation: Perturbation = "normalised",
    replicas: int,
    steps: int | Literal["auto"] = "auto",
    snapshots: int | Literal["auto"] = "auto",
    batch_size: int | None = None,
    replacement: bool = True,
    engine: Engine = "rule",
    rng: np.random.Generator | int | None = None,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Estimate:
    r"""Measure the stationary covariance of the weights where gradients are taken at perturbed weights.

    Parameters
    ----------
    optimizer : Optimizer
        What steps with the perturbed gradient; every hyper-parameter bound.
    problem
        As in `stationary_covariance`.
    rho : float
        Size of the perturbation, at least 0.
    perturbation : {"normalised", "relative", "gradient"}
        Its length: rho; rho times that of the weights; rho times that of the minibatch's gradient.
    replicas : int
    steps, snapshots : int or "auto"
        As in `stationary_covariance`. "auto" plans for the optimizer without perturbation, which adds curvature and so
        makes a run forget its start sooner.
    batch_size : int, optional
    replacement : bool
    engine : {"rule", "torch.optim"}
    rng : numpy.random.Generator or int, optional
    device : str or torch.device
    progress : bool
        As in `stationary_covariance`.

    Returns
    -------
    Estimate
        Nothing is known of its fourth moment.

    Raises
    ------
    InvalidProblemError
        If rho is negative, or an argument does not fit.
    NonStationaryError
        If iterates left the finite numbers.

    Notes
    -----
    The inputs of an adversarial problem are attacked at w, before the perturbation, and kept. `stationary_covariance`
    of the rule `sam` attacks them again at w + v, which is the same within a smooth piece of an attack of norm ``inf``.

    References
    ----------
    wu2020awp, foret2021

    Examples
    --------
    In one dimension a normalised perturbation moves the weight by a fixed length, away from the minimum:

    >>> from sgdcov.numerics import Quadratic
    >>> from sgdcov.theory import sgd
    >>> problem = Quadratic(hessian=[[1.0]], noise=[[1.0]], optimum=[0.0])
    >>> law = perturbed_covariance(sgd(lr=0.1), problem, 0.5, replicas=2000, rng=0)
    >>> bool(law.value[0, 0] > 0.1 / (2 - 0.1))
    True
    """
    perturbation, rho = choice("perturbation", perturbation, get_args(Perturbation)), nonnegative("rho", rho)
    setup = set_up(
        optimizer, problem, replicas=replicas, slots=("w",), batch_size=batch_size, replacement=replacement,
        engine=engine, rng=rng, device=device,
    )  # fmt: skip
    quadratic: Quadratic = setup.quadratic
    source = replace(
        setup.source,
        gradients=_perturbed(setup.source.gradients, rho, perturbation),
        kind=f"{setup.source.kind}, at weights perturbed by rho={rho:g} ({perturbation})",
        noise=quadratic.noise,
    )
    return measured(replace(setup, source=source), steps, snapshots, progress=progress)


def _perturbed(gradients: Iterator[Gradient], rho: float, perturbation: Perturbation) -> Iterator[Gradient]:
    factor = _FACTORS[perturbation]
    for own in gradients:

        def grad(w: torch.Tensor, own: Gradient = own) -> torch.Tensor:
            uphill = own(w)
            there = own.held(w) if isinstance(own, AttackedGradient) else own
            return there(w + rho * factor(uphill, w) * uphill)

        yield grad


def _length(g: torch.Tensor) -> torch.Tensor:
    """Of every row; infinite where a gradient is 0 and has no direction."""
    size = torch.linalg.vector_norm(g, dim=1, keepdim=True)
    return torch.where(size > 0, size, torch.inf)
