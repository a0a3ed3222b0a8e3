"""The front door for PyTorch: recorded runs, and what it says and refuses."""

import keras
import numpy as np
import pytest

if keras.backend.backend() != "torch":
    pytest.skip("for PyTorch", allow_module_level=True)

import torch
from torch import nn

from keras_plasticity.native.torch import ContinualBackprop
from tests.data import check
from tests.native import traces


def run_trace(trace):
    """An implementation for `tests/data/check.py`."""
    config = trace["config"]
    model = _build(config)
    layers = [each for each in model if hasattr(each, "weight")]
    for i, layer in enumerate(layers):
        weight = _to_torch(trace[f"init_kernel_{i}"], config, i)
        layer.weight.data = torch.tensor(weight)
        layer.bias.data = torch.tensor(trace[f"init_bias_{i}"])

    def initialize(layer):
        nn.init.constant_(layer.weight, config["new_incoming_weight"])
        nn.init.zeros_(layer.bias)

    optimizer = torch.optim.SGD(model.parameters(), config["learning_rate"])
    plasticity = ContinualBackprop(
        model, optimizer, initialize=initialize, **traces.settings(trace)
    )
    recorder, losses = traces.Recorder(), []
    for x, y in zip(trace["x"], trace["y"]):
        optimizer.zero_grad()
        loss = _loss(config, model, x, y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        state = plasticity.state_dict().values()
        recorder.note([(each["age"], each["utility"]) for each in state])
    assert (
        list(plasticity.num_replaced.values())
        == config["replacements_per_layer"]
    )
    results = {"losses": losses, **recorder.results()}
    for i, layer in enumerate(layers):
        kernel = layer.weight.detach().numpy()
        results[f"final_kernel_{i}"] = _to_keras(kernel, config, i)
        results[f"final_bias_{i}"] = layer.bias.detach().numpy()
    return results


def _build(config):
    if config["kind"] == "dense":
        sizes, layers = config["dims"], []
    else:
        layers = []
        for a, b in zip(config["channels"], config["channels"][1:]):
            layers += [
                nn.Conv2d(a, b, config["kernel"]),
                nn.ReLU(),
                nn.MaxPool2d(config["pool"]),
            ]
        layers.append(nn.Flatten())
        features = nn.Sequential(*layers)(
            torch.zeros(1, config["channels"][0], *[config["side"]] * 2)
        )
        sizes = [features.shape[1], *config["dense"]]
    for a, b in zip(sizes, sizes[1:]):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _loss(config, model, x, y):
    x = torch.tensor(x)
    outputs = model(x.movedim(-1, 1) if config["kind"] == "conv" else x)
    if config["loss"] == "mse":
        return nn.functional.mse_loss(outputs, torch.tensor(y))
    y = torch.tensor(y).long().flatten()
    return nn.functional.cross_entropy(outputs, y)


def _is_flattened(config, i):
    return config["kind"] == "conv" and i == len(config["channels"]) - 1


def _to_torch(kernel, config, i):
    """From channels last; the first dense layer reads positions of each."""
    if kernel.ndim == 4:
        return kernel.transpose(3, 2, 0, 1).copy()
    if _is_flattened(config, i):
        kernel = kernel.reshape(-1, config["channels"][-1], kernel.shape[-1])
        kernel = kernel.swapaxes(0, 1).reshape(-1, kernel.shape[-1])
    return kernel.T.copy()


def _to_keras(kernel, config, i):
    if kernel.ndim == 4:
        return kernel.transpose(2, 3, 1, 0)
    kernel = kernel.T
    if _is_flattened(config, i):
        kernel = kernel.reshape(config["channels"][-1], -1, kernel.shape[-1])
        kernel = kernel.swapaxes(0, 1).reshape(-1, kernel.shape[-1])
    return kernel


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * name.startswith("dense"))
        for name in traces.NAMES
    ],
)
def test_recorded_run(name):
    trace = check.load(name)
    assert check.differences(trace, run_trace(trace)) == []


def _train(model, optimizer, steps=60, shape=(8, 4), seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(shape, generator=generator)
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def _network():
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))


@pytest.mark.parametrize(
    ("make_optimizer", "names"),
    [
        (
            lambda p: torch.optim.Adam(p, amsgrad=True),
            {"exp_avg", "exp_avg_sq"},
        ),
        (lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), {"momentum_buffer"}),
        (
            lambda p: torch.optim.Adagrad(p, initial_accumulator_value=2.0),
            {"sum"},
        ),
        (lambda p: torch.optim.Rprop(p, lr=0.03), {"prev", "step_size"}),
        (lambda p: torch.optim.NAdam(p), {"exp_avg", "exp_avg_sq"}),
    ],
)
def test_a_new_unit_begins_anew(make_optimizer, names):
    torch.manual_seed(0)
    model = _network()
    optimizer = make_optimizer(model.parameters())
    first, last = model[0], model[2]

    def initialize(layer):
        nn.init.constant_(layer.weight, 0.25)
        nn.init.constant_(layer.bias, 0.5)

    # Each mature unit at once, which is all of them after the 11th update.
    ContinualBackprop(
        model,
        optimizer,
        replacement_rate=1.0,
        maturity_threshold=10,
        initialize=initialize,
    )
    _train(model, optimizer, steps=10)
    assert not (first.weight == 0.25).any() and (last.weight != 0).all()
    _train(model, optimizer, steps=1)
    assert (first.weight == 0.25).all() and (first.bias == 0.5).all()
    assert (last.weight == 0).all() and (last.bias != 0).all()
    initial = {"sum": 2.0, "step_size": 0.03}
    for parameter in (first.weight, first.bias, last.weight):
        state = optimizer.state[parameter]
        assert names <= state.keys()
        for name in names:
            expected = torch.full_like(parameter, initial.get(name, 0.0))
            torch.testing.assert_close(state[name], expected)
    # The bias of the layer that reads has nothing to do with one unit.
    assert any((optimizer.state[last.bias][name] != 0).any() for name in names)


def test_only_the_least_useful_unit():
    torch.manual_seed(0)
    model = _network()
    with torch.no_grad():
        model[2].weight[:, 3] *= 1e-4
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    before = [p.detach().clone() for p in model.parameters()]
    plasticity = ContinualBackprop(
        model, optimizer, replacement_rate=0.2, maturity_threshold=4
    )
    _train(model, optimizer, steps=5)
    assert plasticity.num_replaced == {"0": 1}
    after = [p.detach() for p in model.parameters()]
    moved = [(a - b).abs() > 0.01 for a, b in zip(after, before)]
    assert moved[0].any(dim=1).tolist() == [i == 3 for i in range(6)]
    assert (after[2][:, 3] == 0).all()
    assert not moved[3].any()


def test_batch_normalization_and_the_layer_s_own_initialization():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.BatchNorm1d(27),
        nn.Linear(27, 2),
    )
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    ContinualBackprop(
        model, optimizer, replacement_rate=1.0, maturity_threshold=2
    )
    _train(model, optimizer, steps=3, shape=(8, 2, 8, 8))
    for index in (1, 5):
        norm = model[index]
        for tensor, value in (
            (norm.weight, 1),
            (norm.bias, 0),
            (norm.running_mean, 0),
            (norm.running_var, 1),
        ):
            assert (tensor == value).all()
        assert norm.num_batches_tracked == 3
    # As PyTorch draws it: uniform up to one over the root of the fan-in.
    assert model[0].weight.abs().max() <= 18**-0.5
    assert len(model[0].weight.unique()) == 54


def test_state_is_saved_and_restored():
    def build():
        torch.manual_seed(3)
        model = _network()
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        plasticity = ContinualBackprop(
            model,
            optimizer,
            replacement_rate=0.03,
            maturity_threshold=3,
            initialize=lambda layer: nn.init.constant_(layer.weight, 0.1),
        )
        return model, optimizer, plasticity

    model, optimizer, plasticity = build()
    _train(model, optimizer, 50)
    saved = [each.state_dict() for each in (model, optimizer, plasticity)]
    saved = torch.utils._pytree.tree_map(
        lambda x: x.clone() if torch.is_tensor(x) else x, saved
    )
    _train(model, optimizer, 50, seed=1)
    resumed = build()
    for each, state in zip(resumed, saved):
        each.load_state_dict(state)
    _train(*resumed[:2], 50, seed=1)
    assert plasticity.num_replaced == resumed[2].num_replaced
    assert plasticity.num_replaced["0"] > 10
    for a, b in zip(model.parameters(), resumed[0].parameters()):
        assert torch.equal(a, b)


class _Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.inner = nn.Linear(4, 5)
        self.outer = nn.Linear(5, 4)
        self.last = nn.Linear(4, 2)

    def forward(self, x):
        x = torch.relu(self.first(x))
        return self.last(x + self.outer(nn.functional.gelu(self.inner(x))))


def test_what_is_skipped_and_why():
    model = _Residual()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    plasticity = ContinualBackprop(model, optimizer)
    assert list(plasticity.num_replaced) == ["inner"]
    assert plasticity.skipped == {
        "first": "2 operations read it",
        "outer": "'add' does not hand its units on",
        "last": "outputs of the model",
    }


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        # Another axis than the units'.
        ([nn.Conv2d(1, 4, 3), nn.Linear(4, 2)], "as features"),
        ([nn.Linear(4, 4), nn.MaxPool1d(2), nn.Linear(2, 2)], "on"),
        ([nn.Linear(4, 6), nn.Flatten(), nn.Linear(12, 2)], "12 features of 6"),
        ([nn.Linear(4, 6), nn.Softmax(-1), nn.Linear(6, 2)], "on"),
        ([nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, groups=2)], "in parts"),
        ([nn.Conv2d(1, 4, 3), nn.Flatten(2), nn.Linear(4, 3)], "on"),
    ],
)
def test_what_cannot_be_followed(layers, reason):
    model = nn.Sequential(*layers)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(
        ValueError, match=f"none can be followed: 0: .*{reason}"
    ):
        ContinualBackprop(model, optimizer)


class _Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x):
        if x.sum() > 0:
            x = -x
        return self.b(torch.relu(self.a(x)))


def test_connections_of_a_model_that_cannot_be_traced():
    model = _Branching()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(ValueError, match="`connections` must be given"):
        ContinualBackprop(model, optimizer)
    plasticity = ContinualBackprop(
        model,
        optimizer,
        replacement_rate=0.1,
        maturity_threshold=0,
        connections={"a": "b"},
    )
    _train(model, optimizer, steps=10)
    assert plasticity.num_replaced == {"a": 6}
    with pytest.raises(ValueError, match="names of `Linear`.*Received"):
        ContinualBackprop(model, optimizer, connections={"a": "c"})


def test_evaluation_frozen_layers_and_the_end():
    model = _network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    plasticity = ContinualBackprop(
        model, optimizer, replacement_rate=1.0, maturity_threshold=0
    )
    model.eval()
    _train(model, optimizer, 3)
    model.train()
    with torch.no_grad():
        model(torch.ones(2, 4))
    model[0].weight.requires_grad = False
    _train(model, optimizer, 3)
    assert plasticity.num_replaced == {"0": 0}
    assert (plasticity.state_dict()["0"]["age"] == 0).all()
    model[0].weight.requires_grad = True
    _train(model, optimizer, 3)
    assert plasticity.num_replaced == {"0": 18}
    plasticity.remove()
    _train(model, optimizer, 3)
    assert plasticity.num_replaced == {"0": 18}


def test_a_pass_without_a_backward_pass_leaves_nothing_behind():
    model = _network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    plasticity = ContinualBackprop(model, optimizer)
    model(torch.ones(2, 4))
    optimizer.step()
    assert (plasticity.state_dict()["0"]["age"] == 0).all()
    model(torch.zeros(2, 4))  # Nor does it count.
    model(torch.ones(2, 4)).sum().backward()
    expected = model[:2](torch.ones(4)).detach()
    optimizer.step()
    torch.testing.assert_close(
        plasticity.state_dict()["0"]["mean_activation"], expected
    )


def test_several_batches_of_one_step_are_one_batch():
    def after(batches):
        torch.manual_seed(0)
        model = _network()
        optimizer = torch.optim.SGD(model.parameters(), 0.0)
        plasticity = ContinualBackprop(
            model, optimizer, utility="mean_corrected_contribution"
        )
        for batch in batches:
            model(batch).mean().backward()
        optimizer.step()
        return plasticity.state_dict()["0"]

    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    one, two = after([x]), after([x[:3], x[3:]])
    for name in ("age", "utility", "mean_activation"):
        torch.testing.assert_close(one[name], two[name])
    assert (one["age"] == 1).all() and (one["utility"] > 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "network"}, "`model` must be a `torch.nn.Module"),
        ({"optimizer": "adam"}, "`optimizer` must be a `torch.optim.Optimiz"),
        ({"replacement_rate": 2.0}, "`replacement_rate` must be"),
        ({"maturity_threshold": -1}, "`maturity_threshold` must be"),
        ({"decay_rate": 1.0}, "`decay_rate` must be"),
        ({"utility": "random"}, "a utility that is computed, not 'random'"),
        ({"utility": "best"}, "`utility` must be one of"),
        ({"initialize": 0.1}, "`initialize` must be a function"),
        ({"connections": ["a"]}, "`connections` must be"),
    ],
)
def test_bad_arguments(arguments, message):
    model = _network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises((TypeError, ValueError), match=message):
        ContinualBackprop(
            **{"model": model, "optimizer": optimizer, **arguments}
        )


def test_a_state_of_another_model():
    model = _network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    plasticity = ContinualBackprop(model, optimizer)
    with pytest.raises(ValueError, match="the state of the layers 0. Received"):
        plasticity.load_state_dict({"1": {}})
    np.testing.assert_array_equal(plasticity.state_dict()["0"]["age"], 0)
