r"""Networks that are linear in their weights: the exact law of SGD on them, in the coordinates that move.

A network is replaced by its tangent at the weights :math:`w_0` it has,

.. math:: f(x; w) = f(x; w_0) + J(x) (w - w_0) .

With more weights than outputs on the data the Hessian is singular; gradients of the data stay in the range of
:math:`J^\top`. With V an orthonormal basis of it, :math:`w = V a + c`, the loss is an ordinary finite sum of quadratics
in the r coordinates a, and c is moved by weight decay alone, without noise: no approximation is made.
"""

from __future__ import annotations

import copy
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
    VectorLeastSquares,
    VectorMinibatchNoise,
)
from ..numerics._arrays import choice, flag, nonnegative, whole_number
from ..theory import Optimizer
from ._functional import FlatModel
from ._jacobian import jacobian, range_of
from ._linearized_runs import LinearizedEstimate, Tangent, measured
from ._output_losses import LOSSES
from ._range_coordinates import RangeCoordinates
from ._runs import Engine, is_auto
from ._softmax_quadratic import softmax_quadratic
from ._starts import Start
from ._tensors import as_array, checked_inputs, checked_targets
from .attacks import pgd
from .local_quadratic import LocalQuadratic, local_quadratic

__all__ = ["LinearizedEstimate", "LinearizedNetwork"]

Array: TypeAlias = NDArray[np.float64]
#: (model, x, y, radius, loss=...) to inputs within the radius.
Attack: TypeAlias = Callable[..., torch.Tensor]

#: Memory that an explicit Jacobian may take.
JACOBIAN_BYTES = 1 << 28


class LinearizedNetwork(RangeCoordinates):
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
        network's loss, which holds for laws that are narrow enough (see `noise`).
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

    An attack on a network that was never trained moves inputs to where its chance outputs are wrong, which tells their
    labels: train the model before it is linearised, where robustness is what is asked for. Along the radius,
    ``radius_path(lambda radius: LinearizedNetwork(..., radius=radius).problem, ...)``.

    References
    ----------
    jacot2018

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
        choice("loss", loss, ("squared", "cross_entropy"))
        l2, radius = nonnegative("l2", l2), nonnegative("radius", radius)
        self._flat = FlatModel(model, device)
        self.radius, self.attack, self.loss, self.l2 = radius, attack or pgd, loss, l2
        self._clean = self.x = self._flat.fitting(checked_inputs(x, device))
        self._offsets = self._flat.check(self.x)
        self.y = checked_targets(y, loss, len(self.x), self.outputs, device)
        if self.radius:
            self.x = self._attacked(partial(self._flat, self._flat.start), self._clean, self.y)
            self._offsets = self._flat.check(self.x)
        jac = jacobian(self._flat, self.x, self.outputs, jacobian_bytes)
        self._range = range_of(jac, rank_tolerance)
        self._jacobian_bytes = jacobian_bytes
        self._noises: dict[tuple[int, bool, float], GradientNoise] = {}
        self.names, self.shapes = self._flat.names, self._flat.shapes
        self.rank_tolerance, self.dropped = self._range.tolerance, self._range.dropped

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

    # What numerics solves --------------------------------------------------------------------------------------------

    @cached_property
    def problem(self) -> LeastSquares | VectorLeastSquares:
        """The loss in the coordinates of the range, for numerics: exact, or the local quadratic of cross-entropy."""
        features, offsets = self._design
        if self.loss == "cross_entropy":
            return softmax_quadratic(features, offsets, as_array(self.y).astype(np.int64), self.l2)[0]
        targets = as_array(self.y) - offsets
        if self.outputs == 1:
            return LeastSquares(features[:, 0], targets[:, 0], self.l2)
        return VectorLeastSquares(features, targets, self.l2)

    def noise(self, batch_size: int, replacement: bool = True, *, label_noise: float = 0.0) -> GradientNoise:
        """The noise of its minibatches; numerics takes it where it wants a noise.

        For the squared loss it is exact at any weights. For cross-entropy it is that of every example's own quadratic
        about the minimum, and neither the noise nor the mean loss keeps to these where the law is wide: the
        `LocalQuadratic.remainder` of `local_quadratic` measures by how much they differ over a predicted law. An excess
        of the noise feeds on itself, so that the law is off by several times as much.

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
        key = (
            whole_number("batch_size", batch_size, least=1),
            flag("replacement", replacement),
            nonnegative("label_noise", label_noise),
        )
        if key not in self._noises:  # one object for one noise: what is known of it is remembered
            self._noises[key] = self._noise(*key)
        return self._noises[key]

    def _noise(self, batch_size: int, replacement: bool, label_noise: float) -> GradientNoise:
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

    def local_quadratic(self, batch_size: int, replacement: bool = True) -> LocalQuadratic:
        """The quadratic of the linearised network's loss, and the loss itself to hold it against.

        Parameters
        ----------
        batch_size : int
        replacement : bool

        Returns
        -------
        LocalQuadratic
            In the coordinates of the range; its `LocalQuadratic.remainder` over a law measures the difference, of the
            loss and of the noise.
        """
        features, offsets = self._design
        each, l2 = LOSSES[self.loss], self.l2

        def loss(a: torch.Tensor, rows: torch.Tensor, base: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            outputs = (base + rows @ a).unsqueeze(0)
            return each(outputs, y.unsqueeze(0)).squeeze(0) + 0.5 * l2 * (a @ a)

        data = (torch.tensor(features), torch.tensor(offsets), self.y.cpu())
        return local_quadratic(loss, self.problem.optimum, data, batch_size=batch_size, replacement=replacement)

    def network(self, coordinates: ArrayLike) -> torch.nn.Module:
        """A copy of the model itself, not linearised, with other weights.

        Parameters
        ----------
        coordinates : array_like, shape (r,)
            In the range; the complement stays as the model has it.

        Returns
        -------
        torch.nn.Module
            In double precision.
        """
        own = copy.deepcopy(self._flat.model).double()
        weights = self.weights(coordinates)
        if weights.ndim != 1:
            raise InvalidProblemError(f"coordinates must have shape ({self.rank},), got {np.shape(coordinates)}.")
        flat = torch.tensor(weights + self.complement)
        parameters = dict(own.named_parameters())
        with torch.no_grad():
            for name, value in self._flat.parameters(flat).items():
                parameters[name].copy_(value)
        return own

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
        choice("attack", attack, ("fixed", "again"))
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
            start=start if is_auto("steps", steps, 1) or start is not None else self.start, mean=mean, slots=slots,
            engine=engine, rng=rng, progress=progress,
        )  # fmt: skip

    def _attacked(
        self, model: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, y: torch.Tensor
    ) -> torch.Tensor:
        found = self.attack(model, x, y, self.radius, loss=LOSSES[self.loss])
        if not isinstance(found, torch.Tensor) or found.shape != x.shape:
            raise InvalidProblemError(f"the attack must return inputs of shape {tuple(x.shape)}, got {found!r}.")
        return found.detach()
