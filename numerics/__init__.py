"""The law of linear optimisers for given arrays, stationary and over time, by solving Lyapunov and Stein equations.

===================================  =====================================================================
`stationary_covariance`              covariance of the weights and of every other slot, for H and C given
`stationary_mean`                    where the iterates sit on average (weight decay moves it)
`transient_covariance`               the same any number of steps after a start, and what is left of the start
`transient_mean`                     the mean any number of steps after a start
`trajectory`                         mean, covariance and excess risk through a schedule
`periodic_covariance`                the law of a schedule that is repeated for ever
`Schedule`, `Phase`                  which hyper-parameters hold for how many steps
`autocovariance`                     the covariance of the weights with themselves some steps earlier
`autocorrelation_time`               after how many steps an iterate counts as a new one
`average_covariance`                 the covariance of the mean of the last iterates
`pair_covariance`                    the covariance kernel of pairs of Hessian eigenvalues
`max_learning_rate`                  the least upper bound of the stable learning rates
`mean_square_stability`              whether a covariance exists under noise that depends on the weights
`one_gradient_form`                  plain SGD in place of a rule such as `sam`, whose batches can be listed
`spectral_radius`, `spectral_gap`    how much of the start is left after a step, and how much is forgotten
`solve_stein`                        ``A X A' - X + Q = 0`` for any A, with a verdict
`Quadratic`, `LeastSquares`          problems: a loss, its Hessian, optimum and gradient noise
`QuadraticExamples`                  a finite sum of quadratic losses with Hessians of their own
`VectorLeastSquares`                 least squares with several outputs; its noise is a `VectorMinibatchNoise`
`AdversarialLeastSquares`, ...       robust regression and, `AdversarialLogistic`, classification of finite data
`Certificate`, `Kinks`, ...          of a robust optimum; `LeavingProbability` of its smooth piece
`kink_corrected_covariance`          the law of robust regression with the curvature of the kinks in it
`GaussianAdversarialRegression`      robust regression on fresh Gaussian data
`RobustUnhinged`                     the robust unhinged loss, everything explicit
`radius_path`                        curvature, noise, covariance, risk and stability along the attack's radius
`random_features`, `RandomFeatures`  robust regression on the features of a random first layer
`MinibatchNoise`, ...                gradient noise that depends on the weights, exact: `GaussianMinibatchNoise`
`EpochNoise`, `epoch_noise`          shuffled epochs: noise that is correlated within an epoch, and that of given data
`reshuffling_law`                    shuffled epochs of examples whose Hessians differ: the bias of the mean, too
`crossover_curvature`                the curvature below which shuffled epochs lower the variance
`damped_newton`, ... `rmsprop`       preconditioners
`DropoutNoise`, `InputNoise`         gradient noise of injected corruption, exact; `langevin_noise` that of SGLD
`adaptive_covariance`                Adam and RMSProp with second moments frozen self-consistently: an approximation
`tail_index`, `moment_growth`        which moments exist when the noise multiplies the weights
===================================  =====================================================================
"""

from .. import __version__ as __version__
from .adaptive import AdaptiveCovariance, adaptive_covariance
from .adversarial import AdversarialLeastSquares, AdversarialLogistic, Certificate, Kinks, LeavingProbability
from .averages import autocorrelation_time, autocovariance, average_covariance
from .corruption import DropoutNoise, InputNoise, langevin_noise
from .enumeration import one_gradient_form
from .epochs import EpochCovariance, EpochNoise, crossover_curvature, epoch_noise
from .kink_corrected import KinkCorrectedCovariance, kink_corrected_covariance
from .mean import stationary_mean
from .mean_square import MeanSquareStability, mean_square_stability
from .noise import GaussianMinibatchNoise, GradientNoise, MinibatchNoise
from .preconditioners import adam, damped_newton, natural_gradient, rmsprop
from .problems import LeastSquares, Quadratic
from .quadratic_examples import QuadraticExamples
from .radius import RadiusPath, radius_path
from .random_features import RandomFeatures, random_features
from .reshuffling import ReshufflingLaw, reshuffling_law
from .robust_regression import GaussianAdversarialRegression
from .schedules import Phase, Schedule
from .stability import max_learning_rate, spectral_gap, spectral_radius
from .stationary import StationaryCovariance, pair_covariance, stationary_covariance
from .stein import SteinSolution, solve_stein
from .tails import MomentGrowth, TailIndex, moment_growth, tail_index
from .trajectory import PeriodicCovariance, Trajectory, periodic_covariance, trajectory
from .transient import TransientCovariance, transient_covariance, transient_mean
from .unhinged import RobustUnhinged
from .vector_least_squares import VectorLeastSquares, VectorMinibatchNoise

__all__ = [
    "AdaptiveCovariance",
    "AdversarialLeastSquares",
    "AdversarialLogistic",
    "Certificate",
    "DropoutNoise",
    "EpochCovariance",
    "EpochNoise",
    "GaussianAdversarialRegression",
    "GaussianMinibatchNoise",
    "GradientNoise",
    "InputNoise",
    "KinkCorrectedCovariance",
    "Kinks",
    "LeastSquares",
    "LeavingProbability",
    "MeanSquareStability",
    "MinibatchNoise",
    "MomentGrowth",
    "PeriodicCovariance",
    "Phase",
    "Quadratic",
    "QuadraticExamples",
    "RadiusPath",
    "RandomFeatures",
    "ReshufflingLaw",
    "RobustUnhinged",
    "Schedule",
    "StationaryCovariance",
    "SteinSolution",
    "TailIndex",
    "Trajectory",
    "TransientCovariance",
    "VectorLeastSquares",
    "VectorMinibatchNoise",
    "adam",
    "adaptive_covariance",
    "autocorrelation_time",
    "autocovariance",
    "average_covariance",
    "crossover_curvature",
    "damped_newton",
    "epoch_noise",
    "kink_corrected_covariance",
    "langevin_noise",
    "max_learning_rate",
    "mean_square_stability",
    "moment_growth",
    "natural_gradient",
    "one_gradient_form",
    "pair_covariance",
    "periodic_covariance",
    "radius_path",
    "random_features",
    "reshuffling_law",
    "rmsprop",
    "solve_stein",
    "spectral_gap",
    "spectral_radius",
    "stationary_covariance",
    "stationary_mean",
    "tail_index",
    "trajectory",
    "transient_covariance",
    "transient_mean",
]
