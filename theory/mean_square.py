r"""Mean-square stability under minibatches of Gaussian examples: exact conditions, thresholds as algebraic numbers.

The covariance of `gaussian_minibatch_covariance` exists exactly where the recursion of the mean contracts and

.. math:: U = \sum_j \frac{f_j h_j^2}{B - f_j h_j^2} < 1 \quad\text{with all}\quad B - f_j h_j^2 > 0,

f_j being the additive variance for a unit of noise: the linear map from one noise covariance to the next is then a
contraction on the cone of positive semidefinite matrices. U rises from 0 at lr = 0 to infinity at its first pole, so
that the least positive root of U = 1 is the threshold, and it lies before every pole.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence

import sympy as sp

from ..errors import HyperparameterError, InvalidProblemError, InvalidRuleError
from ._exact import present
from .assumptions import GAUSSIAN_DATA, INDEPENDENT_BATCHES, Assumption, domains, stable
from .formula import Formula, Step
from .gaussian_minibatch import LABEL_NOISE, direction
from .hyperparameters import Number, _exact_rational
from .minibatch import BATCH_SIZE, S_II, rule_latex
from .recursion import as_optimizer
from .stability import stability
from .stationary import H_I
from .update_rule import Optimizer, UpdateRule

__all__ = [
    "isotropic_threshold",
    "largest_linear_scaling",
    "linear_scaling_gap",
    "mean_square_share",
    "mean_square_threshold",
]

DIMENSION = sp.Symbol("d", integer=True, positive=True)
SCALE = sp.Symbol("k", positive=True)
NO_DISPLACEMENT = Assumption("optimum kept", "the stationary mean is the optimum: there is no weight decay")


def mean_square_share(rule: UpdateRule | Optimizer) -> Formula:
    """Derive what one direction adds to U, the quantity whose sum over all directions must stay below 1.

    Parameters
    ----------
    rule : UpdateRule or Optimizer
        Calls its gradient once a step.

    Returns
    -------
    Formula
        Second moments contract exactly where the recursion of the mean does, every share has a positive denominator,
        and the shares add up to less than 1.

    Raises
    ------
    InvalidRuleError
        If the rule calls its gradient more than once a step.

    References
    ----------
    ziyin2022strength; velikanov2023

    Examples
    --------
    >>> from sgdcov.theory import heavy_ball, sgd
    >>> print(mean_square_share(sgd))
    u_i = h_i*lr/(2*batch_size - h_i*lr*(batch_size + 1))
    >>> mean_square_share(heavy_ball).specialise(momentum=0).expression
    h_i*lr/(2*batch_size - h_i*lr*(batch_size + 1))
    """
    return _share(as_optimizer(rule))


@functools.lru_cache(maxsize=64)
def _share(optimizer: Optimizer) -> Formula:
    one = direction(optimizer, (optimizer.rule.slots[0], optimizer.rule.slots[0]))
    share, noise = sp.symbols("u_i c_i", nonnegative=True)
    outside = sp.Symbol("level", nonnegative=True)  # sigma^2 + T
    drawn = H_I * outside / (BATCH_SIZE - one.seen * H_I**2)
    balance = sp.Eq(noise, H_I * (outside + H_I * one.seen * noise) / BATCH_SIZE, evaluate=False)
    collected = sp.Eq(outside * share, H_I * one.seen * noise, evaluate=False)
    conditions = stability(optimizer)
    return Formula(
        id=f"{optimizer.rule.name}.mean_square_share",
        equation=sp.Eq(share, one.share, evaluate=False),
        symbols={"h_i": H_I, "batch_size": BATCH_SIZE, **optimizer.symbols},
        assumptions=(
            GAUSSIAN_DATA,
            INDEPENDENT_BATCHES,
            stable(tuple(c.subs(conditions.h, H_I) for c in conditions.conditions)),
            Assumption("room", "the denominator of the share is positive", (BATCH_SIZE - one.seen * H_I**2 > 0,)),
            *domains(optimizer),
        ),
        defining=(balance, collected),
        solution={share: one.share, noise: drawn},
        references=("ziyin2022strength", "velikanov2023", *optimizer.rule.references),
        derivation=(
            Step("Noise that all directions bring about acts on one direction like label noise.", balance),
            Step("What the direction returns to the trace T, per unit.", collected),
        ),
        symbol_latex={**rule_latex(optimizer), share: "u_i", noise: "c_i"},
    )


def mean_square_threshold(rule: UpdateRule | Optimizer, eigenvalues: Sequence[Number], batch_size: int) -> sp.Expr:
    """Return the learning rate below which second moments contract on Gaussian data, as an exact algebraic number.

    Parameters
    ----------
    rule : UpdateRule or Optimizer
        With ``lr`` unbound and everything else bound.
    eigenvalues : sequence of numbers
        Of the data covariance. A float is taken at its exact value.
    batch_size : int

    Returns
    -------
    sympy.Expr
        The least positive root of U = 1: radicals where it is of degree 2 at most, else a root object that evaluates
        to any number of digits. It is below the limit for the mean.

    Raises
    ------
    HyperparameterError
        If ``lr`` is bound, missing, or not the only symbol.
    InvalidProblemError
        If an eigenvalue is negative or no number, all are 0, or the batch size is not a positive integer.
    InvalidRuleError
        If the rule calls its gradient more than once a step, or its mean is not stable for small learning rates.

    Examples
    --------
    >>> from sgdcov.theory import sgd
    >>> threshold = mean_square_threshold(sgd, (1, 2), 1)
    >>> threshold
    9/16 - sqrt(17)/16
    >>> sp.simplify(threshold - 4 / (9 + sp.sqrt(17)))
    0
    """
    optimizer = as_optimizer(rule)
    if optimizer.unbound != ("lr",):
        raise HyperparameterError(
            f"{optimizer!r} must have lr unbound and every other hyper-parameter bound for a threshold in lr; "
            f"unbound are {optimizer.unbound or 'none'}. mean_square_share holds for symbols.",
            name="lr",
        )
    values, size = spectrum(eigenvalues), batch_size_number(batch_size)
    share, lr = _share(optimizer).expression.subs(BATCH_SIZE, size), optimizer.rule["lr"].symbol
    threshold = _least_root_of_one(share, values, lr)
    for h in values:
        _require_stable_mean(optimizer, h, lr, threshold)
    return threshold


def spectrum(eigenvalues: Sequence[Number]) -> Counter[sp.Rational]:
    """Return the positive eigenvalues, exact, with their multiplicities."""
    values = [_exact_rational(h) for h in eigenvalues]
    wrong = next((given for given, h in zip(eigenvalues, values, strict=True) if h is None or h < 0), None)
    if wrong is not None or not any(values):
        shown = tuple(eigenvalues) if wrong is None else wrong
        raise InvalidProblemError(f"eigenvalues must be finite, non-negative and not all 0; got {shown!r}.")
    return Counter(h for h in values if h is not None and h > 0)


def batch_size_number(batch_size: int) -> sp.Integer:
    """Return a batch size as it enters formulas; refuse what is none."""
    if isinstance(batch_size, bool) or sp.Integer(batch_size) != batch_size or batch_size < 1:
        raise InvalidProblemError(f"batch_size must be a positive integer, got {batch_size!r}.")
    return sp.Integer(batch_size)


def _least_root_of_one(share: sp.Expr, values: Counter[sp.Rational], unknown: sp.Symbol) -> sp.Expr:
    """Return the least positive root of sum of shares = 1, and make sure that no share has a pole before it."""
    quotients = [(count, *sp.fraction(sp.cancel(share.subs(H_I, h)))) for h, count in values.items()]
    below = [sp.Poly(bottom, unknown) for _, _, bottom in quotients]
    everything = functools.reduce(sp.Poly.mul, below, sp.Poly(1, unknown))
    numerator = everything
    for (count, top, _), bottom in zip(quotients, below, strict=True):
        numerator -= count * sp.Poly(top, unknown) * everything.exquo(bottom)
    roots = [r for r in numerator.real_roots() if r.is_positive]
    if not roots:
        raise InvalidRuleError(
            f"the shares {share} never add up to 1: the second moments contract for every {unknown}."
        )
    if any(0 < pole <= roots[0] for p in below if p.degree() > 0 for pole in p.real_roots()):
        raise InvalidRuleError(
            f"a share {share} has a pole before U = 1; the rule does not start from U = 0 at {unknown} = 0."
        )
    return roots[0]


def _require_stable_mean(optimizer: Optimizer, h: sp.Rational, lr: sp.Symbol, threshold: sp.Expr) -> None:
    """Make sure that the mean is stable all the way from lr = 0 to the threshold, as U takes for granted."""
    conditions = stability(optimizer)
    inside = sp.Rational(sp.N(threshold, 30)) / 2
    for margin in (sp.Poly(m.subs(conditions.h, h), lr) for m in conditions.margins):
        crossed = margin.degree() > 0 and any(0 < root < threshold for root in margin.real_roots())
        if crossed or margin.eval(inside) <= 0:
            raise InvalidRuleError(
                f"{optimizer!r} is not stable in the mean for all lr below {sp.N(threshold, 6)} at the Hessian "
                f"eigenvalue {h}, so its mean-square threshold is no root of U = 1; see stability()."
            )


@functools.lru_cache(maxsize=64)
def isotropic_threshold(rule: UpdateRule | Optimizer) -> Formula:
    r"""Derive the mean-square threshold for isotropic Gaussian data: d directions with the same eigenvalue.

    Parameters
    ----------
    rule : UpdateRule or Optimizer
        With ``lr`` unbound, and a share in which it is linear above and below (sgd, heavy_ball, polyak).

    Returns
    -------
    Formula

    Raises
    ------
    InvalidRuleError
        If the threshold is not a rational function; `mean_square_threshold` gives it for numbers.

    Notes
    -----
    With momentum :math:`2(1-\mu)/(h[(1-\mu)/(1+\mu) + (d+1)/B])`: where noise decides, momentum shrinks the range of
    stable learning rates, whereas it widens that of the mean.

    References
    ----------
    gurbuzbalaban2021 (plain SGD)

    Examples
    --------
    >>> from sgdcov.theory import sgd
    >>> print(isotropic_threshold(sgd))
    lr_max = 2*batch_size/(h_i*(batch_size + d + 1))
    """
    optimizer = as_optimizer(rule)
    if "lr" not in optimizer.unbound:
        raise InvalidRuleError(f"{optimizer!r} has no unbound lr to bound; free it, as in .free('lr').")
    share, lr = _share(optimizer), optimizer.rule["lr"].symbol
    limit = sp.Symbol("lr_max", positive=True)
    top, bottom = sp.fraction(sp.together(share.expression.subs(lr, limit)))
    condition = sp.Poly(DIMENSION * top - bottom, limit)
    if condition.degree() != 1:
        raise InvalidRuleError(
            f"the threshold of {optimizer.rule.name} is a root of a polynomial of degree {condition.degree()} in lr; "
            f"mean_square_threshold gives it exactly for given numbers."
        )
    slope, offset = condition.all_coeffs()
    expression = present(-offset / slope, (H_I,))
    return Formula(
        id=f"{optimizer.rule.name}.isotropic_threshold",
        equation=sp.Eq(limit, expression, evaluate=False),
        symbols={
            "h_i": H_I,
            "d": DIMENSION,
            **{role: s for role, s in share.symbols.items() if role not in ("h_i", "lr")},
        },
        assumptions=(*share.assumptions, Assumption("isotropic", "all d eigenvalues are h_i")),
        defining=(sp.Eq(DIMENSION * top, bottom, evaluate=False),),
        solution={limit: expression},
        references=("gurbuzbalaban2021, plain SGD", *optimizer.rule.references),
        derivation=(Step("d equal shares add up to 1.", sp.Eq(DIMENSION * share.expression, 1, evaluate=False)),),
        lemmas=(share,),
        symbol_latex={**rule_latex(optimizer), limit: r"\eta_{\max}"},
    )


@functools.lru_cache(maxsize=64)
def linear_scaling_gap(rule: UpdateRule | Optimizer) -> Formula:
    """Derive how far the linear scaling rule holds: batch size and learning rate both times k, in one direction.

    Parameters
    ----------
    rule : UpdateRule or Optimizer
        With ``lr`` unbound.

    Returns
    -------
    Formula
        The relative change of the stationary variance. It vanishes with lr: the covariance depends on lr/B alone only
        to leading order. `largest_linear_scaling` is the k at which it becomes infinite.

    Raises
    ------
    InvalidRuleError
        If the rule has no unbound ``lr``, calls its gradient more than once a step, or has weight decay.

    References
    ----------
    goyal2017 (the rule)

    Examples
    --------
    >>> from sgdcov.theory import sgd
    >>> print(linear_scaling_gap(sgd))
    gap = batch_size*h_i*lr*(k - 1)/(2*batch_size - h_i*lr*(batch_size*k + 2))
    """
    optimizer = as_optimizer(rule)
    if "lr" not in optimizer.unbound:
        raise InvalidRuleError(f"{optimizer!r} has no unbound lr to scale; free it, as in .free('lr').")
    one = direction(optimizer, (optimizer.rule.slots[0], optimizer.rule.slots[0]))
    if one.displacement != 0:
        raise InvalidRuleError(f"{optimizer!r} has a stationary mean that is not the optimum; bind weight_decay=0.")
    lr = optimizer.rule["lr"].symbol
    scaled = {lr: SCALE * lr, BATCH_SIZE: SCALE * BATCH_SIZE}
    # One direction: U is its own share, and (B - f h^2)(1 - U) = B - 2 f h^2.
    before = LABEL_NOISE**2 * H_I * one.kernel / (BATCH_SIZE - 2 * one.seen * H_I**2)
    after = before.subs(scaled, simultaneous=True)
    shown, start, end = sp.Symbol("gap", real=True), S_II, sp.Symbol("Sigma_ii(k)", nonnegative=True)
    expression = (SCALE - 1) * present((after / before - 1) / (SCALE - 1), (H_I,))
    load = one.share
    general = LABEL_NOISE**2 * H_I * one.kernel / ((BATCH_SIZE - one.seen * H_I**2) * (1 - load))
    stable_once = (*_share(optimizer).conditions, BATCH_SIZE - 2 * one.seen * H_I**2 > 0)
    conditions = (*stable_once, *(c.subs(scaled, simultaneous=True) for c in stable_once))
    return Formula(
        id=f"{optimizer.rule.name}.linear_scaling_gap",
        equation=sp.Eq(shown, expression, evaluate=False),
        symbols={"h_i": H_I, "k": SCALE, "batch_size": BATCH_SIZE, **optimizer.symbols},
        assumptions=(*_share(optimizer).assumptions, NO_DISPLACEMENT,
                     Assumption("one direction", "d = 1, stable in mean square before and after", conditions)),
        defining=(sp.Eq(shown * start, end - start, evaluate=False),),
        solution={shown: expression, start: before, end: after},
        references=("goyal2017, the rule itself", *optimizer.rule.references),
        derivation=(
            Step("In one direction U is its own share.", sp.Eq(start, before, evaluate=False)),
            Step("Put k*lr for lr and k*batch_size for batch_size, and compare.", sp.Eq(shown, expression)),
        ),
        identities=(
            ("one direction of gaussian_minibatch_covariance", before - general),
            ("nothing changes at k = 1", expression.subs(SCALE, 1)),
            ("nothing changes to leading order in lr", expression.subs(lr, 0)),
        ),
        symbol_latex={**rule_latex(optimizer), shown: r"\Delta"},
    )


def largest_linear_scaling(optimizer: Optimizer, eigenvalues: Sequence[Number], batch_size: int) -> sp.Expr:
    """Return the factor k below which (k*lr, k*batch_size) is stable in mean square on Gaussian data, exactly.

    Parameters
    ----------
    optimizer : Optimizer
        With every hyper-parameter bound, stable as it is.
    eigenvalues : sequence of numbers
    batch_size : int
        The one that belongs to the learning rate of the optimizer; k of them need not be an integer here.

    Returns
    -------
    sympy.Expr
        An algebraic number. Below 1 where the optimizer itself is unstable.

    Raises
    ------
    HyperparameterError
        If a hyper-parameter is unbound or there is no ``lr``.
    InvalidProblemError
        If the eigenvalues or the batch size are no such thing.

    Examples
    --------
    >>> from sgdcov.theory import sgd
    >>> largest_linear_scaling(sgd(lr=sp.Rational(1, 10)), [1], 8)
    79/4
    """
    rule = as_optimizer(optimizer)
    rule.require_bound()
    lr = rule.rule["lr"].symbol
    values, size = spectrum(eigenvalues), batch_size_number(batch_size)
    share = _share(rule.free("lr")).expression
    scaled = share.subs({lr: SCALE * rule.exact["lr"], BATCH_SIZE: SCALE * size}, simultaneous=True)
    return _least_root_of_one(scaled, values, SCALE)
