"""What a profile says, as frozen dataclasses. The fields are the keys of its YAML file (see docs/profiles.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, isnan, nan
from pathlib import Path
from typing import Any

from bess_core.params import param
from bess_core.values import Severity
from bess_drivers.device import BadValue, Role

from .roles import IO_KINDS
from .units import POSITIVE, UNITS

FAST, ONCE = 'fast', 'once'  # groups that need no entry under `polls`


class ProfileError(ValueError):
    """A profile that cannot be used; `messages` holds one line per mistake."""

    def __init__(self, messages: Sequence[str]) -> None:
        self.messages = tuple(messages)
        super().__init__('\n'.join(messages))


@dataclass(frozen=True)
class Head:
    """Top of a profile."""

    title: str = param(doc='what people call the device')
    role: str = param(doc='what the device is', choices=[r.value for r in Role])
    transport: str = param(doc='how it is reached', choices=['modbus', 'can'])
    source: str = param(doc='where addresses and signs were read')
    manufacturer: str = param('', doc='maker, for the identity')
    model: str = param('', doc='model, for the identity')
    faults_prefix: str = param('', doc='first part of its fault ids; empty = name of the profile')
    template: bool = param(False, doc='lacks what the maker does not publish: only to be extended')


@dataclass(frozen=True)
class Verified:
    """One thing about a profile that was checked, and against what."""

    what: str = param(doc='e.g. "registers and signs"')
    against: str = param(doc='what it was checked against', choices=[
        'published frame', 'vendor document', 'independent implementation', 'own simulator only', 'nothing'])
    by: str = param('', doc='which document, which implementation')


@dataclass(frozen=True)
class PointKeys:
    """Keys of every point, whatever its transport."""

    scale: float = param(1.0, doc='value = number of the device * scale + offset, in `unit`')
    offset: float = param(0.0, doc='see scale; in `unit`')
    scale_factor: str = param('', doc='point whose number n multiplies by 10^n (SunSpec style)')
    unit: str = param('', doc="unit of the value in the device's document; empty = that of the role")
    positive: str = param('', doc='what a positive number means, for powers and currents',
                          choices=['', *POSITIVE])
    per: str = param('', doc='the value is a share of this setting of the site file',
                     choices=['', 'rated_power', 'rated_current', 'rated_voltage'])
    bits: str = param('', doc='only these bits count, e.g. 8-15, 3')
    enum: dict = param({}, doc='number of the device -> name')
    not_implemented: tuple[int, ...] = param((), doc='raw numbers that mean "not known"')
    range: tuple[float, ...] = param((), doc='[lowest, highest] plausible value (SI, our sign)')
    outside: str = param('refuse', doc='a value outside of `range` makes the poll fail, or counts as not known',
                         choices=['refuse', 'unknown'])
    access: str = param('r', doc='r = read, rw = read and write, w = only written', choices=['r', 'rw', 'w'])
    poll: str = param(FAST, doc='poll group: fast = every poll, once = after connecting, or one of `polls`')
    optional: bool = param(False, doc='not every model has it: refused means not known')
    max_age: float = param(0.0, 's', 'older values count as not known; 0 = three periods of the poll group', low=0.0)
    kind: str = param('', doc='I/O modules: what the point is', choices=['', *IO_KINDS])
    safe: float = param(0.0, doc='I/O modules: value of an output when nobody leases it (NaN = leave as it is)')
    latched: bool = param(False, doc='I/O modules: the output may be set without a lease')
    write_range: tuple[float, ...] = param((), doc='[lowest, highest] number that the device takes (before scaling)')
    rewrite: bool = param(True, doc='false: an unchanged number is not written again (flash memory)')
    min_write_interval: float = param(0.0, 's', 'a changed number waits so long after the last write; stops do not',
                                      low=0.0, high=86400.0)
    writes_per_day: float = param(0.0, doc='most writes per day (flash memory); 0 = no limit', low=0.0)
    deadband: float = param(0.0, doc='smaller changes (SI) are not written, except to zero', low=0.0)
    write_attempts: int = param(1, doc='how often a refused or unanswered write is tried', low=1, high=100)
    write_wait: float = param(0.9, 's', 'between two attempts; the bus goes on meanwhile', low=0.0, high=60.0)
    keep: int = param(1, doc='number of past values that are kept', low=1, high=100_000)
    extra: bool = param(False, doc='read and shown in diagnostics although the role has no such value')


@dataclass(frozen=True)
class ModbusKeys:
    """Section `modbus`: what holds for all points that do not say otherwise."""

    function: int = param(3, doc='function code of reads: 1 coils, 2 discrete inputs, 3 holding, 4 input registers',
                          choices=[1, 2, 3, 4])
    write_function: int = param(0, doc='function code of writes; 0 = 16 (15 for coils)', choices=[0, 5, 6, 15, 16])
    word_order: str = param('high_first', doc='of values of several registers', choices=['high_first', 'low_first'])
    address_base: int = param(0, doc='number in the document of the register that is 0 on the wire', low=0, high=65535)
    notation: str = param('plain', doc='modicon: 30001 is input register 0, 40001 holding register 0 (1 and 10001: '
                                       'coil and discrete input 0)', choices=['plain', 'modicon'])
    max_registers: int = param(125, doc='most registers of one read', low=1, high=125)
    max_gap: int = param(16, doc='most registers without a point that a read may pass over', low=0, high=124)
    holes: tuple[tuple[int, int], ...] = param((), doc='[first, last] addresses that no read may touch')
    pause: float = param(0.0, 's', 'silence that the device needs between two requests', low=0.0, high=5.0)

    def wire(self, address: int) -> int:
        """Address on the wire of an address as the document writes it."""
        if self.notation == 'modicon':
            return address % (100_000 if address >= 100_000 else 10_000) - 1
        return address - self.address_base

    def read_function(self, place: ModbusPlace) -> int:
        """Function code with which a point is read."""
        if place.function or self.notation != 'modicon':
            return place.function or self.function
        leading = place.address // (100_000 if place.address >= 100_000 else 10_000)
        return {0: 1, 1: 2, 3: 4}.get(leading, 3)


@dataclass(frozen=True)
class ModbusPlace:
    """Where a point is on Modbus."""

    address: int = param(doc='register or coil, as the document numbers it (see address_base)', low=0, high=470_000)
    function: int = param(0, doc='function code of the read; 0 = that of the section', choices=[0, 1, 2, 3, 4])
    write_function: int = param(0, doc='function code of the write; 0 = that of the section',
                                choices=[0, 5, 6, 15, 16])
    type: str = param('u16', doc='of the number', choices=['bool', 'u16', 'i16', 'u32', 'i32', 'u64', 'i64', 'f32',
                                                           'text'])
    word_order: str = param('', doc='empty = that of the section', choices=['', 'high_first', 'low_first'])
    count: int = param(1, doc='so many values in a row', low=1, high=512)
    stride: int = param(0, doc='registers from one value to the next; 0 = without a gap', low=0, high=1000)
    length: int = param(8, doc='registers of a text', low=1, high=64)
    alone: bool = param(False, doc='the device answers only when this is read by itself')

    @property
    def words(self) -> int:
        """Registers (or coils) of one value."""
        return {'bool': 1, 'text': self.length}.get(self.type) or {'16': 1, '32': 2, '64': 4}[self.type[1:]]

    @property
    def step(self) -> int:
        """Registers from one value to the next."""
        return self.stride or self.words

    @property
    def span(self) -> int:
        """Registers from the first to the last of all values."""
        return (self.count - 1) * self.step + self.words


@dataclass(frozen=True)
class PollKeys:
    """A poll group."""

    every: float = param(doc='read again after this time', unit='s', low=0.0, high=86400.0)


@dataclass(frozen=True)
class FaultKeys:
    """What the bits or codes of a point mean."""

    severity: str = param('ERROR', doc='of all its faults', choices=['WARNING', 'ERROR', 'CRITICAL'])
    bits: dict = param({}, doc='bit -> name')
    codes: dict = param({}, doc='number -> name')
    any: str = param('', doc='name of the fault of any number but zero')


@dataclass(frozen=True)
class RuleKeys:
    """One rule of `states`: the first that holds decides. Without a condition it always holds."""

    state: str = param(doc='name of the state of the role')
    point: str = param('', doc='point that is looked at')
    equals: tuple[float, ...] = param((), doc='one of these numbers')
    bit: int = param(-1, doc='this bit is set', low=-1, high=63)
    not_zero: bool = param(False, doc='any number but zero')
    above: float = param(nan, doc='larger than')
    below: float = param(nan, doc='smaller than')

    def holds(self, value: float) -> bool:
        """Whether the rule applies; never for an unknown value unless it has no condition."""
        if not self.point:
            return True
        if isnan(value):
            return False
        return (value in self.equals or (self.bit >= 0 and bool(int(value) >> self.bit & 1))
                or (self.not_zero and value != 0.0) or value > self.above or value < self.below)


@dataclass(frozen=True)
class DerivedKeys:
    """A value made of others (in SI); exactly one of the four. Unknown as soon as one part is."""

    sum: tuple[str, ...] = param((), doc='points; a leading - subtracts')
    product: tuple[str, ...] = param((), doc='points')
    max: tuple[str, ...] = param((), doc='the largest of the known ones')
    min: tuple[str, ...] = param((), doc='the smallest of the known ones')


@dataclass(frozen=True)
class StepKeys:
    """One write of a sequence."""

    point: str = param(doc='what is written')
    value: Any = param(None, doc='a number, or power, charge_power, discharge_power, current, charge_current, '
                                 'reactive_power, lease, security_code, temperature, mode')
    bits: dict = param({}, doc='bit -> 0, 1, charging, discharging or running; the other bits stay')
    when: str = param('always', doc='only if', choices=['always', 'charging', 'discharging', 'idle', 'reactive'])


@dataclass(frozen=True)
class HeartbeatKeys:
    """A register that must move, or the device stops by itself."""

    point: str = param(doc='what is written')
    every: float = param(1.0, 's', 'period', low=0.05, high=3600.0)
    kind: str = param('count', doc='count up, toggle 0 and 1, write one value, or reload a countdown',
                      choices=['count', 'toggle', 'constant', 'reload'])
    first: int = param(1, doc='first number of a count', low=0)
    last: int = param(65535, doc='highest number of a count; `first` follows', low=1)
    value: int = param(1, doc='number of `constant` and `reload`')
    below: int = param(0, doc='`reload`: written when the point reads this or less')


@dataclass(frozen=True)
class ConfirmKeys:
    """How the device shows that it did as it was told."""

    point: str = param(doc='what is read')
    equals: tuple[float, ...] = param(doc='numbers that confirm')
    within: float = param(5.0, 's', 'longest wait', low=0.1, high=120.0)


@dataclass(frozen=True)
class ExpectKeys:
    """What an id register must hold; the place keys of the transport stand beside these."""

    equals: tuple[int, ...] = param((), doc='one of these numbers')
    between: tuple[int, ...] = param((), doc='[lowest, highest] number')
    contains: str = param('', doc='a text holds this, in upper or lower case')
    optional: bool = param(False, doc='devices that do not have the register are taken too')


@dataclass(frozen=True)
class Point:
    """One point with everything worked out. `raw` is the number of the device."""

    name: str
    keys: PointKeys
    place: Any  # ModbusPlace, or what the transport has instead
    factor: float = 1.0  # unit of the document -> ours, without sign
    shift: float = 0.0
    sign: float = 1.0
    directed: bool = False
    mask: int = 0  # 0 = all bits
    low_bit: int = 0
    codes: Mapping[int, float] = field(default_factory=dict)  # raw -> number of the role's enum
    names: Mapping[int, str] = field(default_factory=dict)  # raw -> name in words

    def value(self, raw: float, exponent: float = 0.0, base: float = 1.0, inverted: bool = False) -> float:
        """SI value of a number of the device; NaN when it means "not known". Raises `BadValue`.

        exponent: number of the point's `scale_factor`; base: the setting that `per` names.
        """
        k = self.keys
        if raw in k.not_implemented or isnan(raw):
            return nan
        if self.mask:
            raw = (int(raw) & self.mask) >> self.low_bit
        if self.codes:
            return self.codes.get(int(raw), 0.0) if raw == int(raw) else 0.0
        value = raw * k.scale
        if exponent:
            value *= 10.0 ** exponent
        value = ((value + k.offset) * self.factor + self.shift) * base * self.sign
        if inverted and self.directed:
            value = -value
        value += 0.0  # never -0.0
        if k.range and not k.range[0] <= value <= k.range[1]:
            if k.outside == 'unknown':
                return nan
            raise BadValue(f'{self.name} is {value:g}, outside of {k.range[0]:g} to {k.range[1]:g}')
        return value

    def raw(self, value: float, exponent: float = 0.0, base: float = 1.0, inverted: bool = False) -> float:
        """The number of the device for an SI value (not rounded). Raises `BadValue` outside of `write_range`."""
        k = self.keys
        if inverted and self.directed:
            value = -value
        if base <= 0.0:
            raise BadValue(f'{self.name} is a share of {k.per}, which is {base:g}')
        number = ((value * self.sign / base - self.shift) / self.factor - k.offset) / k.scale
        if exponent:
            number /= 10.0 ** exponent
        if k.write_range and not k.write_range[0] - 1e-9 <= number <= k.write_range[1] + 1e-9:
            raise BadValue(f'{self.name} takes {k.write_range[0]:g} to {k.write_range[1]:g}, not {number:g}')
        return number + 0.0

    @property
    def si_unit(self) -> str:
        """Unit of `value`; '' for a plain number."""
        kind = UNITS[self.keys.unit].kind if self.keys.unit in UNITS else ''
        return '' if kind == 'number' else kind

    @property
    def readable(self) -> bool:
        """Whether it is ever read."""
        return 'r' in self.keys.access

    @property
    def writable(self) -> bool:
        """Whether it may be written."""
        return 'w' in self.keys.access


@dataclass(frozen=True)
class Fault:
    """One named fault of a device."""

    point: str
    id: str
    severity: Severity
    name: str
    bit: int = -1  # -1: `code`
    code: int = 0  # 0 without a bit: any number but zero
    zero: bool = False  # present when the point is 0


@dataclass(frozen=True)
class Detect:
    """An id register and what it must hold."""

    place: Any
    expect: ExpectKeys


@dataclass(frozen=True)
class Profile:
    """A device as data, checked."""

    name: str
    path: Path
    head: Head
    role: Role
    points: Mapping[str, Point]
    modbus: ModbusKeys = ModbusKeys()
    section: Any = None  # keys of the section of another transport
    polls: Mapping[str, float] = field(default_factory=dict)  # group -> s
    verified: tuple[Verified, ...] = ()
    notes: tuple[str, ...] = ()
    constants: Mapping[str, float] = field(default_factory=dict)  # value of the role -> SI
    derived: Mapping[str, DerivedKeys] = field(default_factory=dict)
    states: tuple[RuleKeys, ...] = ()
    faults: tuple[Fault, ...] = ()
    detect: tuple[Detect, ...] = ()
    identity: Mapping[str, str] = field(default_factory=dict)  # serial, version, model -> point
    order: tuple[StepKeys, ...] = ()
    start: tuple[StepKeys, ...] = ()
    stop: tuple[StepKeys, ...] = ()
    contactor: Mapping[str, tuple[StepKeys, ...]] = field(default_factory=dict)
    grid_forming: Mapping[str, tuple[StepKeys, ...]] = field(default_factory=dict)  # island, grid
    confirm: Mapping[str, ConfirmKeys] = field(default_factory=dict)
    climate: tuple[StepKeys, ...] = ()
    heartbeat: HeartbeatKeys | None = None

    def period(self, group: str, poll_s: float) -> float:
        """Seconds between two reads of a poll group, for a driver that polls every `poll_s`."""
        return {FAST: poll_s, ONCE: inf, **self.polls}[group]
