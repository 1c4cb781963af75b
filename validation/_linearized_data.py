"""The data of a linearised network, checked: inputs and targets as tensors in double precision."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ..errors import InvalidProblemError

__all__ = ["as_array", "checked_inputs", "checked_targets"]

Array = NDArray[np.float64]


def as_array(a: torch.Tensor) -> Array:
    """A tensor as an array in double precision."""
    return np.asarray(a.detach().cpu().numpy(), dtype=np.float64)


def checked_inputs(x: torch.Tensor | ArrayLike, device: str | torch.device) -> torch.Tensor:
    """Inputs of shape (N, ...)."""
    given = x if isinstance(x, torch.Tensor) else torch.tensor(np.asarray(x))
    if given.dim() < 2 or not len(given):
        raise InvalidProblemError(f"x must have shape (N, ...), one example a row, got {tuple(given.shape)}.")
    found = given.detach().to(device=device, dtype=torch.float64)
    if not bool(torch.isfinite(found).all()):
        raise InvalidProblemError(f"x has {int((~torch.isfinite(found)).sum())} entries that are not finite.")
    return found


def checked_targets(
    y: torch.Tensor | ArrayLike, loss: str, examples: int, outputs: int, device: str | torch.device
) -> torch.Tensor:
    """Targets of shape (N, K), or classes of shape (N,) for cross-entropy."""
    given = (y if isinstance(y, torch.Tensor) else torch.tensor(np.asarray(y))).detach().to(device)
    if loss == "cross_entropy":
        whole = not given.is_floating_point() and given.shape == (examples,)
        if outputs < 2 or not whole or bool((given < 0).any() | (given >= outputs).any()):
            raise InvalidProblemError(
                f"cross-entropy needs at least 2 outputs and classes of shape ({examples},) from 0 to {outputs - 1}; "
                f"got {outputs} outputs and y of shape {tuple(given.shape)}."
            )
        return given
    if given.numel() != examples * outputs:
        hint = " One-hot targets are torch.nn.functional.one_hot(y)." if given.shape == (examples,) else ""
        raise InvalidProblemError(
            f"y must have shape ({examples}, {outputs}), one target for each output, got {tuple(given.shape)}.{hint}"
        )
    found = given.double().reshape(examples, outputs)
    if not bool(torch.isfinite(found).all()):
        raise InvalidProblemError(f"y has {int((~torch.isfinite(found)).sum())} entries that are not finite.")
    return found
