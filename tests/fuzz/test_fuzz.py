"""A slice of the fuzz, and that its oracle and its judges are to be trusted: closed forms, and faults that are seen."""

from __future__ import annotations

import signal

import numpy as np
import pytest
from mpmath import mp, mpf

from tests.fuzz import judge, runner, table
from tests.fuzz import oracle as o
from tests.fuzz import oracle_data as data
from tests.fuzz.draw import Draw

PARTS, EACH = 3, 250


@pytest.fixture(autouse=True)
def digits():
    with mp.workdps(60):
        yield


def close(a, b, digits=40):
    return abs(a - b) <= abs(b) * mpf(10) ** -digits


def spec(name, **values):
    return o.Spec(name, tuple(values.items()))


class TestTheOracle:
    """What the formula sheet says of it, to 40 digits."""

    def test_plain_sgd(self):
        plain = o.Plain.of([[2.0, 1.0], [1.0, 3.0]], [[1.0, 0.25], [0.25, 2.0]])
        law = o.stationary(spec("sgd", lr=0.1), plain)
        lr = o.exact(0.1)
        for i in range(2):
            for j in range(2):
                h, k = plain.h[i], plain.h[j]
                assert close(law.pairs[i, j][0][0], lr * plain.c[i][j] / (h + k - lr * h * k))
        # in the caller's coordinates: lr (HS + SH) - lr^2 HSH = lr^2 C
        h, s = o.matrix([[2.0, 1.0], [1.0, 3.0]]), law.value
        left = o.add(o.add(o.mul(h, s), o.mul(s, h)), o.mul(o.mul(h, s), h), -lr)
        assert judge.size(o.add(left, o.scaled(o.matrix([[1.0, 0.25], [0.25, 2.0]]), lr), -1)) < mpf(10) ** -40

    @pytest.mark.parametrize("name", ["heavy_ball", "polyak"])
    def test_pairs_with_momentum(self, name):
        mu, lr, x, y = (o.exact(v) for v in (0.75, 0.5, 1.25, 0.5))
        rule = spec(name, lr=0.5, momentum=0.75)
        a, b = lr * x, lr * y
        den = (1 - mu) * (a + b - a * b / (1 + mu)) + mu * (a - b) ** 2 / (1 - mu**2)
        assert close(o.pair_law(rule.step(x), rule.step(y))[0][0], lr**2 / den)

    def test_nesterov(self):
        mu, lr, h = (o.exact(v) for v in (0.75, 0.5, 1.25))
        rule, a = spec("nesterov", lr=0.5, momentum=0.75), o.exact(0.625)
        right = lr**2 * (1 + mu + mu * (1 + 2 * mu) * a) / (a * (1 - mu + mu * a) * (2 * (1 + mu) - (1 + 2 * mu) * a))
        assert close(o.pair_law(rule.step(h), rule.step(h))[0][0], right)

    def test_walks_sum_geometric_series_and_forget(self):
        rule = spec("sgd", lr=0.5)
        a, _, x = o.pair_walk(rule.step(mpf(1)), rule.step(mpf(1)), 10)
        assert close(x[0][0], (1 - mpf("0.25") ** 10) / 3)
        assert close(a[0][0], mpf("0.5") ** 10)

    def test_long_means_have_the_sandwich_and_its_time(self):
        plain = o.Plain.of([[2.0]], [[4.0]])
        rule = spec("heavy_ball", lr=0.5, momentum=0.5)
        assert close(o.averaged(rule, plain, 10**30)[0][0] * 10**30, mpf(1), 20)
        assert close(o.autocorrelation_time(rule, mpf(2)), mpf("0.5") * (2 - 1 / mpf("1.5")))

    def test_epochs_without_correlation_are_independent_steps(self):
        plain, rule = o.Plain.of([[0.7]], [[1.0]]), spec("nesterov", lr=0.5, momentum=0.75)
        white = o.stationary(rule, plain).value[0][0]
        assert all(close(o.epoch_law(rule, plain, 3, 0, p).value[0][0], white) for p in (0, 1, "average"))

    def test_shuffled_epochs_end_below(self):
        """C f'Rf / (1 - m^2M), f_j = lr m^(M-1-j), R = (I - 11'/M) M/(M-1)."""
        m, count = mpf("0.5"), 4
        f = [mpf("0.5") * m ** (count - 1 - j) for j in range(count)]
        form = (sum(x * x for x in f) - sum(f) ** 2 / count) * count / (count - 1)
        law = o.epoch_law(spec("sgd", lr=0.5), o.Plain.of([[1.0]], [[1.0]]), count, mpf(-1) / (count - 1), 0)
        assert close(law.value[0][0], form / (1 - m ** (2 * count)))

    def test_batches_have_the_published_covariance(self):
        """vec S = lr p (2C - lr D)^-1 vec Sg (Mulayoff and Michaeli), in one dimension."""
        X, y, lr = [[1.0], [2.0], [0.5]], [1.0, -1.0, 2.0], o.exact(0.125)
        hessians, slopes = data.examples_of(X, y, 0.0)
        atoms = data.drawn(hessians, slopes, 2, False)
        _, whole = data.Moments(spec("sgd", lr=0.125), atoms).stationary()
        h, p = data.mean(hessians)[0][0], mpf(1) / 4
        best = data.minimiser([[h]], data.mean(slopes))[0]
        noise = sum((a[0][0] * best + r[0]) ** 2 for a, r in zip(hessians, slopes, strict=True)) / 3
        square = sum(a[0][0] ** 2 for a in hessians) / 3
        assert close(whole[0][0], lr * p * noise / (2 * h - lr * ((1 - p) * h**2 + p * square)))

    def test_gaussian_atoms_have_the_fourth_moments(self):
        atoms = data.gaussian_atoms([[2.0]], 0.5, [0.0], 1)
        assert close(sum(c * h[0][0] ** 2 for c, h, _ in atoms), mpf(12))
        assert close(data.noise_at(atoms, [mpf(0)], [[mpf(1)]])[0][0], mpf(8) + mpf("0.5"))

    def test_derivatives_of_the_robust_loss(self):
        f = data.losses("squares", [[1.0, 2.0]], [3.0], 0.5, 2, 0.0, None)[0]
        w = [mpf(1), mpf("-0.5")]
        size = mp.sqrt(w[0] ** 2 + w[1] ** 2)
        reach = 3 - data.dot([mpf(1), mpf(2)], w) + size / 2
        right = [reach * (-x + v / size / 2) for x, v in zip((1, 2), w, strict=True)]
        assert all(close(g, r, 30) for g, r in zip(data.gradient(f, w), right, strict=True))


class TestWhatItSees:
    """Faults put in on purpose have their outcome."""

    @pytest.fixture
    def spoiled(self, monkeypatch):
        """Runs one function of the table with what ``spoil`` makes of its results."""

        def run(name, spoil, index=0):
            make = table.CALLS[name][1]

            def maker(draw):
                case = make(draw)
                inner, case.fixed = case.call, True
                case.call = lambda **given: spoil(inner(**given))
                return case

            monkeypatch.setattr(runner, "CALLS", {name: (1, maker)})
            signal.signal(signal.SIGALRM, runner.alarm)
            outcomes = [runner.run(5, k) for k in range(index, index + 12)]
            return {outcome for _, outcome, _ in outcomes}

        return run

    def test_nothing_where_nothing_is_wrong(self, spoiled):
        assert spoiled("adam", lambda r: r) <= {"right", "refused"}

    def test_values_that_are_off(self, spoiled):
        assert "WRONG" in spoiled("pair_covariance", lambda r: r * (1 + 1e-9))
        assert "WRONG" in spoiled("adam", lambda r: np.full_like(r, np.nan))
        assert "WRONG" in spoiled("transient_mean", lambda r: 0.0 * r)

    def test_errors_of_no_type_of_its_own(self, spoiled):
        def fail(result):
            raise KeyError(result)

        assert "untyped" in spoiled("adam", fail)

    def test_what_takes_too_long(self, spoiled, monkeypatch):
        monkeypatch.setattr(runner, "LIMIT", 1)
        calls = iter([True])

        def wait(result):
            while next(calls, False):
                signal.pause()
            return result

        assert "slow" in spoiled("adam", wait)


def test_every_public_name_is_in_the_table():
    assert not table.missing()


def test_a_problem_follows_from_its_seed_and_index():
    first, second = Draw(3, 40), Draw(3, 40)
    assert (first.specs, first.rng.random()) == (second.specs, second.rng.random())


@pytest.mark.early
@pytest.mark.parametrize("part", range(PARTS))
def test_a_slice_finds_nothing(part, python):
    result = python("-m", "tests.fuzz", "--first", part * EACH, "--count", EACH, "--workers", 1)
    assert result.returncode == 0, result.stdout + result.stderr
