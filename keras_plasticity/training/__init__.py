"""The online engine: task streams through a Keras model, compiled."""

from keras_plasticity.training.online_trainer import (
    OnlineTrainer as OnlineTrainer,
)
from keras_plasticity.training.task_callback import TaskCallback as TaskCallback

__all__ = ["OnlineTrainer", "TaskCallback"]
