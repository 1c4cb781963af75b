r"""The quadratic that a differentiable loss is near an optimum, and how far the loss is from it over a predicted law.

.. math:: L(w) = \frac1N \sum_n \ell_n(w) \approx L(w^*) + \tfrac12 (w - w^*)^\top H (w - w^*) ,

with the noise that minibatches have at the optimum. The law that numerics solves for this quadratic is the loss's own
as far as

.. math:: \mathrm E\,\big|L(w^* + \delta) - L(w^*) - \tfrac12 \delta^\top H \delta\big| ,
          \qquad \delta \sim N(0, \Sigma) ,

is small beside :math:`\mathrm{tr}(H \Sigma)/2`: `LocalQuadratic.remainder` measures it.
"""

from __future__ import annotations

import html
import math
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np
import scipy.linalg
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.sparse.linalg import LinearOperator

from ..errors import InvalidProblemError
from ..numerics import MinibatchNoise, Quadratic, QuadraticExamples, StationaryCovariance, TransientCovariance
from ..numerics._arrays import choice, flag, nonnegative, whole_number
from ..numerics._result import Frozen
from ._draws import range_factor
from ._minimum import curvature_of, curvature_of_products
from ._pointwise_loss import PointwiseLoss

__all__ = ["CubicRemainder", "LocalQuadratic", "local_quadratic"]

Array: TypeAlias = NDArray[np.float64]

#: Memory that an explicit Hessian, the Hessians of all examples, and a covariance may take.
HESSIAN_BYTES = 1 << 28
#: Points at which the gradients of all examples are taken for the remainder of the noise.
NOISE_SAMPLES = 100
#: Memory that the gradients of all examples may take.
GRADIENT_BYTES = 1 << 28


@dataclass(frozen=True)
class CubicRemainder:
    r"""What the quadratic misses of the loss, averaged over :math:`\delta \sim N(0, \Sigma)`.

    Attributes
    ----------
    value, standard_error : float
        Mean of ``|L(w* + d) - L(w*) - d'Hd/2|``.
    bias, bias_standard_error : float
        The same with its sign: how much larger the loss is than the quadratic.
    scale : float
        ``tr(H Sigma)/2``, the mean of the quadratic part itself.
    noise, noise_standard_error : float
        By which share the trace of the gradient noise, averaged over the same law, is larger than at the optimum: what
        the additive law (`LocalQuadratic.quadratic`) misses.
    own_noise, own_noise_standard_error : float
        By which share it is larger than where every example's loss is its own quadratic: what the law of minibatches
        (`LocalQuadratic.minibatch_noise`, `LinearizedNetwork.noise`) misses.
    samples : int
    """

    value: float
    standard_error: float
    bias: float
    bias_standard_error: float
    scale: float
    noise: float
    noise_standard_error: float
    own_noise: float
    own_noise_standard_error: float
    samples: int

    @property
    def relative(self) -> float:
        """``value / scale``: the quadratic law is to be trusted where it is small."""
        return self.value / self.scale if self.scale > 0.0 else math.inf if self.value else 0.0

    @property
    def relative_standard_error(self) -> float:
        """Of :attr:`relative`."""
        return self.standard_error / self.scale if self.scale > 0.0 else math.inf

    def __str__(self) -> str:
        return (
            f"{self.relative:.3%} +- {self.relative_standard_error:.1%} of tr(H Sigma)/2 = {self.scale:.4g}; noise "
            f"{self.noise:+.3%} +- {self.noise_standard_error:.1%} beside that at the optimum, "
            f"{self.own_noise:+.3%} +- {self.own_noise_standard_error:.1%} beside that of every example's quadratic"
        )


@dataclass(frozen=True, eq=False, repr=False)
class LocalQuadratic(Frozen):
    """A loss near an optimum: a problem for numerics, and the loss itself to hold it against.

    Attributes
    ----------
    optimum : ndarray, shape (d,)
    value : float
        The loss there.
    hessian : ndarray, shape (d, d), or scipy.sparse.linalg.LinearOperator
        Its products only where the matrix does not fit.
    asymmetry : float
        Of the Hessian as it was computed, relative to its largest entry; the mean with its transpose was taken.
    smallest_eigenvalue : float
        Of the Hessian as it was computed. A negative one is within the rounding of the derivatives, and was set to 0;
        of products it is the least that Lanczos' method met.
    gradient_norm, allowed_gradient_norm : float
        Of the mean gradient at the optimum.
    per_example_gradients : ndarray, shape (N, d)
    batch_size : int
    replacement : bool
    """

    optimum: Array
    value: float
    hessian: Array | LinearOperator
    asymmetry: float
    smallest_eigenvalue: float
    gradient_norm: float
    allowed_gradient_norm: float
    per_example_gradients: Array = field(repr=False)
    batch_size: int
    replacement: bool
    _loss: PointwiseLoss | None = field(repr=False)

    def __getstate__(self) -> dict[str, Any]:
        """Products are left out, and a loss that pickle cannot name, as it cannot a lambda."""
        state = super().__getstate__()
        try:
            pickle.dumps(state["_loss"])
        except (pickle.PicklingError, AttributeError, TypeError):
            state["_loss"] = None
        return {**state, "hessian": self.hessian if self.explicit else None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if state["hessian"] is None and state["_loss"] is not None:
            state = {**state, "hessian": state["_loss"].hessian_operator()}
        super().__setstate__(state)

    def __deepcopy__(self, memo: dict[int, Any]) -> LocalQuadratic:
        return self  # nothing of it can be changed

    @property
    def _known_loss(self) -> PointwiseLoss:
        if self._loss is None:
            raise InvalidProblemError(
                "this local quadratic has come through pickle without its loss, which pickle can only name: define the "
                "loss by def in a module, or take flat_loss."
            )
        return self._loss

    @property
    def dim(self) -> int:
        """The number d of parameters."""
        return len(self.optimum)

    @property
    def num_examples(self) -> int:
        """The number N of examples."""
        return len(self.per_example_gradients)

    @property
    def explicit(self) -> bool:
        """Whether the Hessian is held as a matrix."""
        return isinstance(self.hessian, np.ndarray)

    def _rows(self) -> list[tuple[str, str]]:
        replaced = "with" if self.replacement else "without"
        held = "a matrix" if self.explicit else "products only"
        return [
            ("loss", f"{self.value:.6g} at its optimum, {self.dim} parameters"),
            ("gradient", f"{self.gradient_norm:.3g} (at most {self.allowed_gradient_norm:.3g} allowed)"),
            ("Hessian", f"{held}, smallest eigenvalue {self.smallest_eigenvalue:.3g}"),
            ("noise", f"of minibatches of {self.batch_size} of {self.num_examples} examples {replaced} replacement"),
        ]

    def __repr__(self) -> str:
        return "\n".join(["LocalQuadratic", *(f"  {name:<9} {text}" for name, text in self._rows())])

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th>{name}</th><td>{html.escape(text)}</td></tr>" for name, text in self._rows())
        return f"<table><caption>Local quadratic</caption>{rows}</table>"

    @cached_property
    def noise(self) -> Array:
        """The covariance of a minibatch's mean gradient at the optimum, shape (d, d).

        Raises
        ------
        InvalidProblemError
            If it does not fit into memory.
        """
        if not _fits(self.dim):
            raise InvalidProblemError(
                f"a covariance of {self.dim} x {self.dim} takes more than {HESSIAN_BYTES:,} bytes; see noise_root."
            )
        root = self.noise_root
        covariance = root @ root.T
        return np.asarray(0.5 * (covariance + covariance.T))

    @cached_property
    def noise_root(self) -> Array:
        """R of shape (d, N) with ``R R' = noise``."""
        size, count = self.batch_size, self.num_examples
        factor = 1.0 / size if self.replacement else (count - size) / (size * max(count - 1, 1))
        centred = self.per_example_gradients - self.per_example_gradients.mean(axis=0)
        centred *= math.sqrt(factor / count)
        return np.asarray(centred.T)

    @cached_property
    def quadratic(self) -> Quadratic:
        """The problem with additive noise.

        Raises
        ------
        InvalidProblemError
            If the Hessian is no matrix.
        """
        if not isinstance(self.hessian, np.ndarray):
            why = (
                f"the Hessian is held as products, as hessian='products' asked; {self.dim} x {self.dim} fits"
                if _fits(self.dim)
                else f"a Hessian of {self.dim} x {self.dim} takes more than {HESSIAN_BYTES:,} bytes"
            )
            raise InvalidProblemError(
                f"numerics takes matrices, and {why}. Give hessian='explicit', or linearise the network: "
                f"LinearizedNetwork works in the few directions that the data moves."
            )
        return Quadratic(self.hessian, self.noise, self.optimum)

    @cached_property
    def examples(self) -> QuadraticExamples:
        """The problem with every example's own quadratic: ``MinibatchNoise(local.examples, batch_size)``.

        Raises
        ------
        InvalidProblemError
            If N Hessians do not fit into memory.
        """
        if self.num_examples * self.dim**2 * 8 > HESSIAN_BYTES:
            raise InvalidProblemError(
                f"{self.num_examples} Hessians of {self.dim} x {self.dim} take more than {HESSIAN_BYTES:,} bytes; "
                f"the additive law needs their mean only: local.quadratic."
            )
        hessians = self._known_loss.per_example_hessians()
        hessians = 0.5 * (hessians + hessians.transpose(0, 2, 1))
        return QuadraticExamples(hessians, self.per_example_gradients - hessians @ self.optimum)

    def minibatch_noise(self) -> MinibatchNoise:
        """The noise of minibatches of :attr:`examples`, which follows the weights.

        Returns
        -------
        MinibatchNoise
        """
        return MinibatchNoise(self.examples, self.batch_size, self.replacement)

    def remainder(
        self,
        covariance: ArrayLike | StationaryCovariance | TransientCovariance | None = None,
        *,
        root: ArrayLike | None = None,
        samples: int = 1000,
        rng: np.random.Generator | int | None = None,
    ) -> CubicRemainder:
        """Measure what the quadratic misses of the loss over a Gaussian about the optimum.

        The gradient noise may leave its own value sooner than the mean loss does, where examples differ much: its
        remainder stands beside that of the loss, and a law is to be trusted where both are small.

        Parameters
        ----------
        covariance : array_like, shape (d, d), or a law of numerics
            The predicted covariance of the weights.
        root : array_like, shape (d, k)
            In its place: R with ``covariance = R R'``.
        samples : int
            Points drawn, at least 2. The noise is looked at in the first hundred.
        rng : numpy.random.Generator or int, optional

        Returns
        -------
        CubicRemainder

        Raises
        ------
        InvalidProblemError
            If an argument does not fit, or the loss is not finite somewhere.
        """
        if (covariance is None) == (root is None):
            raise InvalidProblemError("give the covariance of the weights, or root=... with covariance = root root'.")
        samples = whole_number("samples", samples, least=2)
        if root is None:
            law = isinstance(covariance, StationaryCovariance | TransientCovariance)
            spread = np.asarray(covariance.value if law else covariance, dtype=np.float64)  # type: ignore[union-attr]
            if spread.shape != (self.dim, self.dim) or not np.isfinite(spread).all():
                raise InvalidProblemError(f"covariance must be finite and of shape {(self.dim, self.dim)}.")
            factor = range_factor(spread) if np.any(spread) else np.zeros((self.dim, 1))
        else:
            factor = np.asarray(root, dtype=np.float64)
            if factor.ndim != 2 or len(factor) != self.dim or not np.isfinite(factor).all():
                raise InvalidProblemError(f"root must be finite and of shape ({self.dim}, k), got {factor.shape}.")
        curved = np.asarray(self.hessian @ factor)
        deltas = np.random.default_rng(rng).standard_normal((samples, factor.shape[1]))
        forms = np.einsum("ni,ij,nj->n", deltas, factor.T @ curved, deltas)
        losses = self._known_loss.mean_at(self.optimum + deltas @ factor.T)
        bad = int(np.count_nonzero(~np.isfinite(losses)))
        if bad:
            raise InvalidProblemError(f"the loss is not finite at {bad} of {samples} points drawn from the covariance.")
        missed = losses - self.value - 0.5 * forms
        size = np.abs(missed)
        real, own = self._known_loss.gradient_spreads(deltas[:NOISE_SAMPLES] @ factor.T)
        centred = self.per_example_gradients - self.per_example_gradients.mean(axis=0)
        noise, noise_error = _excess(real, np.full(len(real), np.mean(np.square(centred).sum(axis=1))))
        own_noise, own_noise_error = _excess(real, own)
        return CubicRemainder(
            value=float(size.mean()),
            standard_error=float(size.std(ddof=1) / np.sqrt(samples)),
            bias=float(missed.mean()),
            bias_standard_error=float(missed.std(ddof=1) / np.sqrt(samples)),
            scale=0.5 * float(np.sum(factor * curved)),
            noise=noise,
            noise_standard_error=noise_error,
            own_noise=own_noise,
            own_noise_standard_error=own_noise_error,
            samples=samples,
        )


def _excess(found: Array, expected: Array) -> tuple[float, float]:
    """By which share the mean of one exceeds that of the other, and its standard error, both from the same points."""
    scale = float(expected.mean())
    if scale == 0.0:
        return (math.inf if np.any(found) else 0.0), 0.0
    ratio = float(found.mean()) / scale
    spread = float(np.std(found - ratio * expected, ddof=1))  # of a ratio of means, to first order
    return ratio - 1.0, spread / scale / math.sqrt(len(found))


def _fits(dim: int) -> bool:
    return dim**2 * 8 <= HESSIAN_BYTES


def local_quadratic(
    loss: Callable[..., torch.Tensor],
    optimum: torch.Tensor | ArrayLike,
    data: torch.Tensor | ArrayLike | Sequence[torch.Tensor | ArrayLike],
    *,
    batch_size: int,
    replacement: bool = True,
    gradient_tolerance: float = 1e-6,
    hessian: Literal["auto", "explicit", "products"] = "auto",
    gradient_bytes: int = GRADIENT_BYTES,
    device: str | torch.device = "cpu",
) -> LocalQuadratic:
    """The quadratic of a differentiable loss at an optimum, with the noise of its minibatches.

    Parameters
    ----------
    loss : callable
        ``loss(w, *example)``, the loss of ONE example at weights w of shape (d,), a scalar tensor that ``torch.func``
        can differentiate. `flat_loss` makes one of a network.
    optimum : array_like, shape (d,)
        `local_optimum` finds one.
    data : array_like, shape (N, ...), or a tuple of such
        What ``loss`` is given one entry of: ``(x, y)``. Floats are taken to double precision.
    batch_size : int
        From 1 to N.
    replacement : bool
    gradient_tolerance : float
        The mean gradient may be at most this multiple of the root mean square of the examples' own.
    hessian : {"auto", "explicit", "products"}
        "auto": a matrix up to a quarter of a gigabyte. A hundred products tell a saddle from a minimum.
    gradient_bytes : int
        Memory that the gradients of all examples may take, a quarter of a gigabyte by default; beyond it, refused
        before anything is computed. Several times as much is in use for a while.
    device : str or torch.device

    Returns
    -------
    LocalQuadratic

    Raises
    ------
    InvalidProblemError
        If the point is no optimum (with the gradient it has, and what a Newton step would gain) or a saddle (with the
        smallest eigenvalue); if the loss is not finite, not differentiable, or has a kink there.

    Examples
    --------
    The cosh of w - x over x = -1 and 1 has its minimum at 0, where its curvature is cosh(1):

    >>> local = local_quadratic(lambda w, x: torch.cosh(w[0] - x), [0.0], [-1.0, 1.0], batch_size=1)
    >>> local.hessian, local.noise  # sinh(1)^2 is the noise
    (array([[1.54308063]]), array([[1.38109785]]))
    >>> local.remainder([[0.01]], rng=0).relative < 0.01
    True
    """
    how = choice("hessian", hessian, ("auto", "explicit", "products"))
    tolerance = nonnegative("gradient_tolerance", gradient_tolerance)
    replaced = flag("replacement", replacement)
    point = PointwiseLoss.of(loss, optimum, data, device)
    size = whole_number("batch_size", batch_size, least=1)
    if size > point.num_examples:
        raise InvalidProblemError(
            f"batch_size must be an integer from 1 to the number of examples, {point.num_examples}, got {batch_size!r}."
        )
    needed = point.num_examples * point.dim * 8
    if needed > whole_number("gradient_bytes", gradient_bytes, least=1):
        raise InvalidProblemError(
            f"the gradients of {point.num_examples} examples by {point.dim:,} weights take {needed:,} bytes, and "
            f"{gradient_bytes:,} are allowed. Take fewer examples, allow more by gradient_bytes=..., or linearise the "
            f"network: LinearizedNetwork."
        )
    value, gradients = point.value_and_gradients()
    point.refuse_kinks(gradients)
    products = how == "products" or (how == "auto" and not _fits(point.dim))
    curvature = curvature_of_products(point.hessian_operator()) if products else curvature_of(point.hessian())
    largest = max(abs(curvature.smallest), abs(curvature.largest))
    if not np.any(gradients) and largest == 0.0:
        raise InvalidProblemError(
            "the gradient of every example is exactly 0, and so is the Hessian: the loss does not depend on the "
            "weights in a differentiable way (a number of errors?). Give a differentiable surrogate."
        )
    mean = gradients.mean(axis=0)
    norm, typical = float(np.linalg.norm(mean)), float(np.sqrt(np.mean(np.square(gradients).sum(axis=1))))
    rounding = 1e3 * np.finfo(np.float64).eps * largest * max(1.0, float(np.linalg.norm(point.optimum)))
    allowed = tolerance * typical + rounding
    curvature.refuse_saddle()
    if not norm <= allowed:
        raise InvalidProblemError(_not_optimal(norm, allowed, typical, mean, curvature.hessian))
    return LocalQuadratic(
        optimum=point.optimum,
        value=value,
        hessian=curvature.hessian,
        asymmetry=curvature.asymmetry,
        smallest_eigenvalue=curvature.smallest,
        gradient_norm=norm,
        allowed_gradient_norm=allowed,
        per_example_gradients=gradients,
        batch_size=size,
        replacement=replaced,
        _loss=point,
    )


def _not_optimal(norm: float, allowed: float, size: float, mean: Array, hessian: Any) -> str:
    text = (
        f"the point is no optimum: the mean gradient has norm {norm:.6g}, {norm / size if size else math.inf:.3g} of "
        f"the root mean square {size:.6g} of the examples' own, and {allowed:.3g} is allowed."
    )
    if isinstance(hessian, np.ndarray):
        step = np.asarray(scipy.linalg.lstsq(hessian, mean)[0])
        length, gain = float(np.linalg.norm(step)), 0.5 * float(mean @ step)
        text += f" A Newton step of length {length:.3g} would lower the loss by about {gain:.3g}."
    return text + " Minimise further, or allow more by gradient_tolerance=..."
