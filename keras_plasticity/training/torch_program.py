"""A training step on PyTorch as one compiled program.

Keras' own step consists of some hundred small operations, each of which costs
a microsecond or more in Python. Here it is traced once as a function of the
values of all variables, which it changes in place, and compiled by the compiler
behind `torch.compile`. (Tested with PyTorch 2.13. `torch.compile` itself gives
the same program, and takes twice as long to call it, as it checks all of what
Python might have changed.)
"""

import contextlib

import keras
import torch
from torch._inductor import compile as compile_graph
from torch.fx.experimental.proxy_tensor import make_fx

from keras_plasticity import keras_compat
from keras_plasticity.backend import torch as torch_backend
from keras_plasticity.optimizers.inner_optimizers import wrapped
from keras_plasticity.optimizers.l2 import L2
from keras_plasticity.optimizers.unit_reset_optimizer import reset_optimizer
from keras_plasticity.training import nests


class TorchProgram:
    """A compiled training step of one model.

    What happens now and then is not compiled. Units are replaced by the
    optimizer's own eager code after a step in which some are due, where nothing
    else would come after it. A step with anything else that depends on a
    condition (all that methods do every so many updates) leaves all variables
    as they were, and is made again, eagerly.

    Args:
        model: Compiled and built `keras.Model`.
        batch: Tuple, the data of a step, of tensors on the device.
        programs: Dict of the programs compiled so far, to which this one is
            added: models of one architecture have the same.
        train_eagerly: Function of the data of one step, which makes it.

    Raises:
        Exception: Of any kind, if the step cannot be compiled.
    """

    def __init__(self, model, batch, programs, train_eagerly):
        self._batch = batch
        self._train_eagerly = train_eagerly
        self._variables = _variables(model)
        self._resets = _resets_of(model)
        arrays = nests.arrays(batch)
        # Copies: to trace a step is to make one.
        values = [value.clone() for value in self._values()]
        with torch.no_grad():
            graph = make_fx(self._step(model, batch))(*arrays, *values)
            key = _key(graph, [*arrays, *values])
            if key not in programs:
                programs[key] = _compiled(graph, [*arrays, *values])
            self._program = programs[key]
            if any(value.device.type == "cuda" for value in values):
                self._program = _Captured(self._program, arrays, self._values())

    def run(self, batches):
        """Makes one training step for each batch.

        Args:
            batches: Iterable of lists of the arrays of a step's data.
        """
        values = self._values()
        program, resets = self._program, self._resets
        with torch.no_grad():
            for arrays in batches:
                happens, numbers = program(*arrays, *values)
                if happens is None or not happens.item():
                    continue
                is_exception, *numbers = numbers.tolist()
                if is_exception:
                    with torch.enable_grad():
                        self._train_eagerly(_in_nest(self._batch, arrays))
                else:
                    resets._replace_counted(numbers)

    def _values(self):
        # Keras assigns by writing into these tensors.
        return [variable.value.detach() for variable in self._variables]

    def _step(self, model, batch):
        """The function to trace.

        It returns whether something is left to do, and what: a tensor of
        integers, whether the step has to be made eagerly and then how many
        units of each layer are due. `None` twice if that is never so.
        """
        num_arrays = len(nests.arrays(batch))
        num_trainable = len(model.trainable_variables)

        def step(*tensors):
            arrays, values = tensors[:num_arrays], tensors[num_arrays:]
            data = _in_nest(batch, arrays)
            weights = [
                value.detach().requires_grad_()
                for value in values[:num_trainable]
            ]
            with torch_backend.tracing() as exceptions:
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
            # None of them may be what another one is about to overwrite.
            memory = {_memory(value) for value in values}
            updated = [
                new.clone()
                if new is not value and _memory(new) in memory
                else new
                for value, new in zip(values, updated)
            ]
            exception = None
            if exceptions:
                exception = torch.stack(exceptions).any()
            for value, new in zip(values, updated):
                if new is value:
                    continue
                if exception is not None:
                    new = torch.where(exception, value, new)
                value.copy_(new)
            return _to_do(exception, due)

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
        put_off = contextlib.nullcontext()
        if self._resets is not None:
            put_off = self._resets._replacement_put_off()
        with (
            self._scope(values) as scope,
            keras_compat.update_one_by_one(model.optimizer),
        ):
            with put_off as numbers:
                model.optimizer.apply(list(grads), model.trainable_variables)
            size = nests.arrays(x)[0].shape[0]
            model.metrics[0].update_state(loss, sample_weight=size)
            model.compute_metrics(x, y, outputs, *sample_weight)
        due = None
        if self._resets is not None:
            due = [
                torch.as_tensor(n, dtype=torch.int32, device=loss.device)
                for n in numbers
            ]
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


def _memory(tensor):
    return tensor.untyped_storage().data_ptr()


def _in_nest(batch, arrays):
    """The data of a step, in the structure of a batch."""
    arrays = iter(arrays)
    return nests.map_arrays(lambda _: next(arrays), batch)


def _to_do(exception, due):
    """Whether something is left to do after a step, and what: see `_step`."""
    if exception is None and due is None:
        return None, None
    due = [] if due is None else due
    if exception is None:
        exception = torch.zeros_like(due[0])
    numbers = torch.stack([exception.to(torch.int32), *due])
    return numbers.any(), numbers


def _resets_of(model):
    """The optimizer whose units may be replaced after a step; `None` without.

    They may not where one layer's are replaced before the next layer's turn,
    and where another optimizer may act after that.
    """
    resets = reset_optimizer(model)
    if resets is None or not resets.hidden or resets._goes_layer_by_layer:
        return None
    for optimizer in wrapped(model.optimizer):
        if optimizer is resets:
            return resets
        if not isinstance(optimizer, L2):
            return None


def _current(scope, variable, value):
    new = scope.get_current_value(variable)
    return value if new is None else new


def _key(graph, tensors):
    """What tells two programs apart: their code, shapes and constants."""
    constants = [
        (name, value.dtype, value.shape, value.cpu().numpy().tobytes())
        for name, value in [*graph.named_buffers(), *graph.named_parameters()]
    ]
    kinds = [(t.shape, t.dtype, t.stride(), t.device) for t in tensors]
    return graph.code, str(kinds), str(constants)


def _compiled(graph, tensors):
    # Shapes and strides are as traced: to check them costs more than some of
    # the kernels.
    return compile_graph(graph, tensors, options={"size_asserts": False})


class _Captured:
    """A compiled program as a CUDA graph.

    It is bound to the memory that it was captured with: it reads the data of a
    step from tensors of its own, into which they are copied.
    """

    def __init__(self, program, arrays, values):
        self._arrays = [torch.empty_like(array) for array in arrays]
        before = [value.clone() for value in values]
        try:
            self._capture(program, [*self._arrays, *values])
        finally:
            # What was run has trained.
            for value, old in zip(values, before):
                value.copy_(old)

    def __call__(self, *tensors):
        for static, array in zip(self._arrays, tensors):
            static.copy_(array)
        self._graph.replay()
        return self._to_do

    def _capture(self, program, tensors):
        # As PyTorch asks for: some runs first, on a stream of their own.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                program(*tensors)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        # Another thread may load the next task meanwhile.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._to_do = program(*tensors)
