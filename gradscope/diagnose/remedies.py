"""Remedies that change a module: as code with the user's own names, and as a function."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from gradscope.diagnose.frames import Tables
from gradscope.diagnose.words import parameter, typed
from gradscope.types import LayerKey, Remedy

if TYPE_CHECKING:
    from torch import nn

Change = Callable[["nn.Module"], "nn.Module | None"]


CELLS = ("RNNCell", "LSTMCell", "GRUCell", "LayerNormRNNCell", "LayerNormLSTMCell", "LayerNormGRUCell", "LinearCell")


def can_be_initialised(tables: Tables, key: LayerKey) -> bool:
    """True for torch's recurrent modules and ours: gradscope's initialisers know their parameters."""
    known = tables.modules.get(key.module, {})
    return "mode" in known or known.get("class") in CELLS


def orthogonal(tables: Tables, key: LayerKey, layers: int) -> Remedy:
    """Initialise the recurrent weights, of one recurrence or of the whole module, with orthogonal matrices."""

    def apply(module: nn.Module) -> None:
        from gradscope.cells import orthogonal_

        orthogonal_(module)

    one = f"torch.nn.init.orthogonal_({parameter(key, 'weight_hh', tables.modules)})"
    every = f"gradscope.cells.orthogonal_({typed(key.module)})"
    gated = tables.family(key.module) in ("lstm", "gru")
    return Remedy("start from orthogonal recurrent weights", every if gated or layers > 1 else one, apply)


def identity(key: LayerKey) -> Remedy:
    """Initialise a ReLU network with identity recurrence and zero biases."""

    def apply(module: nn.Module) -> None:
        from gradscope.cells import identity_

        identity_(module)

    code = f"gradscope.cells.identity_({typed(key.module)})"
    return Remedy("start from the identity and zero biases", code, apply)


def start_again(key: LayerKey, family: str, timesteps: int) -> Remedy:
    """Initialise as torch does, then open a gate, or set orthogonal recurrent weights, to keep the state."""

    def apply(module: nn.Module) -> None:
        from gradscope.cells import chrono_, forget_bias_, orthogonal_

        reset = getattr(module, "reset_parameters", None)
        if reset is not None:
            reset()
        if family == "lstm":
            forget_bias_(module, FORGET_BIAS)
        elif family == "gru":
            chrono_(module, max(2, timesteps))
        else:
            orthogonal_(module)

    name = typed(key.module)
    keeps = {"lstm": f"forget_bias_({name}, {FORGET_BIAS})", "gru": f"chrono_({name}, t_max={max(2, timesteps)})"}
    lines = [f"{name}.reset_parameters()", f"gradscope.cells.{keeps.get(family, f'orthogonal_({name})')}"]
    return Remedy("start again from small weights and open memory", "\n".join(lines), apply)


FORGET_BIAS = 2.0


def chrono(key: LayerKey, timesteps: int) -> Remedy:
    """Set gate biases for memories up to the length of the sequences."""

    def apply(module: nn.Module) -> None:
        from gradscope.cells import chrono_

        chrono_(module, max(2, timesteps))

    code = f"gradscope.cells.chrono_({typed(key.module)}, t_max={max(2, timesteps)})"
    return Remedy("start with gates that remember over the whole sequence", code, apply)


def forget_bias(key: LayerKey) -> Remedy:
    """Open the forget gate."""

    def apply(module: nn.Module) -> None:
        from gradscope.cells import forget_bias_

        forget_bias_(module, FORGET_BIAS)

    code = f"gradscope.cells.forget_bias_({typed(key.module)}, {FORGET_BIAS})"
    return Remedy("start with an open forget gate", code, apply)


def torch_layer(key: LayerKey) -> Remedy:
    """Replace a user's cell by torch's."""
    code = f"{typed(key.module)} = torch.nn.LSTMCell(input_size, hidden_size)  # or GRUCell, RNNCell: of the same kind"
    return Remedy("replace your cell by torch's cell of the same kind, and see whether the training learns", code)
