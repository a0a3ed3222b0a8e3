"""What the plasticity of a model is, by measures of the model as a whole."""

from keras_plasticity.diagnosis.measure import measure as measure
from keras_plasticity.diagnosis.recent_examples import (
    RecentExamples as RecentExamples,
)

__all__ = ["RecentExamples", "measure"]
