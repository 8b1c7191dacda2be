"""Joins calls by the links between their states, and follows each sequence through them.

A chain is a series of calls. The joining follows its sequences row by row: a loop may drop rows that have ended,
reorder rows, reset some of them (`h * (1 - done)`) or go on from one state twice. A row that begins anew begins a
sequence of its own, at that timestep of the chain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from gradscope.types import Link

Place = tuple[int, int]
"""A call's position in its chain, and a row of its snapshot."""
Source = tuple[int, int]
"""The index of a call, and a row of its snapshot."""


class Linked(Protocol):
    """A call, as far as joining needs it."""

    link: Link | None
    rows: list[int]
    """Index in the batch of each row of the snapshot."""

    @property
    def lengths(self) -> list[int]:
        """Timesteps of each row."""
        ...

    def idle(self) -> list[bool]:
        """For each row, True if none of its results received a gradient."""
        ...


@dataclass(slots=True, eq=False)
class Track:
    """One sequence of a chain.

    Attributes:
        start: timestep of the chain at which it begins.
        places: its calls and rows, in order.
        cut: True if the loop has discarded results of it and gone on from earlier ones.
    """

    start: int
    places: list[Place] = field(default_factory=list[Place])
    cut: bool = False


@dataclass(slots=True, eq=False)
class Chain:
    """A series of calls of one module.

    Attributes:
        calls: indices of the calls, in their order.
        tracks: the sequences of these calls.
        begins: timestep of the chain at which each call begins.
    """

    calls: list[int] = field(default_factory=list[int])
    tracks: list[Track] = field(default_factory=list[Track])
    begins: list[int] = field(default_factory=list[int])


def join_calls(calls: Sequence[Linked]) -> list[Chain]:
    """Join calls of one module into chains, in the order of the first calls."""
    return _Joining(calls).run()


@dataclass(slots=True)
class _Joining:
    calls: Sequence[Linked]
    chains: list[Chain] = field(default_factory=list[Chain])
    home: dict[int, tuple[Chain, int]] = field(default_factory=dict[int, "tuple[Chain, int]"])
    current: dict[Source, Track] = field(default_factory=dict[Source, Track])
    dead: dict[int, list[bool]] = field(default_factory=dict[int, "list[bool]"])

    def run(self) -> list[Chain]:
        numbers = {id(call): number for number, call in enumerate(self.calls)}
        for number, call in enumerate(self.calls):
            before = [numbers[id(s.call)] for s in call.link.parts if id(s.call) in numbers] if call.link else []
            self._place(number, _sources(call, self.calls, numbers), before)
        for chain in self.chains:
            for track in chain.tracks:
                self._trim(chain, track)
            chain.tracks = [track for track in chain.tracks if track.places]
        return [chain for chain in self.chains if chain.tracks]

    def _place(self, number: int, sources: list[Source | None], before: list[int]) -> None:
        """Give a call its chain, and each of its rows its track.

        Args:
            number: index of the call.
            sources: origins of its rows.
            before: the calls that any sequence goes on from, analysed or not.
        """
        tracks = [None if source is None else self._track_after(source) for source in sources]
        homes = [self.home[source[0]][0] for source, track in zip(sources, tracks, strict=True) if source and track]
        earlier = [source[0] for source in sources if source]
        if not earlier:
            earlier, homes = before, [self.home[n][0] for n in before]
        chain = homes[0] if homes else Chain()
        if not homes:
            self.chains.append(chain)
        ends = [self._end(n) for n in earlier if self.home[n][0] is chain]
        place, begin = len(chain.calls), max(ends, default=0)
        chain.calls.append(number)
        chain.begins.append(begin)
        self.home[number] = chain, place
        for row, track in enumerate(tracks):
            here = track if track in chain.tracks else None
            grown = self.current[number, row] = self._grow(chain, here, begin, (place, row))
            grown.cut |= self._discarded(sources[row])

    def _grow(self, chain: Chain, track: Track | None, begin: int, place: Place) -> Track:
        """Add a place to a track, or to a new one if there is none or it has a place in this call already."""
        if track is None or (track.places and track.places[-1][0] == place[0]):
            track = Track(begin)
            chain.tracks.append(track)
        track.places.append(place)
        return track

    def _end(self, number: int) -> int:
        """The timestep of its chain after the last timestep of a call."""
        chain, place = self.home[number]
        return chain.begins[place] + max(self.calls[number].lengths, default=0)

    def _track_after(self, source: Source) -> Track | None:
        """The sequence that goes on from a result; None if another branch went on from there already."""
        track = self.current[source]
        chain, place = self.home[source[0]]
        if self._discarded(source):
            return None
        if track.places[-1] == (place, source[1]):
            return track
        index = track.places.index((place, source[1]))
        later = track.places[index + 1 :]
        if later and not all(self._idle(chain, p) for p in later):
            return None
        del track.places[index + 1 :]  # the loop has discarded them: `torch.where(running, new, old)`
        track.cut = True
        return track

    def _discarded(self, source: Source | None) -> bool:
        """True if the loop has gone on from an earlier result in place of this one."""
        return source is not None and (self.home[source[0]][1], source[1]) not in self.current[source].places

    def _idle(self, chain: Chain, place: Place) -> bool:
        number = chain.calls[place[0]]
        if number not in self.dead:
            self.dead[number] = self.calls[number].idle()
        return self.dead[number][place[1]]

    def _trim(self, chain: Chain, track: Track) -> None:
        """If the loop has discarded results of a sequence, drop its last ones without gradient as well."""
        while track.cut and track.places and self._idle(chain, track.places[-1]):
            track.places.pop()


def _sources(call: Linked, calls: Sequence[Linked], numbers: dict[int, int]) -> list[Source | None]:
    """For each row of a call, the earlier call and row whose state it goes on from."""
    sources: list[Source | None] = [None] * len(call.rows)
    for linked in call.link.parts if call.link is not None else ():
        number = numbers.get(id(linked.call))
        if number is None:
            continue
        local = {row: index for index, row in enumerate(calls[number].rows)}
        origin = linked.rows.tolist()
        for index, row in enumerate(call.rows):
            if origin[row] in local and (sources[index] is None or sources[index][0] < number):  # type: ignore[index]
                sources[index] = number, local[origin[row]]
    return sources
