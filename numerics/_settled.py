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
from ._evolution import Evolution, Steps, mirror, step_matrices, still
from ._extended import Extended
from ._problem import Problem

__all__ = ["moving_noise", "settled", "settled_law"]

Array: TypeAlias = NDArray[np.float64]


def settled(problem: Problem) -> tuple[Evolution, Steps]:
    """The stationary law of the directions that move for unit noise, and one step of them."""
    problem.check()
    directions = problem.directions
    steps = step_matrices(problem.optimizer, directions.eigenvalues[directions.moving])
    one = still(steps.gain.hi.shape[0], steps.gain.hi.shape[2]).advance(steps, 1)
    law, kept = one.repeated_forever()
    if kept.any():
        worst = float(directions.eigenvalues[directions.moving][kept][0])
        raise NonStationaryError(
            f"{problem.optimizer!r} is too close to the stability edge along the direction with Hessian eigenvalue "
            f"{worst:.6g}: it has not forgotten its start after 1e19 steps",
            modes=(worst,),
        )
    return law, steps


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
    for (rows, columns), kernel in law.parts():
        covariance = kernel.scaled(noise[rows, columns])
        for a, b, block in blocks:
            for part, values in ((block.hi, covariance.hi), (block.lo, covariance.lo)):
                part[rows, columns] = values[a, b]
                mirror(part, rows, columns, values[b, a])
    for a, b, block in blocks:
        out.hi[a, b][inner], out.lo[a, b][inner] = block.hi, block.lo
    return out
