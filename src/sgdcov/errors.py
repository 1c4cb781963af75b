"""The errors of sgdcov: one small hierarchy, each also a fitting built-in error.

Every message shows the caller's own input, says what would be right and, where there is one, the way out.
The numbers it names are attributes of the error as well, so that a program can use them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = [
    "AccuracyWarning",
    "DivergenceError",
    "HyperparameterError",
    "InvalidProblemError",
    "InvalidRuleError",
    "MeanSquareUnstableError",
    "NonStationaryError",
    "NonlinearRuleError",
    "ProofError",
    "ScaleError",
    "SgdcovError",
    "SlowWarning",
    "UnstableError",
]


class SgdcovError(Exception):
    """Base of every error that sgdcov raises on purpose.  Every one survives pickle and copy, attributes and all."""

    def __reduce__(self) -> tuple[Any, ...]:
        # An error's arguments are its message, not what its __init__ takes: it is rebuilt without calling that. (An
        # error that cannot be unpickled does not reach the parent of a process pool, which then waits for ever.)
        return _rebuilt, (type(self), self.args, self.__dict__)


def _rebuilt(kind: type[SgdcovError], args: tuple[Any, ...], attributes: Mapping[str, Any]) -> SgdcovError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(attributes)
    return error


class AccuracyWarning(UserWarning):
    """A result is returned whose error bound is large; the result's ``error`` says how large."""


class SlowWarning(UserWarning):
    """A computation will take long; the message estimates how long, from the first part of it."""


class InvalidRuleError(SgdcovError, TypeError):
    """An update rule does not have the form of one (slots, signature, what it returns)."""


class NonlinearRuleError(SgdcovError, ValueError):
    """An update rule is not linear in (state, gradient); ``term`` is the offending term as text."""

    def __init__(self, rule: str, term: str, reason: str) -> None:
        self.rule, self.term = rule, term
        super().__init__(
            f"update rule {rule!r} is not linear in (state, gradient): {reason} (offending term: {term}). "
            f"Only steps of the form z' = A z + b grad(.) have a closed law."
        )


class HyperparameterError(SgdcovError, ValueError):
    """A hyper-parameter is missing, unknown, or outside its domain; ``name`` says which."""

    def __init__(self, message: str, *, name: str) -> None:
        self.name = name
        super().__init__(message)


class InvalidProblemError(SgdcovError, ValueError):
    """An array or argument is not what it claims to be (shape, symmetry, definiteness, finiteness)."""


class UnstableError(SgdcovError, ValueError):
    """The optimiser does not contract along a Hessian direction, so it has no stationary law.

    Attributes
    ----------
    lr : float or None
        The learning rate asked for (None for a rule that has no hyper-parameter of that name).
    eigenvalue : float
        The offending Hessian eigenvalue.
    largest_lr : float or None
        The least upper bound of the stable learning rates on that direction, where it is known.
    """

    def __init__(self, lr: float | None, eigenvalue: float, largest_lr: float | None) -> None:
        self.lr, self.eigenvalue, self.largest_lr = lr, eigenvalue, largest_lr
        what = "the optimizer" if lr is None else f"lr={lr:.6g}"
        message = f"{what} has no stationary law on the direction with Hessian eigenvalue {eigenvalue:.6g}"
        if largest_lr is not None:
            message += f"; it needs lr < {largest_lr:.6g}"
        super().__init__(message + ". For a finite number of steps use transient_covariance.")


class MeanSquareUnstableError(UnstableError):
    """The mean settles, but the noise of the curvature itself makes the second moment grow: there is no covariance.

    Attributes
    ----------
    lr : float or None
        The learning rate asked for.
    largest_lr : float or None
        The least upper bound of the learning rates that have a covariance.
    largest_mean_lr : float or None
        The least upper bound of the learning rates at which the mean settles.
    spectral_radius : float
        Of the second-moment operator: the factor by which the second moment grows in a step, in the long run.
    """

    def __init__(
        self, lr: float | None, spectral_radius: float, largest_lr: float | None, largest_mean_lr: float | None
    ) -> None:
        self.lr, self.largest_lr, self.eigenvalue = lr, largest_lr, float("nan")
        self.spectral_radius, self.largest_mean_lr = spectral_radius, largest_mean_lr
        what = "the optimizer" if lr is None else f"lr={lr:.6g}"
        bound = "" if largest_lr is None else f"; it needs lr < {largest_lr:.6g}"
        if largest_lr == 0.0:
            bound = ", at any learning rate: single batches curve a direction that is flat in the mean"
        mean = "" if largest_mean_lr is None else f" (the mean settles for lr < {largest_mean_lr:.6g})"
        ValueError.__init__(
            self,
            f"{what} is beyond mean-square stability: with gradient noise that depends on the weights their second "
            f"moment grows by the factor {spectral_radius:.6g} in every step, so no covariance exists{bound}{mean}. "
            f"Take a smaller learning rate or a larger batch; for a finite number of steps use transient_covariance.",
        )


class NonStationaryError(SgdcovError, ValueError):
    """No stationary law exists although nothing is unstable: the noise excites a direction that never forgets.

    Attributes
    ----------
    rho : float or None
        Spectral radius of the recursion, where it was computed.
    modes : tuple
        The excited directions or modes (indices, eigenvalues or moduli; the message says which).
    """

    def __init__(self, message: str, *, rho: float | None = None, modes: Sequence[object] = ()) -> None:
        self.rho, self.modes = rho, tuple(modes)
        super().__init__(message)


class DivergenceError(SgdcovError, OverflowError):
    """An unstable recursion has run until its numbers overflow double precision.

    Attributes
    ----------
    eigenvalue : float
        The Hessian eigenvalue of the direction that grows fastest.
    growth : float
        Factor by which it grows in a step.
    where : str
        The steps in which it happened.
    """

    def __init__(self, where: str, eigenvalue: float, growth: float) -> None:
        self.where, self.eigenvalue, self.growth = where, eigenvalue, growth
        super().__init__(
            f"{where}: the numbers overflow; along the direction with Hessian eigenvalue {eigenvalue:.6g} the state "
            f"grows by the factor {growth:.6g} in every step. Take fewer steps or a smaller learning rate."
        )


class ScaleError(SgdcovError, OverflowError):
    """A number that the answer needs is too large or too small for double precision: a matter of units alone.

    Raised in place of a false 0, an infinity or a NaN.  Rescale the weights or the loss (in units in which Hessian and
    learning rate are of the order of 1, say), and scale the answer back.
    """


class ProofError(SgdcovError, ArithmeticError):
    """A formula does not satisfy one of its defining equations; ``residual`` is what is left over."""

    def __init__(self, formula: str, equation: str, residual: object) -> None:
        self.formula, self.equation, self.residual = formula, equation, residual
        super().__init__(f"{formula} does not satisfy {equation}: the residual is {residual}, not 0.")
