"""The engine's inner loop on PyTorch: a lean eager loop."""

import keras
import torch

from keras_plasticity.training import models_loop


class TorchLoop(models_loop.ModelsLoop):
    """Trains learners one after another, step by step."""

    def put(self, x, y):
        return keras.ops.convert_to_tensor(x), keras.ops.convert_to_tensor(y)

    def run(self, data):
        x, y = data
        for model, learner_x, learner_y in zip(self._models, x, y):
            _train(model, learner_x, learner_y)

    def compile(self, data):
        pass

    def evaluate(self, x, y):
        with torch.no_grad():
            for model, *batch in zip(self._models, *self.put(x, y)):
                model.test_step(tuple(batch))


def _train(model, x, y):
    """Makes one training step for each batch, and scores all of them."""
    if type(model).train_step is not keras.Model.train_step:
        for batch in zip(x, y):
            model.train_step(batch)
        return
    optimizer = model.optimizer
    variables = model.trainable_variables
    # Looked up once: a Keras variable keeps its tensor and writes into it.
    tensors = [variable.value for variable in variables]
    losses, outputs = [], []
    for batch_x, batch_y in zip(x, y):
        output = model(batch_x, training=True)
        loss = model.compute_loss(batch_x, batch_y, output, training=True)
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
        loss_tracker.update_state(
            torch.stack(losses), sample_weight=[x.shape[1]] * len(losses)
        )
        outputs = keras.tree.map_structure(
            lambda *parts: torch.cat(parts).detach(), *outputs
        )
        model.compute_metrics(
            torch.flatten(x, 0, 1), torch.flatten(y, 0, 1), outputs
        )
