"""One example of an attacked linear model: the loss, its sign, its pull, and the names of what it is written in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import sympy as sp

from ..errors import InvalidProblemError
from .assumptions import Assumption
from .dual_norm import K_IJ, NORM, NORM_LATEX, RADIUS, U_I, U_J, dual_norm
from .minibatch import BATCH_SIZE, NUM_EXAMPLES

__all__ = ["AttackedLoss", "attack", "attacked_loss", "named", "norm_key"]

Loss = Literal["squared", "logistic", "hinge"]

X_I, X_J = sp.symbols("x_i x_j", real=True)
SIGN = sp.Symbol("sign", real=True)  # sgn(r)
LABEL = sp.Symbol("y", real=True)  # -1 or 1
ABS_R = sp.Symbol("abs_residual", nonnegative=True)
MARGIN = sp.Symbol("margin", real=True)  # of the clean example
PULL = sp.Symbol("pull", positive=True)  # sigma(-(margin - radius*norm_w))
ACTIVE = sp.Symbol("active", nonnegative=True)  # 1 where the hinge is, 0 elsewhere
VALUE = sp.Symbol("loss", nonnegative=True)
G_I, H_IJ, C_AB = sp.symbols("g_i H_ij c_ij", real=True)
LATEX = {**NORM_LATEX, ABS_R: "|r|", SIGN: r"\mathrm{sgn}(r)", MARGIN: "m", PULL: r"\varsigma", VALUE: r"\ell",
         H_IJ: "H_{ij}", C_AB: "c_{ij}", BATCH_SIZE: "B", NUM_EXAMPLES: "N"}  # fmt: skip


@dataclass(frozen=True)
class AttackedLoss:
    """One loss of an attacked linear model.

    Attributes
    ----------
    value : sympy.Expr
    sign : sympy.Symbol
        tau.
    pull, curvature : sympy.Expr
        rho and kappa.
    slopes : tuple of (sympy.Symbol, sympy.Expr)
        The derivative along w_j of the loss's own symbols; u_j stands for that of N.
    where : tuple of (sympy.Expr, sympy.Expr)
    assumption : Assumption
    reference : str
    """

    value: sp.Expr
    sign: sp.Symbol
    pull: sp.Expr
    curvature: sp.Expr
    slopes: tuple[tuple[sp.Symbol, sp.Expr], ...]
    where: tuple[tuple[sp.Expr, sp.Expr], ...]
    assumption: Assumption
    reference: str

    def moved(self, x: sp.Symbol, u: sp.Symbol) -> sp.Expr:
        """Return c = tau x - radius u, the attacked example with its sign."""
        return self.sign * x - RADIUS * u

    @property
    def along_j(self) -> dict[sp.Symbol, sp.Expr]:
        return {**dict(self.slopes), NORM: U_J, U_I: K_IJ}


def attacked_loss(loss: Loss) -> AttackedLoss:
    """Return the description of a loss by name."""
    behind = MARGIN - RADIUS * NORM
    if loss == "squared":
        return AttackedLoss(
            (ABS_R + RADIUS * NORM) ** 2 / 2, SIGN, ABS_R + RADIUS * NORM, sp.Integer(1), ((ABS_R, -SIGN * X_J),), (),
            Assumption("non-zero residual", "the residual y - x'w is not zero; sign and abs_residual are its sign and "
                       "absolute value"), "javanmard2020")  # fmt: skip
    if loss == "logistic":
        return AttackedLoss(
            sp.log(1 + sp.exp(-behind)), LABEL, PULL, PULL * (1 - PULL),
            ((MARGIN, LABEL * X_J), (PULL, -PULL * (1 - PULL) * (LABEL * X_J - RADIUS * U_J))),
            ((PULL, 1 / (1 + sp.exp(behind))),),
            Assumption("labels", "the label y is -1 or 1, and margin is y x'w"), "goodfellow2015")  # fmt: skip
    if loss == "hinge":
        return AttackedLoss(
            ACTIVE * (1 - behind), LABEL, ACTIVE, sp.Integer(0), ((MARGIN, LABEL * X_J),), (),
            Assumption("one side of the hinge", "the label y is -1 or 1, margin is y x'w, and active is 1 where "
                       "margin - radius*norm_w < 1 and 0 where it is more than 1"), "xu2009robustness")  # fmt: skip
    raise InvalidProblemError(f"loss must be 'squared', 'logistic' or 'hinge'; got {loss!r}.")


def norm_key(norm: Any) -> Any:
    """Return one value for each norm, so that formulas are made once."""
    if norm == "p":
        return norm
    return sp.oo if dual_norm(norm).name == "linf" else sp.nsimplify(norm, rational=True)


def named(what: str, norm: Any, *words: str) -> str:
    """Return the id of a formula for a norm, as `norm_key` gives it."""
    dual = dual_norm(norm)
    return f"{what}({', '.join((*words, dual.name if dual.name != 'lp' or norm == 'p' else f'l{norm}'))})"


def attack(norm: Any) -> Assumption:
    """Return the assumption that says what the attack may do."""
    ball = "inf" if norm == sp.oo else norm
    return Assumption("attack", f"the inputs are perturbed by the worst of an l_{ball} ball of the given radius")
