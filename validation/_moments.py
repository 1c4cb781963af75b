"""Unbiased moments of samples whose replicas are independent, with standard errors from the spread between replicas."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

__all__ = ["moments"]

Array = NDArray[np.float64]

#: Numbers that a part of the replicas may take, with their products: 16 megabytes.
NUMBERS_AT_ONCE = 1 << 21


def moments(samples: Array) -> tuple[Array, Array, Array, Array]:
    """Covariance, its standard error, mean, its standard error; replicas are the independent unit.

    Two passes over the replicas, some of them at a time: beside the samples, of shape (snapshots, replicas, k*d), next
    to no memory is taken.
    """
    snapshots, replicas, size = samples.shape
    own_mean = samples.mean(axis=0)
    mean = own_mean.mean(axis=0)
    spread = own_mean - mean
    mean_covariance = spread.T @ spread / (replicas * (replicas - 1))
    # E[P_r] = Sigma - Cov(mean): centring at the sample mean takes away exactly what is added back here.
    product = np.zeros((size, size))
    for part in _parts(replicas, snapshots, size):
        centred = (samples[:, part] - mean).reshape(-1, size)
        product += centred.T @ centred
    product /= snapshots * replicas
    squares = np.zeros_like(product)
    for part in _parts(replicas, snapshots, size):
        rows = (samples[:, part] - mean).transpose(1, 2, 0)  # (part of the replicas, k*d, snapshots)
        own = rows @ rows.transpose(0, 2, 1)
        own /= snapshots
        own -= product
        squares += np.einsum("rij,rij->ij", own, own)
    standard_error = np.sqrt(squares / (replicas * (replicas - 1)))
    return product + mean_covariance, standard_error, mean, np.sqrt(np.diag(mean_covariance))


def _parts(replicas: int, snapshots: int, size: int) -> Iterator[slice]:
    """Slices of the replicas whose states and (size, size) products are few enough."""
    length = max(1, NUMBERS_AT_ONCE // (size * (size + 2 * snapshots)))
    return (slice(first, first + length) for first in range(0, replicas, length))
