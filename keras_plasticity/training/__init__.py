"""Compiled training of Keras models on streams of tasks."""

from keras_plasticity.training.checkpoint import (
    CheckpointError as CheckpointError,
)
from keras_plasticity.training.checkpoint import (
    num_tasks_done as num_tasks_done,
)
from keras_plasticity.training.journal import AppendOnly as AppendOnly
from keras_plasticity.training.online_trainer import (
    OnlineTrainer as OnlineTrainer,
)
from keras_plasticity.training.task_callback import TaskCallback as TaskCallback

__all__ = [
    "AppendOnly",
    "CheckpointError",
    "OnlineTrainer",
    "TaskCallback",
    "num_tasks_done",
]
