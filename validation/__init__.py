"""Measured runs of real SGD, with standard errors, and the test whether they agree with a prediction.

=========================  ===========================================================================
`stationary_covariance`    thousands of replicas of a run, stepped at once -> `Estimate`
`transient_covariance`     the same a number of steps after a start -> `TransientEstimate`
`autocovariance`           of states a lag apart, at the stationary law -> `AutocovarianceEstimate`
`average_covariance`       of the mean of successive states there -> `AverageEstimate`
`compare`                  an estimate against a predicted covariance -> `Agreement`
`torch_optimizer`          the real ``torch.optim`` object behind a rule; `from_torch` the reverse
=========================  ===========================================================================
"""

from .. import __version__ as __version__
from .agreement import Agreement, compare
from .averages import AutocovarianceEstimate, AverageEstimate, autocovariance, average_covariance
from .stationary import Estimate, stationary_covariance
from .torch_optimizers import from_torch, torch_optimizer
from .transient import TransientEstimate, transient_covariance

__all__ = [
    "Agreement",
    "AutocovarianceEstimate",
    "AverageEstimate",
    "Estimate",
    "TransientEstimate",
    "autocovariance",
    "average_covariance",
    "compare",
    "from_torch",
    "stationary_covariance",
    "torch_optimizer",
    "transient_covariance",
]
