"""TensorBoard logs. `import keras_plasticity` does not import this package."""

from keras_plasticity.utils.progress_bar import ProgressBar as ProgressBar
from keras_plasticity.utils.summary_writer import SummaryWriter as SummaryWriter
from keras_plasticity.utils.summary_writer import (
    markdown_table as markdown_table,
)

__all__ = ["ProgressBar", "SummaryWriter", "markdown_table"]
