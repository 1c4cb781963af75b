"""The picture of excess risk over time, through a step decay and along half a cosine: exact lines, measured dots."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch.optim.lr_scheduler import CosineAnnealingLR, StepLR

from ... import numerics
from ...numerics import Schedule, StationaryCovariance, TransientCovariance
from ...theory import Optimizer
from ..schedules import SchedulerFactory
from ..trajectory import trajectory
from .cases import seed_of
from .figure_style import GREY, INJECTED, MEASURED, PROPAGATED, THEORY, panels
from .problems import Problem, load_problems
from .time_cases import DROP, PLAIN

__all__ = ["CAPTION", "draw_over_time"]

Array = NDArray[np.float64]

CAPTION = (
    "Mean excess risk of the real torch.optim.SGD with momentum, from its stationary law, while a real lr_scheduler "
    "lowers the learning rate: measured, with error bars of two standard errors, and the exact law. Shaded: what is "
    "left of the law at the last drop (for the cosine, at the start), and what noise has built since."
)
#: Steps between two drops, how many phases there are, and how often a run is looked at.
EVERY, PHASES, SPACING = 40, 3, 4
STEPS = EVERY * PHASES


def draw_over_time(seed: int, *, quick: bool) -> Figure:
    """Draw both schedules, side by side, with the quotient of measured and exact below."""
    problem = load_problems()[0]
    optimizer = PLAIN.on(problem)
    lr = float(optimizer.values["lr"])
    law = numerics.stationary_covariance(optimizer, problem.quadratic.hessian, problem.quadratic.noise)
    phases = [Schedule.constant(EVERY, lr / DROP**k) for k in range(PHASES)]
    replicas = 4_000 if quick else 20_000
    figure, axes = panels(2, 2, height=4.8, ratios=(3, 1))
    shown: tuple[tuple[str, list[Schedule], SchedulerFactory], ...] = (
        (f"step decay: lr = {lr:g}, divided by {DROP} every {EVERY} steps", phases, _step_lr),
        (f"half a cosine: lr = {lr:g} to 0 in {STEPS} steps", [Schedule.cosine(STEPS, lr)], _cosine_lr),
    )
    for (above, below), (title, pieces, scheduler) in zip(axes.T, shown, strict=True):
        exact = _exact(above, optimizer, pieces, law, problem)
        record = range(0, STEPS + 1, SPACING)
        run = trajectory(
            optimizer, scheduler, problem.quadratic, start=optimizer, record=record, replicas=replicas,
            engine="torch.optim", rng=seed_of(seed, "over time", title), progress=False,
        )  # fmt: skip
        error = 2 * run.excess_risk_standard_error
        points = {"fmt": "o", "ms": 2.6, "lw": 0.9, "capsize": 1.5, "color": MEASURED, "zorder": 4}
        above.errorbar(run.times, run.excess_risk, error, label="measured", **points)
        above.set_title(title)
        below.axhline(1.0, color=THEORY, lw=1.2)
        below.errorbar(run.times, run.excess_risk / exact[run.times], error / exact[run.times], **points)
        below.set_xlabel("steps")
        below.sharex(above)
        below.sharey(axes[1, 0])
        above.sharey(axes[0, 0])
    axes[0, 0].set(yscale="log", xlim=(-2, STEPS + 2), ylabel="mean excess risk")
    axes[1, 0].set_ylabel("measured / exact")
    axes[0, 1].legend(loc="upper right")
    return figure


def _exact(
    panel: Axes, optimizer: Optimizer, pieces: Sequence[Schedule], law: StationaryCovariance, problem: Problem
) -> Array:
    """Draw the exact risk and its two parts, piece by piece, and return it at every step."""
    start: StationaryCovariance | TransientCovariance = law
    risks = [law.excess_risk]
    done = 0
    for piece in pieces:
        path = numerics.trajectory(
            optimizer, piece, problem.quadratic.hessian, problem.quadratic.noise, start=start,
            record=range(piece.steps + 1),
        )  # fmt: skip
        times = done + path.times
        floor = np.full(len(times), 1e-6)
        labels = ("left of the law before", "built by noise since") if not done else (None, None)
        parts = (path.propagated_risk, PROPAGATED), (path.injected_risk, INJECTED)
        for (part, color), label in zip(parts, labels, strict=True):
            panel.fill_between(times, floor, np.maximum(part, floor), color=color, alpha=0.35, lw=0, label=label)
            panel.plot(times, np.maximum(part, floor), color=color, lw=0.9)
        if done:
            panel.axvline(done, color=GREY, lw=0.8, ls=":")
        panel.plot(times, path.excess_risk, color=THEORY, lw=1.6, zorder=3, label=None if done else "exact")
        risks += path.excess_risk[1:].tolist()
        start, done = path.final, done + piece.steps
    panel.set_ylim(bottom=0.3 * min(risks))
    return np.array(risks)


def _step_lr(optim: torch.optim.Optimizer) -> StepLR:
    return StepLR(optim, step_size=EVERY, gamma=1 / DROP)


def _cosine_lr(optim: torch.optim.Optimizer) -> CosineAnnealingLR:
    return CosineAnnealingLR(optim, T_max=STEPS)
