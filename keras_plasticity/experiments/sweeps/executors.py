"""Where the jobs of a sweep are done: here, or on a cluster of Ray.

An executor has `at_a_time`, the number of jobs that it does at a time;
`submit`, which returns a `concurrent.futures.Future` of an `Outcome`; `check`,
which has the trainer check flags; `stop`, after which jobs end as soon as they
can in order; `end_idle`, which gives back what processes hold that do nothing;
and `close`. Whatever a future raises, its job was not done and can be tried
again.
"""

import concurrent.futures
import contextlib
import os
import signal
import socket
import threading

import keras

from keras_plasticity.experiments.sweeps.jobs import Group
from keras_plasticity.experiments.sweeps.jobs import Job
from keras_plasticity.experiments.sweeps.jobs import do_job
from keras_plasticity.experiments.sweeps.worker_process import NewProcessNeeded
from keras_plasticity.experiments.sweeps.worker_process import WorkerProcess

_SECONDS_TO_CONNECT = 5


class LocalProcesses:
    """Processes of this machine, each of which does one job after another.

    Args:
        trainer: String, the trainer's file.
        processes: Integer, how many there are.
    """

    def __init__(self, trainer: str, processes: int):
        self.at_a_time = processes
        self._trainer = trainer
        self._pool = concurrent.futures.ThreadPoolExecutor(processes)
        self._workers = []
        self._idle = []
        self._is_stopped = False
        self._lock = threading.Lock()

    def submit(self, job: Job | Group) -> concurrent.futures.Future:
        return self._pool.submit(self._with_worker, do_job, job)

    def check(self, arguments: list[list[str]]) -> concurrent.futures.Future:
        """Has the trainer check flags.

        Args:
            arguments: List of lists of flags.

        Returns:
            Future of the first that it refuses, its index and the error;
            `None` if there is none.
        """
        return self._pool.submit(self._with_worker, _check, arguments)

    def stop(self):
        with self._lock:
            self._is_stopped = True
            for worker in self._workers:
                worker.stop()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def close(self, at_once: bool = False):
        """Ends all processes.

        Args:
            at_once: Boolean, whether without time to end in order.
        """
        try:
            if at_once:
                self._kill()
            self._pool.shutdown(cancel_futures=True)
        except BaseException:  # Ctrl-C once more.
            self._kill()
            raise
        # Those that are left are idle.
        self.end_idle()

    def end_idle(self):
        """Ends the processes that do nothing; what comes next starts others."""
        with self._lock:
            idle, self._idle = self._idle, []
            for worker in idle:
                self._workers.remove(worker)
        for worker in idle:
            worker.close()

    def _kill(self):
        with self._lock:
            self._is_stopped = True
            for worker in self._workers:
                worker.kill()

    def _with_worker(self, function, argument):
        with self._lock:
            if self._is_stopped:
                raise concurrent.futures.CancelledError
            if self._idle:
                worker = self._idle.pop()
            else:
                # With the lock: nobody may end all workers meanwhile.
                worker = WorkerProcess(
                    self._trainer, keras.backend.backend(), self.at_a_time
                )
                self._workers.append(worker)
        try:
            result = function(worker, argument)
        except BaseException as error:
            with self._lock:
                self._workers.remove(worker)
            worker.close(at_once=True)
            if isinstance(error, NewProcessNeeded):
                return self._with_worker(function, argument)
            raise
        with self._lock:
            self._idle.append(worker)
        return result


class RayCluster:
    """A cluster of Ray: each job takes a CPU of any of its nodes.

    The nodes have to have this package and the trainer's file, under the same
    path. Where they also share the folder of the sweep, a job whose node is
    gone is resumed on another one; else it starts there anew.

    Args:
        trainer: String, the trainer's file.
        ray: The module of Ray, see `connected_ray`.
    """

    def __init__(self, trainer: str, ray):
        self._ray = ray
        cpus = ray.cluster_resources().get("CPU", 1)
        self.at_a_time = max(1, int(cpus))
        self._trainer = trainer
        self._references = []
        # That needs no cluster.
        self._checker = LocalProcesses(trainer, 1)
        # The driver tries again, for whatever reason a job was not done.
        self._task = ray.remote(max_retries=0)(_do_job_on_node)

    def submit(self, job: Job | Group) -> concurrent.futures.Future:
        # Nothing is checked while jobs are done. A suite's next sweep is.
        self.end_idle()
        reference = self._task.remote(
            self._trainer, keras.backend.backend(), job
        )
        self._references.append(reference)
        return reference.future()

    def check(self, arguments: list[list[str]]) -> concurrent.futures.Future:
        """See `LocalProcesses`; it is done on this machine."""
        return self._checker.check(arguments)

    def stop(self):
        self._checker.stop()
        for reference in self._references:
            # In a task that runs it raises a `KeyboardInterrupt`.
            self._ray.cancel(reference)

    def end_idle(self):
        """See `LocalProcesses`; the cluster's own end with their jobs."""
        self._checker.end_idle()

    def close(self, at_once: bool = False):
        self._checker.close(at_once)


@contextlib.contextmanager
def connected_ray(address: str):
    """A context with the module of Ray, connected to a cluster.

    A process has one connection, which the executors of a suite share. One that
    was there before stays.

    Args:
        address: String, that of the cluster, such as `"10.0.0.1:6379"`, or
            `"auto"`: the one that is running on this machine.

    Raises:
        ConnectionError: If the cluster is not there, or if this process is
            connected to another one.
        ImportError: If Ray is not installed.
    """
    ray = _import_ray()
    if ray.is_initialized():
        _check_connected_to(ray, address)
        yield ray
        return
    _connect(ray, address)
    try:
        yield ray
    finally:
        # Processes whose driver is gone end by themselves.
        ray.shutdown()


def _check(worker, arguments):
    for index, each in enumerate(arguments):
        status, message = worker.run([*each, "--dry_run"], os.devnull)
        if status:
            return index, message or f"exit status {status}"
    return None


def _do_job_on_node(trainer, backend, job):
    worker = WorkerProcess(trainer, backend)
    try:
        return do_job(worker, job)
    finally:
        # It ends what it trains in order if this is a `KeyboardInterrupt`.
        worker.close()


def _import_ray():
    try:
        import ray
    except ImportError as error:
        raise ImportError(
            "A cluster of Ray needs Ray: pip install -e '.[ray]'"
        ) from error
    return ray


@contextlib.contextmanager
def _same_handler_of_sigterm():
    """Ray would end the process when it gets the signal, and not in order."""
    if threading.current_thread() is not threading.main_thread():
        yield  # There no handler can be set.
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


def _check_connected_to(ray, address):
    # Other forms of an address, such as "auto", may be of another cluster.
    connected = ray.get_runtime_context().gcs_address
    if address != connected:
        raise ConnectionError(
            "This process is connected to a cluster of Ray already, and can be "
            f"to one only. Give its address, {connected}, or end the "
            f"connection by `ray.shutdown()`. Received: {address}"
        )


def _connect(ray, address):
    host, colon, port = address.rpartition(":")
    try:
        if colon and "://" not in address:
            # Ray itself would try for a minute.
            socket.create_connection(
                (host, int(port)), _SECONDS_TO_CONNECT
            ).close()
        with _same_handler_of_sigterm():
            ray.init(
                address=address, log_to_driver=False, logging_level="ERROR"
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise ConnectionError(
            f"There is no cluster of Ray at {address}. Start one by `ray start "
            "--head`, or give the address of one that is running. "
            f"({str(error).splitlines()[0] if str(error) else error!r})"
        ) from error
