"""A frozen copy of one fused call, detached from the user's graph."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gradscope.capture.layout import Dense, Layout, Single
from gradscope.types import KernelCall, Saved, Stack, Weights

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}
TENSOR_CORES = 5e-3  # cuDNN's recurrences use them by default: TF32, float32 with the ten binary digits of float16


@dataclass(frozen=True, slots=True)
class Dropout:
    """Dropout between the layers, for masks drawn again or read.

    Attributes:
        probability: probability of a zero.
        generator_state: state of the CPU generator before the call; None if the kernel used another generator.
        shape: shape of the masks of the whole batch.
        drawn: the factors of the analysed sequences, where gradscope drew them.
        bits: the kernel's masks of the whole batch: [masks, bytes], the lowest bit first.
    """

    probability: float
    generator_state: Tensor | None
    shape: tuple[int, ...]
    drawn: tuple[Tensor, ...] = ()
    bits: Tensor | None = None

    @property
    def hidden(self) -> bool:
        """True if the factors are unknown."""
        return self.generator_state is None and not self.drawn and self.bits is None

    def masks(self, count: int, layout: Layout, like: Tensor) -> tuple[Tensor, ...]:
        """The factors on the inputs of layers 1, 2, ..., [T, n, .] each; see `Stack`.

        Draws as `torch.dropout` does, from a generator of its own: the user's stream stays as it is.
        """
        if self.bits is not None:
            return _selected(self._read(self.bits, torch.promote_types(like.dtype, torch.float32)), layout)
        if self.generator_state is None:
            return self.drawn
        generator = torch.Generator("cpu")
        generator.set_state(self.generator_state)
        keep = 1 - self.probability
        if keep == 0:
            masks = [torch.zeros(self.shape, device="cpu")] * count
        else:
            blank = (torch.empty(self.shape, dtype=like.dtype, device="cpu") for _ in range(count))
            masks = [noise.bernoulli_(keep, generator=generator).div_(keep) for noise in blank]
        return _selected(masks, layout)

    def _read(self, bits: Tensor, kind: torch.dtype) -> list[Tensor]:
        places, count = torch.arange(8, dtype=torch.uint8, device=bits.device), math.prod(self.shape)
        flat = (bits.unsqueeze(-1) >> places & 1).flatten(1)[:, :count]
        keep = 1 - struct.unpack("f", struct.pack("f", self.probability))[0]  # cuDNN takes it in single precision
        return [mask.view(self.shape).to(kind).div_(keep or 1) for mask in flat]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Inputs and results of a call, for the analysed sequences; a cell's snapshot has one timestep.

    Attributes:
        family: family of the layer.
        directions: 1 or 2.
        layout: selects the analysed sequences from tensors of the call.
        weights: copies; calls of a step with the same weights share them.
        input: [T, n, D].
        state: h_0 and c_0, [S, n, .] each.
        output: [T, n, directions * P].
        final: h_n and c_n, [S, n, .] each.
        dropout: dropout between the layers, or None.
        precision: the coarsest type of the kernel's computation.
    """

    family: str
    directions: int
    layout: Layout
    weights: tuple[Weights, ...]
    input: Tensor
    state: tuple[Tensor, ...]
    output: Tensor
    final: tuple[Tensor, ...]
    dropout: Dropout | None
    precision: torch.dtype

    def stack(
        self,
        grad_output: Tensor | None,
        grad_final: Sequence[Tensor | None],
        factor: Tensor | float = 1.0,
        saved: Sequence[Saved] = (),
    ) -> Stack:
        """The canonical form, in float32 or better, with the loss gradients divided by `factor`.

        `saved`, what the kernel saved of its layers, makes new dropout masks unnecessary.
        """
        kind = torch.float64 if self.output.dtype == torch.float64 else torch.float32
        masks = () if saved else self._masks()
        return Stack(
            family=self.family,
            weights=tuple(_cast(w, kind) for w in self.weights),
            directions=self.directions,
            lengths=self.layout.lengths,
            input=self.input.to(kind),
            dropout=tuple(mask.to(kind) for mask in masks),
            hidden_dropout=self.dropout is not None and self.dropout.hidden,
            dropout_read=self.dropout is not None and self.dropout.bits is not None,
            tolerance=tolerance(self.precision, self.input.device),
            saved=tuple(replace(k, grad_output=over(k.grad_output, factor)) for k in saved),
            **self._states(kind),
            **self._gradients(grad_output, grad_final, factor, kind),
        )

    def _masks(self) -> tuple[Tensor, ...]:
        if self.dropout is None:
            return ()
        return self.dropout.masks(len(self.weights) // self.directions - 1, self.layout, self.output)

    def _states(self, kind: torch.dtype) -> dict[str, Any]:
        """Output, initial and final states, by field of `Stack`."""
        h_0, *c_0 = (x.to(kind) for x in self.state)
        h_n, *c_n = (x.to(kind) for x in self.final)
        output = self.output.to(kind)
        return {
            "output": output,
            "h_0": h_0,
            "h_n": h_n,
            "c_0": c_0[0] if c_0 else None,
            "c_n": c_n[0] if c_n else None,
        }

    def _gradients(
        self, grad_output: Tensor | None, grad_final: Sequence[Tensor | None], factor: Tensor | float, kind: torch.dtype
    ) -> dict[str, Any]:
        """Loss gradients, by field of `Stack`."""

        def unscaled(x: Tensor | None) -> Tensor | None:
            return over(None if x is None else x.to(kind), factor)

        output = unscaled(grad_output)
        return {
            "grad_output": torch.zeros_like(self.output, dtype=kind) if output is None else output,
            "grad_h_n": unscaled(grad_final[0]),
            "grad_c_n": unscaled(grad_final[1]) if len(self.state) == 2 else None,
        }


def over(gradient: Tensor | None, factor: Tensor | float) -> Tensor | None:
    """A gradient divided by the scale of the loss: itself for 1.0, and None for None."""
    if gradient is None or (isinstance(factor, float) and factor == 1):
        return gradient
    return gradient / factor


def begin_dropout(call: KernelCall) -> Dropout | None:
    """Before the call: the generator's state and the shape for drawing its masks again."""
    if call.dropout == 0 or call.num_layers == 1:
        return None
    width = call.state[0].shape[-1] * call.directions
    if call.batch_sizes is None:
        steps = call.input.shape[1 if call.batch_first else 0]
        shape: tuple[int, ...] = (steps, call.batch, width)
    else:
        shape = (call.input.shape[0], width)
    on_cpu = call.input.device.type == "cpu" and call.masks is None
    return Dropout(call.dropout, torch.get_rng_state() if on_cpu else None, shape)


def snapshot(
    call: KernelCall,
    result: tuple[Tensor, ...],
    weights: tuple[Weights, ...],
    dropout: Dropout | None,
    layout: Layout,
) -> Snapshot:
    """Copy the analysed sequences of a call.

    Args:
        call: the arguments of the kernel.
        result: output, h_n and, for an LSTM, c_n; of a cell h and c.
        weights: copies of the weights, see `copy_weights`.
        dropout: see `begin_dropout`.
        layout: layout of the call's tensors, with the sequences to copy.
    """
    with torch.no_grad():
        return Snapshot(
            family=call.family,
            directions=call.directions,
            layout=layout,
            weights=weights,
            input=layout.select(call.input),
            state=tuple(_columns(s, layout) for s in call.state),
            output=layout.select(result[0]),
            final=tuple(_columns(s, layout) for s in (result if call.cell else result[1:])),
            dropout=replace(dropout, drawn=_selected(call.masks, layout)) if dropout and call.masks else dropout,
            precision=_precision(call, result[0]),
        )


def select_final(gradient: Tensor, layout: Layout) -> Tensor:
    """Copy the analysed sequences of a gradient of h_n or c_n, [S, n, .]."""
    with torch.no_grad():
        return _columns(gradient, layout)


def copy_weights(call: KernelCall) -> tuple[Weights, ...]:
    """Copy a call's weights by layer and direction: optimizers and others may change them before the analysis."""
    slots = call.num_layers * call.directions
    count = len(call.weights) // slots
    with torch.no_grad():
        copies = [w.clone() for w in call.weights]
    return tuple(_named(copies[i : i + count], call.has_biases) for i in range(0, len(copies), count))


def _selected(masks: Sequence[Tensor], layout: Layout) -> tuple[Tensor, ...]:
    """Copy the analysed sequences of masks that are time first, or packed."""
    select = layout.time_first if isinstance(layout, Dense) else layout.select
    return tuple(select(mask) for mask in masks)


def _named(flat: list[Tensor], has_biases: bool) -> Weights:
    ih, hh, *rest = flat
    b_ih, b_hh = (rest.pop(0), rest.pop(0)) if has_biases else (None, None)
    return Weights(ih, hh, b_ih, b_hh, rest[0] if rest else None)


def _columns(x: Tensor, layout: Layout) -> Tensor:
    if isinstance(layout, Single):
        return layout.select(x)
    return x.clone() if layout.columns is None else x[:, layout.columns]


def tolerance(precision: torch.dtype, device: torch.device) -> float:
    """The largest relative difference due to arithmetic in this type on this device."""
    if precision == torch.float32 and device.type != "cpu":
        return TENSOR_CORES
    return TOLERANCE.get(precision, 0.0)


def _precision(call: KernelCall, output: Tensor) -> torch.dtype:
    """The coarsest type of the computation; the output's type shows autocast."""
    kinds = {call.input.dtype, call.weights[0].dtype, output.dtype, *(s.dtype for s in call.state)}
    if torch.is_autocast_enabled(call.input.device.type):
        kinds.add(torch.get_autocast_dtype(call.input.device.type))
    return max(kinds, key=lambda kind: TOLERANCE.get(kind, 0.0))


def _cast(w: Weights, kind: torch.dtype) -> Weights:
    return Weights(*(None if x is None else x.to(kind) for x in (w.ih, w.hh, w.b_ih, w.b_hh, w.hr)))  # type: ignore[arg-type]
