"""The first remedy of the first finding, tried: done to the module where code can, or a switch of the loop."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.field import store
from benchmarks.field.case import Case
from benchmarks.field.judge import Verdict
from benchmarks.field.loop import Remedy, train
from benchmarks.field.setup import Setup
from gradscope.types import Finding

RESTORED = 0.75  # of the mended twin's score, and at least half of what was lost
Tried = tuple[Setup, Remedy]


def tried(finding: Finding, case: Case) -> Tried | None:
    """The training with a finding's first remedy; None where there is none, or nothing that anybody could do."""
    if not finding.remedies:
        return None
    first, setup = finding.remedies[0], case.setup
    if first.apply is not None and finding.layer_key is not None:
        return setup, Remedy(model=_applied(finding.layer_key.module, first.apply))
    for pattern, switch in SWITCHES:
        if re.search(pattern, first.code):
            return switch(setup, first.code, case)
    return None


def _applied(name: str, apply: Callable[[nn.Module], nn.Module | None]) -> Callable[[nn.Module], None]:
    def run(model: nn.Module) -> None:
        new = apply(model.get_submodule(name))
        if new is not None:
            holder, _, last = name.rpartition(".")
            setattr(model.get_submodule(holder), last, new)

    return run


def _executed(code: str) -> Callable[..., None]:
    compiled = compile(code, "<remedy>", "exec")

    def run(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
        exec(compiled, {"torch": torch, "nn": nn, "model": model, "optimizer": optimizer})  # noqa: S102 - our own line

    return run


# --- switches: what somebody does who reads the line


def _clipping(setup: Setup, code: str, case: Case) -> Tried:
    return setup, Remedy(gradients=_executed(code))


def _on_optimizer(setup: Setup, code: str, case: Case) -> Tried:
    return setup, Remedy(optimizer=_executed(code))


def _cleared(setup: Setup, code: str, case: Case) -> Tried:
    return setup.but(zero_grad=True, zero_every=1, zero_late=False), Remedy()


def _registered(setup: Setup, code: str, case: Case) -> Tried:
    """All parameters known to the model, and the optimizer made of them all."""
    return setup.but(head="linear" if setup.head == "list" else setup.head, forgotten=""), Remedy()


def _scaled(setup: Setup, code: str, case: Case) -> Tried:
    return setup.but(inputs=1.0, offset=0.0, column=1.0, ramp=0.0, embed_scale=1.0), Remedy()


def _packed(setup: Setup, code: str, case: Case) -> Tried:
    """Packed, or read at each sequence's own last timestep: the padding is not read."""
    return setup.but(form="packed" if setup.form == "fused" else setup.form, pad=0, read=""), Remedy()


def _read_at_end(setup: Setup, code: str, case: Case) -> Tried:
    return setup.but(read="end" if setup.read == "start" else ""), Remedy()


def _read_well(setup: Setup, code: str, case: Case) -> Tried:
    return setup.but(read=""), Remedy()


def _laid_out(setup: Setup, code: str, case: Case) -> Tried:
    return setup.but(swapped=False), Remedy()


def _kept_graph(setup: Setup, code: str, case: Case) -> Tried:
    return setup.but(detach=0, burn=0), Remedy()


def _longer(setup: Setup, code: str, case: Case) -> Tried:
    return setup.but(detach=4 * setup.detach), Remedy()


def _whole(setup: Setup, code: str, case: Case) -> Tried:
    forms = {"dropped": "fused", "forgetful": "cells"}
    return setup.but(single=False, form=forms.get(setup.form, setup.form)), Remedy()


def _handed(setup: Setup, code: str, case: Case) -> Tried:
    return setup.but(handover="state", head="linear" if setup.head == "detached" else setup.head), Remedy()


def _connected(setup: Setup, code: str, case: Case) -> Tried:
    """Who follows the path from the output to the loss finds the operation at which it ends."""
    return setup.but(head="linear" if setup.head in ENDS else setup.head), Remedy()


def _unpenalised(setup: Setup, code: str, case: Case) -> Tried:
    return setup.but(l1=0.0, l2=0.0), Remedy()


def _scheduled(setup: Setup, code: str, case: Case) -> Tried:
    return setup.but(decay=1.0, milestone=0, gamma=1.0, plateau=0), Remedy()


def _thawed(setup: Setup, code: str, case: Case) -> Tried:
    return setup.but(frozen=""), Remedy()


def _skipped(setup: Setup, code: str, case: Case) -> Tried:
    return setup, Remedy(skips=True)


def _safe(setup: Setup, code: str, case: Case) -> Tried:
    """Roots, logarithms and divisions away from zero."""
    return setup.but(birth="" if setup.birth in ZEROS else setup.birth), Remedy()


def _unsoftened(setup: Setup, code: str, case: Case) -> Tried:
    """Scores into a loss that has its own softmax or sigmoid; nothing behind the last layer."""
    return setup.but(head="linear" if setup.head in ("softmax", "relu", "argmax") else setup.head), Remedy()


def _left_out(setup: Setup, code: str, case: Case) -> Tried:
    """What is not finite is left out of the loss; it mends what comes in, or out, of single samples."""
    mended = {"ctc": "ctc masked", "missing": "", "count": "", "empty": "", "log": ""}.get(setup.birth, setup.birth)
    return setup.but(birth=mended), Remedy()


def _cut(setup: Setup, code: str, case: Case) -> Tried | None:
    last = re.search(r"-(\d+):", code)
    return (setup.but(cut=int(last[1])), Remedy()) if last else None


ENDS = ("argmax", "round", "detached", "no_grad", "rewrapped", "threshold")
"""Operations behind the last layer, or before it, at which a gradient ends."""
ZEROS = ("root", "where", "norm", "log", "change", "count", "angle", "entropy")
"""Births from a root, a logarithm or a division at zero."""

Switch = Callable[[Setup, str, Case], Tried | None]
SWITCHES: tuple[tuple[str, Switch], ...] = (
    (r"clip_grad_", _clipping),
    (r"penalty of the weights", _unpenalised),
    (r"param_groups|add_param_group", _on_optimizer),
    (r"ModuleList", _registered),
    (r"optimizer = |Optimizer\(|optim\.\w+\(", _registered),
    (r"zero_grad", _cleared),
    (r"if loss\.isfinite", _skipped),
    (r"zero_infinity|isfinite|isnan|nan_to_num", _left_out),
    (r"pack_padded|lengths - 1", _packed),
    (r"\.mean\(.*\.std\(|StandardScaler", _scaled),
    (r"clamp\(min=", _safe),
    (r"scheduler", _scheduled),
    (r"requires_grad_\(True\)", _thawed),
    (r"state as it came", _kept_graph),
    (r"window = ", _longer),
    (r"\.batch_first = ", _laid_out),
    (r"h_n\[-2\]", _read_well),
    (r"answer = output|output\[:, -1\]|output\[-1\]", _read_at_end),
    (r"hand output or state on|decoder\(", _handed),
    (r"requires_grad, loss.grad_fn|\.rnn\(x\)$", _connected),
    (r"with_logits|cross_entropy|model\.out\(", _unsoftened),
    (r"time > 1|for x_t in x", _whole),
    (r"x\[:, -\d+:\]", _cut),
)


# --- what came of it


def place(verdict: Verdict, code: str, out: Path) -> Path:
    """One folder for a training and a remedy, whichever way of recording led to it."""
    return out / "remedied" / f"{verdict.case.key()}-{hashlib.sha256(code.encode()).hexdigest()[:8]}"


def first_remedy(verdict: Verdict) -> str:
    """What the first finding says first, as code."""
    return verdict.leading.remedies[0].code if verdict.leading is not None and verdict.leading.remedies else ""


def outcome(verdict: Verdict, out: Path) -> dict[str, Any] | None:
    """What came of the remedy, and whether it restores the training; None where that has not been tried."""
    code = first_remedy(verdict)
    found = store.kept(place(verdict, code, out)) if code else {"score": 0.0, "tried": False}
    own, twin = (store.known(key, out) for key in (verdict.case.key(), verdict.case.twin_key()))
    if found is None or own is None or twin is None:
        return None
    aim = max(RESTORED * twin["score"], (own["score"] + twin["score"]) / 2)
    return {**found, "restored": found["score"] >= aim}


def try_remedy(verdict: Verdict, out: Path) -> dict[str, Any] | None:
    """Train again with the remedy, unless that has been done."""
    code, case = first_remedy(verdict), verdict.case
    if verdict.leading is not None and outcome(verdict, out) is None:
        chosen = tried(verdict.leading, case)
        found: dict[str, Any] = {"code": code, "score": 0.0, "tried": chosen is not None}
        if chosen is not None:
            found |= _trained(case, *chosen)
        store.keep(place(verdict, code, out), found)
    return outcome(verdict, out)


def _trained(case: Case, setup: Setup, remedy: Remedy) -> dict[str, Any]:
    try:
        return {"score": train(case.work, setup, case.seed, remedy=remedy).score}
    except Exception as error:  # noqa: BLE001 - a line that does not run is a remedy that does not help
        return {"score": 0.0, "error": f"{type(error).__name__}: {error}"}
