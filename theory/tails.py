r"""Heavy tails: which moments of the stationary law exist under multiplicative noise, for Gaussian examples.

Plain SGD in one direction is :math:`\delta' = (1 - \eta h_B)\delta + \text{noise}` with the batch's curvature
:math:`h_B = h \chi^2_B/B`. By Kesten the tail index alpha of the stationary law solves
:math:`\mathrm{E}|1 - \eta h_B|^\alpha = 1`; the moment of order n exists where
:math:`\mathrm{E}|1 - \eta h_B|^n < 1`. In d directions with the same eigenvalue the growth of the norm is independent
of the direction,

.. math:: |(I - \eta H_B)e|^2 = 1 - \frac{2\eta h}{B} X + \frac{\eta^2 h^2}{B^2}(X^2 + XY), \qquad
          X \sim \chi^2_B, \quad Y \sim \chi^2_{d-1}\ \text{independent}.

Moments of even order are polynomials in the learning rate.
"""

from __future__ import annotations

import functools

import sympy as sp

from ..errors import InvalidProblemError
from .assumptions import GAUSSIAN_DATA, INDEPENDENT_BATCHES, Assumption
from .formula import Formula, Step
from .hyperparameters import Number
from .mean_square import DIMENSION, batch_size_number, spectrum
from .minibatch import BATCH_SIZE, LATEX
from .rules import sgd
from .stationary import H_I

__all__ = ["kesten_equation", "moment_growth", "moment_threshold", "tail_index_statement"]

LR = sgd["lr"].symbol
INDEX = sp.Symbol("alpha", positive=True)
GROWTH_LATEX = r"\mathrm{{E}}\big|(I - \eta H_B)e\big|^{{{n}}}"
ISOTROPIC = Assumption("isotropic", "plain SGD; all d eigenvalues of the data covariance are h")


def _chi_squared(degrees: sp.Expr, order: int) -> sp.Expr:
    """Return E X^order for a chi-squared variable: degrees (degrees + 2) ... (degrees + 2 order - 2)."""
    return sp.Mul(*(degrees + 2 * k for k in range(order)))


def _chi_squared_claims(order: int) -> tuple[tuple[str, sp.Expr], ...]:
    """Return the claims that these are the moments: (1 - 2t) g' = degrees g for the generating function g, g(0) = 1."""
    n = sp.Symbol("degrees")
    coefficients = [_chi_squared(n, k) / sp.factorial(k) for k in range(order + 1)]
    return (
        ("E X^0 = 1", coefficients[0] - 1),
        *(
            (f"(1 - 2t) g' = degrees g at t^{k}", (k + 1) * coefficients[k + 1] - 2 * k * c - n * c)
            for k, c in enumerate(coefficients[:-1])
        ),
    )


@functools.cache
def moment_growth(order: int = 2) -> Formula:
    """Derive the factor by which a step multiplies the moment of the given order, for plain SGD on Gaussian examples.

    Parameters
    ----------
    order : int
        Even, from 2.

    Returns
    -------
    Formula
        E|(I - lr H_B) e|^order in d directions with the eigenvalue ``h_i``; the stationary moment of that order exists
        exactly where it is below 1. A polynomial in the learning rate.

    Raises
    ------
    InvalidProblemError
        If the order is not a positive even integer.

    Examples
    --------
    >>> print(moment_growth(2).specialise(d=1, batch_size=1))
    growth = 3*h_i**2*lr**2 - 2*h_i*lr + 1
    >>> print(moment_growth(4).specialise(d=1, batch_size=1))
    growth = 105*h_i**4*lr**4 - 60*h_i**3*lr**3 + 18*h_i**2*lr**2 - 4*h_i*lr + 1
    """
    if isinstance(order, bool) or not isinstance(order, int) or order < 2 or order % 2:
        raise InvalidProblemError(
            f"order must be an even integer from 2, got {order!r}; other moments are no polynomials (kesten_equation)."
        )
    x, y = sp.symbols("X Y")
    step = LR * H_I / BATCH_SIZE
    squared = sp.Poly(sp.expand((1 - 2 * step * x + step**2 * (x**2 + x * y)) ** (order // 2)), x, y)
    total = sp.Add(*(
        coefficient * _chi_squared(BATCH_SIZE, m) * _chi_squared(DIMENSION - 1, n)
        for (m, n), coefficient in squared.terms()
    ))  # fmt: skip
    collected = sp.Poly(sp.expand(total), LR)
    expression = sp.Add(*(sp.factor(c) * LR**k for (k,), c in collected.terms()))
    shown = sp.Symbol("growth", positive=True)
    # One direction, from the moments of a single chi-squared variable.
    one = sp.Add(*(
        sp.binomial(order, k) * (-step) ** k * _chi_squared(BATCH_SIZE, k) for k in range(order + 1)
    ))  # fmt: skip
    return Formula(
        id=f"moment_growth({order})",
        equation=sp.Eq(shown, expression, evaluate=False),
        symbols={"h_i": H_I, "lr": LR, "batch_size": BATCH_SIZE, "d": DIMENSION},
        assumptions=(GAUSSIAN_DATA, INDEPENDENT_BATCHES, ISOTROPIC),
        defining=(sp.Eq(shown, total, evaluate=False),),
        solution={shown: expression},
        references=("kesten1973", "gurbuzbalaban2021", "hodgkinson2021"),
        derivation=(
            Step("Split H_B e into its part along e, h X/B, and the rest, whose square is h^2 X Y/B^2."),
            Step("Expand the power and put the moments of chi-squared variables.", sp.Eq(shown, expression)),
        ),
        identities=(
            *_chi_squared_claims(order),
            ("d = 1: E(1 - lr h_B)^n, expanded by itself", expression.subs(DIMENSION, 1) - one),
        ),
        symbol_latex={**LATEX, LR: r"\eta", H_I: "h", shown: GROWTH_LATEX.format(n=order)},
    )


def moment_threshold(order: int, batch_size: int, *, eigenvalue: Number = 1, dim: int = 1) -> sp.Expr:
    """Return the learning rate below which the stationary moment of an even order exists, exactly.

    Parameters
    ----------
    order : int
        Even, from 2. Order 2 is mean-square stability; order 4 is what a standard error of a variance needs.
    batch_size : int
    eigenvalue : number
    dim : int
        Directions, all with this eigenvalue.

    Returns
    -------
    sympy.Expr
        An algebraic number.

    Raises
    ------
    InvalidProblemError
        If an argument is out of range.

    Examples
    --------
    >>> moment_threshold(2, 1)
    2/3
    >>> moment_threshold(4, 1).n(12)
    0.383451005864
    """
    if isinstance(dim, bool) or not isinstance(dim, int) or dim < 1:
        raise InvalidProblemError(f"dim must be a positive integer, got {dim!r}.")
    (h,) = spectrum([eigenvalue])
    values = {H_I: h, BATCH_SIZE: batch_size_number(batch_size), DIMENSION: sp.Integer(dim)}
    excess = sp.Poly(sp.expand((moment_growth(order).expression.subs(values) - 1) / LR), LR)
    return next(root for root in excess.real_roots() if root.is_positive)


@functools.cache
def kesten_equation() -> Formula:
    r"""State the equation of the tail index alpha: :math:`\mathrm{E}|1 - \eta h \chi^2_B/B|^\alpha = 1`, one direction.

    Returns
    -------
    Formula
        The right-hand side is the integral over the density of a chi-squared variable, in two parts; alpha is the
        positive root of its equation with 1. Proved at the even orders 2 and 4, where the integral is a polynomial (its
        lemmas).

    References
    ----------
    kesten1973; gurbuzbalaban2021; hodgkinson2021

    Examples
    --------
    >>> growth = kesten_equation().lambdify("mpmath")
    >>> bool(abs(growth(alpha=2, h_i=1, lr=2 / 3, batch_size=1) - 1) < 1e-15)
    True
    """
    x = sp.Symbol("x", positive=True)
    density = x ** (BATCH_SIZE / 2 - 1) * sp.exp(-x / 2) / (2 ** (BATCH_SIZE / 2) * sp.gamma(BATCH_SIZE / 2))
    # In two parts, which meet where the factor changes its sign: quadrature then keeps its digits.
    kink, factor = BATCH_SIZE / (LR * H_I), 1 - LR * H_I * x / BATCH_SIZE
    expected = sp.Integral(factor**INDEX * density, (x, 0, kink)) + sp.Integral(
        (-factor) ** INDEX * density, (x, kink, sp.oo)
    )
    shown = sp.Symbol("growth", positive=True)
    # Integration by parts links the powers of x under the density: x^(k+1) - (B + 2k) x^k integrates to zero.
    k = sp.Symbol("k", nonnegative=True)
    slope = sp.diff(sp.expand_log(sp.log(density), force=True), x)
    by_parts = x - (BATCH_SIZE + 2 * k) + 2 * (k + 1 + x * slope)  # divided by x^k
    two, four = (moment_growth(n) for n in (2, 4))
    return Formula(
        id="kesten_equation",
        equation=sp.Eq(shown, expected, evaluate=False),
        symbols={"alpha": INDEX, "h_i": H_I, "lr": LR, "batch_size": BATCH_SIZE},
        assumptions=(
            GAUSSIAN_DATA,
            INDEPENDENT_BATCHES,
            Assumption("one direction", "plain SGD on a single weight"),
            Assumption("index", "growth = 1 at the tail index", (sp.Eq(shown, 1),)),
        ),
        defining=(),
        solution={},
        references=("kesten1973", "gurbuzbalaban2021", "hodgkinson2021"),
        derivation=(Step("Kesten: the tail index makes the mean of the random factor's power 1."),),
        identities=(("x^(k+1) - (B + 2k) x^k is -2 (x^(k+1) density)'/density", sp.expand(by_parts)),),
        lemmas=(two, four),
        symbol_latex={**LATEX, LR: r"\eta", H_I: "h", INDEX: r"\alpha", shown: GROWTH_LATEX.format(n=r"\alpha")},
    )


@functools.cache
def tail_index_statement() -> Formula:
    r"""The tail index :math:`2B/(\eta h) - B` of Ziyin et al. in one direction, an approximation that is exact at 2.

    Returns
    -------
    Formula
        Proved: where it gives 2 the second moment is marginal, E(1 - lr h_B)^2 = 1. Where it gives 4 the fourth is not.

    References
    ----------
    ziyin2022strength, Section 6.6

    Examples
    --------
    >>> print(tail_index_statement())
    alpha ~ -batch_size + 2*batch_size/(h_i*lr)
    >>> tail_index_statement().parts["growth at 4"].subs(BATCH_SIZE, 1)
    141/125
    """
    stated = 2 * BATCH_SIZE / (LR * H_I) - BATCH_SIZE
    claims, parts = [], {}
    for order in (2, 4):
        lr = 2 * BATCH_SIZE / (H_I * (BATCH_SIZE + order))
        claims.append((f"it gives {order} at that learning rate", stated.subs(LR, lr) - order))
        growth = moment_growth(order).expression.subs({LR: lr, DIMENSION: 1}, simultaneous=True)
        parts[f"growth at {order}"] = sp.factor(growth)
    claims.append(("where it gives 2 the second moment is marginal", parts["growth at 2"] - 1))
    return Formula(
        id="ziyin2022strength.tail_index",
        equation=sp.Eq(INDEX, stated, evaluate=False),
        symbols={"h_i": H_I, "lr": LR, "batch_size": BATCH_SIZE},
        assumptions=(GAUSSIAN_DATA, INDEPENDENT_BATCHES, Assumption("one direction", "plain SGD on a single weight")),
        defining=(),
        solution={},
        references=("ziyin2022strength, Section 6.6",),
        derivation=(Step("As stated there, with S = B, a = h and lambda = lr.", sp.Eq(INDEX, stated, evaluate=False)),),
        kind="approximation",
        parts=parts,
        identities=tuple(claims),
        lemmas=(moment_growth(2), moment_growth(4)),
        symbol_latex={**LATEX, LR: r"\eta", H_I: "h", INDEX: r"\alpha"},
    )
