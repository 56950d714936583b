"""Reading a Modbus device that a profile describes: points in groups, in few requests, with their ages."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf, isnan, nan
from typing import Any, ClassVar

from bess_core.params import param
from bess_core.values import Identity
from bess_drivers.device import BadFrame, BadValue, Counters, Refused, Role
from bess_drivers.modbus.block_decoder import BlockDecoder
from bess_drivers.modbus.image import Block, Registers, blocks, function_of, number_of, start_of
from bess_drivers.modbus.link import ModbusLink
from bess_drivers.profiles.assemble import derive
from bess_drivers.profiles.csv_map import load_device
from bess_drivers.profiles.model import FAST, ONCE, Detect, ModbusPlace, Point

SLOW_AGES = 3.0  # a slow point counts as not known after so many of its periods
FORGET_S = 1.0  # and not before so long
SHOWN = 5  # records of a point that people are shown


@dataclass(frozen=True)
class ProfileParams:
    """Settings of one device that a profile describes."""

    address: str = param('', doc='tcp://host:port or rtu:/dev/ttyUSB0?baud=9600&parity=N&stopbits=1')
    profile: str = param('', doc='name of an installed profile, or path of a profile (.yaml) or point map (.csv)')
    registers: str = param('', doc='for a point map (.csv): the profile whose points it names')
    topic: str = param('', doc='for a point map (.csv) with points of several devices: the topic_prefix of this one')
    unit: int = param(1, doc='Modbus unit id', low=0, high=255)
    timeout_s: float = param(0.5, 's', 'how long to wait for an answer', low=0.01, high=60.0)
    invert: bool = param(False, doc='wiring or current transformers face the other way: all directions turn around')
    word_order: str = param('', doc='of values of several registers; empty = as the profile says',
                            choices=['', 'high_first', 'low_first'])
    notation: str = param('', doc='how the addresses of the profile are meant (see profiles.md); empty = as it says',
                          choices=['', 'plain', 'modicon'])
    security_code: int = param(0, doc='number that unlocks writing, for devices that need one; 0 = none', low=0,
                               high=0xFFFFFFFF)
    max_registers: int = param(0, doc='most registers of one read; 0 = as the profile says', low=0, high=125)
    check_model: bool = param(True, doc='refuse a device whose id registers are not those of the profile')
    heartbeat: bool = param(True, doc='serve the heartbeat of the device, where the profile has one')
    rated_power: float = param(0.0, 'W', 'for devices that take shares of it; 0 = not given', low=0.0, high=1e9)
    rated_current: float = param(0.0, 'A', 'for devices that take shares of it; 0 = not given', low=0.0, high=1e6)
    rated_voltage: float = param(0.0, 'V', 'for devices that take shares of it; 0 = not given', low=0.0, high=1e5)


class ProfileReader:
    """Reads the points of a device in groups, in few requests. Raises only `DeviceError`s."""

    Params: ClassVar[type] = ProfileParams
    role: ClassVar[Role]
    shares_link: ClassVar[bool] = True  # units on one port use one connection

    def __init__(self, params: ProfileParams, read_only: bool = False, *, link: ModbusLink | None = None,
                 clock: Callable[[], float] = time.monotonic) -> None:
        self.params = params
        self.profile = load_device(params.profile, params.registers, params.topic)
        self._check()
        self.link = link or ModbusLink(params.address, timeout_s=params.timeout_s, read_only=read_only)
        self._read_only, self._clock = read_only, clock
        changed = {k: v for k in ('word_order', 'notation') if (v := getattr(params, k))}
        self._section = replace(self.profile.modbus, **changed)
        self._absent: set[str] = set()  # optional points that the device refused
        self.history: dict[str, deque[tuple[float, Any]]] = {
            n: deque(maxlen=p.keys.keep) for n, p in self.profile.points.items() if p.keys.keep > 1}
        self._prepare()
        self._forget()
        self._blocks: dict[str, list[Block]] = {}
        ages = {n: p.keys.max_age or self._default_age(p) for n, p in self.profile.points.items()}
        self._max_ages = {n: age for n, age in ages.items() if age < inf}  # s, of what is forgotten at all
        self._decoders: dict[Block, BlockDecoder] = {}
        self._plan()

    def _prepare(self) -> None:
        """What a subclass holds; before the first `_forget`."""

    def _check(self) -> None:
        """Raise ValueError for settings that do not fit the profile."""
        profile, p = self.profile, self.params
        if profile.head.transport != 'modbus':
            raise ValueError(f'profile {profile.name} is for {profile.head.transport}, not for modbus')
        if profile.role is not self.role:
            raise ValueError(f'profile {profile.name} describes a {profile.role.value}: use type '
                             f'modbus_{profile.role.value}')
        if profile.head.template:
            raise ValueError(f'profile {profile.name} is a template: its maker publishes no addresses. Make a profile '
                             f'with "extends: {profile.name}" and the addresses of your device')
        for point in profile.points.values():
            if point.keys.per and not getattr(p, point.keys.per) > 0.0:
                raise ValueError(f'{point.keys.per} is missing: {point.name} of profile {profile.name} is a share '
                                 f'of it')

    def _forget(self) -> None:
        self._registers = Registers()
        self._numbers: dict[str, Any] = {}
        self._values: dict[str, Any] = {}
        self._times: dict[str, float] = {}
        self._due: dict[tuple[str, int], float] = {}
        self._undated: set[str] = set()  # read at a time that `identify` is not told: dated by the next poll
        self._absent.clear()

    def _plan(self) -> None:
        groups: dict[str, list[Point]] = {}
        for point in self.profile.points.values():
            if point.readable and point.name not in self._absent:
                groups.setdefault(point.keys.poll, []).append(point)
        self._blocks = {g: blocks(pts, self._section, self.params.max_registers) for g, pts in groups.items()}
        self._decoders = {b: self._decoder(b) for members in self._blocks.values() for b in members}

    def _decoder(self, block: Block) -> BlockDecoder:
        return BlockDecoder(block, self._section, self._base, self.params.invert)

    # -- Device ----------------------------------------------------------------------------------

    def open(self) -> None:
        """Connect. Raises `Disconnected`."""
        self._forget()
        self._plan()
        self.link.open()

    def close(self) -> None:
        """Disconnect."""
        self.link.close()

    @property
    def counters(self) -> Counters:
        """Requests on the wire."""
        return self.link.counters

    def ages(self, now: float) -> dict[str, float]:
        """Age of each point in s; infinity = never read."""
        return {n: now - self._times.get(n, -inf) for n, p in self.profile.points.items() if p.readable}

    @property
    def shown(self) -> dict[str, str]:
        """The newest records of the points that keep several (`keep`, `buffer_length`), for people."""
        return {f'records of {name}': f'{len(kept)} of {kept.maxlen}: ' + ' '.join(
            f'{v:.6g}' if isinstance(v, float) else str(v) for _, v in [*kept][-SHOWN:])
            for name, kept in self.history.items()}

    def identify(self) -> Identity:
        """Check the id registers, read what is read once, and every slow point for the first time."""
        if self.params.check_model:
            for problem in filter(None, (self._detect_problem(d) for d in self.profile.detect)):
                raise BadValue(f'this is no {self.profile.head.title}: {problem}')
        return self._identity()

    def _identity(self) -> Identity:
        for group in self._blocks:
            if group != FAST:
                self._read_group(group, nan)
        shown = {key: self._values.get(name, '') for key, name in self.profile.identity.items()}
        text = {key: f'{v:.10g}' if isinstance(v, float) else str(v) for key, v in shown.items()}
        for key, value in text.items():
            point = self.profile.points[self.profile.identity[key]]
            number = self._numbers.get(point.name)
            if point.names and isinstance(number, (int, float)) and int(number) in point.names:
                text[key] = point.names[int(number)]
            elif value == 'nan':
                text[key] = ''
        head = self.profile.head
        return Identity(**{'manufacturer': head.manufacturer, 'model': head.model or head.title, **text})

    def _detect_problem(self, detect: Detect) -> str:
        place: ModbusPlace = detect.place
        function, start = function_of(place, self._section), start_of(place, self._section)
        try:
            words = self.link.read(self.params.unit, function, start, place.span)
        except Refused:
            if detect.expect.optional:
                return ''
            raise
        number = number_of(words, place, self._section)
        e = detect.expect
        if e.contains:
            return '' if e.contains.lower() in str(number).lower() else f'register {place.address} says {number!r}'
        fits = number in e.equals if e.equals else e.between[0] <= number <= e.between[1]
        return '' if fits else f'register {place.address} holds {number}'

    # -- reading ---------------------------------------------------------------------------------

    def _poll(self, now: float) -> dict[str, Any]:
        """Values after reading the group `fast`; NaN for what is too old to be known."""
        self._read_group(FAST, now)
        self._date(now)
        values = dict(self._values)
        for name, most in self._max_ages.items():
            if now - self._times.get(name, now) > most:
                values[name] = nan if not isinstance(values[name], tuple) else ()
        derive(self.profile, values)
        return values

    def _date(self, now: float) -> None:
        """Give what `identify` read the time of this poll, which follows it at once."""
        if self._undated:
            self._times.update(dict.fromkeys(self._undated, now))
            self._undated.clear()
            for group, members in self._blocks.items():
                if group not in (FAST, ONCE):
                    self._due.update({(group, i): now + self.profile.polls[group] for i in range(len(members))})

    def _default_age(self, point: Point) -> float:
        period = self.profile.period(point.keys.poll, 0.0)
        return max(SLOW_AGES * period, FORGET_S) if point.keys.poll not in (FAST, ONCE) else inf

    def read_slow(self, now: float) -> float:
        """Read the slow block that is due for the longest time, if one is; the time (s) of the next one.

        One request at most, so that a slow group never keeps the control points of the bus waiting.
        """
        times = {(g, i): self._due.get((g, i), -inf) for g, members in self._blocks.items() if g not in (FAST, ONCE)
                 for i in range(len(members))}
        if not times:
            return inf
        key = min(times, key=lambda k: times[k])
        if times[key] <= now:
            period = self.profile.polls[key[0]]
            self._due[key] = now + period
            self._read_block(self._blocks[key[0]][key[1]], now)
            times[key] = now + period
        return min(times.values())

    def _read_group(self, group: str, now: float) -> None:
        for block in list(self._blocks.get(group, ())):
            self._read_block(block, now)

    def _read_block(self, block: Block, now: float) -> None:
        at = now if not isnan(now) else -inf
        decoder = self._decoders.get(block) or self._decoder(block)  # of a plan that has just been replaced
        try:
            words = self._fetch(block)
        except Refused:
            self._find_refused(block)
            for point in block.points:
                if point.name not in self._absent:
                    self._take(point, at)
                else:
                    self._numbers.pop(point.name, None)
                    self._values.pop(point.name, None)
            return
        numbers, values = decoder.decode(words)
        self._numbers.update(numbers)
        self._values.update(values)
        self._stamp(decoder.names, at)
        for point in decoder.rest:
            self._take(point, at)

    def _fetch(self, block: Block) -> list[int]:
        if self._section.pause:
            time.sleep(self._section.pause)
        words = self.link.read(self.params.unit, block.function, block.span.start, block.span.count)
        if len(words) != block.span.count:
            raise BadFrame(f'{len(words)} registers instead of {block.span.count} at {block.span.start}')
        decoder = self._decoders.get(block)
        if decoder is None or decoder.rest:
            self._registers.put(block.function, block.span.start, words)
        return words

    def _find_refused(self, block: Block) -> None:
        """A block was refused: read its points one by one and plan anew.

        Optional points that are refused are not there. When none is, the device refuses the registers in
        between, and nothing is read over gaps any more. Raises `Refused` for a point that must be there.
        """
        before = len(self._absent)
        for point in block.points:
            for part in blocks([point], self._section, self.params.max_registers):
                try:
                    self._fetch(part)
                except Refused:
                    if not point.keys.optional:
                        raise
                    self._absent.add(point.name)
        if len(self._absent) == before:
            self._section = replace(self._section, max_gap=0)
        self._plan()

    def _take(self, point: Point, at: float) -> None:
        number = self._registers.number(point, self._section)
        if number is None:
            return  # a long array: the rest comes with the next block
        if not point.keys.scale_factor:
            value: Any = self._decoded(point, number, 0.0)
        else:
            exponent = self._numbers.get(point.keys.scale_factor, nan)
            value = nan if isnan(exponent) else self._decoded(point, number, exponent)
        self._numbers[point.name], self._values[point.name] = number, value
        self._stamp((point.name,), at)

    def _stamp(self, names: Sequence[str], at: float) -> None:
        """These points were just read; `at` -inf: at a time that is not known here."""
        if at > -inf:
            self._times.update(dict.fromkeys(names, at))
        else:
            self._undated.update(names)
        for name in self.history.keys() & set(names) if self.history else ():
            self.history[name].append((at, self._values[name]))

    def _decoded(self, point: Point, number: Any, exponent: float) -> Any:
        if isinstance(number, str):
            return number
        base, inverted = self._base(point), self.params.invert
        if isinstance(number, tuple):
            return tuple(point.value(n, exponent, base, inverted) for n in number)
        return point.value(number, exponent, base, inverted)

    def _base(self, point: Point) -> float:
        return float(getattr(self.params, point.keys.per)) if point.keys.per else 1.0

    def _ask(self, point: Point) -> Any:
        """The present number of a point."""
        block = blocks([point], self._section)[0]
        self._fetch(block)
        return self._registers.number(point, self._section)
