"""Where torch's recurrent layers enter their fused kernels: every call is seen there, however the module was called.

`nn.RNN`, `nn.LSTM` and `nn.GRU` call `torch._VF.rnn_tanh`, `.rnn_relu`, `.lstm` and `.gru` with the flat list of
weights as they stand at that moment. Watching these four functions sees keyword calls, `module.forward(...)`, packed
input and weights that were replaced before the call, and puts nothing on the user's modules: copies and pickles stay
clean.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from gradscope.attach.seam import Restore, Seam, replace
from gradscope.types import KernelCall

FAMILIES = ("rnn_tanh", "rnn_relu", "lstm", "gru")


class KernelListener(Protocol):
    """Hears of the fused calls."""

    def before_kernel(self, call: KernelCall) -> Any:
        """A call begins; what is returned, if not None, is handed to `after_kernel`."""
        ...

    def after_kernel(self, token: Any, result: tuple[Tensor, ...]) -> None:
        """The call that `token` stands for returned output, h_n and, for an LSTM, c_n."""
        ...


def _install() -> Restore:
    return replace(*((torch._VF, name, _around(name)) for name in FAMILIES))


KERNELS: Seam[KernelListener] = Seam(_install)


def _around(family: str) -> Callable[..., Any]:
    def around(original: Callable[..., Any], *args: Any) -> Any:
        if torch._C._get_tracing_state() is not None:
            return original(*args)
        call = _parse(family, args)
        tokens = [(listener, listener.before_kernel(call)) for listener in KERNELS]
        result = original(*args)
        for listener, token in tokens:
            if token is not None:
                listener.after_kernel(token, result)
        return result

    return around


def _parse(family: str, args: tuple[Any, ...]) -> KernelCall:
    """Packed calls carry `batch_sizes` in second place, padded ones `batch_first` in last."""
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
