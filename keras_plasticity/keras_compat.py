"""Every touch of what Keras does not make public, in one place.

Tested with Keras 3.15.1.
"""


def calls(operation):
    """The graph nodes that record calls of an operation on symbolic inputs.

    A node has `operation`, `input_tensors` and `output_tensors`.
    """
    return list(operation._inbound_nodes)


def uses(operation):
    """The graph nodes that read an output of an operation."""
    return list(operation._outbound_nodes)


def parents(node):
    """The nodes whose outputs a node reads."""
    return list(node.parent_nodes)


def build_for_training(model, x, y):
    """Builds a compiled model's optimizer, loss and metrics, as `fit` does.

    Args:
        model: Compiled `keras.Model`.
        x: Array, one batch of inputs.
        y: Array, one batch of targets.
    """
    model._symbolic_build(data_batch=(x, y))
