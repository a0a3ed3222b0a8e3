"""Records the results of each task."""

from keras_plasticity import training
from keras_plasticity.experiments import runs


class Recorder(training.TaskCallback):
    """Keeps the results of each task, and writes them to TensorBoard.

    Args:
        problem: `Problem`.
        steps_per_task: Integer, the number of updates in a task.
        writer: The method's `LastingWriter`.
        monitor: The `PlasticityMonitor` that measured before the task; `None`
            without diagnostics.
        epochs: The `EpochRecorder`, a callback before this one; `None` if a
            task has one epoch only.

    Attributes:
        records: List with a dict for each finished task.
    """

    def __init__(
        self, problem, steps_per_task, writer, monitor=None, epochs=None
    ):
        self.records = []
        self._problem = problem
        self._steps_per_task = steps_per_task
        self._writer = writer
        self._monitor = monitor
        self._epochs = epochs

    def on_task_end(self, task, results):
        metric = self._problem.metric
        values = results[self._problem.result]
        results = {
            metric if name == self._problem.result else name: each
            for name, each in results.items()
        }
        record = {"task": task}
        for name in results:
            record[name] = runs.finite_mean(results[name])
        record[f"{metric}_standard_error"] = runs.standard_error(values)
        record[f"{metric}_per_learner"] = runs.finite_list(values)
        writer = self._writer
        for name in results:
            if record[name] is not None:
                writer.scalar(f"task/{name}", record[name], task)
        self._write_against_steps(record)
        if record[metric] is not None:
            error = record[f"{metric}_standard_error"]
            for end, sign in (("lower", -1), ("upper", 1)):
                writer.scalar(
                    f"task_band/{metric}_{end}",
                    record[metric] + sign * error,
                    task,
                )
        if self._monitor is not None and self._monitor.history:
            measured = dict(self._monitor.history[-1])
            if measured.pop("step") == task:
                record.update(measured, num_units=self._monitor.num_units)
        if self._epochs is not None and self._epochs.epochs:
            record["epochs"] = self._epochs.epochs
        self.records.append(record)
        writer.flush()

    def get_state(self):
        return training.AppendOnly(self.records)

    def set_state(self, state):
        self.records = list(state)
        # TensorBoard drops all that a run wrote after the task that it resumes
        # from, and mistakes everything plotted against updates for that.
        for record in self.records:
            self._write_against_steps(record)

    def _write_against_steps(self, record):
        metric = self._problem.metric
        if record[metric] is not None:
            steps = (record["task"] + 1) * self._steps_per_task
            self._writer.scalar(f"step/{metric}", record[metric], steps)
