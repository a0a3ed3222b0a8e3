import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.util import tensor_util

from keras_plasticity.utils import summary_writer

_WITHOUT_TENSORFLOW = """
import sys
sys.modules["tensorflow"] = None
from tensorboard.backend.event_processing import event_accumulator
from keras_plasticity.utils.summary_writer import SummaryWriter
with SummaryWriter(sys.argv[1]) as writer:
    writer.scalar("a/b", 0.5, step=3)
    writer.histogram("a/c", [1.0, 2.0], step=3)
    writer.text("a/d", "words")
events = event_accumulator.EventAccumulator(sys.argv[1])
events.Reload()
print(sorted(events.Tags()["tensors"]))
"""


def read(log_dir):
    events = event_accumulator.EventAccumulator(str(log_dir))
    events.Reload()
    return {
        tag: [
            (event.step, tensor_util.make_ndarray(event.tensor_proto))
            for event in events.Tensors(tag)
        ]
        for tag in events.Tags()["tensors"]
    }


def test_scalars_histograms_and_text_come_back(tmp_path):
    with summary_writer.SummaryWriter(tmp_path / "new") as writer:
        writer.scalar("task/loss", 0.5, step=0)
        writer.scalar("task/loss", np.float32(0.25), step=10)
        writer.histogram("utility/dense", np.arange(10), step=2)
        writer.text("flags", "some *words*")
    tags = read(tmp_path / "new")
    assert set(tags) == {"task/loss", "utility/dense", "flags"}
    assert tags["task/loss"] == [(0, 0.5), (10, 0.25)]
    [(step, buckets)] = tags["utility/dense"]
    assert step == 2
    assert buckets[:, 2].sum() == 10
    assert buckets[0, 0] == 0
    assert buckets[-1, 1] == 9
    [(step, text)] = tags["flags"]
    assert step == 0
    assert text.item() == b"some *words*"


def test_what_is_flushed_can_be_read_before_the_end(tmp_path):
    writer = summary_writer.SummaryWriter(tmp_path)
    writer.scalar("a", 1.0, step=0)
    writer.flush()
    assert read(tmp_path)["a"] == [(0, 1.0)]
    writer.close()


def test_no_tensorflow_is_needed(tmp_path):
    # Keras needs a backend, which cannot be TensorFlow here.
    backends = [b for b in ("jax", "torch") if importlib.util.find_spec(b)]
    if not backends:
        pytest.skip("needs JAX or PyTorch beside TensorFlow")
    output = subprocess.run(
        [sys.executable, "-c", _WITHOUT_TENSORFLOW, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "KERAS_BACKEND": backends[0]},
    )
    assert output.returncode == 0, output.stderr
    assert output.stdout.strip() == "['a/b', 'a/c', 'a/d']"


def test_markdown_table_escapes_bars():
    table = summary_writer.markdown_table(("flag", "value"), [("a", "x|y")])
    assert table == "| flag | value |\n| --- | --- |\n| a | x\\|y |"
