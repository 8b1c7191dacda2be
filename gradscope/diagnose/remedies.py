"""Remedies that change or replace a module: as code with the user's own names, and as a function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from gradscope.cells import (
    LayerNormGRUCell,
    LayerNormLSTMCell,
    LayerNormRNNCell,
    Recurrent,
    chrono_,
    forget_bias_,
    identity_,
    orthogonal_,
)
from gradscope.diagnose.frames import Tables
from gradscope.diagnose.words import parameter, typed
from gradscope.types import LayerKey, Remedy

OURS = ("RNNCell", "LSTMCell", "GRUCell", "LayerNormRNNCell", "LayerNormLSTMCell", "LayerNormGRUCell", "LinearCell")
CELLS = {"rnn_tanh": nn.RNNCell, "rnn_relu": nn.RNNCell, "lstm": nn.LSTMCell, "gru": nn.GRUCell}
NORMALISED = {
    "rnn_tanh": LayerNormRNNCell,
    "rnn_relu": LayerNormRNNCell,
    "lstm": LayerNormLSTMCell,
    "gru": LayerNormGRUCell,
}
DEFAULTS: Mapping[str, Any] = {
    "num_layers": 1,
    "bias": True,
    "batch_first": False,
    "dropout": 0.0,
    "bidirectional": False,
}
FORGET_BIAS = 2.0


# --- initialisation


def can_be_initialised(tables: Tables, key: LayerKey) -> bool:
    """True for torch's recurrent modules and ours: gradscope's initialisers know their parameters."""
    known = tables.modules.get(key.module, {})
    return "mode" in known or known.get("class") in OURS


def orthogonal(tables: Tables, key: LayerKey, layers: int) -> Remedy:
    """Initialise the recurrent weights, of one recurrence or of the whole module, with orthogonal matrices."""
    one = f"torch.nn.init.orthogonal_({parameter(key, 'weight_hh', tables.modules)})"
    every = f"gradscope.cells.orthogonal_({typed(key.module)})"
    gated = tables.family(key.module) in ("lstm", "gru")
    return Remedy("start from orthogonal recurrent weights", every if gated or layers > 1 else one, orthogonal_)


def identity(key: LayerKey) -> Remedy:
    """Initialise a ReLU network with identity recurrence and zero biases."""
    code = f"gradscope.cells.identity_({typed(key.module)})"
    return Remedy("start from the identity and zero biases", code, identity_)


def start_again(key: LayerKey, family: str, timesteps: int, *, forgets: bool = False) -> Remedy:
    """Initialise as torch does, then open a gate, or set orthogonal recurrent weights, to keep the state.

    An LSTM that forgets at every step needs memories as long as the sequence; otherwise an open forget gate will do.
    """
    name = typed(key.module)
    lasting = chrono(key, timesteps)
    keep = {"lstm": lasting if forgets else forget_bias(key), "gru": lasting}.get(family)
    keep = keep or Remedy("", f"gradscope.cells.orthogonal_({name})", orthogonal_)

    def apply(module: nn.Module) -> nn.Module | None:
        reset = getattr(module, "reset_parameters", None)
        if reset is not None:
            reset()
        return keep.apply(module) if keep.apply else None

    return Remedy("start again from small weights and open memory", f"{name}.reset_parameters()\n{keep.code}", apply)


def chrono(key: LayerKey, timesteps: int) -> Remedy:
    """Set gate biases for memories up to the length of the sequences."""
    t_max = max(2, timesteps)
    code = f"gradscope.cells.chrono_({typed(key.module)}, t_max={t_max})"
    return Remedy("start with gates that remember over the whole sequence", code, partial(chrono_, t_max=t_max))


def forget_bias(key: LayerKey) -> Remedy:
    """Open the forget gate."""
    code = f"gradscope.cells.forget_bias_({typed(key.module)}, {FORGET_BIAS})"
    return Remedy("start with an open forget gate", code, partial(forget_bias_, value=FORGET_BIAS))


# --- replacement


def torch_layer(key: LayerKey) -> Remedy:
    """Replace a user's cell by torch's."""
    code = f"{typed(key.module)} = torch.nn.LSTMCell(input_size, hidden_size)  # or GRUCell, RNNCell: of the same kind"
    return Remedy("replace your cell by torch's cell of the same kind, and see whether the training learns", code)


def gated(tables: Tables, key: LayerKey, kind: str = "LSTM") -> Remedy:
    """Replace an Elman network by an LSTM or a GRU of the same sizes."""
    known = tables.modules.get(key.module, {})
    name = f"{kind}Cell" if _is_cell(known) else kind
    title = f"use {'an' if kind == 'LSTM' else 'a'} {kind}, whose gates carry gradients over long ranges"
    return _replacement(title, key, known, getattr(nn, name), f"torch.nn.{name}(")


def layer_norm(tables: Tables, key: LayerKey) -> Remedy | None:
    """Normalise the pre-activations; None if the layer does so already, or has no such cell."""
    known, family = tables.modules.get(key.module, {}), tables.family(key.module)
    if family not in NORMALISED or known.get("proj_size") or "LayerNorm" in str(known.get("class", "")):
        return None
    cell, title = NORMALISED[family], "normalise the pre-activations (layer normalisation)"
    name = f"gradscope.cells.{cell.__name__}"
    if _is_cell(known):
        return _replacement(title, key, known, cell, f"{name}(", **_nonlinearity(family))
    make, call = partial(Recurrent, cell), f"gradscope.cells.Recurrent({name}, "
    return _replacement(title, key, known, make, call, **_nonlinearity(family))


def residual(tables: Tables, key: LayerKey) -> Remedy | None:
    """Connect around the layers of a stack; None without a stack, or without such a cell.

    The connections carry the loss gradient down to every layer (He et al. 2016); they do not extend its reach in time.
    """
    known, family = tables.modules.get(key.module, {}), tables.family(key.module)
    if known.get("num_layers", 1) < 2 or family not in CELLS or known.get("proj_size"):
        return None
    title = "carry the loss gradient around the layers of the stack (residual connections)"
    make, call = partial(Recurrent, CELLS[family]), f"gradscope.cells.Recurrent(torch.nn.{CELLS[family].__name__}, "
    return _replacement(title, key, known, make, call, **_nonlinearity(family), skip="residual")


def _replacement(
    title: str, key: LayerKey, known: Mapping[str, Any], make: Callable[..., nn.Module], call: str, **extra: Any
) -> Remedy:
    """Replace a module by another with its sizes, options, device, precision and mode; `call` is the code of `make`."""

    def apply(module: nn.Module) -> nn.Module:
        sizes, options = (getattr(module, name) for name in ("input_size", "hidden_size")), _options(vars(module))
        return make(*sizes, **options, **extra).to(next(module.parameters())).train(module.training)

    arguments = [str(known.get(name, name)) for name in ("input_size", "hidden_size")]
    for name, value in {**_options(known), **extra}.items():
        arguments.append(f'{name}="{value}"' if isinstance(value, str) else f"{name}={value!r}")
    return Remedy(title, f"{typed(key.module)} = {call}{', '.join(arguments)})", apply)


def _nonlinearity(family: str) -> dict[str, str]:
    return {"nonlinearity": "relu"} if family == "rnn_relu" else {}


def _is_cell(known: Mapping[str, Any]) -> bool:
    return str(known.get("class", "")).endswith("Cell")


def _options(known: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that differ from the defaults."""
    return {name: known[name] for name, default in DEFAULTS.items() if known.get(name, default) != default}
