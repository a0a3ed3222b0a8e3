import time
from collections.abc import Mapping
from typing import Any

from keras_plasticity import validation
from keras_plasticity.callbacks.tracker import Tracker
from keras_plasticity.callbacks.tracker import check_installed


class MLflowTracker(Tracker):
    """Logs metrics, and the settings of the run, to MLflow.

    It is a callback for `model.fit`, where a step is an epoch, and for
    `keras_plasticity.training.OnlineTrainer`, where it is a task. There, the
    results of several learners are their mean, over those whose value is
    finite, with its standard error as `<name>_standard_error`, and their number
    as `learners`.

    It leaves MLflow's active run alone, so several can be used at a time. A
    training that is resumed from a checkpoint continues its run in MLflow.

    Args:
        experiment: String, MLflow's experiment. It is made if it is not there.
        run_name: String. Defaults to `None`: MLflow makes one up.
        settings: Dict from name to value, MLflow's parameters of the run.
            Defaults to `None`: none.
        tracking_uri: String, where MLflow keeps its runs: a folder, a database
            or a server. Defaults to `None`: where MLflow does, by
            `MLFLOW_TRACKING_URI` or on this machine. (MLflow has stopped to
            develop its store in a folder, and asks for
            `MLFLOW_ALLOW_FILE_STORE=true` before it uses one.)

    Raises:
        ImportError: If mlflow is not installed: `pip install -e '.[mlflow]'`.

    Example:

    ```python
    tracker = keras_plasticity.callbacks.MLflowTracker(
        "permuted_mnist", settings={"learning_rate": 0.01}
    )
    model.fit(x, y, epochs=10, callbacks=[tracker])
    ```
    """

    def __init__(
        self,
        experiment: str,
        run_name: str | None = None,
        settings: Mapping[str, Any] | None = None,
        tracking_uri: str | None = None,
    ):
        super().__init__(settings)
        self._experiment = validation.check_string("experiment", experiment)
        for name, value in (
            ("run_name", run_name),
            ("tracking_uri", tracking_uri),
        ):
            if value is not None:
                validation.check_string(name, value)
        self._run_name = run_name
        self._tracking_uri = tracking_uri
        self._client = None
        check_installed("`MLflowTracker`", "mlflow")

    def _open(self):
        # Imported here: it takes seconds, and most do without.
        import mlflow
        from mlflow.entities import Param

        if self._client is None:
            self._client = mlflow.MlflowClient(self._tracking_uri)
        if self._run_id is not None:
            self._client.update_run(self._run_id, status="RUNNING")
            return
        found = self._client.get_experiment_by_name(self._experiment)
        if found is None:
            experiment = self._client.create_experiment(self._experiment)
        else:
            experiment = found.experiment_id
        run = self._client.create_run(experiment, run_name=self._run_name)
        self._run_id = run.info.run_id
        self._client.log_batch(
            self._run_id,
            params=[
                Param(name, str(value))
                for name, value in self._settings.items()
            ],
        )

    def _write(self, numbers, step):
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self._client.log_batch(
            self._run_id,
            metrics=[
                Metric(name, number, now, step)
                for name, number in numbers.items()
            ],
        )

    def _close(self):
        self._client.set_terminated(self._run_id)
