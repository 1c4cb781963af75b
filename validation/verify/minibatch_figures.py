"""Pictures of minibatches: risk up to the edge of mean-square stability, and what shuffling does to flat directions."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ... import numerics, theory
from ...numerics import EpochNoise, QuadraticExamples
from ...theory import Optimizer, heavy_ball, sgd
from .. import epochs, stationary
from . import closed_form
from .cases import Setup, seed_of
from .figure_style import GREY, MEASURED, PROPAGATED, THEORY, WRONG, panels
from .minibatch_cases import HEAVY_BALL, SGD
from .minibatch_problems import NoisyProblem, load_noisy_problems
from .problems import Problem

__all__ = ["CAPTIONS", "draw_epochs", "draw_mean_square"]

Array = NDArray[np.float64]

#: File name -> caption.
CAPTIONS = {
    "minibatch_risk.png": "Mean excess risk of real minibatches against the learning rate, up to the largest that has "
    "a covariance: the exact law, the law with the noise at the minimum, its continuous-time limit, and measured runs "
    "with error bars of two standard errors. Hollow: iterates have no fourth moment, and so no error bar.",
    "shuffled_epochs.png": "Variance of the weights against curvature for unit noise, 50 batches an epoch: independent "
    "batches, and shuffled epochs on average and at their ends; measured runs with error bars of two standard errors. "
    "Below the crossover curvature, 3(1 - momentum)/(lr M), shuffled variance no longer grows.",
}
#: Shares of the largest learning rate with a covariance that are measured, and those with few replicas.
SHARES = (0.1, 0.25, 0.4, 0.55, 0.7, 0.8, 0.88)
QUICK_SHARES = (0.25, 0.4)
#: Batches of an epoch, curvatures that are measured, and the optimizers: of the same effective learning rate.
BATCHES = 50
CURVATURES = (0.02, 0.06, 0.2, 0.6, 2.0, 6.0)
SHUFFLED = (sgd(lr=0.1), heavy_ball(lr=0.01, momentum=0.9))


def draw_mean_square(seed: int, *, quick: bool) -> Figure:
    """Plain SGD on Gaussian data, heavy ball on diabetes."""
    problems = load_noisy_problems()
    shown = ((problems["gaussian"], SGD), (problems["diabetes"], HEAVY_BALL))
    figure, axes = panels(2, 2, height=5.0, ratios=(3, 1))
    for (panel, below), (problem, setup) in zip(axes.T, shown, strict=True):
        unit = setup.rule(lr=1.0, **setup.values)
        edge = numerics.mean_square_stability(unit, problem.batches).largest_lr
        line = np.concatenate([np.linspace(0.01, 0.9, 30), 1 - np.geomspace(0.08, 0.01, 8)])
        optimizers = [unit.replace(lr=float(share * edge)) for share in line]
        panel.plot(line, [_exact_risk(o, problem) for o in optimizers], color=THEORY, lw=1.6, label="exact")
        panel.plot(line, [_additive_risk(o, problem) for o in optimizers], color=WRONG, lw=1.4, ls="--",
                   label="noise at the minimum")  # fmt: skip
        panel.plot(line, [_limit_risk(o, problem) for o in optimizers], color=PROPAGATED, lw=1.4, ls=":",
                   label="its continuous-time (SDE) limit")  # fmt: skip
        panel.axvline(1.0, color=GREY, lw=1, ls=":")
        panel.annotate("no covariance", (1, 0.03), (-9, 0), "axes fraction", "offset points", color=GREY, rotation=90)
        for share in QUICK_SHARES if quick else SHARES:
            _draw_measured(panel, below, share, setup, problem, edge, seed, quick=quick)
        panel.set(yscale="log", xlim=(0, 1.06))
        panel.set_title(f"{problem.name}: {setup.rule.name}, batches of {problem.batch_size}")
        below.axhline(1.0, color=THEORY, lw=1.2)
        below.set_xlabel(f"learning rate / largest with a covariance ({edge:.3g})")
        below.sharex(panel)
    axes[0, 0].set_ylabel("mean excess risk")
    axes[1, 0].set_ylabel("measured / exact")
    axes[0, 0].legend(loc="upper left")
    return figure


def _draw_measured(
    panel: Axes, below: Axes, share: float, setup: Setup, problem: NoisyProblem, edge: float, seed: int, *, quick: bool
) -> None:
    """One measured learning rate, with its error bar where there is one."""
    optimizer = setup.rule(lr=share * edge, **setup.values)
    estimate = stationary.stationary_covariance(
        optimizer,
        problem.batches,
        replicas=200 if quick else 1_000,
        rng=seed_of(seed, "mean square", setup.rule.name, str(share)),
        progress=False,
    )
    centred = estimate.samples - estimate.mean
    risks = 0.5 * np.einsum("sri,ij,srj->r", centred, problem.hessian, centred) / len(centred)
    risk, error = float(risks.mean()), 2 * float(risks.std(ddof=1)) / math.sqrt(len(risks))
    fourth = estimate.fourth_moment
    trusted = fourth is None or fourth.trusted
    exact = _exact_risk(optimizer, problem)
    for axes, scale in ((panel, 1.0), (below, exact)):
        axes.errorbar(
            share, risk / scale, error / scale if trusted else None, fmt="o", ms=3.5, lw=1, capsize=2, color=MEASURED,
            mew=1.0, mfc=MEASURED if trusted else "none", zorder=3,
            label="measured" if share == 0.4 and axes is panel else None,
        )  # fmt: skip


def _exact_risk(optimizer: Optimizer, problem: NoisyProblem) -> float:
    return numerics.stationary_covariance(optimizer, problem.hessian, problem.batches).excess_risk


def _additive_risk(optimizer: Optimizer, problem: NoisyProblem) -> float:
    return numerics.stationary_covariance(optimizer, problem.hessian, problem.quadratic.noise).excess_risk


def _limit_risk(optimizer: Optimizer, problem: NoisyProblem) -> float:
    formula = theory.sde_limit(optimizer.rule.free())
    covariance = closed_form.covariance(formula, optimizer, Problem(problem.name, "", problem.quadratic))
    return 0.5 * float(np.vdot(problem.hessian, covariance))


def draw_epochs(seed: int, *, quick: bool) -> Figure:
    """Variance against curvature with independent batches and with shuffled epochs, with and without momentum."""
    figure, axes = panels(1, 2, height=3.6)
    h = np.geomspace(1e-3, 10.0, 120)
    for panel, optimizer in zip(axes[0], SHUFFLED, strict=True):
        hessian, noise = np.diag(h), np.eye(len(h))
        shuffled = EpochNoise(noise, BATCHES)
        white = np.diag(numerics.stationary_covariance(optimizer, hessian, noise).value)
        average, ends = (
            np.diag(numerics.stationary_covariance(optimizer, hessian, shuffled, position=position).value)
            for position in ("average", 0)
        )
        crossover = numerics.crossover_curvature(optimizer, BATCHES)
        panel.axvline(crossover, color=GREY, lw=1, ls=":")
        panel.plot(h, white, color=WRONG, lw=1.4, ls="--", label="independent batches")
        panel.plot(h, average, color=THEORY, lw=1.6, label="shuffled epochs, on average")
        panel.plot(h, ends, color=PROPAGATED, lw=1.6, label="shuffled epochs, at their ends")
        _draw_shuffled(panel, optimizer, seed, quick=quick)
        panel.set(xscale="log", yscale="log", xlabel="curvature")
        panel.set_title(f"{optimizer!r}, crossover at {crossover:.2g}")
    axes[0, 0].set_ylabel("variance / noise")
    axes[0, 1].legend(loc="upper right")
    axes[0, 1].sharey(axes[0, 0])
    return figure


def _draw_shuffled(panel: Axes, optimizer: Optimizer, seed: int, *, quick: bool) -> None:
    """Measured variances: one direction for each curvature, of examples with one Hessian."""
    slopes = np.random.default_rng(24).normal(size=(BATCHES, len(CURVATURES)))
    slopes = (slopes - slopes.mean(axis=0)) / slopes.std(axis=0)
    hessians = np.broadcast_to(np.diag(CURVATURES), (BATCHES, len(CURVATURES), len(CURVATURES)))
    problem = QuadraticExamples(hessians, slopes)
    estimates = epochs.epoch_covariance(
        optimizer, problem, batch_size=1, replicas=200 if quick else 800, positions=("average", 0),
        rng=seed_of(seed, "epochs", optimizer.rule.name), progress=False,
    )  # fmt: skip
    for number, estimate in enumerate(estimates):
        variances, errors = np.diag(estimate.value), np.diag(estimate.standard_error)
        panel.errorbar(
            CURVATURES, variances, 2 * errors, fmt="o", ms=3, lw=1, capsize=2, color=MEASURED, zorder=3,
            label=None if number else "measured",
        )  # fmt: skip
