"""Submissions of one server of a private total: who takes part, and one sum per epoch. Pure but for its file.

The rule that carries the privacy: a server adds its shares of an epoch up over *one* set of households, at least
`minimum` of them, after the epoch is closed. Sums over two different sets would differ by single households.
That the set was chosen is on disk before the sum is told, so that a restart does not make it forget.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bess_core.files import replace_file

from .private_sum import MAX_HOUSEHOLDS, MAX_POWER, MAX_SLOTS, ShareError, add, pack, unpack

ID = re.compile(r'[0-9a-f]{32}')
KEEP_S = 7 * 86400.0  # how long results are kept after the epoch
AHEAD = 8  # epochs that may be submitted for in advance


class BookError(ValueError):
    """A request that is refused; in words, which the one who asked may see."""


@dataclass(frozen=True)
class Terms:
    """What both servers and all households must agree on. Epochs begin at `offset` + k * slots * slot."""

    slots: int  # per epoch
    slot: float  # s
    offset: float  # s since the epoch of UTC
    close_before: float  # s before its begin an epoch is closed
    minimum: int  # households without which nothing is added up
    max_power: float  # W, of one household

    def __post_init__(self) -> None:
        if not 0 < self.slots <= MAX_SLOTS or not self.slot > 0.0 or not self.close_before >= 0.0:
            raise ValueError('slots, slot and close_before make no epoch')
        if not 2 <= self.minimum <= MAX_HOUSEHOLDS or not 0.0 < self.max_power <= MAX_POWER:
            raise ValueError('minimum or max_power is out of range')

    @property
    def length(self) -> float:
        """s of one epoch."""
        return self.slots * self.slot

    def problem(self, epoch: Any, now: float) -> str:
        """Why nothing can be submitted for the epoch that begins at this absolute s; '' when it can."""
        if isinstance(epoch, bool) or not isinstance(epoch, int) or not 0 <= epoch < 2**40:
            return 'an epoch is the absolute second at which it begins'
        if (epoch - self.offset) % self.length:
            return f'no epoch begins at {epoch}'
        if now >= epoch - self.close_before:
            return f'too late: the epoch was closed {now - (epoch - self.close_before):.0f} s ago'
        if epoch - now > AHEAD * self.length:
            return f'too early: at most {AHEAD} epochs ahead'
        return ''

    def closed(self, epoch: int, now: float) -> bool:
        """Whether submissions for the epoch have ended."""
        return now >= epoch - self.close_before


@dataclass
class Epoch:
    """What a server holds of one epoch."""

    shares: dict[str, tuple[str, str]] = field(default_factory=dict)  # household -> submission id, packed share
    withdrawn: list[str] = field(default_factory=list)  # submission ids that never count again
    members: dict[str, str] = field(default_factory=dict)  # the one set: household -> submission id
    total: str = ''  # packed sum of the own shares over `members`
    state: str = 'open'  # collector: open, added, applied, refused
    message: str = ''
    powers: list[float] = field(default_factory=list)  # collector: W, + = charging, the sum


class Book:
    """All epochs of one server; times are absolute s."""

    def __init__(self, folder: Path, terms: Terms, households: list[str]) -> None:
        """Restores `folder`. Raises OSError, ValueError for a damaged file (better no sum than a second one)."""
        self.terms, self.households, self._folder = terms, frozenset(households), folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.epochs: dict[int, Epoch] = {}
        for path in folder.glob('*.json'):
            values = json.loads(path.read_text())
            if values.pop('terms') != asdict(terms):
                continue  # of other terms: not of this book, and not to be added up under these
            epoch = Epoch(**values)
            epoch.shares = {h: (i, s) for h, (i, s) in epoch.shares.items()}
            self.epochs[int(path.stem)] = epoch

    def submit(self, household: str, body: dict[str, Any], now: float) -> str:
        """Take a share; the later one of a household counts. Raises `BookError`; returns what happened."""
        number, name = body.get('epoch'), body.get('submission')
        problem = self.terms.problem(number, now)
        if household not in self.households:
            problem = f'{household} is none of the households'
        if not problem and (not isinstance(name, str) or not ID.fullmatch(name)):
            problem = 'a submission has an id of 32 hexadecimal digits'
        if problem:
            raise BookError(problem)
        assert isinstance(number, int) and isinstance(name, str)
        try:
            share = pack(unpack(body.get('share'), self.terms.slots))
        except ShareError as error:
            raise BookError(str(error)) from error
        epoch = self.epochs.get(number) or Epoch()
        if epoch.members:
            raise BookError('too late: the epoch is added up already')
        if name in epoch.withdrawn:
            raise BookError('this submission was withdrawn')
        before = epoch.shares.get(household)
        if before == (name, share):
            return 'known already'
        if any(name == other for h, (other, _) in epoch.shares.items() if h != household):
            raise BookError('another household has a submission of this id')
        if before is not None and before[0] == name:
            raise BookError('another share was submitted under this id')
        if before is not None:
            self._withdrawn(epoch, before[0])
        epoch.shares[household] = (name, share)
        self._keep(number, epoch)
        return 'replaces the former one' if before else 'taken'

    def withdraw(self, household: str, body: dict[str, Any], now: float) -> str:
        """Forget a household's share, also one that is still on its way. Raises `BookError`."""
        number, name = body.get('epoch'), body.get('submission')
        problem = self.terms.problem(number, now)
        if problem or household not in self.households or not isinstance(name, str) or not ID.fullmatch(name):
            raise BookError(problem or 'a withdrawal names a household\'s own submission')
        assert isinstance(number, int)
        epoch = self.epochs.get(number) or Epoch()
        if epoch.members:
            raise BookError('too late: the epoch is added up already')
        if epoch.shares.get(household, ('', ''))[0] == name:
            del epoch.shares[household]
        self._withdrawn(epoch, name)
        self._keep(number, epoch)
        return 'withdrawn'

    @staticmethod
    def _withdrawn(epoch: Epoch, name: str) -> None:
        if name not in epoch.withdrawn:
            if len(epoch.withdrawn) >= 4 * MAX_HOUSEHOLDS:
                raise BookError('too many withdrawals')
            epoch.withdrawn.append(name)

    def roster(self, number: Any, now: float) -> dict[str, str]:
        """Submission id per household of a closed epoch. Raises `BookError`."""
        if isinstance(number, bool) or not isinstance(number, int) or not self.terms.closed(number, now):
            raise BookError('the epoch is not closed yet')
        epoch = self.epochs.get(number) or Epoch()
        return dict(epoch.members) if epoch.members else {h: i for h, (i, _) in epoch.shares.items()}

    def total(self, number: Any, members: Any, now: float) -> str:
        """Packed sum of the own shares over the set `members` (household -> submission id); one set per epoch.

        The shares are forgotten once they are added up. Raises `BookError`, OSError.
        """
        known = self.roster(number, now)
        if not isinstance(members, dict) or not all(isinstance(v, str) for v in members.values()):
            raise BookError('members are submission ids by household')
        epoch = self.epochs.get(number) or Epoch()
        if epoch.members:
            if members != epoch.members:
                raise BookError('the epoch was added up over another set; it is never added up twice')
            return epoch.total
        if len(members) < self.terms.minimum:
            raise BookError(f'{len(members)} households are fewer than {self.terms.minimum}: nothing is added up')
        if any(known.get(h) != i for h, i in members.items()):
            raise BookError('the set holds a submission that is not here')
        total = pack(add([unpack(epoch.shares[h][1], self.terms.slots) for h in sorted(members)]))
        done = Epoch({}, epoch.withdrawn, dict(members), total, epoch.state, epoch.message)
        self._keep(number, done)
        return total

    def note(self, number: int, state: str, message: str, powers: list[float] | None = None) -> None:
        """Collector: what became of an epoch. Raises OSError."""
        epoch = self.epochs.get(number) or Epoch()
        shares = {} if state == 'refused' else epoch.shares
        self._keep(number, Epoch(shares, epoch.withdrawn, epoch.members, epoch.total, state, message,
                                 epoch.powers if powers is None else powers))

    def forget(self, now: float) -> None:
        """Drop what is long over."""
        for number in [n for n in self.epochs if now > n + self.terms.length + KEEP_S]:
            del self.epochs[number]
            (self._folder / f'{number}.json').unlink(missing_ok=True)

    def _keep(self, number: int, epoch: Epoch) -> None:
        """On disk first, then in memory."""
        values = json.dumps({**asdict(epoch), 'terms': asdict(self.terms)})
        replace_file(self._folder / f'{number}.json', values, 0o600)
        self.epochs[number] = epoch
