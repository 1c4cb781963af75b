"""Closed forms for the law of linear optimisers on a quadratic loss, derived from the update rule and proved.

===================================  =====================================================================
`update_rule`, `UpdateRule`          write an optimiser once, as a plain function
`sgd` ... `sam`, `with_ema`          the shipped rules (`RULES`)
`recursion`                          the linear recursion z' = A(h) z + b(h) xi of a rule
`stability`                          exact stability conditions and the largest stable learning rate
`stationary_covariance`              the covariance of any two slots, as a `Formula`; `stationary_mean` likewise
`transient_covariance`, ...          the law k steps after a change: `transient_mean`, `learning_rate_change`,
                                     `momentum_convention_gap`, `early_phase_surrogate`, `characteristic_sequence`
`autocovariance`, ...                memory and averages at the stationary law: `autocorrelation_time`,
                                     `average_covariance`, `sandwich_limit`
`catalogue`                          every formula; `sde_limit`, `commuting_heavy_ball`, `momentum_matrix_equation`
                                     are the literature's statements beside ours
===================================  =====================================================================
"""

from .. import __version__ as __version__
from .assumptions import Assumption
from .averages import autocorrelation_time, autocovariance, average_covariance, sandwich_limit
from .formula import Formula, Proof, Step
from .hyperparameters import Hyperparameter
from .literature import catalogue, commuting_heavy_ball, momentum_matrix_equation, sde_limit
from .powers import characteristic_sequence
from .recursion import Recursion, recursion
from .references import bibtex
from .rules import RULES, heavy_ball, nesterov, polyak, qhm, sam, sgd, sgdw, with_ema
from .stability import Stability, stability
from .stationary import stationary_covariance, stationary_mean
from .transient import (
    early_phase_surrogate,
    learning_rate_change,
    momentum_convention_gap,
    transient_covariance,
    transient_mean,
)
from .update_rule import Optimizer, UpdateRule, update_rule

__all__ = [
    "RULES",
    "Assumption",
    "Formula",
    "Hyperparameter",
    "Optimizer",
    "Proof",
    "Recursion",
    "Stability",
    "Step",
    "UpdateRule",
    "autocorrelation_time",
    "autocovariance",
    "average_covariance",
    "bibtex",
    "catalogue",
    "characteristic_sequence",
    "commuting_heavy_ball",
    "early_phase_surrogate",
    "heavy_ball",
    "learning_rate_change",
    "momentum_convention_gap",
    "momentum_matrix_equation",
    "nesterov",
    "polyak",
    "qhm",
    "recursion",
    "sam",
    "sandwich_limit",
    "sde_limit",
    "sgd",
    "sgdw",
    "stability",
    "stationary_covariance",
    "stationary_mean",
    "transient_covariance",
    "transient_mean",
    "update_rule",
    "with_ema",
]
