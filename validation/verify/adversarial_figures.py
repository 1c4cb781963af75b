"""Pictures of attacks: curvature, noise and variance as the radius grows, and the outputs of a linearised network."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ... import numerics, theory
from ...numerics import GaussianAdversarialRegression
from ...theory import Optimizer, heavy_ball, sgd
from .. import radius, stationary
from .adversarial_cases import adversarial_case
from .adversarial_checks import run
from .adversarial_controls import additive
from .adversarial_problems import AdversarialProblem, load_adversarial_problems
from .cases import seed_of
from .figure_style import GREY, MEASURED, PROPAGATED, THEORY, WRONG, panels

__all__ = ["CAPTIONS", "draw_network", "draw_radius"]

Array = NDArray[np.float64]

#: File name -> caption.
CAPTIONS = {
    "radius.png": "Against the radius of the attack: on fresh Gaussian data, the largest curvature, the gradient noise "
    "of a batch and the variance of all weights, by the law and measured; dashed, with the mean of the examples' "
    "Hessians, which lacks the kinks' curvature. Last, the variances of the robust unhinged loss by theory's formulas "
    "and measured. Error bars of two standard errors.",
    "network.png": "A linearised network of 1,057 parameters on attacked digits, minibatches of the real "
    "torch.optim.SGD. Left, every variance and covariance of its outputs on the training inputs, measured against "
    "predicted; right, variances along the principal directions of the law: exact, measured with error bars of two "
    "standard errors, and with the noise at the minimum taken for the noise everywhere.",
}
#: Shares of the collapse radius, on lines and where there are runs.
LINE = np.linspace(0.0, 0.85, 25)
MEASURED_AT = (0.0, 0.15, 0.3, 0.45, 0.6, 0.75)
QUICK_AT = (0.0, 0.4)
POPULATION = heavy_ball(lr=0.02, momentum=0.8)
UNHINGED = sgd(lr=0.1)


def draw_radius(seed: int, *, quick: bool) -> Figure:
    """Three quantities of Gaussian data, and the variances of the unhinged loss."""
    problems = load_adversarial_problems()
    figure, axes = panels(2, 2, height=4.8)
    replicas, shares = (100, np.array(QUICK_AT)) if quick else (800, np.array(MEASURED_AT))
    _draw_population(axes.flat[:3], problems["gaussian-l2"], shares, seed_of(seed, "radius", "gaussian"), replicas)
    _draw_unhinged(axes.flat[3], problems["unhinged"], shares, seed_of(seed, "radius", "unhinged"), replicas)
    return figure


def _draw_population(
    axes: NDArray[np.object_], problem: AdversarialProblem, shares: Array, seed: int, replicas: int
) -> None:
    collapse = problem.problem.collapse_radius
    size = problem.batch_size
    law = numerics.radius_path(problem.make, LINE * collapse, POPULATION, size)
    found = radius.radius_path(
        problem.make, shares * collapse, POPULATION, size, replicas=replicas, rng=seed, progress=False
    )
    blunt, narrow = np.array([_without_kink(problem.make(r), POPULATION, size) for r in law.radii]).T
    shown = (
        ("largest curvature", law.curvature, found.curvature, found.curvature_error, blunt),
        ("gradient noise, tr C", law.gradient_noise, found.gradient_noise, found.gradient_noise_error, None),
        ("total variance, tr S", law.spread, found.spread, found.spread_error, narrow),
    )
    for axis, (name, line, dots, errors, wrong) in zip(axes, shown, strict=True):
        axis.plot(law.radii, line, color=THEORY, lw=1.6, label="law, with the kinks' curvature")
        if wrong is not None:
            axis.plot(law.radii, wrong, color=WRONG, lw=1.4, ls="--", label="mean Hessian of examples")
        _dots(axis, found.radii, dots, errors, "measured")
        axis.set(xlabel="radius", ylabel=name)
    axes[0].set_title(f"Gaussian data: {POPULATION!r}")
    axes[0].legend(loc="upper left")


def _without_kink(problem: GaussianAdversarialRegression, optimizer: Optimizer, size: int) -> tuple[float, float]:
    """Largest curvature and total variance that the mean Hessian of the examples would give."""
    hessian = problem.mean_ae_hessian()
    law = numerics.stationary_covariance(optimizer, hessian, problem.noise(size))
    return float(np.linalg.eigvalsh(hessian)[-1]), float(np.trace(law.value))


def _draw_unhinged(axis: Axes, problem: AdversarialProblem, shares: Array, seed: int, replicas: int) -> None:
    ordinary = problem.ordinary
    pull = ordinary.y @ ordinary.X / ordinary.num_examples
    size, noise = float(np.linalg.norm(pull)), ordinary.noise(problem.batch_size)  # the same at every radius
    u = pull / size
    noises = float(u @ noise @ u), float(np.trace(noise) - u @ noise @ u)
    line, dots = LINE * ordinary.collapse_radius, shares * ordinary.collapse_radius
    shared = {"decay": ordinary.l2, "norm_m": size, "lr": float(UNHINGED.values["lr"])}
    across = theory.unhinged_covariance(theory.sgd).lambdify()(**shared, noise=noises[1], radius=line)
    along = theory.unhinged_covariance(theory.sgd).lambdify()(**shared, noise=noises[0], radius=0.0)  # at any radius
    axis.axhline(float(along), color=PROPAGATED, lw=1.6, label="along the minimiser")
    axis.plot(line, across, color=THEORY, lw=1.6, label="across it, in all directions")
    for number, r in enumerate(dots):
        estimate = stationary.stationary_covariance(
            UNHINGED, problem.make(float(r)), replicas=replicas, batch_size=problem.batch_size, rng=seed + number,
            progress=False,
        )  # fmt: skip
        centred = estimate.samples - estimate.mean
        towards = (centred @ u) ** 2
        for values in (towards, np.sum(centred**2, axis=2) - towards):
            each = values.mean(axis=0)
            error = float(each.std(ddof=1) / np.sqrt(len(each)))
            _dots(axis, np.array([r]), np.array([each.mean()]), np.array([error]), None)
    axis.axvline(ordinary.collapse_radius, color=GREY, lw=1, ls=":")
    axis.set(xlabel="radius", ylabel="variance", ylim=(0, None))
    axis.set_title(f"robust unhinged loss: {UNHINGED!r}")
    axis.legend(loc="upper right")


def _dots(axis: Axes, x: Array, y: Array, errors: Array, label: str | None) -> None:
    axis.errorbar(x, y, 2 * errors, fmt="o", ms=3, lw=1, capsize=2, color=MEASURED, zorder=3, label=label)


def draw_network(seed: int, *, quick: bool) -> Figure:
    """Covariances of a linearised network's outputs, and variances along the law's principal directions."""
    case = adversarial_case("network", "torch.optim", quick=quick, seed=seed, label="figure")
    network, estimate = case.problem.problem, run(case, ("w",))
    exact, wrong = case.problem.law(case.optimizer).value, additive(case)
    figure, axes = panels(1, 2, height=3.6)
    left, right = axes.flat
    predicted, measured, blunt = (network.function_covariance(c) for c in (exact, estimate.value, wrong))
    upper = np.triu_indices(len(predicted))
    reach = [min(predicted.min(), measured.min()), 1.05 * max(predicted.max(), measured.max())]
    left.plot(reach, reach, color=THEORY, lw=1.2, label="measured = predicted")
    left.plot(blunt[upper], measured[upper], ".", ms=3, color=WRONG, alpha=0.4, label="noise at the minimum")
    left.plot(predicted[upper], measured[upper], ".", ms=3, color=MEASURED, alpha=0.6, label="exact law")
    left.set(xlabel="predicted covariance of outputs", ylabel="measured")
    left.set_title(f"{case.optimizer!r}, batches of {case.problem.batch_size}")
    left.legend(loc="lower right")
    values, vectors = np.linalg.eigh(exact)
    order, ranks = np.argsort(-values), np.linspace(1.0, len(values), len(values))
    right.plot(ranks, values[order], color=THEORY, lw=1.6, label="exact")
    right.plot(ranks, np.einsum("ij,ik,kj->j", vectors, wrong, vectors)[order], color=WRONG, lw=1.4, ls="--",
               label="noise at the minimum")  # fmt: skip
    squares = (((estimate.samples - estimate.mean) @ vectors[:, order]) ** 2).mean(axis=0)
    _dots(right, ranks, squares.mean(axis=0), squares.std(axis=0, ddof=1) / np.sqrt(len(squares)), "measured")
    right.set(xlabel="principal direction", ylabel="variance", yscale="log")
    right.legend(loc="upper right")
    return figure
