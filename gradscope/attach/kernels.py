"""The kernels of torch's recurrent layers and cells: this seam receives every call, whoever makes it.

`nn.RNN`, `nn.LSTM` and `nn.GRU` call `torch._VF.rnn_tanh`, `.rnn_relu`, `.lstm` and `.gru` with the flat list of their
current weights; the cells call `torch._VF.lstm_cell` and its like. A seam on these functions receives keyword calls,
`module.forward(...)`, packed input and replaced weights, and leaves the user's modules alone: copies and pickles stay
clean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace as replace_fields
from typing import Any, Protocol

from torch import Tensor
from torch.compiler import is_compiling

from gradscope.attach.seam import Restore, Seam, replace
from gradscope.attach.split import SPLITS, split
from gradscope.private import is_tracing, kernels
from gradscope.types import KernelCall

FAMILIES = ("rnn_tanh", "rnn_relu", "lstm", "gru")


class KernelListener(Protocol):
    """Receives kernel calls.

    Attributes:
        listening: True to receive calls now. A loop around a cell makes many calls; idle steps pay only for this check.
    """

    @property
    def listening(self) -> bool:
        """See the class."""
        ...

    def before_kernel(self, call: KernelCall) -> Any:
        """A call begins. `after_kernel` receives the result as its token, unless it is None."""
        ...

    def after_kernel(self, token: Any, result: tuple[Tensor, ...]) -> None:
        """The call of this token has returned output, h_n and, for an LSTM, c_n; a cell returns h and c."""
        ...


def _install() -> Restore:
    layers = ((kernels, name, _around(name, _parse)) for name in FAMILIES)
    cells = ((kernels, f"{name}_cell", _around(name, _parse_cell)) for name in FAMILIES)
    return replace(*layers, *cells)


KERNELS: Seam[KernelListener] = Seam(_install)


def _around(family: str, parse: Callable[[str, tuple[Any, ...]], KernelCall]) -> Callable[..., Any]:
    def around(original: Callable[..., Any], *args: Any) -> Any:
        armed = [handle.listener for handle in KERNELS.handles if handle.armed]
        listeners = [listener for listener in armed if listener is not None and listener.listening]
        if not (listeners or SPLITS.busy) or is_tracing() or is_compiling():
            return original(*args)
        call = parse(family, args)
        splits = [one.splits(call) for handle in SPLITS.handles if (one := handle.listener) is not None]
        if any(splits):  # a list: every listener has to warn
            call = replace_fields(call, masks=[])
        tokens = [(listener, listener.before_kernel(call)) for listener in listeners]
        returned = original(*args) if call.masks is None else split(original, call)
        result = returned if isinstance(returned, tuple) else (returned,)
        for listener, token in tokens:
            if token is not None:
                listener.after_kernel(token, result)
        return returned

    return around


def _parse(family: str, args: tuple[Any, ...]) -> KernelCall:
    """Parse a call of a layer: packed calls have `batch_sizes` in second place, padded calls `batch_first` in last."""
    packed = isinstance(args[3], (list, tuple))
    data, *rest = args
    batch_sizes = rest.pop(0) if packed else None
    state, weights, has_biases, num_layers, dropout, train, bidirectional = rest[:7]
    return KernelCall(
        family=family,
        input=data,
        batch_sizes=batch_sizes,
        state=tuple(state) if family == "lstm" else (state,),
        weights=weights,
        has_biases=has_biases,
        num_layers=num_layers,
        dropout=dropout if train else 0.0,
        bidirectional=bidirectional,
        batch_first=not packed and rest[7],
    )


def _parse_cell(family: str, args: tuple[Any, ...]) -> KernelCall:
    data, state, *weights = args
    return KernelCall(
        family=family,
        input=data,
        batch_sizes=None,
        state=tuple(state) if family == "lstm" else (state,),
        weights=[w for w in weights if w is not None],
        has_biases=len(weights) > 2 and weights[2] is not None,
        num_layers=1,
        dropout=0.0,
        bidirectional=False,
        batch_first=False,
        cell=True,
    )
