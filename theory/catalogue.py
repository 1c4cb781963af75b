"""Every formula of the library, in the order of the handbook."""

from __future__ import annotations

from ._attacked import Loss
from .adversarial import (
    adversarial_gradient,
    adversarial_hessian,
    adversarial_loss,
    adversarial_noise,
    shifted_least_squares,
)
from .averages import autocorrelation_time, autocovariance, average_covariance, sandwich_limit
from .dual_norm import dual_norm_curvature, worst_case_shift
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
from .normalised_perturbation import normalised_perturbation_closure, normalised_perturbation_covariance
from .reshuffling import reshuffling_bias, reshuffling_covariance
from .robust_isotropic import (
    Direction,
    isotropic_covariance,
    isotropic_excess_risk,
    isotropic_hessian,
    isotropic_noise,
    isotropic_onset,
)
from .robust_minimiser import collapse_radius, robust_minimiser, robust_onset, robust_radius
from .robust_population import (
    absolute_gaussian_moments,
    mean_example_hessian,
    robust_gradient,
    robust_hessian,
    robust_kink,
    robust_noise,
    robust_risk,
)
from .robust_shrinkage import isotropic_radius, noiseless_shrinkage
from .rules import RULES, heavy_ball, sam, sgd, sgdw
from .smoothed_kink import smoothed_hessian
from .stationary import stationary_covariance, stationary_mean
from .tails import kesten_equation, moment_growth, tail_index_statement
from .transient import (
    early_phase_surrogate,
    learning_rate_change,
    momentum_convention_gap,
    transient_covariance,
    transient_mean,
)
from .unhinged import unhinged_covariance, unhinged_hessian, unhinged_loss, unhinged_minimiser, unhinged_noise
from .weight_perturbation import (
    normalised_example_loss,
    perturbed_curvature,
    perturbed_example_weight,
    weight_perturbation_gain,
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
    return (
        *derived,
        *_minibatches(),
        *_epochs(),
        *_injected(),
        *_adversarial(),
        *stated,
        sde_limit(sgd),
        sde_limit(heavy_ball),
    )


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


def _adversarial() -> tuple[Formula, ...]:
    attacks = (2, float("inf"), "p")
    losses: tuple[Loss, ...] = ("squared", "logistic", "hinge")
    of_one = (adversarial_loss, adversarial_gradient, adversarial_hessian, adversarial_noise)
    population = (robust_risk, robust_gradient, robust_hessian, mean_example_hessian, robust_kink, robust_noise)
    along = (robust_radius, collapse_radius, robust_onset, smoothed_hessian)
    explicit = (robust_minimiser, unhinged_minimiser, unhinged_hessian)
    directions: tuple[Direction, ...] = ("radial", "transverse")
    return (
        *(make(norm) for norm in attacks for make in (dual_norm_curvature, worst_case_shift, unhinged_loss)),
        *(make(loss, norm) for loss in losses for norm in attacks for make in of_one),
        shifted_least_squares(),
        absolute_gaussian_moments(),
        *(make(norm) for norm in attacks for make in (*population, *along)),
        *(make(norm) for norm in attacks[:2] for make in explicit),
        isotropic_radius(),
        noiseless_shrinkage(),
        *(make(to) for to in directions for make in (isotropic_hessian, isotropic_noise, isotropic_onset)),
        *(isotropic_excess_risk(rule) for rule in (sgd, heavy_ball)),
        unhinged_noise(),
        *(make(rule, direction) for rule in RULES for direction in directions
          for make in (isotropic_covariance, unhinged_covariance)),
        weight_perturbation_gain(),
        *(perturbed_curvature(replacement=replacement) for replacement in (True, False)),
        perturbed_example_weight(),
        normalised_example_loss(),
        normalised_perturbation_covariance(),
        normalised_perturbation_closure(),
    )  # fmt: skip
