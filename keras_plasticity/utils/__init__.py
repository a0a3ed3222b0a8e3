"""Tools around training; the modules not exported here are private."""

from keras_plasticity.utils.summary_writer import SummaryWriter as SummaryWriter
from keras_plasticity.utils.summary_writer import (
    markdown_table as markdown_table,
)

__all__ = ["SummaryWriter", "markdown_table"]
