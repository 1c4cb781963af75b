r"""Networks that are linear in their weights: the exact law of SGD on them, in the coordinates that move.

A network is replaced by its tangent at the weights :math:`w_0` it has,

.. math:: f(x; w) = f(x; w_0) + J(x) (w - w_0) .

With more weights than outputs on the data the Hessian is singular; gradients of the data stay in the range of
:math:`J^\top`. With V an orthonormal basis of it, :math:`w = V a + c`, the loss is an ordinary finite sum of quadratics
in the r coordinates a, and c is moved by weight decay alone, without noise: no approximation is made.
"""

from __future__ import annotations

import html
from collections.abc import Callable
from functools import cached_property, partial
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from .. import numerics
from ..errors import InvalidProblemError
from ..numerics import (
    GradientNoise,
    LeastSquares,
    MinibatchNoise,
    StationaryCovariance,
    TransientCovariance,
    VectorLeastSquares,
    VectorMinibatchNoise,
)
from ..theory import Optimizer
from ._functional import LOSSES, FlatModel
from ._jacobian import Range, jacobian, range_of
from ._linearized_runs import LinearizedEstimate, Tangent, measured
from ._runs import Engine
from ._softmax_quadratic import softmax_quadratic
from ._starts import Start
from .attacks import pgd

__all__ = ["LinearizedEstimate", "LinearizedNetwork"]

Array: TypeAlias = NDArray[np.float64]
#: (model, x, y, radius, loss=...) to inputs within the radius.
Attack: TypeAlias = Callable[..., torch.Tensor]

#: Memory that an explicit Jacobian may take.
JACOBIAN_BYTES = 1 << 28


class LinearizedNetwork:
    r"""A network linearised at its own weights, on given data: an exactly solvable problem for numerics.

    Parameters
    ----------
    model : torch.nn.Module
        Any whose outputs for one input do not depend on the others; it is not changed. Parameters that do not require a
        gradient are constants.
    x : torch.Tensor or array_like, shape (N, ...)
    y : torch.Tensor or array_like
        Targets of shape (N,) or (N, K) for the squared loss, classes of shape (N,) for cross-entropy.
    radius : float
        With a positive one, ``x`` is replaced by adversarial inputs, found once on the model as it is.
    attack : callable, optional
        ``attack(model, x, y, radius, loss=...)`` returns them: `pgd`, `fgsm`, or one with settings of its own
        (``functools.partial(pgd, norm=2, domain=(0, 1))``). `pgd` by default.
    loss : {"squared", "cross_entropy"}
        ``|y - f|^2 / 2`` is solved exactly. Of cross-entropy it is the local quadratic at the minimum of the linearised
        network's loss.
    l2 : float
        Adds ``l2 |w|^2 / 2``, for all weights.
    device : str or torch.device
    rank_tolerance : float, optional
        Singular values of J up to this multiple of the largest count as 0. Rounding by default: ``max(N K, P) eps``
        with an explicit Jacobian, ``sqrt(N K eps)`` without.
    jacobian_bytes : int
        A Jacobian that takes more is never formed: its products are taken by ``torch.func``.

    Attributes
    ----------
    names, shapes : tuple
        Of the parameters, in the order in which weights are one vector.
    x, y : torch.Tensor
        The inputs it is linearised on, attacked ones where there is a radius, and their targets.
    rank_tolerance, dropped : float
        The one that holds, and the largest singular value that it dropped, relative to the largest.

    Raises
    ------
    InvalidProblemError
        If an argument does not fit, outputs are random or depend on the rest of the batch (a model with dropout or
        batch normalisation in training mode), or they are not finite.

    Notes
    -----
    Without weight decay and with independent rows of J the network fits its targets: the noise vanishes at the optimum
    and the stationary covariance is 0. Laws over time, label noise, or weight decay are what there is to see.

    References
    ----------
    jacot2018ntk

    Examples
    --------
    >>> from sgdcov.numerics import stationary_covariance
    >>> from sgdcov.theory import heavy_ball
    >>> from sgdcov.validation import digits, mlp
    >>> x, y = digits(20, classes=(3, 8))
    >>> net = LinearizedNetwork(mlp((64, 16, 1)), x, y, l2=0.1)
    >>> net.parameters, net.rank
    (1057, 20)
    >>> noise = net.noise(batch_size=4)
    >>> law = stationary_covariance(heavy_ball(lr=0.01, momentum=0.9), noise.hessian, noise)
    >>> net.function_covariance(law).shape
    (20, 20)
    """

    def __init__(
        self,
        model: torch.nn.Module,
        x: torch.Tensor | ArrayLike,
        y: torch.Tensor | ArrayLike,
        radius: float = 0.0,
        attack: Attack | None = None,
        loss: Literal["squared", "cross_entropy"] = "squared",
        l2: float = 0.0,
        device: str | torch.device = "cpu",
        *,
        rank_tolerance: float | None = None,
        jacobian_bytes: int = JACOBIAN_BYTES,
    ) -> None:
        if loss not in ("squared", "cross_entropy"):
            raise InvalidProblemError(f"loss must be 'squared' or 'cross_entropy', got {loss!r}.")
        if isinstance(l2, bool) or not np.isfinite(l2) or l2 < 0:
            raise InvalidProblemError(f"l2 must be a finite number, at least 0, got {l2!r}.")
        if isinstance(radius, bool) or not np.isfinite(radius) or radius < 0:
            raise InvalidProblemError(f"radius must be a finite number, at least 0, got {radius!r}.")
        self._flat = FlatModel(model, device)
        self.radius, self.attack, self.loss, self.l2 = float(radius), attack or pgd, loss, float(l2)
        clean = _inputs(x, device)
        outputs = self._flat.check(clean)
        self.y = _targets(y, loss, len(clean), outputs.shape[1], device)
        self._clean = clean
        self.x = self._attacked(partial(self._flat, self._flat.start), clean, self.y) if self.radius else clean
        self._offsets = self._flat.check(self.x)
        jac = jacobian(self._flat, self.x, self.outputs, jacobian_bytes)
        self._range: Range = range_of(jac, rank_tolerance)
        self._jacobian_bytes = jacobian_bytes
        self.names, self.shapes = self._flat.names, self._flat.shapes
        self.rank_tolerance, self.dropped = self._range.tolerance, self._range.dropped

    @property
    def parameters(self) -> int:
        """The number P of parameters."""
        return self._flat.size

    @property
    def num_examples(self) -> int:
        """The number N of examples."""
        return len(self.x)

    @property
    def outputs(self) -> int:
        """The number K of outputs of an example."""
        return int(self._offsets.shape[1]) if hasattr(self, "_offsets") else int(self._flat.check(self._clean).shape[1])

    @property
    def rank(self) -> int:
        """The dimension r of the range, in which everything that is random happens."""
        return self._range.rank

    @property
    def singular_values(self) -> Array:
        """Those of J that count, shape (r,), falling."""
        return _array(self._range.singular_values)

    @property
    def explicit(self) -> bool:
        """Whether the Jacobian is held as a matrix."""
        return self._range.right is not None

    def _rows(self) -> list[tuple[str, str]]:
        attack = f", inputs attacked within {self.radius:g}" if self.radius else ""
        held = "a matrix" if self.explicit else "products only"
        return [
            ("network", f"{self.parameters:,} parameters in {len(self.names)} tensors"),
            ("data", f"{self.num_examples} examples, {self.outputs} outputs each{attack}"),
            ("loss", f"{self.loss}, l2={self.l2:g}"),
            ("Jacobian", f"{held}, rank {self.rank} (singular values above {self.rank_tolerance:.2g} of the largest)"),
            ("dropped", f"{self.dropped:.2g} of the largest at most"),
        ]

    def __repr__(self) -> str:
        return "\n".join(["LinearizedNetwork", *(f"  {name:<9} {text}" for name, text in self._rows())])

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th>{name}</th><td>{html.escape(text)}</td></tr>" for name, text in self._rows())
        return f"<table><caption>Linearised network</caption>{rows}</table>"

    # Coordinates -----------------------------------------------------------------------------------------------------

    @cached_property
    def start(self) -> Array:
        """The coordinates of the weights that the model has, shape (r,)."""
        return _array(self._range.coordinates(self._flat.start.unsqueeze(0)).squeeze(0))

    @cached_property
    def complement(self) -> Array:
        """What of these weights is outside of the range, shape (P,): nothing but weight decay moves it."""
        start = self._flat.start
        return _array(start - self._range.weights(self._range.coordinates(start.unsqueeze(0))).squeeze(0))

    def coordinates(self, weights: ArrayLike) -> Array:
        """The coordinates of weights in the range.

        Parameters
        ----------
        weights : array_like, shape (..., P)

        Returns
        -------
        ndarray, shape (..., r)
        """
        return self._mapped(weights, self.parameters, self._range.coordinates)

    def weights(self, coordinates: ArrayLike) -> Array:
        """The weights in the range that have these coordinates; nothing of the complement is in them.

        Parameters
        ----------
        coordinates : array_like, shape (..., r)

        Returns
        -------
        ndarray, shape (..., P)
        """
        return self._mapped(coordinates, self.rank, self._range.weights)

    def _mapped(self, a: ArrayLike, size: int, how: Callable[[torch.Tensor], torch.Tensor]) -> Array:
        given = np.asarray(a, dtype=np.float64)
        if given.ndim == 0 or given.shape[-1] != size:
            raise InvalidProblemError(f"expected an array of shape (..., {size}), got {given.shape}.")
        rows = torch.tensor(given.reshape(-1, size), device=self.x.device)
        out = _array(how(rows))
        return out.reshape(*given.shape[:-1], out.shape[-1])

    def complement_factor(self, optimizer: Optimizer, steps: int) -> float:
        """By what the complement is multiplied in so many steps from rest: 1 without weight decay.

        Parameters
        ----------
        optimizer : Optimizer
        steps : int

        Returns
        -------
        float
        """
        return float(numerics.transient_mean(optimizer, [[self.l2]], steps, start=[1.0], optimum=[0.0])[0])

    # What numerics solves --------------------------------------------------------------------------------------------

    @cached_property
    def _design(self) -> tuple[Array, Array]:
        """Features (N, K, r) and the outputs at a = 0 (N, K)."""
        features = _array(self._range.features).reshape(self.num_examples, self.outputs, self.rank)
        return features, _array(self._offsets) - features @ self.start

    @cached_property
    def problem(self) -> LeastSquares | VectorLeastSquares:
        """The loss in the coordinates of the range, for numerics: exact, or the local quadratic of cross-entropy."""
        features, offsets = self._design
        if self.loss == "cross_entropy":
            return softmax_quadratic(features, offsets, _array(self.y).astype(np.int64), self.l2)[0]
        targets = _array(self.y) - offsets
        if self.outputs == 1:
            return LeastSquares(features[:, 0], targets[:, 0], self.l2)
        return VectorLeastSquares(features, targets, self.l2)

    def noise(self, batch_size: int, replacement: bool = True, *, label_noise: float = 0.0) -> GradientNoise:
        """The noise of its minibatches, exact at any weights; numerics takes it where it wants a noise.

        Parameters
        ----------
        batch_size : int
            From 1 to N.
        replacement : bool
            Whether the examples of one batch are drawn independently, or are distinct.
        label_noise : float
            Standard deviation of fresh noise on every target at every draw (squared loss).

        Returns
        -------
        GradientNoise

        Raises
        ------
        InvalidProblemError
            If an argument does not fit.
        """
        problem = self.problem
        noise: MinibatchNoise | VectorMinibatchNoise
        if isinstance(problem, LeastSquares):
            noise = MinibatchNoise(problem, batch_size, replacement)
        else:
            noise = VectorMinibatchNoise(problem, batch_size, replacement)
        if not label_noise:
            return noise
        if self.loss != "squared":
            raise InvalidProblemError("label_noise is for the squared loss; classes have no noise to add.")
        return noise + noise.label_noise(label_noise)

    # Functions -------------------------------------------------------------------------------------------------------

    def features(self, x: torch.Tensor | ArrayLike | None = None) -> Array:
        """The Jacobian of outputs in the coordinates of the range.

        Parameters
        ----------
        x : array_like, shape (n, ...), optional
            Any inputs; those it is linearised on by default.

        Returns
        -------
        ndarray, shape (n, K, r)
        """
        if x is None:
            return self._design[0]
        inputs = _inputs(x, self.x.device)
        other = jacobian(self._flat, inputs, self.outputs, self._jacobian_bytes)
        if self._range.right is not None:
            found = other.times(self._range.right)
        else:
            roots = self._range.left / self._range.singular_values
            found = torch.cat(
                [other.times(self._range.jacobian.transposed_times(part)) for part in roots.split(32, dim=1)], dim=1
            )
        return _array(found).reshape(len(inputs), self.outputs, self.rank)

    def predictions(self, coordinates: ArrayLike, x: torch.Tensor | ArrayLike | None = None) -> Array:
        """The linearised network's outputs, with the complement of the weights as the model has it.

        Parameters
        ----------
        coordinates : array_like, shape (..., r)
        x : array_like, shape (n, ...), optional
            Those it is linearised on by default.

        Returns
        -------
        ndarray, shape (..., n, K)
        """
        given = np.asarray(coordinates, dtype=np.float64)
        with torch.no_grad():
            base = self._offsets if x is None else self._flat(self._flat.start, _inputs(x, self.x.device))
        return np.asarray(_array(base) + np.einsum("nkr,...r->...nk", self.features(x), given - self.start))

    def function_covariance(
        self,
        covariance: ArrayLike | StationaryCovariance | TransientCovariance,
        x: torch.Tensor | ArrayLike | None = None,
    ) -> Array:
        r"""The covariance of outputs, :math:`J S J^\top`.

        Parameters
        ----------
        covariance : array_like, shape (r, r), or a law of numerics
            Of the weights in the coordinates of the range.
        x : array_like, shape (n, ...), optional
            Those it is linearised on by default.

        Returns
        -------
        ndarray, shape (n*K, n*K)
        """
        law = isinstance(covariance, StationaryCovariance | TransientCovariance)
        spread = np.asarray(covariance.value if law else covariance, dtype=np.float64)  # type: ignore[union-attr]
        if spread.shape != (self.rank, self.rank):
            raise InvalidProblemError(f"covariance must have shape {(self.rank, self.rank)}, got {spread.shape}.")
        rows = self.features(x).reshape(-1, self.rank)
        found = rows @ spread @ rows.T
        return np.asarray(0.5 * (found + found.T))

    # Measurement -----------------------------------------------------------------------------------------------------

    def measure(
        self,
        optimizer: Optimizer,
        *,
        batch_size: int,
        replacement: bool = True,
        label_noise: float = 0.0,
        replicas: int,
        steps: int | Literal["auto"] = "auto",
        snapshots: int | Literal["auto"] = "auto",
        start: Start = None,
        mean: ArrayLike | None = None,
        slots: tuple[str, ...] = ("w",),
        attack: Literal["fixed", "again"] = "fixed",
        engine: Engine = "rule",
        rng: np.random.Generator | int | None = None,
        progress: bool = True,
    ) -> LinearizedEstimate:
        """Run SGD on the linearised network in all of its parameters, on real minibatches, and project what it finds.

        Parameters
        ----------
        optimizer : Optimizer
            Every hyper-parameter bound.
        batch_size : int
        replacement : bool
        label_noise : float
            As for `noise`.
        replicas : int
            Independent runs, at least 2 (`compare` wants 100).
        steps : int or "auto"
            Steps after the start; "auto" runs to the stationary law, starting where the mean of it is.
        snapshots : int or "auto"
            For ``steps="auto"``: states to use of each replica.
        start : array_like, a law of numerics, or Optimizer, optional
            For a number of steps: coordinates in the range, their covariance, or a law of them, as for
            `transient_covariance`. The weights that the model has by default. The complement starts where the model
            has it, at rest.
        mean : array_like, shape (r,), optional
            Of a start that is a covariance or a law; the optimum by default.
        slots : tuple of str
        attack : {"fixed", "again"}
            Whether the batches are of the inputs that were attacked once, or attacked anew at every step for the
            weights that each replica has then.
        engine : {"rule", "torch.optim"}
            What steps all parameters: the rule's own function, or the real ``torch.optim.SGD``.
        rng : numpy.random.Generator or int, optional
        progress : bool

        Returns
        -------
        LinearizedEstimate
            In the coordinates of the range; `compare` takes it.

        Raises
        ------
        InvalidProblemError
            If an argument does not fit.
        UnstableError, NonStationaryError
            If there is no stationary law to run to, or iterates left the finite numbers.
        """
        if attack not in ("fixed", "again"):
            raise InvalidProblemError(f"attack must be 'fixed' or 'again', got {attack!r}.")
        if attack == "again" and not self.radius:
            raise InvalidProblemError("attack='again' needs a positive radius; the network has radius=0.")
        tangent = Tangent(
            flat=self._flat,
            basis=self._range,
            offsets=self._offsets,
            x=self._clean if attack == "again" else self.x,
            y=self.y,
            loss=LOSSES[self.loss],
            l2=self.l2,
            attack=self._attacked if attack == "again" else None,
        )
        return measured(
            tangent, optimizer, self.noise(batch_size, replacement, label_noise=label_noise), batch_size=batch_size,
            replacement=replacement, label_noise=label_noise, replicas=replicas, steps=steps, snapshots=snapshots,
            start=self.start if start is None and steps != "auto" else start, mean=mean, slots=slots, engine=engine,
            rng=rng, progress=progress,
        )  # fmt: skip

    def _attacked(
        self, model: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, y: torch.Tensor
    ) -> torch.Tensor:
        found = self.attack(model, x, y, self.radius, loss=LOSSES[self.loss])
        if not isinstance(found, torch.Tensor) or found.shape != x.shape:
            raise InvalidProblemError(f"the attack must return inputs of shape {tuple(x.shape)}, got {found!r}.")
        return found.detach()


def _array(a: torch.Tensor) -> Array:
    return np.asarray(a.detach().cpu().numpy(), dtype=np.float64)


def _inputs(x: torch.Tensor | ArrayLike, device: str | torch.device) -> torch.Tensor:
    given = x if isinstance(x, torch.Tensor) else torch.as_tensor(np.asarray(x))
    if given.dim() < 2 or not len(given):
        raise InvalidProblemError(f"x must have shape (N, ...), one example a row, got {tuple(given.shape)}.")
    found = given.detach().to(device=device, dtype=torch.float64)
    if not bool(torch.isfinite(found).all()):
        raise InvalidProblemError(f"x has {int((~torch.isfinite(found)).sum())} entries that are not finite.")
    return found


def _targets(
    y: torch.Tensor | ArrayLike, loss: str, examples: int, outputs: int, device: str | torch.device
) -> torch.Tensor:
    given = (y if isinstance(y, torch.Tensor) else torch.as_tensor(np.asarray(y))).detach().to(device)
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
