"""Simulated devices by kind. Another kind: `BUILDERS['my_kind'] = build`, a `Builder`.

Device modules are imported when their kind is first built, so that a bench loads only what it has.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from bess_sim.control_server import Request, number
from bess_sim.device_faults import DeviceFaults
from bess_sim.plant_api import AIRFLOW, HEATER_W, MeterSample, PlantApi
from bess_sim.plant_config import DeviceConfig

START_S = 5.0  # a device that does not listen after this has failed


class RunningDevice(Protocol):
    """A device that can be started in a process of its own."""

    def start(self) -> str:
        """Listen, and return the address. Raises OSError or ValueError."""

    def stop(self) -> None:
        """Stop listening."""

    def check(self) -> None:
        """Raise what has ended the device by itself, if anything has."""

    def command(self, request: Request) -> Request:
        """Requests of this kind beyond inject, clear and status. Raises ValueError."""


Builder = Callable[[DeviceConfig, PlantApi, DeviceFaults], RunningDevice]


class JbdDevice:
    """A `JbdSimulator` at a link to a pseudo terminal."""

    def __init__(self, simulator: Any, link: Path) -> None:
        self._simulator, self._link = simulator, link
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._thread: threading.Thread | None = None

    def _serve(self) -> None:
        try:
            self._simulator.serve(str(self._link), self._stop)
        except Exception as error:  # noqa: BLE001 - of whatever kind
            self._failure = error  # raised by `check` in the main thread

    def start(self) -> str:
        """See `RunningDevice`."""
        self._link.parent.mkdir(parents=True, exist_ok=True)
        if self._link.is_symlink():
            self._link.unlink()  # left over from a bench that was killed
        # Made here: a Thread that was made before a fork counts as ended after it.
        self._thread = threading.Thread(target=self._serve, name='jbd', daemon=True)
        self._thread.start()
        deadline = time.monotonic() + START_S
        while not self._link.is_symlink():
            if not self._thread.is_alive():
                raise OSError(f'{self._link}: {self._failure}')
            if time.monotonic() > deadline:
                raise OSError(f'{self._link} did not appear within {START_S} s')
            time.sleep(0.002)
        return f'serial:{self._link}'

    def stop(self) -> None:
        """See `RunningDevice`."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(START_S)

    def check(self) -> None:
        """See `RunningDevice`."""
        if self._failure is not None:
            raise self._failure

    def command(self, request: Request) -> Request:
        """See `RunningDevice`."""
        if request['cmd'] == 'requests':
            return {'requests': self._simulator.requests}
        raise ValueError(f'unknown command {request["cmd"]!r}')


class ModbusDevice:
    """A register map behind Modbus TCP (`tcp://host:port`) or RTU (`serial:<link>`)."""

    def __init__(
        self, registers: Any, config: DeviceConfig, unit_id: int, faults: DeviceFaults
    ) -> None:
        from bess_sim.devices.modbus_server import ModbusDeviceServer, ModbusRtuServer

        self.registers = registers
        self._host, self._link = '', Path()
        if config.address.startswith('serial:'):
            self._link = link_path(config.address)
            self._server: Any = ModbusRtuServer({unit_id: registers}, faults, self._link)
        else:
            self._host, port = tcp_address(config.address)
            self._server = ModbusDeviceServer(
                {unit_id: registers}, faults, host=self._host, port=port
            )

    def start(self) -> str:
        """See `RunningDevice`."""
        if not self._host:
            self._link.parent.mkdir(parents=True, exist_ok=True)
            self._server.start()
            return f'serial:{self._link}'
        self._server.start()
        return f'tcp://{self._host}:{self._server.port}'

    def stop(self) -> None:
        """See `RunningDevice`."""
        self._server.stop()

    def check(self) -> None:
        """See `RunningDevice`. The server answers its own errors and goes on."""

    def command(self, request: Request) -> Request:
        """`writes`; and `override_power` for meters. See `RunningDevice`."""
        cmd = request['cmd']
        if cmd == 'writes':
            names = ('time', 'unit', 'address', 'values')
            return {
                'writes': [
                    dict(zip(names, write, strict=True)) for write in list(self._server.writes)
                ]
            }
        if cmd == 'override_power' and hasattr(self.registers, 'override_power'):
            watts = None if request.get('value') is None else number(request, 'value', 0.0)
            if watts is not None and not isfinite(watts):
                raise ValueError('value must be finite')
            self.registers.override_power(watts)
            return {}
        raise ValueError(f'unknown command {cmd!r}')


def tcp_address(address: str, scheme: str = 'tcp') -> tuple[str, int]:
    """Host and port of `tcp://host:port` (or another `scheme`). Raises ValueError."""
    parts = urlsplit(address)
    if parts.scheme != scheme or not parts.hostname or parts.path or parts.port is None:
        raise ValueError(f'address {address!r} is not {scheme}://host:port')
    return parts.hostname, parts.port


def link_path(address: str) -> Path:
    """Path of `serial:<link path>`. Raises ValueError."""
    if not address.startswith('serial:') or not address[7:]:
        raise ValueError(f'address {address!r} is not serial:<link path>')
    return Path(address[7:])


def _options(config: DeviceConfig, **defaults: Any) -> dict[str, Any]:
    """Options of a kind over their defaults, checked for name and type."""
    for key, value in config.options.items():
        if key not in defaults:
            raise ValueError(
                f'{config.kind}: unknown option {key!r}; known: {", ".join(defaults) or "none"}'
            )
        wanted = type(defaults[key])
        if isinstance(value, bool) != (wanted is bool) or not isinstance(
            value, (int, float) if wanted is float else wanted
        ):
            raise ValueError(f'{config.kind}: {key} must be {wanted.__name__}, not {value!r}')
    return {**defaults, **config.options}


def _unit_of(config: DeviceConfig) -> str:
    if not config.unit:
        raise ValueError(f'{config.kind}: the key "unit" is missing')
    return config.unit


def _jbd(config: DeviceConfig, plant: PlantApi, faults: DeviceFaults) -> RunningDevice:
    from bess_sim.devices.jbd import JbdSimulator

    options = _options(config, name='JBD-SP16S020-SIM', baud=9600.0, echo_read=False)
    return JbdDevice(
        JbdSimulator(plant, _unit_of(config), faults, **options), link_path(config.address)
    )


def _sunspec_battery(config: DeviceConfig, plant: PlantApi, faults: DeviceFaults) -> RunningDevice:
    from bess_sim.devices.sunspec import BatteryThresholds, SunSpecBatterySimulator

    usual = BatteryThresholds()
    options = _options(
        config, unit_id=1, sign=1, cell_over_voltage=usual.cell_high[1], cell_under_voltage=usual.cell_low[1]
    )
    high, low = options['cell_over_voltage'], options['cell_under_voltage']
    thresholds = BatteryThresholds(cell_high=(high - 0.05, high), cell_low=(low + 0.3, low))
    registers = SunSpecBatterySimulator(
        plant, _unit_of(config), sign=options['sign'], thresholds=thresholds
    )
    return ModbusDevice(registers, config, options['unit_id'], faults)


def _sunspec_inverter(config: DeviceConfig, plant: PlantApi, faults: DeviceFaults) -> RunningDevice:
    from bess_sim.devices.sunspec import SunSpecInverterSimulator

    options = _options(config, unit_id=1, models='der', curves=False)
    more = {'curves': True} if options['curves'] else {}
    registers = SunSpecInverterSimulator(plant, _unit_of(config), models=options['models'], **more)
    return ModbusDevice(registers, config, options['unit_id'], faults)


class MeterLine:
    """A plant as one meter sees it: in the line of the PV plant, or with current transformers the wrong way round."""

    def __init__(self, plant: PlantApi, measures: str, wrong_way: bool) -> None:
        self._plant = plant
        self._sample = plant.pv_meter if measures == 'pv' else plant.meter
        self._wrong_way = wrong_way

    def meter(self) -> MeterSample:
        """See `PlantApi`."""
        s = self._sample()
        if not self._wrong_way:
            return s
        one, two, three = s.phase_power
        return replace(s, phase_power=(-one, -two, -three), reactive_power=-s.reactive_power,
                       energy_import=s.energy_export, energy_export=s.energy_import)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._plant, name)


def _measured(config: DeviceConfig, plant: PlantApi, options: dict[str, Any]) -> Any:
    """`measures`: grid or pv; `reversed`: wired the wrong way round. Raises ValueError."""
    if options['measures'] not in ('grid', 'pv'):
        raise ValueError(f'{config.kind}: measures must be "grid" or "pv", not {options["measures"]!r}')
    return MeterLine(plant, options['measures'], options['reversed'])


def _carlo_gavazzi(config: DeviceConfig, plant: PlantApi, faults: DeviceFaults) -> RunningDevice:
    from bess_sim.devices.carlo_gavazzi import CarloGavazziSimulator

    options = _options(config, unit_id=1, model='em340', measures='grid', reversed=False)
    registers = CarloGavazziSimulator(_measured(config, plant, options), faults, model=options['model'])
    return ModbusDevice(registers, config, options['unit_id'], faults)


def _sunspec_meter(config: DeviceConfig, plant: PlantApi, faults: DeviceFaults) -> RunningDevice:
    from bess_sim.devices.sunspec_meter import SunSpecMeterSimulator

    options = _options(config, unit_id=1, model=203, measures='grid', reversed=False)
    registers = SunSpecMeterSimulator(_measured(config, plant, options), options['model'])
    return ModbusDevice(registers, config, options['unit_id'], faults)


def _registers(config: DeviceConfig, plant: PlantApi, faults: DeviceFaults) -> RunningDevice:
    from bess_sim.devices.register_layouts import LAYOUTS as PLAIN
    from bess_sim.devices.sunspec_layouts import SUNSPEC_LAYOUTS
    from bess_sim.devices.victron import VICTRON_LAYOUTS

    options = _options(config, unit_id=1, layout='')
    layouts = {**PLAIN, **SUNSPEC_LAYOUTS, **VICTRON_LAYOUTS}
    if options['layout'] not in layouts:
        raise ValueError(f'{config.kind}: layout must be one of {", ".join(layouts)}, not {options["layout"]!r}')
    return ModbusDevice(layouts[options['layout']](plant, config.unit, faults), config, options['unit_id'], faults)


def _cabinet(config: DeviceConfig, plant: PlantApi, faults: DeviceFaults) -> RunningDevice:
    from bess_sim.devices.register_layouts import Cabinet

    options = _options(config, unit_id=1, heater_power=HEATER_W, airflow=AIRFLOW)
    if not (options['heater_power'] >= 0.0 and options['airflow'] >= 1.0):
        raise ValueError(f'{config.kind}: heater_power (W) must be at least 0, airflow at least 1')
    registers = Cabinet(plant, _unit_of(config), faults, options['heater_power'], options['airflow'])
    return ModbusDevice(registers, config, options['unit_id'], faults)


def _can_bms(config: DeviceConfig, plant: PlantApi, faults: DeviceFaults) -> RunningDevice:
    from bess_sim.devices.can_bms import CanBmsSimulator

    options = _options(config, cell_high=3.6, cell_low=2.7)
    return CanBmsSimulator(plant, _unit_of(config), faults, config.address, **options)


def _serial_bms(config: DeviceConfig, plant: PlantApi, faults: DeviceFaults) -> RunningDevice:
    from bess_sim.devices.serial_bms import KINDS
    from bess_sim.devices.serial_line import SerialLine

    kind, usual = KINDS[config.kind]
    options = _options(config, unit_id=usual)
    bms: Any = kind(plant, _unit_of(config), faults, options['unit_id'])
    return SerialLine(link_path(config.address), faults, bms.answer)


def _sonnen(config: DeviceConfig, plant: PlantApi, faults: DeviceFaults) -> RunningDevice:
    from bess_sim.devices.sonnen import SonnenSimulator

    options = _options(config, form='local', token='')
    host, port = tcp_address(config.address)
    return SonnenSimulator(plant, _unit_of(config), faults, host, port, **options)


def _p1(config: DeviceConfig, plant: PlantApi, faults: DeviceFaults) -> RunningDevice:
    from bess_sim.devices.p1 import P1Simulator

    options = _options(config, version=5, interval=1.0)
    if not config.address.startswith('serial:'):
        tcp_address(config.address)
    return P1Simulator(plant, faults, config.address, version=options['version'], period=options['interval'])


def _iec61850(config: DeviceConfig, plant: PlantApi, faults: DeviceFaults) -> RunningDevice:
    from bess_sim.devices.iec61850 import Iec61850Simulator

    options = _options(config, battery='dbat', control_model='sbo-with-normal-security', kilo=False)
    host, port = tcp_address(config.address, 'iec61850')
    try:
        return Iec61850Simulator(plant, _unit_of(config), faults, host, port, **options)
    except ImportError as error:
        raise ValueError(f'iec61850: pip install -r requirements/iec61850.txt ({error})') from error


#: kind -> builder
BUILDERS: dict[str, Builder] = {
    'jbd': _jbd,
    'sunspec_battery': _sunspec_battery,
    'sunspec_inverter': _sunspec_inverter,
    'carlo_gavazzi': _carlo_gavazzi,
    'registers': _registers,
    'sunspec_meter': _sunspec_meter,
    'cabinet': _cabinet,
    'can_bms': _can_bms,
    'sonnen': _sonnen,
    'p1': _p1,
    'iec61850': _iec61850,
    **dict.fromkeys(('daly', 'jk', 'jk_pb', 'pylontech', 'seplos', 'jbd_up16s'), _serial_bms),
}


def build(config: DeviceConfig, plant: PlantApi, faults: DeviceFaults) -> RunningDevice:
    """A device of the kind that `config` names. Raises ValueError for a bad configuration."""
    try:
        builder = BUILDERS[config.kind]
    except KeyError:
        known = ', '.join(BUILDERS)
        raise ValueError(f'unknown device kind {config.kind!r}; known: {known}') from None
    return builder(config, plant, faults)
