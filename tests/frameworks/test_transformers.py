"""Hugging Face Transformers: what its Trainer does under the callback is what a plain loop does under a scope."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from frameworks.plain import Net, assert_same_records, batches, found, net, plain, same_bits
from torch import Tensor, nn
from torch.nn import functional as F

import gradscope

transformers = pytest.importorskip("transformers", minversion="4.46", reason="make frameworks installs Transformers")
pytest.importorskip("accelerate", reason="make frameworks installs Accelerate")
from gradscope_integrations.transformers import GradscopeCallback  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning")


class Model(nn.Module):
    """The network of the plain loop, as the Trainer wants it: it computes its own loss."""

    def __init__(self, fail_at: int = -1) -> None:
        super().__init__()
        self.net, self.left = net(), fail_at

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        self.left -= 1
        if self.left == -1:
            raise ArithmeticError
        scores = self.net(x)
        return scores if labels is None else {"loss": F.cross_entropy(scores, labels), "logits": scores}


class Alone(nn.Module):
    """The network under the name that it has in `Model`."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Seed(transformers.TrainerCallback):
    """The random numbers of training begin where those of the plain loop do; the data loader has drawn its own."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if state.global_step == 0:
            torch.manual_seed(2)


def fit(model: Model, folder: Path, *callbacks: Any, data: int = 6, resume: str | None = None, **options: Any) -> None:
    quiet = {"report_to": "none", "disable_tqdm": True, "logging_strategy": "no", "save_strategy": "no"}
    quiet |= {"optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant", "num_train_epochs": 1}
    quiet |= {"per_device_train_batch_size": 1, "max_grad_norm": 0.0, "use_cpu": True, "dataloader_pin_memory": False}
    arguments = transformers.TrainingArguments(str(folder), **quiet | options)
    options = {
        "train_dataset": batches(data),
        "data_collator": lambda items: dict(zip(("x", "labels"), items[0], strict=True)),
    }
    trainer = transformers.Trainer(model, arguments, callbacks=[Seed(), *callbacks], **options)
    trainer._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(batches(data))
    trainer.train(resume_from_checkpoint=resume)


def measure_norm(model: nn.Module) -> None:
    """How the Trainer measures the gradient's norm where it does not clip."""
    nn.utils.clip_grad_norm_(model.parameters(), float("inf"))


def clip_norm(model: nn.Module) -> None:
    nn.utils.clip_grad_norm_(model.parameters(), 0.5)


WAYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "not clipped": ({}, {"clip": measure_norm}),
    "clipped": ({"max_grad_norm": 0.5}, {"clip": clip_norm}),
    "accumulated": ({"gradient_accumulation_steps": 2, "max_grad_norm": 0.5}, {"accumulate": 2, "clip": clip_norm}),
}


@pytest.mark.parametrize("way", WAYS)
def test_trainer(way: str, tmp_path: Path) -> None:
    options, same = WAYS[way]
    watching, model, bare, alone = GradscopeCallback(every=1, strict=True), Model(), Model(), Alone()
    fit(model, tmp_path, watching, **options)
    fit(bare, tmp_path, **options)
    assert_same_records(watching.run, plain(alone, batches(6), **same))
    assert same_bits(model, bare) and same_bits(model, alone)
    assert not same_bits(model.net, net())
    assert watching.run.frame("clips")["clipped"].any() == (way != "not clipped")
    found(
        "Transformers",
        "transformers",
        "gradscope_integrations.transformers",
        "as in a plain loop",
        identical=same_bits(model, bare),
    )


def test_resumed(tmp_path: Path) -> None:
    saved = {"save_strategy": "steps", "save_steps": 3}
    fit(Model(), tmp_path, GradscopeCallback(tmp_path / "run", every=1), max_steps=3, **saved)
    fit(Model(), tmp_path, GradscopeCallback(tmp_path / "run", every=1), resume=str(tmp_path / "checkpoint-3"), **saved)
    assert list(gradscope.load(tmp_path / "run").frame("steps")["step"]) == [0, 1, 2, 3, 4, 5]


def test_closed_by_an_exception(tmp_path: Path) -> None:
    model = Model(fail_at=3)
    with pytest.raises(ArithmeticError), GradscopeCallback(tmp_path / "run", every=1) as watching:
        fit(model, tmp_path, watching)
    assert len(gradscope.load(tmp_path / "run").frame("steps")) == 3
    assert watching.next_step == 3 and isinstance(model.net, Net)
