"""Loops and in-place writes, and the device, on PyTorch."""

import contextlib
import functools
import threading
import warnings
import weakref

import keras
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from keras_plasticity import keras_compat


class _Tracing(threading.local):
    """Whether a step is being traced, as a function of all variables.

    Attributes:
        is_on: Boolean.
        exceptions: List of boolean scalar tensors. If one of them is true, the
            step is not the one that was traced.
    """

    is_on = False
    exceptions = ()


_tracing = _Tracing()


@contextlib.contextmanager
def tracing():
    """Context in which no number is known, and no variable written in place.

    All variables have to be mapped to tensors by a `keras.StatelessScope`. What
    runs a number of times that depends on what is computed, does not run.

    Yields:
        List, to which such numbers are added, as boolean scalar tensors that
        are true where it would have run.
    """
    _tracing.is_on, _tracing.exceptions = True, []
    try:
        yield _tracing.exceptions
    finally:
        _tracing.is_on, _tracing.exceptions = False, ()


def no_gradient():
    return torch.no_grad()


def keep_random_state():
    # Where CUDA was not used yet, there is no state, and asking would start it.
    is_used = torch.cuda.is_initialized()
    devices = range(torch.cuda.device_count() if is_used else 0)
    return torch.random.fork_rng(list(devices))


def compute_now():
    return contextlib.nullcontext()


# Not for `torch.compile`: the number of iterations depends on the data.
@torch.compiler.disable
def repeat(times, body, variables):
    """Runs `body()` `times` times; see `keras_plasticity.backend`."""
    del variables  # Eager tensors are assigned in place.
    if _tracing.is_on and isinstance(times, torch.Tensor):
        _tracing.exceptions.append(times.reshape(()) > 0)
        return
    for _ in range(int(times)):
        body()


def only_if(condition, body, variables):
    """Eager code branches: see `keras_plasticity.backend`."""
    del variables
    if condition:
        body()


def keep_if(condition, body, variables):
    """Runs `body()` if there is something to keep; see `are_positive`."""
    if not _tracing.is_on:
        return body() if condition else 0
    before = [v.value for v in variables]
    result = torch.as_tensor(body())
    for variable, value in zip(variables, before):
        after = variable.value
        if after is not value:
            variable.assign(torch.where(condition, after, value))
    return torch.where(condition, result, torch.zeros_like(result))


def known_value(variable):
    if (
        _tracing.is_on
        or torch.compiler.is_compiling()
        or variable.value.is_meta
    ):
        return None
    return variable.value.detach().cpu().numpy()


@torch.compiler.disable
def are_positive(values):
    """All of them in one transfer: eager code branches on numbers it knows."""
    if not values:
        return []
    if _tracing.is_on:
        return [value > 0 for value in values]
    return (torch.stack(values) > 0).tolist()


def assign_part(variable, shape, axes, indices, value):
    """Writes `value` at `indices` of `axes`, in place."""
    target = variable.value.view(shape)
    for axis, index in sorted(zip(axes, indices), reverse=True):
        target = target.select(axis, int(index))
    value = torch.as_tensor(value, device=target.device)
    target.copy_(value.reshape(target.shape))


def assign_whole(variable, value):
    variable.assign(value)


def add_to_rows(variable, columns, amount):
    """Adds a number to each row of a matrix, in place."""
    rows = torch.arange(len(columns), device=columns.device)
    variable.value[rows, columns.long()] += amount


def count_true(masks):
    """See `keras_plasticity.backend`."""
    counts = [torch.sum(mask, dtype=torch.int32) for mask in masks]
    return torch.stack(counts)


def window(vector, start, size):
    """See `keras_plasticity.backend`."""
    if not _tracing.is_on:
        return keras.ops.slice(vector, start, (size,))
    return vector[start.long() + torch.arange(size, device=vector.device)]


def quotient(number, divisor):
    return number // divisor


class _Identity(torch.autograd.Function):
    """Not Keras' own custom gradient: `torch.func` cannot transform that."""

    generate_vmap_rule = True

    @staticmethod
    def forward(inputs, backward, *values):
        return inputs.view_as(inputs)

    @staticmethod
    def setup_context(ctx, inputs, output):
        inputs, ctx.function, *values = inputs
        ctx.save_for_backward(inputs, *values)

    @staticmethod
    def backward(ctx, upstream):
        inputs, *values = ctx.saved_tensors
        gradient, *new_values = ctx.function(upstream, inputs, values)
        return (gradient, None, *new_values)

    @staticmethod
    def jvp(ctx, tangent, *others):
        return tangent.view_as(tangent)


def identity(inputs, values, backward):
    """See `keras_plasticity.backend`."""
    return _Identity.apply(inputs, backward, *values)


# Dict from layer to a pair of a variable and of a message.
_watched_layers = weakref.WeakKeyDictionary()
_seen_optimizers = weakref.WeakSet()


def warn_if_trained_elsewhere(layer, variable, message):
    """Warns where an optimizer of PyTorch's own makes a step with it."""
    _watched_layers[layer] = (variable, message)
    _watch_optimizers()


@functools.cache  # Once, and not before there is something to watch for.
def _watch_optimizers():
    register_optimizer_step_post_hook(_warn_at_first_step)


def _warn_at_first_step(optimizer, args, kwargs):
    if torch.compiler.is_compiling() or optimizer in _seen_optimizers:
        return
    _seen_optimizers.add(optimizer)
    trained = {
        id(parameter)
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    for variable, message in _watched_layers.values():
        if id(variable.value) in trained:
            name = type(optimizer).__name__
            warnings.warn(
                f"PyTorch's optimizer `{name}` {message}", stacklevel=3
            )
            return


def after_backward(gradients):
    return gradients  # Eager operations are in order.


def sum_over_replicas(values):
    return values


def column_magnitudes(matrix):
    """Sum of absolute values over the rows, for each column."""
    return matrix.abs().sum(dim=0)


def row_magnitudes(matrix):
    """Sum of absolute values over the columns, for each row."""
    return matrix.abs().sum(dim=1)


def compiled(function):
    """See `keras_plasticity.backend`."""

    def on_tensors(*inputs):
        return function(
            *keras.tree.map_structure(
                keras.ops.convert_to_tensor, inputs, none_is_leaf=False
            )
        )

    return on_tensors


def value_and_gradients(function, tensors):
    """See `keras_plasticity.backend`."""
    tensors = [tensor.detach().requires_grad_() for tensor in tensors]
    with torch.enable_grad():
        value = function(tensors)
        gradients = torch.autograd.grad(value, tensors, allow_unused=True)
    return value.detach(), list(gradients)


def hessian_vector_product(function, tensors, vectors):
    """See `keras_plasticity.backend`."""
    tensors = [tensor.detach().requires_grad_() for tensor in tensors]
    with torch.enable_grad():
        value = function(tensors)
        first = torch.autograd.grad(
            value, tensors, create_graph=True, allow_unused=True
        )
    # What depends on the tensors linearly has a gradient that does not.
    known = [
        i
        for i, gradient in enumerate(first)
        if gradient is not None and gradient.requires_grad
    ]
    if not known:
        return [None] * len(tensors)
    return list(
        torch.autograd.grad(
            [first[i] for i in known],
            tensors,
            grad_outputs=[vectors[i] for i in known],
            allow_unused=True,
        )
    )


def gradients(loss_function, variables):
    """See `keras_plasticity.backend`."""
    # Not the variables' own tensors, whose `.grad` must not change.
    tensors = [v.value.detach().requires_grad_() for v in variables]
    scope = keras.StatelessScope(
        state_mapping=list(zip(variables, tensors)), collect_losses=True
    )
    with torch.enable_grad(), scope:
        loss = loss_function()
    return list(torch.autograd.grad(loss, tensors, allow_unused=True))


def platform():
    # A GPU is "cuda", "mps" or "xpu".
    return "cpu" if keras.ops.zeros(()).device.type == "cpu" else "gpu"


def platforms():
    """The kinds of devices that PyTorch finds."""
    return ["cpu", *["gpu"] * torch.accelerator.is_available()]


def use_device(name):
    """Returns whether there is such a device; if so, it is used."""
    if name not in platforms():
        return False
    if name == "gpu":
        name = torch.accelerator.current_accelerator().type
    # Keras takes its tensors there, and PyTorch follows its tensors.
    keras_compat.set_torch_device(name)
    return True


def compile_small_loops_whole(batch_size=1):
    """See `keras_plasticity.backend`; PyTorch has no such compiler."""


def set_matmul_precision(precision):
    is_tensorfloat32 = precision == "tensorfloat32"
    torch.set_float32_matmul_precision(
        "high" if is_tensorfloat32 else "highest"
    )
    torch.backends.cuda.matmul.allow_tf32 = is_tensorfloat32
    # Convolutions, for which PyTorch has it on where nobody says otherwise.
    torch.backends.cudnn.allow_tf32 = is_tensorfloat32


def free_and_total_memory():
    """Bytes that are free on an accelerator, and all; `None` if unknown."""
    if keras.ops.zeros(()).device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info()
    # PyTorch keeps what it has freed, for itself to use again.
    kept = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    return free + kept, total
