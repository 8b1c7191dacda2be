"""Findings: faults of a training, the most probable root cause first."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gradscope.diagnose.frames import Recorded, Tables, read_tables
from gradscope.diagnose.order import root_causes_first, without_consequences
from gradscope.diagnose.ranks import Ranked, merge_ranks
from gradscope.diagnose.rules.clipping import excessive_clipping, missing_clipping
from gradscope.diagnose.rules.dead import dead_units
from gradscope.diagnose.rules.decayed import decayed_weights
from gradscope.diagnose.rules.detached import detached_state
from gradscope.diagnose.rules.diverged import diverged
from gradscope.diagnose.rules.exploding import exploding_gradient
from gradscope.diagnose.rules.few import too_few_records
from gradscope.diagnose.rules.healthy import healthy
from gradscope.diagnose.rules.misread import misread_output
from gradscope.diagnose.rules.no_gradient import no_gradient
from gradscope.diagnose.rules.nonfinite import nonfinite_gradient
from gradscope.diagnose.rules.saturated import saturated_gate
from gradscope.diagnose.rules.single import single_timestep
from gradscope.diagnose.rules.stale import stale_gradient
from gradscope.diagnose.rules.unoptimized import unoptimized_parameters
from gradscope.diagnose.rules.unscaled import unscaled_input
from gradscope.diagnose.rules.updates import small_updates
from gradscope.diagnose.rules.vanishing import vanishing_gradient
from gradscope.types import Finding

__all__ = ["RULES", "Recorded", "Tables", "diagnose", "diagnose_ranks", "read_tables", "root_causes_first"]

RULES: Sequence[Callable[[Tables], list[Finding]]] = (
    no_gradient,
    stale_gradient,
    unoptimized_parameters,
    single_timestep,
    detached_state,
    decayed_weights,
    unscaled_input,
    dead_units,
    saturated_gate,
    exploding_gradient,
    nonfinite_gradient,
    missing_clipping,
    excessive_clipping,
    diverged,
    misread_output,
    small_updates,
    vanishing_gradient,
    too_few_records,
)
"""One rule for each code, causes before effects."""


def diagnose(run: Recorded) -> list[Finding]:
    """Find the faults of a training.

    Returns:
        Findings, the most probable root cause first; `healthy` alone if no rule finds a fault.
    """
    tables = read_tables(run)
    findings = [finding for rule in RULES for finding in rule(tables)]
    return root_causes_first(without_consequences(findings)) if findings else [healthy(tables)]


def diagnose_ranks(run: Ranked) -> list[Finding]:
    """Find the faults of each process separately; a finding names its ranks unless all processes have it."""
    if len(run.ranks) < 2:
        return diagnose(run)
    runs = {rank: run.of_rank(rank) for rank in run.ranks}
    return merge_ranks({rank: diagnose(each) for rank, each in runs.items()}, runs)
