"""A battery of bare cells: `bess` is its BMS (role battery).

A guard thread of its own looks at pack voltage, current and relay ten times a second, whatever the bus and the
executor do. It opens the relay when a limit is violated, when the cells have not been measured in time, and
when everything above has been silent for too long.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import isnan, nan
from pathlib import Path
from typing import ClassVar

import numpy as np

from bess_core.params import param
from bess_core.values import BatteryReading, Contactor, Identity, Severity
from bess_drivers.cells import charge, diybms, store
from bess_drivers.cells.balancing import BalanceParams, Balancer
from bess_drivers.cells.charge import ChargeParams, Counter
from bess_drivers.cells.checks import CHECKS, CellLimits, SumCheck, factors, sum_difference, violations
from bess_drivers.cells.outputs import relay_output
from bess_drivers.cells.relay import Relay, RelayParams
from bess_drivers.device import DeviceError, Disconnected, Refused, Role
from bess_drivers.io.analog import AnalogInputs, AnalogParams
from bess_drivers.serial.bms_reading import Condition, PackParams, Snapshot, reading_from
from bess_drivers.serial.link import SerialLink

GUARD_S = 0.1
#: All conditions, for the list of faults.
CONDITIONS = (
    *CHECKS, 'sum_mismatch', 'balancer_hot', 'link_lost', 'relay_stuck', 'hardware', 'temperature_unknown')
HOUR_S = 3600.0
SAVE_S = 60.0
NONE = np.empty(0)


@dataclass(frozen=True)
class CellControllerParams(CellLimits, RelayParams, BalanceParams, ChargeParams):
    """Settings of a battery of bare cells."""

    address: str = param('', doc='line of the front end: serial:<path>?baud=2400')
    cells: int = param(16, doc='cells in series', low=1, high=32)
    timeout_s: float = param(2.0, 's', 'time for one answer of the whole chain', low=0.05, high=30.0)
    late_s: float = param(3.0, 's', 'after silence, wait so long for a late answer', low=0.1, high=60.0)
    temperature_period: float = param(5.0, 's', 'how often temperatures are read', low=0.1, high=600.0)
    relay: str = param('', doc='gpio:/dev/gpiochip0, gpiozero:, or file:<file with 0 or 1>')
    relay_pins: list[str] = param([], doc='as for `gpio`: relay=LINE relay, and contact=LINE if it is read back')
    sensor: str = param('', doc='folder of the converter that measures the pack, as for `analog`')
    sensor_channels: list[str] = param([], doc='as for `analog`: current=... (A, + = charging), and voltage=...')
    state_file: str = param('', doc='keeps the counted energy over a restart; empty = it is not kept')
    initial_soc: float = param(nan, '', 'counted share when nothing is stored; NaN = unknown until a knee', low=0.0,
                               high=1.0)

    def __post_init__(self) -> None:
        CellLimits.__post_init__(self)


class CellController:
    """See the module text (`BatteryDevice`)."""

    Params: ClassVar[type] = CellControllerParams
    role: ClassVar[Role] = Role.BATTERY

    def __init__(self, params: CellControllerParams, read_only: bool = False,
                 clock: Callable[[], float] = time.monotonic) -> None:
        p = self.params = params
        self.read_only = read_only
        self.link = SerialLink(p.address, timeout_s=p.timeout_s, late_s=p.late_s, read_only=read_only)
        self.output = relay_output(p.relay, list(p.relay_pins), read_only)
        self.sensor = AnalogInputs(AnalogParams(address=p.sensor, channels=list(p.sensor_channels)))
        names = {c.name for c in self.sensor.channels}
        if 'current' not in names or names - {'current', 'voltage'}:
            raise ValueError('sensor_channels needs current=..., and voltage=... or nothing else')
        self._with_voltage = 'voltage' in names
        self.relay = Relay(p)
        self._clock = clock
        self._lock = threading.Lock()
        self._guard: threading.Thread | None = None
        self._ending = threading.Event()
        full = p.capacity * p.nominal_cell_voltage * p.cells
        stored, _ = store.load(Path(p.state_file), full) if p.state_file else (nan, '')
        self._counter = Counter(full, p.charge_loss, p.initial_soc * full if isnan(stored) else stored)
        self._saved_at = -np.inf
        self._not_saved = ''
        self._balancer = Balancer(p, p.voltage_ext_max)
        self._levels: dict[int, float] = {}  # what the modules have
        self._sum = SumCheck(p.sum_tolerance)
        self._modules: list[diybms.Module] = []
        self._sequence = 0
        self._cells = np.full(p.cells, nan)
        self._temperatures = np.full(p.cells, nan)
        self._resistors = np.full(p.cells, nan)
        self._temperature_at = -np.inf
        self._charge_voltage = self._discharge_voltage = nan
        # Of the guard:
        self._pack = (nan, nan)  # V, A
        self._pack_at = nan
        self._closed: bool | None = None
        self._contact: bool | None = None
        self._violations: tuple[Condition, ...] = ()
        self._problem = self._pack_problem = ''
        self._stuck = False
        self._output_lost = False

    # -- relay and guard ---------------------------------------------------------------------------------

    def open(self) -> None:
        """Open the line and start the guard. Raises `DeviceError`."""
        if self._ending.is_set():
            raise Disconnected(f'{self.params.address} was shut down')
        if self._guard is None:
            self.output.open()
            self.relay.start(self._clock())
            self.guard_step()  # pack values are there before the first poll of the cells
            self._guard = threading.Thread(target=self._run, name=f'guard {self.params.address}', daemon=True)
            self._guard.start()
        self.link.open()

    def close(self) -> None:
        """Close the line; the guard goes on and opens the relay when the cells stay unmeasured."""
        self.link.close()

    def shutdown(self) -> None:
        """Open the relay and end the guard. Never raises; what failed is in the text of the next reading."""
        self._ending.set()
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.join(2.0)
            with self._lock:
                if not self.read_only:
                    self._drive(False)
                self._save(-np.inf)
                self.output.close()

    def sign_of_life(self) -> None:
        """Everything above is there."""
        with self._lock:
            self.relay.link(self._clock())

    def set_contactor(self, charge: bool, discharge: bool) -> None:
        """Both: back to automatic, confirmed once closed. Neither: open. Raises `Refused`."""
        if charge is not discharge:
            raise Refused('one relay carries both directions')
        if self.read_only:
            raise Refused('read_only is set')
        with self._lock:
            self.relay.held_open = not charge
        deadline = self._clock() + 3.0 * GUARD_S + self.params.confirm
        while self._closed is not charge:
            if self._clock() > deadline:
                raise Refused(self.relay.why or self._problem or 'the relay does not follow')
            time.sleep(GUARD_S / 4)

    def _run(self) -> None:
        while not self._ending.wait(GUARD_S):
            self.guard_step()

    def guard_step(self) -> None:
        """One look of the guard; public for tests without a thread."""
        now = self._clock()
        try:
            values = self.sensor.read(now).analog_inputs
            current = values['current']
            voltage = values['voltage'] if self._with_voltage else float(np.sum(self._cells))
        except DeviceError as error:
            voltage = current = nan
            self._pack_problem = f'pack: {error}'
        else:
            self._pack_problem = ''
        with self._lock:
            power = voltage * current
            if not isnan(self._pack_at) and not isnan(power):
                self._counter.add(power * (now - self._pack_at) / HOUR_S)
            self._pack, self._pack_at = (voltage, current), now
            unknown = isnan(voltage) and not self._with_voltage and not isnan(current)
            self._violations = () if unknown else violations(NONE, NONE, voltage, current, self.params)
            if self._violations:
                self.relay.fault(now)
            self._step_relay(now)

    def _step_relay(self, now: float) -> None:
        if self._ending.is_set():
            return  # `shutdown` has the last word
        try:
            if self._output_lost:
                self.output.close()
                self.output.open()
            self._closed, self._contact = self.output.closed(), self.output.contact()
            self._output_lost = False
        except DeviceError as error:
            self._closed = self._contact = None
            self._output_lost = True
            self._problem = f'relay: {error}'
            return
        self._problem = ''
        wanted = self.relay.decide(now, bool(self._closed)) and not self._violations
        self._stuck = self.relay.stuck(now, wanted, self._contact if self._contact is not None else self._closed)
        if wanted is not self._closed and not self.read_only:
            self._drive(wanted)

    def _drive(self, closed: bool) -> None:
        try:
            self.output.drive(closed)
            self._closed = closed
        except DeviceError as error:
            self._problem = f'relay: {error}'

    def _save(self, now: float) -> None:
        """Store the counted energy from time to time; -inf = at once."""
        if self.params.state_file and not self.read_only and not 0.0 <= now - self._saved_at < SAVE_S:
            self._saved_at = now
            self._not_saved = store.save(Path(self.params.state_file), self._counter.energy, self._counter.full)

    # -- front end ---------------------------------------------------------------------------------------

    def _ask(self, command: int, data: bytes = b'', start: int = 0, cells: int = 0,
             write: bool = False) -> list[tuple[float, ...]]:
        cells = cells or self.params.cells
        self._sequence = (self._sequence + 1) % 8
        content = self.link.transact(
            diybms.request(command, start, cells, self._sequence, data),
            diybms.extractor(command, start, cells, self._sequence), write=write)
        return diybms.replies(content, command, cells)

    def identify(self) -> Identity:
        """Settings of all modules. Raises `DeviceError`."""
        self._modules = [diybms.module(r) for r in self._ask(diybms.SETTINGS)]
        return Identity('diyBMS', f'{len(self._modules)} modules', version=f'{self._modules[0].version:08x}')

    def _measure(self, now: float) -> tuple[np.ndarray, list[bool], list[bool]]:
        raw = [int(r[0]) for r in self._ask(diybms.VOLTAGES)]
        u = np.array([m.volts(r & diybms.ADC_MASK) for m, r in zip(self._modules, raw, strict=True)])
        if now - self._temperature_at >= self.params.temperature_period:
            answers = zip(self._ask(diybms.TEMPERATURE), self._modules, strict=True)
            pairs = [diybms.temperatures(r, m) for r, m in answers]
            self._resistors, self._temperatures = (np.array(column) for column in zip(*pairs, strict=True))
            self._temperature_at = now
        return u, [bool(r & diybms.BALANCING) for r in raw], [bool(r & diybms.OVER_TEMPERATURE) for r in raw]

    def _balance(self, u: np.ndarray) -> None:
        goals = self._balancer.step([float(v) for v in u])
        if self.read_only or goals == self._levels:
            return
        for cell in sorted(set(goals) | set(self._levels)):
            if goals.get(cell) != self._levels.get(cell):
                level = self._modules[cell].raw(goals[cell]) if cell in goals else 0
                self._ask(diybms.BALANCE_LEVEL, level.to_bytes(2, 'little'), cell, 1, write=True)
                self._levels = {**{k: v for k, v in self._levels.items() if k != cell},
                                **({cell: goals[cell]} if cell in goals else {})}

    def read(self, now: float) -> BatteryReading:
        """One poll of all cells; `now` (s, site clock) becomes its time. Raises `DeviceError`."""
        p = self.params
        if len(self._modules) != p.cells:
            self.identify()
        u, balancing, hot = self._measure(now)
        with self._lock:
            self._cells = u
            voltage, current = self._pack
            if not self._with_voltage:
                voltage = float(np.sum(u))
            beyond = violations(u, self._temperatures, voltage, current, p)
            self.relay.measured(self._clock(), not beyond)
            lowest = float(np.min(u)) - (0.0 if isnan(current) else current * p.cell_resistance)
            self._counter.knee(lowest, p)
            self._step_relay(self._clock())
            closed, why, stuck = self._closed, self.relay.why, self._stuck
            problem = '; '.join(t for t in (self._problem, self._pack_problem, self._not_saved) if t)
            self._save(now)
            share = self._counter.energy / self._counter.full
        soc = charge.soc(lowest, share, p)
        self._balance(u)
        mismatch = self._sum.step(sum_difference(voltage, u)) if self._with_voltage else None
        conditions = (*beyond, *([mismatch] if mismatch else []), *self._more(hot, problem, stuck))
        return self._reading(now, u, voltage, current, soc, share, closed, why, balancing, conditions)

    def _more(self, hot: list[bool], problem: str, stuck: bool) -> list[Condition]:
        found = []
        if any(hot):
            found.append(Condition('balancer_hot', f'balancing resistor of cell {hot.index(True) + 1} is too hot',
                                   Severity.WARNING))
        if self.relay.lost:
            found.append(Condition('link_lost', 'the link to everything above is lost', Severity.ERROR, True, True))
        if stuck and not self.read_only:
            found.append(Condition('relay_stuck', 'the relay does not follow', Severity.CRITICAL, True, True))
        if problem:
            found.append(Condition('hardware', problem, Severity.ERROR, True, True))
        missing = int(np.isnan(self._temperatures).sum())
        if missing and self.params.temperature_required:
            found.append(Condition('temperature_unknown', f'{missing} cells without a temperature', Severity.ERROR,
                                   True, True))
        return found

    def _reading(self, now: float, u: np.ndarray, voltage: float, current: float, soc: float, share: float,
                 closed: bool | None, why: str, balancing: list[bool],
                 conditions: tuple[Condition, ...]) -> BatteryReading:
        p = self.params
        charging, discharging = factors(u, self._temperatures, soc, p)
        allowed = [float(np.min(f)) * limit for f, limit in (
            (charging, p.max_charge_current), (discharging, p.max_discharge_current))]
        self._charge_voltage = charge.adapt(
            self._charge_voltage, charge.charge_voltage(u, p.voltage_ext_max, p.balance_range), p.voltage_decay)
        self._discharge_voltage = charge.discharge_voltage(u, p.voltage_ext_min, p.balance_range)
        known = [float(t) for t in self._temperatures if not isnan(t)]
        snapshot = Snapshot(
            voltage=voltage, current=current, cells=tuple(float(v) for v in u), temperatures=tuple(known),
            charge=share * p.capacity, charge_full=p.capacity, charge_on=closed, discharge_on=closed,
            charge_limit=allowed[0], discharge_limit=allowed[1], balancing=tuple(balancing), conditions=conditions)
        reading = reading_from(snapshot, _LIMITS_ARE_OURS, 'cells', now)
        reasons = [*reading.limit_reasons, f'cells: charge voltage {self._charge_voltage:.2f} V']
        if why:
            reasons.append(f'cells: relay open: {why}')
        return replace(reading, soc=soc, limit_reasons=reasons, energy=share * self._counter.full,
                       energy_full=self._counter.full,
                       contactor=Contactor.UNKNOWN if closed is None else reading.contactor)

    @property
    def charge_voltage(self) -> float:
        """V, adaptive limit for the charger; NaN before the first poll."""
        return self._charge_voltage


#: The limits of a finished BMS do not apply here: `factors` has made them already.
_LIMITS_ARE_OURS = PackParams(
    max_charge_current=5000.0, max_discharge_current=5000.0, cell_voltage_high=5.0, cell_voltage_low=0.5,
    cell_voltage_taper=0.0, charge_temperature_min=-40.0, charge_temperature_max=100.0, discharge_temperature_min=-40.0,
    discharge_temperature_max=100.0)
