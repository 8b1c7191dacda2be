"""Remedies that put another recurrent module in the place of one: gates, normalisation, or residual connections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gradscope.diagnose.frames import Seen
from gradscope.diagnose.words import typed
from gradscope.types import LayerKey, Remedy

if TYPE_CHECKING:
    from torch import nn

DEFAULTS: Mapping[str, Any] = {
    "num_layers": 1,
    "bias": True,
    "batch_first": False,
    "dropout": 0.0,
    "bidirectional": False,
}
CELLS = {"rnn_tanh": "RNNCell", "rnn_relu": "RNNCell", "lstm": "LSTMCell", "gru": "GRUCell"}
NORMALISED = {
    "rnn_tanh": "LayerNormRNNCell",
    "rnn_relu": "LayerNormRNNCell",
    "lstm": "LayerNormLSTMCell",
    "gru": "LayerNormGRUCell",
}


def gated(seen: Seen, key: LayerKey, kind: str = "LSTM") -> Remedy:
    """An LSTM or a GRU of the same sizes in place of an Elman network."""
    known = seen.modules.get(key.module, {})
    name = f"{kind}Cell" if _is_cell(known) else kind

    def apply(module: nn.Module) -> nn.Module:
        from torch import nn

        own = vars(module)
        made = getattr(nn, name)(own["input_size"], own["hidden_size"], **_options(own))
        return _like(made, module)

    article = "an" if kind == "LSTM" else "a"
    title = f"use {article} {kind}, whose gates carry gradients over long ranges"
    return Remedy(title, f"{typed(key.module)} = torch.nn.{name}({_typed(known)})", apply)


def layer_norm(seen: Seen, key: LayerKey) -> Remedy | None:
    """Normalised pre-activations; None where the layer has them, or there is no such cell for it."""
    known, family = seen.modules.get(key.module, {}), seen.family(key.module)
    if family not in NORMALISED or known.get("proj_size") or "LayerNorm" in str(known.get("class", "")):
        return None
    name, cell, own = NORMALISED[family], _is_cell(known), _nonlinearity(family)

    def apply(module: nn.Module) -> nn.Module:
        import gradscope.cells as cells

        has = vars(module)
        sizes = has["input_size"], has["hidden_size"]
        kind = getattr(cells, name)
        made = kind if cell else _recurrent(kind)
        return _like(made(*sizes, **_options(has), **own), module)

    normalised, given = f"gradscope.cells.{name}", _typed(known, own)
    call = f"{normalised}({given})" if cell else f"gradscope.cells.Recurrent({normalised}, {given})"
    return Remedy("normalise the pre-activations (layer normalisation)", f"{typed(key.module)} = {call}", apply)


def residual(seen: Seen, key: LayerKey) -> Remedy | None:
    """Connections around the layers of a stack; None where there is no stack, or no such cell for it.

    They carry the loss gradient down to every layer (He et al. 2016); how far it goes back in time from there is the
    layer's own affair.
    """
    known, family = seen.modules.get(key.module, {}), seen.family(key.module)
    if known.get("num_layers", 1) < 2 or family not in CELLS or known.get("proj_size"):
        return None
    name, own = CELLS[family], dict[str, Any](**_nonlinearity(family), skip="residual")

    def apply(module: nn.Module) -> nn.Module:
        from torch import nn

        from gradscope.cells import Recurrent

        has = vars(module)
        made = Recurrent(getattr(nn, name), has["input_size"], has["hidden_size"], **_options(has), **own)
        return _like(made, module)

    call = f"gradscope.cells.Recurrent(torch.nn.{name}, {_typed(known, own)})"
    title = "carry the loss gradient around the layers of the stack (residual connections)"
    return Remedy(title, f"{typed(key.module)} = {call}", apply)


def _nonlinearity(family: str) -> dict[str, str]:
    return {"nonlinearity": "relu"} if family == "rnn_relu" else {}


def _recurrent(kind: Any) -> Any:
    from gradscope.cells import Recurrent

    return lambda *sizes, **options: Recurrent(kind, *sizes, **options)


def _is_cell(known: Mapping[str, Any]) -> bool:
    return str(known.get("class", "")).endswith("Cell")


def _options(known: Mapping[str, Any]) -> dict[str, Any]:
    """What differs from the defaults, of what all of these modules take."""
    return {name: known[name] for name, default in DEFAULTS.items() if known.get(name, default) != default}


def _typed(known: Mapping[str, Any], more: Mapping[str, Any] | None = None) -> str:
    """The same as it is typed, the sizes first."""
    sizes = [str(known.get(name, name)) for name in ("input_size", "hidden_size")]
    options = {**_options(known), **(more or {})}
    return ", ".join([*sizes, *(f"{name}={_literal(value)}" for name, value in options.items())])


def _literal(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _like(made: nn.Module, module: nn.Module) -> nn.Module:
    """On the same device, in the same precision, and training if the other is."""
    return made.to(next(module.parameters())).train(module.training)
