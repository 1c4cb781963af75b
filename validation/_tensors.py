"""A caller's data as tensors, checked: the one place where anything becomes a tensor."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import DataLoader, Dataset

from ..errors import InvalidProblemError
from ..numerics._arrays import finite_array

__all__ = ["as_array", "as_tensor", "checked_device", "checked_inputs", "checked_targets"]

Array = NDArray[np.float64]


def as_array(a: torch.Tensor) -> Array:
    """A tensor as an array in double precision."""
    return np.asarray(a.detach().cpu().numpy(), dtype=np.float64)


def checked_device(device: str | torch.device) -> torch.device:
    """A device that there is.

    Raises
    ------
    InvalidProblemError
    """
    try:
        known = torch.device(device)
        torch.empty(0, device=known)
    except (RuntimeError, TypeError, ValueError, OverflowError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InvalidProblemError(
            f"device must name a device of PyTorch, as 'cpu' or 'cuda:0', got {device!r} ({reason})."
        ) from error
    return known


def as_tensor(name: str, a: object, device: str | torch.device) -> torch.Tensor:
    """Real numbers as a detached tensor: floats in double precision, integers and booleans as they are.

    Raises
    ------
    InvalidProblemError
        If it holds no numbers, or is something to make data of and not the data.
    """
    if isinstance(a, DataLoader | Dataset):
        raise InvalidProblemError(
            f"{name} is a {type(a).__name__}, not the data: give tensors with one example a row, as "
            f"x, y = map(torch.stack, zip(*dataset)) or map(torch.cat, zip(*loader))."
        )
    if isinstance(a, torch.Tensor):
        if a.layout != torch.strided or a.is_complex() or a.is_meta or a.is_quantized or a.is_nested:
            raise InvalidProblemError(
                f"{name} must be a dense tensor of real numbers, got {a.layout} of {a.dtype} on {a.device}; of a "
                f"sparse one give .to_dense()."
            )
        given = a.detach()
    else:
        checked = finite_array(name, a)  # type: ignore[arg-type]  # refuses whatever is none
        whole = np.asarray(a)
        given = torch.tensor(whole.astype(np.int64) if whole.dtype.kind in "iu" else checked)
    given = given.to(checked_device(device))
    return given.double() if given.is_floating_point() else given


def checked_inputs(x: torch.Tensor | ArrayLike, device: str | torch.device) -> torch.Tensor:
    """Inputs of shape (N, ...), in double precision unless they are integers."""
    found = as_tensor("x", x, device)
    if found.dim() < 2 or not len(found):
        raise InvalidProblemError(f"x must have shape (N, ...), one example a row, got {tuple(found.shape)}.")
    if not bool(torch.isfinite(found).all()):
        raise InvalidProblemError(f"x has {int((~torch.isfinite(found)).sum())} entries that are not finite.")
    return found


def checked_targets(
    y: torch.Tensor | ArrayLike, loss: str, examples: int, outputs: int, device: str | torch.device
) -> torch.Tensor:
    """Targets of shape (N, K), or classes of shape (N,) for cross-entropy."""
    given = as_tensor("y", y, device)
    if loss == "cross_entropy":
        whole = bool((given == given.long()).all()) and given.shape == (examples,)
        if outputs < 2 or not whole or bool((given < 0).any() | (given >= outputs).any()):
            raise InvalidProblemError(
                f"cross-entropy needs at least 2 outputs and classes of shape ({examples},) from 0 to {outputs - 1}; "
                f"got {outputs} outputs and y of shape {tuple(given.shape)}."
            )
        return given.long()
    if given.numel() != examples * outputs:
        hint = " One-hot targets are torch.nn.functional.one_hot(y)." if given.shape == (examples,) else ""
        raise InvalidProblemError(
            f"y must have shape ({examples}, {outputs}), one target for each output, got {tuple(given.shape)}.{hint}"
        )
    found = given.double().reshape(examples, outputs)
    if not bool(torch.isfinite(found).all()):
        raise InvalidProblemError(f"y has {int((~torch.isfinite(found)).sum())} entries that are not finite.")
    return found
