"""What streams may return: all that `fit` takes, and clear errors otherwise."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_plasticity
from keras_plasticity.callbacks import PlasticityMonitor
from keras_plasticity.streams import Stream
from keras_plasticity.training import OnlineTrainer
from keras_plasticity.training import TaskCallback
from keras_plasticity.training import saver
from tests.helpers import make_model

_BACKEND = keras.backend.backend()
_EXAMPLES = 11

pytestmark = pytest.mark.usefixtures("fast_compilation")


class NestedStream:
    """Two inputs and two targets, in one structure or another.

    Args:
        structure: Function from a list of two arrays to a nest of them.
        weighted: `"no"`; `"all"`, both targets by the same weights; `"each"`.
        seed: Integer.
    """

    def __init__(self, structure, weighted="no", seed=0):
        self.structure = structure
        self.weighted = weighted
        self.seed = seed

    def __len__(self):
        return 2

    def task(self, index, examples=_EXAMPLES):
        rng = np.random.default_rng([self.seed, index, examples])
        x = self.structure(
            [
                rng.normal(size=(examples, size)).astype("float32")
                for size in (4, 3)
            ]
        )
        y = self.structure(
            [
                rng.normal(size=(examples, 2)).astype("float32"),
                rng.integers(0, 3, examples),
            ]
        )
        weights = rng.uniform(size=(2, examples)).astype("float32")
        if self.weighted == "all":
            return x, y, weights[0]
        if self.weighted == "each":
            return x, y, self.structure(list(weights))
        return x, y

    def test(self, index):
        return self.task(index, examples=7)

    def order(self, index, epoch):
        return np.random.default_rng([index, epoch]).permutation(_EXAMPLES)


def as_list(pair):
    return pair


def as_dict(pair):
    # Not in the order of the model's inputs.
    return {"b": pair[1], "a": pair[0]}


def build(
    structure,
    seed=0,
    names=("p", "q"),
    layer=keras.layers.Dense,
    wrap=lambda optimizer: optimizer,
):
    keras.utils.set_random_seed(seed)
    inputs = [keras.Input((4,), name="a"), keras.Input((3,), name="b")]
    x = layer(3, activation="tanh", name="hidden")(
        keras.layers.Concatenate()(inputs)
    )
    outputs = [layer(2, name=names[0])(x), layer(3, name=names[1])(x)]
    model = keras.Model(structure(inputs), structure(outputs))
    crossentropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(
        wrap(keras.optimizers.SGD(0.05, momentum=0.5)),
        loss=structure(["mse", crossentropy]),
        metrics=structure([["mae"], ["accuracy"]]),
        weighted_metrics=structure([["mae"], []]),
    )
    return model


def build_plastic():
    def wrap(optimizer):
        return keras_plasticity.optimizers.ContinualBackprop(
            optimizer, replacement_rate=0.1, maturity_threshold=2, seed=0
        )

    return build(as_dict, layer=keras_plasticity.layers.Dense, wrap=wrap)


def fit_and_test(model, stream, index):
    """What `fit` and `evaluate` compute on a task."""
    order = stream.order(index, 0)
    x, y, *weight = keras.tree.map_structure(
        lambda array: array[order], stream.task(index), none_is_leaf=False
    )
    arguments = dict(zip(["sample_weight"], weight), verbose=0)
    log = model.fit(x, y, 3, shuffle=False, **arguments).history
    x, y, *weight = stream.test(index)
    arguments = dict(zip(["sample_weight"], weight), verbose=0)
    test = model.evaluate(x, y, return_dict=True, **arguments)
    return {
        **{name: values[0] for name, values in log.items()},
        **{f"test_{name}": value for name, value in test.items()},
    }


def assert_same_weights(model, other):
    for weight, expected in zip(model.get_weights(), other.get_weights()):
        np.testing.assert_allclose(weight, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("structure", "weighted"),
    [(as_list, "no"), (tuple, "all"), (as_dict, "each")],
    ids=["list", "tuple", "dict"],
)
def test_nests_equal_fit(structure, weighted):
    streams = [NestedStream(structure, weighted, seed) for seed in range(2)]
    trainer = OnlineTrainer(lambda learner: build(structure, learner), 2)
    results = trainer.fit(streams.__getitem__, batch_size=3)
    model = build(structure, seed=1)
    for index in range(2):
        expected = fit_and_test(model, streams[1], index)
        assert len(expected) == len(results) == 12
        for name, value in expected.items():
            if _BACKEND == "tensorflow" and name[1:] == "_loss":
                # There `fit` does not weight the parts of the loss by the
                # sizes of batches.
                continue
            assert results[name][index, 1] == pytest.approx(value, rel=1e-4)
    assert_same_weights(trainer.model(1), model)


class DeepModel(keras.Model):
    """A model of a user's own, with a step of its own."""

    def __init__(self, seed=0):
        super().__init__()
        keras.utils.set_random_seed(seed)
        self.concatenate = keras.layers.Concatenate()
        self.head = keras.layers.Dense(2)
        self.compile("sgd", loss="mse")

    def call(self, inputs):
        a, (b,) = inputs["pair"]
        return self.head(self.concatenate([a, b]))

    def train_step(self, *arguments):
        x, y = arguments[-1]
        assert set(x) == {"pair"}
        return super().train_step(*arguments)


class DeepStream(NestedStream):
    def task(self, index):
        (a, b), (p, _) = super().task(index)
        return {"pair": [a, (b,)]}, p

    test = task


def test_deep_nests_and_steps_of_a_users_own():
    stream = DeepStream(as_list)
    trainer = OnlineTrainer(DeepModel())
    results = trainer.fit(stream, batch_size=3)
    model = DeepModel()
    for index in range(2):
        expected = fit_and_test(model, stream, index)
        for name, value in expected.items():
            assert results[name][index, 0] == pytest.approx(value, rel=1e-4)
    assert_same_weights(trainer.model(), model)


class Autoencoder(keras.Model):
    """A model without targets."""

    def __init__(self, seed=0):
        super().__init__()
        keras.utils.set_random_seed(seed)
        self.head = keras.layers.Dense(4)
        self.compile("sgd")

    def call(self, inputs):
        return self.head(inputs)

    def compute_loss(self, x, y, y_pred, sample_weight=None, training=True):
        assert y is None
        return ops.mean(ops.square(x - y_pred))


def test_no_targets():
    stream = NestedStream(as_list)
    inputs = [stream.task(index)[0][0] for index in range(2)]
    stream.task = lambda index: (inputs[index], None)
    stream.test = stream.task
    trainer = OnlineTrainer(Autoencoder, 2)
    trainer.fit(lambda learner: stream, batch_size=3)
    model = Autoencoder(1)
    for index in range(2):
        fit_and_test(model, stream, index)
    assert_same_weights(trainer.model(1), model)


@pytest.mark.skipif(_BACKEND != "jax", reason="Others have one loop.")
def test_nests_in_the_other_loops_of_jax(monkeypatch):
    from keras_plasticity.training import jax_loop

    def fit():
        return OnlineTrainer(lambda learner: build(as_dict, learner), 2).fit(
            lambda learner: NestedStream(as_dict, "all", learner), batch_size=3
        )

    expected = fit()
    # One learner after the other, and one step after the other.
    monkeypatch.setattr(jax_loop, "_MOST_WEIGHTS_SIDE_BY_SIDE", 0)
    results = [fit()]
    monkeypatch.setattr(jax_loop, "_is_slow_in_a_loop", lambda jaxpr: True)
    results.append(fit())
    monkeypatch.undo()
    monkeypatch.setattr(jax_loop, "_is_slow_in_a_loop", lambda jaxpr: True)
    results.append(fit())
    for each in results:
        for name, values in expected.items():
            np.testing.assert_allclose(each[name], values, rtol=1e-4)


def test_outputs_may_have_other_names_in_each_model():
    def build_unnamed(learner):
        return build(as_list, learner, names=(None, None))

    def fit(model, num_learners, stream):
        trainer = OnlineTrainer(model, num_learners)
        results = trainer.fit(stream, batch_size=3)
        assert len(results) == 12
        # Sorted, as they have other names.
        return np.sort(np.stack(list(results.values())), axis=0)

    streams = [NestedStream(as_list, seed=seed) for seed in range(2)]
    together = fit(build_unnamed, 2, streams.__getitem__)
    alone = [fit(build_unnamed(i), 1, streams[i]) for i in range(2)]
    np.testing.assert_allclose(
        together, np.concatenate(alone, axis=2), rtol=1e-4
    )


class Interrupt(TaskCallback):
    """Notes the shapes of each task's data, and interrupts one."""

    def __init__(self, task=None):
        self.task = task
        self.shapes = []

    def on_task_begin(self, task, x, y):
        shapes = keras.tree.map_structure(
            lambda array: str(array.shape), (x, y)
        )
        self.shapes.append(shapes)
        if task == self.task:
            raise InterruptedError


def test_callbacks_see_the_nests_of_all_learners():
    callback = Interrupt()
    OnlineTrainer(lambda learner: build(as_dict, learner), 2).fit(
        lambda learner: NestedStream(as_dict, "all", learner),
        batch_size=3,
        callbacks=[callback],
    )
    x = {"a": "(2, 11, 4)", "b": "(2, 11, 3)"}
    y = {"a": "(2, 11, 2)", "b": "(2, 11)"}
    assert callback.shapes == [(x, y)] * 2


def test_a_run_on_nests_resumes(tmp_path, monkeypatch):
    monkeypatch.setattr(saver, "_MAX_SHARE", float("inf"))

    def fit(callbacks=(), **arguments):
        return OnlineTrainer(build_plastic()).fit(
            NestedStream(as_dict, "each"),
            batch_size=3,
            callbacks=callbacks,
            **arguments,
        )

    expected = fit()
    path = str(tmp_path / "checkpoint.npz")
    with pytest.raises(InterruptedError):
        fit([Interrupt(1)], checkpoint=path)
    callback = Interrupt()
    results = fit([callback], checkpoint=path, resume=True)
    assert len(callback.shapes) == 1
    assert results.keys() == expected.keys()
    for name, values in results.items():
        np.testing.assert_array_equal(values, expected[name])


def test_the_monitor_measures_on_nests():
    def monitor(probe_data):
        monitor = PlasticityMonitor(probe_data)
        OnlineTrainer(build(as_dict)).fit(
            NestedStream(as_dict),
            batch_size=3,
            num_tasks=1,
            callbacks=[monitor],
        )
        return monitor.history

    (of_the_task,) = monitor(5)
    x, y = NestedStream(as_dict).task(0, _EXAMPLES)
    first = keras.tree.map_structure(lambda array: array[:5], (x, y))
    (of_the_arrays,) = monitor(first)
    # That needs the same examples before each task.
    assert of_the_arrays.pop("output_churn")["total"] > 0
    assert of_the_arrays["per_learner"].pop("output_churn")[0] > 0
    assert of_the_task == of_the_arrays
    assert of_the_task["gradient_norm"]["total"] > 0


class PlainStream:
    """Tasks that are given."""

    def __init__(self, *tasks):
        self.tasks = tasks

    def __len__(self):
        return len(self.tasks)

    def task(self, index):
        return self.tasks[index]


def build_plain(learner=0):
    model = make_model((4, 3), layer=keras.layers.Dense, seed=learner)
    model.compile("sgd", "mse")
    return model


def build_sum():
    keras.utils.set_random_seed(0)
    inputs = {name: keras.Input((4,), name=name) for name in ("a", "b")}
    total = keras.layers.Add()(list(inputs.values()))
    model = keras.Model(inputs, keras.layers.Dense(3)(total))
    model.compile("sgd", "mse")
    return model


def _numbers(shape):
    # Small integers, which all types can hold.
    return np.random.default_rng(0).integers(0, 2, shape)


@pytest.mark.parametrize(
    "convert",
    [
        lambda array: array.astype("float64"),
        lambda array: array.astype("float16"),
        lambda array: array.astype("int64"),
        lambda array: array.astype("uint8"),
        lambda array: array.astype("bool"),
        ops.convert_to_tensor,
        lambda array: ops.cast(array, "bfloat16"),
        lambda array: np.asfortranarray(array)[::-1][::-1],
    ],
    ids=[
        "float64",
        "float16",
        "int64",
        "uint8",
        "bool",
        "tensor",
        "bfloat16",
        "strides",
    ],
)
def test_any_kind_of_number(convert):
    x = {name: _numbers((6, 4)) for name in ("a", "b")}
    task = (x, _numbers((6, 3)))
    results = [
        OnlineTrainer(build_sum()).fit(
            PlainStream(keras.tree.map_structure(each, task))
        )
        for each in (convert, lambda array: array.astype("float32"))
    ]
    np.testing.assert_allclose(*(r["loss"] for r in results), rtol=1e-5)


def test_floats_are_cast_as_fit_casts_them():
    seen = []

    class Callback(TaskCallback):
        def on_task_begin(self, task, x, y):
            seen.extend([x["a"].dtype, x["b"].dtype, y.dtype])

    x = {"a": np.zeros((6, 4)), "b": np.zeros((6, 4), "int64")}
    y = np.zeros((6, 3), "float16")
    OnlineTrainer(build_sum()).fit(PlainStream((x, y)), callbacks=[Callback()])
    assert seen == ["float32", "int64", "float32"]


_X, _Y = np.zeros((6, 4), "float32"), np.zeros((6, 3), "float32")

_UNUSABLE = {
    "nothing": (None, "tuples or dicts of them.*'NoneType'"),
    "one array": (_X, "tuples or dicts of them.*ndarray"),
    "a list": ([_X, _Y], "tuples or dicts of them.*<class 'list'>"),
    "a dict": ({"x": _X, "y": _Y}, "tuples or dicts of them.*'dict'>"),
    "a generator": (iter([(_X, _Y)]), "tuples or dicts of them.*iterator"),
    "one of one": ((_X,), "a tuple of length 1"),
    "too many": ((_X, _Y, None, None), "a tuple of length 4"),
    "no x": ((None, _Y), "no array in x"),
    "empty x": (([], _Y), "no array in x"),
    "numbers": (([0.0, 1.0], _Y), r"x\[0\] of <class 'float'>"),
    "a string": (({"a": _X, "b": "b"}, _Y), r"x\['b'\] of <class 'str'>"),
    "a set": ((_X, {1, 2}), "y of <class 'set'>"),
    "a number": ((_X, np.float32(1.0)), r"y.shape=\(\)"),
    "sizes in x": (
        ([_X, _X[:5]], _Y),
        r"one entry for each .*x\[0\].shape=\(6, 4\), x\[1\].shape=\(5, 4\), y",
    ),
    "sizes in y": (
        (_X, {"a": _Y, "b": (_Y, _Y[:1])}),
        r"one entry for each example.*y\['b'\]\[1\].shape=\(1, 3\)",
    ),
    "sizes of weights": (
        (_X, _Y, np.ones(5)),
        r"one entry for each example.*sample_weight.shape=\(5,\)",
    ),
    "structure of weights": (
        (_X, [_Y, _Y], {"a": np.ones(6)}),
        r"y with \['y\[0\]', 'y\[1\]'\], sample_weight with "
        r"\[\"sample_weight\['a'\]\"\]",
    ),
    "no examples": (([_X[:0], _X[:0]], _Y[:0]), "one batch .* 0 examples"),
    "ragged": (
        (_X, [np.array([[1.0], [1.0, 2.0]] * 3, dtype=object)]),
        r"must be numbers.*y\[0\].dtype=object",
    ),
    "strings": (([_X, _X.astype(str)], _Y), r"numbers.*x\[1\].dtype=<U"),
    "dates": (
        (_X, {"a": _X.astype("datetime64[s]")}),
        r"numbers.*y\['a'\].dtype=datetime64",
    ),
}


@pytest.mark.parametrize(
    ("task", "message"), _UNUSABLE.values(), ids=_UNUSABLE.keys()
)
def test_a_task_that_cannot_be_used(task, message):
    with pytest.raises(ValueError, match=message) as error:
        OnlineTrainer(build_plain()).fit(PlainStream(task))
    assert "task(0) of the stream of learner 0" in str(error.value)


def test_data_sets_are_no_tasks():
    if _BACKEND == "tensorflow":
        import tensorflow as tf

        data = tf.data.Dataset.from_tensors((_X, _Y))
        ragged = (tf.ragged.constant([[1.0], [1.0, 2.0]] * 3), _Y)
        with pytest.raises(ValueError, match="x of <class '.*RaggedTensor'>"):
            OnlineTrainer(build_plain()).fit(PlainStream(ragged))
    elif _BACKEND == "torch":
        import torch

        data = torch.utils.data.TensorDataset(torch.zeros(6, 4))
    else:
        data = zip(_X, _Y)
    for task in (data, (data, None), (_X, data)):
        with pytest.raises(ValueError, match="tuples or dicts of them.*class"):
            OnlineTrainer(build_plain()).fit(PlainStream(task))


@pytest.mark.parametrize(
    "other",
    [
        ((_X, _X), _Y),
        ([_X], _Y),
        ([_X, _X, _X], _Y),
        ([_X, _X], {"a": _Y}),
        ([_X, _X[:, :3]], _Y),
        ([_X, _X.astype("float64")], _Y),
        ([_X, _X], _Y, np.ones(6)),
    ],
    ids=["tuple", "fewer", "more", "y", "shape", "dtype", "weights"],
)
def test_all_tasks_have_one_structure(other):
    def stream(learner):
        return PlainStream([([_X, _X], _Y), other][learner])

    with pytest.raises(
        ValueError,
        match=r"same shapes.* \(\['float32 \(6, 4\)', 'float32 \(6, 4\)'\], "
        r"'float32 \(6, 3\)'\). Received for task\(0\) .* learner 1",
    ):
        OnlineTrainer(build_plain, 2).fit(stream)


def test_test_data_without_examples():
    stream = PlainStream((_X, _Y))
    stream.test = lambda index: (_X[:0], _Y[:0])
    with pytest.raises(ValueError, match=r"at least one example.*test\(0\)"):
        OnlineTrainer(build_plain()).fit(stream)


class EndlessStream:
    def task(self, index):
        return np.full_like(_X, index % 3), _Y


def test_a_stream_without_a_length():
    assert isinstance(EndlessStream(), Stream)
    trainer = OnlineTrainer(build_plain(), 1)
    results = trainer.fit(EndlessStream(), num_tasks=3)
    results = trainer.fit(EndlessStream(), first_task=10**6, num_tasks=2)
    assert results["loss"].shape == (2, 1)
    with pytest.raises(ValueError, match="`num_tasks` must be .*`__len__`"):
        trainer.fit(EndlessStream())
    with pytest.raises(ValueError, match="`num_tasks` must be a positive"):
        trainer.fit(EndlessStream(), num_tasks=0)


def test_the_shortest_stream_counts_among_endless_ones():
    streams = [EndlessStream(), PlainStream((_X, _Y), (_X, _Y))]
    trainer = OnlineTrainer(build_plain, 2)
    assert trainer.fit(streams.__getitem__)["loss"].shape == (2, 2)
    with pytest.raises(ValueError, match="of learner 1, which has 2.*tasks=3"):
        trainer.fit(streams.__getitem__, num_tasks=3)


@pytest.mark.parametrize(
    "function",
    [lambda: build_plain(), lambda learner, seed: build_plain(learner)],
    ids=["none", "two"],
)
def test_functions_take_one_argument(function):
    with pytest.raises(TypeError, match="`model` must be .* a learner's index"):
        OnlineTrainer(function)
    with pytest.raises(
        TypeError, match="`stream` must be .* a learner's index"
    ):
        OnlineTrainer(build_plain).fit(function)


def test_functions_that_return_something_else():
    with pytest.raises(TypeError, match="for learner 0: None"):
        OnlineTrainer(build_plain).fit(lambda learner: None)
    with pytest.raises(ValueError, match="compiled.* for learner 0: None"):
        OnlineTrainer(lambda learner: None).fit(PlainStream((_X, _Y)))
    model = build_plain()
    with pytest.raises(ValueError, match="a new model .* learners 0 and 1"):
        OnlineTrainer(lambda learner: model, 2).fit(
            lambda learner: PlainStream((_X, _Y))
        )


def test_a_class_is_a_function_of_the_learner():
    class Constant(EndlessStream):
        def __init__(self, learner):
            self.learner = learner

    results = OnlineTrainer(build_plain, 2).fit(Constant, num_tasks=1)
    assert results["loss"].shape == (1, 2)
