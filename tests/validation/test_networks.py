"""Networks, losses and data of every kind that people have: they work, or are refused with what to do."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sgdcov.errors import InvalidProblemError
from sgdcov.validation import LinearizedNetwork, fgsm, flat_loss, local_quadratic, mlp, pgd

X = torch.rand(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
CLASSES = torch.tensor([0, 1, 2, 0, 1, 2])


class Wrapped(nn.Module):
    """A model that hands its outputs out in its own way."""

    def __init__(self, model, how):
        super().__init__()
        self.model, self.how = model, how

    def forward(self, x):
        return self.how(self.model(x))


class LastState(nn.Module):
    def __init__(self, batch_first):
        super().__init__()
        torch.manual_seed(0)
        self.lstm, self.head = nn.LSTM(3, 2, batch_first=batch_first), nn.Linear(2, 1)

    def forward(self, x):
        return self.head(self.lstm(x)[0])[:, -1]


def local(loss, data, model=None, **options):
    """The local quadratic anywhere: no gradient is too large."""
    made, w = flat_loss(model or mlp((4, 3)), loss, **options)
    return local_quadratic(made, w, data, batch_size=1, gradient_tolerance=1e9)


def mean_loss(loss, data):
    made, w = flat_loss(mlp((4, 3)), loss)
    return float(np.mean([float(made(w, x, y).detach()) for x, y in zip(*data, strict=True)]))


def test_what_mixes_examples_along_the_batch_is_refused_wherever_it_shows():
    """A recurrent layer that takes the batch for a sequence leaves the first example as it is by itself."""
    x = torch.rand(5, 7, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = torch.zeros(5, dtype=torch.float64)
    with pytest.raises(InvalidProblemError, match=r"depends on the rest of the batch .* batch_first=True"):
        LinearizedNetwork(LastState(batch_first=False), x, y)
    with pytest.raises(InvalidProblemError, match="depends on the rest of the batch"):
        local("squared", (x, y), LastState(batch_first=False))
    assert LinearizedNetwork(LastState(batch_first=True), x, y).num_examples == 5
    centred = Wrapped(mlp((4, 1)), lambda out: out - out.flip(0).cumsum(0).flip(0) / 9)  # the last is alone here
    with pytest.raises(InvalidProblemError, match="depends on the rest of the batch"):
        LinearizedNetwork(centred, X, torch.zeros(6))


@pytest.mark.parametrize("how", [lambda out: {"logits": out}, lambda out: (out, None)], ids=["dict", "tuple"])
def test_outputs_that_are_no_tensor_are_refused(how):
    model = Wrapped(mlp((4, 3)), how)
    with pytest.raises(InvalidProblemError, match=r"returns a (dict|tuple), not a tensor .* wrap it"):
        LinearizedNetwork(model, X, CLASSES, loss="cross_entropy", l2=0.1)
    with pytest.raises(InvalidProblemError, match=r"returns a (dict|tuple), not a tensor .* wrap it"):
        local("cross_entropy", (X, CLASSES), model)
    for attack in (fgsm, pgd):
        with pytest.raises(InvalidProblemError, match=r"returns a (dict|tuple)"):
            attack(model, X, CLASSES, 0.1)


def test_outputs_that_lose_the_examples_are_refused():
    with pytest.raises(InvalidProblemError, match=r"outputs of shape \(3,\) of 1 inputs"):
        LinearizedNetwork(Wrapped(mlp((4, 3)), lambda out: out.sum(dim=0)), X, CLASSES, loss="cross_entropy", l2=0.1)


@pytest.mark.parametrize(
    ("loss", "y", "says"),
    [
        ("logistic", torch.tensor([0, 1, 0, 1, 0, 1]), r"-1 and 1; of labels 0 and 1 make 2\*y - 1; got 0 \(and 2"),
        ("cross_entropy", torch.tensor([0, 0.9, 2, 0, 1, 2]), "classes 0 to 2; got 0.9"),
        ("cross_entropy", torch.tensor([0, 1, 7, 0, 1, 2]), "classes 0 to 2; got 7"),
        ("cross_entropy", torch.tensor([0, 1, -1, 0, 1, 2]), "classes 0 to 2; got -1"),
        ("cross_entropy", torch.zeros(6, 2), "one class for each example"),
        ("squared", CLASSES, "one target for each output"),
        (lambda out, y: (out[:, 0] - y).mean(), CLASSES, "one number per example"),
        (nn.CrossEntropyLoss(weight=torch.ones(3)), CLASSES, r"divides by the weights .* reduction='none'"),
    ],
)
def test_labels_are_what_the_loss_takes_them_for(loss, y, says):
    model = mlp((4, 1)) if loss == "logistic" else mlp((4, 3))
    with pytest.raises(InvalidProblemError, match=says):
        local(loss, (X, y), model)
    with pytest.raises(InvalidProblemError, match=says):
        pgd(model, X, y, 0.1, loss=loss)


def test_labels_of_any_type_that_says_the_same_are_the_same():
    for y in (CLASSES, CLASSES.double(), CLASSES.to(torch.uint8), CLASSES.numpy()):
        np.testing.assert_allclose(local("cross_entropy", (X, y)).noise, local("cross_entropy", (X, CLASSES)).noise)
    signs, model = torch.tensor([1, -1, 1, 1, -1, 1]), mlp((4, 1))
    np.testing.assert_allclose(
        local("logistic", (X, signs), model).noise, local("logistic", (X, signs.float()), model).noise
    )
    ones = torch.ones(6, dtype=torch.uint8)  # the negative of an unsigned 1 is 255
    np.testing.assert_allclose(
        local("logistic", (X, ones), model).noise, local("logistic", (X, ones.double()), model).noise
    )


def test_a_loss_module_of_pytorch_is_every_example_s_own():
    weights = torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64)
    model, data = mlp((4, 3)).requires_grad_(False), (X, CLASSES)
    plain = nn.CrossEntropyLoss()
    assert mean_loss(plain, data) == pytest.approx(float(plain(model(X), CLASSES)))
    weighted = nn.CrossEntropyLoss(weight=weights, reduction="none")
    assert mean_loss(weighted, data) == pytest.approx(float(weighted(model(X), CLASSES).mean()))
    targets = torch.rand(6, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert mean_loss(nn.MSELoss(), (X, targets)) == pytest.approx(float(nn.MSELoss()(model(X), targets)))
    assert local(weighted, data).value == pytest.approx(float(weighted(model(X), CLASSES).mean()))
    torch.testing.assert_close(pgd(model, X, CLASSES, 0.1, loss=plain), pgd(model, X, CLASSES, 0.1))


def test_integer_inputs_stay_integers_where_something_is_looked_up():
    torch.manual_seed(0)
    tokens, y = torch.randint(0, 5, (6, 2)), torch.zeros(6, dtype=torch.float64)
    net = LinearizedNetwork(nn.Sequential(nn.Embedding(5, 2), nn.Flatten(), nn.Linear(4, 1)), tokens, y, l2=0.1)
    assert net.x.dtype == torch.int64
    np.testing.assert_allclose(net.predictions(net.start, tokens), net.predictions(net.start))
    pixels = (16 * X).long()
    whole, real = (LinearizedNetwork(mlp((4, 1)), x, y, l2=0.1) for x in (pixels, pixels.double()))
    np.testing.assert_allclose(whole.singular_values, real.singular_values)
    assert local("squared", (pixels, y), mlp((4, 1))).dim == 5


def test_what_is_not_data_is_refused_with_how_to_make_it():
    dataset = TensorDataset(X, CLASSES)
    for given in (dataset, DataLoader(dataset)):
        with pytest.raises(InvalidProblemError, match="not the data: give tensors"):
            LinearizedNetwork(mlp((4, 3)), given, CLASSES, loss="cross_entropy", l2=0.1)
        with pytest.raises(InvalidProblemError, match="not the data: give tensors"):
            local("cross_entropy", given)
    masked = np.ma.masked_less(X.numpy(), 0.5)
    for bad in (X.to_sparse(), X.to(torch.complex128), [["a"] * 4], [[1.0], [1.0, 2.0]], masked):
        with pytest.raises(InvalidProblemError):
            LinearizedNetwork(mlp((4, 3)), bad, CLASSES, loss="cross_entropy", l2=0.1)
        with pytest.raises(InvalidProblemError):
            local("cross_entropy", (bad, CLASSES))


def test_single_precision_models_take_data_in_double():
    y = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0, 1.0])
    single = mlp((4, 1)).float()
    assert LinearizedNetwork(single, X, y, l2=0.1).singular_values.dtype == np.float64
    assert local("squared", (X, y), single).dim == 5
    for attack in (fgsm, pgd):
        with pytest.raises(InvalidProblemError, match=r"float64 .*float32\. Types agree after model.double\(\)"):
            attack(single, X, y, 0.1, loss="logistic")
    makes_its_own = Wrapped(mlp((4, 1)), lambda out: out @ torch.ones(1, 1))
    with pytest.raises(InvalidProblemError, match="must have the type of its input"):
        LinearizedNetwork(makes_its_own, X, y)


def test_a_device_that_is_none_is_refused():
    for device in ("nowhere", "cuda:99", 3.5):
        with pytest.raises(InvalidProblemError, match="device must name a device"):
            LinearizedNetwork(mlp((4, 1)), X, torch.zeros(6), device=device)
