"""What a measurement asks numerics before it runs: the law it will end in, and how long the way there is.

Asking first also refuses what has no stationary law: numerics raises where the mean does not settle, and where the mean
settles but second moments grow, before iterates return huge but finite numbers.
"""

from __future__ import annotations

import numpy as np

from .. import numerics
from ..errors import InvalidRuleError
from ..numerics import GradientNoise, StationaryCovariance
from ..theory import Optimizer
from ._forgetting import Forgetting
from ._gradients import GradientSource

__all__ = ["forgetting_of", "stationary_law"]

#: How much longer runs are planned where no second moments are known, as a power of the additive law's decay.
UNKNOWN_DECAY = 0.5


def stationary_law(optimizer: Optimizer, source: GradientSource) -> StationaryCovariance:
    """The stationary law as numerics solves it; with additive noise where a rule has no exact one on minibatches."""
    quadratic = source.quadratic
    try:
        return numerics.stationary_covariance(optimizer, quadratic.hessian, source.noise)
    except InvalidRuleError:  # it takes several gradients from one batch
        return numerics.stationary_covariance(optimizer, quadratic.hessian, quadratic.noise)


def forgetting_of(
    optimizer: Optimizer, source: GradientSource, law: StationaryCovariance, slots: tuple[str, ...]
) -> Forgetting:
    """How fast a run forgets where it started; with noise that depends on the weights, all of its slots do."""
    moving = np.delete(np.asarray(law.eigenvalues), np.asarray(law.flat, dtype=int))
    additive = Forgetting.of(optimizer, moving, slots)
    if not isinstance(source.noise, GradientNoise):
        return additive
    try:
        rate = numerics.mean_square_stability(optimizer, source.noise).spectral_radius
    except InvalidRuleError:
        rate = additive.radius**UNKNOWN_DECAY
    return additive.slowed(rate)
