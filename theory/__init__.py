"""Closed forms for the law of linear optimisers on a quadratic loss, derived from the update rule and proved.

===================================  =====================================================================
`update_rule`, `UpdateRule`          write an optimiser once, as a plain function
`sgd` ... `sam`, `with_ema`          the shipped rules (`RULES`)
`recursion`                          the linear recursion z' = A(h) z + b(h) xi of a rule
`stability`                          exact stability conditions and the largest stable learning rate
===================================  =====================================================================
"""

from .. import __version__ as __version__
from .hyperparameters import Hyperparameter
from .recursion import Recursion, recursion
from .rules import RULES, heavy_ball, nesterov, polyak, qhm, sam, sgd, sgdw, with_ema
from .stability import Stability, stability
from .update_rule import Optimizer, UpdateRule, update_rule

__all__ = [
    "RULES",
    "Hyperparameter",
    "Optimizer",
    "Recursion",
    "Stability",
    "UpdateRule",
    "heavy_ball",
    "nesterov",
    "polyak",
    "qhm",
    "recursion",
    "sam",
    "sgd",
    "sgdw",
    "stability",
    "update_rule",
    "with_ema",
]
