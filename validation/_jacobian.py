r"""The Jacobian of a network's outputs by its parameters: as a matrix where it fits, as products otherwise.

With the thin singular value decomposition :math:`J = U \operatorname{diag}(s) V^\top` on the range, weights have the
coordinates :math:`a = V^\top w`, and the features of the examples in them are :math:`J V = U \operatorname{diag}(s)`.
Without the matrix, U and s are the eigenvectors and roots of the Gram matrix :math:`J J^\top`, and
:math:`V = J^\top U \operatorname{diag}(1/s)` is never formed: products with it are products with J.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.func import jacrev, jvp, vjp, vmap

from ..errors import InvalidProblemError
from ._functional import FlatModel

__all__ = ["ExplicitJacobian", "Jacobian", "LazyJacobian", "Range", "jacobian", "range_of"]

#: Columns that a product without the matrix takes at once.
COLUMNS_AT_ONCE = 32
EPS = float(np.finfo(np.float64).eps)


class ExplicitJacobian:
    """The (N K, P) matrix."""

    def __init__(self, matrix: torch.Tensor) -> None:
        self.matrix = matrix

    @property
    def shape(self) -> tuple[int, int]:
        return self.matrix.shape[0], self.matrix.shape[1]

    def times(self, columns: torch.Tensor) -> torch.Tensor:
        """J times (P, c)."""
        return self.matrix @ columns

    def transposed_times(self, columns: torch.Tensor) -> torch.Tensor:
        """J^T times (N K, c)."""
        return self.matrix.T @ columns


class LazyJacobian:
    """The same by forward and reverse products."""

    def __init__(self, flat: FlatModel, x: torch.Tensor) -> None:
        self.flat, self.x = flat, x
        with torch.no_grad():
            self.shape = (flat(flat.start, x).numel(), flat.size)

    def _outputs(self, w: torch.Tensor) -> torch.Tensor:
        return self.flat(w, self.x).reshape(-1)

    def times(self, columns: torch.Tensor) -> torch.Tensor:
        """J times (P, c)."""

        def one(v: torch.Tensor) -> torch.Tensor:
            return jvp(self._outputs, (self.flat.start,), (v,))[1]  # type: ignore[no-any-return]

        return vmap(one, in_dims=1, out_dims=1, chunk_size=COLUMNS_AT_ONCE)(columns)

    def transposed_times(self, columns: torch.Tensor) -> torch.Tensor:
        """J^T times (N K, c)."""
        pull = vjp(self._outputs, self.flat.start)[1]
        one = vmap(lambda u: pull(u)[0], in_dims=1, out_dims=1, chunk_size=COLUMNS_AT_ONCE)
        return one(columns)  # type: ignore[no-any-return]


Jacobian = ExplicitJacobian | LazyJacobian


def jacobian(flat: FlatModel, x: torch.Tensor, outputs: int, budget: int) -> Jacobian:
    """The Jacobian at the model's own parameters; as a matrix if it takes at most ``budget`` bytes."""
    if len(x) * outputs * flat.size * 8 > budget:
        return LazyJacobian(flat, x)

    def single(w: torch.Tensor, one: torch.Tensor) -> torch.Tensor:
        return flat(w, one.unsqueeze(0)).squeeze(0)

    at_once = max(1, (1 << 23) // (outputs * flat.size))
    try:
        with torch.no_grad():
            rows = vmap(jacrev(single), in_dims=(None, 0), chunk_size=at_once)(flat.start, x)
    except RuntimeError:  # what torch.func cannot vectorise, recurrent networks for one
        rows = _row_by_row(flat, x)
    return ExplicitJacobian(rows.reshape(-1, flat.size).contiguous())


def _row_by_row(flat: FlatModel, x: torch.Tensor) -> torch.Tensor:
    with torch.enable_grad():
        w = flat.start.clone().requires_grad_()
        outputs = flat(w, x).reshape(-1)
        return torch.stack([torch.autograd.grad(output, w, retain_graph=True)[0] for output in outputs])


@dataclass(frozen=True)
class Range:
    """Orthonormal coordinates of the weights' directions that outputs depend on.

    Attributes
    ----------
    jacobian : Jacobian
    left : torch.Tensor, shape (N K, r)
        U.
    singular_values : torch.Tensor, shape (r,)
        s, falling.
    right : torch.Tensor, shape (P, r), or None
        V, where J is a matrix.
    tolerance : float
        Singular values up to this multiple of the largest count as 0.
    dropped : float
        The largest that was dropped, as such a multiple.
    """

    jacobian: Jacobian
    left: torch.Tensor
    singular_values: torch.Tensor
    right: torch.Tensor | None
    tolerance: float
    dropped: float

    @property
    def rank(self) -> int:
        """The dimension r."""
        return len(self.singular_values)

    @property
    def features(self) -> torch.Tensor:
        """The Jacobian in the coordinates, shape (N K, r)."""
        return self.left * self.singular_values

    def coordinates(self, weights: torch.Tensor) -> torch.Tensor:
        """Of weights (c, P): shape (c, r)."""
        if self.right is not None:
            return weights @ self.right
        return ((self.left / self.singular_values).T @ self.jacobian.times(weights.T)).T

    def weights(self, coordinates: torch.Tensor) -> torch.Tensor:
        """Weights (c, P) in the range with these coordinates (c, r)."""
        if self.right is not None:
            return coordinates @ self.right.T
        return self.jacobian.transposed_times((self.left / self.singular_values) @ coordinates.T).T


def range_of(jac: Jacobian, tolerance: float | None) -> Range:
    """The range of J^T, by the singular values of J or, without the matrix, of its Gram matrix.

    Raises
    ------
    InvalidProblemError
        If outputs do not depend on the parameters, or a tolerance is out of range.
    """
    rows = jac.shape[0]
    if isinstance(jac, ExplicitJacobian):
        least = max(jac.shape) * EPS
        left, s, right = torch.linalg.svd(jac.matrix, full_matrices=False)
        basis = right.T
    else:
        # The Gram matrix squares the singular values, and rounding with them.
        least = float(np.sqrt(rows * EPS))
        eye = torch.eye(rows, dtype=torch.float64, device=jac.x.device)
        blocks = [jac.times(jac.transposed_times(part)) for part in torch.split(eye, COLUMNS_AT_ONCE, dim=1)]
        gram = torch.cat(blocks, dim=1)
        values, vectors = torch.linalg.eigh(0.5 * (gram + gram.T))
        s, left, basis = values.flip(0).clamp(min=0.0).sqrt(), vectors.flip(1), None
    limit = least if tolerance is None else float(tolerance)
    if not least <= limit < 1.0:
        raise InvalidProblemError(
            f"rank_tolerance must be below 1 and at least {least:.3g}, what rounding makes of a singular value here, "
            f"got {tolerance!r}."
        )
    if not float(s[0]) > 0.0 or not bool(torch.isfinite(s).all()):
        raise InvalidProblemError("the outputs do not depend on the parameters: their Jacobian is 0 or not finite.")
    kept = int((s > limit * s[0]).sum())
    dropped = float(s[kept] / s[0]) if kept < len(s) else 0.0
    right_basis = None if basis is None else basis[:, :kept].contiguous()
    return Range(jac, left[:, :kept].contiguous(), s[:kept].clone(), right_basis, limit, dropped)
