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
        self._write_against_updates(record)
        for name in results:
            if record[name] is not None:
                # TensorBoard sorts groups by name, and opens the first two.
                group = "against_tasks" if name == metric else "metrics"
                value = self._as_shown(name, record[name])
                writer.scalar(f"{group}/{name}", value, task)
        if record[metric] is not None:
            error = record[f"{metric}_standard_error"]
            for end, sign in (("lower", -1), ("upper", 1)):
                value = self._as_shown(metric, record[metric] + sign * error)
                writer.scalar(f"band/{metric}_{end}", value, task)
        if self._monitor is not None and self._monitor.history:
            measured = dict(self._monitor.history[-1])
            if measured.pop("step") == task:
                record.update(measured, num_units=self._monitor.num_units)
        if self._epochs is not None and self._epochs.epochs:
            record["epochs"] = self._epochs.epochs
        self.records.append(record)
        writer.flush()

    def shown(self):
        """The numbers of the last task as figures have them.

        Returns:
            Dict from name to number: results, and totals of what was measured.
            Of several learners there are the standard error and their number.
        """
        record = self.records[-1]
        metric = self._problem.metric
        values = {}
        for name, value in record.items():
            if isinstance(value, dict):
                value = value.get("total")
            # Of learners that have all diverged there is none.
            if name in ("task", "num_units") or value is None:
                continue
            if not isinstance(value, list):
                values[name] = self._as_shown(name, value)
        learners = record[f"{metric}_per_learner"]
        if len(learners) == 1:
            del values[f"{metric}_standard_error"]
        else:
            values["learners"] = sum(each is not None for each in learners)
        return values

    def get_state(self):
        return training.AppendOnly(self.records)

    def set_state(self, state):
        self.records = list(state)
        # TensorBoard drops all that a run wrote after the task that it resumes
        # from, and mistakes everything plotted against updates for that.
        for record in self.records:
            self._write_against_updates(record)

    def _write_against_updates(self, record):
        metric = self._problem.metric
        if record[metric] is not None:
            steps = (record["task"] + 1) * self._steps_per_task
            value = self._as_shown(metric, record[metric])
            self._writer.scalar(f"against_updates/{metric}", value, steps)

    def _as_shown(self, name, value):
        """A metric as figures and tables have it, such as in percent."""
        problem = self._problem
        on_training_data = problem.result.removeprefix("test_")
        is_scaled = name in (
            problem.metric,
            f"{problem.metric}_standard_error",
            on_training_data,
        )
        return problem.scale * value if is_scaled else value
