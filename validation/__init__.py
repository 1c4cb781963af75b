"""Measured runs of real SGD, with standard errors, and the test whether they agree with a prediction.

========================== ===========================================================================
`stationary_covariance`    thousands of replicas of a run, stepped at once -> `Estimate`
`transient_covariance`     the same a number of steps after a start -> `TransientEstimate`
`trajectory`               the law and the excess risk over time, through a schedule -> `Trajectory`
`autocovariance`           of states a lag apart, at the stationary law -> `AutocovarianceEstimate`
`average_covariance`       of the mean of successive states there -> `AverageEstimate`
`epoch_covariance`         of shuffled epochs, at any position -> `EpochEstimate`
`epoch_average_covariance` of the mean of successive states of shuffled epochs -> `AverageEstimate`
`run_memory`               how much memory a measurement takes, before it runs
`compare`                  an estimate against a predicted covariance -> `Agreement`; without a `FourthMoment` it
                           gives no p-value
`torch_optimizer`          the real ``torch.optim`` object behind a rule; `from_torch` the reverse
`schedule_from_torch`      the schedule that a real ``torch.optim.lr_scheduler`` follows
`LinearizedNetwork`        a network linear in its weights, measured in all of them -> `LinearizedEstimate`
`local_quadratic`          of a differentiable loss at an optimum, with what it misses -> `LocalQuadratic`
`local_optimum`            a minimum of such a loss; `flat_loss` a network's loss as a function of one vector
`fgsm`, `pgd`              worst-case inputs within a ball and a domain
`mlp`, `cnn`, `digits`     small networks, and data for them
`adaptive_covariance`      of the real ``torch.optim.Adam`` or ``RMSprop``, whose second moments fluctuate
`radius_path`              curvature, noise, covariance and risk along an attack's radius -> `MeasuredRadiusPath`
`perturbed_covariance`     with adversarial weight perturbation (AWP)
`tail_index`               Hill's estimate of the tail index of the weights -> `TailEstimate`
========================== ===========================================================================
"""

from .. import __version__ as __version__
from ._fourth_moment import FourthMoment
from ._memory import run_memory
from .adaptive import adaptive_covariance
from .agreement import Agreement, compare
from .attacks import fgsm, pgd
from .averages import AutocovarianceEstimate, AverageEstimate, autocovariance, average_covariance
from .epochs import EpochEstimate, epoch_average_covariance, epoch_covariance
from .linearized import LinearizedEstimate, LinearizedNetwork
from .local_optimum import local_optimum
from .local_quadratic import CubicRemainder, LocalQuadratic, local_quadratic
from .networks import cnn, digits, flat_loss, mlp
from .radius import MeasuredRadiusPath, radius_path
from .schedules import schedule_from_torch
from .stationary import Estimate, stationary_covariance
from .tails import TailEstimate, tail_index
from .torch_optimizers import from_torch, torch_optimizer
from .trajectory import Trajectory, trajectory
from .transient import TransientEstimate, transient_covariance
from .weight_perturbation import perturbed_covariance

__all__ = [
    "Agreement",
    "AutocovarianceEstimate",
    "AverageEstimate",
    "CubicRemainder",
    "EpochEstimate",
    "Estimate",
    "FourthMoment",
    "LinearizedEstimate",
    "LinearizedNetwork",
    "LocalQuadratic",
    "MeasuredRadiusPath",
    "TailEstimate",
    "Trajectory",
    "TransientEstimate",
    "adaptive_covariance",
    "autocovariance",
    "average_covariance",
    "cnn",
    "compare",
    "digits",
    "epoch_average_covariance",
    "epoch_covariance",
    "fgsm",
    "flat_loss",
    "from_torch",
    "local_optimum",
    "local_quadratic",
    "mlp",
    "perturbed_covariance",
    "pgd",
    "radius_path",
    "run_memory",
    "schedule_from_torch",
    "stationary_covariance",
    "tail_index",
    "torch_optimizer",
    "trajectory",
    "transient_covariance",
]
