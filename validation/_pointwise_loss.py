"""A loss of one example at a point: values, gradients, curvature and kinks, over all examples by ``torch.func``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator
from torch.func import grad, grad_and_value, jvp, vmap

from ..errors import InvalidProblemError
from ._functional import load_forward_mode
from ._tensors import as_tensor
from .networks import FlatLoss

__all__ = ["PointwiseLoss"]

Array = NDArray[np.float64]

#: Numbers that a vectorised evaluation may hold at once, roughly.
NUMBERS_AT_ONCE = 1 << 22
#: The length of the steps that look for kinks, relative to the weights, and by how much the second is shorter.
KINK_STEP, KINK_RATIO = 1e-5, 8.0
#: Directions in which kinks are looked for.
KINK_DIRECTIONS = 3
#: A jump of a gradient counts from this multiple of the typical one on.
NOTICEABLE = 0.01


@dataclass(frozen=True, eq=False)
class PointwiseLoss:
    """``loss(w, *example)`` about a point."""

    loss: Callable[..., torch.Tensor]
    point: torch.Tensor
    data: tuple[torch.Tensor, ...]

    @classmethod
    def of(
        cls, loss: Callable[..., torch.Tensor], optimum: Any, data: Any, device: str | torch.device
    ) -> PointwiseLoss:
        """Check a caller's arguments."""
        load_forward_mode()
        point = as_tensor("the point", optimum, device).double()
        if point.dim() != 1 or not len(point) or not bool(torch.isfinite(point).all()):
            raise InvalidProblemError(f"optimum must be a finite vector of shape (d,), got {tuple(point.shape)}.")
        several = isinstance(data, tuple) or (
            isinstance(data, Sequence) and len(data) > 0 and all(isinstance(part, torch.Tensor) for part in data)
        )
        parts = tuple(as_tensor("data", part, device) for part in (data if several else (data,)))
        if not parts or any(part.dim() == 0 or len(part) != len(parts[0]) for part in parts) or not len(parts[0]):
            shapes = ", ".join(str(tuple(part.shape)) for part in parts)
            raise InvalidProblemError(f"data must be arrays with one entry per example each, got shapes {shapes}.")
        if not callable(loss):
            raise InvalidProblemError(f"loss must be a function of (w, *example), got {loss!r}.")
        if isinstance(loss, FlatLoss):
            parts = loss.fitting(point, parts)
        found = cls(loss, point, parts).of_first()
        if not isinstance(found, torch.Tensor) or found.shape != ():
            what = f"shape {tuple(found.shape)}" if isinstance(found, torch.Tensor) else type(found).__name__
            raise InvalidProblemError(f"loss(w, *example) must be a scalar tensor for ONE example, got {what}.")
        return cls(loss, point, parts)

    def of_first(self) -> Any:
        """The loss of the first example, as a caller's function gives it."""
        try:
            return self.loss(self.point, *(part[0] for part in self.data))
        except InvalidProblemError:
            raise
        except Exception as error:
            shapes = ", ".join(f"{tuple(part.shape[1:])} of {part.dtype}" for part in self.data)
            raise InvalidProblemError(
                f"loss(w, *example) does not take weights of shape {tuple(self.point.shape)} and one example of shapes "
                f"{shapes} ({type(error).__name__}: {(str(error) or 'no reason given').splitlines()[0]})."
            ) from error

    def at(self, w: Array) -> PointwiseLoss:
        """The same loss about another point."""
        return replace(self, point=torch.tensor(w, dtype=torch.float64, device=self.point.device))

    @property
    def optimum(self) -> Array:
        return np.asarray(self.point.cpu().numpy(), dtype=np.float64)

    @property
    def dim(self) -> int:
        return len(self.point)

    @property
    def num_examples(self) -> int:
        return len(self.data[0])

    @property
    def _over_examples(self) -> tuple[int | None, ...]:
        return (None, *(0 for _ in self.data))

    def _chunk(self, numbers: int) -> int:
        return max(1, NUMBERS_AT_ONCE // max(1, numbers))

    def mean(self, w: torch.Tensor) -> torch.Tensor:
        """The mean loss at one point."""
        return vmap(self.loss, in_dims=self._over_examples)(w, *self.data).mean()

    def mean_at(self, points: Array) -> Array:
        """The mean loss at many points (n, d)."""
        w = torch.tensor(points, device=self.point.device)
        size = self.num_examples * max(self.dim, *(part[0].numel() for part in self.data))
        with torch.no_grad():
            return _array(vmap(self.mean, chunk_size=self._chunk(size))(w))

    def value_and_gradient(self) -> tuple[float, Array]:
        """The mean loss and its gradient; infinite where the loss is not finite."""
        gradient, value = grad_and_value(self.mean)(self.point)
        return float(value) if bool(torch.isfinite(value)) else np.inf, _array(gradient)

    def gradient_size(self) -> float:
        """The root mean square of the examples' own gradients, none of which is kept."""

        def square(*example: torch.Tensor) -> torch.Tensor:
            own: torch.Tensor = grad(self.loss)(self.point, *example)
            return own.square().sum()

        return float(vmap(square, chunk_size=self._chunk(4 * self.dim))(*self.data).mean().sqrt())

    def value_and_gradients(self) -> tuple[float, Array]:
        """The mean loss, and the gradient of every example's own.

        Raises
        ------
        InvalidProblemError
            If one is not finite, or cannot be differentiated.
        """
        found = vmap(grad_and_value(self.loss), in_dims=self._over_examples, chunk_size=self._chunk(4 * self.dim))
        try:
            gradients, values = found(self.point, *self.data)
        except (RuntimeError, NotImplementedError) as error:
            raise InvalidProblemError(
                f"the loss cannot be differentiated by torch.func ({str(error).splitlines()[0]}): it must be made of "
                f"differentiable torch operations on w, without .item(), NumPy or random numbers."
            ) from error
        for name, what in (("loss", values.unsqueeze(1)), ("gradient", gradients)):
            bad = (~torch.isfinite(what)).any(dim=1)
            if bool(bad.any()):
                raise InvalidProblemError(
                    f"the {name} is not finite for {int(bad.sum())} of {self.num_examples} examples, the first of them "
                    f"number {int(bad.nonzero()[0])}."
                )
        return float(values.mean()), _array(gradients)

    def hessian(self) -> Array:
        """The matrix of the mean loss, column by column, as it comes."""
        eye = torch.eye(self.dim, dtype=torch.float64, device=self.point.device)
        chunk = self._chunk(8 * self.num_examples * max(part[0].numel() for part in self.data) + self.dim)
        found = _array(vmap(self._product, out_dims=1, chunk_size=chunk)(eye))
        if not np.isfinite(found).all():
            raise InvalidProblemError(
                f"{np.count_nonzero(~np.isfinite(found))} of {found.size} entries of the Hessian are not finite."
            )
        return found

    def hessian_operator(self) -> LinearOperator:
        """Its products with vectors, nothing stored."""

        def product(v: Array) -> Array:
            columns = torch.tensor(np.asarray(v, dtype=np.float64).reshape(self.dim, -1), device=self.point.device)
            out = torch.stack([self._product(column) for column in columns.T], dim=1)
            return _array(out).reshape(np.shape(v))

        return LinearOperator((self.dim, self.dim), matvec=product, rmatvec=product, matmat=product, dtype=np.float64)

    def _product(self, v: torch.Tensor) -> torch.Tensor:
        return jvp(grad(self.mean), (self.point,), (v,))[1]  # type: ignore[no-any-return]

    def per_example_hessians(self) -> Array:
        """The matrices of every example, shape (N, d, d)."""
        eye = torch.eye(self.dim, dtype=torch.float64, device=self.point.device)

        def of_one(*example: torch.Tensor) -> torch.Tensor:
            def own(w: torch.Tensor) -> torch.Tensor:
                return self.loss(w, *example)

            return vmap(lambda v: jvp(grad(own), (self.point,), (v,))[1])(eye)  # type: ignore[no-any-return]

        return _array(vmap(of_one, chunk_size=self._chunk(8 * self.dim**2))(*self.data))

    def kinked_near(self, distance: float) -> int:
        """How many examples' gradients change within so small a distance as only a kink between can change them."""
        rng = np.random.default_rng(0)
        over = vmap(grad(self.loss), in_dims=self._over_examples, chunk_size=self._chunk(4 * self.dim))
        kinked = np.zeros(self.num_examples, dtype=bool)
        for _ in range(KINK_DIRECTIONS):
            v = rng.standard_normal(self.dim)
            step = torch.tensor(v / np.linalg.norm(v), device=self.point.device)
            ahead, behind = (_array(over(self.point + s * distance * step, *self.data)) for s in (1.0, -1.0))
            typical = float(np.sqrt(np.mean(np.square(ahead).sum(axis=1))))
            kinked |= np.linalg.norm(ahead - behind, axis=1) > NOTICEABLE * typical
        return int(kinked.sum())

    def gradient_spreads(self, deltas: Array) -> tuple[Array, Array]:
        """Mean squared distances of the examples' gradients from their mean, at points (n, d) beside this one.

        Of the loss itself, and of every example's own quadratic about this point.
        """

        def of_one(delta: torch.Tensor, *example: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            def slope(w: torch.Tensor) -> torch.Tensor:
                return grad(self.loss)(w, *example)  # type: ignore[no-any-return]

            here, change = jvp(slope, (self.point,), (delta,))[:2]
            return slope(self.point + delta), here + change

        over = vmap(of_one, in_dims=self._over_examples, chunk_size=self._chunk(16 * self.dim))
        found = np.empty((2, len(deltas)))
        for k, delta in enumerate(torch.tensor(deltas, device=self.point.device)):
            for j, slopes in enumerate(over(delta, *self.data)):
                found[j, k] = float((slopes - slopes.mean(dim=0)).square().sum(dim=1).mean())
        return found[0], found[1]

    def refuse_kinks(self, gradients: Array) -> None:
        r"""Refuse a loss whose slope jumps at the point.

        Along a direction v, :math:`[\ell(w + hv) - 2\ell(w) + \ell(w - hv)]/h` is the jump of the slope if there is
        one, whatever h is, and of order h otherwise.

        Raises
        ------
        InvalidProblemError
        """
        rng = np.random.default_rng(0)
        h = KINK_STEP * max(1.0, float(self.point.norm()))
        over = vmap(self.loss, in_dims=self._over_examples, chunk_size=self._chunk(4 * self.dim))
        with torch.no_grad():
            centre = over(self.point, *self.data)
            for _ in range(KINK_DIRECTIONS):
                v = rng.standard_normal(self.dim)
                v /= np.linalg.norm(v)
                step = torch.tensor(v, device=self.point.device)
                jumps = []
                for length in (h, h / KINK_RATIO):
                    ahead, behind = (over(self.point + s * length * step, *self.data) for s in (1.0, -1.0))
                    jumps.append(_array((ahead - 2.0 * centre + behind).abs() / length))
                long, short = jumps
                typical = float(np.sqrt(np.mean(np.square(gradients @ v)))) + float(np.median(np.abs(gradients @ v)))
                rounding = 64.0 * np.finfo(np.float64).eps * _array(centre.abs() + 1e-300) * KINK_RATIO / h
                kinked = (short > 0.5 * long) & (short > 1e-6 * typical + rounding)
                if kinked.any():
                    raise InvalidProblemError(
                        f"the loss is not differentiable at the point: for {int(kinked.sum())} of {self.num_examples} "
                        f"examples its slope jumps there, by up to {float(short[kinked].max()):.3g}. A kink has no "
                        f"quadratic; smooth the loss, or move away from it."
                    )


def _array(a: torch.Tensor) -> Array:
    return np.asarray(a.detach().cpu().numpy(), dtype=np.float64)
