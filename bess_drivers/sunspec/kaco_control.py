"""Writes power orders to a KACO blueplanet gridsave: vendor model 64201. Layout and codes: OpenEMS.

WSetPct is in % of WMax, negative = charging; VarSetPct in % of VAMax. The device's watchdog starts anew with every
write and takes the orders away when it ends: the lease is written with each order, in one request.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isnan, nan

from bess_core.values import ConverterState
from bess_drivers.device import BadValue
from bess_drivers.sunspec.codec import ModelValues
from bess_drivers.sunspec.control_common import revert_seconds
from bess_drivers.sunspec.device_map import DeviceMap
from bess_drivers.sunspec.inverter_decode import first_known
from bess_drivers.sunspec.inverter_params import POWER_SIGNS, REACTIVE_SIGNS, SunSpecInverterParams
from bess_drivers.sunspec.vendor_functions import VendorFunctions

MODEL = 64201
OFF, GRID_CONNECTED = 1, 11  # RequestedState; OFF also clears errors that do not persist
ACKNOWLEDGE = 12  # CurrentState: no error pends, it waits for an acknowledgement
DEVICE_SETTINGS, FIXED_Q = 0, 1  # ControlMode
#: CurrentState beyond those of 103 St
STATES = {9: ConverterState.STARTING, 10: ConverterState.STANDBY, 11: ConverterState.RUNNING,
          ACKNOWLEDGE: ConverterState.FAULT}


class KacoControl:
    """Orders through 64201. Like `LegacyControl`, which does the same through 123 or 124."""

    def __init__(self, device: DeviceMap, params: SunSpecInverterParams, clock: Callable[[], float],
                 vendor: VendorFunctions) -> None:
        self._map, self._params, self._vendor = device, params, vendor
        self._sf: dict[str, int] = {}
        self._limits: tuple[dict[str, float], dict[str, int]] = ({}, {})
        self._state: int | None = None
        self._maxima = (nan, nan)  # W, VA
        self._armed = self._fixed_q = False
        self.power = self.reactive = nan  # W and var, last order

    def forget(self) -> None:
        """The device may have restarted: begin again with the next order."""
        self._armed = False

    @property
    def without_timer(self) -> bool:
        """Its watchdog is always there."""
        return False

    def observe(self, control: ModelValues) -> list[str]:
        """The watchdog at 0 means that it was switched off by somebody else."""
        if self._armed and control.number('Watchdog') == 0:
            self._armed = False
            return ['Watchdog']
        return []

    def order(self, power: float, reactive: float, lease: float) -> None:
        """See `ConverterDevice.write_power`. One request; the first order reads the ratings and starts the device."""
        seconds = revert_seconds(lease, 0xFFFE)
        wants_q = not isnan(reactive) and reactive != 0
        if not self._armed:
            self._prepare()
        values = {'Watchdog': float(seconds),
                  'WSetPct': POWER_SIGNS[self._params.power_sign] * self._percent(power, self._maxima[0], 'WMax')}
        if not isnan(reactive):
            values['VarSetPct'] = REACTIVE_SIGNS[self._params.reactive_sign] * self._percent(
                reactive, self._maxima[1], 'VAMax')
        if wants_q and not self._fixed_q:
            self._map.write(MODEL, {'ControlMode': FIXED_Q}, {})
            self._fixed_q = True
        if not self._armed:
            self._vendor.write_battery_limits(*self._limits)  # without them it does not pre-charge
            self._start()
        self._map.write(MODEL, values, self._sf)
        self._armed, self.power = True, float(power)
        if not isnan(reactive):
            self.reactive = float(reactive)

    def _prepare(self) -> None:
        p = self._params
        if not all(map(isnan, (p.power_factor, p.ramp))):
            raise BadValue('64201 takes no power factor or ramp from here')
        self._limits = self._vendor.battery_limits()  # raises before anything is written
        models = self._map.read_models({MODEL: 0, **{m: 0 for m in (120, 121) if self._map.has(m)}})
        self._sf = models[MODEL].sf
        rated, settings = models.get(120), models.get(121)
        self._maxima = (
            first_known(settings.number('WMax') if settings else nan, rated.number('WRtg') if rated else nan),
            first_known(settings.number('VAMax') if settings else nan, rated.number('VARtg') if rated else nan))
        self._state = models[MODEL].integer('CurrentState')

    @staticmethod
    def _percent(value: float, maximum: float, name: str) -> float:
        if value == 0:
            return 0.0
        if not maximum > 0:
            raise BadValue(f'{name}, to which the order refers, is not known')
        if abs(value) > 1.00001 * maximum:
            raise BadValue(f'{value:g} is more than {name} = {maximum:g}')
        return 100.0 * value / maximum

    def _start(self) -> None:
        if not self._params.start_on_order or self._state == GRID_CONNECTED:
            return
        if self._state == ACKNOWLEDGE:
            self._map.write(MODEL, {'RequestedState': OFF}, {})
        self._map.write(MODEL, {'RequestedState': GRID_CONNECTED}, {})

    def stop(self) -> None:
        """Zero, and the watchdog off: nothing is commanded any more."""
        zero = {'WSetPct_SF': 0, 'VarSetPct_SF': 0}  # zero is zero under every scale
        self._map.write(MODEL, {'Watchdog': 0, 'WSetPct': 0, 'VarSetPct': 0}, zero)
        if self._fixed_q:
            self._map.write(MODEL, {'ControlMode': DEVICE_SETTINGS}, {})
        if self._params.off_on_stop:
            self._map.write(MODEL, {'RequestedState': OFF}, {})
        self._armed = self._fixed_q = False
        self.power, self.reactive = 0.0, nan
