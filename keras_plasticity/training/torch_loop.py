"""The engine's inner loop on PyTorch: a lean eager loop."""

import keras
import torch

from keras_plasticity.training import models_loop
from keras_plasticity.training import nests


class TorchLoop(models_loop.ModelsLoop):
    """Trains learners one after another, step by step."""

    def to_device(self, array):
        return keras.ops.convert_to_tensor(array)

    def run(self, data, batches):
        for learner, (model, part) in enumerate(zip(self._models, data)):
            _train(model, part, self.where(learner, batches), batches)

    def compile(self, data, batches):
        pass

    def evaluate(self, data, examples):
        with torch.no_grad():
            for model, part in zip(self._models, data):
                model.test_step(nests.take(part, examples))


def _train(model, data, where, batches):
    """Makes one training step for each batch, and scores all of them."""
    data = _in_order(data, where, batches)
    if type(model).train_step is not keras.Model.train_step:
        for batch in _split(data, batches):
            model.train_step(batch)
        return
    optimizer = model.optimizer
    variables = model.trainable_variables
    # Looked up once: a Keras variable keeps its tensor and writes into it.
    tensors = [variable.value for variable in variables]
    losses, outputs = [], []
    for x, y, *weight in _split(data, batches):
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
        model.metrics[0].update_state(
            torch.stack(losses), sample_weight=[batches.size] * len(losses)
        )
        outputs = keras.tree.map_structure(
            lambda *parts: torch.cat(parts).detach(), *outputs
        )
        x, y, *weight = data
        model.compute_metrics(x, y, outputs, *weight)


def _in_order(data, where, batches):
    """The examples of all steps, one after another."""
    if batches.order is not None:
        return nests.take(data, where.flatten().long())
    stop = batches.start + batches.steps * batches.size
    return nests.take(data, slice(batches.start, stop))


def _split(data, batches):
    """Yields the data of one step after another."""
    return zip(*(_split_nest(part, batches) for part in data))


def _split_nest(nest, batches):
    if isinstance(nest, torch.Tensor):
        return nest.split(batches.size)  # One call for all.
    return [
        nests.take(nest, slice(start, start + batches.size))
        for start in range(0, batches.steps * batches.size, batches.size)
    ]
