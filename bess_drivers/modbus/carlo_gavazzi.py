"""Carlo Gavazzi energy meters EM24, EM1xx, EM3xx and EM5xx over Modbus TCP or RTU. Only ever reads.

Registers: OpenEMS @0e4ea888, victronenergy/dbus-modbus-client @fe12d8c, EM500_CPP_Mod_V1.3 as cited
by lerebel103/carlo-gavazzi-em540-bridge @e0d6d96; id codes of EM1xx and EM3xx:
victronenergy/dbus-cgwacs @4ff1726, measurement mode (0x1103): the same @003f34f0. Values are 32 bit
signed, low word first, read by FC4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import copysign, inf, isnan, nan
from typing import ClassVar, NamedTuple

from bess_core.params import param
from bess_core.values import Identity, MeterReading, Quality
from bess_drivers.device import BadValue, Refused, Role
from bess_drivers.modbus.link import ModbusLink
from bess_drivers.modbus.registers import Kind, decode, text

ID_CODE = 0x000B  # only when read alone; inside a block it is the high word of V L3-L1
APPLICATION_H = 7  # the only EM24 application in which export is negative
MODE_A = 0  # EM1xx/3xx/5xx: power counts as import whatever its direction
PHASES_BY_CONFIG = {0: 3, 1: 3, 2: 2, 3: 1, 4: 3}  # 3P.n, 3P.1, 2P, 1P, 3P
MAX_ENERGY = 1e12  # Wh; beyond it a counter was misread


class Point(NamedTuple):
    """Where a value is and what one count of it means (SI)."""

    address: int
    scale: float
    kind: Kind = Kind.I32


class Block(NamedTuple):
    """Registers that are read in one request."""

    address: int
    size: int


@dataclass(frozen=True)
class Family:
    """The register table of one family. Point names: `_1` to `_3` are phases."""

    title: str
    ids: tuple[range, ...]
    front: Block
    points: Mapping[str, Point]
    energy: Block
    energy_points: Mapping[str, Point]
    serial: int
    version: int
    phases: int = 3
    phase_config: int = -1  # register; -1 = there is none
    application: int = -1
    mode: int = -1
    fine: bool = False  # has the EM5xx registers for Wh and mHz
    export_negative: bool = False  # ET112 counts export downwards from 0


def _phases(name: str, address: int, scale: float) -> dict[str, Point]:
    return {f'{name}_{n + 1}': Point(address + 2 * n, scale) for n in range(3)}


def _energy(imported: int, exported: int) -> tuple[Block, dict[str, Point]]:
    points = {'import': Point(imported, 100.0), 'export': Point(exported, 100.0)}  # 0.1 kWh
    return Block(imported, exported + 2 - imported), points


_EM24 = {
    **_phases('voltage', 0x0000, 0.1),
    **_phases('current', 0x000C, 0.001),
    **_phases('power', 0x0012, 0.1),
    'active_power': Point(0x0028, 0.1),
}
_EM3XX = {
    **_EM24,
    'apparent_power': Point(0x002A, 0.1),
    'reactive_power': Point(0x002C, 0.1),
    'frequency': Point(0x0033, 0.1, Kind.I16),
}
_EM1XX = {
    'voltage_1': Point(0x0000, 0.1),
    'current_1': Point(0x0002, 0.001),  # in doubt, hence the parameter current_scale
    'power_1': Point(0x0004, 0.1),
    'active_power': Point(0x0004, 0.1),
    'apparent_power': Point(0x0006, 0.1),
    'reactive_power': Point(0x0008, 0.1),
    'frequency': Point(0x000F, 0.1, Kind.U16),
}
_FRONT = Block(0x0000, 0x34)

FINE_FREQUENCY = Point(0x053C, 0.001)
FINE_ENERGY = Block(0x0500, 32)
FINE_ENERGY_POINTS = {
    'import': Point(0x0500, 1.0, Kind.I64),
    'export': Point(0x051C, 1.0, Kind.I64),
}

FAMILIES: dict[str, Family] = {
    'em24': Family(
        'EM24 Ethernet', (range(1648, 1654),),
        _FRONT, {**_EM24, 'frequency': Point(0x0033, 0.1, Kind.U16)}, *_energy(0x0034, 0x004E),
        serial=0x5000, version=0x0304, phase_config=0x1002, application=0xA000,
    ),
    'em24_rtu': Family(
        'EM24', (range(70, 74),),
        Block(0x0000, 0x38), {**_EM24, 'frequency': Point(0x0037, 0.1, Kind.U16)},
        *_energy(0x003E, 0x005C),
        serial=0x1300, version=0x0303, phase_config=0x1102, application=0x1101,
    ),
    'em340': Family(
        'EM3xx', (range(330, 346),), _FRONT, _EM3XX, *_energy(0x0034, 0x004E),
        serial=0x5000, version=0x0302, phase_config=0x1002, mode=0x1103,
    ),
    'em530': Family(
        'EM530', (range(2096, 2097), range(1956, 1957)), _FRONT, _EM3XX, *_energy(0x0034, 0x004E),
        serial=0x5000, version=0x0302, phase_config=0x1002, mode=0x1103, fine=True,
    ),
    'em540': Family(
        'EM540', (range(1744, 1764),), _FRONT, _EM3XX, *_energy(0x0034, 0x004E),
        serial=0x5000, version=0x0302, phase_config=0x1002, mode=0x1103, fine=True,
    ),
    'em111': Family(
        'EM1xx', (range(102, 122),), Block(0x0000, 0x10), _EM1XX, *_energy(0x0010, 0x0020),
        serial=0x5000, version=0x0303, phases=1, mode=0x1103, export_negative=True,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class CarloGavazziParams:
    """Settings of one meter."""

    address: str = param(
        '', doc='tcp://host:port or rtu:/dev/ttyUSB0?baud=9600&parity=N&stopbits=1'
    )
    unit: int = param(1, doc='Modbus unit id', low=0, high=247)
    timeout_s: float = param(0.5, 's', 'how long to wait for an answer', low=0.01, high=10.0)
    model: str = param('auto', doc='family; auto = from the id code', choices=('auto', *FAMILIES))
    phases: int = param(
        0, doc='phases that are connected; 0 = as the meter is set up', low=0, high=3
    )
    invert: bool = param(False, doc='current transformers or wiring face the other way')
    current_scale: float = param(
        0.0, 'A', 'current of one count; 0 = 0.001 (sources disagree on 0.001 or 0.1 for EM1xx)',
        low=0.0, high=1.0,
    )  # fmt: skip
    max_power: float = param(
        1e6, 'W', 'a larger measured power is a misread one', low=1.0, high=1e9
    )
    energy_interval_s: float = param(
        1.0, 's', 'how often the counters are read', low=0.0, high=3600.0
    )
    max_registers: int = param(
        125, doc='registers per request, for meters and gateways that take few', low=4, high=125
    )
    check_setup: bool = param(
        True, doc='refuse a meter that is no `model`, or set up to lose the sign of power'
    )


def family_of(code: int) -> str | None:
    """Name of the family of an id code; None when it is not known."""
    return next((k for k, f in FAMILIES.items() if any(code in ids for ids in f.ids)), None)


def decode_points(
    points: Mapping[str, Point], start: int, registers: list[int]
) -> dict[str, float]:
    """Values (SI) of all points of a block that begins at address `start`. Raises `BadValue`."""
    return {
        name: decode(p.kind, registers, p.address - start, low_first=True) * p.scale
        for name, p in points.items()
    }


def _bounded(what: str, value: float, low: float, high: float) -> float:
    if not low <= value <= high:
        raise BadValue(f'{what} {value:g} is not in {low:g}..{high:g}')
    return value


def reading_from(
    values: Mapping[str, float], energy: tuple[float, float], phases: int,
    params: CarloGavazziParams, now: float,
) -> MeterReading:  # fmt: skip
    """A checked reading from decoded values (register signs: + = import). Raises `BadValue`.

    Currents get the sign of their phase's power: EM24 and EM5xx give magnitudes. Frequency 0 (no
    voltage) becomes NaN. The power factor is P/S, so that its sign is that of the power.
    """
    sign = -1.0 if params.invert else 1.0
    limit = params.max_power
    current_scale = params.current_scale / 0.001 if params.current_scale else 1.0
    voltage, current, power = [nan] * 3, [nan] * 3, [nan] * 3
    for i in range(phases):
        n = i + 1
        voltage[i] = _bounded(f'voltage L{n} (V)', values[f'voltage_{n}'], 0.0, 1000.0)
        power[i] = sign * _bounded(f'power L{n} (W)', values[f'power_{n}'], -limit, limit) + 0.0
        current[i] = copysign(values[f'current_{n}'] * current_scale, power[i])
    active = sign * _bounded('power (W)', values['active_power'], -limit, limit) + 0.0
    reactive, apparent, factor = (
        values.get('reactive_power', nan),
        values.get('apparent_power', nan),
        nan,
    )
    if not isnan(reactive):
        reactive = sign * _bounded('reactive power (var)', reactive, -limit, limit) + 0.0
    if not isnan(apparent):
        apparent = abs(_bounded('apparent power (VA)', apparent, -limit, limit))
        factor = max(-1.0, min(1.0, active / apparent)) if apparent > 0 else nan
    frequency = values['frequency']
    frequency = _bounded('frequency (Hz)', frequency, 40.0, 70.0) if frequency else nan
    imported, exported = energy[::-1] if params.invert else energy
    return MeterReading(
        time=now, quality=Quality.OK,
        voltage=(voltage[0], voltage[1], voltage[2]),
        current=(current[0], current[1], current[2]),
        phase_power=(power[0], power[1], power[2]),
        active_power=active, reactive_power=reactive, apparent_power=apparent, power_factor=factor,
        frequency=frequency, energy_import=imported, energy_export=exported,
    )  # fmt: skip


class CarloGavazziMeter:
    """A `MeterDevice`. Never writes, so its own link is read-only whatever `read_only` says.

    Meters on one serial line share a `link`. Energy counters are up to `energy_interval_s` older
    than the rest of a reading. `sequence` stays 0. Raises only `DeviceError`, and ValueError for
    bad settings.
    """

    Params: ClassVar[type] = CarloGavazziParams
    role: ClassVar[Role] = Role.METER
    shares_link: ClassVar[bool] = True
    never_writes: ClassVar[bool] = True

    def __init__(
        self, params: CarloGavazziParams, read_only: bool = False, *, link: ModbusLink | None = None
    ) -> None:
        if params.model != 'auto' and params.model not in FAMILIES:
            raise ValueError(f'model {params.model!r} is none of auto, {", ".join(FAMILIES)}')
        self.params = params
        self.link = link or ModbusLink(params.address, timeout_s=params.timeout_s, read_only=True)
        self._family: Family | None = None
        self._phases = 3
        self._fine_energy = self._fine_frequency = False
        self._counters = (nan, nan)
        self._counters_time = self._front_time = -inf

    def open(self) -> None:
        """Connect. Raises `Disconnected`."""
        self._family = None
        self._counters, self._counters_time = (nan, nan), -inf
        self.link.open()

    def close(self) -> None:
        """Disconnect."""
        self.link.close()

    def identify(self) -> Identity:
        """Find the family, check the setup. Raises `BadValue` for a meter that cannot be used."""
        code = self._optional(ID_CODE) if self.params.model != 'auto' else self._one(ID_CODE)
        name = family_of(code) if code is not None else None
        if self.params.model != 'auto':
            if self.params.check_setup and name not in (None, self.params.model):
                raise BadValue(
                    f'id code {code} is a {name}, not the configured {self.params.model}'
                )
            name = self.params.model
        if name is None:
            raise BadValue(
                f'id code {code} is not a known Carlo Gavazzi meter; set `model` if it is one'
            )
        family = FAMILIES[name]
        if self.params.check_setup:
            self._check_setup(family)
        self._phases = self._connected_phases(family)
        self._fine_energy = family.fine and self._available(FINE_ENERGY)
        self._fine_frequency = family.fine and self._available(Block(FINE_FREQUENCY.address, 2))
        version = self._optional(family.version)
        serial = self._text(family.serial)
        self._counters_time = -inf
        self._family = family
        return Identity(
            'Carlo Gavazzi', family.title if code is None else f'{family.title} ({code})', serial,
            '' if version is None else f'{version >> 12}.{version >> 8 & 15}.{version & 255}',
        )  # fmt: skip

    def read(self, now: float) -> MeterReading:
        """One poll: the front block, and on EM5xx the fine frequency. Raises `DeviceError`."""
        if self._family is None:
            self.identify()
        family = self._family
        assert family is not None
        values = decode_points(family.points, family.front.address, self._block(family.front))
        if self._fine_frequency:
            block = Block(FINE_FREQUENCY.address, 2)
            fine = decode_points({'frequency': FINE_FREQUENCY}, block.address, self._block(block))
            values |= fine
        self._front_time = now
        # A negative age: the clock was set back.
        if not 0 <= now - self._counters_time < self.params.energy_interval_s:
            self._counters = self._read_counters(family)
            self._counters_time = now
        return reading_from(values, self._counters, self._phases, self.params, now)

    def ages(self, now: float) -> dict[str, float]:
        """Seconds since the measurement and the energies were read."""
        return {'measurement': now - self._front_time, 'energies': now - self._counters_time}

    def _read_counters(self, family: Family) -> tuple[float, float]:
        block, points = family.energy, family.energy_points
        if self._fine_energy:
            block, points = FINE_ENERGY, FINE_ENERGY_POINTS
        energy = decode_points(points, block.address, self._block(block))
        exported = abs(energy['export']) if family.export_negative else energy['export']
        return (
            _bounded('imported energy (Wh)', energy['import'], 0.0, MAX_ENERGY),
            _bounded('exported energy (Wh)', exported, 0.0, MAX_ENERGY),
        )

    def _check_setup(self, family: Family) -> None:
        if family.application >= 0:
            application = self._one(family.application)
            if application != APPLICATION_H:
                raise BadValue(
                    f'the meter runs application {application}; set it to H ({APPLICATION_H})'
                )
        if family.mode >= 0 and self._optional(family.mode) == MODE_A:
            raise BadValue(
                'the meter measures in mode A, which counts export as import; set it to B or C'
            )

    def _connected_phases(self, family: Family) -> int:
        if self.params.phases or family.phase_config < 0:
            return min(self.params.phases or family.phases, family.phases)
        config = self._optional(family.phase_config)
        if config is None:
            return family.phases
        if config not in PHASES_BY_CONFIG:
            raise BadValue(f'unknown measuring system {config} in the meter; set `phases`')
        return PHASES_BY_CONFIG[config]

    def _block(self, block: Block) -> list[int]:
        """A block, in pieces of whole 64 bit values when the meter takes few registers at once."""
        most = self.params.max_registers
        piece = most // 4 * 4 if block.size > most else most
        registers: list[int] = []
        while len(registers) < block.size:
            count = min(piece, block.size - len(registers))
            registers += self.link.read_input(
                self.params.unit, block.address + len(registers), count
            )
        return registers

    def _one(self, address: int) -> int:
        return self.link.read_input(self.params.unit, address, 1)[0]

    def _optional(self, address: int) -> int | None:
        """A register that some firmwares do not have: None when the meter refuses it."""
        try:
            return self._one(address)
        except Refused:
            return None

    def _available(self, block: Block) -> bool:
        try:
            self._block(block)
        except Refused:
            return False
        return True

    def _text(self, address: int) -> str:
        try:
            return text(self._block(Block(address, 7)))
        except Refused:
            return ''
