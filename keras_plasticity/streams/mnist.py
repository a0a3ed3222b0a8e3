import urllib.error
import urllib.request

import keras
import numpy as np

_URL = "https://storage.googleapis.com/cvdf-datasets/mnist/"
_HOW_TO_PREPARE = (
    'python -c "import tensorflow_datasets as tfds; '
    "tfds.builder('mnist', data_dir='FOLDER').download_and_prepare()\""
)


def load_mnist(data_dir: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Loads the 60,000 training images of MNIST by `tensorflow_datasets`.

    Args:
        data_dir: String, a folder of `tensorflow_datasets` that holds MNIST;
            nothing is downloaded then. Defaults to `None`: the default folder
            of `tensorflow_datasets`, and a download when MNIST is not there.

    Returns:
        Tuple `(images, labels)`: uint8 of shape `(60000, 28, 28, 1)`, and
        integers in [0, 10) of shape `(60000,)`.

    Raises:
        ImportError: If `tensorflow_datasets` or TensorFlow, by which it reads,
            is missing.
        FileNotFoundError: If `data_dir` does not hold MNIST.
        ConnectionError: If MNIST has to be downloaded and cannot be.
    """
    tfds = _import_tensorflow_datasets()
    builder = tfds.builder("mnist", data_dir=data_dir)
    if not builder.is_prepared():
        if data_dir is not None:
            raise FileNotFoundError(
                "MNIST was not found in `data_dir`, which must be a folder of "
                "`tensorflow_datasets` with 'mnist' in it. Leave `data_dir` "
                "out to download MNIST to the default folder, or download it "
                f"to FOLDER by: {_HOW_TO_PREPARE}. "
                f"Received: data_dir={data_dir}"
            )
        _download(builder)
    dataset = builder.as_dataset(
        split="train", batch_size=-1, as_supervised=True
    )
    return tfds.as_numpy(dataset)


def _import_tensorflow_datasets():
    try:
        # The reader of `tensorflow_datasets`; slow to import, and needed by
        # nothing but this function.
        import tensorflow as tf
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(
            "MNIST is read by `tensorflow_datasets`, which needs TensorFlow. "
            "Install both: pip install tensorflow tensorflow-datasets "
            f"importlib_resources. Received: {error}"
        ) from error
    if keras.backend.backend() != "tensorflow":
        try:
            # It would take all of the GPU's memory only to read a file.
            tf.config.set_visible_devices([], "GPU")
        except RuntimeError:
            pass  # TensorFlow runs already: its devices cannot change.
    return tfds


def _download(builder):
    try:
        _check_reachable(_URL + "train-labels-idx1-ubyte.gz")
        builder.download_and_prepare()
    except OSError as error:
        raise ConnectionError(
            f"MNIST is not in {builder.data_dir}, and could not be downloaded "
            f"from {_URL}. Connect to the network, or set `data_dir` to a "
            "folder of `tensorflow_datasets` that holds MNIST. On a machine "
            f"with a network, FOLDER becomes one by: {_HOW_TO_PREPARE}. "
            f"Received: {error}"
        ) from error


def _check_reachable(url):
    """Fails within seconds; `tensorflow_datasets` retries for minutes."""
    try:
        urllib.request.urlopen(
            urllib.request.Request(url, method="HEAD"), timeout=20
        ).close()
    except urllib.error.HTTPError:
        pass  # An answer nevertheless. What it means is for the download.
