"""Analog values of the computer (role io): converters (IIO), thermistors, 1-wire and CPU temperatures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import nan
from pathlib import Path
from typing import ClassVar

from bess_core.params import param
from bess_core.values import Alarm, Identity, IoReading, Quality, Severity
from bess_drivers.device import BadChecksum, BadValue, DeviceError, Disconnected, Role
from bess_drivers.io.ntc import SteinhartHart, divider
from bess_drivers.io.pins import words
from bess_drivers.io.sysfs import read_number, read_text
from bess_drivers.output_gate import OutputRule
from bess_drivers.serial.bms_reading import checked

NUMBERS = ('scale', 'offset', 'supply', 'series', 'beta', 'r25', 'a', 'b', 'c')
FAMILIES = ('10-', '22-', '28-', '3b-', '42-')  # of 1-wire thermometers
POWER_ON = 85.0  # degC: what a 1-wire sensor says before its first conversion


@dataclass(frozen=True)
class Channel:
    """One value: a file, how to scale it, and what it means."""

    name: str
    place: str
    unit: str = ''
    scale: float = 1.0
    offset: float = 0.0
    ntc: SteinhartHart | None = None
    supply: float = 3.3  # V
    series: float = 10_000.0  # Ohm
    pull_up: bool = True


def parse_channel(text: str) -> Channel:
    """`room=in_voltage0 ntc beta=3950 r25=10000 series=10000 supply=3.3`. Raises ValueError."""
    if not text.split():
        raise ValueError('an empty channel')
    name, place, more = words(text)
    numbers = {}
    for key in [k for k in more if k in NUMBERS]:
        try:
            numbers[key] = float(more.pop(key))
        except ValueError:
            raise ValueError(f'{text!r}: {key} is no number') from None
    ntc = more.pop('ntc', None) is not None
    pull_up = more.pop('pull_down', None) is None
    unit = more.pop('unit', 'degC' if ntc else 'V' if place.startswith('in_voltage') else '')
    if more:
        raise ValueError(f'{text!r}: unknown {sorted(more)[0]!r}; there is ntc, pull_down, unit=, '
                         + ', '.join(f'{n}=' for n in NUMBERS))
    curve = None
    if ntc:
        coefficients = [numbers.pop(k, nan) for k in 'abc']
        if all(v == v for v in coefficients):
            curve = SteinhartHart(*coefficients)
        elif any(v == v for v in coefficients):
            raise ValueError(f'{text!r}: of a, b and c all three are needed')
        else:
            curve = SteinhartHart.from_beta(numbers.pop('beta', 3950.0), numbers.pop('r25', 10_000.0))
    unused = set(numbers) & ({'beta', 'r25', 'a', 'b', 'c'} | (set() if ntc else {'supply', 'series'}))
    if unused:
        raise ValueError(f'{text!r}: {sorted(unused)[0]} has no use here')
    return Channel(name, place, unit, ntc=curve, pull_up=pull_up, **numbers)


class _Reader:
    """What all here share: nothing is written, each value for itself."""

    role: ClassVar[Role] = Role.IO

    def __init__(self) -> None:
        self.root = Path()

    def open(self) -> None:
        """Raises `Disconnected`."""
        if not self.root.is_dir():
            raise Disconnected(f'{self.root} is not there')

    def close(self) -> None:
        """Nothing is held."""

    def output_rules(self) -> dict[str, OutputRule]:
        """None."""
        return {}

    def _each(self, sources: dict[str, Callable[[], float]]) -> tuple[dict[str, float], tuple[Alarm, ...]]:
        """Values with NaN and an alarm for what cannot be read. Raises the first error when nothing can."""
        values: dict[str, float] = {}
        failed: dict[str, DeviceError] = {}
        for name, source in sources.items():
            try:
                values[name] = source()
            except DeviceError as error:
                values[name], failed[name] = nan, error
        if failed and len(failed) == len(sources):
            raise next(iter(failed.values()))
        text = '; '.join(f'{name}: {error}' for name, error in failed.items())
        return values, (Alarm('io.sensor_failed', Severity.WARNING, text),) if failed else ()


@dataclass(frozen=True)
class AnalogParams:
    """Settings of an analog/digital converter."""

    address: str = param('', doc='folder with the values, e.g. /sys/bus/iio/devices/iio:device0')
    channels: list[str] = param([], doc='one text each: name=file, then scale=, offset=, unit=, or ntc with beta=, '
                                        'r25= (or a=, b=, c=), series=, supply=, pull_down')


class AnalogInputs(_Reader):
    """Channels of an IIO converter (`in_voltage0`), or any file with a number, scaled."""

    Params: ClassVar[type] = AnalogParams

    def __init__(self, params: AnalogParams, read_only: bool = False) -> None:
        super().__init__()
        self.root = Path(params.address)
        self.channels = [parse_channel(t) for t in params.channels]
        if not self.channels:
            raise ValueError('channels is empty')
        if len({c.name for c in self.channels}) < len(self.channels):
            raise ValueError('a name of a channel is there twice')

    def identify(self) -> Identity:
        """Name of the converter, where it has one."""
        path = self.root / 'name'
        return Identity(model=read_text(path) if path.exists() else self.root.name)

    def _value(self, c: Channel) -> float:
        path = self.root / c.place
        if path.exists():
            value = read_number(path)
        else:  # IIO: (raw + offset) * scale, in mV
            value = read_number(self.root / f'{c.place}_raw')
            for kind, join in (('offset', float.__add__), ('scale', float.__mul__)):
                own, shared = self.root / f'{c.place}_{kind}', self.root / f'{c.place.rstrip("0123456789")}_{kind}'
                value = join(value, next((read_number(p) for p in (own, shared) if p.exists()),
                                         1.0 if kind == 'scale' else 0.0))
            value /= 1000.0
        value = value * c.scale + c.offset
        if c.ntc is None:
            return value
        result = c.ntc.temperature(divider(value, c.supply, c.series, pull_up=c.pull_up))
        return checked(f'thermistor at {value:.3f} V (open or shorted?), temperature in degC', result, -60.0, 200.0)

    def read(self, now: float) -> IoReading:
        """All channels. Raises `DeviceError` when none can be read."""
        self.open()
        values, alarms = self._each({c.name: partial(self._value, c) for c in self.channels})
        return IoReading(time=now, quality=Quality.OK, analog_inputs=values,
                         units={c.name: c.unit for c in self.channels}, alarms=alarms)


@dataclass(frozen=True)
class OneWireParams:
    """Settings of 1-wire sensors."""

    address: str = param('/sys/bus/w1/devices', doc='folder of the kernel driver')
    sensors: list[str] = param([], doc='name=28-0123456789ab each; empty = all that are found, by their id')


class OneWire(_Reader):
    """Temperature sensors of the DS18B20 kind."""

    Params: ClassVar[type] = OneWireParams

    def __init__(self, params: OneWireParams, read_only: bool = False) -> None:
        super().__init__()
        self.root = Path(params.address)
        self.sensors = {name: place for name, place, _ in map(words, params.sensors)}

    def identify(self) -> Identity:
        """Number of sensors."""
        return Identity(model=f'1-wire, {len(self._found())} sensors')

    def _found(self) -> dict[str, str]:
        if self.sensors or not self.root.is_dir():
            return self.sensors
        return {p.name: p.name for p in sorted(self.root.iterdir()) if p.name[:3] in FAMILIES}

    def _value(self, place: str) -> float:
        lines = read_text(self.root / place / 'w1_slave').splitlines()
        if len(lines) != 2 or not lines[0].endswith('YES'):
            raise BadChecksum(f'{place}: {lines[0][-40:] if lines else "nothing"}')
        _, _, number = lines[1].partition(' t=')
        try:
            value = int(number) / 1000.0
        except ValueError:
            raise BadValue(f'{place}: {lines[1][-40:]!r} has no temperature') from None
        # 0x0550 with 0x0C in byte 6 is the content after power-on; 85 degC that was measured differs there.
        if value == POWER_ON and lines[1].split()[:2] == ['50', '05'] and lines[1].split()[6:7] == ['0c']:
            raise BadValue(f'{place}: 85 degC is what a sensor says that has lost its supply')
        return checked(f'{place} in degC', value, -55.0, 125.0)

    def read(self, now: float) -> IoReading:
        """All sensors. Raises `DeviceError` when none can be read."""
        self.open()
        found = self._found()
        if not found:
            raise BadValue(f'{self.root}: no temperature sensor')
        values, alarms = self._each({n: partial(self._value, p) for n, p in found.items()})
        return IoReading(time=now, quality=Quality.OK, analog_inputs=values, units=dict.fromkeys(values, 'degC'),
                         alarms=alarms)


@dataclass(frozen=True)
class CpuParams:
    """Settings of the temperatures of the computer."""

    address: str = param('/sys/class/thermal', doc='folder of the kernel')
    hot: float = param(80.0, 'degC', 'a zone at or above is a fault', low=0.0, high=150.0)


class CpuTemperature(_Reader):
    """Thermal zones of the computer."""

    Params: ClassVar[type] = CpuParams

    def __init__(self, params: CpuParams, read_only: bool = False) -> None:
        super().__init__()
        self.root, self.hot = Path(params.address), params.hot

    def identify(self) -> Identity:
        """Kinds of the zones."""
        return Identity(model=', '.join(sorted(self._zones())))

    def _zones(self) -> dict[str, Path]:
        zones: dict[str, Path] = {}
        for path in sorted(self.root.glob('thermal_zone*')):
            kind = read_text(path / 'type').replace('-', '_') if (path / 'type').exists() else path.name
            zones[kind if kind not in zones else f'{kind}_{path.name.removeprefix("thermal_zone")}'] = path
        return zones

    def read(self, now: float) -> IoReading:
        """All zones. Raises `DeviceError` when none can be read."""
        self.open()
        zones = self._zones()
        if not zones:
            raise BadValue(f'{self.root}: no thermal zone')

        def value(path: Path) -> float:
            return checked(f'{path.name} in degC', read_number(path / 'temp') / 1000.0, -60.0, 200.0)

        values, alarms = self._each({n: partial(value, p) for n, p in zones.items()})
        hot = [f'{n} at {v:.1f} degC' for n, v in values.items() if v >= self.hot]
        if hot:
            alarms = (*alarms, Alarm('io.cpu_hot', Severity.WARNING, ', '.join(hot)))
        return IoReading(time=now, quality=Quality.OK, analog_inputs=values, units=dict.fromkeys(values, 'degC'),
                         alarms=alarms)
