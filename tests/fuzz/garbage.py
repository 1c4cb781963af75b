"""What callers give by mistake: each must meet an error of the library's own, or be what it looks like."""

from __future__ import annotations

import datetime
import decimal

import numpy as np
import scipy.sparse


def _torch(make):
    import torch

    return make(torch)


def _ragged():
    return [[1.0], [1.0, 2.0]]


def _masked():
    return np.ma.masked_array([[1.0, 0.5], [0.5, 2.0]], mask=[[True, False], [False, False]])


#: By name: what it is, and for which arguments it is all right (none where there is no word).
GARBAGE = {
    "None": lambda: None,
    "text": lambda: "abc",
    "number as text": lambda: "0.1",
    "no": lambda: "no",
    "bytes": lambda: b"1",
    "object": object,
    "type": lambda: float,
    "function": lambda: len,
    "dict": lambda: {"a": 1.0},
    "set": lambda: {1.0},
    "empty": list,
    "nan": lambda: float("nan"),
    "array of nan": lambda: np.full((2, 2), np.nan),
    "vector of nan": lambda: np.full(2, np.nan),
    "inf": lambda: float("inf"),
    "-inf in a matrix": lambda: np.array([[1.0, -np.inf], [-np.inf, 1.0]]),
    "huge integer": lambda: 10**400,
    "huge integer in a list": lambda: [[10**400]],
    "huge integer in a vector": lambda: [10**400, 1],
    "negative": lambda: -1,
    "minus a half": lambda: -0.5,
    "zero": lambda: 0,
    "True": lambda: True,
    "numpy bool": lambda: np.True_,
    "bool matrix": lambda: np.eye(2, dtype=bool),
    "complex": lambda: 1j,
    "complex matrix": lambda: np.eye(2) * 1j,
    "ragged": _ragged,
    "masked": _masked,
    "masked vector": lambda: np.ma.masked_array([1.0, 2.0], mask=[True, False]),
    "sparse": lambda: scipy.sparse.csr_matrix(np.eye(2)),
    "sparse array": lambda: scipy.sparse.csr_array(np.eye(2)),
    "wrong shape": lambda: np.ones((2, 3)),
    "cube": lambda: np.ones((2, 2, 2)),
    "asymmetric": lambda: np.array([[1.0, 0.5], [0.0, 1.0]]),
    "indefinite": lambda: np.array([[1.0, 2.0], [2.0, 1.0]]),
    "dates": lambda: np.array(["2020-01-01"], dtype="datetime64[D]"),
    "date": lambda: datetime.date(2020, 1, 1),
    "structured": lambda: np.zeros(2, dtype=[("a", float), ("b", int)]),
    "objects": lambda: np.array([object(), object()]),
    "texts": lambda: np.array([["a", "b"], ["c", "d"]]),
    "decimal nan": lambda: decimal.Decimal("nan"),
    "iterator": lambda: iter([1.0, 2.0]),
    "generator": lambda: (x for x in (1.0, 2.0)),
    "lambda": lambda: lambda *a, **k: None,
    "tensor with grad": lambda: _torch(lambda t: t.eye(2, requires_grad=True)),
    "bfloat16": lambda: _torch(lambda t: t.eye(2, dtype=t.bfloat16)),
    "sparse tensor": lambda: _torch(lambda t: t.eye(2).to_sparse()),
    "exception": lambda: ValueError("x"),
    "module": lambda: np,
    "own rule": lambda: __import__("sgdcov.theory").theory.sgd,
    "unbound optimizer": lambda: __import__("sgdcov.theory").theory.heavy_ball(lr=0.1),
    "problem": lambda: __import__("sgdcov.numerics").numerics.LeastSquares([[1.0], [2.0]], [1.0, 0.0]),
    "schedule": lambda: __import__("sgdcov.numerics").numerics.Schedule.constant(3, lr=0.1),
    "law": lambda: __import__("sgdcov.numerics").numerics.stationary_covariance(
        __import__("sgdcov.theory").theory.sgd(lr=0.1), [[1.0]], [[1.0]]
    ),
}

#: Never what any argument of numerics may be, whatever its kind: to answer is wrong.
NEVER = {
    "object", "array of nan", "vector of nan", "nan", "huge integer in a list", "huge integer in a vector", "complex",
    "complex matrix", "ragged", "masked", "masked vector", "sparse", "sparse array", "dates", "date", "structured",
    "objects", "texts", "decimal nan", "-inf in a matrix", "bytes", "number as text", "exception", "module", "set",
    "sparse tensor", "no",
}  # fmt: skip

TORCH = {"tensor with grad", "bfloat16", "sparse tensor"}
