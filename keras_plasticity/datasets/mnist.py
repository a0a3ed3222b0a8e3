import numpy as np

from keras_plasticity.datasets import prepared_data


def load_mnist(data_dir: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Loads the 60,000 training images of MNIST with `tensorflow_datasets`.

    Args:
        data_dir: String, a folder of `tensorflow_datasets` that holds MNIST,
            from which it is read without downloading. Defaults to `None`: the
            default folder of `tensorflow_datasets`, to which MNIST is
            downloaded if it is not there.

    Returns:
        Tuple `(images, labels)`: uint8 of shape `(60000, 28, 28, 1)`, and
        integers in [0, 10) of shape `(60000,)`.

    Raises:
        ImportError: If `tensorflow_datasets` is missing, or TensorFlow, with
            which it reads.
        FileNotFoundError: If `data_dir` does not hold MNIST.
        ConnectionError: If MNIST has to be downloaded and cannot be.
    """
    tfds = prepared_data.import_tensorflow_datasets("MNIST")
    builder = prepared_data.prepared_builder(
        title="MNIST",
        name="mnist",
        url="https://storage.googleapis.com/cvdf-datasets/mnist/",
        probe="train-labels-idx1-ubyte.gz",
        data_dir=data_dir,
    )
    dataset = builder.as_dataset(
        split="train", batch_size=-1, as_supervised=True
    )
    return tfds.as_numpy(dataset)
