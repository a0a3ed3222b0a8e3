"""What `PlasticityMonitor` tells `fit`, and when it warns."""

import json
import warnings

import keras
import numpy as np
import pytest

from keras_plasticity.callbacks import PlasticityMonitor
from keras_plasticity.diagnosis import RecentExamples
from keras_plasticity.training import OnlineTrainer
from tests.helpers import make_data
from tests.helpers import make_model

DIMS = (4, 6, 5, 3)


def compiled(activation="relu", dead=0):
    """A model, with units of its first layer that never fire."""
    model = make_model(DIMS, layer=keras.layers.Dense, activation=activation)
    model.compile(keras.optimizers.SGD(0.05), "mse")
    bias = np.ones(6, "float32")  # The others do.
    bias[:dead] = -100.0
    model.layers[0].bias.assign(bias)
    model.layers[1].bias.assign(np.ones(5, "float32"))
    return model


def fit(model, monitor, *others, epochs=2, x=None):
    x, y = make_data(30, DIMS) if x is None else (x, None)
    return model.fit(
        x,
        y,
        epochs=epochs,
        verbose=0,
        shuffle=False,
        callbacks=[monitor, *others],
    )


def test_later_callbacks_and_the_history_see_all_totals(tmp_path):
    monitor = PlasticityMonitor(make_data(9, DIMS))
    log = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    saved = keras.callbacks.ModelCheckpoint(
        tmp_path / "{effective_rank:.2f}.keras",
        monitor="dead_units",
        mode="max",
    )
    model = compiled()
    history = fit(model, monitor, log, saved).history
    totals = {
        name: [entry[name]["total"] for entry in monitor.history[1:]]
        for name in monitor.history[1]
        if name not in ("step", "per_learner")
    }
    assert history == {"loss": history["loss"], **totals}
    header = (tmp_path / "log.csv").read_text().splitlines()[0]
    assert set(header.split(",")) >= {"epoch", "loss", *totals}
    ranks = {f"{rank:.2f}.keras" for rank in totals["effective_rank"]}
    assert {path.name for path in tmp_path.glob("*.keras")} == ranks


def test_early_stopping_by_a_measure():
    class Shrink(keras.callbacks.Callback):
        """Has one more unit die with each epoch."""

        def on_epoch_begin(self, epoch, logs=None):
            kernel, bias = self.model.layers[0].get_weights()
            kernel[:, :epoch] = 0.0
            bias[:epoch] = -1.0
            self.model.layers[0].set_weights([kernel, bias])

    monitor = PlasticityMonitor(make_data(20, DIMS)[0])
    stop = keras.callbacks.EarlyStopping(
        monitor="effective_rank", mode="max", patience=1
    )
    fit(compiled("tanh"), Shrink(), monitor, stop, epochs=6)
    ranks = [e["effective_rank"]["total"] for e in monitor.history[1:]]
    assert len(ranks) < 6
    assert np.argmax(ranks) == len(ranks) - 2


def test_a_metric_of_the_name_of_a_measure():
    class Rank(keras.metrics.Mean):
        pass

    model = compiled()
    metric = keras.metrics.MeanSquaredError(name="dead_units")
    model.compile("sgd", "mse", metrics=[metric])
    with pytest.raises(ValueError, match=r"another name.*\['dead_units'\]"):
        fit(model, PlasticityMonitor(make_data(9, DIMS)))


def test_two_monitors_in_one_fit():
    probe = make_data(9, DIMS)
    monitors = [PlasticityMonitor(probe) for _ in range(2)]
    with pytest.raises(ValueError, match="of monitors, a `fit` takes one"):
        fit(compiled(), *monitors)


def test_the_logs_of_a_run_that_diverges_are_nan():
    class Break(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                kernel, bias = self.model.layers[0].get_weights()
                self.model.layers[0].set_weights([kernel * np.nan, bias])

    monitor = PlasticityMonitor(make_data(9, DIMS))
    history = fit(compiled(), Break(), monitor, epochs=3).history
    ranks = history["effective_rank"]
    assert np.isfinite(ranks[0]) and np.isnan(ranks[1:]).all()
    assert len(history["weight_change"]) == 3


def test_a_threshold_warns_once_and_says_where():
    monitor = PlasticityMonitor(
        make_data(9, DIMS), thresholds={"dead_units": 0.2}
    )
    with pytest.warns(UserWarning) as caught:
        fit(compiled(dead=4), monitor, epochs=3)
    (message,) = [
        str(each.message) for each in caught if "dead" in str(each.message)
    ]
    assert message.startswith(
        "After epoch 1, 4 of 11 units (36%) are dead, above the threshold of "
        "0.2: they are 0 for every example"
    )
    assert "Worst: 4 of 6 in 'layer_0', 0 of 5 in 'layer_1'" in message
    assert "keras_plasticity.diagnose" in message


@pytest.mark.parametrize(
    "thresholds, is_bad",
    [
        ({"effective_rank": 1.0}, False),
        ({"effective_rank": 6.0}, True),
        ({"dead_units": 4 / 11}, False),
        ({"dead_units": 4 / 11 - 1e-6}, True),
        ({"weight_growth": 2.0}, False),
        ({"weight_growth": 0.5}, True),
        ({"gradient_dormant_units": 0.3}, True),
        ({"gradient_norm": 1e9, "stable_rank": 0}, False),
    ],
)
def test_which_side_of_a_threshold_is_bad(thresholds, is_bad):
    monitor = PlasticityMonitor(make_data(9, DIMS), thresholds=thresholds)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(compiled(dead=4), monitor)
    messages = [str(each.message) for each in caught]
    found = [m for m in messages if "the threshold of" in m]
    assert len(found) == is_bad


class Stream:
    def __len__(self):
        return 2

    def task(self, index):
        return make_data(30, DIMS, seed=index)


def test_thresholds_in_the_engine_name_the_learner():
    monitor = PlasticityMonitor(
        8, measures=["dead_units"], thresholds={"dead_units": 0.0}
    )
    trainer = OnlineTrainer(
        lambda learner: compiled(dead=3 if learner else 0), num_learners=2
    )
    with pytest.warns(UserWarning, match="Before task 0, in learner 1, 3 of"):
        trainer.fit(lambda i: Stream(), callbacks=[monitor])


@pytest.mark.parametrize(
    "thresholds, message",
    [
        ({"dead": 0.2}, r"thresholds.*'dead_units'.*\{'dead': 0.2\}"),
        ({"utility": 0.2}, "thresholds"),
        ({"sharpness": 1.0}, "thresholds"),
        ({"dead_units": 3}, r"thresholds\[\"dead_units\"\].*\[0, 1\].*3"),
        ({"dead_units": True}, r"thresholds\[\"dead_units\"\].*True"),
        ({"gradient_norm": -1.0}, r"thresholds\[\"gradient_norm\"\].*-1"),
        ({"gradient_norm": float("nan")}, "gradient_norm.*nan"),
        (["dead_units"], "thresholds.*dict"),
    ],
)
def test_bad_thresholds(thresholds, message):
    with pytest.raises((ValueError, TypeError), match=message):
        PlasticityMonitor(make_data(9, DIMS), thresholds=thresholds)


class Batches(keras.utils.PyDataset):
    def __init__(self, x, y, size=4):
        super().__init__()
        self.data, self.size = (x, y), size
        self.epochs = 0

    def __len__(self):
        return -(-len(self.data[0]) // self.size)

    def __getitem__(self, i):
        part = slice(i * self.size, (i + 1) * self.size)
        return tuple(each[part] for each in self.data)

    def on_epoch_end(self):
        self.epochs += 1


def data_sets(x, y):
    """The same examples in each form that is known."""
    tf = pytest.importorskip("tensorflow")
    torch = pytest.importorskip("torch")
    tensors = torch.utils.data.TensorDataset(torch.tensor(x), torch.tensor(y))
    return {
        "PyDataset": Batches(x, y),
        "tf.data": tf.data.Dataset.from_tensor_slices((x, y)).batch(4),
        "DataLoader": torch.utils.data.DataLoader(tensors, batch_size=4),
        "generator": ((x[i : i + 4], y[i : i + 4]) for i in range(0, 9, 4)),
    }


def test_data_sets_as_a_probe():
    x, y = make_data(9, DIMS)
    first = PlasticityMonitor((x, y))
    fit(compiled(), first)
    for name, data in data_sets(x, y).items():
        monitor = PlasticityMonitor(data)
        fit(compiled(), monitor)
        assert monitor.history == first.history, name


def test_recent_examples():
    recent = RecentExamples(10)
    x, y = make_data(30, DIMS)
    data = Batches(x, y, size=7)
    model = compiled()
    monitor = PlasticityMonitor(recent)
    model.fit(recent.record(data), epochs=2, shuffle=False, callbacks=[monitor])
    assert data.epochs >= 2  # Keras says so once more, in the beginning.
    # Before training, if at all, on the batch that Keras has looked at.
    assert [entry["step"] for entry in monitor.history[-2:]] == [1, 2]
    assert "output_churn" not in monitor.history[-1]
    assert "weight_change" in monitor.history[-2]
    json.dumps(monitor.history)
    for ours, expected in zip(recent.examples(), (x, y)):
        np.testing.assert_array_equal(ours, expected[-10:])
    by_hand = PlasticityMonitor((x[-10:], y[-10:]))
    by_hand.set_model(model)
    by_hand.on_epoch_begin(0)
    rank = by_hand.history[0]["effective_rank"]
    assert monitor.history[-1]["effective_rank"] == pytest.approx(rank)


def test_recent_examples_of_each_kind_of_data_set():
    x, y = make_data(9, DIMS)
    for name, data in data_sets(x, y).items():
        recent = RecentExamples(100)
        if name == "generator":
            with pytest.raises(ValueError, match="PyDataset.*generator"):
                recent.record(data)
            continue
        compiled().fit(recent.record(data), epochs=2, verbose=0, shuffle=False)
        found = recent.examples()[0][-18:]  # Keras looks at a batch first.
        np.testing.assert_array_equal(found, np.concatenate([x, x]))


def test_recent_examples_by_hand():
    recent = RecentExamples(3)
    with pytest.raises(ValueError, match="without any"):
        recent.examples()
    recent.add({"a": np.zeros((5, 2)), "b": np.arange(5.0)})
    x, y = recent.examples()
    assert y is None
    np.testing.assert_array_equal(x["b"], [2.0, 3.0, 4.0])
    recent.add({"a": np.ones((1, 2)), "b": np.array([9.0])})
    assert len(recent) == 4  # What is kept, of which three count.
    np.testing.assert_array_equal(recent.examples()[0]["b"], [3.0, 4.0, 9.0])
    with pytest.raises(ValueError, match=r"batches before.*\(3,\)"):
        recent.add({"a": np.ones((1, 3)), "b": np.array([9.0])})
    with pytest.raises(ValueError, match="finite"):
        recent.add({"a": np.full((1, 2), np.nan), "b": np.array([9.0])})
    with pytest.raises(ValueError, match="num_examples"):
        RecentExamples(0)


def test_recent_examples_in_the_engine():
    trainer = OnlineTrainer(lambda learner: compiled())
    with pytest.raises(ValueError, match="RecentExamples.*nobody fills"):
        trainer.fit(
            lambda i: Stream(), callbacks=[PlasticityMonitor(RecentExamples())]
        )
