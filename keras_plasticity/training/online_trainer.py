import concurrent.futures
import contextlib
import inspect
import math
import os
import time
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from collections.abc import Sized

import keras
import numpy as np
from absl import logging

from keras_plasticity import backend
from keras_plasticity import keras_compat
from keras_plasticity import validation
from keras_plasticity.streams import Stream
from keras_plasticity.training import checkpoint as checkpoints
from keras_plasticity.training.finite import check_finite
from keras_plasticity.training.learner_groups import LearnerGroups
from keras_plasticity.training.learner_groups import Stopwatch
from keras_plasticity.training.learner_groups import group_sizes
from keras_plasticity.training.task_callback import TaskCallback
from keras_plasticity.training.tasks import TaskLoader

if keras.backend.backend() == "jax":
    from keras_plasticity.training.jax_loop import JaxLoop as Loop
elif keras.backend.backend() == "tensorflow":
    from keras_plasticity.training.tensorflow_loop import TensorFlowLoop as Loop
else:
    from keras_plasticity.training.torch_loop import TorchLoop as Loop

# So many steps are one call of a compiled program. It should take about a
# second: long enough to amortize the call, short enough for a progress bar and
# for Ctrl-C. An online step takes about this many seconds for each weight.
_SECONDS_PER_WEIGHT = 5e-10
_FEWEST_STEPS = 100
_MOST_STEPS = 100_000
# Compiling takes some seconds, and saves some 0.1 to 3 ms a step.
_FEWEST_STEPS_TO_COMPILE = 10_000
# Checkpointing may use at most this share of the run time.
_MAX_CHECKPOINT_SHARE = 1 / 50
_TEST_BATCH_SIZE = 1000


class OnlineTrainer:
    """Trains Keras models on a stream of tasks, in compiled loops.

    The result is that of `model.fit(x, y, batch_size, shuffle=False)` on one
    task after the other, without the overhead of `fit` between the steps, and
    for any number of independent learners.
    (TensorFlow draws other random numbers in what XLA compiles: there it is
    the result of a model that was compiled with `jit_compile=True`.)

    - JAX: a task is a compiled `lax.scan` over the model's `train_step`. All
        learners train side by side in one program (`vmap`). On a CPU only
        models of up to 3,000 weights do; larger ones train in turn.
        On a CPU, models with convolutions train by a Python loop over one
        compiled step instead.
    - TensorFlow: a task is a `tf.function` with a loop, compiled by XLA;
        learners train one after another.
    - PyTorch: a loop over one compiled step; learners train one after
        another.

    Only callbacks reset anything between tasks.

    Args:
        model: A compiled `keras.Model`, which has the trained weights when
            `fit` ends; or a function that takes a learner's index and returns
            one, whose models `trainer.model(learner)` returns. The function
            should seed each learner's initializers, dropout and optimizer with
            its index, and all of its models must have the same architecture.
            On JAX, which trains them by one program, they may otherwise differ
            only in what is held in variables, such as a learning rate that
            is no schedule.
        num_learners: Integer, the number of independent learners. For more
            than one, `model` must be a function. Defaults to 1.
        jit_compile: Boolean, or `"auto"` (default): whether steps are compiled
            (on TensorFlow by XLA, on PyTorch by `torch.compile`'s compiler),
            whatever the models' own `jit_compile` says of their `fit`. With
            `"auto"` they are if there are 10,000 steps or more to make in the
            first `fit`: fewer do not make up for the time that compiling
            takes. Where it is not possible, or slower, a warning says why.
            With `True` it is an error if they cannot be compiled. JAX always
            compiles.

    Attributes:
        train_seconds: Float, the time spent in training steps.
        compile_seconds: Float, the time spent building and compiling.
        interrupted: Boolean, whether Ctrl-C ended the last `fit`.
        resumed_from: Integer, the first task that the last `fit` had to train
            on after a checkpoint; `None` if it started afresh.

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
        jit_compile: bool | str = "auto",
    ):
        num_learners = validation.check_positive_integer(
            "num_learners", num_learners
        )
        is_model = isinstance(model, keras.Model)
        if not is_model and not callable(model):
            raise TypeError(
                "`model` must be a compiled `keras.Model`, or a function of a "
                "learner's index that returns one. "
                f"{validation.received('model', model)}"
            )
        if not is_model:
            _check_takes_learner("model", model)
        if is_model and num_learners > 1:
            raise ValueError(
                "Several learners need several models: give `model` a function "
                "of the learner's index that returns a compiled model. "
                f"Received: model={model!r}, num_learners={num_learners}"
            )
        self.num_learners = num_learners
        self.jit_compile = _check_jit_compile(jit_compile)
        self.compile_seconds = 0.0
        self.interrupted = False
        self.resumed_from = None
        self._build_model = (lambda learner: model) if is_model else model
        self._is_model_given = is_model
        self._learners = None
        self._prefetches = False
        self._stopwatch = Stopwatch()

    @property
    def train_seconds(self) -> float:
        return self._stopwatch.seconds

    def fit(
        self,
        stream: Stream | Callable[[int], Stream],
        batch_size: int = 1,
        epochs: int = 1,
        first_task: int = 0,
        num_tasks: int | None = None,
        callbacks: Sequence[TaskCallback] | None = None,
        on_nan: str = "stop",
        checkpoint: str | None = None,
        resume: bool = False,
    ) -> dict[str, np.ndarray]:
        """Trains all learners on the tasks of their streams.

        Args:
            stream: A `keras_plasticity.streams.Stream`: an object with a method
                `task(index)` that returns a tuple `(x, y)` or
                `(x, y, sample_weight)` as `model.fit` takes them, NumPy arrays
                or lists, tuples or dicts of arrays; or a function that takes a
                learner's index and returns such an object. All tasks of all
                learners must have the same shapes. If the stream has a method
                `test(index)` that returns such a tuple, learners are evaluated
                on it after the last epoch of each task; if it has a method
                `order(index, epoch)` that returns a permutation, each epoch
                shows the examples in that order. `task` and `test` are called
                from a second thread, one task ahead: what they return must
                depend on their arguments only.
            batch_size: Integer, the number of examples a step. Defaults to 1.
            epochs: Integer, the number of passes over each task. Defaults
                to 1.
            first_task: Integer, the first task. Defaults to 0.
            num_tasks: Integer, the number of tasks. Defaults to all of them,
                those of the shortest stream. It must be given for streams
                without a length.
            callbacks: List of `TaskCallback`s.
            on_nan: What to do when the loss of a learner is not finite:
                `"stop"` (default) raises an error after that task,
                `"continue"` continues with all learners. The others are not
                affected.
            checkpoint: String, a file to resume from after an interruption. It
                is written between tasks, using at most 2 % of the run time,
                and at the end. Killing the process at any instant leaves a
                valid file. Defaults to `None`: no checkpoint.
            resume: Boolean, whether to resume from `checkpoint`, with the same
                results as without an interruption; only `num_tasks` may
                have changed. If there is no such file, training starts from
                the beginning. Defaults to `False`: there must be no such file.

        Returns:
            Dict from the name of each metric (`"loss"` and those the model
            was compiled with) to a float array of shape
            `(tasks, num_learners)`: its value over the last epoch of each
            task, measured before each update. With test data there are also
            `"test_loss"` and so on. After Ctrl-C the arrays hold the finished
            tasks, and `interrupted` is `True`.

        Raises:
            FileExistsError: If there is a checkpoint and `resume` is `False`.
            FloatingPointError: If a loss is not finite and `on_nan="stop"`.
                The message names the learners, the task, and the layer whose
                weights or statistics are the first not finite. The results
                up to that task are in its attribute `results`.
            MemoryError: If the learners do not fit into memory.
            TypeError: If `stream` is neither a stream nor a function that
                returns one for each learner.
            ValueError: If a stream returns data that cannot be used, if the
                checkpoint belongs to another run, or if on JAX the learners
                differ in more than the values of their variables.
        """
        batch_size = validation.check_positive_integer("batch_size", batch_size)
        epochs = validation.check_positive_integer("epochs", epochs)
        first_task = validation.check_integer("first_task", first_task, 0)
        if num_tasks is not None:
            num_tasks = validation.check_positive_integer(
                "num_tasks", num_tasks
            )
        callbacks = _check_callbacks(callbacks)
        validation.check_choice("on_nan", on_nan, ("stop", "continue"))
        if checkpoint is not None:
            checkpoint = validation.check_path("checkpoint", checkpoint)
        resume = validation.check_boolean("resume", resume)
        streams = self._get_streams(stream)
        tasks = _select_tasks(streams, first_task, num_tasks)
        for callback in callbacks:
            callback.trainer = self
        self.interrupted = False
        self.resumed_from = None
        self._stopwatch.forget()
        settings = {
            "backend": keras.backend.backend(),
            "num_learners": self.num_learners,
            "batch_size": batch_size,
            "epochs": epochs,
            "first_task": first_task,
            "callbacks": [type(callback).__name__ for callback in callbacks],
        }
        saver = _Saver(checkpoint, settings, callbacks)
        saved = saver.load(resume)
        loader = TaskLoader(streams, batch_size, self._prepare)
        results = []
        if saved is not None:
            results = self._restore(saved, tasks, epochs, callbacks, loader)
        with concurrent.futures.ThreadPoolExecutor(1) as background:
            coming = loader.load_ahead(tasks[len(results) :], background)
            try:
                for task, data in coming:
                    if self._learners is None:
                        number = len(tasks) * epochs
                        self._build(data, number, self.jit_compile)
                    results.append(
                        self._run_task(task, data, epochs, callbacks, loader)
                    )
                    if on_nan == "stop":
                        check_finite(task, results, data, self._learners.model)
                    saver.save(self, results, is_last=task == tasks[-1])
            except KeyboardInterrupt:
                self.interrupted = True
                coming.close()
            finally:
                for callback in callbacks:
                    callback.on_train_end()
                if self._is_model_given and self._learners is not None:
                    # On JAX the loop trains a copy of the model's state.
                    self._learners.model(0)
        return _stack(results)

    def model(self, learner: int = 0) -> keras.Model:
        """A learner's model in its present state.

        Args:
            learner: Integer. Defaults to 0.

        Returns:
            The compiled `keras.Model`. With several learners on JAX they share
            one model object: use it before asking for the next. To change
            something in it, see `edit`.
        """
        if self._learners is None:
            raise ValueError("The learners are built when `fit` is called.")
        learner = validation.check_integer(
            "learner", learner, 0, self.num_learners - 1
        )
        return self._learners.model(learner)

    @contextlib.contextmanager
    def edit(self, learner: int = 0) -> Iterator[keras.Model]:
        """A context in which a learner's weights may be changed.

        Args:
            learner: Integer. Defaults to 0.

        Yields:
            The compiled `keras.Model`, as `model(learner)` returns it. Training
            continues with the values that its variables and those of its
            optimizer have at the end of the context.

        Example:

        ```python
        class ZeroHead(keras_plasticity.training.TaskCallback):
            def on_task_begin(self, task, x, y):
                for learner in range(self.trainer.num_learners):
                    with self.trainer.edit(learner) as model:
                        kernel = model.layers[-1].kernel
                        kernel.assign(keras.ops.zeros(kernel.shape))
        ```
        """
        yield self.model(learner)
        self._learners.load_from_model(int(learner))

    def _get_streams(self, stream):
        if hasattr(stream, "task") and not isinstance(stream, type):
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
                f"{validation.received('stream', stream)}"
            )
        _check_takes_learner("stream", stream)
        streams = [stream(learner) for learner in range(self.num_learners)]
        for learner, each in enumerate(streams):
            if not hasattr(each, "task"):
                raise TypeError(
                    "`stream` must be a function that returns an object with a "
                    "method `task(index)` for each learner. Received for "
                    f"learner {learner}: {each!r}"
                )
        return streams

    def _build(self, data, epochs, jit_compile):
        """Builds the learners, for so many epochs of such data."""
        start = time.perf_counter()
        first = self._built_model(0, data)
        sizes = self._group_sizes(first, data)

        def models():
            yield first
            for learner in range(1, self.num_learners):
                model = self._built_model(learner, data)
                if model is first:
                    raise ValueError(
                        "`model` must be a function that returns a new model "
                        "for each learner. Received the same model for "
                        f"learners 0 and {learner}: {model!r}"
                    )
                yield model

        steps = epochs * math.ceil(data.num_examples / data.batch_size)
        if steps < _FEWEST_STEPS_TO_COMPILE and jit_compile == "auto":
            if keras.backend.backend() != "jax":
                jit_compile = False
        self._jit_compiles = jit_compile
        self._learners = LearnerGroups(
            Loop, models(), sizes, data.first_batch(0), jit_compile
        )
        self._prefetches = len(sizes) == 1 and backend.platform() != "cpu"
        weights = sizes[0] * first.count_params()
        self._most_steps = int(
            np.clip(
                1 / (_SECONDS_PER_WEIGHT * weights * data.batch_size),
                _FEWEST_STEPS,
                _MOST_STEPS,
            )
        )
        self._compiled = set()
        self.compile_seconds += time.perf_counter() - start

    def _compile(self, group, data, batches):
        """Compiles the programs for all kinds of batches in a list."""
        start = time.perf_counter()
        for each in batches:
            key = group.learners, each.kind
            if key not in self._compiled:
                group.loop.compile(data, each)
                self._compiled.add(key)
        self.compile_seconds += time.perf_counter() - start

    def _restore(self, saved, tasks, epochs, callbacks, loader):
        """Restores a checkpoint; returns the results so far, task by task."""
        done = saved.progress["tasks_done"]
        if done > len(tasks):
            raise ValueError(
                "The checkpoint belongs to a run that is further already: "
                f"{done} tasks are done. Received: num_tasks={len(tasks)}"
            )
        if self._learners is None:
            # A finished run must have its models, too.
            data = loader.load(tasks[min(done, len(tasks) - 1)])
            # As it was before the interruption.
            jit_compile = self.jit_compile
            if jit_compile == "auto":
                jit_compile = saved.progress["jit_compile"]
            self._build(data, len(tasks) * epochs, jit_compile)
        shapes = [
            [a.shape for a in state]
            for state in (saved.state, self._learners.get_state())
        ]
        if shapes[0] != shapes[1]:
            raise ValueError(
                "The checkpoint belongs to another model or optimizer: their "
                "variables differ in number or shape. Received variables of "
                f"the shapes {shapes[1]}, the checkpoint has {shapes[0]}"
            )
        self._learners.set_state(saved.state)
        self._stopwatch.seconds = saved.progress["train_seconds"]
        self.compile_seconds += saved.progress["compile_seconds"]
        for callback, state in zip(callbacks, saved.progress["callbacks"]):
            if state is not None:
                callback.set_state(state)
        if done < len(tasks):
            self.resumed_from = tasks[done]
        return [
            {name: values[task] for name, values in saved.results.items()}
            for task in range(done)
        ]

    def _built_model(self, learner, data):
        model = self._build_model(learner)
        if not isinstance(model, keras.Model) or not model.compiled:
            raise ValueError(
                "`model` must be compiled, or a function that returns compiled "
                "models: call `model.compile(optimizer, loss, metrics)`. "
                f"Received for learner {learner}: {model!r}"
            )
        keras_compat.build_for_training(model, *data.first_batch(learner))
        return model

    def _group_sizes(self, model, data):
        """How many learners train side by side; see `group_sizes`."""
        if self.num_learners == 1:
            return [1]
        variables = model.variables + model.optimizer.variables
        state = 4 * sum(math.prod(v.shape) for v in variables)
        # Data of this task and of the next one lie in the host's memory. Of
        # those that train there are the update that is being computed, and
        # the data on the device: on an accelerator those of the next task,
        # too.
        each, active = state, 2 * state + 2 * data.bytes_per_learner
        if backend.platform() == "cpu":
            each = state + 2 * data.bytes_per_learner
            active = 2 * state + data.bytes_per_learner
        return group_sizes(
            self.num_learners, each, active, backend.free_memory()
        )

    def _prepare(self, data):
        """Moves the next task's data to an accelerator while one trains."""
        if self._prefetches:
            (group,) = self._learners.groups
            data.on_device = group.loop.put(data.data)

    def _run_task(self, task, data, epochs, callbacks, loader):
        """Trains on a task, and tests; returns its results."""
        for callback in callbacks:
            callback.on_task_begin(task, *data.data[:2])
        groups = self._learners.groups

        def tell_progress(group, share):
            done = (groups.index(group) + share) / len(groups)
            for callback in callbacks:
                callback.on_progress(task, done)

        parts = [
            self._train_group(group, task, data, epochs, loader, tell_progress)
            for group in groups
        ]
        results = {
            name: np.concatenate([part[name] for part in parts])
            for name in parts[0]
        }
        for callback in callbacks:
            callback.on_task_end(task, results)
        return results

    def _train_group(self, group, task, data, epochs, loader, tell_progress):
        """Trains some learners on a task, and tests them."""
        learners, loop = group
        data = data.of(learners)
        on_device = data.on_device
        if on_device is None:
            on_device = loop.put(data.data)
        stopwatch = self._stopwatch
        for epoch in range(epochs):
            orders = loader.orders(task, epoch, data.num_examples, learners)
            batches = data.batches(self._most_steps, orders)
            self._compile(group, on_device, batches)
            if epoch in (0, epochs - 1):
                # The results are those of the last epoch.
                loop.reset_metrics()
            for number, each in enumerate(batches):
                stopwatch.run(loop, on_device, each)
                share = (number + 1) / len(batches)
                tell_progress(group, (epoch + share) / epochs)
        stopwatch.wait(loop)
        results = loop.results()
        if data.test is not None:
            results |= _evaluate(loop, data)
        return results


class _Saver:
    """Writes a run's checkpoints, and reads the one to resume from."""

    def __init__(self, path, settings, callbacks):
        self._path = path
        self._settings = settings
        self._callbacks = callbacks
        self._last = time.perf_counter()
        self._seconds = 0.0

    def load(self, resume):
        if self._path is None:
            if resume:
                raise ValueError(
                    "`resume=True` needs a `checkpoint` to resume from. "
                    "Received: resume=True, checkpoint=None"
                )
            return None
        if not os.path.exists(self._path):
            if resume:
                logging.warning(
                    "There is no checkpoint at %s to resume from: training "
                    "starts afresh.",
                    self._path,
                )
            return None
        if not resume:
            raise FileExistsError(
                "There is a checkpoint of another run already. Set "
                "`resume=True` to resume from it, or remove it. "
                f"Received: checkpoint={self._path}"
            )
        saved = checkpoints.load(self._path)
        differences = checkpoints.differences(saved.settings, self._settings)
        if differences:
            raise ValueError(
                "The checkpoint belongs to a run with other settings: "
                f"{'; '.join(differences)}. "
                f"Received: checkpoint={self._path}"
            )
        return saved

    def save(self, trainer, results, is_last):
        start = time.perf_counter()
        waited = start - self._last
        if self._path is None:
            return
        if self._seconds > _MAX_CHECKPOINT_SHARE * waited and not is_last:
            return
        checkpoints.Checkpoint(
            settings=self._settings,
            progress={
                "tasks_done": len(results),
                "train_seconds": trainer.train_seconds,
                "compile_seconds": trainer.compile_seconds,
                "jit_compile": trainer._jit_compiles,
                "callbacks": [each.get_state() for each in self._callbacks],
            },
            results=_stack(results),
            state=trainer._learners.get_state(),
        ).save(self._path)
        self._last = time.perf_counter()
        self._seconds = self._last - start


def _check_jit_compile(value):
    if isinstance(value, str) and value == "auto":
        return value
    if not isinstance(value, (bool, np.bool_)):
        raise validation.error("jit_compile", 'a boolean, or "auto"', value)
    if not value and keras.backend.backend() == "jax":
        raise ValueError(
            "JAX always compiles the training steps, so `jit_compile` must be "
            '`True` or "auto". Received: jit_compile=False'
        )
    return bool(value)


def _check_callbacks(callbacks):
    if callbacks is None:
        return []
    rule = (
        "a list of `keras_plasticity.training.TaskCallback`s; those of Keras "
        "are for `fit` of a model"
    )
    return validation.check_list("callbacks", callbacks, TaskCallback, rule)


def _check_takes_learner(name, function):
    """Checks that a function can be called with a learner's index."""
    try:
        signature = inspect.signature(function)
    except ValueError:
        return  # Some functions written in C do not tell.
    try:
        signature.bind(0)
    except TypeError as error:
        raise TypeError(
            f"`{name}` must be a function of one argument, a learner's index, "
            "such as `lambda learner: ...`. Received: "
            f"{name}={function!r} with the arguments {signature}"
        ) from error


def _select_tasks(streams, first_task, num_tasks):
    """The range of the tasks to train on, which all streams have."""
    lengths = [
        len(stream) if isinstance(stream, Sized) else math.inf
        for stream in streams
    ]
    length = min(lengths)
    if num_tasks is None:
        if length == math.inf:
            raise ValueError(
                "`num_tasks` must be given for a stream without a length: "
                "give it, or give the stream a method `__len__` that returns "
                f"its number of tasks. Received: num_tasks=None, {streams[0]!r}"
            )
        num_tasks = length - first_task
    tasks = range(first_task, first_task + num_tasks)
    if num_tasks < 1 or first_task < 0 or tasks[-1] >= length:
        shortest = lengths.index(length)
        whose = f" of learner {shortest}" if shortest else ""
        number = "no end" if length == math.inf else length
        raise ValueError(
            "`first_task` and `num_tasks` must name tasks of the stream"
            f"{whose}, which has {number}. Received: "
            f"first_task={first_task}, num_tasks={num_tasks}"
        )
    return tasks


def _evaluate(loop, data):
    """Metrics on the test data, named `test_loss` and so on."""
    loop.reset_metrics()
    test = loop.put(data.test)
    for start in range(0, data.num_test_examples, _TEST_BATCH_SIZE):
        loop.evaluate(test, slice(start, start + _TEST_BATCH_SIZE))
    results = loop.results()
    return {f"test_{name}": results[name] for name in results}


def _stack(results):
    if not results:
        return {}
    return {
        name: np.stack([result[name] for result in results])
        for name in results[0]
    }
