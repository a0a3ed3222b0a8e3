"""The engine's inner loop on PyTorch: a lean eager loop."""

import keras
import torch

from keras_plasticity.training import models_loop
from keras_plasticity.training import nests


class TorchLoop(models_loop.ModelsLoop):
    """Trains learners one after another, step by step."""

    def put(self, data):
        return nests.map_arrays(keras.ops.convert_to_tensor, data)

    def run(self, data):
        for learner, model in enumerate(self._models):
            _train(model, nests.take(data, learner))

    def compile(self, data):
        pass

    def evaluate(self, data):
        data = self.put(data)
        with torch.no_grad():
            for learner, model in enumerate(self._models):
                model.test_step(nests.take(data, learner))


def _train(model, data):
    """Makes one training step for each batch, and scores all of them."""
    if type(model).train_step is not keras.Model.train_step:
        for batch in _batches(data):
            model.train_step(batch)
        return
    optimizer = model.optimizer
    variables = model.trainable_variables
    # Looked up once: a Keras variable keeps its tensor and writes into it.
    tensors = [variable.value for variable in variables]
    losses, outputs = [], []
    for x, y, *weight in _batches(data):
        output = model(x, training=True)
        loss = model.compute_loss(x, y, output, *weight, training=True)
        for tensor in tensors:
            tensor.grad = None
        optimizer.scale_loss(loss).backward()
        with torch.no_grad():
            optimizer.apply([tensor.grad for tensor in tensors], variables)
        losses.append(loss.detach())
        outputs.append(output)
    # Metrics are sums over examples: one update with all of them is the same
    # as one for each batch, at a fraction of the calls.
    with torch.no_grad():
        loss_tracker = model.metrics[0]
        batch_size = nests.arrays(data)[0].shape[1]
        loss_tracker.update_state(
            torch.stack(losses), sample_weight=[batch_size] * len(losses)
        )
        outputs = keras.tree.map_structure(
            lambda *parts: torch.cat(parts).detach(), *outputs
        )
        x, y, *weight = nests.map_arrays(
            lambda tensor: torch.flatten(tensor, 0, 1), data
        )
        model.compute_metrics(x, y, outputs, *weight)


def _batches(data):
    """The data of one step after another."""
    steps = nests.arrays(data)[0].shape[0]
    return zip(*(_unstack(part, steps) for part in data))


def _unstack(nest, steps):
    """List with the entry of each step of the first axis of all arrays."""
    if isinstance(nest, torch.Tensor):
        return nest.unbind()  # One call for all.
    return [nests.take(nest, step) for step in range(steps)]
