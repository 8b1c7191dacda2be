"""Lightning: what its Trainer does under the callback is what a plain loop does under a scope."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from frameworks.plain import Net, assert_same_records, batches, found, net, plain, same_bits
from processors import needs
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import gradscope

lightning = pytest.importorskip("lightning.pytorch", minversion="2.4", reason="make frameworks installs Lightning")
from gradscope_integrations.lightning import GradscopeCallback  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch:UserWarning"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning"),
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning"),
    # of the versions it was written for
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:lightning"),
    pytest.mark.filterwarnings("ignore:.*:FutureWarning:lightning"),
]


class Module(lightning.LightningModule):
    """The network of the plain loop, validated in between, optimized by Lightning or by hand."""

    def __init__(self, *, manual: bool = False, fail_at: int = -1) -> None:
        super().__init__()
        self.net, self.fail_at, self.automatic_optimization = net(), fail_at, not manual

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        if index == self.fail_at:
            raise ArithmeticError
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        if not self.automatic_optimization:
            self.manual_backward(loss)
            self.clip_gradients(self.optimizers(), 0.5, "norm")
            self.optimizers().step()
            self.optimizers().zero_grad()
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        self.net(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Alone(nn.Module):
    """The network under the name that it has in `Module`."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Seed(lightning.Callback):
    """The random numbers of training begin where those of the plain loop do."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        torch.manual_seed(2)


def fit(module: Module, *callbacks: Any, ckpt_path: Path | None = None, data: int = 6, **options: Any) -> Any:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet |= {"enable_model_summary": False, "accelerator": "cpu", "max_epochs": 1}
    trainer = lightning.Trainer(**quiet | options, callbacks=[Seed(), *callbacks])
    loaders = (DataLoader(batches(count), batch_size=None) for count in (data, 2))
    trainer.fit(module, *loaders, ckpt_path=ckpt_path)
    return trainer


def clip_norm(model: nn.Module) -> None:
    nn.utils.clip_grad_norm_(model.parameters(), 0.5)


def clip_value(model: nn.Module) -> None:
    nn.utils.clip_grad_value_(model.parameters(), 0.01)


WAYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "clipped": ({"gradient_clip_val": 0.5}, {"clip": clip_norm}),
    "clipped by value": ({"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}, {"clip": clip_value}),
    "accumulated": ({"accumulate_grad_batches": 3}, {"accumulate": 3}),
    "clipped and accumulated": (
        {"accumulate_grad_batches": 2, "gradient_clip_val": 0.5},
        {"accumulate": 2, "clip": clip_norm},
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_automatic_optimization(way: str) -> None:
    options, same = WAYS[way]
    watching, module, bare, alone = GradscopeCallback(every=1, strict=True), Module(), Module(), Alone()
    fit(module, watching, **options)
    fit(bare, **options)
    assert_same_records(watching.run, plain(alone, batches(6), **same))
    assert same_bits(module.net, bare.net) and same_bits(module.net, alone.net)
    assert not same_bits(module.net, net())
    clips = watching.run.frame("clips")
    assert list(clips["kind"]) == ["value" if "value" in way else "norm"] * len(clips)
    assert len(clips) == ("clipped" in way) * watching.next_step and watching.next_step == 6 // same.get(
        "accumulate", 1
    )
    found(
        "Lightning",
        "lightning",
        "gradscope_integrations.lightning",
        "as in a plain loop",
        identical=same_bits(module, bare),
    )


def test_manual_optimization() -> None:
    watching, module, bare, alone = (
        GradscopeCallback(every=1, strict=True),
        Module(manual=True),
        Module(manual=True),
        Alone(),
    )
    fit(module, watching)
    fit(bare)
    assert_same_records(watching.run, plain(alone, batches(6), clip=clip_norm))
    assert same_bits(module, bare) and same_bits(module.net, alone.net)


@pytest.mark.parametrize("precision", ["64-true", pytest.param("bf16-mixed", marks=needs("LSTM in bfloat16"))])
def test_precision(precision: str) -> None:
    watching, module, bare = GradscopeCallback(every=1, strict=True), Module(), Module()
    fit(module, watching, precision=precision)
    fit(bare, precision=precision)
    assert same_bits(module, bare)
    layers = watching.run.frame("layers")
    assert len(layers) == 2 * 6 and (layers["residual"] < {"64-true": 1e-9, "bf16-mixed": 5e-2}[precision]).all()


def test_fast_dev_run_writes_nothing(tmp_path: Path) -> None:
    watching = GradscopeCallback(tmp_path / "run", every=1)
    fit(Module(), watching, fast_dev_run=2)
    assert list(watching.run.frame("steps")["step"]) == [0, 1]
    assert not (tmp_path / "run").exists()


def test_what_another_process_has_recorded_is_in_the_folder(tmp_path: Path) -> None:
    """A callback whose training ran in forked processes says where to look."""
    with pytest.raises(gradscope.GradscopeError, match=r"gradscope\.load\('.*run'\)"):
        _ = GradscopeCallback(tmp_path / "run").run
    with pytest.raises(gradscope.GradscopeError, match="when training begins$"):
        _ = GradscopeCallback().run


def test_resumed(tmp_path: Path) -> None:
    """Three steps, a checkpoint, and three more in a new process: one run, with the records of six in one go."""
    for epochs, data in ((1, 3), (2, 3)):
        watching, keeper = GradscopeCallback(tmp_path / "run", every=1), lightning.callbacks.ModelCheckpoint(tmp_path)
        path = tmp_path / "epoch=0-step=3.ckpt" if epochs == 2 else None
        fit(Module(), watching, keeper, data=data, max_epochs=epochs, ckpt_path=path, enable_checkpointing=True)
    steps = gradscope.load(tmp_path / "run").frame("steps")
    assert list(steps["step"]) == [0, 1, 2, 3, 4, 5] and steps["recorded"].all()


def test_back_to_a_checkpoint(tmp_path: Path) -> None:
    """What was recorded after the checkpoint stays; the training goes on beside it."""
    keeper = lightning.callbacks.ModelCheckpoint(tmp_path, every_n_train_steps=2, save_top_k=-1)
    fit(Module(), GradscopeCallback(tmp_path / "run", every=1), keeper, enable_checkpointing=True)
    again = GradscopeCallback(tmp_path / "run", every=1)
    with pytest.warns(gradscope.GradscopeWarning, match="already has steps up to 5, and first_step is 4: .*run-2"):
        fit(Module(), again, ckpt_path=tmp_path / "epoch=0-step=4.ckpt")
    assert list(gradscope.load(tmp_path / "run").frame("steps")["step"]) == [0, 1, 2, 3, 4, 5]
    assert list(gradscope.load(tmp_path / "run-2").frame("steps")["step"]) == [4, 5]


def test_closed_by_an_exception(tmp_path: Path) -> None:
    watching, module = GradscopeCallback(tmp_path / "run", every=1), Module(fail_at=3)
    with pytest.raises(ArithmeticError):
        fit(module, watching)
    assert len(gradscope.load(tmp_path / "run").frame("steps")) == 3
    with gradscope.attach(module, tmp_path / "run", first_step=3):  # nobody else writes there
        pass
    assert isinstance(module.net, Net)
