"""One inverter: orders, dead time, ramp, first-order lag, limits, losses. Scalars: few members.

AC power P > 0 charges. DC power is P - loss(|S|) with
loss = fixed + proportional |S| + quadratic S^2 / rating (the usual three-term converter model,
e.g. Notton et al., Renewable Energy 35 (2010) 541-554).
"""

from __future__ import annotations

from collections import deque
from math import exp, hypot, isfinite, isnan, sqrt

from bess_sim.plant_config import InverterConfig


class Inverter:
    """State of one inverter. `power` (W, + = charging) and `reactive_power` (var) flow at AC."""

    #: K above ambient per W of loss at a 5 kW device, and its thermal time constant in s
    HEATING = 0.15
    THERMAL_TIME = 900.0

    def __init__(self, config: InverterConfig, ambient: float) -> None:
        # read at each step, and reading a validated section takes as long as a step: plain values
        self.rating, self.phase, self.standby_power = config.rating, config.phase, config.standby_power
        self.dead_time, self.lag, self.own_ramp = config.dead_time, config.lag, config.ramp
        self.proportional = config.proportional_loss
        self.charge_limit = min(config.max_charge_power or config.rating, config.rating)
        self.discharge_limit = min(config.max_discharge_power or config.rating, config.rating)
        self.fixed = 0.0062 * config.rating if config.fixed_loss is None else config.fixed_loss
        self.quadratic = config.quadratic_loss / config.rating
        self._pending: deque[tuple[float, float, float, float]] = deque()  # due time, W, var, W/s
        self.target = (0.0, 0.0)  # order after clamping
        self.ramp = config.ramp
        self.reference = self.reactive_reference = 0.0  # after the ramp
        self.shaft = self.reactive_shaft = 0.0  # after the lag
        self.power = self.reactive_power = self.dc_power = 0.0
        self.running = True
        self.ambient = self.temperature = ambient
        self.energy_import = self.energy_export = self.loss_energy = 0.0  # Ws
        self._dt = self._keep = self._keep_heat = 0.0

    def order(self, power: float, reactive_power: float, ramp: float, now: float) -> None:
        """Take an order at time `now` (s): W, var (NaN = as before), W/s (NaN = own ramp)."""
        if not (isfinite(power) or isnan(power)) or not (
            isfinite(reactive_power) or isnan(reactive_power)
        ):
            raise ValueError(
                f'inverter order must be finite or NaN: {power!r} W, {reactive_power!r} var'
            )
        if not isnan(ramp) and ramp <= 0.0:
            raise ValueError(f'ramp must be above 0 W/s, not {ramp!r}')
        self._pending.append((now + self.dead_time, power, reactive_power, ramp))

    def loss(self, power: float, reactive_power: float) -> float:
        """Loss (W, >= 0) while running at this AC power."""
        apparent = hypot(power, reactive_power) if reactive_power else abs(power)
        return self.fixed + (self.proportional + self.quadratic * apparent) * apparent

    def wish(self, now: float, dt: float, can_charge: bool, can_discharge: bool) -> float:
        """Advance the response by `dt`; returns the DC power (W) it wants. `settle` must follow."""
        pending = self._pending
        while pending and pending[0][0] <= now + 1e-9:
            _, power, reactive, ramp = pending.popleft()
            self._accept(power, reactive, ramp)
        if dt != self._dt:
            self._dt, self._keep = dt, relaxation(self.lag, dt)
            self._keep_heat = relaxation(self.THERMAL_TIME, dt)
        power, reactive = self.target
        move = self.ramp * dt
        self.reference += min(max(power - self.reference, -move), move)
        self.reactive_reference += min(max(reactive - self.reactive_reference, -move), move)
        self.running = can_charge or can_discharge
        if not self.running:
            self._halt()
            return 0.0
        self.shaft = self.reference + (self.shaft - self.reference) * self._keep
        self.reactive_shaft = (
            self.reactive_reference + (self.reactive_shaft - self.reactive_reference) * self._keep
        )
        if (self.shaft > 0.0 and not can_charge) or (self.shaft < 0.0 and not can_discharge):
            self.shaft = self.reference = 0.0
        dc = self.shaft - self.loss(self.shaft, self.reactive_shaft)
        return dc if (can_charge if dc > 0.0 else can_discharge) else 0.0

    def settle(self, wished: float, dc_power: float, dt: float) -> None:
        """Book the step with the DC power (W) that the pack took; keeps AC = DC + loss exact."""
        self.dc_power = dc_power
        reactive = self.reactive_shaft
        if not self.running:
            power, reactive = self.standby_power, 0.0
            loss = power - dc_power
        elif dc_power == wished == self.shaft - (loss := self.loss(self.shaft, reactive)):
            power = self.shaft
        else:  # the pack took less: the AC power that belongs to its power (loss is nearly flat)
            power = dc_power
            for _ in range(4):
                loss = self.loss(power, reactive)
                power = dc_power + loss
            loss = power - dc_power
        self.power, self.reactive_power = power, reactive
        if power > 0.0:
            self.energy_import += power * dt
        else:
            self.energy_export -= power * dt
        self.loss_energy += loss * dt
        final = self.ambient + self.HEATING * loss * 5000.0 / self.rating
        self.temperature = final + (self.temperature - final) * self._keep_heat

    def _accept(self, power: float, reactive: float, ramp: float) -> None:
        """Clamp an order to rating and apparent-power circle, active power first."""
        power = self.target[0] if isnan(power) else power
        reactive = self.target[1] if isnan(reactive) else reactive
        power = min(max(power, -self.discharge_limit), self.charge_limit)
        rest = sqrt(max(self.rating * self.rating - power * power, 0.0))
        self.target = (power, min(max(reactive, -rest), rest))
        self.ramp = self.own_ramp if isnan(ramp) else min(ramp, self.own_ramp)

    def _halt(self) -> None:
        self.reference = self.reactive_reference = self.shaft = self.reactive_shaft = 0.0


def relaxation(time_constant: float, dt: float) -> float:
    """Share of a step response that is left after `dt` (s): exp(-dt / T), 0 for no lag."""
    return exp(-dt / time_constant) if time_constant > 0.0 else 0.0
