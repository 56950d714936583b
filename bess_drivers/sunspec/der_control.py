"""Writes power orders to a SunSpec inverter through 704 of the DER models.

Device timers: SunSpec gives each control a reversion time after which the device returns to the
reversion value by itself. The text of the models does not say which writes start that timer anew,
and devices differ. So each order is one write of the setpoint alone, and after a third of the time
the reversion time and the enable are written again as well: under every reading of the rule the
timer never falls below two thirds of the lease while orders arrive, and it always ends within the
lease (rounded up to whole seconds) after the last one.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isnan, nan

from bess_drivers.device import BadValue, Refused
from bess_drivers.sunspec.codec import ModelValues
from bess_drivers.sunspec.control_common import (
    LOCAL,
    OFF,
    SHUTTING_DOWN,
    SLEEPING,
    STANDBY,
    Timer,
    check_reactive,
    revert_seconds,
    run_all,
)
from bess_drivers.sunspec.device_map import DeviceMap
from bess_drivers.sunspec.inverter_decode import VARS, WATTS
from bess_drivers.sunspec.inverter_params import POWER_SIGNS, REACTIVE_SIGNS, SunSpecInverterParams

OP_STOP, OP_START, OP_EXIT_STANDBY = 0, 1, 3  # 715 OpCtl


class DerSetpoint:
    """One setpoint function of 704: `prefix` 'WSet' or 'VarSet', `mode` its code for W or var."""

    def __init__(
        self, device: DeviceMap, prefix: str, mode: int, clock: Callable[[], float]
    ) -> None:
        self._map, self._prefix, self._mode = device, prefix, mode
        self._timer = Timer(clock)
        self._sf: dict[str, int] = {}
        self._value = nan  # as written last
        self.has_timer = False
        self.armed = False
        self.touched = False  # enabled by us and not released since

    def __str__(self) -> str:
        return self._prefix

    def possible(self, control: ModelValues) -> bool:
        """Whether the device has this function."""
        return control.has(f'{self._prefix}Ena')

    def observe(self, control: ModelValues) -> bool:
        """Compare with what the device says; False if it dropped an order that was confirmed."""
        wrong = self.armed and (
            control.integer(f'{self._prefix}Ena') != 1
            or control.integer(f'{self._prefix}Mod') not in (self._mode, None)
        )
        if wrong:
            self.armed = False
        return not wrong

    def check(self, value: float, control: ModelValues) -> None:
        """Raise `BadValue` if this value could not be written."""
        if not self.possible(control):
            raise BadValue(f'704 {self._prefix} is not implemented in this device')
        self._map.encode(704, self._prefix, value, control.sf)

    def arm(self, value: float, seconds: int, control: ModelValues) -> None:
        """First order: setpoint, mode and reversion first, the enable in a write of its own."""
        p = self._prefix
        self._sf = control.sf
        self.has_timer = control.has(f'{p}RvrtTms')
        setup: dict[str, float] = {p: value}
        # points that the device does not implement are not written
        if control.integer(f'{p}Mod') not in (self._mode, None):
            setup[f'{p}Mod'] = self._mode
        if control.has(f'{p}Rvrt') and control.number(f'{p}Rvrt') != 0:
            setup[f'{p}Rvrt'] = 0
        if self.has_timer:
            # enabled after reversion: holds zero, where disabled would mean "as the device likes"
            if control.integer(f'{p}EnaRvrt') == 0:
                setup[f'{p}EnaRvrt'] = 1
            setup[f'{p}RvrtTms'] = seconds
        self.touched = True
        self._map.write(704, setup, self._sf)
        self._map.write(704, {f'{p}Ena': 1}, self._sf)
        self._timer.written(seconds)
        self._value, self.armed = value, True

    def order(self, value: float, seconds: int, always: bool) -> None:
        """Further order: one request, three when the timer is due; the same only if `always`."""
        due = self.has_timer and self._timer.due(seconds)
        if not (always or due or value != self._value):
            return
        self._map.write(704, {self._prefix: value}, self._sf)
        self._value = value
        if due:
            self._map.write(704, {f'{self._prefix}RvrtTms': seconds}, self._sf)
            self._map.write(704, {f'{self._prefix}Ena': 1}, self._sf)
            self._timer.written(seconds)

    def release(self) -> None:
        """Zero, then disable. The second is tried even if the device refuses the first."""
        self.armed = False
        refusal: Refused | None = None
        try:
            # zero is zero under every scale factor
            self._map.write(704, {self._prefix: 0}, {f'{self._prefix}_SF': 0})
        except Refused as error:
            refusal = error
        self._map.write(704, {f'{self._prefix}Ena': 0}, {})
        self.touched = False
        if refusal:
            raise refusal


class DerExtras:
    """Power factor and ramp of the site file in 704: written with the first order, taken back by stop."""

    def __init__(self, device: DeviceMap, params: SunSpecInverterParams) -> None:
        self._map, self._pf, self._ramp = device, params.power_factor, params.ramp
        self._limits = (params.battery_charge_current, params.battery_discharge_current, params.battery_min_voltage,
                        params.battery_max_voltage)
        self.touched = False

    def check(self, control: ModelValues) -> None:
        """Raise `BadValue` for what the device does not have."""
        if not all(map(isnan, self._limits)):
            raise BadValue('the limits of the battery are for 64800 or 64202: this device has neither')
        if not isnan(self._ramp):
            if not control.has('WRmp'):
                raise BadValue('704 WRmp is not implemented in this device')
            self._map.encode(704, 'WRmp', self._ramp, control.sf)
        for side in () if isnan(self._pf) else ('Inj', 'Abs'):
            if not control.has(f'PFW{side}Ena'):
                raise BadValue(f'704 PFW{side} is not implemented in this device')
            self._map.encode(704, f'PFW{side}.PF', abs(self._pf), control.sf)

    def arm(self, control: ModelValues) -> None:
        """Write what differs: values first, enables in writes of their own."""
        if not isnan(self._ramp) and control.number('WRmp') != self._ramp:
            self._map.write(704, {'WRmp': self._ramp}, control.sf)
        if isnan(self._pf):
            return
        for side in ('Inj', 'Abs'):
            excitation = 1 if self._pf < 0 else 0
            self._map.write(704, {f'PFW{side}.PF': abs(self._pf), f'PFW{side}.Ext': excitation}, control.sf)
            self._map.write(704, {f'PFW{side}Ena': 1}, {})
        self.touched = True

    def release(self) -> None:
        """The power factor is the device's own again."""
        run_all([lambda n=n: self._map.write(704, {n: 0}, {}) for n in ('PFWInjEna', 'PFWAbsEna')])  # type: ignore[misc]
        self.touched = False


class DerControl:
    """Orders through 704, start and stop through 715 where it is there."""

    def __init__(
        self, device: DeviceMap, params: SunSpecInverterParams, clock: Callable[[], float]
    ) -> None:
        self._map, self._params = device, params
        self._power = DerSetpoint(device, 'WSet', WATTS, clock)
        self._reactive = DerSetpoint(device, 'VarSet', VARS, clock)
        self._extras = DerExtras(device, params)

    def forget(self) -> None:
        """The device may have restarted: begin again with the next order."""
        self._power.armed = self._reactive.armed = False

    @property
    def without_timer(self) -> bool:
        """Whether an order stands in a device that would not drop it by itself."""
        return self._power.armed and not self._power.has_timer

    def observe(self, control: ModelValues) -> list[str]:
        """Names of the setpoints that the device confirmed and no longer follows."""
        return [str(s) for s in (self._power, self._reactive) if not s.observe(control)]

    def order(self, power: float, reactive: float, lease: float) -> None:
        """See `ConverterDevice.write_power`. What cannot be written is found first."""
        seconds = revert_seconds(lease, 0xFFFFFFFE)
        reactive = check_reactive(self._params, reactive)
        orders = [(self._power, power * POWER_SIGNS[self._params.power_sign])]
        if not isnan(reactive):
            orders.append((self._reactive, reactive * REACTIVE_SIGNS[self._params.reactive_sign]))
        if not all(setpoint.armed for setpoint, _ in orders):
            control = self._map.read(704)
            if reactive == 0 and not self._reactive.possible(control):
                orders = orders[:1]  # a device without reactive control gives no reactive power
            for setpoint, value in orders:
                setpoint.check(value, control)
            if not self._power.armed:
                self._extras.check(control)
                self._start()
                self._extras.arm(control)
        for setpoint, value in orders:
            if setpoint.armed:
                setpoint.order(value, seconds, always=setpoint is self._power)
            else:
                setpoint.arm(value, seconds, control)

    def _start(self) -> None:
        if not self._map.has(715):
            return
        control = self._map.read(715)
        if control.integer('LocRemCtl') == LOCAL:
            raise Refused('the inverter is in local control')
        if not self._params.start_on_order or not self._map.has(701):
            return
        state = self._map.read(701, 8).integer('InvSt')
        if state in (OFF, SLEEPING, SHUTTING_DOWN):
            self._map.write(715, {'OpCtl': OP_START}, {})
        elif state == STANDBY:
            self._map.write(715, {'OpCtl': OP_EXIT_STANDBY}, {})

    def stop(self) -> None:
        """Zero and disable; everything is tried even if the device refuses a part."""
        steps: list[Callable[[], None]] = [self._power.release]
        if self._reactive.touched:
            steps.append(self._reactive.release)
        if self._extras.touched:
            steps.append(self._extras.release)
        if self._params.off_on_stop and self._map.has(715):
            steps.append(lambda: self._map.write(715, {'OpCtl': OP_STOP}, {}))
        run_all(steps)


