"""Registers of the TI BQ40Z50 gauge. Pure.

Facts: SBS 1.1 and the technical reference manuals SLUUA43A, SLUUBU5, SLUUCH2, SLUUCN4, collected in
`shared/facts/bms_portal_radio.md`, section 3. All words are little-endian.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from struct import unpack

from bess_core.values import Severity
from bess_drivers.device import BadFrame
from bess_drivers.serial.bms_reading import Condition, checked, named

MANUFACTURER_ACCESS, BATTERY_MODE, TEMPERATURE, VOLTAGE, CURRENT = 0x00, 0x03, 0x08, 0x09, 0x0A
REMAINING, FULL, CHARGING_CURRENT, CHARGING_VOLTAGE, BATTERY_STATUS = 0x0F, 0x10, 0x14, 0x15, 0x16
RELATIVE_SOC, CYCLES, SPECIFICATION, SERIAL = 0x0D, 0x17, 0x1A, 0x1C
MANUFACTURER_NAME, DEVICE_NAME, CHEMISTRY = 0x20, 0x21, 0x22
BLOCK_ACCESS, STATE_OF_HEALTH = 0x44, 0x4F
SAFETY_ALERT, SAFETY_STATUS, PF_ALERT, PF_STATUS, OPERATION_STATUS = 0x50, 0x51, 0x52, 0x53, 0x54
DA_STATUS_1, DA_STATUS_2 = 0x71, 0x72
MAC_DEVICE_TYPE, MAC_FIRMWARE, MAC_HARDWARE, MAC_CHEM_ID = 0x0001, 0x0002, 0x0003, 0x0006
MAC_SEAL, MAC_RESET = 0x0030, 0x0041
FLASH_START, FLASH_END, FLASH_BLOCK = 0x4000, 0x6000, 32
ZERO_C = 2731.5  # 0.1 K
NOT_LIMITED = 0xFFFF  # ChargingCurrent: constant voltage, no limit of its own
CAPM = 1 << 15  # BatteryMode: capacities in 10 mWh


class Security(IntEnum):
    """Field SEC of OperationStatus."""

    FULL_ACCESS = 1
    UNSEALED = 2
    SEALED = 3


_E, _C, _W = Severity.ERROR, Severity.CRITICAL, Severity.WARNING


def _c(id: str, text: str, severity: Severity = _E, ways: str = '') -> Condition:
    return Condition(id, text, severity, 'c' in ways, 'd' in ways)


#: Bit of SafetyStatus -> condition.
SAFETY_BITS: dict[int, Condition] = {
    0: _c('cell_undervoltage', 'a cell is too empty', ways='d'),
    1: _c('cell_overvoltage', 'a cell is too full', ways='c'),
    2: _c('charge_overcurrent_1', 'charge current too high (level 1)', ways='c'),
    3: _c('charge_overcurrent_2', 'charge current too high (level 2)', ways='c'),
    4: _c('discharge_overcurrent_1', 'discharge current too high (level 1)', ways='d'),
    5: _c('discharge_overcurrent_2', 'discharge current too high (level 2)', ways='d'),
    6: _c('discharge_overload', 'overload while discharging', ways='d'),
    7: _c('discharge_overload_latch', 'overload while discharging, latched', ways='d'),
    8: _c('charge_short_circuit', 'short circuit while charging', _C, 'c'),
    9: _c('charge_short_circuit_latch', 'short circuit while charging, latched', _C, 'c'),
    10: _c('discharge_short_circuit', 'short circuit while discharging', _C, 'd'),
    11: _c('discharge_short_circuit_latch', 'short circuit while discharging, latched', _C, 'd'),
    12: _c('charge_overtemperature', 'too hot to charge', ways='c'),
    13: _c('discharge_overtemperature', 'too hot to discharge', ways='d'),
    14: _c('cell_undervoltage_compensated', 'a cell is too empty (compensated for resistance)', ways='d'),
    16: _c('fet_overtemperature', 'the switches are too hot', ways='cd'),
    18: _c('precharge_timeout', 'precharging takes too long', ways='c'),
    19: _c('precharge_timeout_suspended', 'time-out of precharging is suspended', _W),
    20: _c('charge_timeout', 'charging takes too long', ways='c'),
    22: _c('overcharge', 'more charge went in than fits', ways='c'),
    23: _c('charge_current_request', 'the charger gives more current than asked', ways='c'),
    24: _c('charge_voltage_request', 'the charger gives more voltage than asked', ways='c'),
    25: _c('precharge_current_request', 'the charger gives more precharge current than asked', ways='c'),
    26: _c('charge_undertemperature', 'too cold to charge', ways='c'),
    27: _c('discharge_undertemperature', 'too cold to discharge', ways='d'),
}

#: Bit of PFStatus -> permanent failure; the gauge never allows current again by itself.
PF_BITS: dict[int, Condition] = {bit: _c(f'pf_{id}', f'permanent failure: {text}', _C, 'cd') for bit, id, text in (
    (0, 'undervoltage', 'cell voltage far too low'), (1, 'overvoltage', 'cell voltage far too high'),
    (2, 'charge_overcurrent', 'charge current'), (3, 'discharge_overcurrent', 'discharge current'),
    (4, 'overtemperature', 'cell temperature'), (6, 'fet_overtemperature', 'temperature of the switches'),
    (7, 'qmax_imbalance', 'cells of different capacity'), (8, 'cell_balancing', 'balancing'),
    (9, 'impedance', 'cell impedance'), (10, 'capacity', 'capacity has degraded'),
    (11, 'voltage_imbalance_rest', 'cell voltages differ at rest'),
    (12, 'voltage_imbalance_active', 'cell voltages differ under load'),
    (16, 'charge_fet', 'charge switch'), (17, 'discharge_fet', 'discharge switch'), (19, 'fuse', 'fuse blown'),
    (20, 'afe_register', 'registers of the front end'), (21, 'afe_communication', 'front end does not answer'),
    (22, 'second_level', 'second level protection'), (23, 'ptc', 'PTC tripped'),
    (24, 'instruction_flash', 'program memory'), (25, 'open_cell', 'a cell is not connected'),
    (26, 'data_flash', 'data memory'), (28, 'sensor_1', 'temperature sensor 1'),
    (29, 'sensor_2', 'temperature sensor 2'), (30, 'sensor_3', 'temperature sensor 3'),
    (31, 'sensor_4', 'temperature sensor 4'))}

UNSEALED = _c('unsealed', 'the gauge is not sealed: its settings can be changed', _W)


@dataclass(frozen=True)
class Operation:
    """OperationStatus."""

    security: Security
    charge_on: bool
    discharge_on: bool
    failed: bool  # permanent failure
    balancing: bool
    starting: bool


def parse_operation(data: bytes) -> Operation:
    """OperationStatus (4 B). Raises `BadFrame`."""
    bits = dword('OperationStatus', data)
    security = bits >> 8 & 3
    if not security:
        raise BadFrame('OperationStatus: security mode 0 does not exist')
    return Operation(Security(security), bool(bits >> 2 & 1), bool(bits >> 1 & 1), bool(bits >> 12 & 1),
                     bool(bits >> 28 & 1), bool(bits >> 24 & 1))


def dword(what: str, data: bytes) -> int:
    """A block of 4 bytes as a number. Raises `BadFrame`."""
    if len(data) != 4:
        raise BadFrame(f'{what} has {len(data)} bytes, not 4')
    return int.from_bytes(data, 'little')


def parse_cells(data: bytes, count: int) -> tuple[float, ...]:
    """Voltages of the first `count` cells (V) of DAStatus1. Raises `BadFrame`, `BadValue`."""
    if len(data) < 8:
        raise BadFrame(f'DAStatus1 has {len(data)} bytes, not 32')
    return tuple(checked(f'cell {i + 1} in V', mv / 1000.0, 0.0, 6.0)
                 for i, mv in enumerate(unpack('<4H', data[:8])[:count]))


def parse_temperatures(data: bytes, sensors: int) -> tuple[float, ...]:
    """Cell temperature and that of the first `sensors` sensors (degC) of DAStatus2. Raises `BadFrame`, `BadValue`."""
    if len(data) < 14:
        raise BadFrame(f'DAStatus2 has {len(data)} bytes, not 14')
    raw = unpack('<7H', data[:14])
    return tuple(celsius(t) for t in (raw[5], *raw[1:1 + sensors]))


def celsius(raw: int) -> float:
    """Degrees of 0.1 K. Raises `BadValue` for what no battery survives."""
    return checked('temperature in degC', (raw - ZERO_C) / 10.0, -60.0, 150.0)


def safety_conditions(safety: int, failure: int) -> tuple[Condition, ...]:
    """Conditions of SafetyStatus and PFStatus."""
    return (*named(SAFETY_BITS, safety, 'safety_bit'), *named(PF_BITS, failure, 'pf_bit'))


def scales(specification: int) -> tuple[float, float]:
    """Factors of voltage and of current and capacity (SpecificationInfo, SBS 1.1 section 5.1.25)."""
    return 10.0 ** (specification >> 8 & 0xF), 10.0 ** (specification >> 12 & 0xF)


def text(data: bytes) -> str:
    """A name block."""
    return data.decode('ascii', errors='replace').strip('\0 ')


def answer_of(code: int, data: bytes) -> bytes:
    """What a block read of 0x44 brings for a code or address, without its echo. Raises `BadFrame`."""
    if len(data) < 2 or int.from_bytes(data[:2], 'little') != code:
        raise BadFrame(f'answer to 0x{code:04x} starts with {data[:2].hex(" ") or "nothing"}')
    return data[2:]
