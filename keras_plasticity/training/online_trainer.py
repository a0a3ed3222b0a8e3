import concurrent.futures
import os
import time
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_plasticity import keras_compat

if keras.backend.backend() == "jax":
    from keras_plasticity.training.jax_loop import TrainingLoop
elif keras.backend.backend() == "tensorflow":
    from keras_plasticity.training.tensorflow_loop import TrainingLoop
else:
    from keras_plasticity.training.torch_loop import TrainingLoop

# A chunk of a task is one call of a compiled program. It should take about a
# second: long enough to pay for the call, short enough for a progress bar and
# for Ctrl-C. An online step costs about this many seconds for each weight.
_SECONDS_PER_WEIGHT = 5e-10
_FEWEST_STEPS = 100
_MOST_STEPS = 100_000


class OnlineTrainer:
    """Trains Keras models on a stream of tasks, in compiled loops.

    It computes what `model.fit(x, y, batch_size, shuffle=False)` on one task
    after the other computes, without returning to Python between the steps,
    and trains any number of independent learners.

    - JAX: a task is one `lax.scan` over the model's `train_step`, and all
        learners train side by side in one program (`vmap`).
    - TensorFlow: a task is one `tf.function` with a loop; learners train one
        after another.
    - PyTorch: an eager loop over the model's `train_step`; learners train one
        after another.

    Nothing is reset between tasks.

    Args:
        model: A compiled `keras.Model`, or a function that is given a
            learner's index and returns one. The function should seed each
            learner's initializers, dropout and optimizer with its index, and
            all of its models must have the same architecture.
        num_learners: Integer, the number of independent learners. More than
            one need a function for `model`. Defaults to 1.

    Example:

    ```python
    def build_model(learner):
        model = keras.Sequential(
            [
                keras.Input((20,)),
                keras_plasticity.layers.Dense(
                    5,
                    activation="relu",
                    kernel_initializer=keras.initializers.HeUniform(learner),
                ),
                keras_plasticity.layers.Dense(1),
            ]
        )
        model.compile(
            optimizer=keras_plasticity.optimizers.ContinualBackprop(
                keras.optimizers.SGD(0.01), seed=learner
            ),
            loss="mse",
        )
        return model

    trainer = keras_plasticity.training.OnlineTrainer(
        build_model, num_learners=30
    )
    results = trainer.fit(
        lambda learner: SlowlyChangingRegression(seed=learner)
    )
    results["loss"].mean(axis=1)  # Of all learners, for each task.
    ```
    """

    def __init__(
        self,
        model: keras.Model | Callable[[int], keras.Model],
        num_learners: int = 1,
    ):
        if not isinstance(num_learners, int) or num_learners < 1:
            raise ValueError(
                "`num_learners` must be a positive integer. "
                f"Received: num_learners={num_learners}"
            )
        is_model = isinstance(model, keras.Model)
        if not is_model and not callable(model):
            raise TypeError(
                "`model` must be a compiled `keras.Model`, or a function of a "
                f"learner's index that returns one. Received: model={model!r}"
            )
        if is_model and num_learners > 1:
            raise ValueError(
                "Several learners need several models: give `model` a function "
                "of the learner's index that returns a compiled model. "
                f"Received: model={model!r}, num_learners={num_learners}"
            )
        self.num_learners = num_learners
        self.train_seconds = 0.0
        self.compile_seconds = 0.0
        self.interrupted = False
        self._build_model = (lambda learner: model) if is_model else model
        self._loop = None

    def fit(
        self,
        stream: Any,
        batch_size: int = 1,
        epochs: int = 1,
        first_task: int = 0,
        num_tasks: int | None = None,
        callbacks: Sequence["TaskCallback"] | None = None,
        on_nan: str = "stop",
    ) -> dict[str, np.ndarray]:
        """Trains all learners on the tasks of their streams.

        Args:
            stream: The tasks: an object with a length and a method
                `task(index)` that returns NumPy arrays `(x, y)`, as those of
                `keras_plasticity.streams`; or a function that is given a
                learner's index and returns one. All tasks of all learners
                have the same shapes.
            batch_size: Integer, the number of examples a step. Defaults to 1.
            epochs: Integer, the number of passes over each task, in the
                stream's order. Defaults to 1.
            first_task: Integer, the first task. Defaults to 0.
            num_tasks: Integer, the number of tasks. Defaults to all of them.
            callbacks: List of `TaskCallback`s.
            on_nan: What to do when the loss of a learner is not finite:
                `"stop"` (default) raises an error after that task,
                `"continue"` goes on with all learners. The others are not
                affected.

        Returns:
            Dict from the name of each metric (`"loss"` and those the model
            was compiled with) to a float array of shape
            `(tasks, num_learners)`: its value over the last epoch of each
            task, measured before each update. After Ctrl-C the tasks that
            were finished, and `interrupted` is `True`.

        Raises:
            FloatingPointError: If a loss is not finite and `on_nan="stop"`.
                The results up to that task are in its attribute `results`.
            MemoryError: If the learners do not fit into memory.
            ValueError: If a stream returns data that cannot be used.
        """
        for name, value in (("batch_size", batch_size), ("epochs", epochs)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(
                    f"`{name}` must be a positive integer. "
                    f"Received: {name}={value}"
                )
        if on_nan not in ("stop", "continue"):
            raise ValueError(
                "`on_nan` must be 'stop' or 'continue'. "
                f"Received: on_nan={on_nan}"
            )
        streams = self._get_streams(stream)
        if num_tasks is None:
            num_tasks = len(streams[0]) - first_task
        tasks = range(first_task, first_task + num_tasks)
        if num_tasks < 1 or first_task < 0 or tasks[-1] >= len(streams[0]):
            raise ValueError(
                "`first_task` and `num_tasks` must name tasks of the stream, "
                f"which has {len(streams[0])}. Received: "
                f"first_task={first_task}, num_tasks={num_tasks}"
            )
        callbacks = list(callbacks or [])
        for callback in callbacks:
            callback.trainer = self
        self.interrupted = False

        results = []
        with concurrent.futures.ThreadPoolExecutor(1) as background:
            loader = _TaskLoader(streams, batch_size)
            coming = background.submit(loader.load, tasks[0])
            try:
                for task in tasks:
                    data = coming.result()
                    if task != tasks[-1]:
                        coming = background.submit(loader.load, task + 1)
                    if self._loop is None:
                        self._build(data)
                    results.append(
                        self._run_task(task, data, epochs, callbacks)
                    )
                    if on_nan == "stop":
                        _check_finite(task, results, data)
            except KeyboardInterrupt:
                self.interrupted = True
                coming.cancel()
            finally:
                for callback in callbacks:
                    callback.on_train_end()
        return _stack(results)

    def model(self, learner: int = 0) -> keras.Model:
        """A learner's model, as it is after the steps made so far.

        Args:
            learner: Integer. Defaults to 0.

        Returns:
            The compiled `keras.Model`. With several learners on JAX they share
            one model object: use it before asking for the next. What is
            changed in its weights has no effect on further training.
        """
        if self._loop is None:
            raise ValueError("The learners are built when `fit` is called.")
        return self._loop.model(learner)

    def _get_streams(self, stream):
        if hasattr(stream, "task"):
            if self.num_learners > 1:
                raise ValueError(
                    "Several learners need several streams: give `stream` a "
                    "function of the learner's index that returns one. "
                    f"Received: stream={stream!r}, "
                    f"num_learners={self.num_learners}"
                )
            return [stream]
        if not callable(stream):
            raise TypeError(
                "`stream` must have a method `task(index)`, or be a function "
                "of a learner's index that returns such an object. "
                f"Received: stream={stream!r}"
            )
        return [stream(learner) for learner in range(self.num_learners)]

    def _build(self, data):
        start = time.perf_counter()
        x, y = data.batches()[0]
        first = self._built_model(0, x, y)
        self._check_memory(first, data)

        def models():
            yield first
            for learner in range(1, self.num_learners):
                yield self._built_model(learner, x, y)

        self._loop = TrainingLoop(models(), self.num_learners)
        weights = self.num_learners * first.count_params()
        self._chunk = int(
            np.clip(
                1 / (_SECONDS_PER_WEIGHT * weights * x.shape[2]),
                _FEWEST_STEPS,
                _MOST_STEPS,
            )
        )
        for chunk in data.distinct_chunks(self._chunk):
            self._loop.compile(self._loop.put(*chunk))
        self.compile_seconds += time.perf_counter() - start

    def _built_model(self, learner, x, y):
        model = self._build_model(learner)
        if not isinstance(model, keras.Model) or not model.compiled:
            raise ValueError(
                "`model` must be compiled, or a function that returns compiled "
                "models: call `model.compile(optimizer, loss, metrics)`. "
                f"Received for learner {learner}: {model!r}"
            )
        keras_compat.build_for_training(model, x[learner, 0], y[learner, 0])
        return model

    def _check_memory(self, model, data):
        variables = model.variables + model.optimizer.variables
        state = 4 * sum(int(np.prod(v.shape)) for v in variables)
        # The weights, the update that is being computed, and this task's and
        # the next one's data.
        one = 3 * state + 2 * data.bytes_per_learner
        free = _free_memory()
        if self.num_learners > 1 and one * self.num_learners > free:
            raise MemoryError(
                f"{self.num_learners} learners need about "
                f"{one * self.num_learners / 1e9:.1f} GB of memory, of which "
                f"{free / 1e9:.1f} GB are free. About {int(free // one)} would "
                "fit. Use fewer learners, or shorter tasks."
            )

    def _run_task(self, task, data, epochs, callbacks):
        for callback in callbacks:
            callback.on_task_begin(task, data.x, data.y)
        chunks = data.chunks(self._chunk)
        for epoch in range(epochs):
            self._loop.reset_metrics()
            for number, chunk in enumerate(chunks):
                chunk = self._loop.put(*chunk)
                start = time.perf_counter()
                self._loop.run(chunk)
                self._loop.wait()
                self.train_seconds += time.perf_counter() - start
                done = (epoch * len(chunks) + number + 1) / (
                    epochs * len(chunks)
                )
                for callback in callbacks:
                    callback.on_progress(task, done)
        results = self._loop.results()
        for callback in callbacks:
            callback.on_task_end(task, results)
        return results


class TaskCallback:
    """Base class of what looks on while an `OnlineTrainer` trains.

    Attributes:
        trainer: The `OnlineTrainer`; `trainer.model(learner)` is a learner's
            model as it is at the time.
    """

    trainer: OnlineTrainer | None = None

    def on_task_begin(self, task: int, x: np.ndarray, y: np.ndarray):
        """Called before the first step of a task.

        Args:
            task: Integer, the task's index.
            x: Array of shape `(num_learners, examples, ...)`, its inputs.
            y: Array of shape `(num_learners, examples, ...)`, its targets.
        """

    def on_progress(self, task: int, done: float):
        """Called now and then within a task.

        Args:
            task: Integer, the task's index.
            done: Float in (0, 1], the part of the task that is done.
        """

    def on_task_end(self, task: int, results: dict[str, np.ndarray]):
        """Called after the last step of a task.

        Args:
            task: Integer, the task's index.
            results: Dict from the name of each metric to a float array of
                shape `(num_learners,)`.
        """

    def on_train_end(self):
        """Called at the end of `fit`, also after an error or Ctrl-C."""


class _TaskLoader:
    """Gets tasks from the learners' streams and checks them."""

    def __init__(self, streams, batch_size):
        self._streams = streams
        self._batch_size = batch_size
        self._expected = None

    def load(self, task):
        pairs = []
        for learner, stream in enumerate(self._streams):
            pair = stream.task(task)
            self._check(task, learner, pair)
            pairs.append(pair)
        x, y = zip(*pairs)
        return _TaskData(
            _stack_learners(x), _stack_learners(y), self._batch_size
        )

    def _check(self, task, learner, pair):
        where = f"task {task} of the stream of learner {learner}"
        if (
            not isinstance(pair, tuple)
            or len(pair) != 2
            or not all(isinstance(a, np.ndarray) for a in pair)
        ):
            raise ValueError(
                "A stream's `task(index)` must return a tuple `(x, y)` of "
                f"NumPy arrays. Received for {where}: {type(pair)}"
            )
        x, y = pair
        if x.ndim < 1 or y.ndim < 1 or len(x) != len(y):
            raise ValueError(
                "The arrays `x` and `y` of a task must have one entry for each "
                f"example. Received for {where}: x.shape={x.shape}, "
                f"y.shape={y.shape}"
            )
        if len(x) < self._batch_size:
            raise ValueError(
                "A task must have at least one batch of examples. Received "
                f"for {where}: {len(x)} examples, "
                f"batch_size={self._batch_size}"
            )
        for name, array in (("x", x), ("y", y)):
            if array.dtype.kind not in "fiub":
                raise ValueError(
                    f"The arrays of a task must be numbers. Received for "
                    f"{where}: {name}.dtype={array.dtype}"
                )
        received = (x.shape, x.dtype, y.shape, y.dtype)
        if self._expected is None:
            self._expected = received
        if received != self._expected:
            raise ValueError(
                "All tasks of all learners must have the same shapes and "
                f"dtypes. Expected (x, y): {self._expected[:2]}, "
                f"{self._expected[2:]}. Received for {where}: "
                f"{received[:2]}, {received[2:]}"
            )


class _TaskData:
    """One task of all learners, cut into steps."""

    def __init__(self, x, y, batch_size):
        self.x = x
        self.y = y
        self._batch_size = batch_size

    @property
    def bytes_per_learner(self):
        return (self.x.nbytes + self.y.nbytes) // len(self.x)

    def batches(self):
        """Whole batches, and what remains: arrays (learners, steps, batch)."""
        learners, examples = self.x.shape[:2]
        size = self._batch_size
        whole = examples // size * size
        parts = []
        for start, stop, size in (
            (0, whole, size),
            (whole, examples, examples - whole),
        ):
            if stop > start:
                parts.append(
                    [
                        a[:, start:stop].reshape(
                            (learners, (stop - start) // size, size)
                            + a.shape[2:]
                        )
                        for a in (self.x, self.y)
                    ]
                )
        return parts

    def chunks(self, steps):
        """The task as a list of pairs `(x, y)` of about `steps` steps."""
        result = []
        for x, y in self.batches():
            size = _even_size(x.shape[1], steps)
            for start in range(0, x.shape[1], size):
                chunk = slice(start, start + size)
                result.append((x[:, chunk], y[:, chunk]))
        return result

    def distinct_chunks(self, steps):
        """One chunk of each shape."""
        return {x.shape: (x, y) for x, y in self.chunks(steps)}.values()


def _even_size(total, most):
    """Size of the parts of `total`, at most `most`, preferably all equal."""
    number = -(-total // most)
    for candidate in range(number, min(4 * number, total) + 1):
        if total % candidate == 0:
            return total // candidate
    return -(-total // number)


def _stack_learners(arrays):
    # One learner's data is not copied.
    return arrays[0][None] if len(arrays) == 1 else np.stack(arrays)


def _free_memory():
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _stack(results):
    if not results:
        return {}
    return {
        name: np.stack([result[name] for result in results])
        for name in results[0]
    }


def _check_finite(task, results, data):
    broken = np.flatnonzero(~np.isfinite(results[-1]["loss"]))
    if not len(broken):
        return
    in_data = [
        int(learner)
        for learner in broken
        if not all(np.isfinite(a[learner]).all() for a in (data.x, data.y))
    ]
    reason = (
        f"The data of learners {in_data} hold values that are not finite."
        if in_data
        else "The data are finite: the learning rate may be too large."
    )
    error = FloatingPointError(
        f"The loss is not finite in task {task} for learners "
        f"{broken.tolist()}. {reason} Use `on_nan='continue'` to go on with "
        "the other learners."
    )
    error.results = _stack(results)
    raise error
