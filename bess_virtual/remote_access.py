"""Who may do what with which battery, and which orders are too old. Pure; times are s of one clock."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from math import isnan
from typing import Any

from bess_core import certs

READ, SCHEDULE, SETPOINT = 'read', 'schedule', 'setpoint'
PERMISSIONS = (READ, SCHEDULE, SETPOINT)
#: What each question needs.
OPS = {
    'status': READ, 'list_schedule': READ, 'schedule_at': READ,
    'schedule_set_power': SCHEDULE, 'schedule_set_current': SCHEDULE, 'cancel_schedule': SCHEDULE,
    'reserve': SCHEDULE, 'withdraw': SCHEDULE,
    'setpoint': SETPOINT,
}
#: Questions that change something: they carry a deadline on the owner's clock.
ORDERS = frozenset(op for op, needs in OPS.items() if needs != READ) - {'withdraw'}


class Access:
    """Permissions by client and battery; nothing is allowed that is not listed."""

    def __init__(self, clients: Mapping[str, Any], batteries: list[str]) -> None:
        """`clients`: client -> battery -> list of permissions. Raises ValueError with all that is wrong."""
        problems = []
        self._allowed: dict[tuple[str, str], frozenset[str]] = {}
        for client, rights in clients.items():
            if not certs.NAME.fullmatch(client):
                problems.append(f'{client!r} is not a name of a client (see `bess certs issue`)')
            if not isinstance(rights, dict) or not rights:
                problems.append(f'{client}: give its permissions per battery')
                continue
            for battery, permissions in rights.items():
                if battery not in batteries:
                    problems.append(f'{client}: {battery!r} is not among the batteries')
                if not isinstance(permissions, list) or not permissions or not set(permissions) <= set(PERMISSIONS):
                    problems.append(f'{client}: {battery}: permissions are a list of {", ".join(PERMISSIONS)}')
                    continue
                self._allowed[client, battery] = frozenset(permissions)
        if problems:
            raise ValueError('; '.join(problems))

    def refusal(self, client: str, battery: str, op: str) -> str:
        """Why this may not be asked; '' when it may. Says no more about batteries that the client may not see."""
        needs = OPS.get(op)
        if needs is None:
            return f'there is no question {op[:40]!r}'
        allowed = self._allowed.get((client, battery))
        if allowed is None:
            return f'permission denied: {client} has no rights on a battery {battery!r} here'
        if needs not in allowed:
            return (f'permission denied: needs {needs!r} on battery {battery} '
                    f'({client} has {", ".join(sorted(allowed))})')
        return ''


def lateness(now: float, given: float, within: float) -> str:
    """Why an order is too old to be acted on; '' when it is not. `given` is on the clock of `now`."""
    if isnan(given) or not 0.0 < within <= 3600.0:
        return 'an order needs the time at which it was given and how long it holds'
    age = now - given
    return '' if age < within else f'arrived {age:.1f} s old, after its deadline of {within:g} s'


class Bucket:
    """Rate limit: `burst` at once, `rate` per s in the long run."""

    __slots__ = ('_at', '_burst', '_left', '_rate')

    def __init__(self, rate: float, burst: float) -> None:
        self._rate, self._burst, self._left, self._at = rate, burst, burst, 0.0

    def take(self, now: float) -> bool:
        """Whether one more fits in."""
        self._left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


class Remembered:
    """Answers to requests that changed something, by id, so that a repeated request is not done twice.

    The oldest are forgotten beyond `size`; schedules are remembered by the battery itself, too, over restarts.
    """

    def __init__(self, size: int = 1000) -> None:
        self._size = size
        self._answers: OrderedDict[str, tuple[str, Any]] = OrderedDict()
        self._withdrawn: OrderedDict[str, None] = OrderedDict()

    def get(self, key: str, question: str) -> tuple[Any, str]:
        """(answer given before or None, reason for refusing or '')."""
        if key in self._withdrawn:
            return None, 'the request was withdrawn by the one who made it'
        before = self._answers.get(key)
        if before is None:
            return None, ''
        if before[0] != question:
            return None, 'another request had the same id'
        return before[1], ''

    def put(self, key: str, question: str, answer: Any) -> None:
        """Remember an answer."""
        self._answers[key] = (question, answer)
        if len(self._answers) > self._size:
            self._answers.popitem(last=False)

    def withdraw(self, key: str) -> None:
        """From now on a request with this id is refused, should it still arrive."""
        self._answers.pop(key, None)
        self._withdrawn[key] = None
        if len(self._withdrawn) > self._size:
            self._withdrawn.popitem(last=False)
