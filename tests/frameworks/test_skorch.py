"""skorch: what its nets do under the callback is what a plain loop does under a scope."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from frameworks.plain import BATCH, Net, assert_same_records, batches, found, net, plain, same_bits
from torch import nn

import gradscope

skorch = pytest.importorskip("skorch", minversion="1.0", reason="make frameworks installs skorch")
from gradscope_integrations.skorch import GradscopeCallback  # noqa: E402
from sklearn.base import clone  # noqa: E402
from skorch.callbacks import Callback, GradientNormClipping  # noqa: E402


class Seed(Callback):
    """The random numbers of training begin where those of the plain loop do; the data loader has drawn its own."""

    def on_epoch_begin(self, net: Any, dataset_train: Any = None, dataset_valid: Any = None, **others: Any) -> None:
        self.first = True

    def on_batch_begin(self, net: Any, batch: Any = None, training: Any = None, **others: Any) -> None:
        if self.first:
            torch.manual_seed(2)
        self.first = False


class Stop(Callback):
    """Raises at the second batch."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def on_batch_end(self, net: Any, batch: Any = None, training: Any = None, **others: Any) -> None:
        raise self.error


DATA = [np.concatenate([part.numpy() for part in parts]) for parts in zip(*batches(6), strict=True)]


def classifier(*callbacks: Any, **options: Any) -> Any:
    fixed = {"criterion": nn.CrossEntropyLoss, "optimizer": torch.optim.SGD, "lr": 0.1, "batch_size": BATCH}
    fixed |= {"train_split": None, "verbose": 0, "max_epochs": 1, "iterator_train__shuffle": False}
    clipping = GradientNormClipping(0.5)
    return skorch.NeuralNetClassifier(Net, callbacks=[Seed(), clipping, *callbacks], **fixed | options)


def fit(classifier: Any) -> nn.Module:
    torch.manual_seed(0)
    return classifier.fit(*DATA).module_


def clip_norm(model: nn.Module) -> None:
    nn.utils.clip_grad_norm_(model.parameters(), 0.5)


def test_fit() -> None:
    watching, alone = GradscopeCallback(every=1, strict=True), net()
    model, bare = fit(classifier(watching)), fit(classifier())
    assert_same_records(watching.run, plain(alone, batches(6), clip=clip_norm))
    assert same_bits(model, bare) and same_bits(model, alone) and not same_bits(model, net())
    found("skorch", "skorch", "skorch", "as in a plain loop", identical=same_bits(model, bare))


def test_partial_fit_goes_on(tmp_path: Path) -> None:
    net = classifier(GradscopeCallback(tmp_path, every=1))
    net.fit(*DATA).partial_fit(*DATA)
    assert list(gradscope.load(tmp_path).frame("steps")["step"]) == list(range(12))
    with pytest.warns(gradscope.GradscopeWarning, match="already has steps up to 11.*records this run in .*-2"):
        net.fit(*DATA)  # another training: its steps begin at 0
    net.partial_fit(*DATA)  # it goes on in the folder of that one
    assert list(gradscope.load(f"{tmp_path}-2").frame("steps")["step"]) == list(range(12))


def test_arguments_are_parameters() -> None:
    """Copies for a grid search have them and can set them; a pickle of a trained net keeps its run."""
    watching = GradscopeCallback(every=3, quantities="full")
    assert watching.get_params() == {"logdir": None, "every": 3, "quantities": "full"}
    copy = clone(classifier(("gradscope", watching))).set_params(callbacks__gradscope__every=2)
    fit(copy)
    recorded = dict(copy.callbacks_)["gradscope"].run.frame("layers")
    assert sorted(set(recorded["step"])) == [0, 2, 4]
    again = pickle.loads(pickle.dumps(copy))
    assert dict(again.callbacks_)["gradscope"].run.frame("layers").equals(recorded)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ArithmeticError])
def test_closed_by_an_exception(error: type[BaseException]) -> None:
    watching = GradscopeCallback(every=1)
    net = classifier(watching, Stop(error))
    if error is KeyboardInterrupt:  # skorch takes it for the end of the training
        net.fit(*DATA)
    else:
        with pytest.raises(error):
            net.fit(*DATA)
        watching.close()
    plain(net.module_, batches(1))  # the scope is closed: it hears of no other step
    assert list(watching.run.frame("steps")["step"]) == [0]
