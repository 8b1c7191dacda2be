"""Recurrent modules, layers or directions that no gradient ever enters: their outputs do not lead to the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from gradscope.diagnose import loops
from gradscope.diagnose.frames import Frame, Tables
from gradscope.diagnose.progress import broken, learning, severity
from gradscope.diagnose.rules.detached import cut_within_steps
from gradscope.diagnose.trend import by_step, rests_on, span
from gradscope.diagnose.words import place, plural, typed
from gradscope.types import Finding, LayerKey, Remedy, Severity
from gradscope.types.notes import DISABLED, FROZEN, NO_GRADIENT

NEARLY_ALWAYS = 0.9
"""Share of the recorded steps without gradient."""
LATELY = 0.5
"""Least share of the training without gradient, at its end, if gradient came before."""


def no_gradient(tables: Tables) -> list[Finding]:
    """Find called modules that receive no gradient, and modules that receive exactly zero, in whole or in part."""
    if broken(tables):
        return []
    return [*_unconnected(tables), *_zero(tables)]


# --- a call without a path to the loss


class Told(NamedTuple):
    """What is said of a module whose calls receive no gradient."""

    title: str
    why: str
    remedies: tuple[Remedy, ...]
    severity: Severity


def _unconnected(tables: Tables) -> Iterator[Finding]:
    records = tables.recorded
    for reason, told in ((NO_GRADIENT, _of_call), (DISABLED, _of_disabled), (FROZEN, _of_frozen)):
        for module, rows in tables.noted(reason).groupby("module", sort=False):
            steps, connected = rows["step"].nunique(), _connected(tables, str(module))
            if steps >= NEARLY_ALWAYS * max(records, steps + connected):
                yield _called(tables, str(module), rows["step"], told)


def _connected(tables: Tables, module: str) -> int:
    """Count the records of a module with a gradient."""
    return int(tables["layers"].loc[tables["layers"]["module"] == module, "step"].nunique())


def _called(tables: Tables, module: str, noted: Frame, told: Callable[[Tables, str, str], Told]) -> Finding:
    """Make the finding about a module; `noted` are the steps with a note."""
    steps, count = (int(noted.min()), int(noted.max())), int(noted.nunique())
    observed = f"{plural(count, 'observed step')} (steps {steps[0]} to {steps[1]})"
    title, why, remedies, level = told(tables, module, observed)
    return Finding(
        code="no_gradient",
        severity=level,
        layer_key=LayerKey(module, 0, "forward", 0),
        title=title,
        explanation=f"{why} {learning(tables).sentence}",
        evidence={"steps": steps, "count": count, **learning(tables).evidence},
        remedies=remedies,
    )


def _of_call(tables: Tables, module: str, observed: str) -> Told:
    name = typed(module)
    why = (
        f"The model called {name} in {observed}, and no "
        "gradient came back. None of its outputs leads to the loss, so the module learns nothing. The code may "
        "drop, overwrite or detach its output or final state, or turn it into numbers on the way (argmax, "
        "rounding, .item(), numpy)."
    )
    pass_on = Remedy(
        "pass its result on: a decoder begins from the encoder's state, not from zeros",
        f"output, state = {name}(x)  # and hand output or state on to what the loss is made of",
    )
    follow = Remedy(
        "follow the path from its output to the loss: it ends at the first tensor without grad_fn",
        f"print({name}(x)[0].requires_grad, loss.grad_fn)  # then the same for each tensor in between",
    )
    several = len({*tables.modules, module}) > 1  # an encoder and its decoder, perhaps
    ways = (pass_on, follow) if several else (follow, pass_on)
    title = f"{name}: the model calls it, and no gradient comes back"
    return Told(title, why, ways, "critical" if learning(tables).fails else "warning")


def _of_disabled(tables: Tables, module: str, observed: str) -> Told:
    name = typed(module)
    why = (
        f"In {observed} a loss went backward, and the model had "
        f"called {name} with gradients disabled alone: torch.no_grad, inference_mode or set_grad_enabled(False) is "
        "around the call. So the module learns nothing. To freeze a module on purpose, use requires_grad_(False)."
    )
    call = Remedy("call the module outside of torch.no_grad", f"output, state = {name}(x)")
    level: Severity = "critical" if learning(tables).fails else "info" if learning(tables).learns else "warning"
    return Told(f"{name}: the model calls it with gradients disabled", why, (call,), level)


def _of_frozen(tables: Tables, module: str, observed: str) -> Told:
    name = typed(module)
    why = (
        f"In {observed} a loss went backward, and no parameter "
        f"of {name} required a gradient. So it learns nothing, which is right for a module that another training has "
        "made; with the random numbers of its initialisation it remembers what these happen to keep."
    )
    thaw = Remedy("let it learn", f"{name}.requires_grad_(True)  # before the optimizer is made")
    level: Severity = "warning" if learning(tables).fails else "info"
    return Told(f"{name}: none of its parameters requires a gradient", why, (thaw,), level)


# --- gradients of exactly zero


def _zero(tables: Tables) -> Iterator[Finding]:
    cut = cut_within_steps(tables)
    for module, keys in tables.by_module:
        if module in cut:
            continue
        since = {key: _zero_since(tables, key) for key in keys}
        silent = [key for key in keys if since[key] is not None]
        if silent:
            yield _of_zero(tables, silent, since[silent[0]] or 0, whole=len(silent) == len(keys))


def _zero_since(tables: Tables, key: LayerKey) -> int | None:
    """Return the step since which no gradient enters a recurrence; None if one does."""
    sizes = _sizes(tables, key)
    if not len(sizes) or not np.isfinite(sizes.to_numpy()).any():
        return None
    nonzero = sizes[(sizes != 0) & sizes.notna()]
    if not len(nonzero):
        return int(sizes.index[0])
    later = sizes[sizes.index > nonzero.index[-1]]
    lately = tables["steps"]["step"].max() - nonzero.index[-1] >= LATELY * (sizes.index[-1] - sizes.index[0])
    return int(later.index[0]) if len(later) >= 3 and lately else None


def _sizes(tables: Tables, key: LayerKey) -> Frame:
    """Return the largest total gradient of the state by record, in any chain.

    It includes what enters an LSTM by the cell state.
    """
    rows = tables.of("timesteps", key)
    if key in tables.in_pieces:
        rows = tables["timesteps"]
        rows = rows[(rows["module"] == key.module) & (rows["layer"] == key.layer)]
        rows = rows[rows["direction"] == key.direction].sort_values("step", kind="stable")
    return by_step(rows[(rows["quantity"] == "grad_h") & np.isfinite(rows["mean"])], "mean", "max")


def _of_zero(tables: Tables, silent: list[LayerKey], since: int, *, whole: bool) -> Finding:
    key, started = silent[0], since <= tables.records[0]
    named = typed(key.module) if whole else " and ".join(place(one, False) for one in silent[:2])
    when = "" if started else f" from step {since} on"
    level: Severity = severity(tables)
    if whole:
        level = "critical" if not learning(tables).learns else "warning"
    return Finding(
        code="no_gradient",
        severity=level,
        layer_key=key,
        title=f"{named}: the gradient that enters is exactly zero{when}",
        explanation=_explained(tables, named, when, whole) + rests_on(tables, key),
        evidence={"steps": span(tables), "since": since, "whole": whole, **learning(tables).evidence},
        remedies=_remedies(key, whole=whole, started=started),
    )


def _explained(tables: Tables, named: str, when: str, whole: bool) -> str:
    why = f"The loss gradient that enters {named} is exactly zero{when}, at every timestep. "
    if whole:
        why += (
            "An operation between it and the loss blocks the gradient: a softmax over a single unit is always 1, a "
            "ReLU that is never positive always 0, a clamp or a saturated sigmoid flat, a mask or a weight of the loss "
            "zero. "
        )
    else:
        why += (
            "The loss does not read this part: it reads other layers, or the other direction alone. "
            "`h_n[0]` is the first layer's state, and with two directions `h_n[-1]` is the reverse state alone. "
        )
    return why + learning(tables).sentence


def _remedies(key: LayerKey, *, whole: bool, started: bool) -> tuple[Remedy, ...]:
    if not whole:
        code = (
            f"output, h_n = {typed(key.module)}(x)  # h_n[-1], or torch.cat([h_n[-2], h_n[-1]], -1) of two directions"
        )
        return (Remedy("read the uppermost layer, and both directions", code),)
    sigmoid = Remedy(
        "for two classes and one unit, use a sigmoid in place of the softmax",
        "loss = torch.nn.functional.binary_cross_entropy_with_logits(score, target)",
    )
    last = Remedy("remove the ReLU behind the last layer, clamps and masks, one by one", "output = model.out(state)")
    return (sigmoid, last) if started else (last, loops.rate(0.1))
