"""What each role's message holds, as names that the points of a profile may fill."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from bess_core.values import ClimateMode, Contactor, ConverterState, Mode
from bess_drivers.device import Role


class Value(NamedTuple):
    """One value of a role: its unit, whether it has a direction, the enum that it belongs to."""

    unit: str = ''
    directed: bool = False  # a profile must say what a positive number of the device means
    enum: type[IntEnum] | None = None
    array: bool = False  # a point may hold several (`count`)


def _phases(name: str, value: Value) -> dict[str, Value]:
    return {f'{name}_{n}': value for n in (1, 2, 3)}


_VOLT, _AMPERE, _WATT, _WH, _DEGREE = Value('V'), Value('A'), Value('W'), Value('Wh'), Value('degC')
_FLOW_A, _FLOW_W, _FLOW_VAR = Value('A', True), Value('W', True), Value('var', True)

METER: dict[str, Value] = {
    **_phases('voltage', _VOLT), **_phases('current', _FLOW_A), **_phases('phase_power', _FLOW_W),
    'active_power': _FLOW_W, 'reactive_power': _FLOW_VAR, 'apparent_power': Value('VA'), 'power_factor': Value(),
    'frequency': Value('Hz'), 'energy_import': _WH, 'energy_export': _WH,
}
CONVERTER: dict[str, Value] = {
    'state': Value(enum=ConverterState), 'grid_forming': Value(),
    **_phases('voltage', _VOLT), **_phases('current', _AMPERE),
    'active_power': _FLOW_W, 'reactive_power': _FLOW_VAR, 'apparent_power': Value('VA'), 'frequency': Value('Hz'),
    'dc_voltage': _VOLT, 'dc_current': _FLOW_A, 'dc_power': _FLOW_W, 'temperature': _DEGREE,
    'max_charge_power': _WATT, 'max_discharge_power': _WATT, 'max_apparent_power': Value('VA'),
    'energy_import': _WH, 'energy_export': _WH,
}
BATTERY: dict[str, Value] = {
    'mode': Value(enum=Mode), 'contactor': Value(enum=Contactor),
    'voltage': _VOLT, 'current': _FLOW_A, 'power': _FLOW_W, 'charge': Value('Ah'), 'charge_full': Value('Ah'),
    'energy': _WH, 'energy_full': _WH,
    'max_charge_current': _AMPERE, 'max_discharge_current': _AMPERE,
    'max_charge_power': _WATT, 'max_discharge_power': _WATT,
    'soc': Value('fraction'), 'soh': Value('fraction'), 'temperature': _DEGREE, 'temperature_min': _DEGREE,
    'cell_voltage_min': _VOLT, 'cell_voltage_max': _VOLT,
    'cell_voltage_min_index': Value(), 'cell_voltage_max_index': Value(),
    'energy_charged': _WH, 'energy_discharged': _WH,
    'cells': Value('V', array=True), 'temperatures': Value('degC', array=True), 'balancing': Value(array=True),
}
CLIMATE: dict[str, Value] = {
    'mode': Value(enum=ClimateMode), 'temperature': _DEGREE, 'outside_temperature': _DEGREE,
    'humidity': Value('fraction'), 'pressure': Value('Pa'), 'gas_resistance': Value('ohm'), 'power': _WATT,
    'target_temperature': _DEGREE, 'heating': Value(), 'cooling': Value(), 'fan': Value(),
}
#: Points of an I/O module are named freely; their `kind` says what they are.
IO: dict[str, Value] = {}

VALUES: dict[Role, dict[str, Value]] = {
    Role.METER: METER, Role.CONVERTER: CONVERTER, Role.BATTERY: BATTERY, Role.CLIMATE: CLIMATE, Role.IO: IO,
}
IO_KINDS = ('digital_input', 'digital_output', 'analog_input', 'analog_output')
