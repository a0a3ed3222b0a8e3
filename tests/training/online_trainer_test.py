import signal

import keras
import numpy as np
import pytest
from absl import logging

import keras_plasticity
from keras_plasticity import backend
from keras_plasticity.training import OnlineTrainer
from keras_plasticity.training import TaskCallback
from keras_plasticity.training import online_trainer
from keras_plasticity.training.learner_groups import group_sizes
from keras_plasticity.training.tasks import TaskData
from keras_plasticity.training.training_loop import TrainingLoop
from tests.helpers import assert_same_weights
from tests.helpers import make_model
from tests.helpers import mostly_slow

DIMS = (4, 6, 5, 3)


class ArrayStream:
    """A stream of a user's own: a few arrays."""

    def __init__(self, num_tasks=3, examples=10, seed=0, classes=False):
        rng = np.random.default_rng(seed)
        self.x = rng.normal(0, 1, (num_tasks, examples, DIMS[0]))
        self.x = self.x.astype("float32")
        if classes:
            self.y = rng.integers(0, DIMS[-1], (num_tasks, examples))
        else:
            self.y = rng.normal(0, 1, (num_tasks, examples, DIMS[-1]))
            self.y = self.y.astype("float32")

    def __len__(self):
        return len(self.x)

    def task(self, index):
        return self.x[index], self.y[index]


def build(seed=0, method="cbp", metrics=None, loss="mse"):
    if method == "bp":
        model = make_model(DIMS, layer=keras.layers.Dense, seed=seed)
        optimizer = keras.optimizers.Adam(0.01)
    else:
        model = make_model(DIMS, seed=seed, kernel_initializer="he_normal")
        optimizer = keras_plasticity.optimizers.ContinualBackprop(
            keras.optimizers.SGD(0.05, momentum=0.9),
            replacement_rate=0.05,
            maturity_threshold=3,
            utility="overall",
            seed=seed,
        )
    model.compile(optimizer=optimizer, loss=loss, metrics=metrics)
    return model


def test_before_it_trains():
    trainer = OnlineTrainer(build())
    assert trainer.compile_seconds == 0.0 and not trainer.interrupted
    assert trainer.checkpoint_error is trainer.resumed_from is None


@pytest.mark.parametrize("method", ["bp", "cbp"])
@pytest.mark.parametrize(
    ("batch_size", "epochs"), [(1, 1), (2, 1), (3, 1), (4, 3)]
)
def test_equals_fit(method, batch_size, epochs):
    stream = ArrayStream(classes=True)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    arguments = dict(method=method, loss=loss, metrics=["accuracy"])
    expected = build(**arguments)
    history = []
    for x, y in map(stream.task, range(len(stream))):
        logs = expected.fit(
            x, y, batch_size, epochs, shuffle=False, verbose=0
        ).history
        history.append(logs)
    model = build(**arguments)
    results = OnlineTrainer(model).fit(stream, batch_size, epochs)
    for name in ("loss", "accuracy"):
        assert results[name].shape == (3, 1)
        np.testing.assert_allclose(
            results[name][:, 0], [logs[name][-1] for logs in history], rtol=1e-5
        )


@pytest.mark.parametrize("method", ["bp", "cbp"])
def test_trained_weights_equal_those_of_fit(method):
    stream = ArrayStream(examples=40)
    expected = build(method=method)
    for x, y in map(stream.task, range(len(stream))):
        expected.fit(x, y, batch_size=1, shuffle=False, verbose=0)
    trainer = OnlineTrainer(build(method=method))
    trainer.fit(stream)
    assert_same_weights(trainer.model(), expected, rtol=1e-4, atol=1e-5)
    if method == "cbp":
        replaced = trainer.model().optimizer.num_replaced()
        assert replaced == expected.optimizer.num_replaced()
        assert sum(replaced.values()) > 20
        for layer, other in zip(trainer.model().layers, expected.layers):
            np.testing.assert_array_equal(
                keras.ops.convert_to_numpy(layer.age),
                keras.ops.convert_to_numpy(other.age),
            )


# On JAX, small models train side by side, larger ones on a CPU one by one.
_IS_JAX = keras.backend.backend() == "jax"


@pytest.mark.parametrize("most", [3000, 0] if _IS_JAX else [None])
@pytest.mark.parametrize("method", ["bp", "cbp"])
def test_each_of_many_learners_equals_one_alone(method, most, monkeypatch):
    if _IS_JAX:
        from keras_plasticity.training import jax_loop

        monkeypatch.setattr(jax_loop, "_MOST_WEIGHTS_SIDE_BY_SIDE", most)
    together = OnlineTrainer(
        lambda learner: build(seed=learner, method=method), num_learners=3
    )
    results = together.fit(lambda learner: ArrayStream(seed=learner))
    assert results["loss"].shape == (3, 3)
    for learner in range(3):
        alone = OnlineTrainer(build(seed=learner, method=method))
        expected = alone.fit(ArrayStream(seed=learner))
        np.testing.assert_allclose(
            results["loss"][:, learner], expected["loss"][:, 0], rtol=1e-4
        )
        assert_same_weights(
            together.model(learner), alone.model(), rtol=1e-3, atol=1e-5
        )


class ImageStream:
    """Tasks of small images, with or without an order of its own."""

    def __init__(self, seed, in_order):
        rng = np.random.default_rng(seed)
        self.x = rng.normal(0, 1, (2, 6, 4, 4, 1)).astype("float32")
        self.y = rng.normal(0, 1, (2, 6, 1)).astype("float32")
        if in_order:
            self.order = lambda index, epoch: rng.permutation(6)

    def __len__(self):
        return 2

    def task(self, index):
        return self.x[index], self.y[index]


def build_convolutional(learner):
    model = keras.Sequential(
        [
            keras.Input((4, 4, 1)),
            keras.layers.Conv2D(
                2,
                3,
                activation="tanh",
                kernel_initializer=keras.initializers.HeNormal(learner),
                name="convolution",
            ),
            keras.layers.Flatten(),
            keras.layers.Dense(1, kernel_initializer="ones", name="last"),
        ]
    )
    model.compile(keras.optimizers.SGD(0.1), "mse")
    return model


# On JAX, a CPU makes the steps of convolutions one by one.
@pytest.mark.parametrize("most", [3000, 0] if _IS_JAX else [None])
@pytest.mark.parametrize("in_order", [False, True])
def test_each_of_many_convolutional_learners_equals_one_alone(
    most, in_order, monkeypatch
):
    if _IS_JAX:
        from keras_plasticity.training import jax_loop

        monkeypatch.setattr(jax_loop, "_MOST_WEIGHTS_SIDE_BY_SIDE", most)
    # As many learners as steps and examples of one: no axis may be mistaken.
    together = OnlineTrainer(build_convolutional, num_learners=3)
    results = together.fit(lambda i: ImageStream(i, in_order), batch_size=2)
    for learner in range(3):
        alone = OnlineTrainer(build_convolutional(learner))
        expected = alone.fit(ImageStream(learner, in_order), batch_size=2)
        np.testing.assert_allclose(
            results["loss"][:, learner], expected["loss"][:, 0], rtol=1e-4
        )
        assert_same_weights(
            together.model(learner), alone.model(), rtol=1e-3, atol=1e-5
        )


def test_layers_with_random_state_draw_anew_at_each_step():
    def build_with_dropout():
        keras.utils.set_random_seed(3)
        model = keras.Sequential(
            [
                keras.Input((DIMS[0],)),
                keras_plasticity.layers.Dense(
                    6, activation="relu", name="hidden"
                ),
                keras.layers.Dropout(0.5, seed=1),
                keras_plasticity.layers.Dense(DIMS[-1], name="output"),
            ]
        )
        model.compile(
            keras_plasticity.optimizers.ContinualBackprop(
                keras.optimizers.SGD(0.05), replacement_rate=0.01, seed=0
            ),
            loss="mse",
        )
        return model

    stream = ArrayStream(examples=30)
    expected = build_with_dropout()
    for x, y in map(stream.task, range(len(stream))):
        expected.fit(x, y, batch_size=1, shuffle=False, verbose=0)
    trainer = OnlineTrainer(build_with_dropout())
    trainer.fit(stream)
    assert_same_weights(trainer.model(), expected, rtol=1e-4, atol=1e-5)


def test_chunks_do_not_change_the_result(monkeypatch):
    stream = ArrayStream(examples=23)
    expected = OnlineTrainer(build()).fit(stream, batch_size=2)
    monkeypatch.setattr(online_trainer, "_MOST_STEPS", 4)
    monkeypatch.setattr(online_trainer, "_FEWEST_STEPS", 1)
    results = OnlineTrainer(build()).fit(stream, batch_size=2)
    np.testing.assert_allclose(results["loss"], expected["loss"], rtol=1e-5)


class TestedStream(ArrayStream):
    __test__ = False  # It is none of pytest's tests.

    def test(self, index):
        x, y = self.task(index)
        return x[:7] + 0.5, y[:7]


@pytest.mark.parametrize("num_learners", mostly_slow([1, 2], 2))
def test_test_data_are_evaluated_after_each_task(num_learners, monkeypatch):
    monkeypatch.setattr(online_trainer, "_TEST_BATCH_SIZE", 4)
    arguments = dict(
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    streams = [TestedStream(classes=True, seed=i) for i in range(3)]
    results = OnlineTrainer(
        lambda learner: build(learner, **arguments), num_learners
    ).fit(streams.__getitem__, epochs=2)
    assert set(results) == {"loss", "accuracy", "test_loss", "test_accuracy"}
    for learner in range(num_learners):
        model = build(learner, **arguments)
        for task in range(3):
            x, y = streams[learner].task(task)
            log = model.fit(x, y, 1, 2, shuffle=False, verbose=0).history
            test = model.evaluate(
                *streams[learner].test(task), verbose=0, return_dict=True
            )
            for name in ("loss", "accuracy"):
                assert results[name][task, learner] == pytest.approx(
                    log[name][-1], rel=1e-4
                )
                assert results[f"test_{name}"][task, learner] == pytest.approx(
                    test[name], rel=1e-4
                )


class OrderedStream(ArrayStream):
    def order(self, index, epoch):
        return np.random.default_rng([index, epoch]).permutation(10)


@pytest.mark.parametrize("num_learners", mostly_slow([1, 2], 2))
def test_each_epoch_has_the_order_of_the_stream(num_learners):
    results = OnlineTrainer(build, num_learners).fit(
        lambda learner: OrderedStream(seed=learner), batch_size=3, epochs=2
    )
    for learner in range(num_learners):
        stream = OrderedStream(seed=learner)
        model = build(learner)
        for task in range(3):
            x, y = stream.task(task)
            for epoch in range(2):
                order = stream.order(task, epoch)
                log = model.fit(
                    x[order], y[order], 3, shuffle=False, verbose=0
                ).history
            assert results["loss"][task, learner] == pytest.approx(
                log["loss"][0], rel=1e-4
            )


def test_an_order_that_is_no_permutation():
    stream = OrderedStream()
    stream.order = lambda index, epoch: np.zeros(10, int)
    with pytest.raises(ValueError, match="permutation .* 10 examples.*task 0"):
        OnlineTrainer(build()).fit(stream)


def test_test_data_that_cannot_be_used():
    stream = TestedStream()
    stream.test = lambda index: (stream.x[0], stream.y[0, :3])
    with pytest.raises(ValueError, match=r"Received for test\(0\) of the str"):
        OnlineTrainer(build()).fit(stream)


@pytest.mark.parametrize("most", [3000, 0] if _IS_JAX else [None])
def test_edited_weights_are_trained_on(most, monkeypatch):
    if _IS_JAX:
        from keras_plasticity.training import jax_loop

        monkeypatch.setattr(jax_loop, "_MOST_WEIGHTS_SIDE_BY_SIDE", most)

    def zero_head(model):
        for weight in model.layers[-1].trainable_weights[:2]:
            weight.assign(keras.ops.zeros(weight.shape))

    class ZeroHead(TaskCallback):
        def on_task_begin(self, task, x, y):
            for learner in range(self.trainer.num_learners):
                with self.trainer.edit(learner) as model:
                    zero_head(model)

    trainer = OnlineTrainer(build, 2)
    trainer.fit(lambda i: ArrayStream(seed=i), callbacks=[ZeroHead()])
    for learner in range(2):
        model = build(learner)
        for x, y in map(ArrayStream(seed=learner).task, range(3)):
            zero_head(model)
            model.fit(x, y, 1, shuffle=False, verbose=0)
        assert_same_weights(trainer.model(learner), model, rtol=1e-3, atol=1e-5)


def test_fit_goes_on_where_it_stopped():
    stream = ArrayStream(num_tasks=4)
    expected = OnlineTrainer(build()).fit(stream)["loss"]
    trainer = OnlineTrainer(build())
    first = trainer.fit(stream, num_tasks=2)["loss"]
    second = trainer.fit(stream, first_task=2)["loss"]
    np.testing.assert_allclose(
        np.concatenate([first, second]), expected, rtol=1e-5
    )


def test_callbacks_see_each_task():
    seen = []

    class Callback(TaskCallback):
        def on_task_begin(self, task, x, y):
            seen.append(("begin", task, x.shape, y.shape))

        def on_progress(self, task, done):
            assert 0 < done <= 1
            seen.append(("progress", task))

        def on_task_end(self, task, results):
            weights = self.trainer.model(1).get_weights()
            assert all(np.isfinite(w).all() for w in weights)
            seen.append(("end", task, results["loss"].shape))

        def on_train_end(self):
            seen.append("done")

    OnlineTrainer(lambda learner: build(learner), 2).fit(
        lambda learner: ArrayStream(2, seed=learner), callbacks=[Callback()]
    )
    expected = []
    for task in range(2):
        expected += [
            ("begin", task, (2, 10, 4), (2, 10, 3)),
            ("progress", task),
            ("end", task, (2,)),
        ]
    assert seen == expected + ["done"]


def test_ctrl_c_ends_with_the_tasks_that_were_finished():
    class Interrupt(TaskCallback):
        ended = False

        def on_task_begin(self, task, x, y):
            if task == 2:
                raise KeyboardInterrupt

        def on_train_end(self):
            self.ended = True

    trainer = OnlineTrainer(build())
    callback = Interrupt()
    results = trainer.fit(ArrayStream(4), callbacks=[callback])
    assert trainer.interrupted and callback.ended
    assert results["loss"].shape == (2, 1)


def test_ctrl_c_within_a_step_waits_for_its_end():
    if not _IS_JAX:
        pytest.skip("Only on JAX does a step give its state's buffers away.")
    from keras_plasticity.training import jax_loop

    def step(state, data, where):
        signal.raise_signal(signal.SIGINT)
        return [value + data for value in state]

    state = [1, 2]
    # Whoever runs the tests may ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            jax_loop._in_place(step)(state, 10, 0)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert state == [11, 12]


def test_a_model_that_was_given_is_trained():
    model = build()
    trainer = OnlineTrainer(model)
    for num_tasks in (1, 3):
        trainer.fit(ArrayStream(), num_tasks=num_tasks)
        trained = [np.array(w) for w in model.get_weights()]
        for a, b in zip(trained, trainer.model().get_weights()):
            np.testing.assert_array_equal(a, b)
    expected = build()
    for task in (0, 0, 1, 2):
        x, y = ArrayStream().task(task)
        expected.fit(x, y, batch_size=1, shuffle=False, verbose=0)
    assert_same_weights(model, expected, rtol=1e-4, atol=1e-5)


def test_a_model_that_was_given_is_trained_when_interrupted():
    class Interrupt(TaskCallback):
        def on_task_begin(self, task, x, y):
            if task == 1:
                raise KeyboardInterrupt

    model, expected = build(), build()
    OnlineTrainer(model).fit(ArrayStream(), callbacks=[Interrupt()])
    x, y = ArrayStream().task(0)
    expected.fit(x, y, batch_size=1, shuffle=False, verbose=0)
    assert_same_weights(model, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("in_data", [True, False])
def test_a_loss_that_is_not_finite_stops_at_its_task(in_data):
    streams = [ArrayStream(4, seed=i) for i in range(3)]
    if in_data:
        streams[1].x[2, 5] = np.nan
        reason = r"data of learners \[1\] hold values that are not finite"
    else:
        streams[1].y[2] = 1e30
        reason = "data are finite: the learning rate may be too large"
    trainer = OnlineTrainer(build, num_learners=3)
    with pytest.raises(
        FloatingPointError, match=r"in task 2 for learners \[1\]. .*" + reason
    ) as error:
        trainer.fit(streams.__getitem__)
    assert "kernel of layer 'layer_0' for learners [1]" in str(error.value)
    assert error.value.results["loss"].shape == (3, 3)
    assert np.isfinite(error.value.results["loss"][:, [0, 2]]).all()


def test_on_nan_continue_keeps_the_healthy_learners():
    streams = [ArrayStream(4, seed=i) for i in range(3)]
    expected = OnlineTrainer(build, num_learners=3).fit(streams.__getitem__)
    streams[1].x[2, 5] = np.nan
    results = OnlineTrainer(build, num_learners=3).fit(
        streams.__getitem__, on_nan="continue"
    )
    assert np.isnan(results["loss"][2:, 1]).all()
    np.testing.assert_allclose(
        results["loss"][:, [0, 2]], expected["loss"][:, [0, 2]], rtol=1e-5
    )


class _Broken(ArrayStream):
    def __init__(self, break_task):
        super().__init__(num_tasks=2)
        self.break_task = break_task

    def task(self, index):
        x, y = super().task(index)
        return (x, y) if index == 0 else self.break_task(x, y)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("break_task", "message"),
    [
        (lambda x, y: x, r"must return a tuple `\(x, y\)` of NumPy arrays"),
        (lambda x, y: (x.tolist(), y), "must return a tuple"),
        (lambda x, y: (x[:5], y), r"x.shape=\(5, 4\), y.shape=\(10, 3\)"),
        (lambda x, y: (x[:0], y[:0]), "at least one batch .* 0 examples"),
        (lambda x, y: (x[:5], y[:5]), "must have the same shapes"),
        (lambda x, y: (x.astype("float16"), y), "must have the same shapes"),
        (lambda x, y: (x.astype(str), y), "must be numbers"),
    ],
    ids=["one", "list", "lengths", "empty", "shape", "dtype", "strings"],
)
def test_a_stream_that_yields_the_wrong_thing(break_task, message):
    with pytest.raises(ValueError, match=message) as error:
        OnlineTrainer(build()).fit(_Broken(break_task))
    assert "task(1) of the stream of learner 0" in str(error.value)


def test_too_many_learners_for_the_memory(monkeypatch):
    monkeypatch.setattr(backend, "free_memory", lambda: 20_000)
    with pytest.raises(
        MemoryError, match="50 learners need about .* About [1-9][0-9]? would"
    ):
        OnlineTrainer(build, 50).fit(lambda i: ArrayStream(seed=i))


@pytest.mark.parametrize("checkpointed", mostly_slow([False, True], True))
def test_learners_train_in_groups_that_fit(checkpointed, monkeypatch, tmp_path):
    def build_learner(learner):
        return build(seed=learner, method="cbp")

    def fit(**arguments):
        trainer = OnlineTrainer(build_learner, 3)
        done = []
        results = trainer.fit(
            lambda learner: TestedStream(seed=learner),
            batch_size=2,
            callbacks=[Progress(done)],
            **arguments,
        )
        assert done[-1] == 1.0 and done == sorted(done)
        return trainer, results

    expected_trainer, expected = fit()
    messages = []
    monkeypatch.setattr(
        logging, "warning", lambda text, *args: messages.append(text % args)
    )
    # Whatever they need, two of them fit beside what is always needed.
    monkeypatch.setattr(
        online_trainer,
        "group_sizes",
        lambda number, each, active, free: group_sizes(
            number, each, active, number * each + 2 * active
        ),
    )
    if checkpointed:
        path = str(tmp_path / "checkpoint.npz")
        fit(num_tasks=2, checkpoint=path)
        trainer, results = fit(checkpoint=path, resume=True)
    else:
        trainer, results = fit()
    (message,) = {text for text in messages if "learners side" in text}
    assert "they train in 2 groups of up to 2" in message
    assert list(results) == list(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(results[name], values, rtol=1e-4)
    for learner in range(3):
        assert_same_weights(
            trainer.model(learner),
            expected_trainer.model(learner),
            rtol=1e-3,
            atol=1e-5,
        )


class Progress(TaskCallback):
    def __init__(self, done):
        self.done = done

    def on_task_begin(self, task, x, y):
        self.done.clear()

    def on_progress(self, task, done):
        self.done.append(done)


def test_the_sizes_of_groups():
    def sizes(free, number=10):
        return group_sizes(number, 3, 10, free)

    assert sizes(None) == [10]
    assert sizes(130) == [10]
    assert sizes(129) == [5, 5]
    assert sizes(70) == [4, 3, 3]
    assert sizes(40) == [1] * 10
    assert sizes(1, number=1) == [1]
    with pytest.raises(MemoryError, match="even if they train one after"):
        sizes(39)


@pytest.mark.parametrize(
    ("platform", "for_each", "for_active"),
    # Beside the learner's state, in bytes of a task's data.
    [("cpu", 2, 1), ("gpu", 0, 2)],
)
def test_the_memory_of_a_tasks_data_counts(
    platform, for_each, for_active, monkeypatch
):
    monkeypatch.setattr(backend, "platform", lambda: platform)
    monkeypatch.setattr(backend, "free_memory", lambda: 5)
    monkeypatch.setattr(online_trainer, "group_sizes", lambda *args: args)
    model = build(method="bp")
    model.optimizer.build(model.trainable_variables)
    variables = model.variables + model.optimizer.variables
    state = 4 * sum(np.prod(v.shape, dtype=int) for v in variables)
    data = TaskData(
        (np.zeros((3, 10, 4), "float32"), np.zeros((3, 10, 2), "float64")),
        batch_size=1,
    )
    size = 10 * 4 * 4 + 10 * 2 * 8
    number, each, active, free = OnlineTrainer(build, 3)._group_sizes(
        model, data
    )
    assert (number, free) == (3, 5)
    assert each == state + for_each * size
    assert active == 2 * state + for_active * size


def test_unknown_memory_is_not_checked(monkeypatch):
    monkeypatch.setattr(backend, "free_memory", lambda: None)
    results = OnlineTrainer(build, 2).fit(lambda i: ArrayStream(seed=i))
    assert results["loss"].shape == (3, 2)


def test_one_learner_does_not_ask_for_the_memory(monkeypatch):
    monkeypatch.setattr(backend, "free_memory", None)
    assert OnlineTrainer(build()).fit(ArrayStream())["loss"].shape == (3, 1)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(model=build, num_learners=0), ValueError, "positive integer"),
        (dict(model=build, num_learners=True), ValueError, "positive integer"),
        (dict(model=build, num_learners=2.0), ValueError, "positive integer"),
        (dict(model=3), TypeError, "`model` must be a compiled"),
    ],
    ids=["no learner", "a boolean", "a float", "no model"],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        OnlineTrainer(**arguments)


def test_several_learners_need_several_models_and_streams():
    with pytest.raises(ValueError, match="Several learners need several mod"):
        OnlineTrainer(build(), num_learners=2)
    with pytest.raises(ValueError, match="Several learners need several str"):
        OnlineTrainer(build, num_learners=2).fit(ArrayStream())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(batch_size=0), "`batch_size` must be a positive integer"),
        (dict(epochs=1.5), "`epochs` must be a positive integer"),
        (dict(on_nan="ignore"), "`on_nan` must be 'stop' or 'continue'"),
        (dict(num_tasks="2"), "`num_tasks` must be .* num_tasks=2 .a string"),
        (dict(first_task=1.0), "`first_task` must be .* first_task=1.0"),
        (dict(first_task=-1), "`first_task` must be .* first_task=-1"),
        (dict(callbacks=[keras.callbacks.Callback()]), "`callbacks` must be a"),
        (dict(callbacks=TaskCallback()), "`callbacks` must be a list of"),
        (dict(checkpoint=5), "`checkpoint` must be a path"),
        (dict(resume="False"), "`resume` must be `True` or `False`"),
        (dict(num_tasks=4), "which has 3. Received: first_task=0, num_tasks=4"),
        (dict(first_task=3), "must name tasks of the stream"),
    ],
)
def test_bad_fit_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        OnlineTrainer(build()).fit(ArrayStream(), **arguments)


def test_numbers_of_numpy():
    trainer = OnlineTrainer(build, num_learners=np.int64(2))
    results = trainer.fit(
        lambda learner: ArrayStream(seed=learner),
        batch_size=np.int32(5),
        epochs=np.uint8(1),
        first_task=np.int64(1),
        num_tasks=np.int64(1),
        resume=np.False_,
    )
    assert results["loss"].shape == (1, 2)
    trainer.model(np.int64(1))
    for learner in (2, -1, True, "1", None):
        with pytest.raises(ValueError, match="`learner` must be an integer"):
            trainer.model(learner)


def test_the_shortest_stream_counts():
    streams = [ArrayStream(num_tasks) for num_tasks in (4, 3, 2)]
    trainer = OnlineTrainer(build, 3)
    with pytest.raises(
        ValueError, match="stream of learner 2, which has 2. .* num_tasks=3"
    ):
        trainer.fit(streams.__getitem__, num_tasks=3)
    assert trainer.fit(streams.__getitem__)["loss"].shape == (2, 3)


def test_a_model_that_is_not_compiled():
    with pytest.raises(ValueError, match="must be compiled"):
        OnlineTrainer(make_model(DIMS)).fit(ArrayStream())


def test_an_object_that_is_no_stream():
    with pytest.raises(TypeError, match=r"must have a method `task\(index\)`"):
        OnlineTrainer(build()).fit([1, 2])
    with pytest.raises(TypeError, match="Received for learner 0: None"):
        OnlineTrainer(build()).fit(lambda learner: None)


def test_learners_of_different_architectures():
    if not _IS_JAX:
        pytest.skip("Learners train one by one, each by its own program.")

    def build_one(learner):
        model = make_model((4, 6 + learner, 3))
        model.compile("sgd", "mse")
        return model

    with pytest.raises(ValueError, match="must have the same architecture"):
        OnlineTrainer(build_one, 2).fit(lambda i: ArrayStream(seed=i))


def test_the_loop_fulfils_its_contract():
    assert issubclass(online_trainer.Loop, TrainingLoop)
