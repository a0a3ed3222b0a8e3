"""Data sets that `tensorflow_datasets` has downloaded and prepared."""

import contextlib
import os
import urllib.error
import urllib.request

import keras

from keras_plasticity import validation


def import_tensorflow_datasets(title: str):
    """Imports `tensorflow_datasets`, which is slow and only loaders need.

    Args:
        title: String, the name of the data in errors.

    Returns:
        The module `tensorflow_datasets`.

    Raises:
        ImportError: If it is missing, or TensorFlow, with which it reads.
    """
    is_reader = keras.backend.backend() != "tensorflow"
    try:
        # It says of devices what nobody asks a reader of files, and would say
        # it right before an error that people are to read.
        with _silent_stderr() if is_reader else contextlib.nullcontext():
            import tensorflow as tf
            import tensorflow_datasets as tfds

            if is_reader:
                _leave_the_gpu_to_others(tf)
    except ImportError as error:
        raise ImportError(
            f"{title} is read by `tensorflow_datasets`, which needs "
            "TensorFlow. Install both: pip install tensorflow "
            f"tensorflow-datasets importlib_resources. Received: {error}"
        ) from error
    return tfds


def _leave_the_gpu_to_others(tf):
    # It would reserve all of the GPU's memory just to read a file. Once it is
    # initialized, its devices cannot change.
    with contextlib.suppress(RuntimeError):
        tf.config.set_visible_devices([], "GPU")


@contextlib.contextmanager
def _silent_stderr():
    """A context in which the process writes nothing to standard error.

    That of the operating system: TensorFlow writes there from C++, and no
    setting of it changes what it writes while it is imported.
    """
    try:
        kept = os.dup(2)
    except OSError:  # It is closed.
        yield
        return
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def prepared_builder(
    title: str, name: str, url: str, probe: str, data_dir: str | None
):
    """Returns a `tensorflow_datasets` builder with its data prepared.

    Args:
        title: String, the name of the data in errors.
        name: String, its name in `tensorflow_datasets`.
        url: String, where it is downloaded from.
        probe: String, one of the files there.
        data_dir: String, the folder that holds it, without downloading.
            `None`: the default folder, with a download if needed.

    Returns:
        A `tfds.core.DatasetBuilder`.

    Raises:
        ImportError: If `tensorflow_datasets` or TensorFlow is missing.
        FileNotFoundError: If `data_dir` does not hold the data.
        ConnectionError: If the data has to be downloaded and cannot be.
    """
    if data_dir is not None:
        data_dir = validation.check_path("data_dir", data_dir)
    tfds = import_tensorflow_datasets(title)
    builder = tfds.builder(name, data_dir=data_dir)
    if builder.is_prepared():
        return builder
    how_to_prepare = (
        'python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('{name}', data_dir='FOLDER').download_and_prepare()\""
    )
    if data_dir is not None:
        raise FileNotFoundError(
            f"{title} was not found in `data_dir`, which must be a folder of "
            f"`tensorflow_datasets` with '{name}' in it. Leave `data_dir` "
            f"out to download {title} to the default folder, or download it "
            f"to FOLDER by: {how_to_prepare}. Received: data_dir={data_dir}"
        )
    try:
        _check_reachable(url + probe)
        builder.download_and_prepare()
    except (OSError, tfds.download.DownloadError) as error:
        raise ConnectionError(
            f"{title} is not in {builder.data_dir}, and could not be "
            f"downloaded from {url}. Connect to the network, or set "
            "`data_dir` to a folder of `tensorflow_datasets` that holds "
            f"{title}. On a machine with a network, FOLDER becomes one by: "
            f"{how_to_prepare}. Received: {error}"
        ) from error
    return builder


def _check_reachable(url):
    """Fails within seconds; `tensorflow_datasets` retries for minutes."""
    try:
        urllib.request.urlopen(
            urllib.request.Request(url, method="HEAD"), timeout=20
        ).close()
    except urllib.error.HTTPError:
        pass  # The server is reachable; the download handles its answer.
