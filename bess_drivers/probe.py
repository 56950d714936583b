"""Finds out what answers at an address, without writing anything to it.

Every link that is opened here is read-only, so that not one write can leave. A driver takes part by
one of three ways: a profile with `detect`, a class attribute `PROBE_BAUDS` (serial devices that are
recognised by their own `identify`), or an entry in `PROBES` for another kind of address. `NOT_PROBED` says why a
serial device is left out, which is told to whoever probes a line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bess_core import plugins
from bess_core.values import Identity
from bess_drivers.device import BadValue, DeviceError, Disconnected, NoAnswer, Refused, Role
from bess_drivers.modbus.carlo_gavazzi import ID_CODE, CarloGavazziMeter, CarloGavazziParams, family_of
from bess_drivers.modbus.image import function_of, number_of, start_of
from bess_drivers.modbus.link import ModbusLink
from bess_drivers.profiles import ProfileError, installed, load_profile
from bess_drivers.profiles.model import Detect, Profile
from bess_drivers.sunspec.device_map import DeviceMap

TCP_UNITS = (1, 2, 3, 126, 247, 255)
RTU_UNITS = tuple(range(1, 11))
BAUDS = (9600, 19200, 115200)
SUNSPEC_TYPES = ((802, 'sunspec_battery', 'battery'), (804, 'sunspec_battery', 'battery'),
                 (701, 'sunspec_inverter', 'inverter'),
                 *((m, 'sunspec_inverter', 'inverter') for m in (103, 113, 102, 112, 101, 111)),
                 *((m, 'sunspec_meter', 'meter') for m in (203, 204, 202, 201, 213, 214, 212, 211)))
Say = Callable[[str], None]


@dataclass(frozen=True)
class Found:
    """One device that answered."""

    type: str  # of a node in the site file
    name: str  # proposed for that node
    address: str
    identity: Identity
    settings: dict[str, Any] = field(default_factory=dict)  # unit, profile, ...
    notes: tuple[str, ...] = ()


def probe(address: str, units: Sequence[int] = (), timeout_s: float = 0.3, say: Say = lambda _: None) -> list[Found]:
    """Everything that is recognised at an address. Raises ValueError for a bad address, `Disconnected`."""
    scheme = address.partition(':')[0]
    if scheme not in PROBES:
        raise ValueError(f"{address!r} cannot be probed; allowed: tcp://host:port, rtu:/dev/..., serial:/dev/..., "
                         f"can:...")
    return _unique(PROBES[scheme](address, units, timeout_s, say))


def _unique(found: Iterable[Found]) -> list[Found]:
    """Without devices that answer under several unit ids."""
    out: list[Found] = []
    for item in found:
        twin = next((o for o in out if (o.type, o.identity, o.settings.get('profile')) ==
                     (item.type, item.identity, item.settings.get('profile')) and item.identity.serial), None)
        if twin is None:
            names = [o.name for o in out]
            name = next(n for i in range(len(out) + 1)
                        if (n := item.name if not i else f'{item.name}_{i + 1}') not in names)
            out.append(replace(item, name=name))
        else:
            also = f'answers as unit {item.settings.get("unit")}, too'
            out[out.index(twin)] = replace(twin, notes=(*twin.notes, also))
    return out


# -- Modbus ------------------------------------------------------------------------------------------


def probe_tcp(address: str, units: Sequence[int], timeout_s: float, say: Say) -> Iterator[Found]:
    """A Modbus TCP device or gateway."""
    link = ModbusLink(address, timeout_s=timeout_s, read_only=True)
    link.open()  # a refused connection is worth its own error
    try:
        for unit in units or TCP_UNITS:
            yield from _unit(link, address, unit, say)
    finally:
        link.close()


def probe_rtu(address: str, units: Sequence[int], timeout_s: float, say: Say) -> Iterator[Found]:
    """Modbus units on a serial line; without a baud rate in the address the usual ones are tried."""
    addresses = [address] if 'baud=' in address else [
        f'{address}{"&" if "?" in address else "?"}baud={baud}' for baud in BAUDS]
    for one in addresses:
        link = ModbusLink(one, timeout_s=timeout_s, read_only=True)
        link.open()
        try:
            found = [f for unit in units or RTU_UNITS for f in _unit(link, one, unit, say)]
        finally:
            link.close()
        yield from found
        if found:
            return  # a line has one baud rate


class _Asker:
    """Reads registers of one unit once each, and notices a unit that is not there."""

    def __init__(self, link: ModbusLink, unit: int) -> None:
        self._link, self._unit = link, unit
        self._known: dict[tuple[int, int, int], list[int] | None] = {}
        self.silent = 0
        self.alive = False

    def __call__(self, function: int, address: int, count: int) -> list[int] | None:
        """The registers; None when they are refused or nothing usable comes."""
        key = (function, address, count)
        if key not in self._known:
            try:
                self._known[key] = self._link.read(self._unit, function, address, count)
                self.alive = True
            except Refused as error:
                self._known[key] = None
                # 10 and 11 are answers of a gateway for a unit that is not there.
                self.alive = self.alive or getattr(error, 'code', 0) not in (10, 11)
            except NoAnswer:
                self._known[key] = None
                self.silent += 1
            except Disconnected:
                raise
            except DeviceError:
                self._known[key] = None
        return self._known[key]


def _unit(link: ModbusLink, address: str, unit: int, say: Say) -> list[Found]:
    ask = _Asker(link, unit)
    found: list[Found] = []
    try:
        ask(4, ID_CODE, 1)
        if not ask.alive:
            ask(3, 40000, 2)
        if not ask.alive:
            say(f'unit {unit}: nothing')
            return []
        found += _sunspec(link, address, unit)
        found += _carlo_gavazzi(link, address, unit, ask)
        found += [_profile_found(p, link, address, unit) for p in detectable() if matches(p, ask)]
    except Disconnected as error:
        say(f'unit {unit}: {error}')
    if found:
        say(f'unit {unit}: {", ".join(f.identity.model or f.type for f in found)}')
    elif ask.alive:
        say(f'unit {unit}: answers, but is none of the devices known here')
    return found


def _sunspec(link: ModbusLink, address: str, unit: int) -> list[Found]:
    device = DeviceMap(link, unit)
    try:
        device.scan()
        identity = device.identity()
    except DeviceError:
        return []
    found: list[Found] = []
    types = plugins.available(plugins.DRIVERS)
    for model, kind, name in SUNSPEC_TYPES:
        if device.has(model) and kind in types and kind not in [f.type for f in found]:
            models = ', '.join(str(b.id) for b in device.blocks)
            found.append(Found(kind, name, address, identity, {'unit': unit}, (f'SunSpec models {models}',)))
    return found


def _carlo_gavazzi(link: ModbusLink, address: str, unit: int, ask: _Asker) -> list[Found]:
    code = ask(4, ID_CODE, 1)
    if not code or family_of(code[0]) is None:
        return []
    try:
        identity = CarloGavazziMeter(CarloGavazziParams(address=address, unit=unit, check_setup=False),
                                     read_only=True, link=link).identify()
    except DeviceError as error:
        return [Found('carlo_gavazzi', 'meter', address, Identity('Carlo Gavazzi'), {'unit': unit}, (str(error),))]
    return [Found('carlo_gavazzi', 'meter', address, identity, {'unit': unit})]


def detectable() -> list[Profile]:
    """Installed Modbus profiles that say how to recognise their device."""
    profiles = []
    for name in installed():
        try:
            profile = load_profile(name)
        except ProfileError:
            continue  # `bess doctor` and `bess device` name what is wrong with it
        if profile.head.transport == 'modbus' and profile.detect and not profile.head.template:
            profiles.append(profile)
    return profiles


def matches(profile: Profile, ask: Callable[[int, int, int], list[int] | None]) -> bool:
    """Whether the id registers of a device are those of a profile."""
    certain = False
    for detect in profile.detect:
        fits = _fits(profile, detect, ask)
        if fits is None and detect.expect.optional:
            continue
        if not fits:
            return False
        certain = True
    return certain


def _fits(profile: Profile, detect: Detect, ask: Callable[[int, int, int], list[int] | None]) -> bool | None:
    section, place, e = profile.modbus, detect.place, detect.expect
    words = ask(function_of(place, section), start_of(place, section), place.span)
    if words is None:
        return None
    number = number_of(words, place, section)
    if e.contains:
        return e.contains.lower() in str(number).lower()
    return number in e.equals if e.equals else e.between[0] <= number <= e.between[1]


def _profile_found(profile: Profile, link: ModbusLink, address: str, unit: int) -> Found:
    kind = f'modbus_{profile.role.value}'
    settings = {'profile': profile.name, 'unit': unit}
    notes = list(profile.notes)
    identity = Identity(profile.head.manufacturer, profile.head.model or profile.head.title)
    needed = sorted({p.keys.per for p in profile.points.values() if p.keys.per})
    if needed:
        notes.insert(0, f'give {", ".join(needed)} of your device')
    else:
        device = plugins.load(plugins.DRIVERS, kind)
        try:
            identity = device(device.Params(address=address, **settings), read_only=True, link=link).identify()
        except DeviceError as error:
            notes.insert(0, f'recognised, but not all of it can be read: {error}')
    return Found(kind, profile.role.value, address, identity, settings, tuple(notes))


# -- serial ------------------------------------------------------------------------------------------


def probe_serial(address: str, units: Sequence[int], timeout_s: float, say: Say) -> Iterator[Found]:
    """Devices with protocols of their own (BMS, P1 meters), then Modbus on the same line."""
    where, _, query = address.partition('?')
    given = re.search(r'baud=(\d+)', query)
    for name, entry in sorted(plugins.available(plugins.DRIVERS).items()):
        cls = entry.load()
        for baud in getattr(cls, 'PROBE_BAUDS', ()):
            if given and int(given[1]) != baud:
                continue
            found = _identified(cls, name, f'{where}?baud={baud}', say)
            if found:
                yield found
                return  # one protocol per line
    yield from probe_rtu('rtu:' + address.removeprefix('serial:'), units, timeout_s, say)
    for name, entry in sorted(plugins.available(plugins.DRIVERS).items()):
        if reason := getattr(entry.load(), 'NOT_PROBED', ''):
            say(f'{name}: not asked: {reason}')


def _identified(cls: Any, name: str, address: str, say: Say) -> Found | None:
    try:
        device = cls(cls.Params(address=address, **getattr(cls, 'PROBE_SETTINGS', {})), read_only=True)
    except ValueError as error:
        say(f'{name}: {error}')  # its extra is not installed
        return None
    try:
        device.open()
        identity = device.identify()
    except Disconnected:
        raise
    except (DeviceError, BadValue) as error:
        say(f'{name} at {address}: {error.kind} ({error})')
        return None
    finally:
        device.close()
    say(f'{name} at {address}: {identity.model or identity.manufacturer}')
    return Found(name, 'bms' if cls.role is Role.BATTERY else cls.role.value, address, identity)


def probe_can(address: str, _units: Sequence[int], timeout_s: float, say: Say) -> Iterator[Found]:
    """Listens on a CAN bus; see `bess_drivers.can.listen`."""
    from bess_drivers.can.listen import devices_heard

    for kind, name, identity, settings, note in devices_heard(address, max(timeout_s, 2.0), say):
        yield Found(kind, name, address, identity, settings, (note,))


#: kind of address -> how to look at it
PROBES: dict[str, Callable[[str, Sequence[int], float, Say], Iterator[Found]]] = {
    'tcp': probe_tcp, 'rtu': probe_rtu, 'serial': probe_serial, 'can': probe_can,
}


def fragment(found: Sequence[Found]) -> str:
    """The `nodes` of a site file for what was found."""
    lines = ['nodes:']
    for f in found:
        who = ' '.join(filter(None, (f.identity.manufacturer, f.identity.model)))
        more = ', '.join(filter(None, (
            who, f.identity.serial and f'serial {f.identity.serial}',
            f.identity.version and f'version {f.identity.version}')))
        lines += [f'  {f.name}:' + (f'  # {_one_line(more)}' if more else ''), f'    type: {f.type}',
                  f'    address: {f.address}']
        lines += [f'    {key}: {value}' for key, value in f.settings.items()]
        lines += [f'    # {_one_line(note)}' for note in f.notes]
    return '\n'.join(lines) + '\n'


def _one_line(text: str) -> str:
    """Texts of a device are shown, never interpreted: without line ends and control characters."""
    return ''.join(c if c.isprintable() else ' ' for c in text).strip()


__all__ = ['PROBES', 'Found', 'detectable', 'fragment', 'matches', 'probe']
