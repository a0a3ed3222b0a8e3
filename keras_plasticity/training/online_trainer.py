import concurrent.futures
import contextlib
import dataclasses
import functools
import inspect
import json
import math
import time
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from collections.abc import Sized

import keras
import numpy as np

from keras_plasticity import backend
from keras_plasticity import keras_compat
from keras_plasticity import validation
from keras_plasticity.streams import Stream
from keras_plasticity.training.checkpoint import CheckpointError
from keras_plasticity.training.checkpoint import Position
from keras_plasticity.training.checkpoint import standard_dtype
from keras_plasticity.training.finite import check_finite
from keras_plasticity.training.interruption import Interruption
from keras_plasticity.training.interruption import catch_signals
from keras_plasticity.training.journal import AppendOnly
from keras_plasticity.training.learner_groups import LearnerGroups
from keras_plasticity.training.learner_groups import Stopwatch
from keras_plasticity.training.learner_groups import group_sizes
from keras_plasticity.training.run_identity import ModelsIdentity
from keras_plasticity.training.run_identity import RunIdentity
from keras_plasticity.training.saver import Saver
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
_TEST_BATCH_SIZE = 1000


class OnlineTrainer:
    """Trains Keras models on a stream of tasks, in compiled loops.

    The result is that of `model.fit(x, y, batch_size, shuffle=False)` on one
    task after the other, without the overhead of `fit` between the steps, and
    for any number of independent learners.
    (TensorFlow draws other random numbers in what XLA compiles: there it is
    the result of a model that was compiled with `jit_compile=True`.)

    - JAX: a task is a compiled `lax.scan` over the model's `train_step`. All
        learners train side by side in one program (`vmap`), those of
        different settings, too. On a CPU only models of up to 3,000 weights
        do; larger ones train in turn, by the same program.
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
            On JAX, which trains them by one program, they may differ in any
            number that does not decide what is computed: step sizes, momenta,
            rates, thresholds, strengths of penalties, bounds of clipping, a
            dropout rate and so on. What Keras leaves out at zero or `None` (a
            momentum, dropout, clipping) must be so for all of them or for
            none. On TensorFlow and PyTorch, which train one learner after
            another, their settings may differ in anything.
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
        interrupted: Boolean, whether a signal or `stop` ended the last `fit`.
        checkpoint_error: `OSError`, why the last checkpoint could not be
            written; `None` if it was, or if there was none to be.
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
        self.checkpoint_error = None
        self.resumed_from = None
        self._build_model = (lambda learner: model) if is_model else model
        self._is_model_given = is_model
        self._learners = None
        self._prefetches = False
        self._stopwatch = Stopwatch()
        self._is_stopping = False
        # What is compared when a run resumes, of models before any training.
        self._models_identity = None

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
                is written between tasks, and once a minute within long ones,
                using at most 2 % of the run time; at the end; and when a signal
                or `stop` ends the run, wherever it is. Killing the process at
                any instant leaves a valid file. The one before it is kept, too
                (`.previous` stands in its name), and used if the last one is
                damaged. If it cannot be written, training continues:
                see `checkpoint_error`. Defaults to `None`: no checkpoint.
            resume: Boolean, whether to resume from `checkpoint`, with the same
                results as without an interruption. Models, optimizers, losses,
                metrics, callbacks and the first task's data must be as they
                were; only `num_tasks` may have changed. (The code of your own
                functions is not compared, nor the random numbers of unseeded
                initializers.) If there is no such file, training starts from
                the beginning. Defaults to `False`: there must be no such file.

        Returns:
            Dict from the name of each metric (`"loss"` and those the model
            was compiled with) to a float array of shape
            `(tasks, num_learners)`: its value over the last epoch of each
            task, measured before each update. With test data there are also
            `"test_loss"` and so on. After an interruption the arrays hold the
            finished tasks, and `interrupted` is `True`.

            In the main thread the first Ctrl-C ends training after the steps
            that are being computed, about a second. So do SIGTERM and SIGHUP,
            which then end the process, unless the program handles these
            signals itself. A second signal ends it at once.

        Raises:
            CheckpointError: If the checkpoint is damaged, or belongs to another
                run. It is a `ValueError`.
            FileExistsError: If there is a checkpoint and `resume` is `False`.
            FloatingPointError: If a loss is not finite and `on_nan="stop"`.
                The message names the learners, the task, and the layer whose
                weights or statistics are the first not finite. The results
                up to that task are in its attribute `results`.
            MemoryError: If the learners do not fit into memory.
            TypeError: If `stream` is neither a stream nor a function that
                returns one for each learner.
            ValueError: If a stream returns data that cannot be used, or if on
                JAX the learners differ in what one program cannot have; the
                message names it.
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
        self.checkpoint_error = None
        self.resumed_from = None
        self._is_stopping = False
        self._stopwatch.forget()
        settings = {
            "backend": keras.backend.backend(),
            "num_learners": self.num_learners,
            "batch_size": batch_size,
            "epochs": epochs,
            "first_task": first_task,
            "callbacks": [
                [type(callback).__name__, callback.get_config()]
                for callback in callbacks
            ],
        }
        # As a checkpoint has them: tuples are lists there.
        saver = Saver(checkpoint, json.loads(json.dumps(settings)))
        saved = saver.load(resume)
        loader = TaskLoader(streams, batch_size, self._prepare)
        with catch_signals() as caught:
            run = _Run(tasks, epochs, callbacks, loader, saver, caught)
            self._fit(run, saved, on_nan)
        return _stack(run.results)

    def stop(self):
        """Ends `fit` after the steps that are being computed.

        It may be called by a callback, by another thread or by a handler of
        signals. `fit` writes a checkpoint, from where the run can be resumed to
        the same results, and returns; `interrupted` is `True` then.
        """
        self._is_stopping = True

    def model(self, learner: int = 0) -> keras.Model:
        """A learner's model in its present state.

        Args:
            learner: Integer. Defaults to 0.

        Returns:
            The compiled `keras.Model`, with the learner's settings. On JAX,
            learners of the same settings share one model object, and no more
            than one model has the values of its learner: use it before asking
            for the next. To change something in it, see `edit`.
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

    def _build(self, data, run, jit_compile, sizes=None, is_resumed=False):
        """Builds the learners for a run, in groups of these sizes if given."""
        start = time.perf_counter()
        first = self._built_model(0, data, run)
        if sizes is None:
            sizes = self._group_sizes(first, data)
        elif sum(sizes) != self.num_learners or min(sizes) < 1:
            raise CheckpointError(
                f"The checkpoint has groups of {sizes} learners, which are not "
                f"{self.num_learners} in all."
            )

        def models():
            yield first
            for learner in range(1, self.num_learners):
                model = self._built_model(learner, data, run)
                if model is first:
                    raise ValueError(
                        "`model` must be a function that returns a new model "
                        "for each learner. Received the same model for "
                        f"learners 0 and {learner}: {model!r}"
                    )
                yield model

        steps_per_epoch = math.ceil(data.num_examples / data.batch_size)
        steps = len(run.tasks) * run.epochs * steps_per_epoch
        is_short = steps < _FEWEST_STEPS_TO_COMPILE and not is_resumed
        is_jax = keras.backend.backend() == "jax"
        if is_short and jit_compile == "auto" and not is_jax:
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

    def _compile(self, loop, learners, data, batches):
        """Compiles the programs for all kinds of batches in a list."""
        start = time.perf_counter()
        for each in batches:
            key = learners, each.kind
            if key not in self._compiled:
                loop.compile(data, each)
                self._compiled.add(key)
        self.compile_seconds += time.perf_counter() - start

    def _fit(self, run, saved, on_nan):
        """Trains on all tasks, from a checkpoint on if there is one."""
        if saved is not None:
            self._restore(saved, run)
        with concurrent.futures.ThreadPoolExecutor(1) as background:
            tasks = run.tasks[len(run.results) :]
            coming = run.loader.load_ahead(tasks, background)
            try:
                for task, data in coming:
                    self._identify(run, task, data)
                    if self._learners is None:
                        self._build(data, run, self.jit_compile)
                    run.results.append(self._run_task(task, data, run))
                    if on_nan == "stop":
                        check_finite(
                            task, run.results, data, self._learners.model
                        )
                    is_last = task == run.tasks[-1]
                    stops = self._stops(run) and not is_last
                    if is_last or stops or run.saver.is_due():
                        self._save(run)
                    if stops:
                        raise _Stopped
            except _Stopped:
                self.interrupted = True
            except KeyboardInterrupt:
                # Of a program's own handler: the steps may be half done.
                if run.caught.signal is not None:
                    raise  # It is the second one.
                self.interrupted = True
            finally:
                coming.close()
                self._is_stopping = False
                self.checkpoint_error = run.saver.error
                for callback in run.callbacks:
                    callback.on_train_end()
                if self._is_model_given and self._learners is not None:
                    # On JAX the loop trains a copy of the model's state.
                    self._learners.model(0)

    def _stops(self, run):
        return self._is_stopping or run.caught.signal is not None

    def _identify(self, run, task, data):
        """Finds out which run it is, for its checkpoints."""
        if not run.saver.is_on or run.saver.identity is not None:
            return
        orders = run.loader.orders(
            task, 0, data.num_examples, range(self.num_learners)
        )
        run.saver.identity = RunIdentity(task, data, orders)
        # Without learners those of a build that has failed are of no use.
        if self._models_identity is None or self._learners is None:
            self._models_identity = ModelsIdentity()
            if self._learners is not None:  # There was no checkpoint so far.
                for learner in range(self.num_learners):
                    self._models_identity.add(self.model(learner))
        run.saver.identity.models = self._models_identity

    def _save(self, run, position=None):
        def content():
            for result in run.results[len(run.saved_results) :]:
                run.saved_results.append(
                    {name: values.tolist() for name, values in result.items()}
                )
            return dict(
                tasks_done=len(run.results),
                results=run.saved_results,
                state=self._learners.get_state(),
                callbacks=[callback.get_state() for callback in run.callbacks],
                train_seconds=self.train_seconds,
                compile_seconds=self.compile_seconds,
                jit_compile=self._jit_compiles,
                group_sizes=[
                    len(group.learners) for group in self._learners.groups
                ],
                position=position,
            )

        run.saver.save(content)

    def _restore(self, saved, run):
        """Restores a checkpoint."""
        done, position = saved.tasks_done, saved.position
        if done + (position is not None) > len(run.tasks):
            raise CheckpointError(
                "The checkpoint belongs to a run that is further already: "
                f"{done} tasks are done. Received: num_tasks={len(run.tasks)}"
            )
        data = run.loader.load(run.tasks[0])
        self._identify(run, run.tasks[0], data)
        run.saver.check_data(saved)
        if self._learners is None:
            # As it was before the interruption.
            jit_compile = self.jit_compile
            if jit_compile == "auto":
                jit_compile = saved.jit_compile
            elif bool(saved.jit_compile) != jit_compile:
                raise CheckpointError(
                    "The checkpoint belongs to a run whose steps were "
                    f"{'' if saved.jit_compile else 'not '}compiled. "
                    f"Received: jit_compile={jit_compile}"
                )
            sizes = None if position is None else saved.group_sizes
            self._build(data, run, jit_compile, sizes, is_resumed=True)
        run.saver.check_models(saved)
        _check_like("variables", saved.state, self._learners.get_state())
        self._learners.set_state(saved.state)
        if position is not None:
            _check_position(position, self._learners.groups, run.epochs)
            self._learners.groups[position.group].loop.set_metrics(
                position.metrics
            )
        self._stopwatch.seconds = saved.train_seconds
        self.compile_seconds += saved.compile_seconds
        if len(saved.callbacks) != len(run.callbacks):
            raise CheckpointError(
                f"The checkpoint has states of {len(saved.callbacks)} "
                f"callbacks. Received: {len(run.callbacks)} callbacks"
            )
        for callback, state in zip(run.callbacks, saved.callbacks):
            if state is not None:
                _set_state(callback, state)
        if done < len(run.tasks):
            self.resumed_from = run.tasks[done]
        run.position = position
        run.results = [
            {name: np.array(values) for name, values in result.items()}
            for result in saved.results
        ]

    def _built_model(self, learner, data, run):
        model = self._build_model(learner)
        if not isinstance(model, keras.Model) or not model.compiled:
            raise ValueError(
                "`model` must be compiled, or a function that returns compiled "
                "models: call `model.compile(optimizer, loss, metrics)`. "
                f"Received for learner {learner}: {model!r}"
            )
        keras_compat.build_for_training(model, *data.first_batch(learner))
        if run.saver.is_on:
            self._models_identity.add(model)
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

    def _run_task(self, task, data, run):
        """Trains on a task, and tests; returns its results."""
        position, run.position = run.position, None
        parts = []
        if position is None:
            for callback in run.callbacks:
                callback.on_task_begin(task, *data.data[:2])
        else:
            parts = position.parts
        for number in range(len(parts), len(self._learners.groups)):
            parts.append(
                self._train_group(number, task, data, run, parts, position)
            )
            position = None
        if any(part.keys() != parts[-1].keys() for part in parts):
            raise CheckpointError(
                "The checkpoint has other results of learners that have ended "
                f"the task: {list(parts[0])}, not {list(parts[-1])}."
            )
        results = {
            name: np.concatenate([part[name] for part in parts])
            for name in parts[0]
        }
        for callback in run.callbacks:
            callback.on_task_end(task, results)
        return results

    def _train_group(self, number, task, data, run, parts, position):
        """Trains some learners on a task, and tests them.

        Args:
            number: Integer, the group.
            task: Integer.
            data: `TaskData` of all learners.
            run: `_Run`.
            parts: List of the results of the groups before it.
            position: `Position` to resume from; `None` to begin.

        Returns:
            Dict, the group's results.
        """
        learners, loop = self._learners.groups[number]
        num_groups = len(self._learners.groups)
        data = data.of(learners)
        on_device = data.on_device
        if on_device is None:
            on_device = loop.put(data.data)
        stopwatch = self._stopwatch
        first_epoch, done = 0, 0
        if position is not None:
            first_epoch, done = position.epoch, position.steps
        for epoch in range(first_epoch, run.epochs):
            orders = run.loader.orders(task, epoch, data.num_examples, learners)
            batches = data.batches(self._most_steps, orders)
            self._compile(loop, learners, on_device, batches)
            if not done:
                # The results are those of one epoch.
                loop.reset_metrics()
            total = sum(each.steps for each in batches)
            if done > total:
                raise CheckpointError(
                    "The checkpoint is of another run: it has made "
                    f"{done} steps of an epoch that has {total}."
                )
            for each in _from_step(batches, done):
                self._stop_or_save(run, number, epoch, done, parts)
                stopwatch.run(loop, on_device, each)
                done += each.steps
                share = number + (epoch + done / total) / run.epochs
                for callback in run.callbacks:
                    callback.on_progress(task, share / num_groups)
            done = 0
            # Of an epoch that nobody asks for they are not computed.
            results = functools.cache(
                functools.partial(self._epoch_results, loop, data)
            )
            for callback in run.callbacks:
                callback.on_task_epoch_end(task, epoch, learners, results)
        return results()

    def _epoch_results(self, loop, data):
        """The metrics of the epoch that has ended; those of a test, too."""
        self._stopwatch.wait(loop)
        results = loop.results()
        if data.test is not None:
            results |= _evaluate(loop, data)
        return results

    def _stop_or_save(self, run, number, epoch, done, parts):
        """Ends a run that shall stop, and saves it if that is due."""
        stops = self._stops(run)
        if stops or run.saver.is_due(within_task=True):
            loop = self._learners.groups[number].loop
            self._stopwatch.wait(loop)
            metrics = loop.get_metrics()
            self._save(run, Position(number, epoch, done, metrics, parts))
        if stops:
            raise _Stopped


class _Stopped(Exception):
    """A signal, or `stop`, has ended the run."""


@dataclasses.dataclass
class _Run:
    """One call of `fit`.

    Attributes:
        tasks: Range of the tasks.
        epochs: Integer.
        callbacks: List of `TaskCallback`s.
        loader: `TaskLoader`.
        saver: `Saver`.
        caught: `Interruption`, which has the signal that was received.
        results: List with the results of each task that is done.
        saved_results: The same as checkpoints have them, those of the last one.
        position: `Position` within the next task that was restored; `None` if
            it begins.
    """

    tasks: range
    epochs: int
    callbacks: list[TaskCallback]
    loader: TaskLoader
    saver: Saver
    caught: Interruption
    results: list[dict[str, np.ndarray]] = dataclasses.field(
        default_factory=list
    )
    saved_results: AppendOnly = dataclasses.field(default_factory=AppendOnly)
    position: Position | None = None


def _from_step(batches, done):
    """Those of some `Batches` in a row that follow after so many steps."""
    for each in batches:
        if done >= each.steps:
            done -= each.steps
        elif done:
            yield each.from_step(done)
            done = 0
        else:
            yield each


def _check_like(name, there, here):
    """Checks that arrays of a checkpoint are such as those of this run."""
    there, here = _specs(there), _specs(here)
    if there != here:
        raise CheckpointError(
            "The checkpoint belongs to another model or optimizer: their "
            f"{name} differ in number, shape or type. Received {name} "
            f"{here}, the checkpoint has {there}"
        )


def _specs(arrays):
    return [f"{standard_dtype(a.dtype)} {a.shape}" for a in arrays]


def _set_state(callback, state):
    try:
        callback.set_state(state)
    except Exception as error:  # Of whatever it makes of it.
        raise CheckpointError(
            f"The callback `{type(callback).__name__}` cannot restore the "
            "state that the checkpoint has of it "
            f"({type(error).__name__}: {error})"
        ) from error


def _check_position(position, groups, epochs):
    if (
        position.group >= len(groups)
        or position.epoch >= epochs
        or len(position.parts) != position.group
    ):
        raise CheckpointError(
            "The checkpoint is of another run: it is in epoch "
            f"{position.epoch} of the learners of group {position.group}. "
            f"Received: {len(groups)} groups, epochs={epochs}"
        )
    loop = groups[position.group].loop
    _check_like("metrics", position.metrics, loop.get_metrics())


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
