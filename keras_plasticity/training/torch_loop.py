"""The engine's inner loop on PyTorch, over compiled steps or eager ones."""

import itertools

import keras
import numpy as np
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
        self._device = self._models[0].variables[0].value.device
        # Of a learner, a batch size and what is trained.
        self._steps = {}
        if first is None:
            self._compiles = bool(jit_compile)
            # Learners share programs.
            self._programs = {}

    def to_device(self, array):
        # Not where Keras would put it, which depends on the thread. Of one
        # layout, which compiled programs do not check.
        array = keras.ops.convert_to_tensor(np.ascontiguousarray(array))
        return array.to(self._device)

    def run(self, data, batches):
        for learner, (model, part) in enumerate(zip(self._models, data)):
            step = self._step(learner, part, batches)
            where = None
            if batches.order is not None:
                where = self.where(learner, batches)
            part = _in_order(part, where, batches)
            if step is None:
                _train(model, part, batches.size)
            else:
                arrays = nests.arrays(part)
                step.run(zip(*[a.split(batches.size) for a in arrays]))

    def compile(self, data, batches):
        for learner, part in enumerate(data):
            self._step(learner, part, batches)

    def wait(self):
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _step(self, learner, data, batches):
        """A learner's compiled step; `None` if there is none."""
        if not self.first._compiles:
            return None
        trained = map(id, self._models[learner].trainable_variables)
        key = learner, batches.size, tuple(trained)
        if key not in self._steps:
            stop = batches.start + batches.size
            batch = nests.take(data, slice(batches.start, stop))
            try:
                self._steps[key] = self._compiled(
                    self._models[learner], batch, batches.size
                )
            except Exception as error:  # Of the compiler, or a user's layer.
                if self.jit_compile is True:
                    raise
                self.first._compiles = False
                logging.warning(
                    "PyTorch trains this model by an eager loop, as its step "
                    "cannot be compiled: %s. Not to be told, set "
                    "`jit_compile=False` of the `OnlineTrainer`.",
                    " ".join(str(error).split())[:300] or repr(error),
                )
                return None
        return self._steps[key]

    def _compiled(self, model, batch, size):
        if type(model).train_step is not keras.Model.train_step:
            raise NotImplementedError("it has a `train_step` of its own")
        # Not before it is asked for: to import the compiler takes a second.
        from keras_plasticity.training.torch_program import TorchProgram

        return TorchProgram(
            model,
            batch,
            self.first._programs,
            lambda data: _train(model, data, size),
        )

    def evaluate(self, data, examples):
        with torch.no_grad():
            for model, part in zip(self._models, data):
                model.test_step(nests.take(part, examples))


def _train(model, data, size):
    """Makes one eager step for each `size` examples, and scores all of them."""
    if type(model).train_step is not keras.Model.train_step:
        for batch in _split(data, size):
            model.train_step(batch)
        return
    optimizer = model.optimizer
    variables = model.trainable_variables
    # Looked up once: a Keras variable keeps its tensor and writes into it.
    tensors = [variable.value for variable in variables]
    losses, outputs = [], []
    for x, y, *weight in _split(data, size):
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
            torch.stack(losses), sample_weight=[size] * len(losses)
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


def _split(data, size):
    """Yields the data of one step after another."""
    return zip(*(_split_nest(part, size) for part in data))


def _split_nest(nest, size):
    if isinstance(nest, torch.Tensor):
        return nest.split(size)  # One call for all.
    arrays = nests.arrays(nest)
    if not arrays:
        return itertools.repeat(nest)  # There are no targets.
    number = len(arrays[0])
    return [
        nests.take(nest, slice(start, start + size))
        for start in range(0, number, size)
    ]
