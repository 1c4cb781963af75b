"""Small networks from a seed, architecture from arguments; their losses as functions of one vector; and digits."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from ..errors import InvalidProblemError
from ..numerics._arrays import choice, flag, nonnegative, random_generator, tuple_of, whole_number
from ._functional import FlatModel
from ._output_losses import Loss, OutputLoss, per_example_loss

__all__ = ["cnn", "digits", "flat_loss", "mlp"]

#: Smooth and not: the local quadratic of a loss wants a smooth one.
ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "softplus": nn.Softplus, "gelu": nn.GELU}
#: A layer without values of its own, so that nothing is drawn from PyTorch's global generator.
BARE: dict[str, Any] = {"dtype": torch.float64, "device": "meta"}
#: Of any one width, kernel or side, and the weights of any one layer: what double precision holds in 8 GB.
LARGEST = 10**9
Activation = Literal["tanh", "relu", "softplus", "gelu"]


def mlp(
    widths: Sequence[int] = (64, 16, 1), *, activation: Activation = "tanh", rng: np.random.Generator | int | None = 0
) -> nn.Sequential:
    """A fully connected network in double precision.

    Parameters
    ----------
    widths : sequence of int
        Inputs, hidden units of every layer, outputs.
    activation : {"tanh", "relu", "softplus", "gelu"}
        After every layer but the last.
    rng : numpy.random.Generator or int, optional
        Of the weights, which are normal with variance ``1/inputs`` of their layer; biases are 0.

    Returns
    -------
    torch.nn.Sequential
        From (n, inputs), or anything that flattens to it, to (n, outputs).

    Raises
    ------
    InvalidProblemError
        If an argument does not fit.

    Examples
    --------
    >>> model = mlp((64, 14, 10))
    >>> sum(p.numel() for p in model.parameters())  # 64*14 + 14 + 14*10 + 10
    1060
    """
    sizes = [_size("widths", width) for width in tuple_of("widths", widths)]
    if len(sizes) < 2:
        raise InvalidProblemError(f"widths must name inputs and outputs at least, got {tuple(widths)}.")
    generator = random_generator(rng)
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in itertools.pairwise(sizes):
        layer = _layer(nn.Linear, fan_in, fan_out)
        layers += [_initialised(layer, fan_in, generator), _activation(activation)]
    return nn.Sequential(*layers[:-1])


def cnn(
    channels: Sequence[int] = (1, 6, 10),
    outputs: int = 1,
    *,
    image: tuple[int, int] = (8, 8),
    kernel: int = 3,
    stride: int = 2,
    activation: Activation = "tanh",
    rng: np.random.Generator | int | None = 0,
) -> nn.Sequential:
    """A convolutional network in double precision, with one linear layer on top.

    Parameters
    ----------
    channels : sequence of int
        Of the image, and after every convolution.
    outputs : int
    image : (height, width)
    kernel, stride : int
        Of every convolution; the padding is ``kernel // 2``.
    activation : {"tanh", "relu", "softplus", "gelu"}
        After every convolution.
    rng : numpy.random.Generator or int, optional
        Of the weights, which are normal with variance ``1/inputs`` of their layer; biases are 0.

    Returns
    -------
    torch.nn.Sequential
        From (n, channels, height, width) to (n, outputs).

    Raises
    ------
    InvalidProblemError
        If an argument does not fit.

    Examples
    --------
    >>> cnn((1, 4), outputs=10)(torch.zeros(3, 1, 8, 8, dtype=torch.float64)).shape
    torch.Size([3, 10])
    """
    sizes = [_size("channels", channel) for channel in tuple_of("channels", channels)]
    kernel, stride, outputs = _size("kernel", kernel), _size("stride", stride), _size("outputs", outputs)
    if len(sizes) < 2:
        raise InvalidProblemError(f"channels must name those of the image and one more, got {tuple(channels)}.")
    generator = random_generator(rng)
    layers: list[nn.Module] = []
    sides = [_size("image", side) for side in tuple_of("image", image)]
    if len(sides) != 2:
        raise InvalidProblemError(f"image must be (height, width), got {image!r}.")
    height, width = sides
    for fan_in, fan_out in itertools.pairwise(sizes):
        layer = _layer(nn.Conv2d, fan_in, fan_out, kernel, stride=stride, padding=kernel // 2)
        layers += [_initialised(layer, fan_in * kernel**2, generator), _activation(activation)]
        height, width = ((side + 2 * (kernel // 2) - kernel) // stride + 1 for side in (height, width))
        if min(height, width) < 1:
            raise InvalidProblemError(f"nothing is left of an image of {image} after {len(sizes) - 1} convolutions.")
    flat = sizes[-1] * height * width
    head = _layer(nn.Linear, flat, outputs)
    return nn.Sequential(*layers, nn.Flatten(), _initialised(head, flat, generator))


def flat_loss(
    model: torch.nn.Module, loss: Loss = "cross_entropy", *, l2: float = 0.0, device: str | torch.device = "cpu"
) -> tuple[FlatLoss, torch.Tensor]:
    """A network's loss of one example as a function of one vector of all weights, and the weights it has.

    Parameters
    ----------
    model : torch.nn.Module
        Not changed; refused in training mode with dropout or batch normalisation.
    loss : {"cross_entropy", "squared", "logistic"} or callable
        Labels are classes 0 to K-1, targets, or -1 and 1. A callable maps outputs (n, K) and y to n losses; a loss
        module of PyTorch is asked for every example's own.
    l2 : float
        Adds ``l2 |w|^2 / 2``.
    device : str or torch.device

    Returns
    -------
    loss : callable
        ``loss(w, x, y)`` for `local_quadratic`.
    weights : torch.Tensor, shape (P,)

    Raises
    ------
    InvalidProblemError
        If the model is no fixed function of its inputs.

    Examples
    --------
    >>> loss, w = flat_loss(mlp((2, 1)), "squared")
    >>> float(loss(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 1.0]), torch.tensor(4.0)))  # (1 + 2 + 3 - 4)^2 / 2
    2.0
    """
    flat = FlatModel(model, device)
    return FlatLoss(flat, per_example_loss(loss), nonnegative("l2", l2)), flat.start.clone()


@dataclass(frozen=True)
class FlatLoss:
    """``loss(w, x, y)`` of one example; what `flat_loss` returns."""

    flat: FlatModel
    each: OutputLoss
    l2: float

    def __call__(self, w: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        found = self.each(self.flat(w, x.unsqueeze(0)), y.unsqueeze(0)).squeeze(0)
        return found + 0.5 * self.l2 * (w @ w) if self.l2 else found

    def fitting(self, w: torch.Tensor, data: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """All the data at once as the model and the loss take it: what cannot be looked at example by example.

        Raises
        ------
        InvalidProblemError
            If the model or the loss does not take it, or outputs of one example depend on the others.
        """
        if len(data) != 2 or w.shape != self.flat.start.shape:
            raise InvalidProblemError(
                f"the loss of a network takes weights of shape ({self.flat.size},) and data (x, y), got weights of "
                f"shape {tuple(w.shape)} and {len(data)} arrays."
            )
        x = self.flat.fitting(data[0])
        self.each(self.flat.check(x), data[1])
        return x, data[1]


def digits(
    examples: int = 100,
    *,
    classes: Sequence[int] | None = None,
    images: bool = False,
    rng: np.random.Generator | int | None = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Some of scikit-learn's 8 x 8 handwritten digits, pixels between 0 and 1.

    Parameters
    ----------
    examples : int
        Drawn without repetition.
    classes : sequence of int, optional
        Which digits; all ten by default.
    images : bool
        Whether inputs have shape (n, 1, 8, 8) and not (n, 64).
    rng : numpy.random.Generator or int, optional
        Which examples are drawn.

    Returns
    -------
    x : torch.Tensor
    y : torch.Tensor, shape (n,)
        For two classes -1 and 1 (the second); otherwise the index of the class.

    Raises
    ------
    InvalidProblemError
        If there are not so many examples.

    Examples
    --------
    >>> x, y = digits(50, classes=(3, 8))
    >>> x.shape, y.unique()
    (torch.Size([50, 64]), tensor([-1.,  1.], dtype=torch.float64))
    """
    from sklearn.datasets import load_digits

    generator, count = random_generator(rng), _size("examples", examples)
    wanted = list(range(10)) if classes is None else [whole_number("classes", c) for c in tuple_of("classes", classes)]
    images = flag("images", images)
    pixels, labels = load_digits(return_X_y=True)
    known = np.flatnonzero(np.isin(labels, wanted))
    if count > len(known):
        raise InvalidProblemError(f"there are {len(known)} digits of the classes {wanted}, got examples={examples}.")
    drawn = generator.permutation(known)[:count]
    x = torch.tensor(pixels[drawn] / 16.0, dtype=torch.float64)
    index = torch.tensor([wanted.index(label) for label in labels[drawn]])
    y = 2.0 * index.double() - 1.0 if len(wanted) == 2 else index
    return (x.view(-1, 1, 8, 8) if images else x), y


def _layer(kind: Callable[..., nn.Module], fan_in: int, fan_out: int, kernel: int = 1, **options: int) -> nn.Module:
    """A layer without values."""
    count = fan_in * fan_out * kernel**2
    if count > LARGEST:
        raise InvalidProblemError(f"a layer would have {count:.1e} weights, and {LARGEST:.0e} is the most taken here.")
    sides = (kernel,) if options else ()
    return kind(fan_in, fan_out, *sides, **options, **BARE).to_empty(device="cpu")


def _initialised(layer: nn.Module, fan_in: int, generator: np.random.Generator) -> nn.Module:
    weight, bias = layer.weight, layer.bias
    if not isinstance(weight, torch.Tensor) or not isinstance(bias, torch.Tensor):
        raise TypeError(f"{layer} has no weight and bias")
    with torch.no_grad():
        weight.copy_(torch.from_numpy(generator.standard_normal(tuple(weight.shape)) / np.sqrt(fan_in)))
        bias.zero_()
    return layer


def _activation(name: str) -> nn.Module:
    return ACTIVATIONS[choice("activation", name, tuple(ACTIVATIONS))]()


def _size(name: str, value: int) -> int:
    return whole_number(name, value, least=1, most=LARGEST)
