r"""Worst-case inputs within a ball and a domain: the fast gradient step, and projected gradient ascent.

Both look for the inputs z that maximise the loss of each example over

.. math:: |z - x|_p \le \varepsilon , \qquad \text{low} \le z \le \text{high} , \qquad p \in \{2, \infty\} .

The projection on that set is exact. For p = 2 it is :math:`x + \operatorname{clip}(t\delta)` with the one t at which
the norm is :math:`\varepsilon`, found among sorted breakpoints; so is the maximum of a linear function, which `fgsm`
takes: on a linear model it is the exact worst case.

Where the gradient at an input is exactly 0 (a squared loss whose residual is 0) it names no direction, although the
worst case is at the boundary. Then the gradients at other points of the ball do, and their maxima in turn. For a loss
that is convex in the input, :math:`\ell(z') \ge \ell(z) + \nabla\ell(z)^\top (z' - z)`: a step to the maximum of the
linearised loss never loses, from wherever it is taken.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from ..errors import InvalidProblemError, SgdcovError
from ..numerics._arrays import finite_array, flag, nonnegative, number, shown, tuple_of, whole_number
from ._functional import refuse_random_modules
from ._output_losses import Loss, per_example_loss

__all__ = ["fgsm", "pgd"]

Domain = tuple[float | torch.Tensor, float | torch.Tensor] | None
#: Points of the ball that are tried where the gradient at an input is 0, and gradients taken from each on.
PROBES, PROBE_STEPS = 3, 3
#: A count above it is a slip.
MOST = 10**9
Model = torch.nn.Module | Callable[[torch.Tensor], torch.Tensor]  # anything that maps inputs to outputs


def fgsm(
    model: Model,
    x: torch.Tensor,
    y: torch.Tensor,
    radius: float,
    *,
    loss: Loss = "cross_entropy",
    norm: float = np.inf,
    domain: Domain = None,
) -> torch.Tensor:
    """Attack inputs by one gradient: the exact maximum of the linearised loss over the ball and the domain.

    Parameters
    ----------
    model : torch.nn.Module or callable
        From inputs to outputs, one row for each.
    x : torch.Tensor, shape (n, ...)
    y : torch.Tensor, shape (n, ...)
        What ``loss`` compares outputs with.
    radius : float
        At least 0.
    loss : {"cross_entropy", "squared", "logistic"} or callable
        A callable maps (outputs, y) to one loss per example.
    norm : {2, numpy.inf}
        Of the perturbation of one example.
    domain : (low, high), optional
        Bounds of the inputs, numbers or tensors that broadcast to ``x``.

    Returns
    -------
    torch.Tensor, like x
        For ``norm=inf`` and no domain, Goodfellow's ``x + radius*sign(gradient)``. Where the gradient is exactly 0,
        the worst of what the gradients at other points of the ball lead to.

    Raises
    ------
    InvalidProblemError
        If an argument does not fit, inputs are outside of the domain, or the loss has no finite gradient.

    References
    ----------
    goodfellow2015

    Examples
    --------
    The second input cannot go up further than 1:

    >>> w = torch.tensor([[1.0], [-2.0], [0.5]], dtype=torch.float64)
    >>> x = torch.tensor([[0.5, 0.95, 0.5], [0.95, 0.5, 0.5]], dtype=torch.float64)
    >>> fgsm(lambda z: z @ w, x, torch.tensor([-9.0, -9.0]), 0.1, loss="squared", domain=(0, 1))
    tensor([[0.6000, 0.8500, 0.6000],
            [1.0000, 0.4000, 0.6000]], dtype=torch.float64)
    """
    region = _Region.of(x, radius, norm, domain)
    objective = _Objective(model, y, loss)
    value, gradient = objective(region.x)
    delta = region.steepest(gradient)
    return region.inside(_escaped(region, objective, delta, value, gradient))


def pgd(
    model: Model,
    x: torch.Tensor,
    y: torch.Tensor,
    radius: float,
    *,
    loss: Loss = "cross_entropy",
    norm: float = np.inf,
    steps: int = 20,
    step_size: float | None = None,
    restarts: int = 1,
    random_start: bool = False,
    domain: Domain = None,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Attack inputs by projected gradient ascent, and keep the worst that was met.

    A step is ``step_size`` times the sign of the gradient (``norm=inf``) or its direction (``norm=2``), then the exact
    projection on the ball and the domain.

    Parameters
    ----------
    model : torch.nn.Module or callable
        From inputs to outputs, one row for each.
    x : torch.Tensor, shape (n, ...)
    y : torch.Tensor, shape (n, ...)
        What ``loss`` compares outputs with.
    radius : float
        At least 0.
    loss : {"cross_entropy", "squared", "logistic"} or callable
        A callable maps (outputs, y) to one loss per example.
    norm : {2, numpy.inf}
        Of the perturbation of one example.
    steps : int
        At least 1.
    step_size : float, optional
        ``2.5 * radius / steps`` by default, so that the boundary is within reach.
    restarts : int
        Ascents from different points; all but the first start at random ones.
    random_start : bool
        Whether the first starts at a random point of the ball too, and not at ``x``.
    domain : (low, high), optional
        Bounds of the inputs, numbers or tensors that broadcast to ``x``.
    generator : torch.Generator, optional
        For random starts; on the device of ``x``.

    Returns
    -------
    torch.Tensor, like x
        For each example the point of largest loss among all iterates, ``x`` itself, what `fgsm` finds and the point
        opposite to that, which is the worst one of a squared loss where the domain cuts the other side short.

    Raises
    ------
    InvalidProblemError
        If an argument does not fit, inputs are outside of the domain, or the loss has no finite gradient.

    References
    ----------
    madry2018

    Examples
    --------
    On a linear model the worst case is ``radius`` times the dual norm of the weights:

    >>> w = torch.tensor([[3.0], [-4.0]], dtype=torch.float64)
    >>> x, y = torch.zeros(1, 2, dtype=torch.float64), torch.ones(1)
    >>> worst = pgd(lambda z: z @ w, x, y, 0.1, loss="squared", norm=2)
    >>> round(float(y - worst @ w), 12)  # 1 + 0.1 * 5
    1.5
    """
    steps, restarts = (
        whole_number(name, count, least=1, most=MOST) for name, count in (("steps", steps), ("restarts", restarts))
    )
    random_start = flag("random_start", random_start)
    if generator is not None and not isinstance(generator, torch.Generator):
        raise InvalidProblemError(f"generator must be a torch.Generator, got {shown(generator)}.")
    region = _Region.of(x, radius, norm, domain)
    size = 2.5 * region.radius / steps if step_size is None else number("step_size", step_size, least=0.0, open=True)
    if (random_start or restarts > 1) and generator is None:
        raise InvalidProblemError("random starts need generator=torch.Generator(), seeded; nothing global is drawn on.")
    objective = _Objective(model, y, loss)
    worst, (highest, slope) = region.x.clone(), objective(region.x)

    def keep(z: torch.Tensor, value: torch.Tensor) -> None:
        nonlocal worst, highest
        better = value > highest
        highest = torch.where(better, value, highest)
        worst = torch.where(better.view(-1, *[1] * (x.dim() - 1)), z, worst)

    origin = _escaped(region, objective, torch.zeros_like(region.x), highest, slope)
    for at_once in (region.inside(region.steepest(side * slope)) for side in (1.0, -1.0)):
        keep(at_once, objective.value(at_once))
    for restart in range(restarts):
        delta = origin
        if generator is not None and (random_start or restart):
            delta = region.project(region.random(generator))
        for _ in range(steps):
            z = region.inside(delta)
            value, gradient = objective(z)
            keep(z, value)
            delta = region.project(delta + size * region.direction(gradient))
        z = region.inside(delta)
        keep(z, objective.value(z))
    return worst


def _escaped(
    region: _Region, objective: _Objective, delta: torch.Tensor, value: torch.Tensor, gradient: torch.Tensor
) -> torch.Tensor:
    """``delta``, but for examples whose gradient is exactly 0: there the worst of what other points of the ball show.

    ``value`` and ``gradient`` are those of the examples as they are; nothing is drawn from a global generator.
    """
    flat = (gradient == 0).flatten(1).all(dim=1)
    if not bool(flat.any()) or region.radius == 0.0:
        return delta
    stuck = flat.view(-1, *[1] * (gradient.dim() - 1))
    generator = torch.Generator(device=region.x.device).manual_seed(0)
    best, highest = torch.zeros_like(delta), value

    def keep(tried: torch.Tensor, found: torch.Tensor) -> None:
        nonlocal best, highest
        better = found > highest
        best, highest = torch.where(better.view(stuck.shape), tried, best), torch.where(better, found, highest)

    def at(tried: torch.Tensor) -> torch.Tensor:
        return region.inside(torch.where(stuck, tried, 0.0))

    for _ in range(PROBES):
        tried = region.project(region.random(generator))
        for _ in range(PROBE_STEPS):
            reached, uphill = objective(at(tried))
            keep(tried, reached)
            # Both ends: within a domain they are not equally far away.
            for end in (region.steepest(uphill), region.steepest(-uphill)):
                found = objective.value(at(end))
                better = found > reached
                reached = torch.where(better, found, reached)
                tried = torch.where(better.view(stuck.shape), end, tried)
            keep(tried, reached)
    return torch.where(stuck, best, delta)


class _Objective:
    """The loss of every example and its gradient by the inputs."""

    def __init__(self, model: Model, y: torch.Tensor, loss: Loss) -> None:
        if not callable(model) or not isinstance(y, torch.Tensor):
            raise InvalidProblemError(
                f"an attack takes a model, a function of inputs, and labels y as a tensor; got {shown(model)} and "
                f"{shown(y)}."
            )
        refuse_random_modules(model)
        self.model, self.y, self.loss = model, y, per_example_loss(loss)

    def _losses(self, z: torch.Tensor) -> torch.Tensor:
        try:
            outputs = self.model(z)
        except SgdcovError:
            raise
        except Exception as error:
            kinds = {p.dtype for p in self.model.parameters()} if isinstance(self.model, torch.nn.Module) else set()
            raise InvalidProblemError(
                f"the model does not take inputs of shape {tuple(z.shape)} and {z.dtype} "
                f"({(str(error) or type(error).__name__).splitlines()[0]}); its parameters are "
                f"{', '.join(map(str, kinds)) or 'unknown'}. Types agree after model.double() and x.double()."
            ) from error
        if not isinstance(outputs, torch.Tensor):
            raise InvalidProblemError(
                f"the model returns a {type(outputs).__name__}, not a tensor of outputs: give a function that returns "
                f"the one tensor that the loss is of."
            )
        losses = self.loss(outputs, self.y)
        if losses.shape != (len(z),):
            raise InvalidProblemError(
                f"the loss must be one number per example, shape ({len(z)},), got {tuple(losses.shape)}."
            )
        bad = ~torch.isfinite(losses.detach())
        if bool(bad.any()):
            raise InvalidProblemError(f"the loss is not finite for {int(bad.sum())} of {len(z)} inputs.")
        return losses

    def value(self, z: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return self._losses(z)

    def __call__(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.enable_grad():
            moving = z.detach().requires_grad_()
            losses = self._losses(moving)
            if not losses.requires_grad:
                raise InvalidProblemError(
                    "the loss is not differentiable by the inputs (no gradient reaches them): attack a differentiable "
                    "surrogate, such as cross-entropy in place of the number of errors."
                )
            (gradient,) = torch.autograd.grad(losses.sum(), moving)
        bad = (~torch.isfinite(gradient)).flatten(1).any(dim=1)
        if bool(bad.any()):
            raise InvalidProblemError(
                f"the gradient of the loss is not finite for {int(bad.sum())} of {len(z)} inputs."
            )
        return losses.detach(), gradient


def _bound(bound: object, x: torch.Tensor) -> torch.Tensor:
    """One end of the domain in the shape of x; an infinite number is no bound."""
    if not isinstance(bound, torch.Tensor):
        free = isinstance(bound, float) and bool(np.isinf(bound))
        bound = torch.tensor(bound if free else finite_array("domain", bound))  # type: ignore[arg-type]
    return bound.to(dtype=x.dtype, device=x.device).expand_as(x)


class _Region:
    """The ball about every example, cut by the domain; perturbations have the shape of x."""

    def __init__(self, x: torch.Tensor, radius: float, norm: float, low: torch.Tensor, high: torch.Tensor) -> None:
        self.x, self.radius, self.norm, self.low, self.high = x, radius, norm, low, high

    @classmethod
    def of(cls, x: torch.Tensor, radius: float, norm: float, domain: Domain) -> _Region:
        if not isinstance(x, torch.Tensor) or not x.is_floating_point() or x.dim() < 2:
            raise InvalidProblemError("x must be a floating-point tensor of shape (n, ...), one example a row.")
        radius = nonnegative("radius", radius)
        if isinstance(norm, str) or not np.isscalar(norm) or norm not in (2, np.inf):
            raise InvalidProblemError(f"norm must be 2 or numpy.inf, got {shown(norm)}.")
        try:
            low, high = (-np.inf, np.inf) if domain is None else tuple_of("domain", domain)
            bounds = [_bound(b, x) for b in (low, high)]
        except (TypeError, ValueError, RuntimeError, SgdcovError) as error:
            raise InvalidProblemError(
                f"domain must be (low, high), numbers or tensors of the shape of x, got {shown(domain)}."
            ) from error
        outside = ((x < bounds[0]) | (x > bounds[1]) | ~torch.isfinite(x)).flatten(1).any(dim=1)
        if bool(outside.any()):
            raise InvalidProblemError(
                f"{int(outside.sum())} of {len(x)} inputs are outside of the domain (or not finite): the inputs span "
                f"[{float(x.min()):.6g}, {float(x.max()):.6g}]; an attack starts inside."
            )
        return cls(x.detach(), radius, float(norm), bounds[0], bounds[1])

    def inside(self, delta: torch.Tensor) -> torch.Tensor:
        """The perturbed inputs, in the domain to the last bit."""
        return torch.minimum(torch.maximum(self.x + delta, self.low), self.high)

    def direction(self, gradient: torch.Tensor) -> torch.Tensor:
        """The steepest unit step; none where the gradient is 0."""
        if self.norm == np.inf:
            return torch.sign(gradient)
        length = gradient.flatten(1).norm(dim=1).view(-1, *[1] * (gradient.dim() - 1))
        return torch.where(length > 0, gradient / length, torch.zeros_like(gradient))

    def random(self, generator: torch.Generator) -> torch.Tensor:
        """Uniform perturbations of the ball."""
        x = self.x
        if self.norm == np.inf:
            uniform = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device)
            return self.radius * (2.0 * uniform - 1.0)
        normal = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        uniform = torch.rand(len(x), generator=generator, dtype=x.dtype, device=x.device)
        share = uniform ** (1.0 / x[0].numel())
        return self.radius * share.view(-1, *[1] * (x.dim() - 1)) * self.direction(normal)

    def project(self, delta: torch.Tensor) -> torch.Tensor:
        """The nearest perturbation in the ball and the domain."""
        boxed = torch.minimum(torch.maximum(delta, self.low - self.x), self.high - self.x)
        if self.norm == np.inf:
            return boxed.clamp(-self.radius, self.radius)
        too_long = boxed.flatten(1).norm(dim=1) > self.radius
        filled = self._filled(delta)
        return torch.where(too_long.view(-1, *[1] * (delta.dim() - 1)), filled, boxed)

    def steepest(self, gradient: torch.Tensor) -> torch.Tensor:
        """The perturbation with the largest product with a gradient."""
        if self.norm == np.inf:
            return self.project(self.radius * torch.sign(gradient))
        return self._filled(gradient)

    def _filled(self, delta: torch.Tensor) -> torch.Tensor:
        """``clip(t delta)`` to the domain with the t at which it is as long as the radius, or as it can be."""
        d = delta.flatten(1)
        room = torch.where(d > 0, self.high.flatten(1) - self.x.flatten(1), self.x.flatten(1) - self.low.flatten(1))
        length = d.abs()
        breakpoint_ = torch.where(length > 0, room / length, torch.full_like(d, np.inf))
        order = breakpoint_.argsort(dim=1)
        sorted_break, sorted_room, sorted_length = (a.gather(1, order) for a in (breakpoint_, room, length))
        # With the first k at their bounds: their squares, and those of the rest per unit of t squared.
        zero = torch.zeros_like(d[:, :1])
        full = torch.cat([zero, torch.where(sorted_break < np.inf, sorted_room.square(), 0.0).cumsum(1)], dim=1)
        rest = torch.cat([sorted_length.square().flip(1).cumsum(1).flip(1), zero], dim=1)
        at_break = full[:, 1:] + torch.where(rest[:, 1:] > 0, sorted_break.square() * rest[:, 1:], zero)
        k = ((at_break <= self.radius**2) & (sorted_break < np.inf)).sum(dim=1, keepdim=True)
        left = (self.radius**2 - full.gather(1, k)).clamp(min=0.0)
        t = (left / rest.gather(1, k)).sqrt()
        moved = torch.where(length > 0, torch.minimum(t * length, room), zero)
        return (torch.sign(d) * moved).view(delta.shape)
