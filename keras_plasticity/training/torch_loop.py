"""The engine's inner loop on PyTorch, over compiled steps or eager ones."""

import keras
import torch
from absl import logging

from keras_plasticity.training import models_loop
from keras_plasticity.training import nests


class TorchLoop(models_loop.ModelsLoop):
    """Trains learners one after another, step by step.

    A step is a compiled program, which all learners share; or else a lean
    eager loop goes through the layers.
    """

    def __init__(
        self, models, num_learners, batch, jit_compile="auto", first=None
    ):
        super().__init__(models, num_learners, batch, jit_compile, first)
        self._compiles = bool(jit_compile if first is None else first._compiles)
        # Those of a batch size and a learner, and those that they share.
        self._steps = {}
        self._programs = {} if first is None else first._programs

    def to_device(self, array):
        return keras.ops.convert_to_tensor(array)

    def run(self, data, batches):
        for learner, (model, part) in enumerate(zip(self._models, data)):
            part = _in_order(part, self.where(learner, batches), batches)
            if self._compiles:
                arrays = [
                    array.split(batches.size) for array in nests.arrays(part)
                ]
                self._steps[learner, batches.size].run(zip(*arrays))
            else:
                _train(model, part, batches)

    def compile(self, data, batches):
        if not self._compiles:
            return
        try:
            for learner, part in enumerate(data):
                self._compile_step(learner, part, batches)
        except Exception as error:  # Of the compiler, or of a user's layer.
            if self.jit_compile is True:
                raise
            self._compiles = False
            logging.warning(
                "PyTorch trains this model by an eager loop, as its step "
                "cannot be compiled: %s. Not to be told, set "
                "`jit_compile=False` of the `OnlineTrainer`.",
                " ".join(str(error).split())[:300] or repr(error),
            )

    def _compile_step(self, learner, data, batches):
        if (learner, batches.size) in self._steps:
            return
        model = self._models[learner]
        if type(model).train_step is not keras.Model.train_step:
            raise NotImplementedError("it has a `train_step` of its own")
        # Not before it is asked for: to import the compiler takes a second.
        from keras_plasticity.training.torch_program import TorchProgram

        batch = nests.take(
            data, slice(batches.start, batches.start + batches.size)
        )
        self._steps[learner, batches.size] = TorchProgram(
            model, batch, self._programs
        )

    def evaluate(self, data, examples):
        with torch.no_grad():
            for model, part in zip(self._models, data):
                model.test_step(nests.take(part, examples))


def _train(model, data, batches):
    """Makes one eager step for each batch, and scores all of them."""
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
