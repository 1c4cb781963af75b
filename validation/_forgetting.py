r"""How long a run must be: the share of the stationary variance that k steps have not yet built up.

Started at the fixed point with no spread, the covariance after k steps falls short of the stationary one by
:math:`A^k S {A^k}^\top`. Along one Hessian eigenvector the *remembered share* is

.. math:: m(k) = \max_{\text{slots } s} \frac{(A^k S {A^k}^\top)_{ss}}{S_{ss}},

which falls monotonically in k, because :math:`S - A S A^\top = c\, b b^\top` is positive semidefinite. It also bounds
the squared correlation between states k steps apart, so the same function spaces the snapshots.

Noise that depends on the weights lets second moments decay more slowly, by the spectral radius :math:`\rho` of their
own operator in the long run. The share then passes in as many steps more as :math:`\rho` is slower than the slowest
mode without that noise, and is taken as at least :math:`\rho^k`; twice that, because modes mix on the way.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..numerics import pair_covariance
from ..theory import Optimizer, recursion

__all__ = ["Forgetting", "growth"]

Array = NDArray[np.float64]

#: By how much the share is taken to be larger where second moments decay by a rate of their own.
SAFETY = 2.0


@dataclass(frozen=True)
class Forgetting:
    """The remembered share of an optimizer, the largest over the Hessian eigenvalues given and the slots asked for."""

    transition: Array
    covariance: Array
    slots: tuple[int, ...]
    rate: float = 0.0  # of second moments in the long run, where the noise depends on the weights
    pace: float = 1.0  # steps of the additive law that pass in one

    @classmethod
    def of(cls, optimizer: Optimizer, eigenvalues: Array, slots: tuple[str, ...]) -> Forgetting:
        """Evaluate the recursion at the eigenvalues, all of them stable and not flat."""
        transition = _transitions(optimizer, eigenvalues)
        covariance = np.asarray(pair_covariance(optimizer, eigenvalues, eigenvalues), dtype=np.float64)
        return cls(transition, covariance, tuple(optimizer.rule.slots.index(name) for name in slots))

    def slowed(self, rate: float) -> Forgetting:
        """The same where second moments decay by ``rate`` in the long run, in all slots."""
        pace = float(np.log(rate) / np.log(self.radius)) if 0.0 < self.radius < rate < 1.0 else 1.0
        return replace(self, rate=rate, pace=pace, slots=tuple(range(self.transition.shape[-1])))

    @property
    def radius(self) -> float:
        """The factor by which second moments of all slots decay in the long run where the noise is additive."""
        return float(np.max(np.abs(np.linalg.eigvals(self.transition)), initial=0.0)) ** 2

    def share(self, steps: int) -> float:
        """The share still remembered after ``steps`` steps."""
        if not len(self.transition):
            return 0.0
        power = np.linalg.matrix_power(self.transition, int(self.pace * steps))
        left = np.einsum("nsi,nij,nsj->ns", power, self.covariance, power)[:, self.slots]
        whole = np.einsum("nss->ns", self.covariance)[:, self.slots]
        share = float(np.max(np.divide(left, whole, out=np.zeros_like(left), where=whole > 0)))
        return min(1.0, SAFETY * max(share, float(self.rate**steps))) if self.rate else share

    def steps(self, share: float, limit: int) -> int | None:
        """The fewest steps (at least 1) after which at most ``share`` is remembered; None if more than ``limit``."""
        high = 1
        while self.share(high) > share:
            if high >= limit:
                return None
            high = min(2 * high, limit)
        low = high // 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.share(middle) <= share else (middle, high)
        return high


def growth(optimizer: Optimizer, eigenvalues: Array) -> tuple[float, float]:
    """The eigenvalue along which a state grows fastest, and the factor by which it grows in a step."""
    factors = np.max(np.abs(np.linalg.eigvals(_transitions(optimizer, eigenvalues))), axis=1)
    worst = int(np.argmax(factors))
    return float(eigenvalues[worst]), float(factors[worst])


def _transitions(optimizer: Optimizer, eigenvalues: Array) -> Array:
    """A(h) at every eigenvalue h, shape (n, m, m)."""
    size = len(optimizer.rule.slots)
    transition = np.broadcast_to(np.eye(size), (len(eigenvalues), size, size)).copy()
    for power, layer in enumerate(recursion(optimizer).increment_coefficients):
        transition += np.array(layer, dtype=np.float64) * eigenvalues[:, None, None] ** power
    return transition
