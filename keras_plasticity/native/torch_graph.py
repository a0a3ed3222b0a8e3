"""Who reads the units of which layer of a `torch.nn.Module`."""

from torch import fx
from torch import nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
LAYERS = (nn.Linear, *CONVOLUTIONS)
_NORMALIZATIONS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
# What hands each unit on, whatever the shape.
_ELEMENTWISE = (
    *(nn.CELU, nn.ELU, nn.GELU, nn.Hardswish, nn.Hardtanh, nn.LeakyReLU),
    *(nn.Mish, nn.ReLU, nn.ReLU6, nn.SELU, nn.SiLU, nn.Sigmoid, nn.Softplus),
    *(nn.Softsign, nn.Tanh, nn.Identity, nn.Dropout, nn.AlphaDropout),
)
_ELEMENTWISE_FUNCTIONS = (
    *("dropout", "elu", "gelu", "leaky_relu", "mish", "relu", "relu_"),
    *("selu", "sigmoid", "silu", "softplus", "tanh"),
)
# What hands channels on.
_POOLS = (
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.MaxPool1d, nn.MaxPool2d),
    *(nn.MaxPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d),
    *(nn.AdaptiveAvgPool3d, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
)
_POOL_FUNCTIONS = (
    *("avg_pool1d", "avg_pool2d", "avg_pool3d", "max_pool1d", "max_pool2d"),
    *("max_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d"),
)


def find(
    model: nn.Module,
) -> tuple[dict[str, tuple[str, list[str]]], dict[str, str]]:
    """Finds the units that one other layer reads.

    Args:
        model: `torch.nn.Module`.

    Returns:
        Tuple of two dicts from the name of a layer: to that of its reader and
        to the names of the normalization layers between; and, of the other
        layers, to why their units are left alone.

    Raises:
        ValueError: If the model cannot be traced.
    """
    try:
        graph = fx.symbolic_trace(model).graph
    except Exception as error:  # Whatever the model does to a `fx.Proxy`.
        raise ValueError(
            "`model` must be one that `torch.fx` can trace, or "
            "`connections` must be given, such as {'conv': 'linear'}. "
            f"Received: {error}"
        ) from error
    modules = dict(model.named_modules())
    calls = [n for n in graph.nodes if n.op == "call_module"]
    names = [call.target for call in calls]
    found, skipped = {}, {}
    for call in calls:
        if isinstance(modules[call.target], LAYERS):
            end, normalizations = _follow(call, modules, names)
            if isinstance(end, str):
                skipped[call.target] = end
            else:
                found[call.target] = end.target, normalizations
    return found, skipped


def _follow(call, modules, names):
    """Follows the units of a layer to the one that reads them.

    Args:
        call: `fx.Node` that calls the layer.
        modules: Dict from name to module.
        names: List of the names of modules, one for each call.

    Returns:
        Tuple of the `fx.Node` that calls the reader, or a string, why there is
        none; and the list of names of normalization layers between.
    """
    layer = modules[call.target]
    are_channels = isinstance(layer, CONVOLUTIONS)
    normalizations = []
    node = call
    if names.count(call.target) > 1:
        return "it is called several times", []
    while True:
        if len(node.users) != 1:
            return f"{len(node.users)} operations read it", []
        (node,) = node.users
        if node.op == "output":
            return "outputs of the model", []
        module = modules.get(node.target) if node.op == "call_module" else None
        name = getattr(node.target, "__name__", str(node.target))
        if isinstance(module, LAYERS):
            break
        if isinstance(module, _NORMALIZATIONS):
            normalizations.append(node.target)
        elif _flattens(node, module, name):
            are_channels = False
        elif are_channels and (
            isinstance(module, _POOLS)
            or (module is None and name in _POOL_FUNCTIONS)
        ):
            pass
        elif not (
            isinstance(module, _ELEMENTWISE)
            or (module is None and name in _ELEMENTWISE_FUNCTIONS)
        ):
            return f"'{name}' does not hand its units on", []
    units, features = layer.weight.shape[0], module.weight.shape[1]
    if names.count(node.target) > 1 or getattr(module, "groups", 1) > 1:
        return f"'{node.target}' reads it in parts, or several times", []
    if are_channels != isinstance(module, CONVOLUTIONS):
        return f"'{node.target}' does not read its units as features", []
    copies = features / units
    if copies != 1 and (are_channels or isinstance(layer, nn.Linear)):
        return f"'{node.target}' reads {features} features of {units} units", []
    return node, normalizations


def _flattens(node, module, name):
    """Whether a call puts the positions of each channel side by side."""
    if module is not None:
        return isinstance(module, nn.Flatten) and module.start_dim == 1
    start = node.kwargs.get("start_dim", (*node.args, None, None)[1])
    return name == "flatten" and start == 1
