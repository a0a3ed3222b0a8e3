"""Loops and in-place writes on PyTorch."""

import torch


def no_gradient():
    return torch.no_grad()


def repeat(times, body, variables):
    """Runs `body()` `times` times; see `keras_plasticity.backend`."""
    del variables  # An eager tensor is assigned where it lies.
    for _ in range(int(times)):
        body()


def assign_index(variable, axis, index, value):
    """Writes `value` at `index` of `axis`, in place."""
    target = variable.value.select(axis, int(index))
    target.copy_(torch.as_tensor(value, device=target.device))


def after_backward(gradients):
    return gradients  # Eager operations are in order.


def column_magnitudes(matrix):
    """Sum of absolute values over the rows, for each column."""
    return matrix.abs().sum(dim=0)
