"""Producer-consumer connections of plastic layers, from the model graph."""

from keras_plasticity.graph.connections import Connections as Connections
from keras_plasticity.graph.connections import check as check
from keras_plasticity.graph.connections import connect as connect
from keras_plasticity.graph.connections import (
    find_connections as find_connections,
)
from keras_plasticity.graph.connections import find_model as find_model
from keras_plasticity.graph.connections import was_called as was_called
from keras_plasticity.graph.inspect import inspect as inspect
from keras_plasticity.graph.own_rules import keep_units as keep_units
from keras_plasticity.graph.own_rules import register_rule as register_rule
from keras_plasticity.graph.trace import NotCalledError as NotCalledError
from keras_plasticity.graph.trace import NotTraceableError as NotTraceableError
from keras_plasticity.graph.units import Refusal as Refusal
from keras_plasticity.graph.units import Skip as Skip
from keras_plasticity.graph.units import Units as Units

__all__ = [
    "Connections",
    "NotCalledError",
    "NotTraceableError",
    "Refusal",
    "Skip",
    "Units",
    "check",
    "connect",
    "find_connections",
    "find_model",
    "inspect",
    "keep_units",
    "register_rule",
    "was_called",
]
