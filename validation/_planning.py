"""What a measurement asks numerics before it runs: the law it will end in, and how long the way there is.

Asking first also refuses what has no stationary law: numerics raises where the mean does not settle, and where the mean
settles but second moments grow, before iterates return huge but finite numbers.
"""

from __future__ import annotations

import numpy as np

from .. import numerics
from ..errors import InvalidProblemError, InvalidRuleError
from ..numerics import GradientNoise, StationaryCovariance
from ..theory import Optimizer
from ._forgetting import Forgetting
from ._gradients import GradientSource

__all__ = ["forgetting_of", "solvable_form", "stationary_law"]

#: How much longer runs are planned where no second moments are known, as a power of the additive law's decay.
UNKNOWN_DECAY = 0.5


def solvable_form(optimizer: Optimizer, noise: GradientNoise) -> tuple[Optimizer, GradientNoise] | None:
    """An optimizer and its noise whose second moments numerics solves and that make the same steps, if there are.

    A rule that takes several gradients from one batch has such a form where its batches can be listed.
    """
    try:
        numerics.mean_square_stability(optimizer, noise)
        return optimizer, noise
    except InvalidRuleError:
        pass
    try:
        return numerics.one_gradient_form(optimizer, noise)
    except (InvalidRuleError, InvalidProblemError):
        return None


def stationary_law(optimizer: Optimizer, source: GradientSource) -> StationaryCovariance:
    """The stationary law as numerics solves it; with additive noise where it solves no other."""
    if isinstance(source.noise, GradientNoise):
        form = solvable_form(optimizer, source.noise)
        if form is not None:
            return numerics.stationary_covariance(form[0], form[1].hessian, form[1])
    return _additive_law(optimizer, source)


def forgetting_of(optimizer: Optimizer, source: GradientSource, slots: tuple[str, ...]) -> Forgetting:
    """How fast a run forgets where it started; with noise that depends on the weights, all of its slots do."""
    law = _additive_law(optimizer, source)
    moving = np.delete(np.asarray(law.eigenvalues), np.asarray(law.flat, dtype=int))
    additive = Forgetting.of(optimizer, moving, slots)
    if not isinstance(source.noise, GradientNoise):
        return additive
    form = solvable_form(optimizer, source.noise)
    known = None if form is None else numerics.mean_square_stability(*form).spectral_radius
    return additive.slowed(additive.radius**UNKNOWN_DECAY if known is None else known)


def _additive_law(optimizer: Optimizer, source: GradientSource) -> StationaryCovariance:
    return numerics.stationary_covariance(optimizer, source.quadratic.hessian, source.quadratic.noise)
