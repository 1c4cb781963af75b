r"""Measure the stationary covariance: many independent replicas of a real run, stepped at once.

The state is one (replicas, d) tensor per slot. Every step calls the rule's own plain function (or the real
``torch.optim.SGD``) with gradients that carry fresh noise for each replica. After the burn-in, each replica contributes

.. math:: P_r = \frac1S \sum_{s=1}^{S} (z_{rs} - \bar z)(z_{rs} - \bar z)^\top

from S snapshots. Replicas are independent, whatever the law of the iterates and however the snapshots of one replica
depend on each other, so the spread of P_r between replicas gives standard errors that need neither normality nor an
autocorrelation time.
"""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from .. import numerics
from ..errors import InvalidProblemError
from ..numerics._result import ArrayResult
from ..theory import Optimizer
from ._forgetting import Forgetting
from ._fourth_moment import FourthMoment, fourth_moment
from ._gradients import Measurable
from ._memory import Keeper, snapshots_within
from ._moments import moments
from ._planning import forgetting_of, stationary_law
from ._runs import Setup, advance, is_auto, read_slots, set_up

__all__ = ["Estimate", "stationary_covariance"]

Array = NDArray[np.float64]

#: What the burn-in leaves of the transient, as a fraction of the Monte-Carlo standard error of a variance.
TRANSIENT_FRACTION = 0.01
#: Snapshots are so far apart that the squared correlation between neighbours is at most this in every eigendirection.
SNAPSHOT_SHARE = float(np.exp(-2.0))
#: Snapshots where the caller names none: past eight, more replicas buy more than more snapshots.
SNAPSHOTS = 8
#: The longest burn-in that is chosen without being asked for.
LARGEST_AUTOMATIC_BURN_IN = 1_000_000


@dataclass(frozen=True, eq=False, repr=False)
class Estimate(ArrayResult):
    """A measured stationary law: `value` is what ``numpy.asarray(estimate)`` gives, read-only as all arrays here.

    Attributes
    ----------
    value : ndarray, shape (k*d, k*d)
        Unbiased estimate of the covariance of the ``k`` stacked slots.
    standard_error : ndarray, shape (k*d, k*d)
        Of each entry, from the spread between replicas.
    mean, mean_standard_error : ndarray, shape (k*d,)
    samples : ndarray, shape (snapshots, replicas, k*d)
        The states themselves. Replicas are independent, snapshots of one replica are not. Of a large run only those of
        the first replicas are kept, 128 MB of them: every number above is of all replicas.
    replicas : int
    steps : int
        Steps that every replica took: ``burn_in + (snapshots - 1)*spacing``.
    burn_in, spacing : int
        Steps before the first snapshot, and from one to the next.
    transient : float
        The largest bias that the burn-in left in the variance along an eigenvector of the Hessian, in units of the
        standard error it would have with independent Gaussian samples: exact at the first snapshot where the noise is
        additive. Where the noise depends on the weights it is an estimate, from the rate at which second moments decay
        in the long run, and may be off by a factor of two.
    slots : tuple of str
    optimizer : Optimizer
    engine : str
        "rule" or "torch.optim".
    gradients : str
        What kind of gradients the run saw, in words.
    fourth_moment : FourthMoment or None
        Whether the law has the fourth moment that standard errors need; None where the noise is additive, or taken
        for it because the loss is not quadratic. For an `AdversarialLeastSquares` it is that of its smooth piece.
    seed : int
        ``rng=seed`` repeats the run on the same device and version of PyTorch.
    """

    value: Array
    standard_error: Array
    mean: Array
    mean_standard_error: Array
    samples: Array = field(repr=False)
    replicas: int
    steps: int
    burn_in: int
    spacing: int
    transient: float
    slots: tuple[str, ...]
    optimizer: Optimizer
    engine: str
    gradients: str
    fourth_moment: FourthMoment | None = field(default=None, kw_only=True)
    seed: int

    @property
    def relative_standard_error(self) -> float:
        """Frobenius norm of the standard errors relative to that of the estimate."""
        size = float(np.linalg.norm(self.value))
        return float(np.linalg.norm(self.standard_error)) / size if size else 0.0

    def _rows(self) -> list[tuple[str, str]]:
        snapshots, kept_replicas, size = self.samples.shape
        replicas = self.replicas
        stepper = {"rule": "its rule", "torch.optim": "torch.optim.SGD"}.get(self.engine, self.engine)
        fourth = [] if self.fourth_moment is None else [("fourth moment", str(self.fourth_moment))]
        return [
            ("optimizer", f"{self.optimizer!r}, stepped by {stepper}"),
            ("gradients", self.gradients),
            ("covariance of", f"{', '.join(self.slots)} ({size} x {size})"),
            ("sample", f"{replicas} replicas x {snapshots} snapshots, {self.spacing} steps apart"),
            ("burn-in", f"{self.burn_in} steps, leaving a bias of about {self.transient:.2g} standard errors"),
            ("relative error", f"{self.relative_standard_error:.2%} expected (Frobenius norm)"),
            *fourth,
            *([("kept", f"the states of {kept_replicas} replicas")] if kept_replicas < replicas else []),
            ("seed", str(self.seed)),
        ]

    def __repr__(self) -> str:
        return "\n".join(["Estimate", *(f"  {name:<14} {text}" for name, text in self._rows())])

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th>{name}</th><td>{html.escape(text)}</td></tr>" for name, text in self._rows())
        return f"<table><caption>Measured covariance</caption>{rows}</table>"


def stationary_covariance(
    optimizer: Optimizer,
    problem: Measurable,
    *,
    replicas: int,
    steps: int | Literal["auto"] = "auto",
    snapshots: int | Literal["auto"] = "auto",
    slots: tuple[str, ...] = ("w",),
    batch_size: int | None = None,
    replacement: bool = True,
    engine: Literal["rule", "torch.optim"] = "rule",
    rng: np.random.Generator | int | None = None,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Estimate:
    r"""Measure the stationary covariance of an optimizer on a problem.

    All replicas start at the fixed point of the step without noise, in every slot (numerics' `stationary_mean`; a slot
    that holds weights, like Polyak's ``w_prev``, starts at weights). The mean is then right from the first step and
    only the spread has to build up.

    Parameters
    ----------
    optimizer : Optimizer
        Every hyper-parameter bound.
    problem : Quadratic, LeastSquares, QuadraticExamples, GradientNoise or an adversarial problem
        With a `Quadratic`, gradients are ``H (w - optimum)`` plus Gaussian noise of covariance ``problem.noise``. With
        a `LeastSquares` or `QuadraticExamples` and ``batch_size``, every replica draws true minibatches. With the noise
        itself (`MinibatchNoise`, `GaussianMinibatchNoise`, `DropoutNoise`, `InputNoise`, or one of these plus a
        covariance) it sees what makes that noise: batches, fresh data, dropped or noisy inputs, added Gaussian noise.
        With an `AdversarialLeastSquares`, `AdversarialLogistic` or `RobustUnhinged` and ``batch_size``, minibatches
        whose inputs are attacked, exactly, at each replica's own weights whenever a gradient is asked for; with a
        `GaussianAdversarialRegression` likewise, over fresh examples.
    replicas : int
        Independent runs, at least 2 (`compare` wants 100).
    steps : int or "auto"
        Total steps of each replica. "auto" burns in until the variance still missing along any eigenvector of the
        Hessian is at most 1% of its Monte-Carlo standard error, by theory's recursion, then goes on to the last
        snapshot. Where the noise depends on the weights, second moments decay as slowly as the spectral radius of their
        own operator says (`mean_square_stability`), and the run is as much longer.
    snapshots : int or "auto"
        States to use of each replica, so far apart that the squared correlation between neighbours is at most exp(-2).
        "auto": 8, or as many as take 128 MB; with explicit ``steps``, also no more than fit into the second half of the
        run.
    slots : tuple of str
        Slots to report, stacked in this order.
    batch_size : int, optional
        For `LeastSquares`, `QuadraticExamples` and the adversarial problems.
    replacement : bool
        Whether the examples of one minibatch are drawn with replacement, for these.
    engine : {"rule", "torch.optim"}
        What steps: the rule's own function, or the real ``torch.optim.SGD`` (see `torch_optimizer`).
    rng : numpy.random.Generator or int, optional
        An int seeds torch's generator directly; a Generator gives up one integer; None asks the operating system.
    device : str or torch.device
    progress : bool
        Show a progress bar, if standard error is a terminal and rich is installed. An interrupt (Ctrl-C) removes the
        bar, discards the run and is passed on; nothing global was changed.

    Returns
    -------
    Estimate

    Raises
    ------
    InvalidProblemError
        If an argument does not fit, or "auto" would need more than a million steps.
    UnstableError, NonStationaryError
        If there is no stationary law (numerics decides), or iterates left the finite numbers. MeanSquareUnstableError
        if the mean settles but second moments grow: before anything runs.
    InvalidRuleError
        If ``engine="torch.optim"`` has no object for the rule.
    HyperparameterError
        If a hyper-parameter is not bound.

    Examples
    --------
    >>> from sgdcov.numerics import Quadratic
    >>> from sgdcov.theory import sgd
    >>> problem = Quadratic(hessian=[[1.0]], noise=[[1.0]], optimum=[3.0])
    >>> estimate = stationary_covariance(sgd(lr=0.5), problem, replicas=20_000, rng=0)
    >>> exact = 0.5 / (2 - 0.5)  # lr c / (2 h - lr h^2)
    >>> bool(abs(estimate.value[0, 0] - exact) < 4 * estimate.standard_error[0, 0])
    True

    Minibatches of two examples, of which one is steeper:

    >>> from sgdcov import numerics
    >>> noise = numerics.MinibatchNoise(numerics.LeastSquares([[1.0], [2.0]], [0.0, 1.0]), batch_size=1)
    >>> estimate = stationary_covariance(sgd(lr=0.1), noise, replicas=20_000, rng=0)
    >>> exact = numerics.stationary_covariance(sgd(lr=0.1), noise.hessian, noise).value
    >>> bool(abs(estimate.value[0, 0] - exact[0, 0]) < 4 * estimate.standard_error[0, 0])
    True
    """
    setup = set_up(
        optimizer, problem, replicas=replicas, slots=slots, batch_size=batch_size, replacement=replacement,
        engine=engine, rng=rng, device=device,
    )  # fmt: skip
    return measured(setup, steps, snapshots, progress=progress)


def measured(
    setup: Setup, steps: int | Literal["auto"], snapshots: int | Literal["auto"], *, progress: bool
) -> Estimate:
    """Run checked arguments from the fixed point until the law is stationary, then take snapshots."""
    optimizer, replicas, device = setup.optimizer, setup.replicas, setup.generator.device
    slots, quadratic = setup.slots, setup.quadratic

    stationary_law(optimizer, setup.source)  # refuses what has none
    forgetting = forgetting_of(optimizer, setup.source, slots)
    size = len(slots) * quadratic.dim
    burn_in, spacing, count = _schedule(forgetting, replicas, steps, snapshots, size)
    setup.refuse_too_much(count, 1)

    known = optimizer.rule.slots
    fixed = numerics.stationary_mean(optimizer, quadratic.hessian, quadratic.optimum, slots=known)
    rows = [torch.tensor(row, device=device).unsqueeze(1) for row in np.split(fixed, len(known))]
    # Transposes of (d, replicas) tensors: elementwise steps keep the layout, and products are fastest in it.
    state = [row.repeat(1, replicas).T for row in rows]
    run = setup.new_run(optimizer, state)
    total = burn_in + (count - 1) * spacing
    samples = np.empty((count, replicas, size))

    def take(step: int) -> None:
        if step >= burn_in and (step - burn_in) % spacing == 0:
            samples[(step - burn_in) // spacing] = read_slots(run, slots)

    advance(run, setup, total, take, progress=progress, snapshots=count)
    value, standard_error, mean, mean_standard_error = moments(samples)
    gaussian_error = np.sqrt(2.0 / (replicas * count))
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
        transient=forgetting.share(burn_in) / gaussian_error,
        slots=slots,
        optimizer=optimizer,
        engine=setup.engine,
        gradients=setup.source.kind,
        fourth_moment=fourth_moment(optimizer, setup.source),
        seed=setup.seed,
    )


def _schedule(
    forgetting: Forgetting, replicas: int, steps: int | str, snapshots: int | str, size: int
) -> tuple[int, int, int]:
    """Burn-in, spacing and number of snapshots, as many as memory is meant for where it is not said."""
    most = snapshots_within(SNAPSHOTS, replicas, size)
    soon, few = is_auto("steps", steps, 1), is_auto("snapshots", snapshots, 1)
    spacing = forgetting.steps(SNAPSHOT_SHARE, LARGEST_AUTOMATIC_BURN_IN)
    if soon:
        count = most if few else int(snapshots)
        share = TRANSIENT_FRACTION * np.sqrt(2.0 / (replicas * count))
        burn_in = forgetting.steps(share, LARGEST_AUTOMATIC_BURN_IN)
        if burn_in is None or spacing is None:
            left = forgetting.share(LARGEST_AUTOMATIC_BURN_IN)
            raise InvalidProblemError(
                f"the slowest direction still misses a share {left:.3g} of its variance after "
                f"{LARGEST_AUTOMATIC_BURN_IN:,} steps, and at most {share:.3g} may be missing. Give steps=... to run "
                f"anyway, or take a larger learning rate or a better conditioned problem."
            )
        return burn_in, spacing, count
    total = int(steps)
    spacing = total if spacing is None else spacing
    fitting = 1 + (total // 2) // spacing
    count = min(most, fitting) if few else int(snapshots)
    burn_in = total - (count - 1) * spacing
    if burn_in < 1:
        raise InvalidProblemError(
            f"{count} snapshots that are {spacing} steps apart do not fit into steps={total}; "
            f"take at least {(count - 1) * spacing + 1} steps or at most {1 + (total - 1) // spacing} snapshots."
        )
    return burn_in, spacing, count
