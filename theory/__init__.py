"""Closed forms for the law of linear optimisers on a quadratic loss, derived from the update rule and proved.

===================================  =====================================================================
`update_rule`, `UpdateRule`          write an optimiser once, as a plain function
`sgd` ... `sam`, `with_ema`          the shipped rules (`RULES`)
`recursion`                          the linear recursion z' = A(h) z + b(h) xi of a rule
`stability`                          exact stability conditions and the largest stable learning rate
`stationary_covariance`              the covariance of any two slots, as a `Formula`; `stationary_mean` likewise
`transient_covariance`, ...          the law k steps after a change: `transient_mean`, `learning_rate_change`,
                                     `momentum_convention_gap`, `early_phase_surrogate`, `characteristic_sequence`
`autocovariance`, ...                memory and averages at the stationary law: `autocorrelation_time`,
                                     `average_covariance`, `sandwich_limit`
`minibatch_noise`, ...               real minibatches: `minibatch_second_moment` (the one-step equation of finite data),
                                     `finite_data_covariance`; `reshuffling_bias`, `reshuffling_covariance`
`gaussian_minibatch_covariance`, ... minibatches of Gaussian examples: `gaussian_minibatch_second_moment` (one step),
                                     `spectrally_expressible_covariance`, `additive_minibatch_limit`,
                                     `gaussian_fourth_moment` (Isserlis)
`mean_square_threshold`, ...         where second moments exist: `mean_square_share`, `isotropic_threshold`;
                                     `linear_scaling_gap`, `largest_linear_scaling`
`epoch_covariance`, ...              shuffled epochs: `epoch_noise`, `epoch_average_covariance`, `epoch_flat_limit`,
                                     `crossover_curvature`
`langevin_covariance`, ...           injected noise: `label_noise_covariance`, `dropout_moments`,
                                     `input_noise_moments`, `corrupted_fourth_moment`
`adversarial_loss`, ...              attacked linear models, one example: `adversarial_gradient`, `adversarial_hessian`,
                                     `adversarial_noise`, `shifted_least_squares`; `dual_norm_curvature`,
                                     `worst_case_shift` of any l_p attack
`robust_risk`, ...                   on Gaussian data: `robust_gradient`, `robust_hessian` (= `mean_example_hessian` +
                                     `robust_kink`), `robust_noise`; `robust_minimiser`, `robust_radius`,
                                     `collapse_radius`, `robust_onset`; `absolute_gaussian_moments`;
                                     the kink on finite data: `smoothed_hessian`
`isotropic_hessian`, ...             the same along the radius for isotropic inputs: `isotropic_noise`,
                                     `isotropic_covariance`, `isotropic_excess_risk`, `isotropic_onset`;
                                     `isotropic_radius`, `isotropic_shrinkage`, `noiseless_shrinkage`
`unhinged_covariance`, ...           the robust unhinged loss: `unhinged_loss`, `unhinged_minimiser`,
                                     `unhinged_hessian`, `unhinged_noise`
`weight_perturbation_gain`, ...      perturbed weights (AWP): `perturbed_curvature`, `perturbed_example_weight`;
                                     normalised: `normalised_example_loss`, `normalised_perturbation_covariance`,
                                     `normalised_perturbation_closure`
`moment_threshold`, ...              heavy tails: `moment_growth`, `kesten_equation`, `tail_index_statement`
`catalogue`                          every formula; `sde_limit`, `commuting_heavy_ball`, `momentum_matrix_equation`
                                     are the literature's statements beside ours; on minibatches
                                     `momentum_minibatch_covariance`, `mulayoff_michaeli_covariance`,
                                     `mulayoff_michaeli_threshold`
===================================  =====================================================================
"""

from .. import __version__ as __version__
from .adversarial import (
    adversarial_gradient,
    adversarial_hessian,
    adversarial_loss,
    adversarial_noise,
    shifted_least_squares,
)
from .assumptions import Assumption
from .averages import autocorrelation_time, autocovariance, average_covariance, sandwich_limit
from .catalogue import catalogue
from .dual_norm import dual_norm_curvature, worst_case_shift
from .epochs import (
    crossover_curvature,
    epoch_average_covariance,
    epoch_covariance,
    epoch_flat_limit,
    epoch_noise,
)
from .formula import Formula, Proof, Step
from .gaussian_minibatch import (
    additive_minibatch_limit,
    gaussian_minibatch_covariance,
    gaussian_minibatch_second_moment,
    spectrally_expressible_covariance,
)
from .gaussian_moments import gaussian_fourth_moment
from .hyperparameters import Hyperparameter
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
from .mean_square import (
    isotropic_threshold,
    largest_linear_scaling,
    linear_scaling_gap,
    mean_square_share,
    mean_square_threshold,
)
from .minibatch import finite_data_covariance, minibatch_noise, minibatch_second_moment
from .normalised_perturbation import normalised_perturbation_closure, normalised_perturbation_covariance
from .powers import characteristic_sequence
from .recursion import Recursion, recursion
from .references import bibtex
from .reshuffling import reshuffling_bias, reshuffling_covariance
from .robust_isotropic import (
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
from .robust_shrinkage import isotropic_radius, isotropic_shrinkage, noiseless_shrinkage
from .rules import RULES, heavy_ball, nesterov, polyak, qhm, sam, sgd, sgdw, with_ema
from .smoothed_kink import smoothed_hessian
from .stability import Stability, stability
from .stationary import stationary_covariance, stationary_mean
from .tails import kesten_equation, moment_growth, moment_threshold, tail_index_statement
from .transient import (
    early_phase_surrogate,
    learning_rate_change,
    momentum_convention_gap,
    transient_covariance,
    transient_mean,
)
from .unhinged import unhinged_covariance, unhinged_hessian, unhinged_loss, unhinged_minimiser, unhinged_noise
from .update_rule import Optimizer, UpdateRule, update_rule
from .weight_perturbation import (
    normalised_example_loss,
    perturbed_curvature,
    perturbed_example_weight,
    weight_perturbation_gain,
)

__all__ = [
    "RULES",
    "Assumption",
    "Formula",
    "Hyperparameter",
    "Optimizer",
    "Proof",
    "Recursion",
    "Stability",
    "Step",
    "UpdateRule",
    "absolute_gaussian_moments",
    "additive_minibatch_limit",
    "adversarial_gradient",
    "adversarial_hessian",
    "adversarial_loss",
    "adversarial_noise",
    "autocorrelation_time",
    "autocovariance",
    "average_covariance",
    "bibtex",
    "catalogue",
    "characteristic_sequence",
    "collapse_radius",
    "commuting_heavy_ball",
    "corrupted_fourth_moment",
    "crossover_curvature",
    "dropout_moments",
    "dual_norm_curvature",
    "early_phase_surrogate",
    "epoch_average_covariance",
    "epoch_covariance",
    "epoch_flat_limit",
    "epoch_noise",
    "finite_data_covariance",
    "gaussian_fourth_moment",
    "gaussian_minibatch_covariance",
    "gaussian_minibatch_second_moment",
    "heavy_ball",
    "input_noise_moments",
    "isotropic_covariance",
    "isotropic_excess_risk",
    "isotropic_hessian",
    "isotropic_noise",
    "isotropic_onset",
    "isotropic_radius",
    "isotropic_shrinkage",
    "isotropic_threshold",
    "kesten_equation",
    "label_noise_covariance",
    "langevin_covariance",
    "largest_linear_scaling",
    "learning_rate_change",
    "linear_scaling_gap",
    "mean_example_hessian",
    "mean_square_share",
    "mean_square_threshold",
    "minibatch_noise",
    "minibatch_second_moment",
    "moment_growth",
    "moment_threshold",
    "momentum_convention_gap",
    "momentum_matrix_equation",
    "momentum_minibatch_covariance",
    "mulayoff_michaeli_covariance",
    "mulayoff_michaeli_threshold",
    "nesterov",
    "noiseless_shrinkage",
    "normalised_example_loss",
    "normalised_perturbation_closure",
    "normalised_perturbation_covariance",
    "perturbed_curvature",
    "perturbed_example_weight",
    "polyak",
    "qhm",
    "recursion",
    "reshuffling_bias",
    "reshuffling_covariance",
    "robust_gradient",
    "robust_hessian",
    "robust_kink",
    "robust_minimiser",
    "robust_noise",
    "robust_onset",
    "robust_radius",
    "robust_risk",
    "sam",
    "sandwich_limit",
    "sde_limit",
    "sgd",
    "sgdw",
    "shifted_least_squares",
    "smoothed_hessian",
    "spectrally_expressible_covariance",
    "stability",
    "stationary_covariance",
    "stationary_mean",
    "tail_index_statement",
    "transient_covariance",
    "transient_mean",
    "unhinged_covariance",
    "unhinged_hessian",
    "unhinged_loss",
    "unhinged_minimiser",
    "unhinged_noise",
    "update_rule",
    "weight_perturbation_gain",
    "with_ema",
    "worst_case_shift",
]
