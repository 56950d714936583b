"""Every driver with its simulated device over its real protocol: what `test_conformance.py` drives.

A Modbus profile stands twice where there is a device written from the maker's tables ("layout"): once
against that, once against registers that hold what the profile says ("image"), in which each fault bit
and each "not known" can be set. An image shows how the driver behaves, never that the profile is right.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import can
from can_bus import GROUP

from bess_drivers.can.can_bms import CanBmsBattery, CanBmsParams
from bess_drivers.can.profile_device import CanBattery, CanMeter, CanProfileParams
from bess_drivers.device import Role
from bess_drivers.http.sonnen import SonnenBattery, SonnenConverter, SonnenParams
from bess_drivers.modbus.carlo_gavazzi import CarloGavazziMeter, CarloGavazziParams
from bess_drivers.modbus.image import function_of, low_first, start_of
from bess_drivers.modbus.profile_device import (
    ModbusBattery,
    ModbusClimate,
    ModbusConverter,
    ModbusIo,
    ModbusMeter,
    ProfileParams,
)
from bess_drivers.profiles import installed, load_profile
from bess_drivers.profiles.model import Fault, Point, Profile
from bess_drivers.serial import daly, jbd, jbd_up16s, jk, pylontech
from bess_drivers.sunspec.battery import SunSpecBattery, SunSpecBatteryParams
from bess_drivers.sunspec.inverter import SunSpecInverter, SunSpecInverterParams
from bess_drivers.sunspec.meter import SunSpecMeter, SunSpecMeterParams
from bess_sim.device_faults import DeviceFaults
from bess_sim.devices.can_bms import CanBmsSimulator
from bess_sim.devices.carlo_gavazzi import CarloGavazziSimulator
from bess_sim.devices.factory import JbdDevice
from bess_sim.devices.jbd import JbdSimulator
from bess_sim.devices.modbus_server import ModbusDeviceServer, ModbusRtuServer
from bess_sim.devices.register_image import RegisterImage
from bess_sim.devices.register_layouts import LAYOUTS
from bess_sim.devices.serial_bms import KINDS
from bess_sim.devices.serial_line import SerialLine
from bess_sim.devices.sonnen import SonnenSimulator
from bess_sim.devices.sunspec import SunSpecBatterySimulator, SunSpecInverterSimulator
from bess_sim.devices.sunspec_layouts import SUNSPEC_LAYOUTS
from bess_sim.devices.sunspec_meter import SunSpecMeterSimulator
from bess_sim.devices.victron import VICTRON_LAYOUTS
from bess_sim.plant_api import InverterSample, MeterSample, PackSample, StaticPlant

UNIT, TIMEOUT_S, LATE_S = 1, 0.15, 0.3
RATED = {'rated_power': 12_000.0, 'rated_current': 100.0, 'rated_voltage': 230.0}
ROLES: dict[Role, Any] = {Role.BATTERY: ModbusBattery, Role.CONVERTER: ModbusConverter, Role.METER: ModbusMeter,
                          Role.IO: ModbusIo, Role.CLIMATE: ModbusClimate}
#: profiles of the tests: a role without an installed profile, a template with addresses
OWN = [str(Path(__file__).parent / 'profiles' / f'{n}.yaml') for n in ('climate_unit', 'our_rhombus')]
OWN_CAN = str(Path(__file__).parent / 'profiles' / 'can_meter.yaml')
#: plausible SI values of an image, by the beginning of a point's name; what is not here is 0
USUAL = {'voltage': 230.0, 'dc_voltage': 50.0, 'frequency': 50.0, 'soc': 0.5, 'soh': 0.9, 'cells': 3.3,
         'cell_voltage': 3.3, 'temperature': 25.0, 'charge_full': 100.0, 'charge': 50.0, 'max_': 20.0,
         'energy_full': 5000.0}
ON_LINES = ('daly_modbus', 'pylontech_rt', 'seplos_v3', 'rd6006', 'eastron_sdm630')  # profiles tried over RTU


@dataclass
class Wire:
    """A simulated device that runs, and how to make a driver for it."""

    make: Callable[[bool], Any]  # read_only -> driver
    end: Callable[[], None]
    plant: StaticPlant
    faults: DeviceFaults
    heard: list[Any]  # what reached the device: function codes, or requests
    image: ProfileImage | None = None
    can_bus: Any = None
    written: Callable[[], list[Any]] = list


class ProfileImage:
    """Registers of one profile with plausible numbers; `device` is the map that a server takes."""

    def __init__(self, profile: Profile) -> None:
        self.profile, self.section = profile, profile.modbus
        self.device = RegisterImage(self.section.max_registers)
        self.raws: dict[tuple[int, int], int] = {}  # masked points share a register
        for point in profile.points.values():
            self.usual(point)
        for detect in profile.detect:
            number = (detect.expect.equals or detect.expect.between or (0,))[0]
            if detect.place.type == 'text':
                self.device.put_text(function_of(detect.place, self.section), start_of(detect.place, self.section),
                                     detect.expect.contains, detect.place.length)
            else:
                self.put(detect.place, number)
        for function, table in self.device.words.items():  # reads may pass over what nobody wants
            for address in list(table):
                self.device.fill(function, range(address, address + self.section.max_gap + 2))

    def usual(self, point: Point) -> None:
        """A number that is plausible and no fault."""
        if point.place.type == 'text':
            self.device.put_text(function_of(point.place, self.section), start_of(point.place, self.section), 'TEST',
                                 point.place.length)
            return
        zero = any(f.point == point.name and f.zero for f in self.profile.faults)
        best = max((k for k in USUAL if point.name.startswith(k)), key=len, default='')
        value = USUAL.get(best, 0.0)
        if point.keys.range:
            value = min(max(value, point.keys.range[0]), point.keys.range[1])
        self.raw(point, 1.0 if zero else 0.0 if point.codes or not best and not point.keys.range
                 else self.number(point, value))

    def number(self, point: Point, value: float) -> float:
        """The device's number for an SI value."""
        return replace(point, keys=replace(point.keys, write_range=())).raw(
            value, 0.0, RATED.get(point.keys.per, 1.0))

    def raw(self, point: Point, number: float) -> None:
        """Put a number of the device."""
        place = point.place
        if point.mask:
            key = (function_of(place, self.section), start_of(place, self.section))
            self.raws[key] = self.raws.get(key, 0) & ~point.mask | int(number) << point.low_bit & point.mask
            number = self.raws[key]
        self.put(place, number, point.writable)

    def put(self, place: Any, number: float, writable: bool = False) -> None:
        """Put a number at each place of an array."""
        function, kind = function_of(place, self.section), 'bit' if place.type == 'bool' else place.type
        for i in range(place.count):
            at = start_of(place, self.section) + i * place.step
            self.device.put(function, at, kind, number, low_first=low_first(place, self.section))
            if writable:
                table = 1 if place.type == 'bool' else 3
                self.device.words[table].setdefault(at, 0)
                self.device.writable |= {(table, at + k) for k in range(place.words)}

    def fault(self, fault: Fault, on: bool) -> None:
        """Make one fault present, or go back to the usual."""
        point = self.profile.points[fault.point]
        if not on:
            self.raw(point, 1.0 if fault.zero else 0.0)
        elif fault.bit >= 0:
            self.raw(point, float(1 << fault.bit))
        else:
            self.raw(point, float(fault.code or (0 if fault.zero else 1)))


def plant() -> StaticPlant:
    return StaticPlant(packs={'u': PackSample(soh=0.9)}, inverters={'u': InverterSample(dc_voltage=50.0)},
                       meter_sample=MeterSample(phase_power=(100.0, 200.0, 300.0)))


def modbus(registers: Any, world: StaticPlant, faults: DeviceFaults, tmp: Path,
           make: Callable[[str, bool], Any], rtu: bool = False, image: ProfileImage | None = None) -> Wire:
    """A register map behind TCP or a pty."""
    server: Any = ModbusRtuServer({UNIT: registers}, faults, tmp / 'tty') if rtu else ModbusDeviceServer(
        {UNIT: registers}, faults)
    heard: list[Any] = []
    answer = server._units.answer
    server._units.answer = lambda unit, pdu: (heard.append(pdu[0]), answer(unit, pdu))[1]
    server.start()
    address = f'rtu:{server.link_path}?baud=115200&quiet={LATE_S}' if rtu else f'tcp://127.0.0.1:{server.port}'

    def end() -> None:
        server.stop()
        if hasattr(registers, 'close'):
            registers.close()

    return Wire(lambda read_only: make(address, read_only), end, world, faults, heard, image,
                written=lambda: list(server.writes))


def profile_params(name: str, address: str) -> ProfileParams:
    per = {p.keys.per for p in load_profile(name).points.values() if p.keys.per}
    return ProfileParams(address=address, profile=name, unit=UNIT, timeout_s=TIMEOUT_S, **{k: RATED[k] for k in per})


def image_stand(name: str) -> Callable[[Path], Wire]:
    def build(tmp: Path) -> Wire:
        profile = load_profile(name)
        image = ProfileImage(profile)
        return modbus(image.device, plant(), DeviceFaults(), tmp,
                      lambda a, ro: ROLES[profile.role](profile_params(name, a), ro), name in ON_LINES, image)
    return build


def layout_stand(name: str) -> Callable[[Path], Wire]:
    def build(tmp: Path) -> Wire:
        world, faults = plant(), DeviceFaults()
        registers = {**LAYOUTS, **VICTRON_LAYOUTS}[name](world, 'u', faults)
        return modbus(registers, world, faults, tmp,
                      lambda a, ro: ROLES[load_profile(name).role](profile_params(name, a), ro), name in ON_LINES)
    return build


def register_stand(registers: Callable[[StaticPlant, DeviceFaults], Any], cls: Any, params: Any,
                   **more: Any) -> Callable[[Path], Wire]:
    def build(tmp: Path) -> Wire:
        world, faults = plant(), DeviceFaults()
        return modbus(registers(world, faults), world, faults, tmp,
                      lambda a, ro: cls(params(address=a, timeout_s=TIMEOUT_S, **more), ro))
    return build


def serial_stand(kind: str, cls: Any) -> Callable[[Path], Wire]:
    def build(tmp: Path) -> Wire:
        world, faults, heard, link = plant(), DeviceFaults(), [], tmp / 'tty'
        line: Any
        if kind == 'jbd':
            simulator = JbdSimulator(world, 'u', faults, name='JBD', baud=115200.0)
            receive = simulator.receive
            simulator.receive = lambda data, now: (heard.append(data), receive(data, now))[1]
            line = JbdDevice(simulator, link)
        else:
            made, usual = KINDS[kind]
            bms: Any = made(world, 'u', faults, usual)

            def answer(data: bytes) -> Any:
                found, used = bms.answer(data)
                heard.append(data[:used])
                return found, used

            line = SerialLine(link, faults, answer)
        line.start()
        return Wire(lambda read_only: cls(cls.Params(address=f'serial:{link}?baud=115200', timeout_s=TIMEOUT_S,
                                                     late_s=LATE_S), read_only), line.stop, world, faults, heard)
    return build


def sonnen_stand(cls: Any) -> Callable[[Path], Wire]:
    def build(tmp: Path) -> Wire:
        world, faults = plant(), DeviceFaults()
        token = tmp / 'token'
        token.write_text('secret')
        token.chmod(0o600)
        box = SonnenSimulator(world, 'u', faults, token='secret')
        address = box.start()
        return Wire(lambda read_only: cls(SonnenParams(address=address, timeout_s=TIMEOUT_S,
                                                       token_file=str(token)), read_only),
                    box.stop, world, faults, box.requests)
    return build


class Talker:
    """A device that sends the same frames again and again, with the faults that concern a CAN bus."""

    def __init__(self, port: int, frames: dict[int, bytes], faults: DeviceFaults) -> None:
        self.frames, self.faults = frames, faults
        self._bus = can.Bus(interface='udp_multicast', channel=GROUP, port=port, fd=False, hop_limit=0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(0.05):
            if self.faults.on('disconnect') or self.faults.on('no_answer'):
                continue
            for can_id, data in list(self.frames.items()):
                data = data[:len(data) // 2] if self.faults.on('truncated_frame') else data
                can_id += 0x10 * self.faults.on('wrong_unit_id')
                self._bus.send(can.Message(arbitration_id=can_id, data=data, is_extended_id=can_id > 0x7FF))

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(2.0)
        self._bus.shutdown()


def can_stand(kind: str) -> Callable[[Path, int], Wire]:
    def build(tmp: Path, port: int) -> Wire:
        address = f'can:udp_multicast:{GROUP}?port={port}'
        world, faults, heard, stop = plant(), DeviceFaults(), [], threading.Event()
        tap = can.Bus(interface='udp_multicast', channel=GROUP, port=port, fd=False, hop_limit=0)

        def listen() -> None:
            while not stop.is_set():
                try:
                    message = tap.recv(0.05)
                except can.CanOperationError:  # somebody else's datagram at this port: no frame
                    continue
                if message is not None:
                    heard.append(message.arbitration_id)

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        talker: Any
        if kind == 'can_bms':
            talker = CanBmsSimulator(world, 'u', faults, address)
            talker.start()
            make = lambda ro: CanBmsBattery(CanBmsParams(address=address, timeout_s=0.6), ro)  # noqa: E731
        elif kind == 'can_meter':  # 600 W, 230.0 V, 50.00 Hz; no alarm
            talker = Talker(port, {0x201: bytes.fromhex('5802fc0888130000'), 0x202: bytes(1)}, faults)
            make = lambda ro: CanMeter(CanProfileParams(address=address, profile=OWN_CAN), ro)  # noqa: E731
        else:
            path = tmp / 'jk_can_quick.yaml'
            path.write_text('extends: jk_can\nfaults_prefix: jk_can\ncan: {timeout: 0.4}\n')
            # 52.0 V, 0 A, 50 %; cells 3.310 and 3.300 V; 25 and 24 degC; no alarm
            talker = Talker(port, {0x2F4: bytes.fromhex('0802a00f32000000'), 0x4F4: bytes.fromhex('ee0c01e40c020000'),
                                   0x5F4: bytes.fromhex('4b014a024a000000'), 0x7F4: bytes(8)}, faults)
            make = lambda ro: CanBattery(CanProfileParams(address=address, profile=str(path)), ro)  # noqa: E731

        def end() -> None:
            talker.stop()
            stop.set()
            thread.join(2.0)
            tap.shutdown()

        return Wire(make, end, world, faults, heard, can_bus=talker)
    return build


@dataclass(frozen=True)
class Stand:
    """One driver and one simulated device."""

    name: str
    driver: str  # entry point
    role: Role
    transport: str  # modbus, serial, can, http
    build: Callable[..., Wire]
    profile: str = ''
    device: str = ''  # what it talks to


def modbus_profiles() -> list[Profile]:
    return [p for p in map(load_profile, installed()) if p.head.transport == 'modbus' and not p.head.template]


def _stands() -> list[Stand]:
    out = [Stand(f'{p.name}-image', f'modbus_{p.role.value}', p.role, 'modbus', image_stand(p.name), p.name,
                 'registers made of the profile') for p in modbus_profiles()]
    out += [Stand(f'{p.name}-image', f'modbus_{p.role.value}', p.role, 'modbus', image_stand(own), own,
                  'registers made of a profile of the tests') for own in OWN for p in [load_profile(own)]]
    for name in (*LAYOUTS, *VICTRON_LAYOUTS):
        role = load_profile(name).role
        out.append(Stand(f'{name}-layout', f'modbus_{role.value}', role, 'modbus', layout_stand(name), name,
                         "device written from the maker's tables"))
    sunspec: list[tuple[str, str, Role, Any, Any, Any, dict[str, Any]]] = [
        ('sunspec_battery', '802', Role.BATTERY, lambda w, _: SunSpecBatterySimulator(w, 'u'), SunSpecBattery,
         SunSpecBatteryParams, {}),
        ('sunspec_inverter', '7xx', Role.CONVERTER, lambda w, _: SunSpecInverterSimulator(w, 'u'), SunSpecInverter,
         SunSpecInverterParams, {}),
        ('sunspec_inverter', 'mesa_pcs', Role.CONVERTER, lambda w, f: SUNSPEC_LAYOUTS['mesa_pcs'](w, 'u', f),
         SunSpecInverter, SunSpecInverterParams, {'legacy_control': 'signed_limit'}),
        ('sunspec_inverter', '103', Role.CONVERTER,
         lambda w, _: SunSpecInverterSimulator(w, 'u', models='legacy'), SunSpecInverter, SunSpecInverterParams, {}),
        ('sunspec_inverter', 'kaco', Role.CONVERTER, lambda w, f: SUNSPEC_LAYOUTS['kaco_gridsave'](w, 'u', f),
         SunSpecInverter, SunSpecInverterParams, {}),
        ('sunspec_meter', '203', Role.METER, lambda w, _: SunSpecMeterSimulator(w, 203), SunSpecMeter,
         SunSpecMeterParams, {})]
    out += [Stand(f'{driver}-{which}', driver, role, 'modbus', register_stand(registers, cls, params, **more), '',
                  f'SunSpec {which}') for driver, which, role, registers, cls, params, more in sunspec]
    out += [Stand(f'carlo_gavazzi-{model}', 'carlo_gavazzi', Role.METER, 'modbus', register_stand(
        lambda w, f, model=model: CarloGavazziSimulator(w, f, model=model), CarloGavazziMeter, CarloGavazziParams), '',
        f'{model} of the maker\'s tables') for model in ('em340', 'em24')]
    serial = {'jbd': jbd.JbdBattery, 'daly': daly.DalyBms, 'jk': jk.JkBms, 'jk_pb': jk.JkPbBms,
              'pylontech': pylontech.PylontechBms, 'seplos': pylontech.SeplosBms, 'jbd_up16s': jbd_up16s.Up16sBms}
    out += [Stand(kind, kind, Role.BATTERY, 'serial', serial_stand(kind, cls), '', 'simulated BMS on a pty')
            for kind, cls in serial.items()]
    out += [Stand('can_bms', 'can_bms', Role.BATTERY, 'can', can_stand('can_bms'), '', 'simulated battery'),
            Stand('jk_can', 'can_battery', Role.BATTERY, 'can', can_stand('jk_can'), 'jk_can', 'frames as documented'),
            Stand('can_meter', 'can_meter', Role.METER, 'can', can_stand('can_meter'), OWN_CAN,
                  'frames of a profile of the tests')]
    out += [Stand('sonnen', 'sonnen', Role.CONVERTER, 'http', sonnen_stand(SonnenConverter), '', 'simulated box'),
            Stand('sonnen_battery', 'sonnen_battery', Role.BATTERY, 'http', sonnen_stand(SonnenBattery), '',
                  'simulated box')]
    return out


STANDS = _stands()
__all__ = ['STANDS', 'TIMEOUT_S', 'ProfileImage', 'Stand', 'Wire']
