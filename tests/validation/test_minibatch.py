"""True minibatches follow the exact law, where the additive one is rejected; and what has no law is not measured."""

import math
from itertools import cycle

import numpy as np
import pytest
import scipy.stats
from sklearn.datasets import load_diabetes, load_digits
from torch.optim.lr_scheduler import StepLR

from sgdcov import numerics
from sgdcov.errors import InvalidProblemError, MeanSquareUnstableError
from sgdcov.numerics import (
    DropoutNoise,
    GaussianMinibatchNoise,
    InputNoise,
    LeastSquares,
    MinibatchNoise,
    QuadraticExamples,
)
from sgdcov.theory import heavy_ball, nesterov, polyak, qhm, sam, sgd, sgdw, with_ema
from sgdcov.validation import (
    autocovariance,
    average_covariance,
    compare,
    stationary_covariance,
    trajectory,
    transient_covariance,
)

OPTIMIZERS = [
    sgd(lr=0.5),
    heavy_ball(lr=0.15, momentum=0.8),
    nesterov(lr=0.1, momentum=0.8, weight_decay=0.1),
    polyak(lr=0.15, momentum=0.7),
    qhm(lr=0.5, beta=0.8, nu=0.7),
    sgdw(lr=0.15, momentum=0.7, weight_decay=0.2),
    with_ema(sgd)(lr=0.5, ema_decay=0.7),
]

#: Every optimizer, and examples of a batch drawn with and without replacement in turn.
WITH_AND_WITHOUT = [pytest.param(o, with_, id=repr(o)) for o, with_ in zip(OPTIMIZERS, cycle([True, False]))]


def regression(examples=12, dim=3, seed=0):
    """Few examples whose residuals are large where the inputs are: the optimum is no refuge from the noise."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((examples, dim)) * np.array([1.0, 0.7, 0.5])[:dim]
    return LeastSquares(X, X @ np.ones(dim) + 0.3 * rng.standard_normal(examples))


def examples_with_hessians(examples=6, dim=2, seed=1):
    """General quadratic examples, one of them concave along some direction."""
    rng = np.random.default_rng(seed)
    roots = rng.standard_normal((examples, dim, dim))
    hessians = roots @ roots.transpose(0, 2, 1) / 2
    hessians[0] -= 0.5 * np.eye(dim)
    return QuadraticExamples(hessians, rng.standard_normal((examples, dim)))


def standardised(X):
    X = X - X.mean(axis=0)
    spread = X.std(axis=0)
    return X / np.where(spread > 0, spread, 1.0)


def real_data(load):
    X, y = load(return_X_y=True)
    return LeastSquares(standardised(X), standardised(y[:, None])[:, 0])


DIABETES, DIGITS = real_data(load_diabetes), real_data(load_digits)

NOISES = {
    "with replacement": MinibatchNoise(regression(), 3),
    "without replacement": MinibatchNoise(regression(), 3, replacement=False),
    "more than half": MinibatchNoise(regression(), 8, replacement=False),
    "weight decay in the loss": MinibatchNoise(LeastSquares(regression().X, regression().y, l2=0.3), 2),
    "general Hessians": MinibatchNoise(examples_with_hessians(), 2),
    "general Hessians, without": MinibatchNoise(examples_with_hessians(), 2, replacement=False),
    "fresh data": GaussianMinibatchNoise([[1.0, 0.4], [0.4, 0.5]], 0.5, 2, optimum=[1.0, -1.0]),
    "dropout": DropoutNoise(regression(), 0.3, 2, replacement=False),
    "input noise": InputNoise(regression(), 0.4, 2),
    "and more": MinibatchNoise(regression(), 2) + np.diag([0.3, 0.0, 0.1]),
}


@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
def test_one_step_from_anywhere_measures_the_covariance_of_the_gradient_there(noise):
    # There w = w_0 - lr g, so that Cov(w)/lr^2 is that of the gradient: no recursion in between.
    start = noise.optimum + np.linspace(1.0, -1.0, noise.dim)
    measured = transient_covariance(sgd(lr=0.5), noise, 1, start=start, replicas=20_000, rng=3, progress=False)
    mean = start - 0.5 * noise.hessian @ (start - noise.optimum)
    found = compare(measured, 0.25 * noise.covariance(mean=start), mean=mean)
    assert found.p_value > 1e-4
    assert found.mean_p_value > 1e-4
    assert compare(measured, 0.25 * noise.covariance()).p_value < 1e-6  # the noise at the optimum


@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
def test_every_kind_of_noise_has_its_exact_stationary_law_and_not_the_additive_one(noise):
    optimizer = sgd(lr=round(0.4 * numerics.mean_square_stability(sgd(lr=0.1), noise).largest_lr, 3))
    exact = numerics.stationary_covariance(optimizer, noise.hessian, noise)
    additive = numerics.stationary_covariance(optimizer, noise.hessian, noise.covariance())
    measured = stationary_covariance(optimizer, noise, replicas=2500, rng=4, progress=False)
    assert compare(measured, exact, mean=noise.optimum).p_value > 1e-4
    assert compare(measured, additive).p_value < 1e-4


@pytest.mark.parametrize(("optimizer", "replacement"), WITH_AND_WITHOUT)
def test_every_rule_has_its_exact_law_in_all_slots(optimizer, replacement):
    noise = MinibatchNoise(regression(), 2, replacement)
    slots = optimizer.rule.slots
    exact = numerics.stationary_covariance(optimizer, noise.hessian, noise)
    mean = numerics.stationary_mean(optimizer, noise.hessian, noise.optimum, slots=slots)
    additive = numerics.stationary_covariance(optimizer, noise.hessian, noise.covariance())
    measured = stationary_covariance(optimizer, noise, replicas=3000, slots=slots, rng=5, progress=False)
    found = compare(measured, exact, mean=mean)
    assert found.p_value > 1e-4
    assert found.mean_p_value > 1e-4
    assert compare(measured, additive).p_value < 1e-6


def without_cross_term(noise, lr, steps, start):
    """Plain SGD step by step, as if the slope of an example and its Hessian were uncorrelated."""
    covariance, delta = np.zeros((noise.dim, noise.dim)), start - noise.optimum
    step = np.eye(noise.dim) - lr * noise.hessian
    for _ in range(steps):
        added = noise.covariance() + noise.multiplicative(covariance + np.outer(delta, delta))
        covariance, delta = step @ covariance @ step.T + lr**2 * added, step @ delta
    return covariance


def test_a_transient_far_from_the_optimum_has_cross_terms():
    noise = MinibatchNoise(examples_with_hessians(), 2)
    start = noise.optimum + np.array([3.0, -2.0])
    run = {"replicas": 20_000, "rng": 6, "progress": False}
    for steps in (2, 5):
        exact = numerics.transient_covariance(sgd(lr=0.1), noise.hessian, noise, steps, mean=start)
        measured = transient_covariance(sgd(lr=0.1), noise, steps, start=start, **run)
        mean = numerics.transient_mean(sgd(lr=0.1), noise.hessian, steps, start=start, optimum=noise.optimum)
        found = compare(measured, exact, mean=mean)
        assert found.p_value > 1e-4
        assert found.mean_p_value > 1e-4
        assert compare(measured, without_cross_term(noise, 0.1, steps, start)).p_value < 1e-6


@pytest.mark.parametrize(("optimizer", "replacement"), WITH_AND_WITHOUT)
def test_every_rule_has_its_exact_transient_in_all_slots(optimizer, replacement):
    noise = MinibatchNoise(regression(), 2, replacement)
    slots, start = optimizer.rule.slots, noise.optimum + 3.0
    measured = transient_covariance(
        optimizer, noise, 6, start=start, replicas=5000, slots=slots, rng=7, progress=False
    )  # fmt: skip
    exact = numerics.transient_covariance(optimizer, noise.hessian, noise, 6, mean=start)
    additive = numerics.transient_covariance(optimizer, noise.hessian, noise.covariance(), 6)
    assert compare(measured, exact).p_value > 1e-4
    assert compare(measured, additive).p_value < 1e-6


def on_real_data(optimizer, share, data, batch_size, replacement):
    """The optimizer at a share of its largest mean-square stable learning rate, and the noise."""
    noise = MinibatchNoise(data, batch_size, replacement)
    largest = numerics.mean_square_stability(optimizer, noise).largest_lr
    return optimizer.replace(lr=float(f"{share * largest:.2g}")), noise


@pytest.mark.parametrize(
    ("optimizer", "data", "batch_size", "replacement", "steps"),
    [
        pytest.param(sgd(lr=0.1), DIABETES, 4, True, 60, id="sgd-diabetes"),
        pytest.param(heavy_ball(lr=0.1, momentum=0.9), DIABETES, 8, False, 60, id="heavy_ball-diabetes"),
        pytest.param(nesterov(lr=0.1, momentum=0.9), DIABETES, 32, True, 60, id="nesterov-diabetes"),
        pytest.param(sgd(lr=0.1), DIGITS, 4, True, 120, id="sgd-digits"),
        pytest.param(heavy_ball(lr=0.1, momentum=0.9), DIGITS, 16, False, 60, id="heavy_ball-digits"),
    ],
)
def test_torch_sgd_on_real_data_follows_the_exact_law_from_a_far_start(optimizer, data, batch_size, replacement, steps):
    optimizer, noise = on_real_data(optimizer, 0.4, data, batch_size, replacement)
    start = np.zeros(noise.dim)
    measured = transient_covariance(
        optimizer, data, steps, start=start, batch_size=batch_size, replacement=replacement, replicas=2000,
        engine="torch.optim", rng=8, progress=False,
    )  # fmt: skip
    exact = numerics.transient_covariance(optimizer, noise.hessian, noise, steps, mean=start)
    mean = numerics.transient_mean(optimizer, noise.hessian, steps, start=start, optimum=noise.optimum)
    additive = numerics.transient_covariance(optimizer, noise.hessian, noise.covariance(), steps)
    found = compare(measured, exact, mean=mean)
    assert found.p_value > 1e-4
    assert found.mean_p_value > 1e-4
    assert compare(measured, additive).p_value < 1e-6


@pytest.mark.parametrize("replacement", [True, False])
def test_torch_momentum_on_diabetes_has_the_exact_stationary_law(replacement):
    optimizer, noise = on_real_data(heavy_ball(lr=0.1, momentum=0.9), 0.5, DIABETES, 4, replacement)
    measured = stationary_covariance(
        optimizer, DIABETES, batch_size=4, replacement=replacement, replicas=500, engine="torch.optim", rng=9,
        progress=False,
    )  # fmt: skip
    assert compare(measured, numerics.stationary_covariance(optimizer, noise.hessian, noise)).p_value > 1e-4
    additive = numerics.stationary_covariance(optimizer, noise.hessian, noise.covariance())
    assert compare(measured, additive).p_value < 1e-6


def test_the_rule_and_torch_make_the_same_run():
    optimizer, _ = on_real_data(nesterov(lr=0.1, momentum=0.9), 0.4, DIABETES, 8, True)
    run, torch_run = (
        transient_covariance(
            optimizer, DIABETES, 20, start=np.zeros(10), batch_size=8, replicas=20, engine=engine, rng=1, progress=False
        )
        for engine in ("rule", "torch.optim")
    )
    np.testing.assert_allclose(run.samples, torch_run.samples, rtol=1e-11, atol=1e-12)


def test_a_drop_of_the_learning_rate_from_a_run_at_the_exact_law():
    noise = MinibatchNoise(regression(), 2)
    before, after = heavy_ball(lr=0.2, momentum=0.8), heavy_ball(lr=0.05, momentum=0.8)
    law = numerics.stationary_covariance(before, noise.hessian, noise)
    exact = numerics.transient_covariance(after, noise.hessian, noise, 4, start=law)
    run = {"replicas": 4000, "slots": ("w", "v"), "rng": 10, "progress": False}
    for start in (before, law):
        assert compare(transient_covariance(after, noise, 4, start=start, **run), exact).p_value > 1e-4


@pytest.mark.parametrize("engine", ["rule", "torch.optim"])
def test_a_schedule_from_a_far_start_has_its_exact_law_and_risk(engine):
    optimizer, noise = on_real_data(heavy_ball(lr=0.1, momentum=0.8), 0.4, DIABETES, 8, True)
    start, record = np.zeros(10), (20, 40, 60)
    run = trajectory(
        optimizer, lambda optim: StepLR(optim, step_size=20, gamma=0.5), DIABETES, batch_size=8, start=start,
        record=record, replicas=1500, engine=engine, rng=11, progress=False,
    )  # fmt: skip
    exact = numerics.trajectory(
        optimizer, run.schedule, noise.hessian, noise, mean=start, optimum=noise.optimum, record=record
    )
    for estimate, covariance, mean in zip(run.estimates, exact.covariance, exact.mean, strict=True):
        found = compare(estimate, covariance, mean=mean)
        assert found.p_value > 1e-4
        assert found.mean_p_value > 1e-4
    # Three numbers of the same replicas: 4.5 standard errors have a false-alarm rate of 2e-5 together.
    assert (np.abs(run.excess_risk - exact.excess_risk) < 4.5 * run.excess_risk_standard_error).all()


@pytest.mark.parametrize("start", ["burn-in", "law"])
def test_memory_and_averages_are_those_of_the_average_noise(start):
    optimizer, noise = heavy_ball(lr=0.2, momentum=0.7), MinibatchNoise(regression(), 2)
    run = {"start": start, "replicas": 4000, "rng": 12, "progress": False}
    lagged = autocovariance(optimizer, noise, 3, **run)
    averaged = average_covariance(optimizer, noise, 5, **run)
    assert compare(lagged, numerics.autocovariance(optimizer, noise.hessian, noise, 3)).p_value > 1e-4
    assert compare(averaged, numerics.average_covariance(optimizer, noise.hessian, noise, 5)).p_value > 1e-4
    additive = noise.hessian, noise.covariance()
    assert compare(lagged, numerics.autocovariance(optimizer, *additive, 3)).p_value < 1e-6
    assert compare(averaged, numerics.average_covariance(optimizer, *additive, 5)).p_value < 1e-6


@pytest.mark.parametrize("batch_size", [1, 2])
def test_both_gradients_of_sam_see_the_same_batch(batch_size):
    optimizer, data = sam(lr=0.05 * batch_size, rho=0.4), regression(examples=8, dim=2)
    plain, batches = numerics.one_gradient_form(optimizer, MinibatchNoise(data, batch_size))
    exact = numerics.stationary_covariance(plain, batches.hessian, batches)
    measured = stationary_covariance(optimizer, data, batch_size=batch_size, replicas=4000, rng=13, progress=False)
    found = compare(measured, exact, mean=batches.optimum)
    assert found.p_value > 1e-4
    assert found.mean_p_value > 1e-4
    assert compare(measured, exact, mean=data.optimum).mean_p_value < 1e-6  # where it does not settle
    with pytest.raises(MeanSquareUnstableError):
        stationary_covariance(sam(lr=0.38, rho=0.4), data, batch_size=batch_size, replicas=10, rng=13, progress=False)


#: One Gaussian example a step: a covariance exists below 2/3, a fourth moment below the root of
#: 105 lr^3 - 60 lr^2 + 18 lr - 4, where E (1 - lr x^2)^4 = 1.
ONE_EXAMPLE = GaussianMinibatchNoise([[1.0]], 1.0, 1)
FOURTH = float(next(root.real for root in np.roots([105.0, -60.0, 18.0, -4.0]) if abs(root.imag) < 1e-12))


def test_without_a_fourth_moment_there_is_no_p_value():
    assert 0 < FOURTH < 0.6 < 2 / 3
    run = {"replicas": 4000, "steps": 200, "snapshots": 2, "rng": 14, "progress": False}
    near = "near the threshold"
    for lr, verdict, why in (
        (0.5 * FOURTH, "exists", None),
        (0.95 * FOURTH, "exists", near),
        (1.1 * FOURTH, "does not exist", "does not exist"),
        (0.6, "does not exist", "does not exist"),
    ):
        law = numerics.stationary_covariance(sgd(lr=lr), ONE_EXAMPLE.hessian, ONE_EXAMPLE)
        measured = stationary_covariance(sgd(lr=lr), ONE_EXAMPLE, **run)
        fourth, found = measured.fourth_moment, compare(measured, law, mean=[0.0])
        assert fourth.verdict == verdict
        assert fourth.near_threshold == (why == near)
        x = lr * np.array([1, -4, 6 * 3, -4 * 15, 105]) / lr  # E (1 - lr x^2)^4 by the moments of x
        assert abs(fourth.growth - np.dot(x, lr ** np.arange(5))) < 1e-6
        assert abs(fourth.second - (1 - 2 * lr + 3 * lr**2)) < 1e-12
        assert np.isnan(found.p_value) == (why is not None)
        assert found.mean_p_value > 1e-4  # it needs a covariance only
        for text in (str(found.withheld), repr(measured), repr(found), found._repr_html_()):
            assert all((reason in text) == (reason == why) for reason in (near, "does not exist"))


@pytest.mark.parametrize(("share", "sixth"), [(0.6, True), (0.9, False)])
def test_near_the_threshold_the_sixth_moment_is_gone(share, sixth):
    # E (1 - lr x^2)^6 by the moments of x
    lr, moments = share * FOURTH, np.array([1, 1, 3, 15, 105, 945, 10395])
    growth = sum(math.comb(6, k) * (-lr) ** k * moments[k] for k in range(7))
    assert (growth < 1) == sixth
    measured = stationary_covariance(
        sgd(lr=lr), ONE_EXAMPLE, replicas=100, steps=10, snapshots=1, rng=0, progress=False
    )
    assert measured.fourth_moment.trusted == sixth


def test_after_few_steps_a_fourth_moment_has_not_grown_yet_and_after_many_it_has():
    noise, run = ONE_EXAMPLE, {"replicas": 300, "rng": 15, "progress": False}
    soon, late = transient_covariance(sgd(lr=0.6), noise, (1, 60), start=[1.0], **run)
    laws = [numerics.transient_covariance(sgd(lr=0.6), noise.hessian, noise, k, mean=[1.0]) for k in (1, 60)]
    assert soon.fourth_moment.trusted
    assert "as skewed as this" in compare(soon, laws[0]).withheld  # a few hundred fourth powers of a normal number
    assert "means nothing" in compare(late, laws[1]).withheld.replace("mean nothing", "means nothing")
    # Nor does a run have one that starts at a law without.
    after = transient_covariance(sgd(lr=0.1), noise, 1, start=sgd(lr=0.6), **run)
    assert after.fourth_moment.verdict == "does not exist"
    # Gaussian replicas of the same covariance do have one.
    law = numerics.stationary_covariance(sgd(lr=0.6), noise.hessian, noise)
    drawn = transient_covariance(sgd(lr=0.1), noise, 1, start=law, **run)
    assert drawn.fourth_moment.trusted


def test_noise_that_turns_out_additive_has_all_moments():
    # Examples with one Hessian, and the whole data set as a batch: no curvature is random.
    shared = QuadraticExamples(np.broadcast_to(np.eye(2), (4, 2, 2)), np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]]))
    flat = QuadraticExamples(np.zeros((4, 2, 2)), shared.gradients)
    for problem, options in ((shared, {"batch_size": 2}), (flat, {"batch_size": 2}),
                             (regression(), {"batch_size": 12, "replacement": False})):  # fmt: skip
        run = transient_covariance(sgd(lr=0.1), problem, 3, replicas=10, rng=0, progress=False, **options)
        assert run.fourth_moment is None
    signs = QuadraticExamples(np.array([np.eye(2), -np.eye(2)]), shared.gradients[:2])
    run = transient_covariance(sgd(lr=0.1), signs, 3, batch_size=1, replicas=10, rng=0, progress=False)
    assert run.fourth_moment.verdict == "does not exist"


def test_additive_noise_has_all_moments():
    quadratic = regression().quadratic(2)
    measured = stationary_covariance(sgd(lr=0.1), quadratic, replicas=100, steps=10, snapshots=1, progress=False)
    assert measured.fourth_moment is None
    assert "fourth" not in repr(measured)


def test_dropout_without_a_fourth_moment_is_where_standard_errors_mislead():
    # A covariance exists and the prediction is true; |z| of a run is large all the same.
    noise = DropoutNoise(regression(), 0.3, 1)
    largest = numerics.mean_square_stability(sgd(lr=0.1), noise).largest_lr
    measured = stationary_covariance(sgd(lr=0.9 * largest), noise, replicas=2000, rng=16, progress=False)
    found = compare(measured, numerics.stationary_covariance(sgd(lr=0.9 * largest), noise.hessian, noise))
    assert measured.fourth_moment.growth > 1.0
    assert np.isnan(found.p_value)


@pytest.mark.parametrize("measure", [stationary_covariance, autocovariance, average_covariance])
@pytest.mark.parametrize("engine", ["rule", "torch.optim"])
def test_beyond_mean_square_stability_nothing_runs(measure, engine):
    noise = MinibatchNoise(regression(), 1)
    stability = numerics.mean_square_stability(sgd(lr=0.1), noise)
    lr = 0.5 * (stability.largest_lr + stability.largest_mean_lr)
    positional = () if measure is stationary_covariance else (2,)
    with pytest.raises(MeanSquareUnstableError) as caught:
        measure(sgd(lr=lr), noise, *positional, replicas=4, engine=engine, rng=0, progress=False)
    assert caught.value.largest_lr == pytest.approx(stability.largest_lr)
    with pytest.raises(MeanSquareUnstableError):
        transient_covariance(sgd(lr=0.1), noise, 2, start=sgd(lr=lr), replicas=4, rng=0, progress=False)


def test_a_finite_run_beyond_it_grows_as_its_exact_law():
    # Huge but finite numbers are the truth there, as long as fourth moments have not grown out of reach.
    noise = MinibatchNoise(regression(), 1)
    lr = 1.1 * numerics.mean_square_stability(sgd(lr=0.1), noise).largest_lr
    run = {"start": noise.optimum + 1.0, "replicas": 20_000, "rng": 17, "progress": False}
    measured = transient_covariance(sgd(lr=lr), noise, (1, 60), **run)
    exact = [
        numerics.transient_covariance(sgd(lr=lr), noise.hessian, noise, k, mean=noise.optimum + 1.0) for k in (1, 60)
    ]
    assert compare(measured[0], exact[0]).p_value > 1e-4
    assert np.trace(exact[1].value) > 10 * np.trace(exact[0].value)
    assert compare(measured[1], exact[1]).withheld is not None


@pytest.mark.parametrize(
    ("noise", "options", "message"),
    [
        (NOISES["with replacement"], {"batch_size": 3}, "has its own batches"),
        (examples_with_hessians(), {}, "needs batch_size"),
        (examples_with_hessians(), {"batch_size": 7}, "from 1 to the number of examples, 6"),
        (DIABETES, {"batch_size": 2.0}, "must be a whole number"),
    ],
)
def test_what_has_no_batches_of_that_size_is_refused(noise, options, message):
    with pytest.raises(InvalidProblemError, match=message):
        stationary_covariance(sgd(lr=0.01), noise, replicas=4, rng=0, progress=False, **options)


@pytest.mark.parametrize("noise", [NOISES["with replacement"], NOISES["fresh data"]], ids=["examples", "fresh"])
@pytest.mark.parametrize("optimizer", [sgd(lr=0.3), heavy_ball(lr=0.1, momentum=0.8)], ids=repr)
def test_the_burn_in_leaves_no_more_than_it_says(optimizer, noise):
    # From the fixed point without spread: S - S_k is what k steps have not built up, solved without any run.
    measured = stationary_covariance(optimizer, noise, replicas=1000, rng=0, progress=False)
    law = numerics.stationary_covariance(optimizer, noise.hessian, noise).value
    early = numerics.transient_covariance(optimizer, noise.hessian, noise, measured.burn_in).value
    _, vectors = np.linalg.eigh(noise.hessian)
    missing = np.diag(vectors.T @ (law - early) @ vectors) / np.diag(vectors.T @ law @ vectors)
    assert 0 < missing.max() <= measured.transient * np.sqrt(2 / (8 * 1000))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "share"), [("with replacement", 0.4), ("general Hessians, without", 0.4), ("fresh data", 0.3)]
)
def test_p_values_are_uniform_under_the_exact_law(name, share):
    noise = NOISES[name]
    optimizer = sgd(lr=share * numerics.mean_square_stability(sgd(lr=0.1), noise).largest_lr)
    law = numerics.stationary_covariance(optimizer, noise.hessian, noise)
    found = [
        compare(
            stationary_covariance(optimizer, noise, replicas=1000, rng=seed, progress=False), law, mean=noise.optimum
        )
        for seed in range(200)
    ]
    for values in ([f.p_value for f in found], [f.mean_p_value for f in found]):
        assert scipy.stats.kstest(values, "uniform").pvalue > 1e-3
