"""What a measured row would have noticed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..agreement import Agreement

__all__ = ["Sensitive"]


class Sensitive:
    """A row whose measurement holds the agreements that its p-values come from."""

    measurement: Any

    def caught(self, level: float) -> tuple[float, float] | None:
        """The relative error of the whole covariance, and of one eigen-direction, that 95% of such runs would reject.

        The largest of all times that are looked at; infinite where none would be; None where there is no p-value.
        """
        agreed: Sequence[Agreement] = () if self.measurement is None else self.measurement.agreed
        if not agreed or any(a.withheld is not None for a in agreed):
            return None
        whole, one = (
            max(a.detectable_error(level, where=where) for a in agreed) for where in ("whole", "one direction")
        )
        return whole, one

    def blind(self, level: float) -> list[str]:
        """That no error of the covariance would be rejected, in words, where it is so: a check that cannot fail."""
        caught = self.caught(level)
        if caught is None or caught[0] < float("inf"):
            return []
        least = max(a.least_p_value for a in self.measurement.agreed)
        return [f"its replicas can claim no p-value below {least:.1e}, so that no error would be rejected"]
