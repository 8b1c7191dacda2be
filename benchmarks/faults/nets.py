"""The networks of the fault set: a recurrent layer called in one of five ways, and a linear one on top."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

State = Tensor | tuple[Tensor, ...] | None
FAMILIES = ("rnn_tanh", "rnn_relu", "lstm", "gru")
FORMS = ("fused", "cells", "packed", "bidirectional", "stacked")
GATES = {"lstm": ("input", "forget", "candidate", "output"), "gru": ("reset", "update", "candidate")}
KEEP = 2.0  # bias of the gate that keeps the state
LEAD = 8  # empty steps in front for two directions, so that the reverse one has a way to go as well


class Net(nn.Module):
    """A recurrent encoder of H units and a head.

    Args:
        family: one of `FAMILIES`.
        form: one of `FORMS`; `padded` is `packed` without the packing.
        D: features.
        outputs: of the head.
        H: hidden units.
    """

    def __init__(self, family: str, form: str, D: int, outputs: int, H: int = 24) -> None:
        super().__init__()
        self.family, self.form = family, form
        self.directions = 2 if form == "bidirectional" else 1
        self.encoder = _cell(family, D, H) if form == "cells" else _layer(family, form, D, H)
        self.head = nn.Linear(H * self.directions, outputs)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Scores [T, B, outputs] of x [T, B, D]; a reverse direction gives all it has read to every step's answer."""
        if self.form == "cells":
            return self.windows(x, len(x))[0]
        if self.form == "packed":
            packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
            output = pad_packed_sequence(self.encoder(packed)[0], total_length=len(x))[0]
            return self.head(output)
        if self.form == "bidirectional":
            output = self.encoder(torch.cat([x.new_zeros(LEAD, *x.shape[1:]), x]))[0]
            forward, reverse = output.chunk(2, -1)
            return self.head(torch.cat([forward[LEAD:], reverse[:1].expand_as(forward[LEAD:])], -1))
        return self.head(self.encoder(x)[0])

    def windows(self, x: Tensor, window: int, state: State = None) -> tuple[Tensor, State]:
        """Scores of x read in windows, the state detached in between, and the last state."""
        outputs: list[Tensor] = []
        for part in x.split(window):
            state = _detached(state)
            if self.form == "cells":
                for step in part:
                    state = self.encoder(step, state)
                    outputs.append((state[0] if isinstance(state, tuple) else state).unsqueeze(0))
            else:
                output, state = self.encoder(part, state)
                outputs.append(output)
        return self.head(torch.cat(outputs)), state

    def recurrences(self) -> Iterator[tuple[nn.Parameter, nn.Parameter, nn.Parameter, nn.Parameter]]:
        """W_ih, W_hh, b_ih, b_hh of every layer and direction."""
        named = dict(self.encoder.named_parameters())
        for suffix in [name.removeprefix("weight_hh") for name in named if name.startswith("weight_hh")]:
            w_ih, w_hh, b_ih, b_hh = (
                named[f"{kind}{suffix}"] for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            yield w_ih, w_hh, b_ih, b_hh

    def gate(self, parameter: Tensor, name: str) -> Tensor:
        """The rows of a weight or bias that belong to a gate; all of them in an Elman network."""
        if self.family not in GATES:
            return parameter
        gates = GATES[self.family]
        return parameter.chunk(len(gates))[gates.index(name)]


def _detached(state: State) -> State:
    if isinstance(state, tuple):
        return tuple(s.detach() for s in state)
    return None if state is None else state.detach()


def _layer(family: str, form: str, D: int, H: int) -> nn.RNNBase:
    options = {"num_layers": 2 if form == "stacked" else 1, "bidirectional": form == "bidirectional"}
    if family.startswith("rnn"):
        return nn.RNN(D, H, nonlinearity=family.removeprefix("rnn_"), **options)
    return {"lstm": nn.LSTM, "gru": nn.GRU}[family](D, H, **options)


def _cell(family: str, D: int, H: int) -> nn.RNNCellBase:
    if family.startswith("rnn"):
        return nn.RNNCell(D, H, nonlinearity=family.removeprefix("rnn_"))
    return {"lstm": nn.LSTMCell, "gru": nn.GRUCell}[family](D, H)


@torch.no_grad()
def start_soundly(net: Net) -> None:
    """The usual advice: orthogonal or identity recurrence for Elman networks, gates that keep the state for others."""
    for _, w_hh, b_ih, b_hh in net.recurrences():
        if net.family == "rnn_tanh":
            nn.init.orthogonal_(w_hh)
        elif net.family == "rnn_relu":
            nn.init.eye_(w_hh)
            b_ih.zero_()
            b_hh.zero_()
        else:
            set_gate_bias(net, "forget" if net.family == "lstm" else "update", KEEP)


@torch.no_grad()
def set_gate_bias(net: Net, gate: str, value: float) -> None:
    """Make the two biases of a gate sum to a value, in every layer and direction."""
    for _, _, b_ih, b_hh in net.recurrences():
        net.gate(b_ih, gate).fill_(value)
        net.gate(b_hh, gate).zero_()
