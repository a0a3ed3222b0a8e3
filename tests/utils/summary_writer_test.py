import importlib.util
import os
import random
import subprocess
import sys
import time

import numpy as np
import pytest
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.backend.event_processing import plugin_event_accumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams import metadata as hparams_metadata
from tensorboard.util import tensor_util

from keras_plasticity.utils import summary_writer
from tests.rendered_markdown import shown_tables

_WITHOUT_TENSORFLOW = """
import sys
sys.modules["tensorflow"] = None
from tensorboard.backend.event_processing import event_accumulator
from keras_plasticity.utils.summary_writer import SummaryWriter
with SummaryWriter(sys.argv[1]) as writer:
    writer.scalar("a/b", 0.5, step=3)
    writer.histogram("a/c", [1.0, 2.0], step=3)
    writer.text("a/d", "words")
    writer.image("a/e", bytes.fromhex(sys.argv[2]))
    writer.hparams({"f": 1}, {"a/g": 0.5})
    writer.band_charts({"a/h": ("b", "c", "d")})
assert not [m for m in sys.modules if m.split(".")[0] == "tensorflow"][1:]
events = event_accumulator.EventAccumulator(sys.argv[1])
events.Reload()
print(sorted(events.Tags()["tensors"]))
"""

# A white picture, 3 wide and 2 high.
_PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000003000000020800000000b81fcf3a"
)


def load(log_dir):
    """What TensorBoard itself knows of a folder, without its fast loader."""
    events = plugin_event_accumulator.EventAccumulator(str(log_dir))
    return events.Reload()


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


@pytest.mark.parametrize("value", [None, [("a", 1)], "a", 3])
@pytest.mark.parametrize("name", ["hparams", "results"])
def test_what_is_no_dict(tmp_path, name, value):
    if name == "results" and value is None:
        pytest.skip("There may be none.")
    arguments = {"hparams": {"a": 1}, name: value}
    with (
        summary_writer.SummaryWriter(tmp_path) as writer,
        pytest.raises(ValueError, match=f"`{name}` must be a dict. Received"),
    ):
        writer.hparams(**arguments)


@pytest.mark.parametrize("suffix", ["a/b", " ", "a b", "*", 3, None])
def test_bad_suffixes(tmp_path, suffix):
    with pytest.raises(ValueError, match="`suffix` must be a string of letter"):
        summary_writer.SummaryWriter(tmp_path / "new", suffix=suffix)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_histogram_of_what_is_not_finite(tmp_path, value):
    with (
        summary_writer.SummaryWriter(tmp_path) as writer,
        pytest.raises(ValueError, match="`values` must be .*finite"),
    ):
        writer.histogram("ages", [1.0, value], 0)


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
        [
            sys.executable,
            "-c",
            _WITHOUT_TENSORFLOW,
            str(tmp_path),
            _PNG.hex(),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "KERAS_BACKEND": backends[0]},
    )
    assert output.returncode == 0, output.stderr
    assert output.stdout.strip() == str(
        [
            "_hparams_/session_end_info",
            "_hparams_/session_start_info",
            *("a/b", "a/c", "a/d", "a/e", "a/g"),
            "custom_scalars__config__",
        ]
    )


def test_an_image_comes_back(tmp_path):
    with summary_writer.SummaryWriter(tmp_path) as writer:
        writer.image("figure/error", _PNG, step=4)
    events = load(tmp_path)
    metadata = events.SummaryMetadata("figure/error")
    assert metadata.plugin_data.plugin_name == "images"
    [(step, values)] = read(tmp_path)["figure/error"]
    assert step == 4
    assert values.tolist() == [b"3", b"2", _PNG]


@pytest.mark.parametrize("png", [b"GIF89a", "figure.png", np.zeros((2, 2))])
def test_what_is_no_png(tmp_path, png):
    with summary_writer.SummaryWriter(tmp_path) as writer:
        with pytest.raises(ValueError, match="must be the bytes of a PNG"):
            writer.image("a", png)


def test_settings_and_results_come_back(tmp_path):
    settings = {
        "method": "cbp",
        "seed": np.int64(3),
        "rate": 1e-4,
        "is_plastic": True,
        "data_dir": None,
        "layers": [1, 2],
    }
    with summary_writer.SummaryWriter(tmp_path) as writer:
        writer.hparams(settings)
        assert hparams_metadata.SESSION_END_INFO_TAG not in _tags(writer)
        writer.hparams(settings, {"accuracy": 0.5, "diverged": None}, step=9)
    events = load(tmp_path)
    contents = events.PluginTagToContent("hparams")
    start = hparams_metadata.parse_session_start_info_plugin_data(
        contents[hparams_metadata.SESSION_START_INFO_TAG]
    )
    assert {
        name: getattr(value, value.WhichOneof("kind"))
        for name, value in start.hparams.items()
    } == {
        "method": "cbp",
        "seed": 3.0,
        "rate": 1e-4,
        "is_plastic": True,
        "data_dir": "None",
        "layers": "[1, 2]",
    }
    assert start.hparams["is_plastic"].WhichOneof("kind") == "bool_value"
    end = hparams_metadata.parse_session_end_info_plugin_data(
        contents[hparams_metadata.SESSION_END_INFO_TAG]
    )
    assert end.status == api_pb2.STATUS_SUCCESS
    tags = read(tmp_path)
    assert tags["accuracy"] == [(9, 0.5)]
    assert "diverged" not in tags


def _tags(writer):
    writer.flush()
    return load(writer.log_dir).Tags()["tensors"]


def test_charts_with_a_band_come_back(tmp_path):
    with summary_writer.SummaryWriter(tmp_path) as writer:
        writer.band_charts(
            {
                "task/loss": ("a", "b", "c"),
                "task/online accuracy": ["d", "e", "f"],
                "alone": ("g", "h", "i"),
            }
        )
    events = load(tmp_path)
    [tag] = events.PluginTagToContent("custom_scalars")
    [event] = events.Tensors(tag)
    content = tensor_util.make_ndarray(event.tensor_proto).item()
    layout = layout_pb2.Layout.FromString(content)
    charts = {
        (category.title, chart.title): [
            (s.value, s.lower, s.upper) for s in chart.margin.series
        ]
        for category in layout.category
        for chart in category.chart
    }
    assert charts == {
        ("task", "loss"): [("a", "b", "c")],
        ("task", "online accuracy"): [("d", "e", "f")],
        ("alone", "alone"): [("g", "h", "i")],
    }


@pytest.mark.parametrize("tags", [("a", "b"), "abc"])
def test_a_band_needs_three_tags(tmp_path, tags):
    with summary_writer.SummaryWriter(tmp_path) as writer:
        with pytest.raises(ValueError, match="Received for 'loss'"):
            writer.band_charts({"loss": tags})


def test_a_run_that_goes_on_forgets_later_steps(tmp_path):
    with summary_writer.SummaryWriter(tmp_path) as writer:
        writer.text("flags", "some words")
        for step in range(6):
            writer.scalar("loss", step, step)
            writer.scalar("not written again", step, step)
    with summary_writer.SummaryWriter(tmp_path, first_step=3) as writer:
        writer.scalar("loss", -3.0, 3)
    events = load(tmp_path)

    def points(tag):
        return [
            (event.step, tensor_util.make_ndarray(event.tensor_proto).item())
            for event in events.Tensors(tag)
        ]

    assert points("flags") == [(0, b"some words")]
    assert points("loss") == [(0, 0), (1, 1), (2, 2), (3, -3)]
    assert points("not written again") == [(0, 0), (1, 1), (2, 2)]


def test_files_begun_in_one_second_are_read_in_their_order(tmp_path):
    # Two names that TensorBoard would read after any name of this second.
    now = int(time.time())
    for second in (now, now + 1):
        (tmp_path / f"events.out.tfevents.{second}.~.1.1").touch()
    before = max(os.listdir(tmp_path))
    with summary_writer.SummaryWriter(tmp_path) as writer:
        writer.scalar("a", 1.0, step=0)
    assert max(os.listdir(tmp_path)) > before
    assert len(read(tmp_path)["a"]) == 1


_PIECES = [
    *"|`\\*_[]()<>&#!~-+.:=\"'{}$@^/ \n\t\r\0\x02\x03\x85\u2028\u202ea1é±",
    *("&lt;", "&#124;", "<br>", "<script>", "<!--", "-->", "**", "__", "  "),
    *("```", "~~~", "---", "|---|", "![", "](", "javascript:", "http://a.b"),
    *("\x02wzxhzdk:0\x03", "\udc80", "\U0001f600", "<img src=x onerror=x>"),
]


def _as_printed(text):
    return "".join(
        char if char.isprintable() or char == "\n" else repr(char)[1:-1]
        for char in text
    )


def _check_shown(rows):
    table = summary_writer.markdown_table(rows[0], rows[1:])
    expected = [[_as_printed(str(cell)) for cell in row] for row in rows]
    for shown in shown_tables(table):
        assert shown == expected, table


@pytest.mark.parametrize(
    "text",
    [
        "a|b",
        "a\\|b",
        "`a|b` `",
        "two\nlines",
        "two\n\nparagraphs",
        "<img src=x onerror=alert(1)>",
        "[a](javascript:alert(1))",
        "![a](http://a.b/c.png)",
        "<http://a.b>",
        "# heading",
        "*a* _b_ **c** __d__ a_b_c",
        "&lt;&#60;&amp;",
        "    code",
        "- list",
        "---",
        "",
        " a  b ",
        None,
        (1, 2.5),
    ],
    ids=repr,
)
def test_a_cell_shows_what_it_holds(text):
    _check_shown([(text, "header"), ("a", text), (text, text)])
    _check_shown([(text,), (text,)])


def test_any_cell_shows_what_it_holds():
    rng = random.Random(0)

    def cell():
        return "".join(rng.choices(_PIECES, k=rng.randint(0, 7)))

    for _ in range(300):
        columns = rng.randint(1, 4)
        _check_shown([tuple(cell() for _ in range(columns)) for _ in range(3)])


def test_cells_of_common_settings_are_easy_to_read():
    table = summary_writer.markdown_table(
        ("flag", "value"), [("learning_rate", 1e-3), ("method", "cbp,l2 (b)")]
    )
    assert table == (
        "| flag | value |\n| --- | --- |\n| learning_rate | 0.001 |\n"
        "| method | cbp,l2 (b) |"
    )


def test_cells_may_be_markdown():
    table = summary_writer.markdown_table(
        ("a", "*b*"), [("`x|y`", "[c](http://d)")], escape=False
    )
    assert table == "| a | *b* |\n| --- | --- |\n| `x\\|y` | [c](http://d) |"
