"""Assertions for the tests of your own models.

>>> import torch
>>> from gradscope.testing import assert_reach
>>> model = torch.nn.LSTM(2, 16)
>>> for gates in (model.bias_ih_l0, model.bias_hh_l0):
...     _ = torch.nn.init.constant_(gates.data[16:32], 1.0)  # open forget gates
>>> assert_reach(model, torch.ones(40, 4, 2), lambda model, x: model(x)[0][-1].sum(), at_least=20)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any

from gradscope.errors import GradscopeError
from gradscope.run import Run
from gradscope.scope import attach
from gradscope.types import HORIZON_SHARE, SEVERITIES, Finding, LayerKey, in_words
from gradscope.whatif.copies import copied, undisturbed

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor, nn

__all__ = ["assert_no_findings", "assert_reach"]


def assert_reach(
    model: nn.Module,
    batch: Any,
    loss: Callable[[nn.Module, Any], Tensor],
    at_least: int,
    *,
    include: str | Collection[str] | None = None,
) -> None:
    """Assert that the loss gradient reaches so many timesteps back, in every recurrent layer and direction.

    The gradient reaches a lag if a thousandth or more is left (the median of `reach`) at every lag up to it. The
    assertion runs one forward and one backward pass on a copy: model, gradients, buffers and random streams stay
    unchanged.

    Args:
        model: see `gradscope.attach`.
        batch: argument of `loss`; the assertion copies it.
        loss: (model, batch) -> scalar tensor. It has to call its argument `model`, which is a copy.
        at_least: timesteps.
        include: `fnmatch` patterns over qualified names of the layers; all by default.

    Raises:
        AssertionError: the gradient does not; the message names the lag, and remedies to type.
        GradscopeError: no sequence is long enough, or gradscope could not observe any gradient.
    """
    run = _record(model, batch, loss, include)
    reach = run.frame("reach")
    if reach.empty:
        raise GradscopeError(f"assert_reach: no recurrent layer has a gradient. {_notes(run)}".strip())
    failures, longest = list[str](), dict[tuple[Any, ...], int]()
    groups: Any = reach.groupby(list(LayerKey._fields), sort=False)
    for place, rows in groups:
        key = LayerKey(*place)
        longest[key[:3]] = max(longest.get(key[:3], 0), int(rows["lag"].max()))
        lost = rows[(rows["lag"] <= at_least) & ~(rows["p50"] >= HORIZON_SHARE)]
        if len(lost):
            failures.append(_failure(run, key, rows, int(lost["lag"].iloc[0]), at_least))
    if failures:
        raise AssertionError("\n\n".join(failures))
    if short := {key: lag for key, lag in longest.items() if lag < at_least}:
        (module, layer, direction), lag = next(iter(short.items()))
        place = in_words(LayerKey(module, layer, direction, 0))
        raise GradscopeError(
            f"assert_reach(at_least={at_least}): the gradient does not fall in {place}, but "
            f"gradscope can follow it for only {lag} steps. Pass longer sequences, without a detached state in "
            f"between, or at_least={lag}."
        )


def assert_no_findings(run: Run, *, severity: str = "warning", allow: Collection[str] = ()) -> None:
    """Assert that a run has no finding of a severity or a worse one.

    Args:
        run: the run of a scope, `scope.run`, or of a folder, `gradscope.load(logdir)`.
        severity: `"info"`, `"warning"` or `"critical"`.
        allow: codes of allowed findings.

    Raises:
        AssertionError: there is one; the message explains it, and has remedies to type.
        GradscopeError: the run has no recorded step, or there is no such severity.
    """
    if severity not in SEVERITIES:
        raise GradscopeError(f"severity={severity!r}: expected one of {', '.join(SEVERITIES)}")
    if run.frame("layers").empty:
        raise GradscopeError(f"assert_no_findings: the run has no recorded step. {_notes(run)}".strip())
    worst = SEVERITIES[SEVERITIES.index(severity) :]
    findings = [f for f in run.findings() if f.severity in worst and f.code not in {"healthy", *allow}]
    if findings:
        raise AssertionError("\n\n".join(map(_explained, findings)))


def _record(model: nn.Module, batch: Any, loss: Callable[[nn.Module, Any], Tensor], include: Any) -> Run:
    """Record one step of a copy."""
    twin, data = copied(model, "the model"), copied(batch, "the batch")
    patterns = include if include is None or isinstance(include, str) else list(include)
    with undisturbed(model), attach(twin, every=1, strict=True, include=patterns) as scope:
        loss(twin, data).backward()
    return scope.run


def _failure(run: Run, key: LayerKey, rows: pd.DataFrame, lag: int, at_least: int) -> str:
    """Describe the fall of a layer's gradient, with a few numbers and remedies."""
    shown = sorted({0, lag // 2, lag - 1, lag, min(at_least, int(rows["lag"].max()))})
    left = rows.set_index("lag")["p50"]
    decay = run.frame("layers", **key._asdict())["decay"].iloc[0]
    lines = [
        f"the loss gradient does not reach {at_least} timesteps back in {in_words(key)}:",
        f"  {lag} steps back, less than a thousandth of it is left (decay {decay:.2g} decades a step)",
        *(f"  {back:>6} steps back: {left[back]:.2g}" for back in shown if back in left.index),
    ]
    causes = [f for f in run.findings() if f.layer_key is None or f.layer_key[:3] == key[:3]]
    return "\n".join([*lines, *_remedies(causes)])


def _explained(finding: Finding) -> str:
    where = f" in {in_words(finding.layer_key)}" if finding.layer_key else ""
    lines = [f"{finding.severity}: {finding.code}{where}: {finding.title}", f"  {finding.explanation}"]
    return "\n".join([*lines, *_remedies([finding])])


def _remedies(findings: Collection[Finding]) -> Iterator[str]:
    typed = dict.fromkeys(remedy.code for finding in findings for remedy in finding.remedies)
    if typed:
        yield "  to try:"
        yield from (f"    {line}" for code in typed for line in code.splitlines())


def _notes(run: Run) -> str:
    return " ".join(dict.fromkeys(run.frame("notes")["reason"]))
