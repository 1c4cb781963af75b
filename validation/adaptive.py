"""Measure the real ``torch.optim.Adam`` and ``torch.optim.RMSprop`` at their stationary law.

Both work coordinate by coordinate, so one (replicas, d) parameter is as many independent runs as it has rows. numerics'
`adaptive_covariance` freezes the second moments; nothing is frozen here.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from .. import numerics
from ..errors import HyperparameterError, InvalidProblemError, InvalidRuleError
from ..numerics import Quadratic
from ..numerics._arrays import nonnegative, number
from ..theory import Optimizer, heavy_ball, sgd
from ._forgetting import Forgetting
from ._gradients import Measurable
from ._memory import Keeper
from ._moments import moments
from ._runs import TorchRun, advance, check_engine, check_optimizer, is_auto, read_slots, set_up
from .stationary import LARGEST_AUTOMATIC_BURN_IN, SNAPSHOT_SHARE, SNAPSHOTS, TRANSIENT_FRACTION, Estimate

__all__ = ["adaptive_covariance"]

Array = NDArray[np.float64]
Engine = Literal["auto", "torch.optim.Adam", "torch.optim.RMSprop"]

ENGINES = ("torch.optim.Adam", "torch.optim.RMSprop")
#: Steps that Adam is told it has taken, after which its bias corrections are 1.
LONG_AGO = 1e8


class AdaptiveRun(TorchRun):
    """The real object, warm: its average of squared gradients starts where it is expected to stay."""

    def __init__(
        self, engine: str, values: dict[str, float], beta2: float, eps: float, start: list[torch.Tensor]
    ) -> None:
        self.parameter, squares = start
        zeros = torch.zeros_like(self.parameter)
        state: dict[str, Any] = {"step": torch.tensor(LONG_AGO)}
        self.optim: Any
        if engine == "torch.optim.Adam":
            betas = (values.get("momentum", 0.0), beta2)
            self.optim = torch.optim.Adam([self.parameter], lr=values["lr"], betas=betas, eps=eps)
            state |= {"exp_avg": zeros, "exp_avg_sq": squares}
        else:
            momentum = values.get("momentum", 0.0)
            self.optim = torch.optim.RMSprop([self.parameter], lr=values["lr"], alpha=beta2, eps=eps, momentum=momentum)
            state |= {"square_avg": squares} | ({"momentum_buffer": zeros} if momentum else {})
        self.optim.state[self.parameter] = state


def adaptive_covariance(
    optimizer: Optimizer,
    problem: Measurable,
    *,
    beta2: float,
    eps: float = 1e-8,
    replicas: int,
    steps: int | Literal["auto"] = "auto",
    snapshots: int | Literal["auto"] = "auto",
    engine: Engine = "auto",
    rng: np.random.Generator | int | None = None,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Estimate:
    r"""Measure the stationary covariance of the weights under the real Adam or RMSprop.

    ============================================  =================================================================
    rule                                          PyTorch
    ============================================  =================================================================
    ``heavy_ball(lr, momentum=b, dampening=b)``   ``Adam(lr, betas=(b, beta2), eps=eps)``
    ``sgd(lr)``                                   ``RMSprop(lr, alpha=beta2, eps=eps)``
    ``heavy_ball(lr, momentum)``                  ``RMSprop(lr, alpha=beta2, eps=eps, momentum=momentum)``
    ============================================  =================================================================

    Every replica starts at the optimum, with its average of squared gradients at the self-consistent frozen one
    (numerics' `adaptive_covariance`) and Adam's bias corrections at 1; then it runs as PyTorch runs.

    Parameters
    ----------
    optimizer : Optimizer
        A rule of the table, every hyper-parameter bound.
    problem : Quadratic or GradientNoise
        With a `Quadratic`, gradients carry Gaussian noise of covariance ``problem.noise``.
    beta2 : float
        Decay of the average of squared gradients, above 0 and below 1.
    eps : float, default 1e-8
    replicas : int
        Independent runs, at least 2.
    steps : int or "auto"
        Total steps of each replica. "auto" adds the burn-in of the frozen law to the time in which the average of
        squared gradients forgets its start as well, then goes on to the last snapshot.
    snapshots : int or "auto"
        States to use of each replica; "auto" is 8. They are so far apart that the squared correlation between
        neighbours is at most exp(-2) under the frozen law.
    engine : {"auto", "torch.optim.Adam", "torch.optim.RMSprop"}
        Which class runs; "auto" is that of the table. ``sgd`` is Adam's rule as well, with ``betas=(0, beta2)``.
    rng : numpy.random.Generator or int, optional
        An int seeds torch's generator directly; a Generator gives up one integer; None asks the operating system.
    device : str or torch.device
    progress : bool
        Show a progress bar, if standard error is a terminal and rich is installed.

    Returns
    -------
    Estimate
        Of the weights; compare it with ``numerics.adaptive_covariance(...)``, whose error is of order ``1 - beta2``.

    Raises
    ------
    InvalidRuleError
        If neither class runs the rule.
    InvalidProblemError
        If an argument does not fit, or "auto" would need more than a million steps.
    NonStationaryError
        If iterates left the finite numbers.

    References
    ----------
    kingma2015, tieleman2012rmsprop, pytorch

    Examples
    --------
    >>> from sgdcov import numerics
    >>> from sgdcov.theory import sgd
    >>> problem = numerics.Quadratic(hessian=[[1.0]], noise=[[1.0]], optimum=[0.0])
    >>> measured = adaptive_covariance(sgd(lr=0.5), problem, beta2=0.99, replicas=2000, rng=0)
    >>> frozen = numerics.adaptive_covariance(sgd(lr=0.5), problem.hessian, problem.noise)
    >>> bool(abs(measured.value[0, 0] / frozen.value[0, 0] - 1) < 0.02)
    True
    """
    check_optimizer(optimizer)
    values = {name: float(value) for name, value in optimizer.values.items()}
    chosen = _engine(optimizer, engine)
    try:
        beta2 = number("beta2", beta2, least=0.0, most=1.0, open=True)
    except InvalidProblemError as error:
        raise HyperparameterError(str(error), name="beta2") from error
    eps = nonnegative("eps", eps)
    setup = set_up(
        optimizer, problem, replicas=replicas, slots=("w",), batch_size=None, replacement=True, engine="rule", rng=rng,
        device=device,
    )  # fmt: skip
    quadratic: Quadratic = setup.quadratic
    frozen = numerics.adaptive_covariance(optimizer, quadratic.hessian, setup.source.noise, eps=eps)
    law = frozen.covariance
    moving = np.delete(np.asarray(law.eigenvalues), np.asarray(law.flat, dtype=int))
    forgetting = Forgetting.of(optimizer, moving, ("w",))
    burn_in, spacing, count, left = _schedule(forgetting, beta2, replicas, steps, snapshots)

    rows = [quadratic.optimum, frozen.second_moment]
    start = [torch.tensor(row, device=device).unsqueeze(1).repeat(1, replicas).T for row in rows]
    run = AdaptiveRun(chosen, values, float(beta2), float(eps), start)
    total = burn_in + (count - 1) * spacing
    setup.refuse_too_much(count, 1)
    samples = np.empty((count, replicas, quadratic.dim))

    def take(step: int) -> None:
        if step >= burn_in and (step - burn_in) % spacing == 0:
            samples[(step - burn_in) // spacing] = read_slots(run, ("w",))

    advance(run, setup, total, take, progress=progress, snapshots=count)
    value, standard_error, mean, mean_standard_error = moments(samples)
    return Estimate(
        value=value,
        standard_error=standard_error,
        mean=mean,
        mean_standard_error=mean_standard_error,
        samples=Keeper().keep(samples),
        replicas=replicas,
        steps=total,
        burn_in=burn_in,
        spacing=spacing,
        transient=left / np.sqrt(2.0 / (replicas * count)),
        slots=("w",),
        optimizer=optimizer,
        engine=f"{chosen}, beta2={beta2:g}",
        gradients=setup.source.kind,
        seed=setup.seed,
    )


def _engine(optimizer: Optimizer, engine: str) -> str:
    """The class that runs the rule; refuses another."""
    optimizer.require_bound()
    values = {name: float(value) for name, value in optimizer.values.items()}
    momentum, dampening = values.get("momentum", 0.0), values.get("dampening", 0.0)
    known = optimizer.rule in (sgd, heavy_ball) and not values.get("weight_decay", 0.0)
    fits = []
    if known and dampening == 0.0:
        fits.append("torch.optim.RMSprop")
    if known and dampening == momentum:
        fits.append("torch.optim.Adam")
    check_engine(engine, ("auto", *ENGINES))
    if engine == "auto" and fits:
        return fits[0]
    if engine in fits:
        return engine
    which = "neither torch.optim.Adam nor RMSprop runs" if engine == "auto" else f"{engine} does not run"
    raise InvalidRuleError(
        f"{which} {optimizer!r}: Adam is heavy_ball(lr, momentum=b, dampening=b), RMSprop is sgd(lr) or "
        f"heavy_ball(lr, momentum), without weight decay."
    )


def _schedule(
    forgetting: Forgetting, beta2: float, replicas: int, steps: int | str, snapshots: int | str
) -> tuple[int, int, int, float]:
    """Burn-in, spacing and number of snapshots, and the share of the start that the burn-in leaves."""
    soon = is_auto("steps", steps, 1)
    count = SNAPSHOTS if is_auto("snapshots", snapshots, 1) else int(snapshots)
    share = TRANSIENT_FRACTION * math.sqrt(2.0 / (replicas * count))
    spacing = forgetting.steps(SNAPSHOT_SHARE, LARGEST_AUTOMATIC_BURN_IN)
    frozen = forgetting.steps(share, LARGEST_AUTOMATIC_BURN_IN)
    squares = math.ceil(math.log(share) / math.log(beta2))
    if frozen is None or spacing is None:
        if soon:
            raise InvalidProblemError(
                f"the slowest direction forgets its start in more than {LARGEST_AUTOMATIC_BURN_IN:,} steps; give "
                f"steps=... to run anyway, or take a larger learning rate."
            )
        frozen, spacing = LARGEST_AUTOMATIC_BURN_IN, 1
    burn_in = frozen + squares
    if not soon:
        burn_in = int(steps) - (count - 1) * spacing
        if burn_in < 1:
            raise InvalidProblemError(
                f"{count} snapshots that are {spacing} steps apart do not fit into steps={steps}; take at least "
                f"{(count - 1) * spacing + 1} steps or fewer snapshots."
            )
    return burn_in, spacing, count, max(forgetting.share(burn_in), beta2**burn_in)
