"""Lists the calls that a model makes, in order, with nested models unfolded."""

import dataclasses
import math

import keras

from keras_plasticity import keras_compat
from keras_plasticity import validation
from keras_plasticity.graph import own_rules
from keras_plasticity.layers.activations import AdaLin
from keras_plasticity.layers.activations import ConcatenatedActivation
from keras_plasticity.layers.activations import Rational
from keras_plasticity.layers.activations import SmoothLeaky
from keras_plasticity.layers.batch_normalization import BatchNormalization
from keras_plasticity.layers.input_normalization import InputNormalization
from keras_plasticity.layers.online_normalization import OnlineNormalization
from keras_plasticity.layers.plastic_layer import PlasticLayer
from keras_plasticity.layers.recent_inputs import RecentInputs

# Batch size of symbolic inputs that have none.
_BATCH_SIZE = 2
# Their length along other axes, where it is not known and `call` needs it.
_LENGTH = 5
# Layers that are not Keras' own, or have others inside, and have a rule.
_WITH_RULES = (
    keras.layers.TimeDistributed,
    AdaLin,
    BatchNormalization,
    ConcatenatedActivation,
    InputNormalization,
    OnlineNormalization,
    Rational,
    RecentInputs,
    SmoothLeaky,
)


@dataclasses.dataclass
class Call:
    """One call of a layer or an operation.

    Attributes:
        operation: The layer, or the operation of `keras.ops`.
        args: Its positional arguments; symbolic tensors are `Value`s.
        kwargs: Its keyword arguments, likewise.
        outputs: List of `Value`s.
        error: String, why the inside of a layer could not be traced; `None` if
            it was, or did not have to be.
    """

    operation: object
    args: tuple
    kwargs: dict
    outputs: list
    error: str | None = None

    @property
    def inputs(self):
        """List of the `Value`s among the arguments."""
        flat = keras.tree.flatten((self.args, self.kwargs))
        return [value for value in flat if isinstance(value, Value)]


class Value:
    """A symbolic tensor of a trace.

    Attributes:
        shape: Tuple, `None` where a size is not known.
        dtype: String.
        is_constant: Boolean, whether it does not depend on any values.
    """

    def __init__(self, tensor):
        self.shape = tuple(tensor.shape)
        self.dtype = tensor.dtype
        self.is_constant = keras_compat.is_constant(tensor)


@dataclasses.dataclass
class Trace:
    """The calls of a model.

    Attributes:
        calls: List of `Call`s; each comes after those that made its inputs.
        outputs: Set of the `Value`s that the model returns.
        inputs: List of the `Value`s that the model takes; empty if it is not
            known which model it is.
        possible_consumers: Dict from `Value` to a list of layers, for outputs
            of one of several graphs that may be the inputs of another.
    """

    calls: list
    outputs: set
    inputs: list = dataclasses.field(default_factory=list)
    possible_consumers: dict = dataclasses.field(default_factory=dict)


_REMEDY = (
    "Call the model on data once before the optimizer is built. Where no "
    "`keras.Model` calls the layers (as in a `torch.nn.Module` or a function), "
    "state who reads the units of which layer by "
    "`keras_plasticity.connect(layer, consumer)`, for every plastic layer "
    "whose units are to be replaced."
)


class NotCalledError(ValueError):
    """A model was not called yet, and its graph alone does not tell enough."""


class NotTraceableError(ValueError):
    """A model's own `call` cannot be traced.

    Attributes:
        reason: String, why.
    """

    def __init__(self, model, reason):
        super().__init__(
            f"The `call` of model '{model.name}' (`{type(model).__name__}`) "
            f"cannot be traced with symbolic inputs: {reason}. State who "
            "reads the units of which layer by "
            "`keras_plasticity.connect(layer, consumer)`, for every plastic "
            "layer whose units are to be replaced."
        )
        self.reason = reason


def trace_model(
    model, inputs=None, batch_size=_BATCH_SIZE, whole_leaves=False
) -> Trace:
    """Traces a model.

    Args:
        model: A built `keras.Model`, or any built `keras.Layer`.
        inputs: `keras.KerasTensor`, or list or dict of them, for a subclassed
            model. By default they have the shapes that the model was built
            with.
        batch_size: Integer, the batch size with which the `call` of custom
            layers is traced, if the inputs have none.
        whole_leaves: Boolean, whether a custom layer without sublayers is
            listed as one call, and not as the operations in its `call`.

    Returns:
        A `Trace`.

    Raises:
        NotTraceableError: If a model's own `call` cannot be traced.
    """
    if inputs is not None:
        _check_inputs(inputs)
    tracer = _Tracer(batch_size, whole_leaves)
    if keras_compat.is_graph_model(model) and inputs is None:
        known = {}
        outputs = tracer.add_graph(model.outputs, known)
        return tracer.finish(outputs, model.inputs, known)
    if inputs is None:
        inputs = _inputs_from_build(model)
    known = {}
    if inputs is None:
        error = "the shapes of its inputs are not known"
    else:
        outputs, error = tracer.add_inside(model, (inputs,), {}, known)
    if error is not None:
        raise NotTraceableError(model, error)
    return tracer.finish(outputs, inputs, known)


def _check_inputs(inputs):
    for each in keras.tree.flatten(inputs) or [None]:
        if not isinstance(each, keras.KerasTensor):
            raise TypeError(
                "`inputs` must be a `keras.KerasTensor`, or a list or dict of "
                f"them. {validation.received('inputs', inputs)}"
            )


def trace_around(layers, variables=()) -> Trace:
    """Traces the graph around plastic layers, whichever model it belongs to.

    For models that have not been called yet, whose layers do not know which
    model they belong to, and for several models that no other one calls. A
    tensor that nothing reads counts as an output.

    Args:
        layers: List of plastic layers.
        variables: List of variables that the graph must have.

    Returns:
        A `Trace`.

    Raises:
        NotCalledError: If the layers are not part of a graph, or if there is
            more to the model than the graph.
    """
    graphs = _graphs_around(layers)
    seen = {
        id(v)
        for graph in graphs
        for node in graph
        for v in getattr(node.operation, "variables", ())
    }
    unseen = [v for v in variables if id(v) not in seen]
    if unseen:
        raise NotCalledError(
            "The model has not been called yet, and there is more to it than "
            f"the graph around its plastic layers: '{unseen[0].path}', for "
            f"one, is not a part of it. {_REMEDY}"
        )
    tracer = _Tracer()
    known = {}
    ends = []
    for graph in graphs:
        outputs = [node.output_tensors for node in _last_nodes(graph)]
        outputs = keras.tree.flatten(tracer.add_graph(outputs, known))
        ends.append((_graph_inputs(graph, known), outputs))
    trace = tracer.finish([outputs for _, outputs in ends])
    trace.possible_consumers = _possible_consumers(trace.calls, ends)
    return trace


def _graph_inputs(graph, known):
    """The `Value`s of the inputs of a graph."""
    return [
        known[id(tensor)]
        for node in graph
        if isinstance(node.operation, keras.layers.InputLayer)
        for tensor in node.output_tensors
        if id(tensor) in known
    ]


def _possible_consumers(calls, ends):
    """What may read the outputs of one graph in another.

    The input of the other graph has the size of the output, and not the other
    way round, too: then the two are taken for models side by side.

    Args:
        calls: List of `Call`s of all graphs.
        ends: List of pairs of the inputs and the outputs of each graph, lists
            of `Value`s.

    Returns:
        Dict from output to list of layers.
    """
    found = {}
    for i, (inputs, outputs) in enumerate(ends):
        for other_inputs, other_outputs in ends[:i] + ends[i + 1 :]:
            if _fitting_pairs(other_outputs, inputs):
                continue
            for value, other in _fitting_pairs(outputs, other_inputs):
                readers = _first_layers_with_weights(calls, other)
                found.setdefault(value, []).extend(readers)
    return found


def _fitting_pairs(outputs, inputs):
    """Pairs of an output and an input of the same size."""
    return [
        (output, value)
        for output in outputs
        for value in inputs
        # Of one number it says nothing that the sizes agree.
        if _size(output) == _size(value) != 1
    ]


def _size(value):
    """The number of entries of an example; the shape where it is not known."""
    shape = value.shape[1:]
    return shape if None in shape else math.prod(shape)


def _first_layers_with_weights(calls, value):
    """The layers with weights that a value reaches before any others."""
    reached = {value}
    found = []
    for call in calls:
        if reached.isdisjoint(call.inputs):
            continue
        if getattr(call.operation, "variables", ()):
            found.append(call.operation)
        else:
            reached.update(call.outputs)
    return found


def _inputs_from_build(model):
    """Symbolic inputs of the shapes that a model was built with, if known."""
    config = model.get_build_config()
    if not config:
        return None

    def symbolic(shape):
        return keras.KerasTensor(tuple(shape), dtype=model.input_dtype)

    def symbolic_tree(shapes):
        if isinstance(shapes, dict):
            return {name: symbolic_tree(s) for name, s in shapes.items()}
        if any(isinstance(s, (list, tuple, dict)) for s in shapes):
            return [symbolic_tree(s) for s in shapes]
        return symbolic(shapes)

    if "input_shape" not in config:
        return None  # Of several arguments, which `fit` does not know.
    return symbolic_tree(config["input_shape"])


class _Tracer:
    """Collects calls; `known` maps ids of tensors to what stands for them."""

    def __init__(self, batch_size=_BATCH_SIZE, whole_leaves=False):
        self._batch_size = batch_size
        self._whole_leaves = whole_leaves
        self._calls = []
        self._alive = []  # An id is only an id while its object lives.

    def finish(self, outputs, inputs=(), known=None):
        flat = keras.tree.flatten(outputs)
        return Trace(
            self._calls,
            {v for v in flat if isinstance(v, Value)},
            [self._value(t, known) for t in keras.tree.flatten(inputs)],
        )

    def add_graph(self, outputs, known):
        """Adds all calls that lead to `outputs`; returns their `Value`s."""
        self._alive.append(outputs)
        for node in _nodes_up_to(outputs, known):
            self._add_node(node, known)
        return keras.tree.map_structure(
            lambda tensor: self._value(tensor, known), outputs
        )

    def add_inside(self, layer, args, kwargs, known):
        """Adds the calls that a layer's own `call` makes.

        Returns:
            Tuple of its outputs, as a structure of `Value`s, and of a string,
            why they could not be found. One of the two is `None`.
        """
        flat = keras.tree.flatten((args, kwargs))
        symbolic = [x for x in flat if isinstance(x, keras.KerasTensor)]
        lengths = [None]
        if any(None in x.shape[1:] for x in symbolic):
            lengths.append(_LENGTH)
        for length in lengths:
            outputs, error = self._call(layer, args, kwargs, known, length)
            if error is None:
                break
        return outputs, error

    def _call(self, layer, args, kwargs, known, length):
        """As `add_inside`, with a length for unknown axes, or `None`."""

        def fresh(tensor):
            if not isinstance(tensor, keras.KerasTensor):
                return tensor
            # With a batch size: `call` may reckon with the shape.
            batch, *rest = tensor.shape
            rest = [length if size is None else size for size in rest]
            shape = (batch or self._batch_size, *rest)
            new = keras.KerasTensor(shape, dtype=tensor.dtype)
            inner[id(new)] = self._value(tensor, known)
            self._alive.append(new)
            return new

        inner = {}
        args, kwargs = keras.tree.map_structure(fresh, (args, kwargs))
        with keras_compat.forget_calls(layer):
            try:
                outputs = layer.call(*args, **kwargs)
            except Exception as error:  # Whatever a user's code may raise.
                return None, f"{type(error).__name__}: {error}"
            return self.add_graph(outputs, inner), None

    def _add_node(self, node, known):
        operation = node.operation
        if isinstance(operation, keras.layers.InputLayer):
            return
        args, kwargs = keras_compat.arguments(node)
        error = None
        if keras_compat.is_graph_model(operation):
            flat = keras.tree.flatten(args[0] if args else kwargs)
            if _knows_more(flat, operation.inputs):
                # The graph may hold masks and positions of another length.
                outputs, error = self.add_inside(operation, args, kwargs, known)
                if error is None:
                    self._alias(node, outputs, known)
                    return
            inner = {
                id(inside): self._value(outside, known)
                for inside, outside in zip(operation.inputs, flat)
                if isinstance(outside, keras.KerasTensor)
            }
            self._alias(node, self.add_graph(operation.outputs, inner), known)
            return
        if _has_calls_to_see(operation) and not (
            self._whole_leaves and not keras_compat.children(operation)
        ):
            outputs, error = self.add_inside(operation, args, kwargs, known)
            if error is None:
                self._alias(node, outputs, known)
                return
        args, kwargs = keras.tree.map_structure(
            lambda x: (
                self._value(x, known) if isinstance(x, keras.KerasTensor) else x
            ),
            (args, kwargs),
        )
        outputs = [self._value(t, known) for t in node.output_tensors]
        self._calls.append(Call(operation, args, kwargs, outputs, error))

    def _alias(self, node, outputs, known):
        """Lets a node's outputs stand for those found inside it."""
        for tensor, value in zip(
            node.output_tensors, keras.tree.flatten(outputs)
        ):
            known[id(tensor)] = value
            self._alive.append(tensor)

    def _value(self, tensor, known):
        if not isinstance(tensor, keras.KerasTensor):
            return tensor
        if id(tensor) not in known:
            known[id(tensor)] = Value(tensor)
            self._alive.append(tensor)
        return known[id(tensor)]


def _knows_more(tensors, others):
    """Whether a size is known of one of some tensors, and not of another."""
    return any(
        size is not None and other is None
        for tensor, inside in zip(tensors, others)
        if isinstance(tensor, keras.KerasTensor)
        for size, other in zip(tensor.shape[1:], inside.shape[1:])
    )


def _has_calls_to_see(operation):
    """Whether the calls inside a layer's `call` have to be listed."""
    if not isinstance(operation, keras.Layer):
        return False
    if isinstance(operation, PlasticLayer):
        return False
    if isinstance(operation, _WITH_RULES) or own_rules.has_rule(operation):
        return False
    if any(
        isinstance(part, PlasticLayer)
        for part in keras_compat.sublayers(operation)
    ):
        return True
    return not keras_compat.is_stock_layer(operation)


def _nodes_up_to(outputs, known):
    """The nodes that lead to tensors, in topological order."""
    order = []
    state = {}
    stack = [
        keras_compat.producer(tensor)
        for tensor in keras.tree.flatten(outputs)
        if isinstance(tensor, keras.KerasTensor) and id(tensor) not in known
    ]
    while stack:
        node = stack.pop()
        if node is None or state.get(id(node)) == "done":
            continue
        if state.get(id(node)) == "open":
            state[id(node)] = "done"
            order.append(node)
            continue
        state[id(node)] = "open"
        stack.append(node)
        for tensor in node.input_tensors:
            parent = keras_compat.producer(tensor)
            if (
                id(tensor) not in known
                and parent is not None
                and id(parent) not in state
            ):
                stack.append(parent)
    return order


def _graphs_around(layers):
    """The fewest graphs that hold all of the layers, each a list of nodes.

    A layer may be part of several graphs: that of a nested model, and that of
    the model around it. The graph with most of the layers is chosen first; of
    two alike, the later one.
    """
    graphs = []
    seen = set()
    for layer in layers:
        calls = keras_compat.calls(layer)
        for caller in callers_of(layer):
            calls += keras_compat.calls(caller)
        for node in reversed(calls):
            if id(node) not in seen:
                graphs.append(_connected_nodes([node]))
                seen.update(map(id, graphs[-1]))
    wanted = {id(layer) for layer in layers}
    covered = [_parts(graph) & wanted for graph in graphs]
    chosen = []
    for i in sorted(range(len(graphs)), key=lambda i: -len(covered[i])):
        if covered[i] & wanted:
            chosen.append(graphs[i])
            wanted -= covered[i]
    for layer in layers:
        if id(layer) in wanted and layer.replaceable:
            raise NotCalledError(
                f"Plastic layer '{layer.name}' is not part of the graph of a "
                "Functional or Sequential model, and no model was seen to call "
                "all of the optimizer's layers, so that the layers that read "
                f"its units cannot be found. {_REMEDY}"
            )
    return chosen


def callers_of(layer):
    """The models, or other layers, that were seen to call a layer.

    Args:
        layer: A plastic layer, or a `RecentInputs`.
    """
    return getattr(layer, "statistics", layer).callers


def _parts(graph):
    """Ids of all layers that are called in a graph, or inside those."""
    parts = set()
    for node in graph:
        parts.add(id(node.operation))
        if isinstance(node.operation, keras.Layer):
            parts.update(map(id, keras_compat.sublayers(node.operation)))
    return parts


def _connected_nodes(starts):
    """All nodes connected with the given ones, in topological order."""
    nodes = {}
    stack = list(starts)
    while stack:
        node = stack.pop()
        if id(node) in nodes:
            continue
        nodes[id(node)] = node
        stack += keras_compat.parents(node)
        stack += _children(node)
    outputs = [tensor for n in nodes.values() for tensor in n.output_tensors]
    return _nodes_up_to(outputs, {})


def _children(node):
    return [
        child
        for child in keras_compat.uses(node.operation)
        if node in keras_compat.parents(child)
    ]


def _is_leftover(node):
    """Whether a node is a cast that Keras has made beside a layer's call.

    It casts symbolic inputs to the layer's dtype, but calls the layer on them
    as they were.
    """
    return keras_compat.is_cast(node.operation) and not _children(node)


def _last_nodes(nodes):
    """The nodes whose outputs nothing reads.

    A Sequential model calls all of its layers again whenever one is added, and
    leaves the earlier calls behind. They compute the same from the same inputs
    as the later ones, so what reads one of them reads all.
    """
    nodes = [node for node in nodes if not _is_leftover(node)]
    kinds = {}
    kind_of = {}
    for node in nodes:
        made_by = tuple(kind_of[id(p)] for p in keras_compat.parents(node))
        kind = kinds.setdefault((id(node.operation), made_by), len(kinds))
        kind_of[id(node)] = kind
    read = {
        kind_of[id(parent)]
        for node in nodes
        for parent in keras_compat.parents(node)
    }
    last = {kind_of[id(node)]: node for node in nodes}
    return [node for kind, node in last.items() if kind not in read]
