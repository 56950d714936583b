"""Every alarm bit of a device, set in the simulated device and read by the real driver over its real wire.

Names are written out here from the documents of the devices, not taken from the tables of the drivers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from can_bus import can_address, can_port  # noqa: F401 - fixtures
from conformance_stands import STANDS, Wire

from bess_drivers.device import DeviceError
from bess_drivers.sunspec.battery import SunSpecBattery, SunSpecBatteryParams
from bess_drivers.sunspec.inverter import SunSpecInverter, SunSpecInverterParams
from bess_drivers.sunspec.meter import SunSpecMeter, SunSpecMeterParams
from bess_sim.device_faults import DeviceFaults
from bess_sim.devices.modbus_server import ModbusDeviceServer
from bess_sim.devices.sunspec import SunSpecBatterySimulator, SunSpecInverterSimulator
from bess_sim.devices.sunspec_layouts import SUNSPEC_LAYOUTS
from bess_sim.devices.sunspec_meter import SunSpecMeterSimulator
from bess_sim.plant_api import InverterSample, StaticPlant

DEADLINE_S = 10.0


def names(text: str, first: int = 0) -> dict[int, str]:
    """Bit -> fault id without prefix; `-` = no bit of this protocol, or no alarm."""
    return {bit: word for bit, word in enumerate(text.split(), first) if word != '-'}


def fields(first: int, words: Sequence[str]) -> dict[int, str]:
    """Eight bits per field: what its lowest, its second and all other bits mean."""
    return {first + 8 * n + bit: (word.split() * 8)[min(bit, len(word.split()) - 1)]
            for n, word in enumerate(words) for bit in range(8)}


def pairs(first: int, text: str) -> dict[int, str]:
    """Two bits each, of which the lower one is the alarm."""
    return {first + 2 * n: word for n, word in enumerate(text.split()) if word != '-'}


LATE_CAN = 'overvoltage undervoltage overtemperature undertemperature charge_overtemperature ' \
    'charge_undertemperature discharge_overcurrent charge_overcurrent - short_circuit internal_failure cell_imbalance'
LIVE_CAN = names('- cell_overvoltage cell_undervoltage overtemperature undertemperature - - discharge_overcurrent '
                 'charge_overcurrent - - system_error')
#: driver -> bit of its alarm words -> fault
BMS: dict[str, dict[int, str]] = {
    'jbd': names(
        'cell_overvoltage cell_undervoltage pack_overvoltage pack_undervoltage charge_overtemperature '
        'charge_undertemperature discharge_overtemperature discharge_undertemperature charge_overcurrent '
        'discharge_overcurrent short_circuit afe_error fet_lock protection_bit_13 protection_bit_14 protection_bit_15'),
    'daly': names(
        4 * 'overvoltage_warning ' + 2 * 'overvoltage ' + 'undervoltage_warning undervoltage '
        + ' '.join(f'{w}_{t}temperature{level}' for w in ('charge', 'discharge') for t in ('over', 'under')
                   for level in ('_warning', ''))
        + ' charge_overcurrent_warning charge_overcurrent discharge_overcurrent_warning discharge_overcurrent '
        'high_soc_warning high_soc low_soc_warning low_soc voltage_difference_warning voltage_difference '
        'temperature_difference_warning temperature_difference alarm_bit_28 alarm_bit_29 alarm_bit_30 alarm_bit_31 '
        'charge_mosfet_overtemperature discharge_mosfet_overtemperature mosfet_temperature_sensor '
        'mosfet_temperature_sensor charge_mosfet discharge_mosfet charge_mosfet discharge_mosfet '
        'afe_error voltage_sensor temperature_sensor eeprom rtc precharge communication internal_communication '
        'current_sensor pack_voltage_sensor short_circuit charging_forbidden alarm_bit_52 alarm_bit_53 alarm_bit_54 '
        'alarm_bit_55' + 8 * ' fault_code'),
    'jk': names(
        'low_soc mosfet_overtemperature pack_overvoltage pack_undervoltage overtemperature charge_overcurrent '
        'discharge_overcurrent cell_imbalance box_overtemperature undertemperature cell_overvoltage cell_undervoltage '
        'protection_309_a protection_309_b alarm_bit_14 alarm_bit_15'),
    'jk_pb': names(
        'wire_resistance mosfet_overtemperature cell_count current_sensor cell_overvoltage pack_overvoltage '
        'charge_overcurrent charge_short_circuit charge_overtemperature charge_undertemperature aux_cpu '
        'cell_undervoltage pack_undervoltage discharge_overcurrent discharge_short_circuit discharge_overtemperature '
        'charge_mosfet discharge_mosfet gps password discharge_on_failed battery_overtemperature temperature_sensor '
        'plc ' + ' '.join(f'alarm_bit_{n}' for n in range(24, 32))),
    'pylontech': fields(0, ('cell_undervoltage cell_overvoltage cell_voltage_fault',
                            'undertemperature overtemperature temperature_fault',
                            'charge_overcurrent charge_overcurrent charge_current_fault',
                            'pack_undervoltage pack_overvoltage pack_voltage_fault',
                            'discharge_overcurrent discharge_overcurrent discharge_current_fault', 'protection'))
    | {51: 'full_charge_request', 52: 'force_charge', 53: 'force_charge'},
    'seplos': names(
        ' '.join(f'{p}_{v}{level}' for p in ('cell', 'pack') for v in ('overvoltage', 'undervoltage')
                 for level in ('_warning', '')) + ' '
        + ' '.join(f'{w}_{t}temperature{level}' for w in ('charge', 'discharge') for t in ('over', 'under')
                   for level in ('_warning', '')), 8 * 30)
    | names('charge_overcurrent_warning charge_overcurrent discharge_overcurrent_warning discharge_overcurrent '
            + ' '.join(f'alarm_byte_33_bit_{n}' for n in range(4, 8)), 8 * 33)
    | names('low_soc_warning low_soc', 8 * 34 + 2),
    'jbd_up16s': names(
        'cell_overvoltage cell_undervoltage pack_overvoltage pack_undervoltage charge_overcurrent charge_overcurrent '
        'discharge_overcurrent discharge_overcurrent charge_overtemperature charge_undertemperature '
        'discharge_overtemperature discharge_undertemperature mosfet_overtemperature ambient_overtemperature '
        'ambient_undertemperature voltage_difference temperature_difference low_soc short_circuit cell_offline '
        'temperature_sensor charge_mosfet discharge_mosfet current_limiter aerosol full_charge_protection afe_error '
        'reverse fault_bit_28 fault_bit_29 fault_bit_30 fault_bit_31')
    | names(' '.join(f'{n}_warning' for n in (
        'cell_overvoltage cell_undervoltage pack_overvoltage pack_undervoltage charge_overcurrent '
        'discharge_overcurrent charge_overtemperature charge_undertemperature discharge_overtemperature '
        'discharge_undertemperature mosfet_overtemperature ambient_overtemperature ambient_undertemperature '
        'voltage_difference temperature_difference low_soc eeprom rtc').split())
        + ' - ' + ' '.join(f'alarm_bit_{n}' for n in range(19, 32)), 32),  # 18 repeats fault 25
    # 0x359 of Pylontech on CAN (protections, then warnings), 0x35A of Victron, SMA and BYD, what 0x35C asks for
    'can_bms': LIVE_CAN | {16 + bit: f'{name}_warning' for bit, name in LIVE_CAN.items()}
    | {bit: 'unknown_alarm' for bit in range(32) if bit % 16 not in LIVE_CAN}
    | pairs(34, LATE_CAN) | pairs(66, ' '.join(n if n == '-' else f'{n}_warning' for n in LATE_CAN.split()))
    | dict.fromkeys((32, 50, 58, 60, 62, 64, 82, 92, 94), 'unknown_alarm')
    | {99: 'full_charge_request', 100: 'force_charge', 101: 'force_charge'},
}
PREFIX = {'jk_pb': 'jk'}


def until(device: Any, wanted: list[str], over: float) -> None:
    """Read until exactly these faults are there."""
    found: Any = None
    while time.monotonic() < over:
        try:
            found = [a.id for a in device.read(1.0).alarms]
        except DeviceError as error:
            found = error
            time.sleep(0.02)
        if found == wanted:
            return
    raise AssertionError(f'{found} instead of {wanted}')


@pytest.fixture
def wire(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Wire]:
    (stand,) = [s for s in STANDS if s.name == kind]
    if stand.transport == 'can':
        request.getfixturevalue('can_address')
        built = stand.build(tmp_path, request.getfixturevalue('can_port'))
    else:
        built = stand.build(tmp_path)
    yield built
    built.end()


@pytest.mark.parametrize('kind', BMS)
def test_each_bit_of_a_bms_is_a_named_fault(kind: str, wire: Wire) -> None:
    if kind == 'can_bms':
        wire.can_bus.period_s = 0.02
    device = wire.make(False)
    device.open()
    try:
        until(device, [], time.monotonic() + DEADLINE_S)
        for bit, name in BMS[kind].items():
            wire.faults.inject('alarm_bit', float(bit))
            until(device, [f'{PREFIX.get(kind, kind)}.{name}'], time.monotonic() + DEADLINE_S)
        wire.faults.clear()
        until(device, [], time.monotonic() + DEADLINE_S)
    finally:
        device.close()


# -- SunSpec --------------------------------------------------------------------------------------------

STORAGE = ('communication_error over_temp_alarm over_temp_warning under_temp_alarm under_temp_warning '
           'over_charge_current_alarm over_charge_current_warning over_discharge_current_alarm '
           'over_discharge_current_warning over_volt_alarm over_volt_warning under_volt_alarm under_volt_warning '
           'under_soc_min_alarm under_soc_min_warning over_soc_max_alarm over_soc_max_warning '
           'voltage_imbalance_warning {18} {19} contactor_error fan_error ground_fault open_door_error {24} '
           '{25} {26} {27} {28} {29} bit_30')
BANK = STORAGE.format(*'*' * 18, 'temperature_imbalance_alarm', 'temperature_imbalance_warning', *'*' * 4,
                      'current_imbalance_warning', 'other_alarm', 'other_warning', 'bit_27', 'configuration_alarm',
                      'configuration_warning')
STRING = BANK.replace('current_imbalance_warning', 'bit_24')
FLOW = STORAGE.format(*'*' * 18, 'bit_18', 'bit_19', *'*' * 4, 'bit_24', 'other_alarm', 'other_warning', 'fire_alarm',
                      'configuration_alarm', 'configuration_warning')
FLOW_MODULE = STORAGE.format(*'*' * 18, 'bit_18', 'bit_19', *'*' * 4, 'bit_24', 'bit_25', 'bit_26', 'fire_alarm',
                             'module_configuration_alarm', 'module_configuration_warning')
DRAFT = ('communication_error over_temp_alarm under_temp_alarm over_temp_warning under_temp_warning '
         'over_charge_current_alarm over_discharge_current_alarm over_charge_current_warning '
         'over_discharge_current_warning over_volt_alarm under_volt_alarm over_volt_warning under_volt_warning '
         'contactor_error fan_error - ground_fault open_door_error other_alarm other_warning')
SECOND = ' '.join(f'evt2_bit_{n}' for n in range(32))
FLOW_2 = 'leak_alarm pump_alarm high_pressure_alarm high_pressure_warning low_flow_alarm low_flow_warning ' \
    + ' '.join(f'evt2_bit_{n}' for n in range(6, 32))
INVERTER = ('ground_fault dc_over_volt ac_disconnect dc_disconnect grid_disconnect cabinet_open manual_shutdown '
            'over_temp over_frequency under_frequency ac_over_volt ac_under_volt blown_string_fuse under_temp '
            'memory_loss hw_test_failure ')
PORT = ('ground_fault input_over_voltage bit_2 dc_disconnect bit_4 cabinet_open manual_shutdown over_temp bit_8 bit_9 '
        'bit_10 bit_11 blown_fuse under_temp memory_loss arc_detection bit_16 bit_17 bit_18 bit_19 test_failed '
        'input_under_voltage input_over_current ' + ' '.join(f'bit_{n}' for n in range(23, 32)))
METER = ('meter_bit_0 meter_bit_1 meter_power_failure meter_under_voltage meter_low_pf meter_over_current '
         'meter_over_voltage meter_missing_sensor ' + ' '.join(f'meter_bit_{n}' for n in range(8, 16)) + ' '
         + ' '.join(f'meter_oem{n:02d}' for n in range(1, 16)))
LAYOUTS = {name: lambda plant, name=name: SUNSPEC_LAYOUTS[name](plant, 'u', DeviceFaults()) for name in SUNSPEC_LAYOUTS}


def static(model: int, point: str) -> Callable[[Any, int], None]:
    """Puts a word into a point that the simulated device leaves alone."""
    return lambda device, word: device.image.set(model, {point: word})


def attribute(name: str) -> Callable[[Any, int], None]:
    return lambda device, word: setattr(device, name, word)


#: name -> device, driver, how a word gets into it, meaning of its bits
SUNSPEC: dict[str, tuple[Callable[..., Any], Any, Any, dict[int, str]]] = {
    '802 Evt1': (lambda p: SunSpecBatterySimulator(p, 'u'), SunSpecBattery, attribute('events'), names(BANK)),
    '802 Evt2': (lambda p: SunSpecBatterySimulator(p, 'u'), SunSpecBattery, static(802, 'Evt2'), names(SECOND)),
    '802 EvtVnd1': (lambda p: SunSpecBatterySimulator(p, 'u'), SunSpecBattery, static(802, 'EvtVnd1'),
                    dict.fromkeys(range(32), 'evtvnd1')),
    '803 StrEvt1': (lambda p: SunSpecBatterySimulator(p, 'u'), SunSpecBattery, attribute('string_events'),
                    names(STRING)),
    '803 StrEvtVnd2': (lambda p: SunSpecBatterySimulator(p, 'u'), SunSpecBattery, static(803, 'string[0].StrEvtVnd2'),
                       dict.fromkeys(range(32), 'evtvnd2')),
    '803 draft': (LAYOUTS['sunspec_draft'], SunSpecBattery, attribute('string_events'), names(DRAFT)),
    '804 Evt1': (LAYOUTS['sunspec_strings'], SunSpecBattery, attribute('events'), names(STRING)),
    '804 Evt2': (LAYOUTS['sunspec_strings'], SunSpecBattery, attribute('events2'), names(SECOND)),
    '804 EvtVnd1': (LAYOUTS['sunspec_strings'], SunSpecBattery, attribute('vendor'),
                    dict.fromkeys(range(32), 'evtvnd1')),
    '807 Evt1': (LAYOUTS['sunspec_flow'], SunSpecBattery, attribute('events'), names(FLOW)),
    '807 Evt2': (LAYOUTS['sunspec_flow'], SunSpecBattery, attribute('events2'), names(FLOW_2)),
    '807 ModEvt1': (LAYOUTS['sunspec_flow'], SunSpecBattery, attribute('module_events'), names(FLOW_MODULE)),
    '807 ModEvt2': (LAYOUTS['sunspec_flow'], SunSpecBattery, attribute('module_events2'), names(FLOW_2)),
    '701 Alrm': (lambda p: SunSpecInverterSimulator(p, 'u'), SunSpecInverter, attribute('alarms'),
                 names(INVERTER + 'manufacturer_alrm ' + ' '.join(f'bit_{n}' for n in range(17, 32)))),
    '714 DCAlrm': (lambda p: SunSpecInverterSimulator(p, 'u'), SunSpecInverter, static(714, 'Prt[0].DCAlrm'),
                   names(PORT)),
    '714 PrtAlrms': (lambda p: SunSpecInverterSimulator(p, 'u'), SunSpecInverter, static(714, 'PrtAlrms'),
                     {n: f'dc_port_{n}_alarm' for n in range(32)}),
    '103 Evt1': (lambda p: SunSpecInverterSimulator(p, 'u', models='legacy'), SunSpecInverter, attribute('alarms'),
                 names(INVERTER + ' '.join(f'bit_{n}' for n in range(16, 32)))),
    '103 Evt2': (lambda p: SunSpecInverterSimulator(p, 'u', models='legacy'), SunSpecInverter, static(103, 'Evt2'),
                 names(SECOND)),
    '103 EvtVnd4': (lambda p: SunSpecInverterSimulator(p, 'u', models='legacy'), SunSpecInverter,
                    static(103, 'EvtVnd4'), dict.fromkeys(range(32), 'evtvnd4')),
    '101 Evt1': (lambda p: SunSpecInverterSimulator(p, 'single', models='legacy'), SunSpecInverter,
                 attribute('alarms'), names(INVERTER)),
    '103 Evt1 beside 64800': (LAYOUTS['mesa_pcs'], SunSpecInverter, attribute('events'), names(INVERTER)),
    '203 Evt': (lambda p: SunSpecMeterSimulator(p, 203), SunSpecMeter, static(203, 'Evt'), names(METER)),
    '213 Evt': (lambda p: SunSpecMeterSimulator(p, 213), SunSpecMeter, static(213, 'Evt'), names(METER)),
}
PARAMS = {SunSpecBattery: SunSpecBatteryParams, SunSpecInverter: SunSpecInverterParams,
          SunSpecMeter: SunSpecMeterParams}


@pytest.mark.parametrize('word', SUNSPEC)
def test_each_bit_of_sunspec_is_a_named_fault(word: str) -> None:
    make, driver, put, bits = SUNSPEC[word]
    simulator = make(StaticPlant(inverters={'u': InverterSample(voltage=(230.0, 230.0, 230.0))}))
    server = ModbusDeviceServer({1: simulator}, DeviceFaults())
    server.start()
    device = driver(PARAMS[driver](address=f'tcp://127.0.0.1:{server.port}'))
    try:
        device.open()
        put(simulator, 0)
        assert device.read(0.0).alarms == ()
        for bit, name in bits.items():
            put(simulator, 1 << bit)
            assert [a.id for a in device.read(1.0).alarms] == [f'sunspec.{name}'], bit
        put(simulator, 0)
        assert device.read(2.0).alarms == ()
    finally:
        device.close()
        server.stop()
        if hasattr(simulator, 'close'):
            simulator.close()
