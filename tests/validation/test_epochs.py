"""Measured shuffled epochs have the laws that numerics solves, and not those of independent batches."""

import itertools

import numpy as np
import pytest
import scipy.stats
import torch
from sklearn.datasets import load_diabetes, load_digits

from sgdcov import numerics
from sgdcov.errors import InvalidProblemError, InvalidRuleError, UnstableError
from sgdcov.numerics import LeastSquares, Quadratic, QuadraticExamples, epoch_noise, reshuffling_law
from sgdcov.theory import heavy_ball, nesterov, qhm, sam, sgd, sgdw
from sgdcov.validation import compare, epoch_average_covariance, epoch_covariance
from sgdcov.validation._shuffled import loaded_gradients, shuffled_gradients

# Every comparison below has a fixed seed and one false alarm in 10,000 seeds.
FALSE_ALARM = 1e-4
REJECTED = 1e-6


def common_hessian(inputs):
    """Losses (w - x)' H (w - x)/2 of data x, with H their covariance: real noise, exactly additive."""
    hessian = np.cov(inputs.T)
    hessian /= np.linalg.eigvalsh(hessian)[-1]
    return QuadraticExamples(np.broadcast_to(hessian, (len(inputs), *hessian.shape)), -inputs @ hessian)


def diabetes(total=440, d=4):
    inputs = load_diabetes().data[:total, :d]
    return common_hessian(inputs / inputs.std(axis=0))


def tiny(total=6, seed=0):
    rng = np.random.default_rng(seed)
    return LeastSquares(rng.normal(size=(total, 2)), rng.normal(size=total))


OPTIMIZERS = (
    sgd(lr=0.3, weight_decay=0.1),
    heavy_ball(lr=0.1, momentum=0.8, dampening=0.3),
    nesterov(lr=0.1, momentum=0.7),
    qhm(lr=0.4, beta=0.8, nu=0.7),
    sgdw(lr=0.1, momentum=0.8, weight_decay=0.2),
    sam(lr=0.2, rho=0.3),
)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
def test_additive_noise_has_the_law_of_its_position_in_every_slot(optimizer):
    problem, slots = diabetes(), optimizer.rule.slots
    positions = (0, 4, "average")
    estimates = epoch_covariance(
        optimizer, problem, batch_size=44, replicas=1500, positions=positions, slots=slots, rng=0, progress=False
    )
    mean = numerics.stationary_mean(optimizer, problem.hessian, problem.optimum, slots=slots)
    noise = epoch_noise(problem, 44)
    white = numerics.stationary_covariance(optimizer, problem.hessian, noise.noise)
    for position, estimate in zip(positions, estimates, strict=True):
        law = numerics.stationary_covariance(optimizer, problem.hessian, noise, position=position)
        agreement = compare(estimate, law, mean=mean)
        assert agreement.p_value > FALSE_ALARM
        assert agreement.mean_p_value > FALSE_ALARM
        assert compare(estimate, white).p_value < REJECTED
        if position != 0:
            elsewhere = numerics.stationary_covariance(optimizer, problem.hessian, noise)
            assert compare(estimate, elsewhere).p_value < REJECTED


@pytest.mark.parametrize("optimizer", OPTIMIZERS[:3], ids=repr)
def test_real_loaders_and_real_optimizers_have_it_too(optimizer):
    """After 4 steps of 10 the law differs from that of independent batches by half a unit, which so few replicas
    do not always see: that position is held against its own law only, and the others against the false one as well.
    """
    problem, noise = diabetes(d=3), epoch_noise(diabetes(d=3), 44)
    positions = (0, 4, "average")
    estimates = epoch_covariance(
        optimizer, problem, batch_size=44, replicas=400, positions=positions, engine="dataloader", rng=1, progress=False
    )
    mean = numerics.stationary_mean(optimizer, problem.hessian, problem.optimum)
    white = numerics.stationary_covariance(optimizer, problem.hessian, noise.noise)
    for position, estimate in zip(positions, estimates, strict=True):
        law = numerics.stationary_covariance(optimizer, problem.hessian, noise, position=position)
        agreement = compare(estimate, law, mean=mean)
        assert agreement.p_value > FALSE_ALARM
        assert agreement.mean_p_value > FALSE_ALARM
        if position != 4:
            assert compare(estimate, white).p_value < REJECTED
    assert "DataLoader(shuffle=True)" in repr(estimates[0])


def test_torch_optim_takes_the_steps_of_the_rule():
    problem = diabetes(d=3)
    runs = [
        epoch_covariance(
            heavy_ball(lr=0.1, momentum=0.8), problem, batch_size=44, replicas=100, positions=3, engine=engine, rng=2,
            progress=False,
        )
        for engine in ("rule", "torch.optim")
    ]  # fmt: skip
    np.testing.assert_allclose(runs[0].samples, runs[1].samples, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("optimizer", [sgd(lr=0.2), heavy_ball(lr=0.1, momentum=0.6)], ids=repr)
def test_where_hessians_differ_it_is_biased_as_enumerated(optimizer):
    problem, positions = tiny(), (0, 1, "average")
    estimates = epoch_covariance(
        optimizer, problem, batch_size=2, replicas=10_000, positions=positions, rng=3, progress=False
    )
    for position, estimate in zip(positions, estimates, strict=True):
        law = reshuffling_law(optimizer, problem, 2, position=position)
        agreement = compare(estimate, law, mean=law.mean)
        assert agreement.p_value > FALSE_ALARM
        assert agreement.mean_p_value > FALSE_ALARM
        assert compare(estimate, law, mean=problem.optimum).mean_p_value < REJECTED
    noise = epoch_noise(problem, 2)
    additive = numerics.stationary_covariance(optimizer, problem.hessian, noise)
    assert compare(estimates[0], additive).p_value < REJECTED


def test_without_a_known_fourth_moment_there_is_no_p_value():
    """Independent batches have none at this learning rate; equal Hessians keep every iterate bounded."""
    problem = tiny()
    for lr, known in ((0.2, True), (0.9, False)):
        estimate = epoch_covariance(
            sgd(lr=lr), problem, batch_size=1, replicas=100, positions=0, epochs=5, rng=0, progress=False
        )
        assert estimate.fourth_moment.trusted == known
        assert np.isnan(compare(estimate, np.eye(2)).p_value) != known
    bounded = epoch_covariance(sgd(lr=0.9), diabetes(), batch_size=44, replicas=100, positions=0, rng=0, progress=False)
    assert bounded.fourth_moment is None


def test_a_real_loader_biases_the_mean_as_enumerated():
    problem, optimizer = tiny(), sgd(lr=0.2)
    law = reshuffling_law(optimizer, problem, 3)
    estimate = epoch_covariance(
        optimizer, problem, batch_size=3, replicas=400, positions=0, engine="dataloader", epochs=80, rng=4,
        progress=False,
    )  # fmt: skip
    agreement = compare(estimate, law, mean=law.mean)
    assert agreement.p_value > FALSE_ALARM
    assert agreement.mean_p_value > FALSE_ALARM
    assert compare(estimate, law, mean=problem.optimum).mean_p_value < REJECTED


@pytest.mark.parametrize("engine", ["rule", "dataloader"])
def test_a_remainder_left_out_changes_the_correlation(engine):
    """Seven examples in two batches of three: correlation -1/(7/3 - 1) = -3/4, not -1."""
    problem = diabetes(total=7, d=2)
    noise = epoch_noise(problem, 3, drop_last=True)
    replicas = 4000 if engine == "rule" else 600
    estimate = epoch_covariance(
        sgd(lr=0.5), problem, batch_size=3, replicas=replicas, positions=0, drop_last=True, snapshots=3, engine=engine,
        rng=5, progress=False,
    )  # fmt: skip
    law = numerics.stationary_covariance(sgd(lr=0.5), problem.hessian, noise)
    assert compare(estimate, law, mean=problem.optimum).p_value > FALSE_ALARM
    assert len(estimate.samples) == 3
    whole = numerics.EpochNoise(noise.noise, 2)
    assert compare(estimate, numerics.stationary_covariance(sgd(lr=0.5), problem.hessian, whole)).p_value < REJECTED


@pytest.mark.parametrize("engine", ["rule", "dataloader"])
@pytest.mark.parametrize("window", [6, 20])
def test_means_of_iterates_are_those_of_correlated_noise(engine, window):
    """A part of an epoch, and two whole ones; independent batches would have left much more."""
    problem, optimizer = diabetes(d=3), heavy_ball(lr=0.1, momentum=0.6)
    noise = epoch_noise(problem, 44)
    estimate = epoch_average_covariance(
        optimizer, problem, window, batch_size=44, replicas=1000 if engine == "rule" else 300, engine=engine, rng=6,
        progress=False,
    )  # fmt: skip
    law = numerics.average_covariance(optimizer, problem.hessian, noise, window)
    agreement = compare(estimate, law, mean=problem.optimum)
    assert agreement.p_value > FALSE_ALARM
    assert agreement.mean_p_value > FALSE_ALARM
    white = numerics.average_covariance(optimizer, problem.hessian, noise.noise, window)
    assert compare(estimate, white).p_value < REJECTED
    assert f"each the mean of {window} successive states" in repr(estimate)


def test_every_example_is_used_once_an_epoch_and_every_order_is_as_likely():
    slopes = np.eye(3)
    problem = QuadraticExamples(np.zeros((3, 3, 3)), slopes - slopes.mean(axis=0))
    replicas = 20_000
    gradients = shuffled_gradients(problem, replicas, 1, torch.Generator().manual_seed(0))
    nowhere = torch.zeros(replicas, 3, dtype=torch.float64)
    orders = torch.stack([next(gradients)(nowhere).argmax(dim=1) for _ in range(6)], dim=1).reshape(-1, 2, 3)
    assert (orders.sort(dim=2).values == torch.arange(3)).all()
    codes = (orders * torch.tensor([9, 3, 1])).sum(dim=2)
    counts = [int((codes == 9 * a + 3 * b + c).sum()) for a, b, c in itertools.permutations(range(3))]
    assert sum(counts) == 2 * replicas
    assert scipy.stats.chisquare(counts).pvalue > FALSE_ALARM
    pairs = scipy.stats.contingency.crosstab(codes[:, 0].numpy(), codes[:, 1].numpy()).count
    assert scipy.stats.chi2_contingency(pairs).pvalue > FALSE_ALARM


@pytest.mark.parametrize(
    "problem",
    [LeastSquares(np.arange(10.0).reshape(5, 2), np.ones(5), l2=0.3), diabetes(total=5, d=2)],
    ids=["least-squares", "common-hessian"],
)
def test_loaders_and_keys_give_gradients_of_the_same_loss(problem):
    """One batch of all examples: the order does not matter, and both are the gradient of the mean loss."""
    at = np.random.default_rng(0).normal(size=(4, 2))
    points = torch.tensor(at)
    for gradients in (
        shuffled_gradients(problem, 4, 5, torch.Generator().manual_seed(0)),
        loaded_gradients(problem, 4, 5, torch.Generator().manual_seed(0), drop_last=False),
    ):
        np.testing.assert_allclose(next(gradients)(points).numpy(), problem.gradient(at), rtol=1e-12)
    general = QuadraticExamples(np.stack([np.diag([n, 1.0]) for n in range(5)]), np.ones((5, 2)))
    drawn = [
        next(shuffled_gradients(general, 4, 5, torch.Generator().manual_seed(0)))(points),
        next(loaded_gradients(general, 4, 5, torch.Generator().manual_seed(0), drop_last=False))(points),
    ]
    for found in drawn:
        np.testing.assert_allclose(found.numpy(), general.gradient(at), rtol=1e-12)


@pytest.mark.parametrize("loaded", [False, True], ids=["keys", "loaders"])
def test_a_batch_has_the_curvature_of_its_own_examples(loaded):
    """Slopes are equal and curvatures are powers of 2: the gradient tells which two examples were drawn."""
    problem = QuadraticExamples([[[1.0]], [[2.0]], [[4.0]], [[8.0]]], np.full((4, 1), 0.5))
    given = problem, 50, 2, torch.Generator().manual_seed(0)
    gradients = loaded_gradients(*given, drop_last=False) if loaded else shuffled_gradients(*given)
    ones = torch.ones(50, 1, dtype=torch.float64)
    # of one epoch: (replicas, batches); each is the mean of two of the four
    sums = np.stack([2.0 * (next(gradients)(ones).numpy()[:, 0] - 0.5) for _ in range(2)], axis=1)
    assert set(sums.ravel()) == {3.0, 5.0, 9.0, 6.0, 10.0, 12.0}
    np.testing.assert_array_equal(sums.sum(axis=1), 15.0)


def test_snapshots_are_as_many_epochs_apart_as_forget_enough():
    """An epoch of 4 steps keeps .95**4 of the state, so the squared correlation first falls below exp(-2) after 5."""
    slopes = np.random.default_rng(0).normal(size=(8, 1))
    problem = QuadraticExamples(np.ones((8, 1, 1)), slopes - slopes.mean())
    estimate = epoch_covariance(
        sgd(lr=0.05), problem, batch_size=2, replicas=2000, positions=0, snapshots=3, epochs=30, rng=0, progress=False
    )
    assert estimate.spacing == 5 * 4
    assert (estimate.burn_in, estimate.steps) == (30 * 4, 30 * 4 + 2 * 20)
    states = estimate.samples[:, :, 0]
    for before, after in itertools.pairwise(states):
        # between epochs nothing is drawn but orders of their own, so that the states are autoregressive
        assert abs(np.corrcoef(before, after)[0, 1] - 0.95**20) < 4 / np.sqrt(2000)


def test_a_run_is_repeated_by_its_seed_and_reported():
    def run(rng):
        return epoch_covariance(
            sgd(lr=0.2), tiny(), batch_size=2, replicas=100, positions=(1,), epochs=3, rng=rng, progress=False
        )

    (first,), (second,), (other,) = run(7), run(7), run(8)
    np.testing.assert_array_equal(first.samples, second.samples)
    assert not np.array_equal(first.samples, other.samples)
    assert (first.steps, first.burn_in, first.position, first.batches_per_epoch) == (10, 10, 1, 3)
    assert "after 1 of 3 steps of 1 epoch" in repr(first)
    assert "shuffled epochs of 3 batches of 2" in repr(first)
    assert "<table>" in first._repr_html_()


def test_the_end_of_an_epoch_is_position_0_of_the_next():
    """In numerics and in validation alike, for the law of the additive noise and for that of the examples."""
    optimizer, problem = sgd(lr=0.1), tiny()
    measured = epoch_covariance(optimizer, problem, batch_size=2, replicas=100, positions=3, rng=0, progress=False)
    laws = [reshuffling_law(optimizer, problem, 2, position=position) for position in (3, 0)]
    noise = epoch_noise(problem, 2)
    additive = [numerics.stationary_covariance(optimizer, problem.hessian, noise, position=p) for p in (3, 0)]
    for end, begin in (laws, additive):
        np.testing.assert_array_equal(end.value, begin.value)
    assert measured.position == laws[0].position == additive[0].position == 0


def test_what_is_wrong_is_named():
    def run(optimizer=None, problem=None, **changed):
        arguments = {"batch_size": 2, "replicas": 100, "rng": 0, "progress": False, **changed}
        return epoch_covariance(optimizer or sgd(lr=0.1), problem or tiny(), **arguments)

    for changed, match in (
        ({"batch_size": 4}, "two whole batches"),
        ({"problem": tiny(7), "batch_size": 3}, "does not divide the 7 examples"),
        ({"positions": (0, 0)}, "distinct"),
        ({"positions": ()}, "at least one"),
        ({"positions": 4}, "position=4 is beyond the end of an epoch of 3 steps"),
        ({"positions": (0, 3)}, "distinct"),
        ({"positions": "end"}, "'average'"),
        ({"positions": -1}, "position"),
        ({"engine": "jax"}, "dataloader"),
        ({"epochs": 0}, "epochs"),
        ({"snapshots": 0}, "snapshots"),
        ({"replicas": 1}, "replicas"),
        ({"problem": Quadratic([[1.0]], [[1.0]], [0.0])}, "epochs need examples"),
        ({"optimizer": sgd(lr=1e-7)}, "after 999,999 steps"),
    ):
        with pytest.raises(InvalidProblemError, match=match):
            run(**changed)
    with pytest.raises(UnstableError):
        run(sgd(lr=50.0))
    with pytest.raises(InvalidRuleError, match=r"torch\.optim"):
        run(qhm(lr=0.1, beta=0.5, nu=0.5), engine="dataloader")


@pytest.mark.slow
def test_p_values_are_uniform_under_the_law():
    """60 seeds, positions apart: Kolmogorov's test of the p-values of covariance and mean, additive and not."""
    problem, optimizer = diabetes(d=3), heavy_ball(lr=0.1, momentum=0.8)
    law = numerics.stationary_covariance(optimizer, problem.hessian, epoch_noise(problem, 44))
    data, plain = tiny(), sgd(lr=0.2)
    biased = reshuffling_law(plain, data, 2)
    found = []
    for seed in range(60):
        additive = epoch_covariance(
            optimizer, problem, batch_size=44, replicas=500, positions=0, rng=seed, progress=False
        )
        own = epoch_covariance(plain, data, batch_size=2, replicas=2000, positions=0, rng=seed, progress=False)
        first, second = compare(additive, law, mean=problem.optimum), compare(own, biased, mean=biased.mean)
        found.append([first.p_value, first.mean_p_value, second.p_value, second.mean_p_value])
    for column in np.transpose(found):
        assert scipy.stats.kstest(column, "uniform").pvalue > FALSE_ALARM


@pytest.mark.slow
def test_digits_pass_through_a_real_loader():
    inputs = load_digits().data
    problem = common_hessian(inputs[:1780, inputs.std(axis=0) > 3.0][:, ::4] / 16.0)
    optimizer = heavy_ball(lr=0.2, momentum=0.9)
    estimates = epoch_covariance(
        optimizer, problem, batch_size=89, replicas=1000, positions=(0, 10, "average"), engine="dataloader", rng=0,
        progress=False,
    )  # fmt: skip
    noise = epoch_noise(problem, 89)
    white = numerics.stationary_covariance(optimizer, problem.hessian, noise.noise)
    for estimate in estimates:
        law = numerics.stationary_covariance(optimizer, problem.hessian, noise, position=estimate.position)
        assert compare(estimate, law, mean=problem.optimum).p_value > FALSE_ALARM
        assert compare(estimate, white).p_value < REJECTED
