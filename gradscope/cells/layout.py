"""Converts the forms in which torch.nn takes a batch of sequences to the networks' own: [T, B, D]."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from gradscope.errors import GradscopeError


@dataclass(frozen=True, slots=True)
class Layout:
    """The form of the input, for results in the same form.

    Attributes:
        packed: the input, if packed.
        lengths: lengths of the sequences, longest first, [B] on the CPU, if packed.
        batched: False for a single sequence [T, D].
        batch_first: True if a padded batch is [B, T, D].
    """

    packed: PackedSequence | None
    lengths: Tensor | None
    batched: bool
    batch_first: bool

    def restore_output(self, output: Tensor) -> Tensor | PackedSequence:
        """Convert [T, B, .] to the form of the input."""
        if self.packed is not None and self.lengths is not None:
            data, batch_sizes, *_ = pack_padded_sequence(output, self.lengths)
            return PackedSequence(data, batch_sizes, self.packed.sorted_indices, self.packed.unsorted_indices)
        if not self.batched:
            return output.squeeze(1)
        return output.transpose(0, 1) if self.batch_first else output

    def sort_state(self, state: Any) -> Any:
        """Sort an initial state, [S, B, .] or a tuple, in the order of the sequences, with a batch dimension."""
        order = None if self.packed is None else self.packed.sorted_indices
        return each(state, lambda s: _reorder(s if self.batched else s.unsqueeze(1), order))

    def restore_state(self, state: Any) -> Any:
        """Convert final states, [S, B, .] or a tuple, to the order of the input."""
        order = None if self.packed is None else self.packed.unsorted_indices
        return each(state, lambda s: _reorder(s, order) if self.batched else s.squeeze(1))

    def running(self, device: torch.device) -> list[Tensor | None] | None:
        """For every t, a mask of the running sequences, [B, 1]; None if all run."""
        if self.lengths is None:
            return None
        shortest, longest = int(self.lengths[-1]), int(self.lengths[0])
        lengths = self.lengths.to(device).unsqueeze(1)
        return [lengths > t if t >= shortest else None for t in range(longest)]


def opened(sequences: Any, batch_first: bool) -> tuple[Tensor, Layout]:
    """The sequences as [T, B, D], and the form of the input.

    Raises:
        GradscopeError: they are neither a tensor of two or three dimensions nor packed, or have no timestep.
    """
    if isinstance(sequences, PackedSequence):
        # without its indices, so that the sequences stay in the order of the packed data
        x, lengths = pad_packed_sequence(PackedSequence(sequences.data, sequences.batch_sizes))
        return x, Layout(sequences, lengths, True, batch_first)
    if not isinstance(sequences, Tensor) or sequences.dim() not in (2, 3):
        got = list(sequences.shape) if isinstance(sequences, Tensor) else type(sequences).__name__
        want = "[B, T, D]" if batch_first else "[T, B, D]"
        raise GradscopeError(f"Recurrent takes {want}, [T, D] or a PackedSequence, and got {got}")
    batched = sequences.dim() == 3
    x = sequences if batched else sequences.unsqueeze(1)
    x = x.transpose(0, 1) if batched and batch_first else x
    if not len(x):
        raise GradscopeError(f"Recurrent needs at least one timestep: its input is {list(sequences.shape)}")
    return x, Layout(None, None, batched, batch_first)


def each(state: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Apply a function to every tensor of a state: to the tensor itself, or to each of a tuple."""
    return function(state) if isinstance(state, Tensor) else tuple(function(s) for s in state)


def _reorder(state: Tensor, order: Tensor | None) -> Tensor:
    return state if order is None else state.index_select(1, order)
