"""Runs of SGD on a linearised network, in the space of all of its parameters, seen in the coordinates of the range."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch.func import grad, jvp, vmap

from .. import numerics
from ..errors import InvalidProblemError
from ..numerics import GradientNoise, Quadratic
from ..theory import Optimizer
from ._draws import Gradient
from ._fourth_moment import fourth_moment
from ._functional import FlatModel
from ._gradients import GradientSource
from ._jacobian import ExplicitJacobian, Range
from ._memory import Keeper, refuse_too_much
from ._minibatches import indices
from ._moments import moments
from ._output_losses import OutputLoss
from ._planning import forgetting_of, stationary_law
from ._runs import (
    ENGINES,
    Engine,
    Run,
    Setup,
    advance,
    check_count,
    check_engine,
    check_optimizer,
    check_slots,
    is_auto,
    seed_of,
)
from ._starts import Start, begin
from .stationary import Estimate, _schedule

__all__ = ["LinearizedEstimate", "Tangent", "measured"]

Array = NDArray[np.float64]

#: Replicas whose gradients are taken at once where the Jacobian is no matrix.
REPLICAS_AT_ONCE = 64


@dataclass(frozen=True, eq=False, repr=False)
class LinearizedEstimate(Estimate):
    """A law measured in all parameters of a linearised network: an `Estimate` in the coordinates of the range.

    Attributes
    ----------
    parameters : int
        P, the dimension in which the run took place.
    time : int
        Steps after the start at which the last snapshot was taken.
    start : str
        In words.
    complement_factor : float
        By what the part of the weights outside of the range was to be multiplied in that time.
    complement_error : float
        The largest difference from that, over all replicas and parameters, relative to the largest of the weights.
    complement_tolerance : float
        What the rounding of so many steps may make of it.
    """

    parameters: int = field(kw_only=True)
    time: int = field(kw_only=True)
    start: str = field(kw_only=True)
    complement_factor: float = field(kw_only=True)
    complement_error: float = field(kw_only=True)
    complement_tolerance: float = field(kw_only=True)

    def _rows(self) -> list[tuple[str, str]]:
        rows = super()._rows()
        if not self.transient:  # a number of steps after a start, and no burn-in to a law
            at = [name for name, _ in rows].index("sample")
            rows[at : at + 2] = [("sample", f"{self.replicas} replicas, {self.time} steps after the start")]
        rows.insert(1, ("run in", f"{self.parameters:,} parameters; start: {self.start}"))
        verdict = "as it should be" if self.complement_error <= self.complement_tolerance else "NOT as it should be"
        text = f"times {self.complement_factor:.6g}, {verdict} (off by {self.complement_error:.2g})"
        return [*rows, ("complement", text)]


@dataclass(frozen=True)
class Tangent:
    """A linearised network and its data, in torch."""

    flat: FlatModel
    basis: Range
    offsets: torch.Tensor  # (N, K) outputs at the model's own weights
    x: torch.Tensor
    y: torch.Tensor
    loss: OutputLoss
    l2: float
    attack: Callable[[Callable[[torch.Tensor], torch.Tensor], torch.Tensor, torch.Tensor], torch.Tensor] | None

    def outputs(self, w: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """f(x; w0) + J(x) (w - w0), shape (n, K), for weights (P,)."""
        both = jvp(lambda p: self.flat(p, x), (self.flat.start,), (w - self.flat.start,))
        return both[0] + both[1]  # type: ignore[no-any-return]

    def gradients(
        self, replicas: int, generator: torch.Generator, *, batch_size: int, replacement: bool, label_noise: float
    ) -> Iterator[Gradient]:
        """Gradients (replicas, P) of true minibatches, one function a step."""
        explicit = isinstance(self.basis.jacobian, ExplicitJacobian) and self.attack is None
        batches = indices(len(self.x), replicas, batch_size, generator, replacement=replacement)
        for drawn in batches:
            y = self.y[drawn]
            if label_noise:
                fresh = torch.randn(y.shape, generator=generator, dtype=torch.float64, device=y.device)
                y = y + label_noise * fresh
            one = self._by_rows if explicit else self._by_products

            def gradient(
                w: torch.Tensor, drawn: torch.Tensor = drawn, y: torch.Tensor = y, one: Any = one
            ) -> torch.Tensor:
                return one(w, drawn, y) + self.l2 * w  # type: ignore[no-any-return]

            yield gradient

    def _by_rows(self, w: torch.Tensor, drawn: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """From the rows of the Jacobian matrix, which are never copied: see `_minibatches.example_batches`."""
        matrix = self.basis.jacobian.matrix  # type: ignore[union-attr]
        replicas, batch_size = drawn.shape
        outputs = self.offsets.shape[1]
        rows = (drawn.unsqueeze(2) * outputs + torch.arange(outputs, device=drawn.device)).flatten(1)
        weights = torch.ones(rows.shape, dtype=torch.float64, device=w.device)
        with torch.enable_grad():
            moving = weights.requires_grad_()
            total = torch.nn.functional.embedding_bag(rows, matrix, mode="sum", per_sample_weights=moving)
            (products,) = torch.autograd.grad(total, moving, w.detach() - self.flat.start)
        f = self.offsets[drawn] + products.view(replicas, batch_size, outputs)
        slopes = self._output_gradients(f, y) / batch_size
        return torch.nn.functional.embedding_bag(rows, matrix, mode="sum", per_sample_weights=slopes.flatten(1))

    def _output_gradients(self, f: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Of every example's loss by its outputs; f (replicas, B, K)."""
        flat_f, flat_y = f.reshape(-1, f.shape[2]), y.reshape(-1, *y.shape[2:])
        with torch.enable_grad():
            moving = flat_f.detach().requires_grad_()
            (found,) = torch.autograd.grad(self.loss(moving, flat_y).sum(), moving)
        return found.view(f.shape)

    def _by_products(self, w: torch.Tensor, drawn: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """By differentiating the tangent itself, at inputs that are attacked anew where they are."""

        def mean_loss(own: torch.Tensor, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return self.loss(self.outputs(own, inputs), targets).mean()

        try:
            x = self._attacked(w, self.x[drawn], y)
            return vmap(grad(mean_loss), chunk_size=REPLICAS_AT_ONCE)(w.detach(), x, y)  # type: ignore[no-any-return]
        except RuntimeError as error:
            raise InvalidProblemError(
                f"torch.func cannot vectorise this model over weights ({str(error).splitlines()[0]}). Allow its "
                f"Jacobian as a matrix by jacobian_bytes; inputs that are attacked again at every step need vmap."
            ) from error

    def _attacked(self, w: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Inputs (replicas, B, ...) attacked for each replica's own weights."""
        if self.attack is None:
            return x
        replicas, batch_size = x.shape[:2]
        fixed = w.detach()

        def model(inputs: torch.Tensor) -> torch.Tensor:
            own = inputs.view(replicas, batch_size, *inputs.shape[1:])
            return vmap(self.outputs)(fixed, own).flatten(0, 1)

        return self.attack(model, x.flatten(0, 1), y.flatten(0, 1)).view(x.shape)


def measured(
    tangent: Tangent,
    optimizer: Optimizer,
    noise: GradientNoise,
    *,
    batch_size: int,
    replacement: bool,
    label_noise: float,
    replicas: int,
    steps: int | Literal["auto"],
    snapshots: int | Literal["auto"],
    start: Start,
    mean: ArrayLike | None,
    slots: tuple[str, ...],
    engine: Engine,
    rng: np.random.Generator | int | None,
    progress: bool,
) -> LinearizedEstimate:
    """Measure the law in the coordinates of the range by a run in all parameters; ``noise`` plans and starts it."""
    seed = seed_of(rng)
    check_optimizer(optimizer)
    optimizer.require_bound()
    check_count("replicas", replicas, 2)
    check_engine(engine, ENGINES)
    slots = check_slots(optimizer, slots)
    generator = torch.Generator(device=tangent.x.device).manual_seed(seed)
    gradients = tangent.gradients(
        replicas, generator, batch_size=batch_size, replacement=replacement, label_noise=label_noise
    )
    with_or_without = "with" if replacement else "without"
    kind = f"minibatches of {batch_size} {with_or_without} replacement"
    kind += "" if tangent.attack is None else ", attacked anew at every step"
    quadratic = Quadratic(noise.hessian, noise.covariance(), noise.optimum)
    source = GradientSource(gradients, kind, quadratic, noise)
    setup = Setup(optimizer, source, replicas, slots, engine, generator, seed, batch_size * tangent.offsets.shape[1])
    needed = 8 * replicas * tangent.flat.size * (len(optimizer.rule.slots) + 4)  # the run is in all of them
    refuse_too_much(needed, f"{replicas:,} replicas of {tangent.flat.size:,} weights")

    known, transient = optimizer.rule.slots, 0.0
    soon = is_auto("steps", steps, 1)
    if soon:
        if start is not None or mean is not None:
            raise InvalidProblemError("a start is for a number of steps; steps='auto' runs to the stationary law.")
        stationary_law(optimizer, source)  # refuses what has none
        forgetting = forgetting_of(optimizer, source, slots)
        burn_in, spacing, count = _schedule(forgetting, replicas, steps, snapshots, len(slots) * tangent.basis.rank)
        fixed = numerics.stationary_mean(optimizer, quadratic.hessian, quadratic.optimum, slots=known)
        inside = [torch.tensor(part).repeat(replicas, 1) for part in np.split(fixed, len(known))]
        text, transient = "the stationary mean", forgetting.share(burn_in) / np.sqrt(2.0 / (replicas * count))
    else:
        burn_in, spacing, count = int(steps), 1, 1
        begun = begin(setup, start, mean, progress=False)
        if begun.burn_in:
            raise InvalidProblemError("start by running another optimizer is not offered here; give its law instead.")
        inside, text = begun.state, begun.text
    total = burn_in + (count - 1) * spacing

    weights = tangent.flat.start
    outside = weights - tangent.basis.weights(tangent.basis.coordinates(weights.unsqueeze(0))).squeeze(0)
    rest = _rest(optimizer)
    # Transposes of (P, replicas) tensors: elementwise steps keep the layout, as in the other measurements.
    state = [tangent.basis.weights(part.to(weights.device)) + r * outside for part, r in zip(inside, rest, strict=True)]
    run = setup.new_run(optimizer, [part.contiguous() for part in state])
    samples = np.empty((count, replicas, len(slots) * tangent.basis.rank))

    def take(step: int) -> None:
        if step >= burn_in and (step - burn_in) % spacing == 0:
            seen = [tangent.basis.coordinates(run.read(slot)) for slot in slots]
            samples[(step - burn_in) // spacing] = torch.cat(seen, dim=1).cpu().numpy()

    advance(run, setup, total, take, progress=progress, snapshots=count)
    value, standard_error, average, mean_standard_error = moments(samples)
    factor, error, tolerance = _complement(tangent, optimizer, run, outside, total)
    fourth = fourth_moment(optimizer, source, None if soon else total)
    return LinearizedEstimate(
        value=value, standard_error=standard_error, mean=average, mean_standard_error=mean_standard_error,
        samples=Keeper().keep(samples), replicas=replicas, steps=total, burn_in=burn_in, spacing=spacing,
        transient=transient, slots=slots, optimizer=optimizer, engine=engine, gradients=kind,
        fourth_moment=fourth, seed=seed,
        parameters=tangent.flat.size, time=total, start=text, complement_factor=factor, complement_error=error,
        complement_tolerance=tolerance,
    )  # fmt: skip


def _complement(
    tangent: Tangent, optimizer: Optimizer, run: Run, outside: torch.Tensor, steps: int
) -> tuple[float, float, float]:
    """What the complement was to be multiplied by, how far it is from that, and what rounding may make of it."""
    law = numerics.transient_mean(optimizer, [[tangent.l2]], steps, start=[1.0], optimum=[0.0])
    factor = float(law[0])
    weights = run.read("w")
    left = weights - tangent.basis.weights(tangent.basis.coordinates(weights))
    size = max(float(weights.abs().max()), float(outside.abs().max()))
    # A step rounds its P sums once; the basis is orthonormal to rounding of its own.
    eps = float(np.finfo(np.float64).eps) * (steps + 10.0) * np.sqrt(tangent.flat.size)
    loss_of_gram = 1.0 if tangent.basis.right is not None else 1.0 / tangent.basis.tolerance
    return factor, float((left - factor * outside).abs().max()) / size, float(eps * loss_of_gram)


def _rest(optimizer: Optimizer) -> list[float]:
    """Every slot at rest, per unit of the weights: where a step without gradient and weight decay leaves it."""
    if "weight_decay" in optimizer.values:
        optimizer = optimizer.replace(weight_decay=0)
    fixed = numerics.stationary_mean(optimizer, [[0.0]], [1.0], slots=optimizer.rule.slots)
    return [float(part) for part in fixed]
