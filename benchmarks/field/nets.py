"""Networks as people write them: a recurrent part, and what is around it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from benchmarks.field.layers import State, layer, recurrent, width
from benchmarks.field.setup import Setup
from benchmarks.field.task import Batch, Task


def detached(state: State) -> State:
    """The same state without its past."""
    if isinstance(state, list | tuple):
        return type(state)(detached(one) for one in state)
    return None if state is None else state.detach()


def parted(state: State, half: str) -> State:
    """The same with a part of it without its past: `"h"` or `"c"` of an LSTM's, or all of it."""
    if not half or state is None:
        return detached(state)
    h, c = state
    return (h.detach(), c) if half == "h" else (h, c.detach())


CURVES: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "round": torch.round,
    "probabilities": lambda y: y.softmax(-1),
    "log_softmax": lambda y: y.log_softmax(-1),
    "over batch": lambda y: y.softmax(0),
    "clamp": lambda y: y.clamp(0, 1),
    "rewrapped": lambda y: y.detach().requires_grad_(),
    "threshold": lambda y: (y > 0).float().requires_grad_(),
    "softmax": lambda y: y[..., :1].softmax(-1).expand_as(y),
}


class Head(nn.Module):
    """What makes answers of states."""

    def __init__(self, setup: Setup, inputs: int, outputs: int) -> None:
        super().__init__()
        self.kind = setup.head
        layers = [nn.Linear(inputs, inputs // 2), nn.ReLU(), nn.Linear(inputs // 2, outputs)]
        if setup.head == "list":
            self.layers = layers
        else:
            self.linear = nn.Linear(inputs, outputs)
        if setup.head == "frozen":
            self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "list":
            for one in self.layers:
                x = one(x)
            return x
        y = self.linear(x.detach() if self.kind == "detached" else x)
        if self.kind == "argmax":
            return nn.functional.one_hot(y.argmax(-1), y.shape[-1]).float().requires_grad_()
        return CURVES[self.kind](y) if self.kind in CURVES else y


class Reader(nn.Module):
    """Reads a sequence, and answers at its end or all along."""

    def __init__(self, setup: Setup, task: Task) -> None:
        super().__init__()
        self.setup, self.task = setup, task
        self.embed = nn.Embedding(task.inputs, setup.embed) if task.tokens else None
        self.drop = nn.Dropout(setup.dropout)
        self.rnn = recurrent(setup, setup.embed if task.tokens else task.inputs)
        self.head = Head(setup, width(setup), task.outputs)
        if setup.spare:
            self.spare = layer(setup, setup.hidden, 1)
        if setup.norms:
            sizes = {"in": setup.embed if task.tokens else task.inputs, "out": width(setup)}
            self.normed = nn.LayerNorm(sizes[setup.norms])

    def forward(self, x: Tensor, lengths: Tensor, state: State = None) -> tuple[Tensor, State]:
        e = self.drop(self.embed(x)) if self.embed is not None else x
        if self.setup.norms == "in":
            e = self.normed(e)
        with torch.no_grad() if self.setup.head == "no_grad" else nullcontext():
            output, state = self.run(e, lengths, self.begin(e, state))
        if self.task.answers == "last":
            output = self.last(state) if self.setup.read in ("state", "view") else self.read(output, lengths)
        if self.setup.norms == "out":
            output = self.normed(output)
        return self.head(self.drop(output)), state

    def begin(self, e: Tensor, state: State) -> State:
        """The state to begin with: the one handed on, or numbers that are drawn."""
        if state is not None or not self.setup.state:
            return state
        many = self.setup.layers * (2 if self.setup.bidirectional else 1)
        h, c = self.setup.state * torch.randn(2, many, len(e), self.setup.hidden)
        return (h, c) if self.setup.family == "lstm" else h

    def last(self, state: State) -> Tensor:
        """What a module calls its last state: of both directions, or reshaped as it should not be."""
        h = state[0] if isinstance(state, tuple) else state
        if self.setup.read == "view":
            return h.reshape(h.shape[1], -1)
        return torch.cat([h[-2], h[-1]], -1) if self.setup.bidirectional else h[-1]

    def run(self, e: Tensor, lengths: Tensor, state: State) -> tuple[Tensor, State]:
        """The states at every timestep, and the last one."""
        if self.setup.form == "packed":
            packed = pack_padded_sequence(e, lengths, batch_first=True, enforce_sorted=False)
            output, state = self.rnn(packed, state)
            return pad_packed_sequence(output, batch_first=True, total_length=e.shape[1])[0], state
        if self.setup.swapped:
            return self.rnn(e.transpose(0, 1))[0].transpose(0, 1), None
        if self.setup.viewed:
            return self.rnn(e.reshape(e.shape[1], e.shape[0], -1).transpose(0, 1))[0], None
        if self.setup.form == "dropped":
            return torch.cat([self.rnn(step)[0] for step in e.split(1, 1)], 1), None
        if self.setup.burn:
            with torch.no_grad():
                before, state = self.rnn(e[:, : self.setup.burn], state)
            output, state = self.rnn(e[:, self.setup.burn :], state)
            return torch.cat([before, output], 1), state
        if not self.setup.detach:
            return self.rnn(e, state)
        outputs: list[Tensor] = []
        for part in e.split(self.setup.detach, 1):
            output, state = self.rnn(part, parted(state, self.setup.half))
            outputs.append(output)
        return torch.cat(outputs, 1), state

    def read(self, output: Tensor, lengths: Tensor) -> Tensor:
        """The state that the answer is made from."""
        if self.setup.read == "end":
            return output[:, -1]
        if self.setup.read == "start":
            return output[:, 0]
        if self.setup.read in ("mean", "max"):
            valid = torch.arange(output.shape[1]) < lengths[:, None]
            if self.setup.read == "max":
                return output.masked_fill(~valid[..., None], -1.0).amax(1)
            return (output * valid[..., None]).sum(1) / lengths[:, None]
        last = output[torch.arange(len(output)), lengths - 1]
        if not self.setup.bidirectional:
            return last
        half = last.shape[-1] // 2
        return torch.cat([last[:, :half], output[:, 0, half:]], -1)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One timestep of an agent."""
        output, state = self.rnn(x[:, None], state)
        return self.head(output[:, 0]), state


class Pair(nn.Module):
    """An encoder, and a decoder that is told the right symbols so far, or how late it is."""

    def __init__(self, setup: Setup, task: Task) -> None:
        super().__init__()
        self.setup, self.task = setup, task
        self.embed = nn.Embedding(task.inputs, setup.embed) if task.tokens else None
        self.told = nn.Embedding(task.symbols, setup.embed) if task.symbols else None
        self.encoder = recurrent(setup, setup.embed if task.tokens else task.inputs)
        self.decoder = recurrent(setup.but(bidirectional=False), setup.embed if task.symbols else 1)
        self.head = Head(setup, width(setup.but(bidirectional=False)), task.outputs)

    def forward(self, x: Tensor, lengths: Tensor, y: Tensor) -> Tensor:
        e = self.embed(x) if self.embed is not None else x
        if self.setup.form == "packed":
            e = pack_padded_sequence(e, lengths, batch_first=True, enforce_sorted=False)
        if self.setup.detach:
            state = None
            for part in e.split(self.setup.detach, 1):
                state = self.encoder(part, detached(state))[1]
        else:
            state = self.encoder(e)[1]
        if self.setup.handover == "none":
            state = None
        elif self.setup.handover == "detached":
            state = detached(state)
        if self.told is None:
            before = torch.linspace(0, 1, y.shape[1]).expand(len(y), -1)[..., None]
        else:
            start = torch.full((len(y), 1), self.task.symbols - 1)
            before = self.told(torch.cat([start, y[:, :-1]], 1))
        return self.head(self.decoder(before, state)[0])


def build(setup: Setup, task: Task) -> nn.Module:
    """The network for a task, as torch begins it."""
    model = Pair(setup, task) if task.answers == "pair" else Reader(setup, task)
    if setup.embed_scale != 1:
        model.embed.weight.data.mul_(setup.embed_scale)  # type: ignore[union-attr]
    if setup.tied:
        model.head.linear.weight = model.embed.weight  # type: ignore[union-attr]
    if setup.frozen:
        getattr(model, setup.frozen).requires_grad_(False)
    return model


def answer(model: nn.Module, batch: Batch, setup: Setup, state: State) -> tuple[Tensor, State]:
    """Answers to a batch, and the state for the next one where there is one."""
    if isinstance(model, Pair):
        return model(batch.x, batch.lengths, batch.y), None
    if setup.single:
        B, T = batch.x.shape[:2]
        y = model(batch.x.reshape(B * T, 1, *batch.x.shape[2:]), torch.ones(B * T, dtype=torch.long))[0]
        return y.view(B, T, -1), None
    return model(batch.x, batch.lengths, state)
