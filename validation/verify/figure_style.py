"""What the figures share: colours, and panels in one style."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

__all__ = ["GREY", "INJECTED", "MEASURED", "PROPAGATED", "STYLE", "THEORY", "WRONG", "panels"]

THEORY, WRONG, MEASURED, GREY = "#0b5fa5", "#d1495b", "#1b1b1b", "#8a8f98"
PROPAGATED, INJECTED = "#e09f3e", "#5fa8a0"
STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 9,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "lines.markeredgewidth": 0,
}


def panels(rows: int, columns: int, *, height: float, ratios: tuple[float, ...] | None = None) -> tuple[Figure, Any]:
    """A figure of panels in one style, and the array of its axes."""
    figure = Figure(figsize=(max(4.2, 3.1 * columns if columns > 2 else 4.1 * columns), height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, height_ratios=ratios)
    for panel in axes.flat:
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=7)
    return figure, axes
