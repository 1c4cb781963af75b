"""Batches of distinct examples: every subset is as likely as any other, however it is drawn."""

from __future__ import annotations

import numpy as np
import pytest

from sgdcov.numerics._batches import draw_batches


@pytest.mark.parametrize(("examples", "size"), [(6, 2), (6, 3), (6, 5), (6, 6), (9, 2), (12, 2)])
def test_subsets_are_distinct_and_equally_likely(examples, size):
    count = 60_000
    drawn = np.sort(draw_batches(np.random.default_rng(0), count, size, examples, replacement=False), axis=1)
    assert drawn.shape == (count, size)
    assert np.all(np.diff(drawn, axis=1) > 0)
    seen = np.unique(drawn, axis=0, return_counts=True)[1]
    expected = count / len(seen)
    # Chi-squared with len(seen) - 1 degrees of freedom: mean k, variance 2k.
    assert np.sum((seen - expected) ** 2 / expected) <= (len(seen) - 1) + 5 * np.sqrt(2 * len(seen))


def test_with_replacement_all_tuples_are_equally_likely():
    drawn = draw_batches(np.random.default_rng(1), 90_000, 2, 3, replacement=True)
    seen = np.unique(drawn, axis=0, return_counts=True)[1]
    assert len(seen) == 9
    assert np.sum((seen - 10_000.0) ** 2 / 10_000.0) <= 8 + 5 * np.sqrt(16)
