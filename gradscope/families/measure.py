"""All measurements of one layer in one direction, in one pass over pieces of time, the last first.

Except for the reverse scan, all operations are elementwise. Pieces keep the factors of the step Jacobians in the cache,
and the peak memory at about one copy of the gates. A GPU gets larger pieces: it does not depend on the cache, and many
small kernels would cost launch time.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gradscope.families.base import Family, Layer, Piece, State, Trace, cut
from gradscope.families.counting import column
from gradscope.families.norms import combined, drop_nearly_subnormal, norm, norms, relative, relative_parts
from gradscope.families.reach import Anchors, pick_anchors, reach_by_lag
from gradscope.families.saturation import Saturation
from gradscope.families.scan import Back, Entering, ReverseScan, backwards
from gradscope.families.work import CORE_WORK, Work
from gradscope.types import Gate

PIECE_ELEMENTS, ON_A_DEVICE = 1 << 19, 1 << 24
SKETCH_COLUMNS = 8


@dataclass(frozen=True, slots=True)
class Measured:
    """See `gradscope.types.Analysis`; here in the order of the recurrence, and [T, B] with padding.

    Attributes:
        values: quantity -> [T, B].
        reach: [lags, B].
        reached: [lags, B].
        gates: gate -> saturation.
        difference: norms of the difference of the rebuilt states, and of the kernel's, [2].
        grad_input: total dL/dx_t, [T, B, D]; None unless requested.
        sketch: sum of the rebuilt contributions to dL/dU times a fixed matrix, [G * H, 8]; None unless requested.
        total_residual: of the rebuilt total gradients against autograd's, 0-dim; None if those are unknown.
        trace: for the quantities of the full set.
        padded: True if some sequence is shorter than others.
    """

    values: dict[str, Tensor]
    reach: Tensor
    reached: Tensor
    gates: dict[str, Gate]
    difference: Tensor
    grad_input: Tensor | None
    sketch: Tensor | None
    total_residual: Tensor | None
    trace: Trace
    padded: bool


def measure(
    family: Family,
    trace: Trace,
    lengths: Tensor,
    entering: Entering,
    *,
    below: bool = True,
    sketch: bool = True,
    work: Work = CORE_WORK,
) -> Measured:
    """Measure the requested quantities of one layer in one direction.

    Args:
        family: the layer's equations.
        trace: the rebuilt layer.
        lengths: valid timesteps of each sequence, [B].
        entering: the loss gradient from outside.
        below: compute `grad_input`, for the layer below.
        sketch: compute `sketch`, for the certificate.
        work: the quantities; those of the full set alone are ignored.
    """
    layer = trace.layer
    steps = column(layer.output.shape[0], lengths.device)
    direct = outside = norm(entering.h)
    if entering.c_last is not None:
        outside = torch.where(steps == lengths - 1, direct.hypot(norm(entering.c_last)), direct)
    elif entering.c is not None:
        outside = direct.hypot(norm(entering.c))
    anchors = pick_anchors(outside) if "anchors" in work.parts else Anchors.none(outside)
    scan = ReverseScan(family, layer, lengths, entering, anchors) if "scan" in work.parts else None
    sketch = sketch and scan is not None
    below = below and scan is not None
    run = _Pass(family, trace, steps < lengths, scan, work, below, sketch)
    for start, stop in pieces(layer, len(family.gates)):
        run.piece(start, stop)
    return run.finish(direct, anchors)


def pieces(layer: Layer, gates: int) -> Iterator[tuple[int, int]]:
    """Pieces of time, the last first; on a CPU the gates of a piece fit the cache."""
    steps, batch = layer.output.shape[:2]
    elements = PIECE_ELEMENTS if layer.output.device.type == "cpu" else ON_A_DEVICE
    yield from backwards(steps, elements // max(1, batch * layer.weights.hh.shape[0]))


def sketch_matrix(width: int, like: Tensor) -> Tensor:
    """A fixed matrix of signs, [width, 8]: comparing products with it compares the factors (Freivalds 1977)."""
    return _signs(width, like.device, like.dtype)


@functools.lru_cache(maxsize=16)
def _column(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    """The numbers in float64, [N, 1, 1]."""
    return torch.tensor(numbers, dtype=torch.float64, device=device).view(-1, 1, 1)


@functools.lru_cache(maxsize=16)
def _signs(width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(width)
    signs = torch.randint(0, 2, (width, SKETCH_COLUMNS), generator=generator, device="cpu") * 2 - 1
    return signs.to(device, dtype)


@dataclass(slots=True)
class _Pass:
    """Collects the measurements of a pass over time, piece by piece."""

    family: Family
    trace: Trace
    valid: Tensor
    scan: ReverseScan | None
    work: Work
    below: bool
    sketch: bool
    values: list[dict[str, Tensor]] = field(default_factory=list[dict[str, Tensor]])
    carried: list[Tensor] = field(default_factory=list[Tensor])
    inputs: list[Tensor] = field(default_factory=list[Tensor])
    saturation: Saturation | None = None
    difference: list[Tensor] = field(default_factory=list[Tensor])
    sketches: list[Tensor] = field(default_factory=list[Tensor])
    totals: list[Tensor] = field(default_factory=list[Tensor])
    constants: tuple[Tensor, ...] = ()
    signs: Tensor | None = None
    padded: bool = False

    def __post_init__(self) -> None:
        weights = self.trace.layer.weights
        self.padded = not bool(self.valid.all())
        if "sizes" in self.work.parts:
            self.constants = self.family.constants(weights)
        if self.sketch:
            self.signs = sketch_matrix(weights.hh.shape[1], weights.hh)

    @property
    def gates(self) -> tuple[str, ...]:
        """Names of the gates, and of the state unless it is one of them."""
        return tuple(dict.fromkeys((*self.family.gates, "hidden")))

    def piece(self, start: int, stop: int) -> None:
        """Measure timesteps `start` to `stop`."""
        piece, valid = self.family.piece(self.trace, start, stop), cut(self.valid, start, stop)
        output, cells = cut(self.trace.layer.output, start, stop), self.trace.cells
        if "saturation" in self.work.parts:
            self._saturate(piece, valid, start, stop)
        self.difference.append(relative_parts(piece.output, output, valid if self.padded else None))
        values: dict[str, Tensor] = {}
        if "sizes" in self.work.parts:
            values |= self._jacobians(piece)
        sized = {"state": output} if "state" in self.work.quantities else {}
        if cells is not None and "cell" in self.work.quantities:
            sized["cell"] = cells[start + 1 : stop + 1]
        back = None
        if self.scan is not None:
            back, tensors = self._back(self.scan, piece, start, stop)
            sized |= tensors
        sizes = dict(zip(sized, norms(list(sized.values())), strict=True)) if sized else {}
        values |= {name: sizes.pop(name) / sized[name].shape[-1] ** 0.5 for name in ("state", "cell") if name in sizes}
        if back is not None:
            values |= self._gradients(back, sizes)
        self.values.append(values)

    def _jacobians(self, piece: Piece) -> dict[str, Tensor]:
        """Sizes of the step Jacobians, [t, B] each."""
        hidden, width = piece.hidden.shape[-1], piece.output.shape[-1]
        squares = self.family.sizes(self.constants, piece)
        widths = _column((width + hidden * self.family.cell, width, hidden)[: len(squares)], self.valid.device)
        sizes = (torch.stack(list(squares.values())) / widths).clamp_(min=0).sqrt_()
        return dict(zip(squares, sizes.unbind(0), strict=True))

    def _saturate(self, piece: Piece, valid: Tensor, start: int, stop: int) -> None:
        gates, state = self.family.activations(self.trace, piece, start, stop)
        if self.saturation is None:
            self.saturation = Saturation([self.family.limits(gate) for gate in self.gates], gates)
        self.saturation.add([gates] if state is None else [gates, state.unsqueeze(2)], valid)

    def _back(self, scan: ReverseScan, piece: Piece, start: int, stop: int) -> tuple[Back, dict[str, Tensor]]:
        """Carry gradients back through the piece: the gradients, and the tensors whose norms `work` needs."""
        back, weights = scan.through(piece, start, stop), self.trace.layer.weights
        total: State = tuple(s[:, 0] for s in back.state)
        names = ["h", "c"] if "anchors" in self.work.parts else ["h"]
        sized = dict(zip(names, back.state, strict=False))
        if scan.entering.totals is not None:
            sized["grad_h"] = self._autograd_total(scan.entering.totals, total, back.of_total, start, stop)
        if self.below or self.sketch or {"weight_grad", "grad_c"} & self.work.quantities:
            inside = self.family.cotangents(weights, piece.factors, total)
            if "weight_grad" in self.work.quantities:
                sized |= {"inside": inside.gates.flatten(2), "previous": piece.previous}
            if inside.cell is not None and "grad_c" in self.work.quantities:
                sized["grad_c"] = inside.cell
            self._pass_down(piece, total, inside.gates, back.of_total)
        return back, sized

    def _gradients(self, back: Back, sizes: dict[str, Tensor]) -> dict[str, Tensor]:
        """Norms of gradients from the norms of the cotangents, [t, B] each."""
        scan, scale = self.scan, back.scale
        assert scan is not None
        h = sizes["h"] if scale is None else sizes["h"] * scale
        gradients = {"grad_h": sizes.get("grad_h", h[:, 0])}
        if "c" in sizes:
            h = h.hypot(sizes["c"] if scale is None else sizes["c"] * scale)
        if "anchors" in self.work.parts:
            self._add_reach(scan.anchors, h / scan.anchors.sizes[0] if scan.alone else h[:, 1:])
        inside = {"weight_grad": sizes["inside"] * sizes["previous"]} if "inside" in sizes else {}
        inside |= {"grad_c": sizes["grad_c"]} if "grad_c" in sizes else {}
        scale = back.of_total
        return gradients | (inside if scale is None else {name: x * scale for name, x in inside.items()})

    def _add_reach(self, anchors: Anchors, joint: Tensor) -> None:
        """Add the norms of the active anchors' cotangents relative to their first, [t, A, B]."""
        missing = anchors.used - joint.shape[1]
        if missing:
            joint = torch.cat([joint, joint.new_zeros(joint.shape[0], missing, joint.shape[2])], 1)
        self.carried.append(joint)

    def _pass_down(self, piece: Piece, total: State, gates: Tensor, scale: Tensor | None) -> None:
        """Add gradients for the layer below and the certificate; `scale`, [t, B], is the missing factor of `gates`."""
        weights = self.trace.layer.weights
        factor = None if scale is None else scale.to(weights.hh.dtype).reshape(-1, 1)
        if self.below:
            inputs = self.family.input_cotangents(piece, total, gates).flatten(0, 1).flatten(1) @ weights.ih
            inputs = drop_nearly_subnormal(inputs if factor is None else inputs.mul_(factor))
            self.inputs.append(inputs.unflatten(0, gates.shape[:2]))
        if self.signs is not None:
            before = piece.previous.flatten(0, 1) @ self.signs
            before = before if factor is None else before.mul_(factor)
            self.sketches.append(gates.reshape(len(before), -1).mT @ before)

    def _autograd_total(self, known: State, total: State, scale: Tensor | None, start: int, stop: int) -> Tensor:
        """Autograd's total gradient of h_t; adds the difference of the rebuilt one to the certificate.

        `scale`, [t, B], is the missing factor of `total`.
        """
        valid = cut(self.valid, start, stop) if self.padded else None
        theirs = [part[start:stop] for part in known]
        factor = 1.0 if scale is None else scale.to(total[0].dtype).unsqueeze(-1)
        pairs = zip(total, theirs, strict=True)
        self.totals.append(torch.stack([relative_parts(mine * factor, other, valid) for mine, other in pairs]))
        return theirs[0]

    def finish(self, direct: Tensor, anchors: Anchors) -> Measured:
        """Join the pieces, the first timestep first.

        Args:
            direct: norms of the gradients from outside, [T, B].
            anchors: the anchors of the scan.
        """
        values = {name: _joined([piece[name] for piece in self.values]) for name in self.values[0]}
        reach, reached = reach_by_lag(anchors, _joined(self.carried)) if self.carried else _no_reach(direct)
        total = relative(combined(self.totals)).amax() if self.totals else None
        return Measured(
            values={**values, "grad_h_direct": direct},
            reach=reach,
            reached=reached,
            gates={} if self.saturation is None else dict(zip(self.gates, self.saturation.finish(), strict=True)),
            difference=combined(self.difference),
            grad_input=_joined(self.inputs) if self.inputs else None,
            sketch=functools.reduce(torch.add, self.sketches) if self.sketches else None,
            total_residual=total,
            trace=self.trace,
            padded=self.padded,
        )


def _joined(parts: list[Tensor]) -> Tensor:
    """Join the values of pieces, the first timestep first."""
    return parts[0] if len(parts) == 1 else torch.cat(parts[::-1])


def _no_reach(direct: Tensor) -> tuple[Tensor, Tensor]:
    empty = direct.new_empty(0, direct.shape[1])
    return empty, empty.bool()
