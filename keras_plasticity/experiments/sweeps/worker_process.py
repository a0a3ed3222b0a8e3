"""The driver's side of a worker process."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading

_MODULE = "keras_plasticity.experiments.sweeps.worker"
# In which a worker writes a checkpoint after a signal.
_SECONDS_TO_END = 60


class WorkerDied(Exception):
    """A worker process has ended without an answer."""


class NewProcessNeeded(Exception):
    """A worker process cannot do what a new one can."""


class WorkerProcess:
    """A process that trains by a trainer, see `worker`.

    It has a session of its own: Ctrl-C reaches it through its driver only. If
    the driver ends, however it does, so does the process.

    Args:
        trainer: String, the trainer's file.
        backend: String, the backend of Keras, which is that of the sweep: a
            node of a cluster may be set up for another.
        processes: Integer, how many of them share the machine: its memory,
            and its cores, where the environment does not say how many threads
            a backend may use. Defaults to `1`.
    """

    def __init__(self, trainer: str, backend: str, processes: int = 1):
        environment = {**os.environ, "KERAS_BACKEND": backend}
        if processes > 1:
            threads = max(1, (os.cpu_count() or 1) // processes)
            environment.setdefault("OMP_NUM_THREADS", str(threads))
            environment.setdefault("TF_NUM_INTRAOP_THREADS", str(threads))
        self._process = subprocess.Popen(
            [sys.executable, "-m", _MODULE, trainer, str(processes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # What importing a backend prints is no news.
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
            start_new_session=True,
        )
        self._is_started = False
        self._lock = threading.Lock()

    @property
    def process(self) -> int:
        """The number of the process."""
        return self._process.pid

    def run(self, arguments: list[str], log: str) -> tuple[int, str]:
        """Runs the trainer once.

        Args:
            arguments: List of strings, its flags.
            log: String, the file that what it prints is added to.

        Returns:
            Tuple of its exit status and of its message, a string.

        Raises:
            NewProcessNeeded: If what the process has trained before has
                settled how it compiles, and this needs it otherwise.
            ValueError: If the trainer's file is none.
            WorkerDied: If the process has ended.
        """
        if not self._is_started:
            error = self._read()["error"]
            if error is not None:
                raise ValueError(error)
            self._is_started = True
        request = json.dumps({"arguments": arguments, "log": log})
        # It may have ended, which reading tells.
        with contextlib.suppress(OSError):
            print(request, file=self._process.stdin, flush=True)
        reply = self._read()
        if reply["status"] is None:
            raise NewProcessNeeded
        return reply["status"], reply["message"]

    def stop(self):
        """Ends what it trains, in order, by a signal."""
        with self._lock:
            if self._process.poll() is None:
                self._process.send_signal(signal.SIGTERM)

    def kill(self):
        """Ends the process at once."""
        with self._lock:
            if self._process.poll() is None:
                self._process.kill()

    def close(self, at_once: bool = False):
        """Ends the process, and waits for its end.

        Args:
            at_once: Boolean, whether it has no time to end in order.
        """
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        if at_once:
            self.kill()
        try:
            self._process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        with contextlib.suppress(OSError):
            self._process.stdout.close()

    def _read(self):
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            reason = f"exit status {status}"
            if status < 0:
                with contextlib.suppress(ValueError):
                    reason = signal.Signals(-status).name
            raise WorkerDied(f"the worker process ended: {reason}")
        return json.loads(line)
