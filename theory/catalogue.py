"""Every formula of the library, in the order of the handbook."""

from __future__ import annotations

from .averages import autocorrelation_time, autocovariance, average_covariance, sandwich_limit
from .epochs import (
    crossover_curvature,
    epoch_average_covariance,
    epoch_covariance,
    epoch_flat_limit,
    epoch_noise,
)
from .formula import Formula
from .gaussian_minibatch import (
    additive_minibatch_limit,
    gaussian_minibatch_covariance,
    gaussian_minibatch_second_moment,
    spectrally_expressible_covariance,
)
from .gaussian_moments import gaussian_fourth_moment
from .injected import (
    corrupted_fourth_moment,
    dropout_moments,
    input_noise_moments,
    label_noise_covariance,
    langevin_covariance,
)
from .literature import (
    commuting_heavy_ball,
    momentum_matrix_equation,
    momentum_minibatch_covariance,
    mulayoff_michaeli_covariance,
    mulayoff_michaeli_threshold,
    sde_limit,
)
from .mean_square import isotropic_threshold, linear_scaling_gap, mean_square_share
from .minibatch import finite_data_covariance, minibatch_noise, minibatch_second_moment
from .reshuffling import reshuffling_bias, reshuffling_covariance
from .rules import RULES, heavy_ball, sam, sgd, sgdw
from .stationary import stationary_covariance, stationary_mean
from .tails import kesten_equation, moment_growth, tail_index_statement
from .transient import (
    early_phase_surrogate,
    learning_rate_change,
    momentum_convention_gap,
    transient_covariance,
    transient_mean,
)

__all__ = ["catalogue"]


def catalogue() -> tuple[Formula, ...]:
    """Return every formula of the library: the derived laws of the shipped rules, then the literature's statements.

    Returns
    -------
    tuple of Formula

    Examples
    --------
    >>> [formula.id for formula in catalogue()][-2:]
    ['sgd.sde_limit', 'heavy_ball.sde_limit']
    """
    makers = (
        stationary_covariance,
        stationary_mean,
        transient_covariance,
        transient_mean,
        learning_rate_change,
        autocovariance,
        autocorrelation_time,
        average_covariance,
        sandwich_limit,
    )
    derived = [make(rule) for rule in RULES for make in makers]
    stated = (commuting_heavy_ball(), momentum_matrix_equation(), momentum_convention_gap(), early_phase_surrogate())
    return (*derived, *_minibatches(), *_epochs(), *_injected(), *stated, sde_limit(sgd), sde_limit(heavy_ball))


def _minibatches() -> tuple[Formula, ...]:
    once = [rule for rule in RULES if rule is not sam]
    makers = (
        minibatch_second_moment,
        gaussian_minibatch_second_moment,
        gaussian_minibatch_covariance,
        mean_square_share,
    )
    no_decay = (sgd, heavy_ball)
    also = (finite_data_covariance, additive_minibatch_limit, isotropic_threshold, linear_scaling_gap)
    both = (minibatch_noise, mulayoff_michaeli_covariance, mulayoff_michaeli_threshold)
    return (
        *(make(rule) for rule in once for make in makers),
        *(make(rule) for rule in no_decay for make in also),
        *(make(replacement=replacement) for make in both for replacement in (True, False)),
        gaussian_fourth_moment(),
        spectrally_expressible_covariance(heavy_ball),
        momentum_minibatch_covariance(),
        moment_growth(2),
        moment_growth(4),
        kesten_equation(),
        tail_index_statement(),
    )


def _epochs() -> tuple[Formula, ...]:
    flat = [rule for rule in RULES if rule is not sgdw]
    return (
        epoch_noise(),
        *(epoch_covariance(rule, position) for rule in RULES for position in ("k", "average")),
        *(epoch_average_covariance(rule) for rule in RULES),
        *(make(rule) for rule in flat for make in (epoch_flat_limit, crossover_curvature)),
        reshuffling_bias(),
        reshuffling_covariance(),
    )


def _injected() -> tuple[Formula, ...]:
    return (
        *(make(rule) for rule in RULES for make in (langevin_covariance, label_noise_covariance)),
        dropout_moments(),
        input_noise_moments(),
        corrupted_fourth_moment(),
        corrupted_fourth_moment(diagonal=True),
    )
