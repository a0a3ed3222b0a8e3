"""A training step on PyTorch as one compiled program.

Keras' own step consists of some hundred small operations, each of which costs
a microsecond or more in Python. Here it is traced once as a function of the
values of all variables, which it changes in place, and compiled by the compiler
behind `torch.compile`. (Tested with PyTorch 2.13. `torch.compile` itself gives
the same program, and takes twice as long to call it, as it checks all of what
Python might have changed.)
"""

import keras
import torch
from torch._inductor import compile as compile_graph
from torch.fx.experimental.proxy_tensor import make_fx

from keras_plasticity import keras_compat
from keras_plasticity.backend import torch as torch_backend
from keras_plasticity.optimizers.unit_reset_optimizer import reset_optimizer
from keras_plasticity.training import nests


class TorchProgram:
    """A compiled training step of one model.

    Units are replaced by the optimizer's own eager code, in the rare steps in
    which some are due.

    Args:
        model: Compiled and built `keras.Model`.
        batch: Tuple, the data of a step, of tensors on the device.
        programs: Dict of the programs compiled so far, to which this one is
            added: models of one architecture have the same.

    Raises:
        Exception: Of any kind, if the step cannot be compiled.
    """

    def __init__(self, model, batch, programs):
        self._variables = _variables(model)
        self._resets = reset_optimizer(model)
        arrays = nests.arrays(batch)
        # Copies: to trace a step is to make one.
        values = [value.clone() for value in self._values()]
        with torch.no_grad():
            graph = make_fx(self._step(model, batch))(*arrays, *values)
        key = _key(graph, [*arrays, *values])
        if key not in programs:
            programs[key] = _compiled(graph, arrays, values)
        self._program = programs[key]

    def run(self, batches):
        """Makes one training step for each batch.

        Args:
            batches: Iterable of lists of the arrays of a step's data.
        """
        values = self._values()
        program, resets = self._program, self._resets
        with torch.no_grad():
            for arrays in batches:
                due = program(*arrays, *values)
                if resets is not None and due[0].item():
                    resets.replace_counted(due[1].tolist())

    def _values(self):
        # Keras assigns by writing into these tensors.
        return [variable.value.detach() for variable in self._variables]

    def _step(self, model, batch):
        """The function to trace; it returns how many units are due."""
        num_arrays = len(nests.arrays(batch))
        num_trainable = len(model.trainable_variables)

        def step(*tensors):
            arrays, values = tensors[:num_arrays], tensors[num_arrays:]
            arrays = iter(arrays)
            data = nests.map_arrays(lambda _: next(arrays), batch)
            weights = [
                value.detach().requires_grad_()
                for value in values[:num_trainable]
            ]
            with torch_backend.tracing():
                loss, outputs, grads, updated = self._backward(
                    model, data, weights, values[num_trainable:]
                )
                due, updated = self._update(
                    model,
                    data,
                    loss,
                    outputs,
                    grads,
                    [*values[:num_trainable], *updated],
                )
            for value, new in zip(values, updated):
                if new is not value:
                    value.copy_(new)
            return due

        return step

    def _scope(self, values):
        mapping = list(zip(self._variables, values))
        return keras.StatelessScope(state_mapping=mapping, collect_losses=True)

    def _backward(self, model, data, weights, others):
        x, y, *sample_weight = data
        with torch.enable_grad(), self._scope([*weights, *others]) as scope:
            outputs = model(x, training=True)
            loss = model.compute_loss(
                x, y, outputs, *sample_weight, training=True
            )
            scaled = model.optimizer.scale_loss(loss)
        grads = torch.autograd.grad(scaled, weights, allow_unused=True)
        others = [
            _current(scope, variable, value)
            for variable, value in zip(self._variables[len(weights) :], others)
        ]
        return loss.detach(), outputs, grads, others

    def _update(self, model, data, loss, outputs, grads, values):
        x, y, *sample_weight = data
        outputs = keras.tree.map_structure(lambda t: t.detach(), outputs)
        numbers = []
        with (
            self._scope(values) as scope,
            keras_compat.update_one_by_one(model.optimizer),
        ):
            if self._resets is None:
                model.optimizer.apply(list(grads), model.trainable_variables)
            else:
                with self._resets.replacement_put_off() as numbers:
                    model.optimizer.apply(
                        list(grads), model.trainable_variables
                    )
            size = nests.arrays(x)[0].shape[0]
            model.metrics[0].update_state(loss, sample_weight=size)
            model.compute_metrics(x, y, outputs, *sample_weight)
        due = None
        if self._resets is not None:
            due = torch.stack([torch.as_tensor(n) for n in numbers])
            due = due.sum(), due
        return due, [
            _current(scope, variable, value)
            for variable, value in zip(self._variables, values)
        ]


def _variables(model):
    """All that a step may change, the trainable variables first; each once."""
    variables = [
        *model.trainable_variables,
        *model.non_trainable_variables,
        *model.optimizer.variables,
        *model.metrics_variables,
    ]
    return list({id(v): v for v in variables}.values())


def _current(scope, variable, value):
    new = scope.get_current_value(variable)
    return value if new is None else new


def _key(graph, tensors):
    """What tells two programs apart: their code, shapes and constants."""
    constants = {
        name: (value.dtype, value.shape, value.tolist())
        for name, value in vars(graph).items()
        if isinstance(value, torch.Tensor)
    }
    kinds = [(t.shape, t.dtype, t.stride(), t.device) for t in tensors]
    return graph.code, str(kinds), str(constants)


def _compiled(graph, arrays, values):
    # Shapes are as traced: to check them costs more than some of the kernels.
    program = compile_graph(
        graph, [*arrays, *values], options={"size_asserts": False}
    )
    if all(value.device.type != "cuda" for value in values):
        return program
    return _CapturedPrograms(program, arrays, values)


class _CapturedPrograms:
    """A compiled program as one CUDA graph for each set of variables.

    A graph is bound to the memory that it was captured with: it reads its data
    from tensors of its own, into which those of each step are copied.
    """

    def __init__(self, program, arrays, values):
        self._program = program
        self._arrays = [torch.empty_like(array) for array in arrays]
        self._graphs = {}

    def __call__(self, *tensors):
        number = len(self._arrays)
        values = tensors[number:]
        for static, array in zip(self._arrays, tensors[:number]):
            static.copy_(array)
        key = tuple(value.data_ptr() for value in values)
        if key not in self._graphs:
            self._graphs[key] = self._capture(values)
        graph, due = self._graphs[key]
        graph.replay()
        return due

    def _capture(self, values):
        before = [value.clone() for value in values]
        # As PyTorch asks for: some runs first, on a stream of their own.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                self._program(*self._arrays, *values)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            due = self._program(*self._arrays, *values)
        # Those runs have trained.
        for value, old in zip(values, before):
            value.copy_(old)
        return graph, due
