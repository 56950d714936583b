"""A Modbus device of any role, described by a profile."""

from __future__ import annotations

from math import inf, isfinite, nan
from typing import ClassVar

from bess_drivers.device import BadValue, DeviceError, Refused, Role
from bess_drivers.modbus.profile_base import ProfileDevice, ProfileParams
from bess_drivers.output_gate import OutputRule
from bess_drivers.profiles.orders import Order

__all__ = ['ModbusBattery', 'ModbusClimate', 'ModbusConverter', 'ModbusIo', 'ModbusMeter', 'ProfileDevice',
           'ProfileParams']


class ModbusMeter(ProfileDevice):
    """A meter that a profile describes (`MeterDevice`)."""

    role: ClassVar[Role] = Role.METER


class ModbusBattery(ProfileDevice):
    """A battery that a profile describes (`BatteryDevice`)."""

    role: ClassVar[Role] = Role.BATTERY

    def set_contactor(self, charge: bool, discharge: bool) -> None:
        """Open or close the paths as the profile says, and wait for the confirmation that it names."""
        self._refuse_read_only()
        key = {(True, True): 'closed', (False, False): 'open', (True, False): 'charge_only',
               (False, True): 'discharge_only'}[charge, discharge]
        if key not in self.profile.contactor:
            known = ', '.join(self.profile.contactor) or 'none'
            raise BadValue(f'profile {self.profile.name} has no order for "{key}"; it has: {known}')
        self._carry_out(self.profile.contactor[key], Order())
        if confirm := self.profile.confirm.get(key):
            self._until(confirm.point, confirm.equals, confirm.within)


class ModbusConverter(ProfileDevice):
    """A converter that a profile describes (`ConverterDevice`)."""

    role: ClassVar[Role] = Role.CONVERTER

    def write_power(self, power: float, reactive_power: float, lease: float) -> None:
        """See `ConverterDevice`. Before the first order after connecting or a stop the start sequence is sent."""
        self._refuse_read_only()
        if not isfinite(power):
            raise BadValue(f'power of {power} W')
        if not self.profile.order:
            raise BadValue(f'profile {self.profile.name} takes no orders')
        order = Order(power=power, reactive_power=reactive_power, lease=lease, security_code=self._code(),
                      dc_voltage=float(self._values.get('dc_voltage', nan)))
        if not self._started:
            self._carry_out(self.profile.start, order)
            self._started = True
        try:
            self._carry_out(self.profile.order, order, self._clock() + lease)
        except DeviceError as error:
            if not isinstance(error, (Refused, BadValue)):
                self._started = False  # it may have restarted
                self._limiter.forget()
            raise

    def set_grid_forming(self, on: bool) -> None:
        """See `GridFormingDevice`."""
        self._refuse_read_only()
        steps = self.profile.grid_forming.get('island' if on else 'grid')
        if not steps:
            raise BadValue(f'profile {self.profile.name} has no order for grid forming')
        self._limiter.forget()  # the device may have changed by itself since: what is asked is written
        self._carry_out(steps, Order(power=0.0, security_code=self._code()))

    def _code(self) -> float:
        return float(self.params.security_code) if self.params.security_code else nan

    def stop(self) -> None:
        """See `ConverterDevice`."""
        self._refuse_read_only()
        self._started = False
        self._carry_out(self.profile.stop, Order(power=0.0, reactive_power=0.0, lease=0.0, security_code=self._code()))


class ModbusIo(ProfileDevice):
    """An I/O module that a profile describes."""

    role: ClassVar[Role] = Role.IO

    def write_output(self, name: str, value: float) -> None:
        """Set one output (0 or 1, or SI). Raises `BadValue` for what is no output."""
        self._refuse_read_only()
        point = self.profile.points.get(name)
        if point is None or not point.keys.kind.endswith('output'):
            raise BadValue(f'{name!r} is no output of {self.profile.name}')
        number = value if point.keys.kind == 'digital_output' else point.raw(value, base=self._base(point))
        self._send(point, number)

    def output_rules(self) -> dict[str, OutputRule]:
        """What the last gate lets through, by output."""
        rules = {}
        for name, point in self.profile.points.items():
            if point.keys.kind.endswith('output'):
                digital = point.keys.kind == 'digital_output'
                low, high = point.keys.range or (-inf, inf)
                rules[name] = OutputRule(point.keys.safe, point.keys.latched, digital, low, high)
        return rules


class ModbusClimate(ProfileDevice):
    """A climate device that a profile describes."""

    role: ClassVar[Role] = Role.CLIMATE

    def write_climate(self, mode: float, temperature: float) -> None:
        """Set mode (`ClimateMode`) and target temperature (degC); NaN = leave."""
        self._refuse_read_only()
        if not self.profile.climate:
            raise BadValue(f'profile {self.profile.name} takes no orders')
        self._carry_out(self.profile.climate, Order(mode=mode, temperature=temperature))
