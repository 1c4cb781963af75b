"""A torch module as a function of one flat vector of its parameters, in double precision, and whether it is one."""

from __future__ import annotations

import functools
import math
import warnings

import torch
from torch.autograd import forward_ad
from torch.func import functional_call

from ..errors import InvalidProblemError
from ._tensors import checked_device

__all__ = ["FlatModel", "load_forward_mode", "refuse_random_modules"]


@functools.cache
def load_forward_mode() -> None:
    """Have PyTorch load its forward derivatives, which it compiles by a function that it has itself deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with forward_ad.dual_level():
            forward_ad.make_dual(torch.zeros(()), torch.zeros(()))  # type: ignore[no-untyped-call]


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
        device = checked_device(device)
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
        out: object = functional_call(self.model, {**self._fixed, **self.parameters(w)}, (x,))
        if not isinstance(out, torch.Tensor):
            raise InvalidProblemError(
                f"the model returns a {type(out).__name__}, not a tensor of outputs: wrap it in a module whose forward "
                f"returns the one tensor that the loss is of."
            )
        if out.dim() == 0 or len(out) != len(x):
            raise InvalidProblemError(
                f"the model makes outputs of shape {tuple(out.shape)} of {len(x)} inputs; one row for each is wanted "
                f"(of recurrent layers, batch_first=True)."
            )
        return out.reshape(len(x), -1)

    def fitting(self, x: torch.Tensor) -> torch.Tensor:
        """The inputs as the model takes them: integers as they are where it looks something up, doubles otherwise.

        Raises
        ------
        InvalidProblemError
            If it takes neither.
        """
        failed: list[Exception] = []
        for inputs in [x] if x.is_floating_point() else [x, x.double()]:
            try:
                with torch.no_grad():
                    self(self.start, inputs[:1])
            except InvalidProblemError:
                raise
            except Exception as error:  # noqa: BLE001  # whatever a caller's model raises
                failed.append(error)
            else:
                return inputs
        first = failed[0]
        reason = (str(first) or type(first).__name__).splitlines()[0]
        raise InvalidProblemError(
            f"the model does not take inputs of shape {tuple(x[:1].shape)} and type {x.dtype} ({reason}). Its weights "
            f"are double precision here; a tensor that its forward makes itself must have the type of its input."
        ) from first

    def check(self, x: torch.Tensor) -> torch.Tensor:
        """The outputs at the module's own parameters; refused if it is no function of single inputs.

        Raises
        ------
        InvalidProblemError
        """
        with torch.no_grad():
            out, again = self(self.start, x), self(self.start, x)
            # By themselves the first and the last, and all in the other order: what mixes examples along the batch
            # (normalisation, a batch taken for a sequence) changes one of them.
            alone = torch.cat([self(self.start, x[:1]), self(self.start, x[-1:])])
            reversed_ = self(self.start, x.flip(0)).flip(0)
        if not bool(torch.isfinite(out).all()):
            bad = int((~torch.isfinite(out)).any(dim=1).sum())
            raise InvalidProblemError(f"the model's outputs are not finite for {bad} of {len(x)} inputs.")
        if not torch.equal(out, again):
            raise InvalidProblemError(
                "the model gives different outputs for the same inputs: something in it is random. Call model.eval()."
            )
        gap = max(float((alone - out[[0, -1]]).abs().max()), float((reversed_ - out).abs().max()))
        if gap > 1e-9 * max(float(out.abs().max()), 1e-300):
            raise InvalidProblemError(
                f"the model's output for one input depends on the rest of the batch (it differs by {gap:.3g}), so "
                f"examples have no losses of their own. Call model.eval(), take out what mixes examples, or give "
                f"recurrent layers batch_first=True."
            )
        return out


def _double(value: torch.Tensor, device: str | torch.device) -> torch.Tensor:
    """A copy on the device, in double precision where it is a float."""
    kind = torch.float64 if value.is_floating_point() else value.dtype
    return value.detach().to(device=device, dtype=kind, copy=True)
