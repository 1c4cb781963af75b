"""The result as pictures: entries against their prediction, ellipses over iterates, excess risk up to the edge."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ... import numerics
from ...theory import Optimizer, heavy_ball, sgd
from .. import stationary
from . import closed_form
from .adversarial_figures import CAPTIONS as ADVERSARIAL_CAPTIONS
from .adversarial_figures import draw_network, draw_radius
from .cases import Setup, seed_of, setup_of
from .controls import commuting_covariance, sde_covariance
from .figure_style import GREY, MEASURED, STYLE, THEORY, WRONG, panels
from .minibatch_figures import CAPTIONS as MINIBATCH_CAPTIONS
from .minibatch_figures import draw_epochs, draw_mean_square
from .problems import Problem, load_problems
from .result import Verification
from .time_figure import CAPTION, draw_over_time

__all__ = ["FIGURES", "draw_figures"]

Array = NDArray[np.float64]
Show = Callable[[str, int, int], None]

#: File name -> caption.
FIGURES = {
    "entries.png": "Every entry of the weights' covariance, predicted and measured, as a correlation (divided by the "
    "predicted standard deviations), with error bars of two standard errors; below, the difference in standard errors.",
    "ellipses.png": "Iterates of the real torch.optim.SGD at a large learning rate, along two eigenvectors of the "
    "Hessian, and the ellipses of two standard deviations that each prediction gives.",
    "learning_rates.png": "Mean excess risk tr(H S)/2 against the learning rate, up to the stability edge: the exact "
    "law, the continuous-time limit, and measured runs with error bars of two standard errors.",
    "over_time.png": CAPTION,
    **MINIBATCH_CAPTIONS,
    **ADVERSARIAL_CAPTIONS,
}
#: Shares of the largest stable learning rate that are measured.
SHARES = (0.1, 0.25, 0.4, 0.55, 0.7, 0.8, 0.88, 0.94, 0.975)


def draw_figures(verification: Verification, folder: Path, *, show: Show) -> list[Path]:
    """Draw the figures into a folder; those that need runs of their own measure them."""
    makers: list[Callable[[], Figure | None]] = [
        lambda: _entries(verification),
        lambda: _ellipses(verification),
        lambda: _learning_rates(verification),
        lambda: draw_over_time(verification.seed, quick=verification.quick),
        lambda: draw_mean_square(verification.seed, quick=verification.quick),
        lambda: draw_epochs(verification.seed, quick=verification.quick),
        lambda: draw_radius(verification.seed, quick=verification.quick),
        lambda: draw_network(verification.seed, quick=verification.quick),
    ]
    written: list[Path] = []
    with matplotlib.rc_context(STYLE):
        _draw(makers, folder, written, show)
    return written


def _draw(makers: list[Callable[[], Figure | None]], folder: Path, written: list[Path], show: Show) -> None:
    for done, (name, make) in enumerate(zip(FIGURES, makers, strict=True)):
        show(f"drawing {name}", done, len(FIGURES))
        figure = make()
        if figure is not None:
            FigureCanvasAgg(figure)
            figure.savefig(folder / name, dpi=160)
            written.append(folder / name)


def _entries(verification: Verification) -> Figure | None:
    """One row of the real torch.optim.SGD for each problem, heavy ball where it ran."""
    chosen = {}
    for row in verification.rows:
        name = row.case.problem.name
        if row.case.engine != "torch.optim" or row.measurement is None:
            continue
        if name not in chosen or row.case.optimizer.rule is heavy_ball:
            chosen[name] = (row.case, row.measurement)
    if not chosen:
        return None
    figure, axes = panels(2, len(chosen), height=4.8, ratios=(3, 1.2))
    for (case, m), (above, below) in zip(chosen.values(), axes.T, strict=True):
        live = np.ix_(case.problem.live, case.problem.live)
        deviation = np.sqrt(np.diag(m.predicted[live]))
        scale = np.outer(deviation, deviation)
        upper = np.triu_indices(len(deviation), k=1)
        x, y, error = ((a[live] / scale)[upper] for a in (m.predicted, m.measured, m.standard_error))
        own, own_error = (np.diag(a[live] / scale) for a in (m.measured, m.standard_error))
        faint = 0.25 if len(x) > 200 else 0.9
        low = min(x.min(), y.min()) - 0.05
        above.plot([low, 1.1], [low, 1.1], color=THEORY, lw=1.2, zorder=3, label="measured = predicted")
        _with_errors(above, x, y, error, MEASURED, faint, "covariances")
        beside = 1.0 + np.linspace(-0.03, 0.03, len(own))  # all predicted as 1: side by side
        _with_errors(above, beside, own, own_error, WRONG, max(faint, 0.5), "variances")
        above.set_title(f"{case.problem.name}: {case.optimizer.rule.name}, lr = {case.optimizer.values['lr']:g}")
        z = np.concatenate([(y - x) / error, (own - 1.0) / own_error])
        below.axhspan(-2, 2, color=THEORY, alpha=0.12, lw=0)
        below.axhline(0, color=THEORY, lw=0.8)
        below.plot(x, z[: len(x)], ".", ms=4, mew=0, color=MEASURED, alpha=faint)
        below.plot(beside, z[len(x) :], ".", ms=4, mew=0, color=WRONG, alpha=max(faint, 0.5))
        reach = max(4.0, 1.1 * float(np.max(np.abs(z))))
        below.set(ylim=(-reach, reach), xlabel="predicted correlation")
        below.sharex(above)
        above.locator_params(nbins=5)
    axes[0, 0].set_ylabel("measured, same scale")
    axes[1, 0].set_ylabel("difference / s.e.")
    axes[0, 0].legend(loc="upper left")
    return figure


def _with_errors(axes: Axes, x: Array, y: Array, error: Array, color: str, alpha: float, label: str) -> None:
    axes.errorbar(x, y, 2 * error, fmt=".", ms=4, mew=0, lw=0.8, color=color, alpha=alpha, label=label, zorder=2)


def _ellipses(verification: Verification) -> Figure:
    """The first and the last eigenvector of the problem that does not commute."""
    problem = load_problems()[0]
    optimizer = setup_of(sgd).on(problem, 0.85)
    estimate = stationary.stationary_covariance(
        optimizer,
        problem.quadratic,
        replicas=4_000,
        snapshots=1,
        engine="torch.optim",
        rng=seed_of(verification.seed, "ellipses"),
        progress=False,
    )
    right = np.asarray(numerics.stationary_covariance(optimizer, problem.quadratic.hessian, problem.quadratic.noise))
    h, vectors = closed_form.eigenbasis(problem)
    wrong = {
        "continuous-time (SDE) limit": sde_covariance(optimizer, problem),
        "H and C taken to commute": commuting_covariance(optimizer, problem),
    }
    first, second = _plane(right, wrong.values(), vectors)
    plane = vectors[:, [first, second]]
    cloud = (estimate.samples[0] - problem.quadratic.optimum) @ plane
    reach = 3.6 * np.sqrt(np.diag(plane.T @ right @ plane))
    figure, axes = panels(1, 2, height=4.2)
    for panel, (name, covariance) in zip(axes[0], wrong.items(), strict=True):
        panel.plot(*cloud.T, ".", ms=2.2, mew=0, color=GREY, alpha=0.7, zorder=1)
        for label, value, color, style in (("exact", right, THEORY, "-"), (name, covariance, WRONG, "--")):
            value = plane.T @ value @ plane
            panel.plot(*_ellipse(value), color=color, ls=style, lw=1.8, label=label, zorder=2)
        panel.set(xlim=(-reach[0], reach[0]), ylim=(-reach[1], 1.35 * reach[1]))
        panel.set(xlabel=f"along the eigenvector of h = {h[first]:.2g}")
        panel.legend(loc="upper center")
    axes[0, 0].set_ylabel(f"along the eigenvector of h = {h[second]:.2g}")
    figure.suptitle(
        f"{len(cloud):,} iterates of torch.optim.SGD, lr = {optimizer.values['lr']:g} "
        f"({optimizer.values['lr'] * h[-1] / 2:.0%} of the largest stable one)",
        fontsize=9,
    )
    return figure


def _plane(right: Array, wrong: Iterable[Array], vectors: Array) -> tuple[int, int]:
    """The pair of eigenvectors, in whose plane the wrong predictions are worst."""
    pairs = list(itertools.combinations(range(vectors.shape[1]), 2))

    def shortfall(pair: tuple[int, int]) -> float:
        plane = vectors[:, pair]
        inverse = np.linalg.inv(plane.T @ right @ plane)
        return min(float(np.linalg.norm(inverse @ plane.T @ value @ plane - np.eye(2))) for value in wrong)

    wrong = list(wrong)
    return max(pairs, key=shortfall)[::-1]


def _ellipse(covariance: Array) -> Array:
    """Two standard deviations in every direction, shape (2, points)."""
    angle = np.linspace(0.0, 2.0 * np.pi, 200)
    return np.asarray(2.0 * np.linalg.cholesky(covariance) @ np.stack([np.cos(angle), np.sin(angle)]))


def _learning_rates(verification: Verification) -> Figure:
    """Plain SGD and heavy ball on the problem that does not commute."""
    problem = load_problems()[0]
    figure, axes = panels(2, 2, height=5.0, ratios=(3, 1))
    for (panel, below), rule in zip(axes.T, (sgd, heavy_ball), strict=True):
        setup = setup_of(rule)
        edge = numerics.max_learning_rate(setup.on(problem), problem.quadratic.hessian)
        line = np.concatenate([np.linspace(0.01, 0.95, 60), 1 - np.geomspace(0.05, 0.005, 25)])
        optimizers = [setup.on(problem).replace(lr=float(s * edge)) for s in line]
        exact = [_exact_risk(o, problem) for o in optimizers]
        limit = [_risk(sde_covariance(o, problem), problem) for o in optimizers]
        measured = np.array([_measured_risk(setup, share, problem, verification) for share in SHARES])
        panel.axvline(1.0, color=GREY, lw=1, ls=":")
        panel.annotate("stability edge", (1, 0.03), (-22, 0), "axes fraction", "offset points", color=GREY, rotation=90)
        panel.plot(line, exact, color=THEORY, lw=1.6, label="exact")
        panel.plot(line, limit, color=WRONG, lw=1.4, ls="--", label="continuous-time (SDE) limit")
        panel.errorbar(
            measured[:, 0] / edge, measured[:, 1], 2 * measured[:, 2], fmt="o", ms=3.5, lw=1, capsize=2, color=MEASURED,
            label="measured", zorder=3,
        )  # fmt: skip
        panel.set(yscale="log", xlim=(0, 1.03))
        panel.set_title(f"{problem.name}: {rule.name}")
        truth = np.array([_exact_risk(setup.on(problem, share), problem) for share in SHARES])
        below.axhline(1.0, color=THEORY, lw=1.2)
        below.errorbar(
            measured[:, 0] / edge, measured[:, 1] / truth, 2 * measured[:, 2] / truth, fmt="o", ms=3, lw=1, capsize=2,
            color=MEASURED,
        )  # fmt: skip
        below.set_xlabel(f"learning rate / largest stable one ({edge:.3g})")
        below.sharex(panel)
    axes[0, 0].set_ylabel("mean excess risk")
    axes[1, 0].set_ylabel("measured / exact")
    axes[0, 0].legend(loc="upper left")
    return figure


def _measured_risk(
    setup: Setup, share: float, problem: Problem, verification: Verification
) -> tuple[float, float, float]:
    """Learning rate, mean excess risk about the mean, and its standard error over replicas."""
    optimizer = setup.on(problem, share)
    estimate = stationary.stationary_covariance(
        optimizer,
        problem.quadratic,
        replicas=1_000 if verification.quick else 4_000,
        rng=seed_of(verification.seed, "learning rates", setup.rule.name, str(share)),
        progress=False,
    )
    centred = estimate.samples - estimate.mean
    risks = 0.5 * np.einsum("sri,ij,srj->r", centred, problem.quadratic.hessian, centred) / len(centred)
    return float(optimizer.values["lr"]), float(risks.mean()), float(risks.std(ddof=1) / np.sqrt(len(risks)))


def _exact_risk(optimizer: Optimizer, problem: Problem) -> float:
    return numerics.stationary_covariance(optimizer, problem.quadratic.hessian, problem.quadratic.noise).excess_risk


def _risk(covariance: Array, problem: Problem) -> float:
    return 0.5 * float(np.vdot(problem.quadratic.hessian, covariance))
