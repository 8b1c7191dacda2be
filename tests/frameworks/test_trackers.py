"""Weights & Biases and MLflow, without a network: scalars of recorded steps, pictures, and the report."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import made_runs
import pytest
from frameworks.plain import assert_same_records, batches, found, net, plain, same_bits

import gradscope
from gradscope import Batch, Rows

RECORDED = "scalars, heatmaps and the report of a run"
LAYERS = ("rnn.l0", "rnn.l1")


@pytest.fixture
def wandb_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    wandb = pytest.importorskip("wandb", minversion="0.18", reason="make frameworks installs wandb")
    for name in ("DIR", "DATA_DIR", "CACHE_DIR", "CONFIG_DIR"):
        monkeypatch.setenv(f"WANDB_{name}", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    # W&B reads its variables once in a process, and another test may have made it do so: it is told the folder too.
    with wandb.init(project="gradscope", mode="offline", dir=tmp_path) as run:
        yield run


def check_scalars(scalars: dict[str, float], run: gradscope.Run, step: int) -> None:
    """They are the numbers in the tables."""
    for layer in (0, 1):
        row = run.frame("layers", step=step, layer=layer).iloc[0]
        assert scalars[f"gradscope.horizon/rnn.l{layer}"] == row["horizon"]
        grad_h = run.frame("timesteps", step=step, layer=layer, quantity="grad_h")["p50"].median()
        assert math.isclose(scalars[f"gradscope.grad_h/rnn.l{layer}/p50"], math.log10(grad_h), rel_tol=1e-12)
    assert scalars["gradscope.grad_norm"] == run.frame("steps", step=step)["grad_norm"].iloc[0]


def test_wandb(wandb_run: Any, tmp_path: Path) -> None:
    from gradscope_integrations.wandb import WandbSink

    logged: list[Any] = []
    log_artifact = wandb_run.log_artifact
    wandb_run.log_artifact = lambda artifact: logged.append(artifact) or log_artifact(artifact)
    model, bare = net(), net()
    run = plain(model, batches(4), sinks=[WandbSink(wandb_run, commit=True)])
    assert_same_records(run, plain(bare, batches(4)))
    assert same_bits(model, bare) and not same_bits(model, net())
    summary = dict(wandb_run.summary)
    assert summary["gradscope.step"] == 3 and summary["_step"] == 3  # a row for each
    check_scalars(summary, run, 3)
    pictures = sorted(path.name for path in tmp_path.rglob("*.png"))
    assert [name.rpartition("_")[0].rpartition("_")[0] for name in pictures] == [*LAYERS]
    (artifact,) = logged
    assert artifact.type == "gradscope-report" and list(artifact.manifest.entries) == ["gradscope.html"]
    found("Weights & Biases", "wandb", "wandb", RECORDED, identical=same_bits(model, bare))


def test_the_steps_of_a_wandb_run_are_its_own(wandb_run: Any) -> None:
    """The loop says its steps itself; none of its numbers is lost, and ours come with them."""
    from gradscope_integrations.wandb import WandbSink

    plain(net(), batches(2), sinks=[WandbSink(wandb_run)])
    wandb_run.log({"loss": 1.0}, step=0)
    wandb_run.log({"loss": 0.5}, step=7, commit=True)
    summary = dict(wandb_run.summary)
    assert summary["loss"] == 0.5 and summary["_step"] == 7 and summary["gradscope.step"] == 1


def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", minversion="2.16", reason="make frameworks installs MLflow")
    from gradscope_integrations.mlflow import MlflowSink

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # no server, no database
    client = mlflow.MlflowClient(tracking_uri=tmp_path.as_uri())
    run_id = client.create_run(client.create_experiment("rnn")).info.run_id
    model, bare = net(), net()
    run = plain(model, batches(4), sinks=[MlflowSink(run_id, client=client)])
    assert_same_records(run, plain(bare, batches(4)))
    assert same_bits(model, bare) and not same_bits(model, net())
    check_scalars(client.get_run(run_id).data.metrics, run, 3)
    history = client.get_metric_history(run_id, "gradscope.horizon/rnn.l0")
    assert [point.step for point in history] == [0, 1, 2, 3]
    stored = sorted(path.relative_to(tmp_path).name for path in tmp_path.rglob("*") if "artifacts" in path.parts)
    assert [name for name in stored if "." in name] == ["gradscope.html", "rnn.l0.png", "rnn.l1.png"]
    found("MLflow", "mlflow-skinny", "mlflow", RECORDED, identical=same_bits(model, bare))


def test_the_loss_comes_first_where_it_is_known() -> None:
    from gradscope_integrations.tracking import Tracking

    sent: dict[int, dict[str, float]] = {}

    class Keeping(Tracking):
        def send(self, step: int, scalars: dict[str, float]) -> None:
            sent[step] = scalars

        def send_picture(self, layer: str, path: Path) -> None: ...

        def send_report(self, path: Path) -> None: ...

    sink = Keeping()
    for step, loss in enumerate((2.3, 2.2, math.nan)):
        about = {"optimizer": "Adam", "loss": loss, "grad_norm": 0.5, "nonfinite": 0}
        rows = (Rows("steps", about), *made_runs.layer(made_runs.ENCODER, 12, -0.5))
        sink.write(Batch(step, rows if step != 1 else rows[:1]))
    assert next(iter(sent[0].items())) == ("gradscope.loss", 2.3)
    assert [*sent] == [0, 2] and "gradscope.loss" not in sent[2] and sent[2]["gradscope.horizon/encoder.l0"] == 7


def test_a_tracker_that_fails_is_warned_about_once() -> None:
    pytest.importorskip("matplotlib", reason="gradscope-rnn[report] is not installed")
    from gradscope_integrations.tracking import Tracking

    class Failing(Tracking):
        def send(self, step: int, scalars: dict[str, float]) -> None:
            raise ConnectionError("no server")

        def send_picture(self, layer: str, path: Path) -> None:
            raise ConnectionError("no server")

        def send_report(self, path: Path) -> None:
            raise ConnectionError("no server")

    model, bare = net(), net()
    with pytest.warns(gradscope.GradscopeWarning, match="Failing: ConnectionError: no server") as said:
        run = plain(model, batches(3), sinks=[Failing()])
    assert len(said) == 1
    assert_same_records(run, plain(bare, batches(3)))
    assert same_bits(model, bare)
