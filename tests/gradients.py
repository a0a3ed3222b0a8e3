"""Gradients and training steps by hand, for the backend at work."""

import keras


def loss_and_gradients(model, loss_fn, x, y):
    """Returns the loss and the gradients of `model.trainable_variables`."""
    return value_and_gradients(model, _mean_loss, loss_fn, x, y)


def _mean_loss(call, loss_fn, x, y):
    return loss_fn(y, call(x))


def value_and_gradients(model, function, loss_fn, *arrays):
    """Returns a value and the gradients of `model.trainable_variables`.

    Args:
        model: `keras.Model`.
        function: Function `(call, loss_fn, *arrays)` that returns the value,
            where `call(x)` calls the model.
        loss_fn: Keras loss.
        *arrays: Arrays.
    """
    variables = model.trainable_variables
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            value = function(
                lambda x: model(x, training=True), loss_fn, *arrays
            )
        return float(value), tape.gradient(value, [v.value for v in variables])
    if keras.backend.backend() == "torch":
        model.zero_grad()
        arrays = [keras.ops.convert_to_tensor(array) for array in arrays]
        value = function(lambda x: model(x, training=True), loss_fn, *arrays)
        value.backward()
        return value.item(), [v.value.grad for v in variables]
    import jax

    def compute(values, other_values, *arrays):
        def call(x):
            outputs, _ = model.stateless_call(
                values, other_values, x, training=True
            )
            return outputs

        return function(call, loss_fn, *arrays)

    # One compiled function each, or each step would trace anew.
    key = (id(model), id(function), id(loss_fn), len(variables))
    if key not in _compiled:
        compiled = jax.jit(jax.value_and_grad(compute))
        _compiled[key] = (compiled, model, function)
    value, gradients = _compiled[key][0](
        [v.value for v in variables],
        [v.value for v in model.non_trainable_variables],
        *arrays,
    )
    return float(value), list(gradients)


_compiled = {}


def compiled_step(model, optimizer, loss_fn):
    """Makes a function `(x, y)` that makes one step with `stateless_apply`.

    On JAX only: the pure function that a user's own training loop compiles.
    It returns the loss, and `model` and `optimizer` are up to date after it.
    """
    import jax

    optimizer.build(model.trainable_variables)

    def compute_loss(values, other_values, x, y):
        outputs, other_values = model.stateless_call(
            values, other_values, x, training=True
        )
        return loss_fn(y, outputs), other_values

    @jax.jit
    def step(state, x, y):
        values, other_values, slots = state
        (loss, other_values), gradients = jax.value_and_grad(
            compute_loss, has_aux=True
        )(values, other_values, x, y)
        values, slots = optimizer.stateless_apply(slots, gradients, values)
        return loss, (values, other_values, slots)

    variables = (
        model.trainable_variables,
        model.non_trainable_variables,
        optimizer.variables,
    )

    def run(x, y):
        state = tuple([v.value for v in group] for group in variables)
        loss, state = step(state, x, y)
        for group, values in zip(variables, state):
            for variable, value in zip(group, values):
                variable.assign(value)
        return float(loss)

    return run


def step_by_gradients(optimizer, variables):
    """Makes a function of gradients that makes one step of an optimizer.

    On JAX it is compiled, or each step would trace its conditions anew.
    """
    optimizer.build(variables)
    if keras.backend.backend() != "jax":
        return lambda gradients: optimizer.apply(gradients, variables)
    import jax

    @jax.jit
    def apply(state, gradients, values):
        return optimizer.stateless_apply(state, gradients, values)

    def run(gradients):
        own = optimizer.variables
        values, state = apply(
            [v.value for v in own], gradients, [v.value for v in variables]
        )
        for variable, value in zip([*variables, *own], [*values, *state]):
            variable.assign(value)

    return run


def read_when_run(function, shape):
    """What `function()` returns when a step runs, not when it is traced.

    Args:
        function: Function that returns a float32 array.
        shape: Tuple, the array's shape.

    Returns:
        Tensor.
    """
    if keras.backend.backend() == "jax":
        import jax

        result = jax.ShapeDtypeStruct(shape, "float32")
        return jax.pure_callback(function, result)
    return keras.ops.convert_to_tensor(function())
