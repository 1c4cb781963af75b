"""Values that never change: a copy is the value itself, and pickling keeps every expression as it is written.

SymPy rebuilds an expression from its parts when it is unpickled and would multiply 2*(1 + x) out on the way. A value is
therefore pickled as a whole, and unpickled with that evaluation switched off.
"""

from __future__ import annotations

import pickle
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, Self

import sympy as sp

__all__ = ["Immutable"]

_inside: ContextVar[bool] = ContextVar("inside", default=False)


class Immutable:
    """Base of the frozen dataclasses of this layer."""

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        if _inside.get():  # a part of another value: what the two share is pickled once
            return _blank, (type(self),), self.__getstate__()
        token = _inside.set(True)
        try:
            return _whole, (pickle.dumps(self),)
        finally:
            _inside.reset(token)

    def __getstate__(self) -> dict[str, Any]:
        return {name: _packed(value) for name, value in self.__dict__.items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            self.__dict__[name] = value.unpacked() if isinstance(value, _Packed) else value


class _Packed:
    """A read-only mapping or a polynomial on its way through pickle."""

    def __init__(self, kind: str, *parts: Any) -> None:
        self.kind, self.parts = kind, parts

    def unpacked(self) -> Any:
        if self.kind == "mapping":
            return MappingProxyType(dict(self.parts[0]))
        with sp.evaluate(True):  # a polynomial is arithmetic, not writing
            return sp.Poly(self.parts[0], *self.parts[1])


def _packed(value: Any) -> Any:
    if isinstance(value, MappingProxyType):
        return _Packed("mapping", dict(value))
    return _Packed("polynomial", value.as_expr(), value.gens) if isinstance(value, sp.Poly) else value


def _blank(kind: type[Immutable]) -> Immutable:
    return kind.__new__(kind)


def _whole(pickled: bytes) -> Immutable:
    with sp.evaluate(False):
        value: Immutable = pickle.loads(pickled)
    return value
