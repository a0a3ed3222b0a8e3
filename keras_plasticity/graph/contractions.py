"""Propagation rules of products that sum over some axes: attention, einsum.

Units pass through a product with another tensor where they are not summed: of
`"bnts,bsnd->btnd"`, the weighted means over positions `s` that an attention
computes, each output stems from one unit `(n, d)` of the second tensor, and is
zero without it.
"""

import dataclasses
import string

import numpy as np

from keras_plasticity.graph.units import Refusal
from keras_plasticity.graph.units import Skip
from keras_plasticity.graph.units import describe


def einsum(call, units):
    """The rule of `keras.ops.einsum`."""
    subscripts = call.operation.subscripts.replace(" ", "")
    inputs, arrow, outputs = subscripts.partition("->")
    if not arrow:
        raise Refusal(
            f"{describe(call.operation)} does not say which axes its output "
            f"has. Received: subscripts={subscripts!r}, without '->'"
        )
    labels = [
        _spell_out(each, len(operand.shape))
        for each, operand in zip(inputs.split(","), call.args)
    ]
    (output,) = call.outputs
    return _contract(
        call, units, labels, _spell_out(outputs, len(output.shape))
    )


def matmul(call, units):
    """The rule of `keras.ops.matmul`."""
    ranks = [len(operand.shape) for operand in call.args]
    if min(ranks) < 2:
        raise Refusal(f"{describe(call.operation)} adds units up")
    letters = string.ascii_lowercase
    batch = letters[: max(ranks) - 2]
    rows, summed, columns = letters[max(ranks) : max(ranks) + 3]
    # Of fewer batch axes they are the last ones.
    first, second = (batch[len(batch) - rank + 2 :] for rank in ranks)
    return _contract(
        call,
        units,
        [first + rows + summed, second + summed + columns],
        batch + rows + columns,
    )


def dot_product_attention(call, units):
    """The rule of `keras.ops.dot_product_attention`."""
    value = call.kwargs["value"] if "value" in call.kwargs else call.args[2]
    query = call.kwargs["query"] if "query" in call.kwargs else call.args[0]
    if set(units) != {value}:
        raise Skip(_ONLY_SCORES.format(describe(call.operation)))
    if not set(units[value].axes) <= {2, 3}:
        raise Skip(f"{describe(call.operation)} adds them up as positions")
    if query.shape[2] != value.shape[2]:
        raise Refusal(
            f"{describe(call.operation)} shares a head of the values among "
            "several of the queries. Repeat the heads of keys and values by "
            "`keras.ops.repeat` before"
        )
    return {output: units[value] for output in call.outputs}


def attention_layer(call, units):
    """The rule of `keras.layers.Attention` and `AdditiveAttention`."""
    inputs = call.args[0] if call.args else call.kwargs["inputs"]
    value = inputs[1]
    if set(units) != {value} or len(inputs) < 3 or inputs[2] is value:
        # Without a key of their own the values are the keys.
        raise Skip(_ONLY_SCORES.format(describe(call.operation)))
    if units[value].axes != (2,):
        raise Skip(f"{describe(call.operation)} adds them up as positions")
    return {call.outputs[0]: units[value]}


_ONLY_SCORES = (
    "they have no outgoing weights of their own: {} makes attention scores of "
    "them"
)


def _spell_out(labels, rank):
    """Letters for the axes of a tensor, with capitals in the place of '...'."""
    before, dots, after = labels.partition("...")
    if not dots:
        return labels
    elided = rank - len(before) - len(after)
    capitals = string.ascii_uppercase
    # Aligned at their end where one tensor has more of them than another.
    return before + capitals[len(capitals) - elided :] + after


def _contract(call, units, labels, output_labels):
    """What a product of tensors makes of units.

    Args:
        call: `Call`, whose positional arguments are the tensors.
        units: Dict from `Value` to `Units`.
        labels: List of strings, a letter for each axis of each tensor. An axis
            that several have is multiplied along; it is summed over if the
            output lacks it.
        output_labels: String, the letters of the output.
    """
    (output,) = call.outputs
    kind = type(output)  # Others are arrays.
    carrying = [
        i for i, x in enumerate(call.args) if type(x) is kind and x in units
    ]
    if len(carrying) > 1:
        raise Skip(f"multiplied with each other by {describe(call.operation)}")
    (index,) = carrying
    each, own = units[call.args[index]], labels[index]
    if len(set(own)) < len(own):
        raise Refusal(f"{describe(call.operation)} takes a diagonal of them")
    counted = [own[axis] for axis in each.axes]
    others = [
        (x, letters)
        for i, (x, letters) in enumerate(zip(call.args, labels))
        if i != index
    ]
    values = [letters for x, letters in others if type(x) is kind]
    if not set(counted) <= set(output_labels):
        if len(values) == len(others) > 0:
            raise Skip(
                "they have no outgoing weights of their own: "
                f"{describe(call.operation)} adds them up in a product with "
                "another tensor, as attention scores do"
            )
        raise Refusal(f"{describe(call.operation)} adds units up")
    if any(set(counted) <= set(letters) for letters in values) and index > 0:
        raise Skip(f"used as a gate by {describe(call.operation)}")
    sizes = [output.shape[output_labels.index(c)] for c in counted]
    if sizes != list(each.unit.shape):
        raise Refusal(f"{describe(call.operation)} repeats a unit")
    axes = [output_labels.index(c) for c in counted]
    unit = np.transpose(each.unit, np.argsort(axes))
    return {
        output: dataclasses.replace(each, axes=tuple(sorted(axes)), unit=unit)
    }
