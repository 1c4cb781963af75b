"""Unbiased moments of samples whose replicas are independent, with standard errors from the spread between replicas."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

__all__ = ["moments"]

Array = NDArray[np.float64]


def moments(samples: Array) -> tuple[Array, Array, Array, Array]:
    """Covariance, its standard error, mean, its standard error; replicas are the independent unit."""
    replicas = samples.shape[1]
    own_mean = samples.mean(axis=0)
    mean = own_mean.mean(axis=0)
    spread = own_mean - mean
    mean_covariance = spread.T @ spread / (replicas * (replicas - 1))
    centred = samples - mean
    # E[P_r] = Sigma - Cov(mean): centring at the sample mean takes away exactly what is added back here.
    product = sum((snapshot.T @ snapshot for snapshot in centred), np.zeros_like(mean_covariance)) / (
        len(samples) * replicas
    )
    squares = np.zeros_like(product)
    for part in _parts(replicas, samples.shape[2]):
        rows = centred[:, part].transpose(1, 2, 0)  # (part of the replicas, k*d, snapshots)
        own = rows @ rows.transpose(0, 2, 1) / len(samples)
        squares += np.square(own - product).sum(axis=0)
    standard_error = np.sqrt(squares / (replicas * (replicas - 1)))
    return product + mean_covariance, standard_error, mean, np.sqrt(np.diag(mean_covariance))


def _parts(replicas: int, size: int) -> Iterator[slice]:
    """Slices of the replicas whose (size, size) products fit into a few tens of megabytes."""
    length = max(1, (1 << 22) // (size * size))
    return (slice(first, first + length) for first in range(0, replicas, length))
