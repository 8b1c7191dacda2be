"""Ten cells, written from their equations as somebody would who has never heard of gradscope."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PeepholeLSTMCell(nn.Module):
    """Gers, Schraudolph, Schmidhuber 2002: the gates see the cell, the output gate the new one."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.ih = nn.Linear(inputs, 4 * hidden)
        self.hh = nn.Linear(hidden, 4 * hidden, bias=False)
        self.peep = nn.Parameter(torch.randn(3, hidden))

    def forward(self, x, state=None):
        h, c = state if state is not None else (x.new_zeros(len(x), self.hidden),) * 2
        i, f, g, o = (self.ih(x) + self.hh(h)).chunk(4, 1)
        i = torch.sigmoid(i + self.peep[0] * c)
        f = torch.sigmoid(f + self.peep[1] * c)
        c = f * c + i * torch.tanh(g)
        o = torch.sigmoid(o + self.peep[2] * c)
        return o * torch.tanh(c), c


class LayerNormLSTMCell(nn.Module):
    """Ba, Kiros, Hinton 2016, with a module for every gate."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.ih, self.hh = nn.Linear(inputs, 4 * hidden, bias=False), nn.Linear(hidden, 4 * hidden)
        self.norm_i, self.norm_h, self.norm_c = nn.LayerNorm(4 * hidden), nn.LayerNorm(4 * hidden), nn.LayerNorm(hidden)
        self.gates = nn.ModuleDict({"i": nn.Sigmoid(), "f": nn.Sigmoid(), "o": nn.Sigmoid(), "g": nn.Tanh()})

    def forward(self, x, state):
        h, c = state
        parts = (self.norm_i(self.ih(x)) + self.norm_h(self.hh(h))).chunk(4, 1)
        i, f, o, g = (gate(part) for gate, part in zip(self.gates.values(), parts, strict=True))
        c = self.norm_c(f * c + i * g)
        h = o * torch.tanh(c)
        return h, (h, c)


class CoupledLSTMCell(nn.Module):
    """Greff et al. 2017: what is forgotten is written, i = 1 - f."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.w = nn.Linear(inputs + hidden, 3 * hidden)

    def forward(self, x, hc):
        h, c = hc
        f, g, o = self.w(torch.cat([x, h], 1)).chunk(3, 1)
        f = torch.sigmoid(f)
        c = f * c + (1 - f) * torch.tanh(g)
        return [torch.sigmoid(o) * torch.tanh(c), c]


class ResetBeforeGRUCell(nn.Module):
    """Cho et al. 2014: the reset gate acts before the matrix."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.w = nn.Linear(inputs, 3 * hidden)
        self.u_gates = nn.Parameter(torch.randn(2 * hidden, hidden) / hidden**0.5)
        self.u_candidate = nn.Parameter(torch.randn(hidden, hidden) / hidden**0.5)

    def forward(self, x, h=None):
        if h is None:
            h = x.new_zeros(len(x), self.u_candidate.shape[0])
        r, z, n = self.w(x).chunk(3, 1)
        a, b = (h @ self.u_gates.T).chunk(2, 1)
        r, z = torch.sigmoid(r + a), torch.sigmoid(z + b)
        n = torch.tanh(n + (r * h) @ self.u_candidate.T)
        return z * h + (1 - z) * n


class IndRNNCell(nn.Module):
    """Li et al. 2018: every unit sees itself alone."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.w, self.u = nn.Linear(inputs, hidden), nn.Parameter(torch.rand(hidden) + 0.4)

    def forward(self, x, h):
        h = torch.relu(self.w(x) + self.u * h)
        return h, h


class SRUCell(nn.Module):
    """Lei et al. 2018: only elementwise recurrence; the output is read from the cell, and is no state."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.w, self.skip = nn.Linear(inputs, 3 * hidden), nn.Linear(inputs, hidden, bias=False)
        self.v = nn.Parameter(torch.randn(2, hidden))

    def forward(self, x, c):
        u, f, r = self.w(x).chunk(3, 1)
        f, r = torch.sigmoid(f + self.v[0] * c), torch.sigmoid(r + self.v[1] * c)
        c = f * c + (1 - f) * u
        return r * torch.tanh(c) + (1 - r) * self.skip(x), c


class MinGRUCell(nn.Module):
    """Feng et al. 2024: neither gate nor candidate sees the state."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.z, self.candidate = nn.Linear(inputs, hidden), nn.Linear(inputs, hidden)

    def forward(self, x, h):
        z = torch.sigmoid(self.z(x))
        return (1 - z) * h + z * self.candidate(x)


class LRUCell(nn.Module):
    """Orvieto et al. 2023: a diagonal complex recurrence, read out as a real sequence."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.decay, self.phase = nn.Parameter(torch.rand(hidden).log()), nn.Parameter(3 * torch.rand(hidden))
        self.b = nn.Parameter(torch.randn(hidden, inputs, 2) / inputs**0.5)
        self.c = nn.Parameter(torch.randn(inputs, hidden, 2) / hidden**0.5)

    def eigenvalues(self) -> Tensor:
        return torch.exp(torch.complex(-self.decay.exp(), self.phase))

    def forward(self, x, state):
        size = self.eigenvalues()
        gain = (1 - size.abs().square()).sqrt()
        state = size * state + gain * (x.to(state.dtype) @ torch.view_as_complex(self.b).T)
        return (state @ torch.view_as_complex(self.c).T).real, state


class CfCCell(nn.Module):
    """Hasani et al. 2022: a liquid cell in closed form, that is told how much time has passed."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.backbone = nn.Linear(inputs + hidden, 8)
        self.f, self.g, self.a, self.b = (nn.Linear(8, hidden) for _ in range(4))

    def forward(self, x, hx, timespans):
        z = 1.7159 * torch.tanh(0.666 * self.backbone(torch.cat([x, hx], 1)))
        t = torch.sigmoid(self.a(z) * timespans.unsqueeze(1) + self.b(z))
        return torch.tanh(self.f(z)) * (1 - t) + t * torch.tanh(self.g(z))


class ThreeStateCell(nn.Module):
    """Beck et al. 2024 without the stabiliser: a cell with a normaliser of its own, so three tensors of two widths."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.w = nn.Linear(inputs + hidden, 3 * hidden)
        self.gain = nn.Linear(hidden, 1)

    def forward(self, x, states):
        h, c, n = states
        z, f, o = self.w(torch.cat([x, h], 1)).chunk(3, 1)
        i = F.softplus(self.gain(h))
        f = torch.sigmoid(f)
        c = f * c + i * torch.tanh(z)
        n = f.mean(1, keepdim=True) * n + i
        return torch.sigmoid(o) * c / (1 + n), c, n
