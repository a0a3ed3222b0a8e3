"""Continual backpropagation for models that are not Keras'.

- `keras_plasticity.native.torch.ContinualBackprop`: a `torch.nn.Module` and
    its `torch.optim.Optimizer`.
- `keras_plasticity.native.optax.continual_backprop`: a gradient transformation
    of Optax, for parameters as Flax has them.

Each is a module to be imported by itself. `KERAS_BACKEND` has to be `torch` for
the one and `jax` for the other: the formulas are those of
`keras_plasticity.functional`.
"""
