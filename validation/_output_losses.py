r"""Losses of a network's outputs: one number for each example, with labels that are what the loss takes them for.

=================  ===================================  ======================================================
name               loss of outputs f and a label y       labels
=================  ===================================  ======================================================
``squared``        :math:`|f - y|^2 / 2`                 one target for each output
``logistic``       :math:`\log(1 + e^{-y f})`            -1 and 1, for one output
``cross_entropy``  :math:`\log\sum_k e^{f_k} - f_y`      classes 0, ..., K-1, for K outputs
=================  ===================================  ======================================================
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch

from ..errors import InvalidProblemError

__all__ = ["LOSSES", "Loss", "OutputLoss", "per_example_loss"]

#: Outputs (n, K) and labels to one loss per example, shape (n,).
OutputLoss: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Loss: TypeAlias = str | OutputLoss


def _squared(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    flat = outputs.reshape(len(outputs), -1)
    if y.numel() != flat.numel() or len(y) != len(flat):
        raise InvalidProblemError(
            f"the squared loss needs one target for each output, y of shape {tuple(flat.shape)}; got {tuple(y.shape)}. "
            f"One-hot targets of classes are torch.nn.functional.one_hot(y)."
        )
    return 0.5 * (flat - y.reshape(flat.shape)).square().sum(dim=1)


def _logistic(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    if outputs.numel() != len(outputs) or y.numel() != len(outputs):
        raise InvalidProblemError(
            f"the logistic loss needs one output and one label for each example; got outputs {tuple(outputs.shape)} "
            f"and y {tuple(y.shape)}."
        )
    _refuse((y != 1) & (y != -1), y, "labels of the logistic loss are -1 and 1; of labels 0 and 1 make 2*y - 1")
    signs = y.reshape(-1).to(outputs.dtype)  # the negative of an unsigned label would be none
    return torch.nn.functional.softplus(-signs * outputs.reshape(-1))


def _cross_entropy(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    if outputs.dim() != 2 or outputs.shape[1] < 2 or y.numel() != len(outputs):
        raise InvalidProblemError(
            f"cross-entropy needs at least 2 outputs, shape (n, K), and one class for each example; got outputs "
            f"{tuple(outputs.shape)} and y {tuple(y.shape)}."
        )
    classes = outputs.shape[1]
    bad = (y < 0) | (y >= classes) | (y.long() != y)
    _refuse(bad, y, f"labels of cross-entropy with {classes} outputs are the classes 0 to {classes - 1}")
    # Not torch's own: torch.func differentiates this one under vmap, in any order.
    chosen = outputs.gather(1, y.reshape(-1, 1).long()).squeeze(1)
    return torch.logsumexp(outputs, dim=1) - chosen


LOSSES: dict[str, OutputLoss] = {"squared": _squared, "logistic": _logistic, "cross_entropy": _cross_entropy}


def _refuse(bad: torch.Tensor, y: torch.Tensor, text: str) -> None:
    try:
        found = bool(bad.any())
    except RuntimeError:  # under vmap no value is known; whoever maps has looked at all labels before
        return
    if found:
        raise InvalidProblemError(f"{text}; got {y[bad][0].item():g} (and {int(bad.sum()) - 1} more that do not fit).")


def per_example_loss(loss: Loss) -> OutputLoss:
    """The function of a loss's name; a function is held to giving one loss per example, a module is asked for each.

    Raises
    ------
    InvalidProblemError
        If there is no such name, or a module divides by the weights of whatever batch it is shown.
    """
    if isinstance(loss, torch.nn.Module):
        return _by_example(loss)
    if callable(loss):
        return _Checked(loss)
    if not isinstance(loss, str) or loss not in LOSSES:
        raise InvalidProblemError(
            f"loss must be one of {', '.join(map(repr, LOSSES))} or a function of (outputs, y) that returns one loss "
            f"per example, got {loss!r}."
        )
    return LOSSES[loss]


@dataclass(frozen=True)
class _Checked:
    """A caller's loss, held to giving one number per example."""

    loss: OutputLoss

    def __call__(self, outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        losses = self.loss(outputs, y)
        if not isinstance(losses, torch.Tensor) or losses.shape != (len(outputs),):
            shape = tuple(losses.shape) if isinstance(losses, torch.Tensor) else type(losses).__name__
            raise InvalidProblemError(
                f"the loss must be one number per example, shape ({len(outputs)},), got {shape}. A loss of PyTorch "
                f"that averages over the batch does not with reduction='none'."
            )
        return losses


@dataclass(frozen=True)
class _ByExample:
    """What a loss module makes of every example by itself."""

    module: torch.nn.Module

    def __call__(self, outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.module(outputs[i : i + 1], y[i : i + 1]).reshape(()) for i in range(len(outputs))])


def _by_example(module: torch.nn.Module) -> OutputLoss:
    """A loss module that averages or adds up over the batch, asked example by example."""
    reduction = getattr(module, "reduction", "none")
    if reduction == "none":
        return _Checked(module)
    weighted = isinstance(module, torch.nn.CrossEntropyLoss | torch.nn.NLLLoss) and module.weight is not None
    if weighted and reduction == "mean":
        raise InvalidProblemError(
            f"{type(module).__name__}(weight=...) divides by the weights of the batch that it is shown, so that it is "
            f"no mean over examples, and on one example weights cancel. Give it reduction='none': the loss is then the "
            f"mean over examples of the weighted losses."
        )
    return _ByExample(module)
