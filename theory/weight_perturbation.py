r"""Adversarial weight perturbation (AWP, SAM) on quadratic losses: what it does to curvature, noise and stability.

The step takes the gradient at weights moved uphill, on the same minibatch and the same attacked inputs: by
:math:`\rho g` (the rule `sam`) or by :math:`\rho g/|g|`, the normalised form of SAM (AWP further scales rho by the norm
of each layer's weights, which hardly changes near an optimum away from 0). On a quadratic the first is linear,

.. math:: w^+ = w - \eta\,(I + \rho H_B)\,g_B(w),

so that it is SGD with the learning-rate matrix :math:`\eta(I + \rho H)` where noise is additive, and SGD on re-weighted
examples for batches of one. The second is not linear. For batches of one it is SGD on a loss in closed form, given
here; `normalised_perturbation_covariance` has its law for additive noise.

All of it holds for adversarial losses where they are quadratic: with h that of the radius (`isotropic_hessian`, hence
``isotropic_covariance(sam)``), or inside a cell of constant signs with x the attacked input (`shifted_least_squares`).
"""

from __future__ import annotations

import functools

import sympy as sp

from ._attacked import ABS_R, SIGN, X_I, X_J
from .assumptions import CONSTANT_HESSIAN, INDEPENDENT_BATCHES, QUADRATIC_EXAMPLES, WHITE_NOISE, Assumption
from .dual_norm import SAME, at_signs, norm_symbols
from .formula import Formula, Step
from .minibatch import BATCH_SIZE, NUM_EXAMPLES, minibatch_noise
from .recursion import recursion
from .robust_population import C0, absolute_gaussian_moments
from .rules import sam, sgd
from .stability import stability
from .stationary import H_I, stationary_covariance

__all__ = [
    "normalised_example_loss",
    "perturbed_curvature",
    "perturbed_example_weight",
    "weight_perturbation_gain",
]

RHO = sam["rho"].symbol
LR = sgd["lr"].symbol
LATEX = {RHO: r"\rho", LR: r"\eta", H_I: "h_i", BATCH_SIZE: "B", NUM_EXAMPLES: "N",
         SAME: r"\delta_{ij}", ABS_R: "|r|"}  # fmt: skip
AWP = ("wu2020awp", "foret2021")


@functools.cache
def weight_perturbation_gain() -> Formula:
    """Derive by what factor unnormalised weight perturbation widens the stationary law of plain SGD, exactly.

    Returns
    -------
    Formula
        The ratio of the stationary variances at the same lr and noise. Parts: ``curvature`` (seen by the step),
        ``noise`` (gain of the noise's variance), ``largest_lr`` (stable up to here) and ``lr`` (the learning rate of
        plain SGD that has the same law in this direction).

    References
    ----------
    wu2020awp, foret2021 (the rule)

    Examples
    --------
    >>> print(weight_perturbation_gain())
    gain = (-h_i*lr + 2)*(h_i*rho + 1)/(-h_i*lr*(h_i*rho + 1) + 2)
    >>> weight_perturbation_gain().parts["largest_lr"]
    2/(h_i*(h_i*rho + 1))
    """
    shown = sp.Symbol("gain", positive=True)
    factor = 1 + RHO * H_I
    expression = (2 - LR * H_I) * factor / (2 - LR * H_I * factor)
    with_it, without = (stationary_covariance(rule).specialise(h_j="h_i").expression for rule in (sam, sgd))
    step = recursion(sam)
    transition, kick = (m[0].subs(step.h, H_I) for m in (step.transition, step.noise_gain))
    plain = recursion(sgd)
    matrix_lr = {LR: LR * factor, plain.h: H_I}
    largest = 2 / (H_I * factor)
    margin = stability(sam).margins
    return Formula(
        id="weight_perturbation_gain",
        equation=sp.Eq(shown, expression, evaluate=False),
        symbols={"h_i": H_I, "lr": LR, "rho": RHO},
        assumptions=(CONSTANT_HESSIAN, WHITE_NOISE, Assumption("stable", "plain SGD and weight perturbation are stable",
                     (sp.StrictLessThan(LR * H_I * factor, 2),))),
        defining=(sp.Eq(shown * without, with_it, evaluate=False),),
        solution={shown: expression},
        references=AWP,
        derivation=(
            Step("The step is w - lr (1 + rho h)(h w + xi): the curvature seen is h (1 + rho h)."),
            Step("Divide the stationary laws of sam and sgd.", sp.Eq(shown, expression, evaluate=False)),
        ),
        parts={"curvature": H_I * factor, "noise": factor**2, "largest_lr": largest, "lr": LR * factor},
        identities=(
            ("the recursion is that of SGD with learning rate lr (1 + rho h)",
             transition - plain.transition[0].subs(matrix_lr, simultaneous=True)),
            ("so is its noise", kick - plain.noise_gain[0].subs(matrix_lr, simultaneous=True)),
            ("and its law", with_it - without.subs(LR, LR * factor)),
            ("without perturbation the factor is 1", expression.subs(RHO, 0) - 1),
            ("it is marginal at the largest lr", sp.Mul(*margin).subs(stability(sam).h, H_I).subs(LR, largest)),
        ),
        lemmas=(stationary_covariance(sam), stationary_covariance(sgd)),
        symbol_latex=LATEX,
    )  # fmt: skip


@functools.cache
def perturbed_curvature(*, replacement: bool = True) -> Formula:
    r"""Derive the mean curvature that unnormalised weight perturbation sees under real minibatches, exactly.

    Parameters
    ----------
    replacement : bool
        Whether an example may come twice in one batch.

    Returns
    -------
    Formula
        The entry K_ij in the eigenbasis of H, with ``Q_ij`` that of the mean of H_n^2: the mean step is
        -lr (K (w - w*) + rho p mean(H_n g_n)). So batches add p times the variance of the Hessians to what
        (I + rho H) H would be, the mean law is stable for lr < 2/(largest eigenvalue of K), and where examples'
        Hessians and gradients are correlated the weights do not settle at w*: the part ``drift_i`` is the last term,
        with ``m_i`` the entry of mean(H_n g_n).

    Examples
    --------
    >>> print(perturbed_curvature())
    K_ij = delta_ij*(h_i**2*rho + h_i) + rho*(Q_ij - delta_ij*h_i**2)/batch_size
    """
    batch = minibatch_noise(replacement=replacement)
    factor = batch.parts["factor"]
    shown, square, mixed = sp.symbols("K_ij Q_ij m_i", real=True)
    expression = SAME * (H_I + RHO * H_I**2) + RHO * factor * (square - SAME * H_I**2)
    # E (H_B)_ik (H_B)_kj - H_ik H_kj is p times the population covariance of the two entries, summed over k.
    total = NUM_EXAMPLES
    sums = batch.symbols
    drawn = batch.expression.subs({sums["sum_ab"]: total * square, sums["sum_a"]: total * H_I,
                                   sums["sum_b"]: total * SAME * H_I})  # fmt: skip
    coupled = batch.expression.subs({sums["sum_ab"]: total * mixed, sums["sum_a"]: total * H_I, sums["sum_b"]: 0})
    return Formula(
        id="perturbed_curvature" + ("" if replacement else "[without replacement]"),
        equation=sp.Eq(shown, expression, evaluate=False),
        symbols=norm_symbols(expression),
        assumptions=(QUADRATIC_EXAMPLES, INDEPENDENT_BATCHES),
        defining=(),
        solution={},
        references=(*AWP, "cochran1977, Chapter 2"),
        derivation=(
            Step("The mean of (I + rho H_B)(H_B (w - w*) + g_B), both on the same batch."),
            Step("E H_B^2 = H^2 + p (mean H_n^2 - H^2), and E H_B g_B = p mean(H_n g_n), as mean g_n = 0."),
        ),
        parts={"drift_i": RHO * factor * mixed, "factor": factor},
        identities=(
            ("rho E H_B^2 + H", SAME * H_I + RHO * (SAME * H_I**2 + drawn) - expression),
            ("rho E H_B g_B", RHO * coupled - RHO * factor * mixed),
            ("without perturbation it is H", expression.subs(RHO, 0) - SAME * H_I),
            ("one and the same Hessian: (1 + rho h) h",
             (expression - SAME * (1 + RHO * H_I) * H_I).subs(square, SAME * H_I**2)),
        ),
        lemmas=(batch,),
        symbol_latex={**LATEX, shown: "K_{ij}", square: "Q_{ij}"},
    )  # fmt: skip


@functools.cache
def perturbed_example_weight() -> Formula:
    r"""Prove: on least squares, weight perturbation with batches of one is plain SGD on re-weighted examples.

    Returns
    -------
    Formula
        The weight of an example, :math:`1 + \rho|x|^2`; x is the attacked input where there is an attack. With it every
        exact law of finite data holds (``sample_weight`` in `sgdcov.numerics`). An example's squared length counts
        twice, so long inputs pull the stationary mean.

    Examples
    --------
    >>> print(perturbed_example_weight())
    weight = norm_x**2*rho + 1
    """
    size, shown = sp.Symbol("norm_x", nonnegative=True), sp.Symbol("weight", positive=True)
    res = sp.Symbol("residual", real=True)  # y - x'w
    expression = 1 + RHO * size**2
    gradient = -res * X_I
    perturbed = res - RHO * (-res) * size**2  # y - x'(w + rho g): g = -res x
    return Formula(
        id="perturbed_example_weight",
        equation=sp.Eq(shown, expression, evaluate=False),
        symbols={"rho": RHO, "norm_x": size},
        assumptions=(Assumption("one example", "least squares, batches of one example, the input held"),),
        defining=(sp.Eq(shown * gradient, -perturbed * X_I, evaluate=False),),
        solution={shown: expression},
        references=AWP,
        derivation=(Step("The residual at w + rho g is (1 + rho |x|^2) times that at w."),),
        identities=(("the Hessian (I + rho xx')xx' is weighted alike",
                     X_I * X_J + RHO * X_I * size**2 * X_J - expression * X_I * X_J),),
        symbol_latex={**LATEX, size: "|x|"},
    )  # fmt: skip


@functools.cache
def normalised_example_loss() -> Formula:
    r"""Prove: on least squares, normalised weight perturbation with batches of one is SGD on :math:`(|r|+\rho|x|)^2/2`.

    Returns
    -------
    Formula
        The loss, the exact maximum of (y - x'(w + v))^2/2 over all |v| <= rho: the adversarial loss with the roles of
        x and w exchanged, and with a kink of its own at r = 0. Where the residual of an example is N(0, v^2) given x,
        the part ``curvature`` is what multiplies xx' in the Hessian of the mean, kink included, and ``noise`` what
        multiplies it in the second moment of the gradient: exact at any rho.

    Examples
    --------
    >>> print(normalised_example_loss())
    loss = (abs_residual + norm_x*rho)**2/2
    >>> normalised_example_loss().parts["curvature"]
    c0*norm_x*rho/v + 1
    """
    size, shown = sp.Symbol("norm_x", positive=True), sp.Symbol("loss", nonnegative=True)
    v = sp.Symbol("v", positive=True)
    expression = (ABS_R + RHO * size) ** 2 / 2
    gradient = -SIGN * ABS_R * X_I
    length = ABS_R * size  # of the gradient
    moved = SIGN * ABS_R - RHO * (-SIGN * ABS_R * size**2) / length  # residual at w + rho g/|g|
    slope = sp.diff(expression, ABS_R) * (-SIGN * X_I)
    shift = sp.Symbol("shift", real=True)  # of x'w
    missing = (RHO * size + SIGN * shift) * (2 * ABS_R + RHO * size - SIGN * shift) / 2
    m0, m1, m2 = (absolute_gaussian_moments().solution[m] for m in sp.symbols("m0 m1 m2", positive=True))
    general = absolute_gaussian_moments()
    density = general.solution[sp.Symbol("phi0", positive=True)] / v
    curvature = 1 + C0 * RHO * size / v
    noise = v**2 + 2 * C0 * RHO * size * v + RHO**2 * size**2
    return Formula(
        id="normalised_example_loss",
        equation=sp.Eq(shown, expression, evaluate=False),
        symbols={"abs_residual": ABS_R, "rho": RHO, "norm_x": size},
        assumptions=(Assumption("one example", "least squares, batches of one example, the input held"),
                     Assumption("Gaussian residual", "for the parts: given x, the residual is N(0, v^2)")),
        defining=(),
        solution={},
        references=AWP,
        derivation=(Step("At w + rho g/|g| the residual is sgn(r)(|r| + rho |x|)."),
                    Step("Its gradient is that of the loss.", sp.Eq(shown, expression, evaluate=False))),
        parts={"curvature": curvature, "noise": noise},
        identities=(
            *at_signs("the gradient at the moved weights is that of the loss", -moved * X_I - slope, SIGN),
            *at_signs("|g| = |r||x|", gradient**2 - (ABS_R * X_I) ** 2, SIGN),
            *at_signs("a shift s of x'w, |s| <= rho |x|, leaves a product without negative factors",
                      expression - (SIGN * ABS_R - shift) ** 2 / 2 - missing, SIGN),
            ("curvature: 1 and the kink's 2 rho |x| f(0)", 1 + 2 * RHO * size * density - curvature),
            ("noise: E(|r| + rho |x|)^2", (m2 + 2 * RHO * size * m1 + RHO**2 * size**2 * m0).subs(
                next(iter(general.symbols.values())), v) - noise),
        ),
        lemmas=(general,),
        symbol_latex={**LATEX, size: "|x|", C0: "c_0"},
    )  # fmt: skip
