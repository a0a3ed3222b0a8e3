"""All uses of private Keras, and all patches of Keras objects.

Tested with Keras 3.15.1.
"""

import contextlib
import functools
import sys
import threading
import types

import keras
from keras.src.backend.common import global_state

# Keras' attention layers with projections to several heads.
ATTENTION = (
    keras.layers.MultiHeadAttention,
    keras.layers.GroupQueryAttention,
)
# Where Keras says that the class of `keras.Model(inputs, outputs)` is.
FUNCTIONAL_MODULE = "keras.src.models.functional"


def calls(operation):
    """The graph nodes that record calls of an operation on symbolic inputs.

    A node has `operation`, `input_tensors` and `output_tensors`.
    """
    return list(operation._inbound_nodes)


def uses(operation):
    """The graph nodes that take an output of an operation as input."""
    return list(operation._outbound_nodes)


def parents(node):
    """The nodes whose outputs a node takes as inputs."""
    return list(node.parent_nodes)


def producer(tensor):
    """The node that produced a symbolic tensor; `None` if there is none."""
    history = getattr(tensor, "_keras_history", None)
    if history is None or history.operation is None:
        return None
    return history.operation._inbound_nodes[history.node_index]


def is_constant(tensor):
    """Whether a symbolic tensor is filled with zeros or ones."""
    node = producer(tensor)
    if node is None or not is_stock_operation(node.operation):
        return False
    return type(node.operation).__name__ in ("OnesLike", "ZerosLike")


def arguments(node):
    """Tuple `(args, kwargs)` that a node's operation was called with."""
    return node.arguments.args, node.arguments.kwargs


@contextlib.contextmanager
def forget_calls(layer):
    """Context whose symbolic calls leave no trace in a layer and its sublayers.

    Shapes are known where they can be. Tested with Keras 3.15.1, whose
    attention layers tell the shapes of their outputs from the arguments of
    their own `call`, which subclasses (KerasHub's) may not have, and whose
    `EinsumDense` may be told to know less of them than its inputs do.
    """
    parts = layer._flatten_layers()
    counts = [(len(p._inbound_nodes), len(p._outbound_nodes)) for p in parts]
    to_compute = {
        id(part): part
        for part in parts
        if _computes_no_spec(part) and "compute_output_spec" not in vars(part)
    }
    for part in to_compute.values():
        part.compute_output_spec = types.MethodType(_compute_spec, part)
    try:
        with _symbolic_operations(layer):
            yield
    finally:
        for part in to_compute.values():
            del part.compute_output_spec
        for part, (inbound, outbound) in zip(parts, counts):
            del part._inbound_nodes[inbound:]
            del part._outbound_nodes[outbound:]


# Who traces an attention layer changes a module of Keras, for all threads: one
# at a time.
_TRACING = threading.RLock()


@contextlib.contextmanager
def _symbolic_operations(layer):
    """Context in which an attention layer's `call` takes symbolic tensors.

    Tested with Keras 3.15.1, whose layers call `keras.ops`, and with the
    nightly 3.16.0.dev2026102704, whose attention layers call those functions
    of the backend that are behind them.
    """
    modules = {
        sys.modules[kind.__module__]
        for kind in type(layer).__mro__
        if kind in ATTENTION
    }
    with _TRACING if modules else contextlib.nullcontext():
        before = {
            module: module.backend
            for module in modules
            if _has_operations(getattr(module, "backend", None))
        }
        for module, own in before.items():
            module.backend = _PublicOperations(own)
        try:
            yield
        finally:
            for module, own in before.items():
                module.backend = own


def _has_operations(backend):
    """Whether functions of a backend have to be put behind those of `ops`."""
    # Those of a context around this one are.
    return not isinstance(backend, _PublicOperations) and hasattr(
        backend, "ops"
    )


class _PublicOperations:
    """A module, and those in it, with the functions of `keras.ops`."""

    def __init__(self, module):
        self.module = module

    def __getattr__(self, name):
        value = getattr(self.module, name)
        if isinstance(value, types.ModuleType):
            return _PublicOperations(value)
        is_operation = ".ops" in self.module.__name__
        return getattr(keras.ops, name, value) if is_operation else value


def _compute_spec(layer, *args, **kwargs):
    """Shapes of outputs as `call` makes them."""
    try:
        return keras.Operation.compute_output_spec(layer, *args, **kwargs)
    except Exception:
        # What `dot_product_attention` says of its output is wrong where values
        # and keys have different sizes.
        return type(layer).compute_output_spec(layer, *args, **kwargs)


def _computes_no_spec(layer):
    """Whether a layer does not say all that can be known of its outputs."""
    if isinstance(layer, keras.layers.EinsumDense):
        return None in tuple(layer.partial_output_shape)
    return any(
        isinstance(layer, kind)
        and type(layer).call is not kind.call
        and type(layer).compute_output_spec is kind.compute_output_spec
        for kind in ATTENTION
    )


@contextlib.contextmanager
def keep_losses(layer):
    """Context after which a layer's `losses` are those of its last call before.

    Tested with Keras 3.15.1, where a call in a `StatelessScope` adds no losses
    to the layers, and yet clears theirs.
    """
    parts = layer._flatten_layers()
    losses = [(list(part._losses), set(part._loss_ids)) for part in parts]
    try:
        yield
    finally:
        for part, (own, ids) in zip(parts, losses):
            part._losses[:] = own
            part._loss_ids.clear()
            part._loss_ids.update(ids)


def projections(attention):
    """The projections of one of Keras' attention layers.

    Args:
        attention: A built layer of one of the kinds in `ATTENTION`.

    Returns:
        Dict of `keras.layers.EinsumDense` layers, with the keys `"query"`,
        `"key"`, `"value"`, `"output"` and perhaps `"gate"`.
    """
    found = {
        "query": attention._query_dense,
        "key": attention._key_dense,
        "value": attention._value_dense,
        "output": attention._output_dense,
    }
    gate = getattr(attention, "_gate_dense", None)
    return found if gate is None else {**found, "gate": gate}


def built_variables(optimizer):
    """The model variables that an optimizer was built with."""
    return optimizer._trainable_variables


def is_built_with(optimizer, variables):
    """Whether all of some model variables are among those."""
    known = optimizer._trainable_variables_indices
    return all(optimizer._var_key(v) in known for v in variables)


def sublayers(layer):
    """A layer's sublayers at any depth."""
    return layer._flatten_layers(include_self=False)


def children(layer):
    """A layer's own sublayers."""
    return layer._flatten_layers(include_self=False, recursive=False)


def in_order(layer):
    """Yields a layer, and its sublayers at any depth in their order."""
    yield layer
    for child in children(layer):
        yield from in_order(child)


def is_meant_to_be_trained(layer, variable):
    """Whether a variable is one of a layer's own weights, frozen or not.

    It is not if the layer only keeps it, as a moving average.
    """
    return any(variable is each for each in layer._trainable_variables)


@contextlib.contextmanager
def keep_random_state():
    """Context after which Keras' global seed and generator are as before.

    `keras.utils.set_random_seed` puts others in their place.
    """
    names = "global_random_seed", "global_seed_generator"
    before = [global_state.get_global_attribute(name) for name in names]
    try:
        yield
    finally:
        for name, value in zip(names, before):
            global_state.set_global_attribute(name, value)


def note_caller(layer, callers):
    """Notes the outermost layer whose call has led to `layer`'s call.

    Args:
        layer: The layer that is being called.
        callers: Mapping whose keys are the layers noted so far, the one that
            called last at its end.
    """
    context = global_state.get_global_attribute("current_call_ctx")
    if context is not None and context.entry_layer is not layer:
        callers.pop(context.entry_layer, None)
        callers[context.entry_layer] = None


def has_value(variable):
    """Whether a variable has a value of its own.

    Tested with Keras 3.15.1, whose `fit` on JAX takes the values of all
    variables out of them, and puts them back at the end of an epoch.
    """
    return variable._value is not None


def is_inference():
    """Whether a layer is being called with `training=False`."""
    context = global_state.get_global_attribute("current_call_ctx")
    return context is not None and context.get_value("training") is False


def is_graph_model(layer):
    """Whether a layer is a Functional or Sequential model with a graph.

    Such a model has `inputs` and `outputs`.
    """
    if isinstance(layer, keras.Sequential):
        return (
            type(layer).call is keras.Sequential.call
            and layer._functional is not None
        )
    functional = keras.src.models.functional.Functional
    return isinstance(layer, functional) and type(layer).call is functional.call


@contextlib.contextmanager
def unlocked(layer):
    """Context in which sublayers can be added to a built layer."""
    layer._tracker.unlock()
    try:
        yield
    finally:
        layer._tracker.lock()


def track_new_variables(model):
    """Registers variables added to layers of a built model with PyTorch.

    The gradients of variables that are not registered are never reset to zero.
    """
    if keras.backend.backend() == "torch":
        for layer in model._flatten_layers():
            layer._track_variables()


def is_stock_layer(operation):
    """Whether an operation is a layer of `keras.layers` itself."""
    return type(operation).__module__.startswith("keras.src.layers.")


def is_stock_operation(operation):
    """Whether an operation is one of `keras.ops`."""
    return type(operation).__module__.startswith("keras.src.ops.")


def is_cast(operation):
    """Whether an operation is the one of `keras.ops.cast`."""
    return isinstance(operation, keras.src.ops.core.Cast)


def build_for_training(model, x, y, sample_weight=None):
    """Builds a compiled model's optimizer, loss and metrics, as `fit` does.

    Args:
        model: Compiled `keras.Model`.
        x: Array, or nest of arrays, one batch of inputs.
        y: Array, or nest of arrays, one batch of targets.
        sample_weight: Array, or nest of arrays, the weights of the examples.
    """
    model._symbolic_build(data_batch=(x, y, sample_weight))


def compiled_loss(model):
    """What `compile` makes of a model's losses, anew each time; or `None`."""
    return model._compile_loss


def build_loss(model, x, y):
    """Builds the losses that a model was compiled with, if they are not yet.

    Where there are several, each has a metric, whose variables cannot be made
    while a function is being compiled.

    Args:
        model: Compiled and built `keras.Model`.
        x: Array, or nest of arrays, one batch of inputs.
        y: Array, or nest of arrays, one batch of targets.
    """
    loss = compiled_loss(model)
    if loss is None or loss.built:
        return
    x, y = keras.tree.map_structure(
        lambda array: keras.KerasTensor(
            array.shape, keras.backend.standardize_dtype(array.dtype)
        ),
        (x, y),
        none_is_leaf=False,
    )
    infer = keras.src.backend.compute_output_spec
    outputs = infer(model, x, training=False)
    infer(loss, y, outputs)


def end_evaluation(model):
    """Does what `evaluate` does last, where it was interrupted.

    On JAX the variables have no values meanwhile, and would get the ones of
    the evaluation whenever Keras looks for them next.

    Args:
        model: Compiled `keras.Model`.
    """
    if hasattr(model, "jax_state_sync"):
        model.jax_state_sync()
        model._jax_state = None


def supports_xla(model):
    """Whether all layers of a model say that XLA can compile them."""
    return all(layer.supports_jit for layer in model._flatten_layers())


# Whoever listens changes the class of all optimizers: one thread at a time.
_LISTENING = threading.RLock()


@contextlib.contextmanager
def listen_to_slots(note_variable, note_slot):
    """Context in which the variables that optimizers add are noted.

    All optimizers: a `MultiOptimizer` may make others while it builds. A
    listener must not add variables to an optimizer.

    Args:
        note_variable: Function `(optimizer, variable)`, called after each
            `add_variable`.
        note_slot: Function `(optimizer, slot, reference_variable,
            initializer)`, called after each `add_variable_from_reference`.
    """
    kind = keras.optimizers.Optimizer

    def add_variable(optimizer, *args, **kwargs):
        variable = super(kind, optimizer).add_variable(*args, **kwargs)
        note_variable(optimizer, variable)
        return variable

    def add_slot(optimizer, reference_variable, name=None, initializer="zeros"):
        slot = super(kind, optimizer).add_variable_from_reference(
            reference_variable, name=name, initializer=initializer
        )
        note_slot(optimizer, slot, reference_variable, initializer)
        return slot

    with _LISTENING:
        kind.add_variable = add_variable
        kind.add_variable_from_reference = add_slot
        try:
            yield
        finally:
            # What they hid was inherited.
            del kind.add_variable
            del kind.add_variable_from_reference


def slots_that_copy(optimizer):
    """The slots of one of Keras' optimizers that start as copies of weights.

    Keras does not declare them: they are the moving averages of the weights,
    which the first step copies, and the iterate of `ScheduleFreeAdamW`.
    """
    slots = []
    if optimizer.use_ema:
        slots += optimizer._model_variables_moving_average
    schedule_free = getattr(keras.optimizers, "ScheduleFreeAdamW", ())
    if isinstance(optimizer, schedule_free):
        slots += optimizer._momentums
    return [slot for slot in slots if slot is not None]


def change_class(layer, kind):
    """Gives a built layer another class. It keeps its weights and its calls.

    Tested with Keras 3.15.1, which looks up `call` on the class each time, but
    inspects its arguments only once: they must be those of the old class.
    `build` and `quantize`, which `Layer.__new__` binds to a layer, remain those
    of the old class: see `rebind_quantize`.
    """
    layer.__class__ = kind


def rebind_quantize(layer):
    """Gives a layer whose class has changed the `quantize` of its new class.

    Tested with Keras 3.15.1, whose `Layer.__new__` stores the method of the
    first class, wrapped, as an attribute of the layer.
    """
    layer.quantize = types.MethodType(type(layer).quantize, layer)


class QuantizedAsOne:
    """Mixin of layers whose sublayers Keras quantizes, or not, with them.

    `Model.quantize` passes over layers with sublayers without a word (tested
    with Keras 3.15.1): it shall ask the layer, too.
    """

    def _flatten_layers(self, include_self=True, recursive=True):
        return [self] if include_self else []


def check_before_quantizing(check):
    """Lets all models be checked before any of their layers is quantized.

    `Model.quantize` goes from layer to layer (tested with Keras 3.15.1): where
    one refuses, those before it would have changed already.

    Args:
        check: Function of a layer that is to be quantized; may raise.
    """
    quantize = keras.Model.quantize

    @functools.wraps(quantize)
    def check_and_quantize(
        model, mode=None, config=None, filters=None, **kwargs
    ):
        for layer in model._flatten_layers():
            if keras.src.quantizers.utils.should_quantize_layer(layer, filters):
                check(layer)
        quantize(model, mode=mode, config=config, filters=filters, **kwargs)

    keras.Model.quantize = check_and_quantize


# Whether an LSTM that goes backwards may return its sequence in the order of
# time. (Keras 3.15.1 does on JAX with cuDNN, and nowhere else.)
REVERSES_BACKWARD_SEQUENCES = keras.backend.backend() == "jax"


def call_directions_alone(has_to_be_called):
    """Lets `Bidirectional` call the layers of both directions themselves.

    On a GPU it computes both at once, from their weights alone (tested with
    Keras 3.15.1).

    Args:
        has_to_be_called: Function of a layer that returns whether it may not
            be passed by.
    """

    def wrap(attempts):
        @functools.wraps(attempts)
        def attempts_unless_called(wrapper, *args, **kwargs):
            layers = (wrapper.forward_layer, wrapper.backward_layer)
            if any(map(has_to_be_called, layers)):
                return False
            return attempts(wrapper, *args, **kwargs)

        return attempts_unless_called

    kind = keras.layers.Bidirectional
    kind._can_attempt_fused_lstm = wrap(kind._can_attempt_fused_lstm)
    kind._can_attempt_fused_gru = wrap(kind._can_attempt_fused_gru)


def around_time_steps(prepare):
    """Lets all calls of `TimeDistributed` be made in a context.

    It goes past `__call__` of the layer that it wraps, and on some backends
    calls it for all time steps at once, in a transformation in which a backward
    pass of the layer's own is lost (tested with Keras 3.15.1).

    Args:
        prepare: Function of the layer that is wrapped and of the inputs, which
            returns a context with new inputs.
    """
    call = keras.layers.TimeDistributed.call

    @functools.wraps(call)
    def call_in_context(wrapper, inputs, *args, **kwargs):
        with prepare(wrapper.layer, inputs) as inputs:
            return call(wrapper, inputs, *args, **kwargs)

    keras.layers.TimeDistributed.call = call_in_context


def after_compile(note):
    """Lets a function see all models after they are compiled.

    An optimizer is built before its model is called where Keras loads or clones
    the model (tested with Keras 3.15.1 and 3.16.0.dev), and knows the variables
    only.

    Args:
        note: Function of a `keras.Model`.
    """
    # Not `keras.Model`: Keras compares a model's method with this one.
    trainer = next(
        base for base in keras.Model.__mro__ if "compile" in vars(base)
    )
    compile = trainer.compile

    @functools.wraps(compile)
    def compile_and_note(model, *args, **kwargs):
        compile(model, *args, **kwargs)
        note(model)

    trainer.compile = compile_and_note


@contextlib.contextmanager
def update_one_by_one(optimizer):
    """Context in which optimizers update one variable after another.

    On PyTorch some of Keras' optimizers update all at once, by operations that
    take the learning rate as a number, and not as a tensor. What is traced has
    none (tested with Keras 3.15.1).

    Args:
        optimizer: `keras.optimizers.Optimizer`, with any inside it.
    """
    changed = []
    while optimizer is not None:
        optimizer._backend_update_step = types.MethodType(
            keras.src.optimizers.base_optimizer.BaseOptimizer._backend_update_step,
            optimizer,
        )
        changed.append(optimizer)
        optimizer = getattr(optimizer, "inner_optimizer", None)
    try:
        yield
    finally:
        for each in changed:
            del each._backend_update_step


@contextlib.contextmanager
def transform_gradients(optimizer, transform):
    """Context in which an optimizer's JAX step transforms its gradients first.

    Tested with Keras 3.15.1, whose `train_step` on JAX makes every step by
    `optimizer.stateless_apply(optimizer_variables, grads,
    trainable_variables)`.

    Args:
        optimizer: `keras.optimizers.Optimizer`.
        transform: Function from the list of gradients to another one.
    """
    stateless_apply = optimizer.stateless_apply

    def apply_transformed(optimizer_variables, grads, trainable_variables):
        return stateless_apply(
            optimizer_variables, transform(grads), trainable_variables
        )

    optimizer.stateless_apply = apply_transformed  # Hides the method.
    try:
        yield
    finally:
        del optimizer.stateless_apply


def set_torch_device(name):
    """Sets the device of Keras' tensors on PyTorch, for all threads.

    `keras.device` sets that of one thread, and the environment variable
    `KERAS_TORCH_DEVICE` has been read when Keras was imported.

    Args:
        name: String, as PyTorch has it, such as `"cuda"`.
    """
    from keras.src.backend.torch import core

    core.DEFAULT_DEVICE = name
