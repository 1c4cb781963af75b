r"""The stationary law in double-double: the sum over all past steps, by doubling.

`stationary_covariance` is correct to the last bits of a double.  Where the law is a start or the term of a sum that
cancels, those are too few: with Polyak's two copies of the weights and momentum :math:`\mu`, steps after a change of
the learning rate magnify them by :math:`1/(1-\mu)^2`.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import NonStationaryError
from ._evolution import Evolution, Steps, mirror, steps_of, still
from ._extended import Extended
from ._forward_error import Responses
from ._problem import Problem
from ._spectral_gap import smallest_gap

__all__ = ["moving_noise", "moving_responses", "settled", "settled_law"]

Array: TypeAlias = NDArray[np.float64]


def settled(problem: Problem) -> tuple[Evolution, Steps]:
    """The stationary law of the directions that move for unit noise, and one step of them, in units of the slots.

    Those are ``2**units`` of `moving_responses`.
    """
    problem.check()
    steps = steps_of(*moving_responses(problem).in_units())
    one = still(steps.gain.hi.shape[0], steps.gain.hi.shape[2]).advance(steps, 1)
    law, kept = one.repeated_forever()
    if kept.any():
        h = problem.directions.eigenvalues[problem.directions.moving][kept]
        raise NonStationaryError(
            f"{problem.optimizer!r} forgets its start by the factor 1 - {smallest_gap(problem.optimizer, h):.3g} a "
            f"step along the direction with Hessian eigenvalue {h[0]:.6g}: too slowly for sums over all steps in "
            f"double-double (stationary_covariance has no such limit)",
            modes=(float(h[0]),),
        )
    return law, steps


def moving_responses(problem: Problem) -> Responses:
    """What kicks along the directions that move become, and the units in which they are measured."""
    h = problem.directions.eigenvalues[problem.directions.moving]
    return Responses(problem.optimizer, h, np.zeros(0, dtype=np.intp))


def moving_noise(problem: Problem) -> Array:
    """The noise between the directions that move, in the eigenbasis."""
    moving = problem.directions.moving
    return problem.rotated_noise[np.ix_(moving, moving)]


def settled_law(problem: Problem) -> Extended:
    """The stationary covariance of all slots in the eigenbasis, shape (m, m, d, d); 0 in flat directions."""
    law, _ = settled(problem)
    m, noise = law.power.hi.shape[0], moving_noise(problem)
    inner = np.ix_(problem.directions.moving, problem.directions.moving)
    out = Extended.of(np.zeros((m, m, *problem.rotated_noise.shape)))
    blocks = [(a, b, Extended.of(np.zeros_like(noise))) for a in range(m) for b in range(m)]
    units = np.array(moving_responses(problem).units)
    shift = (units[:, None] + units)[:, :, None, None]
    for (rows, columns), kernel in law.parts():
        covariance = kernel.scaled(noise[rows, columns]).shifted(shift)
        for a, b, block in blocks:
            for part, values in ((block.hi, covariance.hi), (block.lo, covariance.lo)):
                part[rows, columns] = values[a, b]
                mirror(part, rows, columns, values[b, a])
    for a, b, block in blocks:
        out.hi[a, b][inner], out.lo[a, b][inner] = block.hi, block.lo
    return out
