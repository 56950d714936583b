"""What MESA and SunSpec point names stand for in our roles. Model 802: sunspec/models @7abdf89."""

from __future__ import annotations

from typing import NamedTuple

from bess_drivers.device import Role


class Meaning(NamedTuple):
    """Value of the role that a point fills, its unit there, and the factor to our sign."""

    value: str
    unit: str
    sign: float = 1.0


#: Base battery (802). The standard does not state the sign of A and W: `invert` of the site file turns it.
_BATTERY = {
    'AHRtg': Meaning('charge_full', 'Ah'), 'WHRtg': Meaning('energy_full', 'Wh'),
    'WChaRteMax': Meaning('max_charge_power', 'W'), 'WDisChaRteMax': Meaning('max_discharge_power', 'W'),
    'SoC': Meaning('soc', '%'), 'SoH': Meaning('soh', '%'),
    'V': Meaning('voltage', 'V'), 'A': Meaning('current', 'A'), 'W': Meaning('power', 'W'),
    'AChaMax': Meaning('max_charge_current', 'A'), 'ADisChaMax': Meaning('max_discharge_current', 'A'),
    'CellVMax': Meaning('cell_voltage_max', 'V'), 'CellVMin': Meaning('cell_voltage_min', 'V'),
}  # fmt: skip
#: Three-phase inverter (103) and Rhombus RES-125; generation is positive in both.
_CONVERTER = {
    'W': Meaning('active_power', 'W', -1.0), 'VAr': Meaning('reactive_power', 'var', -1.0),
    'VA': Meaning('apparent_power', 'VA'), 'Hz': Meaning('frequency', 'Hz'),
    'PhVphA': Meaning('voltage_1', 'V'), 'PhVphB': Meaning('voltage_2', 'V'), 'PhVphC': Meaning('voltage_3', 'V'),
    'AphA': Meaning('current_1', 'A'), 'AphB': Meaning('current_2', 'A'), 'AphC': Meaning('current_3', 'A'),
    'DCV': Meaning('dc_voltage', 'V'), 'DCA': Meaning('dc_current', 'A', -1.0), 'DCW': Meaning('dc_power', 'W', -1.0),
    'TmpCab': Meaning('temperature', 'degC'),
    'GridFrequency': Meaning('frequency', 'Hz'), 'DCLinkVoltage': Meaning('dc_voltage', 'V'),
    'HeatSinkTemperature': Meaning('temperature', 'degC'),
    'PhaseAGridVoltageRMS': Meaning('voltage_1', 'V'), 'PhaseBGridVoltageRMS': Meaning('voltage_2', 'V'),
    'PhaseCGridVoltageRMS': Meaning('voltage_3', 'V'),
}  # fmt: skip
_METER = {
    'W': Meaning('active_power', 'W'), 'WphA': Meaning('phase_power_1', 'W'), 'WphB': Meaning('phase_power_2', 'W'),
    'WphC': Meaning('phase_power_3', 'W'), 'VAR': Meaning('reactive_power', 'var'),
    'VA': Meaning('apparent_power', 'VA'),
    'Hz': Meaning('frequency', 'Hz'), 'PhVphA': Meaning('voltage_1', 'V'), 'PhVphB': Meaning('voltage_2', 'V'),
    'PhVphC': Meaning('voltage_3', 'V'), 'AphA': Meaning('current_1', 'A'), 'AphB': Meaning('current_2', 'A'),
    'AphC': Meaning('current_3', 'A'), 'TotWhImp': Meaning('energy_import', 'Wh'),
    'TotWhExp': Meaning('energy_export', 'Wh'),
}  # fmt: skip

MEANINGS: dict[Role, dict[str, Meaning]] = {
    Role.BATTERY: _BATTERY, Role.CONVERTER: _CONVERTER, Role.METER: _METER, Role.IO: {}, Role.CLIMATE: {},
}
