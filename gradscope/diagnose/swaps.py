"""Remedies that replace a recurrent module: gates, normalisation, or residual connections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gradscope.diagnose.frames import Tables
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


def gated(tables: Tables, key: LayerKey, kind: str = "LSTM") -> Remedy:
    """Replace an Elman network by an LSTM or a GRU of the same sizes."""
    known = tables.modules.get(key.module, {})
    name = f"{kind}Cell" if _is_cell(known) else kind

    def apply(module: nn.Module) -> nn.Module:
        from torch import nn

        options = vars(module)
        new = getattr(nn, name)(options["input_size"], options["hidden_size"], **_options(options))
        return _like(new, module)

    article = "an" if kind == "LSTM" else "a"
    title = f"use {article} {kind}, whose gates carry gradients over long ranges"
    return Remedy(title, f"{typed(key.module)} = torch.nn.{name}({_typed(known)})", apply)


def layer_norm(tables: Tables, key: LayerKey) -> Remedy | None:
    """Normalise the pre-activations; None if the layer does so already, or has no such cell."""
    known, family = tables.modules.get(key.module, {}), tables.family(key.module)
    if family not in NORMALISED or known.get("proj_size") or "LayerNorm" in str(known.get("class", "")):
        return None
    name, cell, extra = NORMALISED[family], _is_cell(known), _nonlinearity(family)

    def apply(module: nn.Module) -> nn.Module:
        import gradscope.cells as cells

        options = vars(module)
        sizes = options["input_size"], options["hidden_size"]
        kind = getattr(cells, name)
        make = kind if cell else _recurrent(kind)
        return _like(make(*sizes, **_options(options), **extra), module)

    normalised, arguments = f"gradscope.cells.{name}", _typed(known, extra)
    call = f"{normalised}({arguments})" if cell else f"gradscope.cells.Recurrent({normalised}, {arguments})"
    return Remedy("normalise the pre-activations (layer normalisation)", f"{typed(key.module)} = {call}", apply)


def residual(tables: Tables, key: LayerKey) -> Remedy | None:
    """Connect around the layers of a stack; None without a stack, or without such a cell.

    The connections carry the loss gradient down to every layer (He et al. 2016); they do not extend its reach in time.
    """
    known, family = tables.modules.get(key.module, {}), tables.family(key.module)
    if known.get("num_layers", 1) < 2 or family not in CELLS or known.get("proj_size"):
        return None
    name, extra = CELLS[family], dict[str, Any](**_nonlinearity(family), skip="residual")

    def apply(module: nn.Module) -> nn.Module:
        from torch import nn

        from gradscope.cells import Recurrent

        options = vars(module)
        new = Recurrent(getattr(nn, name), options["input_size"], options["hidden_size"], **_options(options), **extra)
        return _like(new, module)

    call = f"gradscope.cells.Recurrent(torch.nn.{name}, {_typed(known, extra)})"
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
    """Return the options that differ from the defaults."""
    return {name: known[name] for name, default in DEFAULTS.items() if known.get(name, default) != default}


def _typed(known: Mapping[str, Any], more: Mapping[str, Any] | None = None) -> str:
    """Write the arguments as code, sizes first."""
    sizes = [str(known.get(name, name)) for name in ("input_size", "hidden_size")]
    options = {**_options(known), **(more or {})}
    return ", ".join([*sizes, *(f"{name}={_literal(value)}" for name, value in options.items())])


def _literal(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _like(new: nn.Module, module: nn.Module) -> nn.Module:
    """Give a new module the device, precision and mode of another."""
    return new.to(next(module.parameters())).train(module.training)
