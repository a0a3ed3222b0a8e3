"""A cluster of Ray that is made up: its tasks run in a thread."""

import concurrent.futures
import types


class FakeRay:
    """In place of the module `ray`, as far as executors use it.

    Args:
        gcs_address: String, the cluster that the process is connected to
            already. Defaults to `None`: to none.

    Attributes:
        addresses: List of strings, of the clusters it was connected to.
    """

    def __init__(self, gcs_address=None):
        self.addresses = []
        self._gcs_address = gcs_address
        self._pool = concurrent.futures.ThreadPoolExecutor(1)

    def is_initialized(self):
        return self._gcs_address is not None

    def init(self, address, **arguments):
        if self.is_initialized():
            raise RuntimeError("Maybe you called ray.init twice by accident?")
        self.addresses.append(address)
        self._gcs_address = "10.0.0.1:6379" if address == "auto" else address

    def shutdown(self):
        self._gcs_address = None

    def get_runtime_context(self):
        return types.SimpleNamespace(gcs_address=self._gcs_address)

    def cluster_resources(self):
        return {"CPU": 2.0}

    def remote(self, max_retries):
        assert max_retries == 0
        return lambda function: types.SimpleNamespace(
            remote=lambda *arguments: self._submit(function, *arguments)
        )

    def cancel(self, reference):
        reference.future().cancel()

    def _submit(self, *arguments):
        future = self._pool.submit(*arguments)
        return types.SimpleNamespace(future=lambda: future)
