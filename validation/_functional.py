"""A torch module as a function of one flat vector of its parameters, in double precision, and whether it is one."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch.autograd import forward_ad
from torch.func import functional_call

from ..errors import InvalidProblemError

__all__ = [
    "LOSSES",
    "FlatModel",
    "Loss",
    "OutputLoss",
    "load_forward_mode",
    "per_example_loss",
    "refuse_random_modules",
]

#: Outputs (n, K) and labels to one loss per example, shape (n,).
OutputLoss: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Loss: TypeAlias = str | OutputLoss


@functools.cache
def load_forward_mode() -> None:
    """Have PyTorch load its forward derivatives, which it compiles by a function that it has itself deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with forward_ad.dual_level():
            forward_ad.make_dual(torch.zeros(()), torch.zeros(()))  # type: ignore[no-untyped-call]


def _squared(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    flat = outputs.reshape(len(outputs), -1)
    return 0.5 * (flat - y.reshape(flat.shape)).square().sum(dim=1)


def _logistic(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.softplus(-y.reshape(-1) * outputs.reshape(-1))


def _cross_entropy(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    # Not torch's own: torch.func differentiates this one under vmap, in any order.
    chosen = outputs.gather(1, y.reshape(-1, 1).long()).squeeze(1)
    return torch.logsumexp(outputs, dim=1) - chosen


LOSSES: dict[str, OutputLoss] = {"squared": _squared, "logistic": _logistic, "cross_entropy": _cross_entropy}


def per_example_loss(loss: Loss) -> OutputLoss:
    """The function of a loss's name; a function is taken as it is."""
    if callable(loss):
        return loss
    if loss not in LOSSES:
        raise InvalidProblemError(
            f"loss must be one of {', '.join(map(repr, LOSSES))} or a function of (outputs, y) that returns one loss "
            f"per example, got {loss!r}."
        )
    return LOSSES[loss]


def refuse_random_modules(model: object) -> None:
    """Refuse a module in training mode whose outputs are random or depend on the rest of the batch.

    Raises
    ------
    InvalidProblemError
    """
    if not isinstance(model, torch.nn.Module):
        return
    for name, module in model.named_modules():
        reason = _reason(module)
        if reason:
            where = f"{name} ({type(module).__name__})" if name else type(module).__name__
            raise InvalidProblemError(
                f"{where} {reason}, so the model is no fixed function of its inputs. Call model.eval() first."
            )


def _reason(module: torch.nn.Module) -> str | None:
    norms = torch.nn.modules.batchnorm._BatchNorm | torch.nn.modules.instancenorm._InstanceNorm
    if isinstance(module, torch.nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
        return "keeps no running statistics and normalises by those of the batch; take track_running_stats=True"
    if not module.training:
        return None
    if isinstance(module, torch.nn.modules.dropout._DropoutNd) and module.p > 0:
        return f"drops a share {module.p:g} of its inputs at random in training mode"
    if isinstance(module, norms) and module.running_mean is not None:
        return "normalises by the statistics of the batch in training mode and changes its own"
    if isinstance(module, torch.nn.RReLU):
        return "draws its slopes at random in training mode"
    if isinstance(module, torch.nn.RNNBase | torch.nn.MultiheadAttention) and module.dropout > 0:
        return f"drops a share {module.dropout:g} at random in training mode"
    return None


class FlatModel:
    """A module at weights that are one vector: all parameters that require a gradient, in the module's order.

    Attributes
    ----------
    model : torch.nn.Module
        It is never changed.
    names : tuple of str
        Of the parameters, in their order.
    shapes : tuple of torch.Size
    start : torch.Tensor, shape (P,)
        The module's own parameters.
    """

    def __init__(self, model: torch.nn.Module, device: str | torch.device) -> None:
        if not isinstance(model, torch.nn.Module):
            raise InvalidProblemError(f"model must be a torch.nn.Module, got {type(model).__name__}.")
        refuse_random_modules(model)
        load_forward_mode()
        self.model = model
        moving = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not moving:
            raise InvalidProblemError("the model has no parameter that requires a gradient.")
        self.names = tuple(moving)
        self.shapes = tuple(p.shape for p in moving.values())
        self._sizes = [math.prod(shape) for shape in self.shapes]
        self._fixed = {
            name: _double(value, device)
            for name, value in (*model.named_parameters(), *model.named_buffers())
            if name not in moving
        }
        self.start = torch.cat([_double(p, device).reshape(-1) for p in moving.values()])
        if not bool(torch.isfinite(self.start).all()):
            raise InvalidProblemError("the model has parameters that are not finite.")

    @property
    def size(self) -> int:
        """The number P of parameters."""
        return len(self.start)

    def parameters(self, w: torch.Tensor) -> dict[str, torch.Tensor]:
        """The parameters by name, of a flat vector (P,)."""
        parts = torch.split(w, self._sizes)
        return {name: part.view(shape) for name, part, shape in zip(self.names, parts, self.shapes, strict=True)}

    def __call__(self, w: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Outputs (n, K) of a batch of inputs at weights (P,)."""
        out: torch.Tensor = functional_call(self.model, {**self._fixed, **self.parameters(w)}, (x,))
        return out.reshape(len(x), -1)

    def check(self, x: torch.Tensor) -> torch.Tensor:
        """The outputs at the module's own parameters; refused if it is no function of single inputs.

        Raises
        ------
        InvalidProblemError
        """
        with torch.no_grad():
            out, again = self(self.start, x), self(self.start, x)
            alone = self(self.start, x[:1])
        if not bool(torch.isfinite(out).all()):
            bad = int((~torch.isfinite(out)).any(dim=1).sum())
            raise InvalidProblemError(f"the model's outputs are not finite for {bad} of {len(x)} inputs.")
        if not torch.equal(out, again):
            raise InvalidProblemError(
                "the model gives different outputs for the same inputs: something in it is random. Call model.eval()."
            )
        gap, size = float((alone - out[:1]).abs().max()), float(out.abs().max())
        if gap > 1e-9 * max(size, 1e-300):
            raise InvalidProblemError(
                f"the model's output for one input depends on the rest of the batch (it differs by {gap:.3g}), so "
                f"examples have no losses of their own. Call model.eval(), or take out what mixes examples."
            )
        return out


def _double(value: torch.Tensor, device: str | torch.device) -> torch.Tensor:
    """A copy on the device, in double precision where it is a float."""
    kind = torch.float64 if value.is_floating_point() else value.dtype
    return value.detach().to(device=device, dtype=kind, copy=True)
