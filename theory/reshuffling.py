r"""Reshuffling examples whose Hessians differ: what happens at epoch ends, to leading order in the learning rate.

Over one epoch of plain SGD, :math:`w_M = w_0 - \eta M H w_0 + \eta^2 \zeta + \dots` with
:math:`\zeta = \sum_{t<s} H_s g_t` over pairs of its batches: the sum of all g is zero, so the noise is of second order.
Its mean biases the weights at epoch ends by O(lr) and its covariance is what they fluctuate with, neither of which
additive noise knows. Both statements are approximations; enumeration of all orders is the exact law.
"""

from __future__ import annotations

import functools

import sympy as sp

from ._epoch_kernels import BATCHES
from .assumptions import QUADRATIC_EXAMPLES, SMALL_LEARNING_RATE, Assumption
from .formula import Formula, Step
from .minibatch import BATCH_SIZE, LATEX, NUM_EXAMPLES, S_II, batch_factor, minibatch_noise
from .rules import sgd
from .stationary import H_I

__all__ = ["reshuffling_bias", "reshuffling_covariance"]

LR = sgd["lr"].symbol
ONE_DIRECTION = Assumption("one direction", "the weights are a single number; with several, H is the matrix")
RESHUFFLED = Assumption(
    "shuffled epochs", "each epoch runs once through all M = N/B batches of a fresh shuffle, by plain SGD"
)


@functools.cache
def reshuffling_bias() -> Formula:
    r"""State by how much the mean of the weights at epoch ends differs from the optimum: :math:`O(\eta)`.

    Returns
    -------
    Formula
        ``mean_hg`` is the mean of H_n g_n over the examples. In several directions the same holds with the vector
        :math:`H^{-1}\,\overline{H_n g_n}`. Independent batches have no bias on a quadratic loss.

    Examples
    --------
    >>> print(reshuffling_bias())
    bias ~ -lr*mean_hg*(-batch_size + num_examples)/(2*batch_size*h_i*(num_examples - 1))
    """
    mean_hg, shown = sp.Symbol("mean_hg", real=True), sp.Symbol("bias", real=True)
    own, across = sp.symbols("same_batch two_batches", real=True)  # E H_t g_t and E H_s g_t for s other than t
    factor, batches = batch_factor(replacement=False), NUM_EXAMPLES / BATCH_SIZE
    expression = -LR * factor * mean_hg / (2 * H_I)
    pairs = batches * (batches - 1) / 2
    counted = minibatch_noise(replacement=False)
    sums = {"sum_ab": NUM_EXAMPLES * mean_hg, "sum_b": sp.Integer(0)}
    one_batch = counted.expression.subs({counted.symbols[role]: value for role, value in sums.items()})
    balance = sp.Eq(batches * LR * H_I * shown, LR**2 * pairs * across, evaluate=False)
    return Formula(
        id="reshuffling_bias",
        equation=sp.Eq(shown, expression, evaluate=False),
        symbols={"lr": LR, "h_i": H_I, "mean_hg": mean_hg, "batch_size": BATCH_SIZE, "num_examples": NUM_EXAMPLES},
        assumptions=(QUADRATIC_EXAMPLES, RESHUFFLED, ONE_DIRECTION, SMALL_LEARNING_RATE),
        defining=(
            sp.Eq(own, factor * mean_hg, evaluate=False),
            sp.Eq(own + (batches - 1) * across, 0, evaluate=False),
            balance,
        ),
        solution={shown: expression, own: factor * mean_hg, across: -factor * mean_hg / (batches - 1)},
        references=("kuehn2023, on epochs",),
        derivation=(
            Step("The gradients of an epoch sum to zero, so E H_s g_t = -E H_t g_t/(M - 1) for two batches."),
            Step("A batch mean has E H_t g_t = p mean(H_n g_n), with p of sampling without replacement."),
            Step("Over an epoch the mean moves by lr^2 (M choose 2) E H_s g_t - lr M H bias, which is 0.", balance),
        ),
        kind="approximation",
        identities=(("p of a batch without replacement", one_batch - factor * mean_hg), *_expansion()),
        lemmas=(counted,),
        symbol_latex={**LATEX, LR: r"\eta", H_I: "h", mean_hg: r"\overline{H_n g_n}",
                      shown: r"\mathrm{E}[w] - w^{*}"},
    )  # fmt: skip


@functools.cache
def reshuffling_covariance() -> Formula:
    r"""State the variance of the weights at epoch ends to leading order: :math:`2HS = \eta^3 \mathrm{Var}(\zeta)/M`.

    Returns
    -------
    Formula
        ``var_zeta`` is the variance, over the orders of an epoch, of the sum of H_s g_t over all pairs of batches with
        t before s. With equal Hessians it is the end-of-epoch law of `epoch_covariance`; with different ones that law
        misses a part of the leading order. `relative_error` is not available: enumeration is the exact law.

    Examples
    --------
    >>> print(reshuffling_covariance())
    Sigma_ii ~ lr**3*var_zeta/(2*M*h_i)
    """
    variance = sp.Symbol("var_zeta", nonnegative=True)
    expression = LR**3 * variance / (2 * H_I * BATCHES)
    balance = sp.Eq(2 * LR * BATCHES * H_I * S_II, LR**4 * variance, evaluate=False)
    # Equal Hessians and additive noise of variance c: zeta = h sum_t (M - 1 - t) g_t.
    c = sp.Symbol("c", nonnegative=True)
    weights = BATCHES * (BATCHES - 1) * (2 * BATCHES - 1) / 6 - BATCHES * (BATCHES - 1) ** 2 / 4
    additive = H_I**2 * c * weights * BATCHES / (BATCHES - 1)
    known = H_I**2 * c * BATCHES**2 * (BATCHES + 1) / 12
    return Formula(
        id="reshuffling_covariance",
        equation=sp.Eq(S_II, expression, evaluate=False),
        symbols={"lr": LR, "h_i": H_I, "var_zeta": variance, "M": BATCHES},
        assumptions=(QUADRATIC_EXAMPLES, RESHUFFLED, ONE_DIRECTION, SMALL_LEARNING_RATE),
        defining=(balance,),
        solution={S_II: expression},
        references=("kuehn2023, on epochs",),
        derivation=(
            Step("Over an epoch the deviation shrinks by lr M H and lr^2 (zeta - E zeta) is added; orders of different "
                 "epochs are independent.", balance),
        ),
        kind="approximation",
        identities=(("equal Hessians: Var zeta = h^2 c M^2 (M + 1)/12", additive - known), *_expansion()),
        symbol_latex={LR: r"\eta", H_I: "h", S_II: r"\Sigma_{ii}", variance: r"\mathrm{Var}(\zeta)"},
    )  # fmt: skip


def _expansion() -> tuple[tuple[str, sp.Expr], ...]:
    """Return the claims about one epoch of three batches, multiplied out: orders 1 and 2 in the learning rate."""
    w, size = sp.Symbol("w"), 3
    curvature, gradient = sp.symbols(f"H0:{size}"), sp.symbols(f"g0:{size}")
    state = w
    for h, g in zip(curvature, gradient, strict=True):
        state = sp.expand(state - LR * (h * state + g))
    first, second = state.coeff(LR, 1), state.coeff(LR, 2)
    zeta = sum(curvature[s] * gradient[t] for s in range(size) for t in range(s))
    left = sp.expand(second - zeta).subs(w, 0)
    return (
        ("order 1: -(sum of H) w - (sum of g)", sp.expand(first + sum(curvature) * w + sum(gradient))),
        ("order 2 at w = 0: the sum of H_s g_t over t before s", left),
    )
