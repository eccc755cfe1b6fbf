"""Training curves for MLflow: a listener for `run_stage(on_progress=...)`."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

from edgekd.distill.results import Progress
from edgekd.errors import InputError


def mlflow_tracker(run_name: str) -> Callable[[Progress], None]:
    """Logs losses, held-out accuracy, learning rate and speed by step into a new run, each epoch, as `STAGE/NAME`.

    Where to is MLflow's own affair: MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME.
    Raises: InputError: MLflow is not installed; names the extra.
    """
    if importlib.util.find_spec("mlflow") is None:
        raise InputError("MLflow is not installed", fix="pip install 'edgekd[mlflow]'")
    from mlflow import MlflowClient

    client, run_id = MlflowClient(), ""

    def tell(progress: Progress) -> None:
        nonlocal run_id
        record = progress.epoch_record
        if record is None:
            return
        run_id = run_id or _new_run(client, run_name)
        for name, value in record.scalars().items():
            client.log_metric(run_id, f"{progress.stage}/{name}", value, step=record.step)
        if progress.step == progress.total_steps:
            client.set_terminated(run_id)

    return tell


def _new_run(client: object, run_name: str) -> str:
    import mlflow

    name = mlflow.environment_variables.MLFLOW_EXPERIMENT_NAME.get() or "Default"
    found = client.get_experiment_by_name(name)  # type: ignore[attr-defined]
    number = found.experiment_id if found else client.create_experiment(name)  # type: ignore[attr-defined]
    return str(client.create_run(number, run_name=run_name).info.run_id)  # type: ignore[attr-defined]
