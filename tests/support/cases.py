"""What tests run over: one list of rules, with numbers for their hyper-parameters. A new rule is tested everywhere."""

from fractions import Fraction

import sympy as sp

from sgdcov.theory import RULES, Optimizer, UpdateRule, update_rule, with_ema

ALL_RULES: tuple[UpdateRule, ...] = (*RULES, *(with_ema(rule) for rule in RULES))

NUMBERS = {
    "lr": Fraction(3, 7),
    "momentum": Fraction(4, 5),
    "dampening": Fraction(1, 3),
    "weight_decay": Fraction(1, 9),
    "beta": Fraction(5, 7),
    "nu": Fraction(2, 3),
    "rho": Fraction(1, 2),
    "ema_decay": Fraction(7, 8),
}


def bound(rule: UpdateRule) -> Optimizer:
    """Bind every hyper-parameter of a rule to its number."""
    return rule(**{p.name: NUMBERS[p.name] for p in rule.hyperparameters})


@update_rule(slots=("theta", "slow"), domains={"pull": sp.Interval.Ropen(0, 1)})
def lookahead(state, grad, *, lr, pull):
    """A rule of a user's own, found by its name in a module: fast weights that slow ones pull back."""
    theta, slow = state
    theta = theta - lr * grad(theta) + pull * (slow - theta)
    return theta, slow + pull * (theta - slow)
