"""The recorded runs of continual backpropagation, whatever the framework."""

import numpy as np

NAMES = (
    "dense_contribution",
    "dense_mean_corrected_contribution",
    "dense_overall",
    "conv_contribution",
    "conv_overall",
)
UTILITIES = {
    "contribution": "contribution",
    "zero_contribution": "mean_corrected_contribution",
    "adaptable_contribution": "overall",
}


def settings(trace):
    """The settings of a trace, as the library names them."""
    config = trace["config"]
    return {
        "replacement_rate": config["replacement_rate"],
        "maturity_threshold": config["maturity_threshold"],
        "decay_rate": config["decay_rate"],
        "utility": UTILITIES[config["utility"]],
    }


def num_layers(trace):
    return sum(key.startswith("init_kernel") for key in trace)


class Recorder:
    """Collects what the hidden layers' units are after each step."""

    def __init__(self):
        self._steps = []

    def note(self, statistics):
        """Takes a pair of ages and utilities for each hidden layer."""
        self._steps.append(
            [[np.array(each) for each in pair] for pair in statistics]
        )

    def results(self):
        found = {}
        for i in range(len(self._steps[0])):
            ages, utilities = (
                np.stack([step[i][k] for step in self._steps]) for k in (0, 1)
            )
            found[f"replaced_{i}"] = ages == 0
            found[f"utility_{i}"] = utilities
        return found
