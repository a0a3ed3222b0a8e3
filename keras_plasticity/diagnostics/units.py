"""Measures of dead, dormant, inactive, saturated and linear units.

All functions take the activations of one layer after its non-linearity, an
array of shape `(examples, units)`. The positions of a feature map count as
examples. Dead, dormant and inactive units do not depend on the scale of the
activations.

References:

- [Sokar et al., 2023](https://arxiv.org/abs/2302.12902), dormant units (ReDo)
- [Dohare et al., 2024](https://doi.org/10.1038/s41586-024-07711-7)
- [Lyle et al., 2024](https://arxiv.org/abs/2402.18762), linear units
"""

import math
from collections.abc import Sequence

import numpy as np

from keras_plasticity import validation
from keras_plasticity.diagnostics import arrays
from keras_plasticity.diagnostics.linearity import linear_regions


def dead_units(features: np.ndarray) -> int:
    """Number of units that are 0 for every example.

    A ReLU unit that is 0 on everything has no gradient, and stays so.

    Args:
        features: Array of shape `(examples, units)`, the activations of one
            layer after its non-linearity.

    Returns:
        Integer between 0 and `units`.

    Raises:
        ValueError: If `features` is empty, not of rank 2, or not finite.

    Example:

    >>> dead_units(np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 2.0]]))
    1
    """
    return UnitActivity(features).dead()


def inactive_units(features: np.ndarray, threshold: float = 0.01) -> int:
    """Number of units that are active on too few examples.

    A unit is inactive if it is nonzero on less than a fraction `threshold` of
    the examples. These are the "dormant" units of the experiments with
    CIFAR-100 in Dohare et al. (2024), where the positions of a feature map
    count as examples. For those of ReDo, see
    `keras_plasticity.diagnostics.dormant_units`.

    Args:
        features: Array of shape `(examples, units)`.
        threshold: Float in (0, 1], the fraction of the examples. Defaults to
            `0.01`.

    Returns:
        Integer between 0 and `units`; `units` for the zero matrix.

    Raises:
        ValueError: If `features` is empty, not of rank 2, or not finite, or
            if `threshold` is out of its range.
    """
    return UnitActivity(features).inactive(threshold)


def dormant_units(features: np.ndarray, threshold: float = 0.025) -> int:
    """Number of units whose mean magnitude is small within their layer.

    The score of a unit is its mean absolute activation, divided by the mean
    of these over the units of the layer. A unit is dormant if its score does
    not exceed the threshold (the tau-dormant units of ReDo, Sokar et al.,
    2023).

    Args:
        features: Array of shape `(examples, units)`.
        threshold: Float, not negative. With 0, dormant units are dead units.
            Defaults to `0.025`.

    Returns:
        Integer between 0 and `units`; `units` for the zero matrix, whose
        scores are 0.

    Raises:
        ValueError: If `features` is empty, not of rank 2, or not finite, or
            if `threshold` is negative.

    Example:

    >>> dormant_units(np.array([[1.0, -1.0, 0.02], [1.0, 1.0, 0.02]]))
    0
    >>> dormant_units(np.array([[1.0, -1.0, 0.01], [1.0, 1.0, 0.01]]))
    1
    """
    return UnitActivity(features).dormant(threshold)


def saturated_units(
    features: np.ndarray,
    extremes: Sequence[float] = (-1.0, 1.0),
    tolerance: float = 0.1,
) -> int:
    """Number of units that are near an extreme for every example.

    There a tanh or sigmoid has nearly no gradient. A unit may be near one
    extreme for some examples, and near the other for the rest.

    Args:
        features: Array of shape `(examples, units)`.
        extremes: Tuple of the bounds of the non-linearity: `(-1.0, 1.0)`, the
            default, for tanh, `(0.0, 1.0)` for sigmoid.
        tolerance: Float, not negative: an activation is saturated if it is
            nearer than this to an extreme, or equal to one. Defaults to `0.1`.

    Returns:
        Integer between 0 and `units`.

    Raises:
        ValueError: If `features` is empty, not of rank 2, or not finite, if
            `extremes` is empty, or if `tolerance` is negative.
    """
    return UnitActivity(features, extremes, tolerance).saturated()


def saturated_fraction(
    features: np.ndarray,
    extremes: Sequence[float] = (-1.0, 1.0),
    tolerance: float = 0.1,
) -> float:
    """Fraction of all activations that are near an extreme.

    With the defaults it is the fraction with `|h| > 0.9`, and with
    `extremes=(0.0,), tolerance=0.0` the fraction of zeros: what the authors'
    code for Slowly-Changing Regression records for tanh and for ReLU.

    Args:
        features: Array of shape `(examples, units)`.
        extremes: Tuple of floats, as in
            `keras_plasticity.diagnostics.saturated_units`.
        tolerance: Float, likewise.

    Returns:
        Float between 0 and 1.

    Raises:
        ValueError: If `features` is empty, not of rank 2, or not finite, if
            `extremes` is empty, or if `tolerance` is negative.

    Example:

    >>> saturated_fraction(np.array([[-0.95, 0.0], [0.99, 0.5]]))
    0.5
    """
    return UnitActivity(features, extremes, tolerance).saturated_fraction()


def linear_units(
    features: np.ndarray, function: str = "relu", threshold: float = 0.9
) -> int:
    """Number of units that do (nearly) nothing but compute a linear function.

    A unit is linear if at least a fraction `threshold` of the examples lie in
    one region where its non-linearity is linear: a ReLU unit that is always
    on. A network of such units learns no more than a linear one. (Lyle et al.,
    2024, call them "zombies".) Where the non-linearity is constant, a unit is
    not linear but dead or saturated.

    The regions, of activations `h` after the non-linearity, are

    - `h > 0` for `"relu"`, `"elu"`, `"selu"` and `"celu"`; for `"leaky_relu"`
        `h > 0` or, as another region, `h < 0`;
    - between its bounds for `"relu6"`, `"hard_tanh"` and `"hard_sigmoid"`;
    - where the derivative is at least 90 % of the largest it can be for
        `"tanh"` (`|h| < 0.316`), `"sigmoid"` (`|h - 0.5| < 0.158`),
        `"softsign"` (`|h| < 0.051`) and `"softplus"` (`h > 2.303`).

    Args:
        features: Array of shape `(examples, units)`, the activations of one
            layer after its non-linearity.
        function: String, the name of the non-linearity, one of the above.
            Defaults to `"relu"`.
        threshold: Float in (0, 1], the fraction of the examples. Defaults to
            `0.9`, with which the authors of CPR count them.

    Returns:
        Integer between 0 and `units`.

    Raises:
        ValueError: If `features` is empty, not of rank 2, or not finite, if
            `function` is none of the above, or if `threshold` is out of its
            range.

    Example:

    >>> linear_units(np.array([[0.0, 1.0, 0.0], [0.0, 2.0, 3.0]]))
    1

    References:

    - [Lyle et al., 2024](https://arxiv.org/abs/2402.18762)
    """
    return UnitActivity(features, regions=linear_regions(function)).linear(
        threshold
    )


def linear_fraction(features: np.ndarray, function: str = "relu") -> float:
    """Mean over the units of the share of examples on which they are linear.

    That is the largest share that lies in one region where the non-linearity
    is linear, see `keras_plasticity.diagnostics.linear_units`. For ReLU it is
    the fraction of activations that are not 0.

    Args:
        features: Array of shape `(examples, units)`, the activations of one
            layer after its non-linearity.
        function: String, as in `keras_plasticity.diagnostics.linear_units`.
            Defaults to `"relu"`.

    Returns:
        Float between 0 and 1.

    Raises:
        ValueError: If `features` is empty, not of rank 2, or not finite, or if
            `function` is unknown.

    Example:

    >>> linear_fraction(np.array([[0.0, 1.0], [0.0, 2.0]]))
    0.5
    >>> linear_fraction(np.array([[-0.1, 2.0], [-0.2, -1.0]]), "leaky_relu")
    0.75
    """
    return UnitActivity(
        features, regions=linear_regions(function)
    ).linear_fraction()


class UnitActivity:
    """Accumulates what the measures of units need, batch by batch.

    Args:
        features: Array of shape `(examples, units)`, the first batch. Defaults
            to `None`: none yet.
        extremes: Tuple of floats; see `saturated_units`. `None` if saturation
            is not measured.
        tolerance: Float; see `saturated_units`.
        regions: List of `linear_regions`, none (default) if linearity is not
            measured.
    """

    def __init__(self, features=None, extremes=None, tolerance=0.1, regions=()):
        if extremes is not None:
            extremes = _check_extremes(extremes)
        self._extremes = extremes
        self._tolerance = validation.check_not_negative("tolerance", tolerance)
        self._num_examples = 0
        self._num_nonzero = 0
        self._num_saturated = 0
        self._regions = regions
        self._num_linear = 0
        # Of each unit, the sum of magnitudes is `_magnitude * 2**_exponent`.
        self._magnitude = 0.0
        self._exponent = -math.inf
        if features is not None:
            self.add(features)

    def add(self, features):
        """Adds the activations of further examples."""
        features = arrays.check_features(features)
        exponent = arrays.exponent_of(arrays.largest_magnitude([features]))
        num_saturated = None
        if self._extremes is not None:
            num_saturated = np.count_nonzero(
                self._is_saturated(features), axis=0
            )
        self._add(
            len(features),
            np.count_nonzero(features, axis=0),
            np.abs(arrays.scaled(features, exponent)).sum(axis=0),
            exponent,
            num_saturated,
            self._count_linear(features),
        )

    def add_sums(
        self,
        num_examples,
        num_nonzero,
        magnitude,
        largest,
        num_saturated=None,
        num_linear=None,
    ):
        """Adds what has been computed of further examples.

        Args:
            num_examples: Integer.
            num_nonzero: Array of a count for each unit.
            magnitude: Array of the sum of a unit's magnitudes, each divided by
                the largest one of all units, if that is not 0.
            largest: Float, the largest magnitude.
            num_saturated: Array of a count for each unit, if saturation is
                measured.
            num_linear: Array of shape `(regions, units)`, the counts of the
                activations in each region, if linearity is measured.
        """
        exponent = arrays.exponent_of(largest)
        magnitude = np.asarray(magnitude, "float64") * (largest / 2.0**exponent)
        self._add(
            num_examples,
            num_nonzero,
            magnitude,
            exponent,
            num_saturated,
            num_linear,
        )

    def _add(
        self,
        num_examples,
        num_nonzero,
        magnitude,
        exponent,
        num_saturated,
        num_linear,
    ):
        """Adds counts, and magnitudes divided by `2.0**exponent`."""
        self._num_examples += num_examples
        self._num_nonzero += num_nonzero
        old, self._exponent = self._exponent, max(self._exponent, exponent)
        self._magnitude = self._magnitude * 2.0 ** (
            old - self._exponent
        ) + magnitude * 2.0 ** (exponent - self._exponent)
        if num_saturated is not None:
            self._num_saturated += num_saturated
        if num_linear is not None:
            self._num_linear += num_linear

    @property
    def num_units(self):
        return len(self._num_nonzero)

    def dead(self):
        return int(np.sum(self._num_nonzero == 0))

    def inactive(self, threshold=0.01):
        threshold = validation.check_in_interval(
            "threshold", threshold, "(0, 1]"
        )
        share = self._num_nonzero / self._num_examples
        return int(np.sum(share < threshold))

    def dormant(self, threshold=0.025):
        threshold = validation.check_not_negative("threshold", threshold)
        mean = self._magnitude.mean()
        if mean == 0.0 or threshold == 0.0:
            return self.dead()  # Beside large scores, small ones vanish.
        return int(np.sum(self._magnitude / mean <= threshold))

    def saturated(self):
        return int(np.sum(self._num_saturated == self._num_examples))

    def saturated_fraction(self):
        return float(np.mean(self._num_saturated) / self._num_examples)

    def linear(self, threshold=0.9):
        threshold = validation.check_in_interval(
            "threshold", threshold, "(0, 1]"
        )
        return int(np.sum(self._linear_share() >= threshold))

    def linear_fraction(self):
        return float(np.mean(self._linear_share()))

    def _linear_share(self):
        return np.max(self._num_linear, axis=0) / self._num_examples

    def _count_linear(self, features):
        """Counts of shape `(regions, units)`."""
        return np.array(
            [
                np.count_nonzero((low < features) & (features < high), axis=0)
                for low, high in self._regions
            ]
        )

    def _is_saturated(self, features):
        is_near = np.zeros(features.shape, bool)
        for extreme in self._extremes:
            # Not by the distance: rounding it would make ties count.
            low, high = extreme - self._tolerance, extreme + self._tolerance
            # Beyond the range of the features' dtype they become infinite.
            with np.errstate(over="ignore"):
                is_near |= (low < features) & (features < high)
                is_near |= features == extreme
        return is_near


def _check_extremes(extremes):
    rule = "a tuple of at least one finite number"
    numbers = validation.check_list("extremes", extremes, rule=rule)
    if not numbers or not all(map(validation.is_number, numbers)):
        raise validation.error("extremes", rule, extremes)
    return [validation.check_number("extremes", each) for each in numbers]
