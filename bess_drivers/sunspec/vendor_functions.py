"""Vendors' models beside 64201 and 64800: limits, information and volt-var offset of KACO (64202 to 64204), parameters
of REFU (64040, 64041). Layout and codes: OpenEMS; what their sources leave open is said where it is assumed.
"""

from __future__ import annotations

from math import isnan

from bess_core.values import Alarm, Severity
from bess_drivers.device import BadValue, Refused
from bess_drivers.sunspec.codec import ModelValues
from bess_drivers.sunspec.device_map import DeviceMap
from bess_drivers.sunspec.inverter_params import SunSpecInverterParams

NAMES = {64202: 'battery limits', 64203: 'battery information', 64204: 'volt-var offset'}
LIMITS, INFORMATION, OFFSET, PARAMETER, VALUE = 64202, 64203, 64204, 64040, 64041
OFFSET_ON, OFFSET_OFF = 2, 0  # 64204 OffsetEna
ACTIVATE = 1  # 64202 EnLimit
TYPES = ('U32', 'S32', 'F32', 'U16', 'S16', 'U8', 'S8')

#: 64201 ErrPcu: the unit that pre-charges the DC link
PRECHARGE_ERRORS = {
    1: 'over_temperature', 2: 'dc_over_voltage', 3: 'dc_under_voltage', 4: 'battery_polarity',
    5: 'too_many_attempts', 6: 'precharge_failed', 7: 'error_while_running', 8: 'i2c', 9: 'can',
    10: 'switched_off_externally', 11: 'battery_limits_never_set'}
_WARNING, _ERROR = Severity.WARNING, Severity.ERROR
#: 64201 StVnd -> what is wrong; codes that only say what the device is doing are not here
VENDOR_STATES = {
    2: ('battery_voltage_insufficient', _WARNING), 10: ('unit_too_hot', _WARNING),
    17: ('grid_protection_disconnected', _WARNING), 18: ('residual_current', _ERROR), 19: ('insulation', _ERROR),
    32: ('self_test', _ERROR), 33: ('dc_feed_in', _ERROR), 34: ('internal_communication', _ERROR),
    35: ('protection_shutdown_software', _ERROR), 36: ('protection_shutdown_hardware', _ERROR),
    38: ('dc_voltage_too_high', _ERROR), 41: ('grid_under_voltage_l1', _ERROR), 42: ('grid_over_voltage_l1', _ERROR),
    43: ('grid_under_voltage_l2', _ERROR), 44: ('grid_over_voltage_l2', _ERROR), 45: ('grid_under_voltage_l3', _ERROR),
    46: ('grid_over_voltage_l3', _ERROR), 47: ('grid_line_voltage', _ERROR), 48: ('grid_under_frequency', _ERROR),
    49: ('grid_over_frequency', _ERROR), 50: ('grid_mean_voltage', _WARNING), 58: ('control_board_too_hot', _ERROR),
    59: ('self_test_fault', _ERROR), 60: ('dc_voltage_too_high_to_connect', _WARNING), 67: ('power_section', _ERROR),
    70: ('fan', _ERROR), 73: ('standalone_grid', _ERROR), 80: ('insulation_not_measurable', _WARNING),
    81: ('shutdown_line_1', _ERROR), 82: ('shutdown_line_2', _ERROR), 83: ('shutdown_line_3', _ERROR),
    84: ('shutdown_dc_under_voltage', _ERROR), 85: ('shutdown_dc_over_voltage', _ERROR),
    86: ('shutdown_dc_link', _ERROR), 87: ('shutdown_over_current_1', _ERROR), 88: ('shutdown_over_current_2', _ERROR),
    89: ('shutdown_over_current_3', _ERROR), 93: ('buffer_1_self_test', _ERROR), 94: ('buffer_self_test', _ERROR),
    95: ('relay_1_self_test', _ERROR), 96: ('relay_2_self_test', _ERROR), 97: ('shutdown_over_current', _ERROR),
    98: ('shutdown_gate_driver', _ERROR), 99: ('shutdown_buffer', _ERROR), 100: ('shutdown_overheating', _ERROR),
    104: ('residual_current_monitor', _ERROR), 105: ('relay_plausibility', _ERROR), 106: ('dcdc_plausibility', _ERROR),
    107: ('surge_protection', _WARNING), 196: ('external_communication', _WARNING),
    197: ('parallel_asymmetry', _WARNING), 198: ('battery_disconnected', _WARNING),
    199: ('battery_constraints_missing', _WARNING), 215: ('waits_for_acknowledgement', _WARNING),
    218: ('precharge_unit', _ERROR), 225: ('battery_voltage_too_low', _WARNING),
    227: ('current_asymmetry', _WARNING), 228: ('voltage_asymmetry', _WARNING), 229: ('dc_voltage', _WARNING)}


def kaco_alarms(m: ModelValues) -> tuple[Alarm, ...]:
    """Named faults of 64201. The vendor's state says what it is, the severity is that of OpenEMS where it has one."""
    alarms = []
    state, error = m.integer('StVnd'), m.integer('ErrPcu')
    if state in VENDOR_STATES:
        name, severity = VENDOR_STATES[state]
        alarms.append(Alarm(f'kaco.{name}', severity, f'64201 StVnd {state}: {name.replace("_", " ")}'))
    if error:
        name = PRECHARGE_ERRORS.get(error, f'code_{error}')
        alarms.append(Alarm(f'kaco.precharge_{name}', _ERROR, f'64201 ErrPcu {error}: {name.replace("_", " ")}'))
    return tuple(alarms)


class VendorFunctions:
    """Shows 64202 to 64204 and changes what may be changed. Raises only `DeviceError`s."""

    def __init__(self, device: DeviceMap, params: SunSpecInverterParams) -> None:
        self._map, self._params = device, params

    def describe(self, model: int) -> str:
        """Present settings of one model in words."""
        m = self._map.read(model)
        if model == LIMITS:
            active = 'active' if m.integer('EnLimit') == ACTIVATE else 'not active'
            return (f'{active}: discharging to {m.number("DisMinV"):g} V with {m.number("DisMaxA"):g} A, charging to '
                    f'{m.number("ChaMaxV"):g} V with {m.number("ChaMaxA"):g} A; ends below '
                    f'{m.number("DisCutoffA"):g} and {m.number("ChaCutoffA"):g} A')
        if model == INFORMATION:
            return (f'battery {m.number("BatId"):g}: SoC {m.number("BatSoC"):g} %, SoH {m.number("BatSoH"):g} %, '
                    f'{m.number("BatTemp"):g} degC')
        on = 'on' if m.integer('OffsetEna') == OFFSET_ON else 'off'
        return (f'{on}: {m.number("VOffPct"):g} % of voltage, {m.number("VArOffPct"):g} % of reactive power, for '
                f'{m.number("RvrtTms"):g} s')

    def battery_limits(self) -> tuple[dict[str, float], dict[str, int]]:
        """What 64202 is to be told about the battery, with its scale factors; empty where nothing is set.

        Raises `BadValue` where the device does not have the model, or a number does not fit.
        """
        p = self._params
        wanted = {name: value for name, value in (
            ('DisMinV', p.battery_min_voltage), ('DisMaxA', p.battery_discharge_current),
            ('ChaMaxV', p.battery_max_voltage), ('ChaMaxA', p.battery_charge_current)) if not isnan(value)}
        if not wanted:
            return {}, {}
        if not self._map.has(LIMITS):
            raise BadValue(f'the limits of the battery cannot be written: {self._map.problem(LIMITS)}')
        scales = self._map.read(LIMITS).sf
        for name, value in wanted.items():
            self._map.encode(LIMITS, name, value, scales)
        return wanted, scales

    def write_battery_limits(self, wanted: dict[str, float], scales: dict[str, int]) -> None:
        """Write them, and have the device take them over."""
        if wanted:
            self._map.write(LIMITS, wanted, scales)
            self._map.write(LIMITS, {'EnLimit': ACTIVATE}, {})

    def write_offset(self, voltage: float, reactive: float, seconds: float) -> None:
        """Shift the volt-var curve of 126 (64204): % of voltage, % of what 126 refers to, for how many s."""
        m = self._map.read(OFFSET)
        if not 0 < seconds <= 0xFFFE:
            raise BadValue(f'volt-var offset for {seconds:g} s: must be above 0, so that it ends by itself')
        self._map.write(OFFSET, {'VOffPct': voltage, 'VArOffPct': reactive, 'RvrtTms': int(seconds)}, m.sf)
        self._map.write(OFFSET, {'OffsetEna': OFFSET_ON}, {})

    def end_offset(self) -> None:
        """Switch the shift of the volt-var curve off."""
        self._map.write(OFFSET, {'OffsetEna': OFFSET_OFF}, {})

    def parameter(self, number: int, index: int, kind: str) -> float:
        """A vendor parameter of REFU. Assumed: 64041 shows it as soon as 64040 names it. Its list is not public."""
        if kind not in TYPES:
            raise Refused(f'{kind!r} is no type of 64041; there is: {", ".join(TYPES)}')
        self._map.write(PARAMETER, {'ParamId': number, 'ParamIndex': index}, {})
        return self._map.read(VALUE).number(kind)
