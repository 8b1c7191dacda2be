"""A fused call as a plain loop over its sequences, layers and directions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from oracles.sequences import BLOCKS, Call, Cell, Layer, Step, Track, Truth, _kept


@dataclass
class Layout:
    """Between a module's own layout and [time, sequence, feature] with lengths, in kernel order."""

    module: nn.RNNBase
    packed: PackedSequence | None
    unbatched: bool
    lengths: list[int]

    @classmethod
    def of(cls, module: nn.RNNBase, input: Tensor | PackedSequence) -> Layout:
        if isinstance(input, PackedSequence):
            sizes = input.batch_sizes.tolist()
            return cls(module, input, False, [sum(size > b for size in sizes) for b in range(sizes[0])])
        if input.dim() == 2:
            return cls(module, None, True, [len(input)])
        time, batch = (1, 0) if module.batch_first else (0, 1)
        return cls(module, None, False, [input.shape[time]] * input.shape[batch])

    def cut(self, input: Tensor | PackedSequence) -> list[Tensor]:
        """The sequences, each [its own length, feature]."""
        if self.packed is not None:
            starts = np.concatenate([[0], np.cumsum(input.batch_sizes.tolist())])
            return [
                torch.stack([input.data[starts[t] + b] for t in range(length)]) for b, length in enumerate(self.lengths)
            ]
        if self.unbatched:
            return [input]
        return list(input if self.module.batch_first else input.transpose(0, 1))

    def assemble(self, sequences: list[list[Tensor]]) -> Tensor | PackedSequence:
        """The output of the module from one list of vectors per sequence."""
        if self.packed is not None:
            rows = [sequences[b][t] for t, size in enumerate(self.packed.batch_sizes.tolist()) for b in range(size)]
            return PackedSequence(torch.stack(rows), *self.packed[1:])
        batch = torch.stack([torch.stack(rows) for rows in sequences])
        if self.unbatched:
            return batch[0]
        return batch if self.module.batch_first else batch.transpose(0, 1)

    def states_in(self, states: Tensor) -> Tensor:
        """[layer x direction, sequence, unit] in kernel order."""
        if self.unbatched:
            return states.unsqueeze(1)
        order = None if self.packed is None else self.packed.sorted_indices
        return states if order is None else states[:, order]

    def states_out(self, states: Tensor) -> Tensor:
        if self.unbatched:
            return states.squeeze(1)
        order = None if self.packed is None else self.packed.unsorted_indices
        return states if order is None else states[:, order]


def _leaf(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.detach().to(dtype, copy=True).requires_grad_()


def _directions(module: nn.RNNBase) -> list[tuple[str, str]]:
    return [("forward", ""), ("reverse", "_reverse")][: 2 if module.bidirectional else 1]


def _read_weights(call: Call) -> dict[str, Tensor]:
    module = call.module
    kinds = ["weight_ih", "weight_hh"] + ["bias_ih", "bias_hh"] * module.bias + ["weight_hr"] * bool(module.proj_size)
    names = [f"{k}_l{n}{s}" for n in range(module.num_layers) for _, s in _directions(module) for k in kinds]
    source = call.weights or {name: getattr(module, name) for name in names}
    return {name: _leaf(source[name], call.dtype) for name in names}


def _initial(call: Call, layout: Layout) -> tuple[Tensor, Tensor | None]:
    module, is_lstm = call.module, isinstance(call.module, nn.LSTM)
    shape = (module.num_layers * len(_directions(module)), len(layout.lengths))
    if call.hx is None:
        h, c = torch.zeros(*shape, module.proj_size or module.hidden_size), torch.zeros(*shape, module.hidden_size)
    else:
        h, c = map(layout.states_in, call.hx if is_lstm else (call.hx, call.hx))
    return _leaf(h, call.dtype), _leaf(c, call.dtype) if is_lstm else None


def _run_sequence(cell: Cell, inputs: list[Tensor], h: Tensor, c: Tensor | None, reverse: bool) -> Track:
    steps: list[Step | None] = [None] * len(inputs)
    for t in range(len(inputs))[:: -1 if reverse else 1]:
        step = steps[t] = cell(inputs[t], h, c)
        h, c = _kept(step.h), None if step.c is None else _kept(step.c)
        step.above = _kept(h.clone())
        _kept(step.recurrent)
    return Track(cell, reverse, steps, _kept(h.clone()), None if c is None else _kept(c.clone()))


def _run_stack(call: Call, weights: dict[str, Tensor], sequences: list[list[Tensor]], initial) -> list[Layer]:
    module, layers = call.module, []
    family = next(name for name in BLOCKS if isinstance(module, getattr(nn, name)))
    for number in range(module.num_layers):
        results = []
        for direction, suffix in _directions(module):
            kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
            mine = [weights.get(f"{kind}_l{number}{suffix}") for kind in kinds]
            cell = Cell(family, getattr(module, "nonlinearity", ""), *mine)
            h0, c0 = (None if s is None else s[len(layers)] for s in initial)
            tracks = [
                _run_sequence(cell, rows, h0[b], None if c0 is None else c0[b], direction == "reverse")
                for b, rows in enumerate(sequences)
            ]
            results.append(tracks)
            layers.append(Layer(number, direction, cell, tracks))
        sequences = [_above(tracks) for tracks in zip(*results, strict=True)]
        if number < len(call.masks):
            mask = call.masks[number].to(call.dtype)
            sequences = [[row * mask[t, b] for t, row in enumerate(rows)] for b, rows in enumerate(sequences)]
    return layers


def _above(tracks: tuple[Track, ...]) -> list[Tensor]:
    """What one sequence gives to the layer above: both directions side by side."""
    return [torch.cat([step.above for step in steps]) for steps in zip(*(t.steps for t in tracks), strict=True)]


def examine(call: Call) -> Truth:
    """Unroll the call, take its loss, and send the gradient back."""
    layout = Layout.of(call.module, call.input)
    weights, initial = _read_weights(call), _initial(call, layout)
    inputs = [_leaf(rows, call.dtype) for rows in layout.cut(call.input)]
    layers = _run_stack(call, weights, [list(rows) for rows in inputs], initial)
    top = [layer.tracks for layer in layers if layer.layer == call.module.num_layers - 1]
    output = layout.assemble([_above(tracks) for tracks in zip(*top, strict=True)])
    h_n, c_n = (
        None
        if layers[0].tracks[0].c_n is None and name == "c_n"
        else layout.states_out(torch.stack([torch.stack([getattr(t, name) for t in layer.tracks]) for layer in layers]))
        for name in ("h_n", "c_n")
    )
    loss = call.loss(output, h_n, c_n)
    loss.backward()
    return Truth(output, h_n, c_n, loss.detach(), layers, weights, inputs, initial)


def dropout_masks(module: nn.RNNBase, input: Tensor | PackedSequence, rng_state: Tensor) -> list[Tensor]:
    """The masks that the CPU kernels drew from this generator state, as `Call.masks` wants them.

    One mask per boundary between layers, over the whole output of the lower one (packed rows when packed), drawn
    in order. Whoever uses them checks that the unrolled output is the fused one.
    """
    layout = Layout.of(module, input)
    width = (module.proj_size or module.hidden_size) * len(_directions(module))
    rows = [(t, b) for t in range(max(layout.lengths)) for b, length in enumerate(layout.lengths) if t < length]
    dtype = input.data.dtype
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(rng_state)
        drawn = [
            nn.functional.dropout(torch.ones(len(rows), width, dtype=dtype), module.dropout)
            for _ in range(module.num_layers - 1)
        ]
    masks = [torch.zeros(max(layout.lengths), len(layout.lengths), width, dtype=dtype) for _ in drawn]
    for mask, values in zip(masks, drawn, strict=True):
        for (t, b), value in zip(rows, values, strict=True):
            mask[t, b] = value
    return masks
