"""`compare` is calibrated under a true prediction, whatever the law of the iterates, and finds a false one."""

import numpy as np
import pytest
import scipy.stats

from sgdcov import numerics
from sgdcov.errors import InvalidProblemError
from sgdcov.theory import heavy_ball, sgd
from sgdcov.validation import Estimate, compare
from sgdcov.validation._moments import moments


def estimate(samples, slots=("w",), steps=100):
    """An estimate from (snapshots, replicas, k*d) samples of whatever law."""
    value, standard_error, mean, mean_standard_error = moments(samples)
    return Estimate(
        value=value,
        standard_error=standard_error,
        mean=mean,
        mean_standard_error=mean_standard_error,
        samples=samples,
        replicas=samples.shape[1],
        steps=steps,
        burn_in=steps,
        spacing=1,
        transient=0.0,
        slots=slots,
        optimizer=sgd(lr=0.1),
        engine="rule",
        gradients="synthetic",
        seed=0,
    )


def mixing(dim):
    """A fixed, badly scaled matrix: the test must not care for coordinates."""
    rng = np.random.default_rng(dim)
    return rng.standard_normal((dim, dim)) * np.logspace(0, 2, dim)


def gaussian(rng, snapshots, replicas, dim):
    return rng.standard_normal((snapshots, replicas, dim))


def correlated(rng, snapshots, replicas, dim):
    """Snapshots of one replica depend on each other."""
    x = rng.standard_normal((snapshots, replicas, dim))
    for s in range(1, snapshots):
        x[s] = 0.6 * x[s - 1] + 0.8 * x[s]
    return x


def exponential(rng, snapshots, replicas, dim):
    return rng.standard_exponential((snapshots, replicas, dim)) - 1.0


def mixture(rng, snapshots, replicas, dim):
    """Elliptic with a random scale: uncorrelated but dependent coordinates, kurtosis 6."""
    return rng.standard_normal((snapshots, replicas, dim)) * np.sqrt(rng.standard_exponential((snapshots, replicas, 1)))


def skewed(rng, snapshots, replicas, dim):
    """Skewness 4."""
    return (rng.standard_gamma(0.25, (snapshots, replicas, dim)) - 0.25) / 0.5


CALIBRATION = [  # law, snapshots, replicas, dim
    (gaussian, 1, 400, 1),
    (gaussian, 8, 400, 5),
    (gaussian, 1, 400, 30),
    (correlated, 8, 400, 5),
    (exponential, 8, 800, 2),
    (mixture, 4, 600, 5),
]
SKEWED = [(skewed, 1, 100, 1), (skewed, 1, 130, 3), (skewed, 1, 400, 3), (exponential, 1, 100, 2)]


def agreements(law, snapshots, replicas, dim, repetitions, seed):
    rng = np.random.default_rng(seed)
    coordinates, centre = mixing(dim), np.arange(dim) * 10.0
    for _ in range(repetitions):
        samples = law(rng, snapshots, replicas, dim) @ coordinates.T + centre
        yield compare(estimate(samples), coordinates @ coordinates.T, mean=centre)


@pytest.mark.parametrize(("law", "snapshots", "replicas", "dim"), CALIBRATION)
def test_p_is_uniform_under_a_true_prediction(law, snapshots, replicas, dim):
    n = 200
    found = list(agreements(law, snapshots, replicas, dim, repetitions=n, seed=1))
    kinds = {"mean": [a.mean_p_value for a in found]}
    kinds |= {name: [a.p_values[name] for a in found] for name in found[0].p_values}
    for kind in kinds.values():  # one false alarm in 1000 seeds for each Kolmogorov-Smirnov test
        assert scipy.stats.kstest(kind, "uniform").pvalue > 1e-3
    # Combined they are exactly uniform where they are independent; otherwise within a tenth, and right in the tail.
    p = [a.p_value for a in found if a.withheld is None]
    assert len(p) > 0.99 * n
    distance = scipy.stats.kstest(p, "uniform").statistic
    assert distance < 0.1 + 1.95 / np.sqrt(n)
    assert scipy.stats.binom.sf(np.count_nonzero(np.array(p) < 0.02) - 1, n, 1.5 * 0.02) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(("law", "snapshots", "replicas", "dim"), CALIBRATION)
def test_p_has_its_level_in_the_tail(law, snapshots, replicas, dim):
    n = 4000
    found = list(agreements(law, snapshots, replicas, dim, repetitions=n, seed=2))
    for kind in ([a.p_value for a in found], [a.mean_p_value for a in found]):
        for level in (0.05, 0.01, 0.001):
            rejected = np.count_nonzero(np.array(kind) < level)
            # At most half again the nominal level, up to the chance (1e-4 a time) of seeing more than that.
            assert scipy.stats.binom.sf(rejected - 1, n, 1.5 * level) > 1e-4


@pytest.mark.parametrize(("law", "snapshots", "replicas", "dim"), SKEWED)
def test_few_replicas_of_a_skewed_law_claim_no_more_than_they_can(law, snapshots, replicas, dim):
    n = 150
    found = list(agreements(law, snapshots, replicas, dim, repetitions=n, seed=3))
    p = np.array([a.p_value for a in found if a.withheld is None])
    assert (p >= [a.least_p_value for a in found if a.withheld is None]).all()
    for level in (0.05, 0.01):
        assert scipy.stats.binom.sf(np.count_nonzero(p < level) - 1, n, 1.5 * level) > 1e-4
    withheld = [a for a in found if a.withheld is not None]
    assert all(a.least_p_value > 0.05 and "as many" in a.withheld and np.isnan(a.p_value) for a in withheld)
    if law is skewed and replicas <= 130:
        assert len(withheld) > n / 2


@pytest.mark.slow
@pytest.mark.parametrize(("law", "snapshots", "replicas", "dim"), SKEWED)
def test_the_tail_of_a_skewed_law(law, snapshots, replicas, dim):
    n = 4000
    found = agreements(law, snapshots, replicas, dim, repetitions=n, seed=4)
    p = np.array([a.p_value for a in found if a.withheld is None])
    for level in (0.01, 0.001, 1e-5):
        assert scipy.stats.binom.sf(np.count_nonzero(p < level) - 1, n, 2.0 * level) > 1e-4


def test_more_replicas_can_claim_more():
    rng = np.random.default_rng(16)
    few, many = (compare(estimate(gaussian(rng, 1, n, 2)), np.eye(2)).least_p_value for n in (100, 1000))
    assert few > 1e-5 > 1e-20 > many
    wrong = compare(estimate(gaussian(rng, 1, 100, 2)), 100 * np.eye(2))
    assert wrong.p_value < 2 * wrong.least_p_value  # no number of standard errors claims more


# Power where the stated error is there: at 95%, fewer than 14 of 20 have probability 3e-4.
@pytest.mark.parametrize(("dim", "replicas"), [(1, 2000), (2, 2000), (10, 2000), (30, 400)])
@pytest.mark.parametrize("where", ["whole", "one direction"])
def test_the_detectable_error_is_detected(where, dim, replicas):
    rng, level, seen = np.random.default_rng(17), 1e-4, 0
    turned = np.linalg.qr(mixing(dim))[0] * np.arange(1.0, dim + 1)  # apart, so that directions are what they are
    for _ in range(20):
        measured = estimate(gaussian(rng, 2, replicas, dim) @ turned.T)
        error = compare(measured, turned @ turned.T).detectable_error(level, where=where)
        factor = np.ones(dim)
        factor[slice(None) if where == "whole" else rng.integers(dim)] = 1.0 / (1.0 + error)
        seen += compare(measured, (turned * factor) @ turned.T).p_value < level
        assert compare(measured, turned @ turned.T).detectable_error(level / 100, where=where) >= error
    assert seen >= 14


def test_what_cannot_be_claimed_cannot_be_detected():
    agreement = compare(estimate(gaussian(np.random.default_rng(18), 1, 150, 20)), np.eye(20))
    assert np.isfinite(agreement.detectable_error(1e-3))
    assert agreement.detectable_error(1e-9) == agreement.detectable_error(1e-5, where="one direction") == np.inf
    with pytest.raises(InvalidProblemError, match=r"level .* got 2"):
        agreement.detectable_error(2.0)


@pytest.mark.parametrize("kind", ["whole", "eigen-direction", "entry"])
def test_directed_statistics_see_what_the_omnibus_does_not(kind):
    """The size of digits: 61 directions, 8 snapshots of 4,000 replicas; half a percent, or one part off by a tenth."""
    rng = np.random.default_rng(19)
    basis = np.linalg.qr(mixing(61))[0]
    spectrum = np.logspace(0, 2, 61)
    truth = (basis * spectrum) @ basis.T
    samples = gaussian(rng, 8, 4000, 61) @ (basis * np.sqrt(spectrum)).T
    wrong = {
        "whole": lambda: 1.008 * truth,
        "eigen-direction": lambda: (basis * np.where(np.arange(61) == 30, 1.1, 1.0) * spectrum) @ basis.T,
        "entry": lambda: truth + 0.1 * truth[20, 20] * np.outer(np.eye(61)[20], np.eye(61)[20]),
    }[kind]()
    agreement = compare(estimate(samples), wrong)
    assert agreement.p_value < 1e-6
    if kind != "entry":  # which is a large deviation in units of the prediction
        assert agreement.p_values["everything"] > 1e-6
    assert compare(estimate(samples), truth).p_value > 1e-3


def wrong_scale(dim):
    return 1.05 * np.eye(dim)


def wrong_entry(dim):
    prediction = np.eye(dim)
    prediction[0, 0] = 1.05
    return prediction


def wrong_off_diagonals(dim):
    prediction = np.eye(dim)
    prediction[0, 1] = prediction[1, 0] = 0.05
    return prediction


@pytest.mark.parametrize(
    ("wrong", "dim", "replicas"),
    [
        (wrong_scale, 10, 4000),
        (wrong_entry, 3, 40_000),
        (wrong_off_diagonals, 3, 40_000),
        (wrong_off_diagonals, 10, 25_000),
    ],
)
def test_a_wrong_prediction_is_rejected(wrong, dim, replicas):
    # Stated power: at least 90% at the level 1e-3. With 20 repetitions fewer than 14 rejections have probability 2e-3.
    rng = np.random.default_rng(4)
    repetitions = 20
    p = [compare(estimate(gaussian(rng, 1, replicas, dim)), wrong(dim)).p_value for _ in range(repetitions)]
    assert np.count_nonzero(np.array(p) < 1e-3) >= 14


def test_a_wrong_mean_is_rejected_and_the_covariance_is_not():
    samples = gaussian(np.random.default_rng(5), 4, 2000, 5)
    agreement = compare(estimate(samples), np.eye(5), mean=np.full(5, 0.1))
    assert agreement.mean_p_value < 1e-6
    assert agreement.p_value > 1e-3


def test_p_does_not_depend_on_the_coordinates():
    samples = gaussian(np.random.default_rng(6), 4, 500, 5)
    turned = np.linalg.qr(mixing(5))[0] @ np.diag([1.0, 2.0, 3.0, 4.0, 5.0])
    here = compare(estimate(samples), np.eye(5), mean=np.zeros(5))
    there = compare(estimate(samples @ turned.T), turned @ turned.T, mean=np.zeros(5))
    # Rounding of order eps times the condition number 5 of the change, through a statistic of order 1. What is looked
    # for along eigen-directions and coordinates depends on what these are.
    for name in ("whole", "everything"):
        assert here.p_values[name] == pytest.approx(there.p_values[name], rel=1e-10)
    assert here.mean_p_value == pytest.approx(there.mean_p_value, rel=1e-10)


def test_z_and_relative_errors_are_what_they_say():
    measured = estimate(gaussian(np.random.default_rng(7), 2, 300, 3))
    prediction = np.array([[1.0, 0.1, 0.0], [0.1, 2.0, 0.0], [0.0, 0.0, 1.0]])
    agreement = compare(measured, prediction, mean=[0.1, 0.0, 0.0])
    np.testing.assert_array_equal(agreement.z, (measured.value - prediction) / measured.standard_error)
    np.testing.assert_array_equal(agreement.mean_z, (measured.mean - [0.1, 0.0, 0.0]) / measured.mean_standard_error)
    assert agreement.max_abs_z == np.abs(agreement.z).max()
    assert agreement.relative_error == np.linalg.norm(measured.value - prediction) / np.linalg.norm(prediction)
    assert agreement.expected_relative_error == np.linalg.norm(measured.standard_error) / np.linalg.norm(prediction)


def test_the_relative_error_is_the_expected_one_under_a_true_prediction():
    rng = np.random.default_rng(8)
    agreements = [compare(estimate(gaussian(rng, 1, 500, 10)), np.eye(10)) for _ in range(200)]
    ratios = [a.relative_error**2 / a.expected_relative_error**2 for a in agreements]
    assert abs(np.mean(ratios) - 1.0) < 4 * np.std(ratios) / np.sqrt(len(ratios))


def flat_samples(rng, wobble):
    """Five coordinates on a two-dimensional range, turned so that no coordinate is flat, beside a mean of 100."""
    frame = np.linalg.qr(mixing(5))[0]
    inside = gaussian(rng, 4, 500, 2) @ frame[:, :2].T
    outside = wobble * gaussian(rng, 4, 500, 3) @ frame[:, 2:].T
    return inside + outside + 100.0, frame[:, :2] @ frame[:, :2].T


def test_flat_directions_at_rest_are_taken_out_of_the_test():
    samples, prediction = flat_samples(np.random.default_rng(9), wobble=0.0)
    agreement = compare(estimate(samples), prediction, mean=np.full(5, 100.0))
    assert agreement.rank == 2
    assert agreement.flat_excess <= 1.0
    assert agreement.p_value > 1e-3
    assert agreement.mean_p_value > 1e-3


def test_motion_in_a_flat_direction_is_rejected():
    samples, prediction = flat_samples(np.random.default_rng(9), wobble=1e-4)
    agreement = compare(estimate(samples), prediction)
    assert agreement.flat_excess > 1.0
    assert agreement.p_value == 0.0


def test_a_mean_moved_along_a_flat_direction_is_rejected():
    samples, prediction = flat_samples(np.random.default_rng(9), wobble=0.0)
    flat = np.linalg.eigh(prediction)[1][:, 0]
    agreement = compare(estimate(samples), prediction, mean=100.0 + 1e-3 * flat)
    assert agreement.mean_p_value == 0.0
    assert agreement.p_value > 1e-3


def test_entries_that_are_exactly_zero_have_z_zero():
    samples = gaussian(np.random.default_rng(10), 2, 200, 3)
    samples[:, :, 1] = 0.0
    agreement = compare(estimate(samples), np.diag([1.0, 0.0, 1.0]))
    assert (agreement.z[1] == 0.0).all()
    assert np.isfinite(agreement.z).all()
    moved = compare(estimate(samples), np.diag([1.0, 1e-6, 1.0]))
    assert moved.z[1, 1] == -np.inf


def test_a_prediction_of_no_variance_at_all():
    assert compare(estimate(np.ones((2, 200, 3))), np.zeros((3, 3))).p_value == 1.0
    rejected = compare(estimate(gaussian(np.random.default_rng(11), 2, 200, 3)), np.zeros((3, 3)))
    assert (rejected.p_value, rejected.relative_error) == (0.0, np.inf)


def test_slots_of_very_different_size_count_alike():
    rng = np.random.default_rng(12)
    samples = gaussian(rng, 2, 4000, 4) * [1e-9, 1e-9, 1e6, 1e6]
    scales = np.array([1e-9, 1e-9, 1e6, 1e6])
    true, wrong = np.diag(scales**2), np.diag(scales**2 * [1.2, 1.0, 1.0, 1.0])
    measured = estimate(samples, slots=("w", "v"))
    assert compare(measured, true).rank == 4
    assert compare(measured, true).p_value > 1e-3
    assert compare(measured, wrong).p_value < 1e-3


def test_a_result_of_numerics_is_compared_by_its_joint_block():
    predicted = numerics.stationary_covariance(heavy_ball(lr=0.1, momentum=0.5), np.eye(2), np.eye(2))
    for slots in (("w",), ("v", "w")):
        size = 2 * len(slots)
        samples = gaussian(np.random.default_rng(13), 1, 300, size) @ np.linalg.cholesky(predicted.joint(slots)).T
        direct = compare(estimate(samples, slots=slots), predicted.joint(slots))
        assert compare(estimate(samples, slots=slots), predicted).p_value == direct.p_value > 1e-3


@pytest.mark.parametrize(
    ("prediction", "message"),
    [
        (np.eye(3), r"\(2, 2\).*got \(3, 3\)"),
        (np.diag([1.0, np.nan]), "1 of 4 entries"),
        (np.array([[1.0, 0.5], [0.4, 1.0]]), "not symmetric: .* 0.1"),
        (np.diag([1.0, -0.5]), "no covariance"),
        (np.array([[1.0, 2.0], [2.0, 1.0]]), "no covariance"),
        (-np.eye(2), "no covariance"),
    ],
)
def test_what_is_no_prediction_is_refused(prediction, message):
    with pytest.raises(InvalidProblemError, match=message):
        compare(estimate(gaussian(np.random.default_rng(14), 1, 200, 2)), prediction)


@pytest.mark.parametrize("mean", [np.zeros(3), [0.0, np.nan]])
def test_what_is_no_mean_is_refused(mean):
    with pytest.raises(InvalidProblemError, match="mean must hold 2"):
        compare(estimate(gaussian(np.random.default_rng(14), 1, 200, 2)), np.eye(2), mean=mean)


def test_too_few_replicas_are_refused():
    with pytest.raises(InvalidProblemError, match="99 replicas"):
        compare(estimate(gaussian(np.random.default_rng(15), 8, 99, 2)), np.eye(2))


def test_an_agreement_shows_itself():
    samples, prediction = flat_samples(np.random.default_rng(9), wobble=0.0)
    agreement = compare(estimate(samples), prediction, mean=np.full(5, 100.0))
    for text in (repr(agreement), agreement._repr_html_()):
        for part in ("p-value", "p-value of mean", "relative error", "rank 2", "3, at rest"):
            assert part in text
