"""An optimiser, written once as the plain function a person would write.

``update_rule`` turns such a function into an `UpdateRule`; calling the rule binds hyper-parameters and gives an
`Optimizer`. Theory traces the function with symbols, numerics takes its arrays from that trace, and validation steps
the very same function on tensors.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import sympy as sp

from ..errors import HyperparameterError, InvalidRuleError
from .hyperparameters import COMMON_DOMAINS, Hyperparameter, Number

__all__ = ["Optimizer", "UpdateRule", "update_rule"]

Step = Callable[..., Any]


@dataclass(frozen=True, eq=False)
class UpdateRule:
    """A linear optimiser: a step function, the names of its slots, and its hyper-parameters.

    Made by `update_rule`. Calling it binds hyper-parameters; those left out keep their default or stay symbols.

    Attributes
    ----------
    function : callable
        ``function(state, grad, **hyperparameters) -> state``, with one entry of ``state`` per slot.
    name : str
    slots : tuple of str
        The first slot holds the weights.
    hyperparameters : tuple of Hyperparameter
    references : tuple of str
        BibTeX keys.
    """

    function: Step
    name: str
    slots: tuple[str, ...]
    hyperparameters: tuple[Hyperparameter, ...]
    references: tuple[str, ...] = ()
    origin: tuple[Any, ...] = ()

    def __call__(self, **values: Number) -> Optimizer:
        """Bind hyper-parameters by name; a value outside its domain is refused."""
        return Optimizer(self, _bound(self, values))

    def __getitem__(self, name: str) -> Hyperparameter:
        for parameter in self.hyperparameters:
            if parameter.name == name:
                return parameter
        known = ", ".join(parameter.name for parameter in self.hyperparameters)
        raise HyperparameterError(f"{self.name} has no hyper-parameter {name!r}; it has {known}.", name=name)

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(parameter.name for parameter in self.hyperparameters)})"

    def __reduce__(self) -> str | tuple[Any, ...]:
        # The decorated name now means the rule, so the rule is pickled by that name and a derived rule by its recipe.
        return (self.origin[0], self.origin[1:]) if self.origin else self.function.__qualname__

    def free(self, *names: str) -> Optimizer:
        """Return the rule with the named hyper-parameters unbound, defaults included (all of them without names).

        Examples
        --------
        >>> from sgdcov.theory import heavy_ball
        >>> heavy_ball.free("weight_decay").unbound
        ('lr', 'momentum', 'weight_decay')
        """
        return self().free(*names)


@dataclass(frozen=True)
class Optimizer:
    """An update rule with numbers for some or all of its hyper-parameters. Frozen and hashable.

    Examples
    --------
    >>> from sgdcov.theory import heavy_ball
    >>> optimizer = heavy_ball(lr=0.1, momentum=0.9)
    >>> optimizer
    heavy_ball(lr=0.1, momentum=0.9)
    >>> optimizer.replace(lr=0.01).values["lr"]
    0.01
    """

    rule: UpdateRule
    bound: tuple[tuple[str, Number], ...]

    @property
    def values(self) -> Mapping[str, Number]:
        """The bound hyper-parameters, exactly as they were given, defaults included."""
        return MappingProxyType(dict(self.bound))

    @property
    def unbound(self) -> tuple[str, ...]:
        """Names of the hyper-parameters that are still symbols."""
        return tuple(p.name for p in self.rule.hyperparameters if p.name not in self.values)

    @property
    def symbols(self) -> Mapping[str, sp.Symbol]:
        """The symbols of the unbound hyper-parameters, by name."""
        return MappingProxyType({name: self.rule[name].symbol for name in self.unbound})

    @property
    def exact(self) -> Mapping[str, sp.Expr]:
        """Every hyper-parameter as theory sees it: an exact rational, or a symbol while unbound."""
        values, parameters = self.values, self.rule.hyperparameters
        # Binding has held the values to their domains; those of a step of a schedule (learning rate 0) pass here too.
        return MappingProxyType(
            {
                p.name: p.exact(values[p.name], domain=p.step_domain) if p.name in values else p.symbol
                for p in parameters
            }
        )

    def replace(self, **values: Number) -> Optimizer:
        """Return the optimizer with other values for the named hyper-parameters."""
        for name, value in values.items():
            self.rule[name].exact(value)
        merged = {**self.values, **values}
        names = [p.name for p in self.rule.hyperparameters if p.name in merged]
        return Optimizer(self.rule, tuple((name, merged[name]) for name in names))

    def free(self, *names: str) -> Optimizer:
        """Return the optimizer with the named hyper-parameters unbound (all of them without names)."""
        for name in names:
            self.rule[name]
        freed = set(names or self.values)
        return Optimizer(self.rule, tuple(pair for pair in self.bound if pair[0] not in freed))

    def pair(self, slots: Sequence[str] | None) -> tuple[str, str]:
        """Return a pair of slots, the weights twice unless others are asked for.

        Raises
        ------
        InvalidRuleError
            If the rule has no such slots.
        """
        names = self.rule.slots
        chosen = names[:1] * 2 if slots is None else slots
        if not isinstance(chosen, (tuple, list)) or len(chosen) != 2 or any(slot not in names for slot in chosen):
            raise InvalidRuleError(f"{self.rule.name} has the slots {names}; got {slots!r}.")
        return chosen[0], chosen[1]

    def tag(self, slots: tuple[str, str]) -> str:
        """Return how ids and symbols name a pair of slots: not at all, where both are the weights."""
        return "" if set(slots) == {self.rule.slots[0]} else f"({slots[0]},{slots[1]})"

    def require_bound(self) -> None:
        """Raise `HyperparameterError` if a hyper-parameter has no value."""
        if self.unbound:
            names = ", ".join(self.unbound)
            raise HyperparameterError(
                f"{self!r} has no value for {names}; bind it, as in {self.rule.name}({self.unbound[0]}=...).",
                name=self.unbound[0],
            )

    def step(self, state: Sequence[Any], grad: Callable[[Any], Any]) -> tuple[Any, ...]:
        """Step the rule once on anything that adds and multiplies: floats, arrays, tensors.

        Examples
        --------
        >>> from sgdcov.theory import heavy_ball
        >>> heavy_ball(lr=0.5, momentum=0.5).step((1.0, 0.0), grad=lambda w: w)
        (0.5, 1.0)
        """
        self.require_bound()
        return tuple(self.rule.function(tuple(state), grad, **self.values))

    def __repr__(self) -> str:
        defaults = {p.name: p.default for p in self.rule.hyperparameters}
        shown = [f"{name}={value}" for name, value in self.bound if defaults[name] is None or value != defaults[name]]
        shown += [f"{name}={name}" for name in self.unbound if defaults[name] is not None]
        return f"{self.rule.name}({', '.join(shown)})"


def update_rule(
    *,
    slots: Sequence[str],
    references: Sequence[str] = (),
    domains: Mapping[str, sp.Interval] | None = None,
) -> Callable[[Step], UpdateRule]:
    """Turn a plain step function into an `UpdateRule`.

    Parameters
    ----------
    slots : sequence of str
        One name per entry of the state; the first is the weights.
    references : sequence of str
        BibTeX keys of where the rule comes from.
    domains : mapping of str to sympy.Interval, optional
        Domain of each hyper-parameter. Known without being given: ``lr`` in (0, inf), ``momentum`` and ``dampening`` in
        [0, 1), ``weight_decay`` in [0, inf); anything else is a real number. A domain also decides which stability
        conditions are redundant: without one, a condition such as ``1 - beta > 0`` has to be stated.

    Returns
    -------
    callable
        A decorator for ``function(state, grad, *, lr, ...)``.

    Raises
    ------
    InvalidRuleError
        If the function does not have that signature, or slots are missing or repeated.

    Examples
    --------
    >>> @update_rule(slots=("w",))
    ... def plain(state, grad, *, lr):
    ...     (w,) = state
    ...     return (w - lr * grad(w),)
    >>> plain(lr=0.5).step((1.0,), grad=lambda w: w)
    (0.5,)
    """

    def decorate(function: Step) -> UpdateRule:
        name = getattr(function, "__name__", "rule")
        if not slots or len(set(slots)) != len(slots):
            raise InvalidRuleError(f"update rule {name!r} needs distinct slot names, got {tuple(slots)!r}.")
        if len({f"{a}_{b}" for a in slots for b in slots}) != len(slots) ** 2:
            raise InvalidRuleError(
                f"update rule {name!r} has slots whose pairs read alike once joined by '_', got {tuple(slots)!r}; "
                f"formulas name covariances of slots that way. Rename one."
            )
        parameters = _hyperparameters(name, function, domains or {})
        rule = UpdateRule(function, name, tuple(slots), parameters, tuple(references))
        # What functools.update_wrapper does, past the frozen dataclass: the rule reads and pickles as its function.
        for attribute in functools.WRAPPER_ASSIGNMENTS:
            if hasattr(function, attribute):
                object.__setattr__(rule, attribute, getattr(function, attribute))
        object.__setattr__(rule, "__wrapped__", function)
        return rule

    return decorate


def _hyperparameters(
    name: str, function: Step, domains: Mapping[str, sp.Interval]
) -> tuple[Hyperparameter, ...]:
    signature = list(inspect.signature(function).parameters.values())
    positional = [p for p in signature if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    keywords = [p for p in signature if p.kind is p.KEYWORD_ONLY]
    if len(positional) != 2 or len(positional) + len(keywords) != len(signature):
        raise InvalidRuleError(
            f"update rule {name!r} must have the signature (state, grad, *, hyper-parameters), "
            f"got {inspect.signature(function)}."
        )
    unknown = sorted(set(domains) - {p.name for p in keywords})
    if unknown:
        raise InvalidRuleError(f"update rule {name!r} has no hyper-parameter {unknown[0]!r} to give a domain to.")
    made = []
    for p in keywords:
        domain = domains.get(p.name, COMMON_DOMAINS.get(p.name, sp.Interval(-sp.oo, sp.oo)))
        parameter = Hyperparameter(p.name, domain, None if p.default is p.empty else p.default)
        if parameter.default is not None:
            parameter.exact(parameter.default)
        made.append(parameter)
    return tuple(made)


def _bound(rule: UpdateRule, values: Mapping[str, Number]) -> tuple[tuple[str, Number], ...]:
    for name, value in values.items():
        rule[name].exact(value)
    pairs = []
    for parameter in rule.hyperparameters:
        if parameter.name in values:
            pairs.append((parameter.name, values[parameter.name]))
        elif parameter.default is not None:
            pairs.append((parameter.name, parameter.default))
    return tuple(pairs)
