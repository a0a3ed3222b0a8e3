"""Continual backpropagation for a `torch.nn.Module` and its own optimizer."""

import copy
from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from keras_plasticity import functional
from keras_plasticity import validation
from keras_plasticity.native import torch_graph
from keras_plasticity.native import unit_statistics
from keras_plasticity.types import Tensor

unit_statistics.check_backend("torch")

# Slots of `torch.optim` that begin at a setting, and not at zero.
_SLOTS_FROM_SETTINGS = {"sum": "initial_accumulator_value", "step_size": "lr"}


class ContinualBackprop:
    """Replaces the least useful units after each step of a PyTorch optimizer.

    It is what `keras_plasticity.optimizers.ContinualBackprop` is to a Keras
    model: the same formulas, for a `torch.nn.Module`. The training loop stays
    as it is: units are observed in the backward passes through a model in
    training mode, all of those since the last step together, and replaced at
    the end of `optimizer.step()`.

    The units of `Linear` and of convolutional layers can be replaced that one
    other of these layers reads, through activations, pooling, dropout, batch
    normalization and `Flatten`. Who reads whom is found by `torch.fx`;
    `skipped` says of every other layer why its units are left alone.

    A new unit's weights are those of a newly initialized layer of its kind; its
    outgoing weights and the entries of both in the optimizer's state begin
    anew.

    Args:
        model: `torch.nn.Module`, on the device that it will be trained on.
        optimizer: `torch.optim.Optimizer` of its parameters.
        replacement_rate: Float in [0, 1], the fraction of mature units that
            is replaced in each update. Defaults to `1e-4`.
        maturity_threshold: Integer, the number of updates for which a new
            unit cannot be replaced. Defaults to `100`.
        decay_rate: Float in [0, 1), of the running means. Defaults to `0.99`.
        utility: How useful a unit is: see
            `keras_plasticity.optimizers.ContinualBackprop`, but `"random"`.
            Defaults to `"contribution"`.
        initialize: Function that gives a layer new weights in place, such as
            one for `Module.apply`. Defaults to `None`: the layer's own
            `reset_parameters()`.
        connections: Dict from the name of a layer to that of the one that
            reads it, for a model that `torch.fx` cannot trace. Defaults to
            `None`: they are found.

    Raises:
        ValueError: If the model cannot be traced, or has no units that can be
            replaced.

    Example:

    ```python
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 50), torch.nn.ReLU(), torch.nn.Linear(50, 3)
    )
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    plasticity = ContinualBackprop(model, optimizer, replacement_rate=1e-3)
    for _ in range(200):
        x = torch.randn(32, 4)
        loss = torch.nn.functional.mse_loss(model(x), x[:, :3] ** 2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    plasticity.num_replaced  # {"0": 4}, about
    ```

    References:

    - [Dohare et al., 2024](https://doi.org/10.1038/s41586-024-07711-7)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        replacement_rate: float = 1e-4,
        maturity_threshold: int = 100,
        decay_rate: float = 0.99,
        utility: str | Callable[..., Tensor] = "contribution",
        initialize: Callable[[nn.Module], Any] | None = None,
        connections: Mapping[str, str] | None = None,
    ):
        validation.check_type("model", model, nn.Module, "a `torch.nn.Module`")
        validation.check_type(
            "optimizer",
            optimizer,
            torch.optim.Optimizer,
            "a `torch.optim.Optimizer`",
        )
        if initialize is not None:
            validation.check_function("initialize", initialize)
        self._settings = unit_statistics.Settings(
            replacement_rate, maturity_threshold, decay_rate, utility
        )
        self._optimizer = optimizer
        self._initialize = initialize or _reset_parameters
        self.skipped: dict[str, str] = {}
        if connections is None:
            found, self.skipped = torch_graph.find(model)
        else:
            validation.check_mapping("connections", connections)
            found = {name: (to, []) for name, to in connections.items()}
        modules = dict(model.named_modules())
        self._units = {}
        for name, (consumer, normalizations) in found.items():
            for key in (name, consumer):
                if not isinstance(modules.get(key), torch_graph.LAYERS):
                    rule = "names of `Linear` and convolutional layers"
                    raise validation.error("connections", rule, connections)
            self._units[name] = _Units(
                self._settings,
                modules[name],
                modules[consumer],
                [modules[each] for each in normalizations],
            )
        if not self._units:
            reasons = "; ".join(f"{k}: {v}" for k, v in self.skipped.items())
            raise ValueError(
                "`model` must have a `Linear` or convolutional layer that "
                "one other reads. Received a model in which none can be "
                f"followed: {reasons or 'it has no such layer'}"
            )
        self._hook = optimizer.register_step_post_hook(
            lambda *_: self._end_step()
        )

    @property
    def num_replaced(self) -> dict[str, int]:
        """Dict from the name of a layer to the units replaced so far."""
        return {name: each.num_replaced for name, each in self._units.items()}

    def state_dict(self) -> dict[str, Any]:
        """What has to be saved to resume, beside model and optimizer."""
        return {
            name: {
                "num_replaced": units.num_replaced,
                **units.statistics._asdict(),
            }
            for name, units in self._units.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]):
        """Takes the state of another one of the same model and settings.

        Args:
            state: Dict, the result of `state_dict`.
        """
        validation.check_mapping("state", state)
        if state.keys() != self._units.keys():
            rule = f"the state of the layers {', '.join(self._units)}"
            raise validation.error("state", rule, list(state))
        for name, units in self._units.items():
            values = dict(state[name])
            units.num_replaced = int(values.pop("num_replaced"))
            units.statistics = unit_statistics.UnitStatistics(
                **{
                    key: value.clone().to(units.layer.weight.device)
                    for key, value in values.items()
                }
            )

    def remove(self):
        """Ends it: from now on nothing is observed, and nothing replaced."""
        self._hook.remove()
        for units in self._units.values():
            units.hook.remove()

    @torch.no_grad()
    def _end_step(self):
        replaced = {
            name: units.update(self._settings)
            for name, units in self._units.items()
        }
        for name, mask in replaced.items():
            if mask is not None and mask.any():
                self._replace(self._units[name], mask)

    def _replace(self, units, mask):
        units.num_replaced += int(mask.sum())
        # Not by `deepcopy`, which would copy what hangs on the hooks.
        new = copy.copy(units.layer)
        new._parameters = {
            name: None if each is None else nn.Parameter(each.clone())
            for name, each in units.layer._parameters.items()
        }
        self._initialize(new)
        for name, parameter in units.layer.named_parameters(recurse=False):
            self._assign(parameter, mask, getattr(new, name))
        features = units.mask_of_features(mask)
        weight = units.consumer.weight.transpose(0, 1)
        self._assign(units.consumer.weight, features, None, weight)
        for layer in units.normalizations:
            for name, tensor in (
                *layer.named_parameters(recurse=False),
                *layer.named_buffers(recurse=False),
            ):
                if tensor.dim() == 1:
                    value = float(name in ("weight", "running_var"))
                    which = mask if len(tensor) == len(mask) else features
                    self._assign(tensor, which, torch.full_like(tensor, value))

    def _assign(self, parameter, mask, value, view=None):
        """Writes rows, or those of a view, and lets their slots begin anew."""
        rows = parameter if view is None else view
        rows[mask] = 0.0 if value is None else value[mask]
        for name, slot in self._optimizer.state.get(parameter, {}).items():
            if not torch.is_tensor(slot) or slot.shape != parameter.shape:
                continue  # Such as a count of steps.
            rows = slot if view is None else slot.transpose(0, 1)
            rows[mask] = self._first_value(parameter, name)

    def _first_value(self, parameter, name):
        if name not in _SLOTS_FROM_SETTINGS:
            return 0.0
        for group in self._optimizer.param_groups:
            if any(each is parameter for each in group["params"]):
                return float(group[_SLOTS_FROM_SETTINGS[name]])


class _Units:
    """The units of one layer, and the one layer that reads them."""

    def __init__(self, settings, layer, consumer, normalizations):
        self.layer, self.consumer = layer, consumer
        self.normalizations = normalizations
        self.num_replaced = 0
        self._size = len(layer.weight)
        self._copies = consumer.weight.shape[1] // self._size
        with torch.device(layer.weight.device):
            self.statistics = unit_statistics.new_statistics(
                settings, self._size
            )
        self._inputs = []
        self.hook = consumer.register_forward_pre_hook(self._observe)

    def _observe(self, consumer, inputs):
        (inputs, *_) = inputs
        if consumer.training and inputs.requires_grad:
            value = inputs.detach()
            # Once there are gradients: passes that no step follows would add
            # up in memory.
            inputs.register_hook(lambda _: self._inputs.append(value))

    def mask_of_features(self, mask):
        """Which features of the consumer belong to units of a mask."""
        return mask.repeat_interleave(self._copies)

    def update(self, settings):
        """Takes in what was observed; returns the mask of replaced units."""
        inputs, self._inputs = self._inputs, []
        weights = self.layer.weight, self.consumer.weight
        if not inputs or not all(each.requires_grad for each in weights):
            return None
        outgoing = functional.mean_magnitude(weights[1], 1)
        self.statistics, replaced = unit_statistics.update_statistics(
            settings,
            self.statistics,
            torch.cat([self._by_unit(each) for each in inputs]),
            outgoing.reshape(self._size, self._copies).T,
            functional.mean_magnitude(weights[0], 0),
        )
        return replaced

    def _by_unit(self, inputs):
        """Of shape `(examples, features a unit, units)`."""
        if isinstance(self.consumer, torch_graph.CONVOLUTIONS):
            inputs = inputs.movedim(1, -1)
        # `Flatten` has all positions of a channel side by side.
        return inputs.reshape(-1, self._size, self._copies).transpose(1, 2)


def _reset_parameters(layer):
    layer.reset_parameters()
