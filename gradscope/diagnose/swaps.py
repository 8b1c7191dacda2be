"""Remedies that put another recurrent module in the place of one: gates, or normalised pre-activations."""

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
    name, cell = NORMALISED[family], _is_cell(known)
    own = {"nonlinearity": "relu"} if family == "rnn_relu" else {}

    def apply(module: nn.Module) -> nn.Module:
        import gradscope.cells as cells

        has = vars(module)
        sizes = has["input_size"], has["hidden_size"]
        kind = getattr(cells, name)
        made = kind if cell else _recurrent(kind)
        return _like(made(*sizes, **_options(has), **own), module)

    normalised = f"gradscope.cells.{name}"
    more = "".join(f", {option}={value!r}" for option, value in own.items())
    call = f"{normalised}({_typed(known)}{more})"
    if not cell:
        call = f"gradscope.cells.Recurrent({normalised}, {_typed(known)}{more})"
    return Remedy("normalise the pre-activations (layer normalisation)", f"{typed(key.module)} = {call}", apply)


def _recurrent(kind: Any) -> Any:
    from gradscope.cells import Recurrent

    return lambda *sizes, **options: Recurrent(kind, *sizes, **options)


def _is_cell(known: Mapping[str, Any]) -> bool:
    return str(known.get("class", "")).endswith("Cell")


def _options(known: Mapping[str, Any]) -> dict[str, Any]:
    """What differs from the defaults, of what all of these modules take."""
    return {name: known[name] for name, default in DEFAULTS.items() if known.get(name, default) != default}


def _typed(known: Mapping[str, Any]) -> str:
    """The same as it is typed, the sizes first."""
    sizes = [str(known.get(name, name)) for name in ("input_size", "hidden_size")]
    return ", ".join([*sizes, *(f"{name}={value!r}" for name, value in _options(known).items())])


def _like(made: nn.Module, module: nn.Module) -> nn.Module:
    """On the same device, in the same precision, and training if the other is."""
    return made.to(next(module.parameters())).train(module.training)
