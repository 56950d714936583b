"""One admission of plans: of one battery, or of several children of a partition that one owner asks at once.

Children that are asked at once each look at what is their own (limits, schedule, promises, energy); what lies
below is then asked once, with all their plans together, and all of them are admitted or none. Opposite plans
cancel there, where the first one alone might have been too much.
"""

from __future__ import annotations

from collections.abc import Callable
from math import nan
from typing import Any, NamedTuple, Protocol

from .book import Book, Promise, Turns
from .plan import EMPTY, Forecast, Plan

HOLD_S = 5.0  # how long members hold a plan that is not put into force
RENEW_S = 20.0  # how often an owner sends its plan again
KEEP_S = 4 * RENEW_S  # how long a member keeps a plan that is not sent again


class Ask(NamedTuple):
    """One question to a member; fields as in `srv/Reserve.srv`."""

    phase: int
    owner: str
    hold: int
    plan: Plan = EMPTY
    strict: bool = False
    hold_time: float = HOLD_S
    keep_time: float = KEEP_S
    together: Together | None = None  # what the owner asks at the same moment, of members in this process


class Answer(NamedTuple):
    """Its answer."""

    accepted: bool
    message: str = ''  # '' of a refusal: of itself it could, but others that were asked together cannot
    runs_out: float = nan


class Token:
    """What is held below: the number and who holds it. Batteries that were admitted together share it."""

    __slots__ = ('hold', 'members', 'told')

    def __init__(self, hold: int, members: tuple[str, ...]) -> None:
        self.hold, self.members = hold, members
        self.told = 0  # the phase that ended it


Done = Callable[[Answer], None]
Prepared = Callable[[str, list[str], 'Token | None'], None]  # reason or '', forecasts of members, what is held


class Keeper(Protocol):
    """A battery that keeps a book; see `reservation_node.Reservations`."""

    node: Any
    book: Book
    turns: Turns

    def examine(self, part: Part) -> str:
        """Why it cannot promise what is asked, as far as it decides itself; '' when it can."""

    def ask_below(self, shares: list[tuple[str, Plan]], strict: bool, done: Prepared) -> None:
        """Let members hold these plans; all or nothing."""

    def abort_below(self, token: Token | None) -> None:
        """Drop what is held below."""

    def admit(self, parts: list[Part]) -> None:
        """Admit these in one turn."""

    def words(self, runs_out: float, plan: Plan) -> str:
        """Forecast in words."""


class Part:
    """One battery in an admission."""

    __slots__ = ('ask', 'book', 'done', 'forecast', 'keeper', 'plan', 'wanted')

    def __init__(self, keeper: Keeper, ask: Ask, done: Done) -> None:
        self.keeper, self.ask, self.done = keeper, ask, done
        self.book: Book = keeper.book
        self.plan = self.wanted = EMPTY  # as asked, without its past; with everything else that is planned
        self.forecast: Forecast | None = None


class Admission:
    """Work for `Turns`: the first phase for these parts, all or none. They share their turns."""

    __slots__ = ('leave', 'parts')

    def __init__(self, parts: list[Part]) -> None:
        self.parts = parts

    def __call__(self, leave: Callable[[], None]) -> None:
        """Their turn has come."""
        self.leave = leave
        parts = self.parts
        reasons = [part.keeper.examine(part) for part in parts]
        if any(reasons):
            self._refuse(reasons)
            return
        first = parts[0]
        node = first.keeper.node
        if len(parts) == 1:
            shares = node.plans_below(first.wanted)
        else:
            shares = node.plans_together({part.keeper.node.name: part.wanted for part in parts})
        first.keeper.ask_below(shares, first.ask.strict, self._prepared)

    def _prepared(self, refusal: str, hints: list[str], token: Token | None) -> None:
        parts = self.parts
        stay = [part for part in parts if part.keeper.book is part.book]
        if not refusal and len(stay) < len(parts):
            (stay or parts)[0].keeper.abort_below(token)
            refusal = 'it was shut down meanwhile'
        if refusal:
            self._refuse([refusal] * len(parts))
            return
        answers = []
        for part in parts:
            keeper, ask = part.keeper, part.ask
            keeper.book.hold(Promise(ask.owner, ask.hold, part.plan, keeper.node.clock.now() + ask.hold_time, token))
            runs_out = part.forecast.runs_out if part.forecast is not None else nan
            answers.append(Answer(True, keeper.words(runs_out, part.wanted) or '; '.join(hints), runs_out))
        for part, answer in zip(parts, answers, strict=True):  # when all are held
            part.done(answer)
        self.leave()

    def _refuse(self, reasons: list[str]) -> None:
        for part, reason in zip(self.parts, reasons, strict=True):
            part.done(Answer(False, reason))
        self.leave()


class Together:
    """Gathers what one owner asks of its members at one moment, until `go`."""

    __slots__ = ('_parts',)

    def __init__(self) -> None:
        self._parts: list[Part] | None = []

    def gather(self, part: Part) -> bool:
        """False when it is too late to be asked with the others."""
        if self._parts is None:
            return False
        self._parts.append(part)
        return True

    def go(self) -> None:
        """Admit what was gathered: batteries that share their turns also share what lies below."""
        parts, self._parts = self._parts or [], None
        while parts:
            keeper = parts[0].keeper
            same = [part for part in parts if part.keeper.turns is keeper.turns]
            parts = [part for part in parts if part.keeper.turns is not keeper.turns]
            keeper.admit(same)


def by_text(answers: dict[str, Answer]) -> list[str]:
    """What members say in words, those that say the same in one; silent ones are left out."""
    said: dict[str, list[str]] = {}
    for member, answer in answers.items():
        if answer.message:
            said.setdefault(answer.message, []).append(member)
    return [f'{", ".join(members)}: {message}' for message, members in said.items()]


__all__ = ['HOLD_S', 'KEEP_S', 'RENEW_S', 'Admission', 'Answer', 'Ask', 'Done', 'Keeper', 'Part', 'Prepared',
           'Together', 'Token', 'by_text']
