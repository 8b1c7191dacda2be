"""What people do today, every step, beside the same bare step."""

from __future__ import annotations

import importlib.util
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from costs.rounds import Ratio, Variant, ratios
from costs.workloads import Net, Training, Workload

COCKPIT = (
    "Cockpit (Schneider, Dangel, Hennig 2021), its economy configuration, published, not measured here: 1.51 / 1.17 / "
    "1.04 / 1.02 at every 1 / 4 / 16 / 64 steps. It looks at parameters, not at time."
)

CELLS = "unrolled nn.LSTMCell, retain_grad on every h and c"
HOOK = "hook on the layer's output (dL/dh_t without the recurrence: it measures something else)"
HISTOGRAMS = "TensorBoard histograms of all gradients (parameters only)"
WANDB = "wandb.watch(log_freq=1), offline (parameters only)"


class UnrolledNet(Net):
    """The same LSTM as a loop of cells, the only way to autograd's own dL/dh_t; nobody reads them, which is free."""

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        layer = self.rnn
        self.rnn = nn.LSTMCell(workload.D, workload.H)
        self.rnn.load_state_dict({name.removesuffix("_l0"): value for name, value in layer.state_dict().items()})
        self.kept: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        state = (x.new_zeros(x.shape[1], self.rnn.hidden_size),) * 2
        outputs: list[Tensor] = []
        self.kept = []
        for x_t in x.unbind(0):
            state = self.rnn(x_t, state)
            for tensor in state:
                tensor.retain_grad()
            self.kept.extend(state)
            outputs.append(state[0])
        return torch.stack(outputs)


@contextmanager
def afterwards(wait: Callable[[], object]) -> Iterator[None]:
    """Wait for what a tool does in the background, untimed to its favour, lest the next variant pay for it."""
    yield
    wait()


def unrolled(workload: Workload, undo: ExitStack) -> Variant:
    return Variant(CELLS, Training(workload, make_net=UnrolledNet))


def output_hook(workload: Workload, undo: ExitStack) -> Variant:
    training = Training(workload)
    norms: list[Tensor] = []

    def on_output(module: nn.Module, args: object, result: tuple[Tensor, object]) -> None:
        norms.clear()
        result[0].register_hook(lambda gradient: norms.append(gradient.norm(dim=-1)))

    undo.callback(training.model.rnn.register_forward_hook(on_output).remove)
    return Variant(HOOK, training)


def histograms(workload: Workload, undo: ExitStack) -> Variant:
    from torch.utils.tensorboard import SummaryWriter

    training = Training(workload)
    writer = SummaryWriter(undo.enter_context(tempfile.TemporaryDirectory()))
    undo.callback(writer.close)
    count = iter(range(10**9))

    def write() -> None:
        step = next(count)
        for name, parameter in training.model.named_parameters():
            assert parameter.grad is not None
            writer.add_histogram(name, parameter.grad, step)

    training.after_backward = write
    return Variant(HISTOGRAMS, training, partial(afterwards, writer.flush))


def wandb_watch(workload: Workload, undo: ExitStack) -> Variant:
    import wandb

    training = Training(workload)
    folder = undo.enter_context(tempfile.TemporaryDirectory())
    os.environ["WANDB_MODE"] = "offline"
    run = wandb.init(mode="offline", dir=folder, settings=wandb.Settings(silent=True, console="off"))
    undo.callback(run.finish)
    run.watch(training.model, log="gradients", log_freq=1)
    training.after_backward = lambda: run.log({"step": 0})
    return Variant(WANDB, training, partial(afterwards, partial(time.sleep, 0.2)))


PEERS: dict[str, tuple[str, Callable[[Workload, ExitStack], Variant]]] = {
    CELLS: ("torch", unrolled),
    HOOK: ("torch", output_hook),
    HISTOGRAMS: ("tensorboard", histograms),
    WANDB: ("wandb", wandb_watch),
}


@contextmanager
def available(workload: Workload) -> Iterator[tuple[list[Variant], dict[str, str]]]:
    """The peers that are installed here, and why the others are not measured."""
    with ExitStack() as undo:
        variants: list[Variant] = []
        skipped: dict[str, str] = {}
        for name, (package, make) in PEERS.items():
            if importlib.util.find_spec(package) is None:
                skipped[name] = f"skipped: {package} is not installed"
                continue
            try:
                variants.append(make(workload, undo))
            except Exception as error:
                skipped[name] = f"skipped: {type(error).__name__}: {error}"
        yield variants, skipped


def measure_peers(workload: Workload, seconds: float) -> dict[str, Ratio | str]:
    """Peer -> ratio to the bare step, or why there is none."""
    with available(workload) as (variants, skipped):
        return {**ratios([Variant("bare", Training(workload)), *variants], seconds), **skipped}
