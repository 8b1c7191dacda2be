"""The analysis of a recorded step: calls are joined into chains, chains analysed, and gradients of weights compared."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradscope.capture.chain import Chain, join_calls
from gradscope.capture.join_cell import join_cells
from gradscope.families import Work, analyse, analyse_kept, analyse_recurrence, certify
from gradscope.observe.observed import ObservedCall, WeightGradient
from gradscope.observe.origins import stack_of
from gradscope.observe.updates import with_updates
from gradscope.types import Analysis

Numbered = tuple[int, list[ObservedCall], Chain]
"""A chain's number within its module, the calls of the module, and the chain."""


def analyse_calls(
    calls: Sequence[ObservedCall], work: Work, factor: Tensor | float, *, stepped: bool
) -> list[tuple[str, int, list[Analysis]]]:
    """Module, chain and analyses of every chain of calls that received gradient, in the order of their first calls.

    Args:
        calls: those of the step.
        work: what to compute.
        factor: what the loss was multiplied by.
        stepped: an optimizer has stepped, so that it can be said what it did to the weights.
    """
    chains = chains_of(calls)
    analyses = [_analysed(of_module, chain, work, factor) for _, of_module, chain in chains]
    _certify(chains, analyses, factor)
    firsts = [of_module[chain.calls[0]] for _, of_module, chain in chains]
    if stepped:
        analyses = [with_updates(each, first) for each, first in zip(analyses, firsts, strict=True)]
    numbers = [number for number, _, _ in chains]
    return [(first.module, n, each) for first, n, each in zip(firsts, numbers, analyses, strict=True)]


def chains_of(calls: Sequence[ObservedCall]) -> list[Numbered]:
    """All chains, in the order of their first calls."""
    modules: dict[str, list[ObservedCall]] = {}
    for call in sorted(calls, key=lambda call: call.index):
        modules.setdefault(call.module, []).append(call)
    chains = [(n, mine, chain) for mine in modules.values() for n, chain in enumerate(join_calls(mine))]
    return sorted(chains, key=lambda c: c[1][c[2].calls[0]].index)


def _analysed(calls: list[ObservedCall], chain: Chain, work: Work, factor: Tensor | float) -> list[Analysis]:
    """One chain, by what its kernel kept where that is known, else by running it again."""
    first = calls[chain.calls[0]]
    if first.custom is not None:
        return [analyse_recurrence(join_cells(first.custom, chain, calls, factor), work=work)]
    users = [gradient for n in chain.calls for gradient in calls[n].weight_gradients]
    sketch = any(gradient.complete and gradient.total is not None for gradient in users)
    known = first.known()
    found = analyse_kept(stack_of(calls, chain, factor, known), work=work, sketch=sketch) if known else []
    return found or analyse(stack_of(calls, chain, factor), work=work, sketch=sketch)


def _certify(chains: Sequence[Numbered], analyses: list[list[Analysis]], factor: Tensor | float) -> None:
    """Compare rebuilt gradients of weights with those that were accumulated, where all of these are known."""
    for gradients, places in _shares(chains):
        totals = [gradient.total for gradient in gradients if gradient.total is not None]
        if totals and all(gradient.complete for gradient in gradients):
            total = torch.stack(totals).sum(0) / factor
            certified = certify([analyses[i][j] for i, j in places], total)
            for (i, j), analysis in zip(places, certified, strict=True):
                analyses[i][j] = analysis


def _shares(chains: Sequence[Numbered]) -> list[tuple[list[WeightGradient], list[tuple[int, int]]]]:
    """Weights, and the chains and layers that they took part in: what is made anew before each call goes together."""
    found: list[tuple[dict[int, WeightGradient], dict[tuple[int, int], None]]] = []
    for i, (_, calls, chain) in enumerate(chains):
        for j, column in enumerate(zip(*(calls[number].weight_gradients for number in chain.calls), strict=True)):
            mine, places = {id(gradient): gradient for gradient in column}, {(i, j): None}
            for other in [other for other in found if other[0].keys() & mine.keys()]:
                found.remove(other)
                mine, places = other[0] | mine, other[1] | places
            found.append((mine, places))
    return [(list(mine.values()), list(places)) for mine, places in found]
