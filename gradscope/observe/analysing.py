"""The analysis of a recorded step: joins calls into chains, analyses the chains, and compares gradients of weights."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from gradscope.capture.chain import Chain, join_calls
from gradscope.capture.join_cell import join_cells
from gradscope.capture.snapshot import over
from gradscope.families import Work, analyse, analyse_recurrence, analyse_saved, certify
from gradscope.observe.observed import ObservedCall, WeightGradient
from gradscope.observe.origins import Chained, stack_of
from gradscope.observe.updates import with_updates
from gradscope.types import Analysis


def analyse_calls(
    calls: Sequence[ObservedCall], work: Work, factor: Tensor | float, *, stepped: bool
) -> list[tuple[str, int, list[Analysis]]]:
    """Module, chain and analyses of every chain of calls with gradient, in the order of their first calls.

    Args:
        calls: the calls of the step.
        work: what to compute.
        factor: the loss scale.
        stepped: True if an optimizer has stepped, so that the change of the weights is known.
    """
    chains = chains_of(calls)
    analyses = [_analyse_chain(of_module, chain, work, factor) for _, of_module, chain in chains]
    _certify(chains, analyses, factor)
    firsts = [of_module[chain.calls[0]] for _, of_module, chain in chains]
    if stepped:
        analyses = [with_updates(each, first) for each, first in zip(analyses, firsts, strict=True)]
    numbers = [number for number, _, _ in chains]
    return [(first.module, n, each) for first, n, each in zip(firsts, numbers, analyses, strict=True)]


def chains_of(calls: Sequence[ObservedCall]) -> list[Chained]:
    """Join calls into chains, in the order of their first calls."""
    modules: dict[str, list[ObservedCall]] = {}
    for call in sorted(calls, key=lambda call: call.index):
        modules.setdefault(call.module, []).append(call)
    chains = [(n, mine, chain) for mine in modules.values() for n, chain in enumerate(join_calls(mine))]
    return sorted(chains, key=lambda c: c[1][c[2].calls[0]].index)


def _analyse_chain(calls: list[ObservedCall], chain: Chain, work: Work, factor: Tensor | float) -> list[Analysis]:
    """Analyse one chain: from values that its kernel saved if they are known, else by a replay."""
    first = calls[chain.calls[0]]
    if first.custom is not None:
        return [analyse_recurrence(join_cells(first.custom, chain, calls, factor), work=work)]
    users = [gradient for n in chain.calls for gradient in calls[n].weight_gradients]
    sketch = any(gradient.complete and gradient.total is not None for gradient in users)
    saved = first.complete_saved()
    analyses = analyse_saved(stack_of(calls, chain, factor, saved), work=work, sketch=sketch) if saved else []
    return analyses or analyse(stack_of(calls, chain, factor), work=work, sketch=sketch)


def _certify(chains: Sequence[Chained], analyses: list[list[Analysis]], factor: Tensor | float) -> None:
    """Compare rebuilt gradients of weights with the accumulated ones, if all of these are known."""
    for gradients, places in _groups(chains):
        totals = [gradient.total for gradient in gradients if gradient.total is not None]
        if totals and all(gradient.complete for gradient in gradients):
            total = over(functools.reduce(torch.add, totals), factor)
            assert total is not None
            certified = certify([analyses[i][j] for i, j in places], total)
            for (i, j), analysis in zip(places, certified, strict=True):
                analyses[i][j] = analysis


def _groups(chains: Sequence[Chained]) -> list[tuple[list[WeightGradient], list[tuple[int, int]]]]:
    """Group the gradients of weights with their chains and layers; weights made anew for each call form one group."""
    groups: list[tuple[dict[int, WeightGradient], dict[tuple[int, int], None]]] = []
    for i, (_, calls, chain) in enumerate(chains):
        for j, column in enumerate(zip(*(calls[number].weight_gradients for number in chain.calls), strict=True)):
            mine, places = {id(gradient): gradient for gradient in column}, {(i, j): None}
            for other in [other for other in groups if other[0].keys() & mine.keys()]:
                groups.remove(other)
                mine, places = other[0] | mine, other[1] | places
            groups.append((mine, places))
    return [(list(mine.values()), list(places)) for mine, places in groups]
