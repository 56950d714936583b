"""Machine of one storage unit: battery, contactors and converter started, used and stopped as one. Pure.

States and commands are those of the BESS Agent (University of Toledo, `storage_params`). It never waits: `command`
answers at once, `tick` looks at what was measured and says what is *wanted* now: contactors, converter, power. Whoever
drives the hardware makes it so, and tries again as long as it is not. A state that means "done" (HOLDING, CHARGING,
STOPPED ...) is entered only when the measurement says so; every state that waits has a time-out.

Order of a start: sound readings, contactors closed, converter on, zero. Of a stop: zero, and when nothing flows
(or its time is over) converter off, then contactors open. STOPPED means that both are confirmed; until then the unit
stays in STOPPING and `fault` says what is missing.
"""

from __future__ import annotations

from math import acos, inf, isfinite, isnan, nan, tan

from bess_control.soc_limits import SocLimits
from bess_control.storage_params import READY, StorageParams, StorageState
from bess_control.storage_view import CLOSED, Answer, Change, View, Wanted
from bess_control.words import watts
from bess_core.values import Contactor, ConverterState, Mode, Quality

__all__ = ['CLOSED', 'Answer', 'Change', 'StorageMachine', 'StorageParams', 'StorageState', 'View', 'Wanted']

S = StorageState
COMMANDS = ('start', 'stop', 'charge', 'discharge', 'hold', 'recover_soc')
SOC_STEP = 0.05  # percent, less is no progress of a recovery


class StorageMachine:
    """See the module. `now` is the site clock in s and never goes back."""

    def __init__(self, params: StorageParams, now: float = 0.0) -> None:
        self.params = params
        self._allowed = params.transitions()
        self.state = S.STOPPED
        self.previous = S.STOPPED
        self.cause = 'not started yet'
        self.since = now
        self.last_command = ''
        self.asked = nan  # W or A, + = charging
        self.recovery = False  # to recover as soon as the unit is connected
        self.charge = SocLimits(params)
        self._view = View()
        self._power_factor = nan
        self._until = inf  # when the lease of the command is over
        self._rate = params.recovery_rate
        self._soc_looked = self._fault_looked = -inf
        self._gain, self._gain_time = nan, now
        self._stop_step = 0
        self._step_since = now
        self._unconfirmed = ''
        self._granted = nan
        self._problem = ''  # why the unit left operation by itself; until the next start
        self._changes: list[Change] = []

    # Commands

    def command(self, name: str, now: float, value: float = nan, power_factor: float = nan, lease: float = 0.0,
                by: str = 'operator') -> Answer:
        """A command. `value` W or A > 0 for charge, discharge and (optional) recover_soc; `lease` s, 0 = no end."""
        accepted, message = self._command(name, now, value, power_factor, lease, by)
        self.last_command = f'{name} by {by}: {"accepted" if accepted else "refused"}, {message}'
        return Answer(accepted, message, self.state)

    def _command(self, name: str, now: float, value: float, power_factor: float, lease: float,
                 by: str) -> tuple[bool, str]:
        if name not in COMMANDS:
            return False, f'unknown command {name!r}; known: {", ".join(COMMANDS)}'
        if name == 'stop':
            self.stop(f'stop by {by}', now)
            return True, 'stopped' if self.state is S.STOPPED else 'stopping'
        if name == 'start':
            return self._request(S.STARTING, f'start by {by}', now)
        if name == 'recover_soc':
            return self._recover(value, now, by)
        if name == 'hold':
            done, message = self._request(S.HOLD_TRANSITION, f'hold by {by}', now)
            if done:
                self._forget()
            return done, message
        return self._power(name, now, value, power_factor, lease, by)

    def _power(self, name: str, now: float, value: float, power_factor: float, lease: float,
               by: str) -> tuple[bool, str]:
        charge = name == 'charge'
        target = S.CHARGE_TRANSITION if charge else S.DISCHARGE_TRANSITION
        if not isfinite(value):
            return False, f'{name} needs a value, not {value}'
        if not (isfinite(lease) and lease >= 0.0):
            return False, f'lease is {lease} s, must be 0 or more'
        if isfinite(power_factor) and not 0.0 <= abs(power_factor) <= 1.0:
            return False, f'power factor is {power_factor:g}, must be -1 to 1'
        if self.state not in self._allowed[target]:
            why = ('the state of charge is being recovered' if self.state is S.LOW_SOC_RECOVERY
                   else 'start first' if self.state is S.STOPPED else 'not ready')
            return False, f'{name} is refused in {self.state.name}: {why}'
        if value < 0.0 and self.params.strict_power_sign:
            self._forget()
            self._request(S.HOLD_TRANSITION, f'{name} with negative value by {by}', now)
            return False, f'{name} of {value:g} is negative (strict_power_sign); the unit holds'
        if why := self.charge.forbids(charge, now):
            return False, why
        self.asked = abs(value) if charge else -abs(value)
        self._power_factor = power_factor if isfinite(power_factor) and power_factor else nan
        self._until = now + lease if lease > 0.0 else inf
        return self._request(target, f'{name} {self._in_words(abs(value))} by {by}', now)

    def _recover(self, value: float, now: float, by: str) -> tuple[bool, str]:
        if isfinite(value) and value != 0.0:
            if value < 0.0 and self.params.strict_power_sign:
                return False, f'recover_soc of {value:g} is negative (strict_power_sign)'
            rate = min(abs(value), self.params.recovery_rate)
        else:
            rate = self.params.recovery_rate
        if self.state is S.STOPPING:
            return False, 'recover_soc is refused in STOPPING: a stop is not undone'
        if self.charge.recovered:
            return False, (f'state of charge is {self.soc:.1f} %, recovered is '
                           f'{self.params.soc_recovered_level:g} %')
        cause = f'recover_soc by {by}'
        if self.state is S.STOPPED:
            done, message = self._request(S.STARTING, cause, now)
            self.recovery, self._rate = done, rate
            return done, message
        if self.state in (S.STARTING, S.CONNECTING, S.CONNECTED):
            self.recovery, self._rate = True, rate
            return True, 'recovers as soon as the unit is connected'
        done, message = self._request(S.LOW_SOC_RECOVERY, cause, now)
        if done:
            self._rate = rate
        return done, message

    def stop(self, cause: str, now: float) -> None:
        """Stop; honoured in every state."""
        self._forget()
        self.recovery = False
        if self.state in (S.STOPPED, S.STOPPING):
            return
        self._stop_step, self._step_since, self._unconfirmed = 0, now, ''
        self._enter(S.STOPPING, cause, now)

    def resume(self, state: str, now: float) -> None:
        """The process before this one ended in that state: what it may have left on is stopped in order."""
        if state != S.STOPPED.name:
            self._step_since = now
            self._enter(S.STOPPING, f'the process before ended in {state}', now)

    # What follows from time and measurement

    def tick(self, now: float, view: View) -> Wanted:
        """Look at the unit and say what is wanted now."""
        self._view = view
        wanted = Wanted()
        self.charge.see(view.battery)
        if self.state not in (S.STOPPED, S.STOPPING):
            self._watch_faults(now)
        if self.state not in (S.STOPPED, S.STOPPING, S.STARTING, S.CONNECTING, S.CONNECTED):
            self._watch_soc_in_operation(now)
        for _ in range(4):  # a state that is done at once leads to the next in the same tick
            before = self.state
            self._step(now)
            if self.state is before:
                break
        self._fill(wanted, now)
        wanted.changes, self._changes = self._changes, []
        return wanted

    def _step(self, now: float) -> None:
        p, view, waited = self.params, self._view, now - self.since
        if self.state is S.STARTING:
            if not (missing := view.not_sound(now, p.max_data_age)):
                self._request(S.CONNECTING, 'readings are sound', now)
            elif waited >= p.start_timeout:
                self._fail(f'no start within {p.start_timeout:g} s: {missing}', now)
        elif self.state is S.CONNECTING:
            if view.closed(self.since):
                self._request(S.CONNECTED, 'contactors are closed', now)
            elif waited >= p.connect_timeout:
                self._fail(f'contactors not closed within {p.connect_timeout:g} s', now)
        elif self.state is S.CONNECTED:
            if view.converter_ready(now, p.max_data_age):
                self._after_start(now)
            elif waited >= p.inverter_timeout:
                self._fail(f'converter not on within {p.inverter_timeout:g} s: {view.converter.name}', now)
        elif self.state is S.HOLD_TRANSITION:
            if view.rests(now, self.since, p):
                self._enter(S.HOLDING, 'nothing flows', now)
            elif waited >= p.transition_timeout:
                self._fail(f'power not at zero within {p.transition_timeout:g} s: '
                           f'{watts(view.battery.power)}', now)
        elif self.state in (S.CHARGE_TRANSITION, S.DISCHARGE_TRANSITION):
            charge = self.state is S.CHARGE_TRANSITION
            if now >= self._until:
                self._hold('the lease of the command is over', now)
            elif view.follows(self._granted, self.since, p):
                self._enter(S.CHARGING if charge else S.DISCHARGING, 'power is there', now)
            elif waited >= p.transition_timeout:
                self._hold(f'power not there within {p.transition_timeout:g} s: ordered '
                           f'{self._in_words(self._granted)}, measured {watts(view.battery.power)}', now, True)
        elif self.state in (S.CHARGING, S.DISCHARGING) and now >= self._until:
            self._hold('the lease of the command is over', now)
        elif self.state is S.LOW_SOC_RECOVERY:
            self._recovering(now)
        elif self.state is S.STOPPING:
            self._stopping(now)

    def _after_start(self, now: float) -> None:
        if self.charge.old(now):
            if now - self.since >= self.params.inverter_timeout:
                self._fail('no state of charge', now)
            return
        low = self.charge.low
        if low or (self.recovery and not self.charge.recovered):
            cause = self.charge.low_text if low else 'recover_soc was asked for'
            if self._request(S.LOW_SOC_RECOVERY, cause, now)[0]:
                return
        self.recovery = False
        self._request(S.HOLD_TRANSITION, 'converter is on', now)

    def _recovering(self, now: float) -> None:
        p = self.params
        if self.charge.recovered:
            self._forget()
            self._request(S.HOLD_TRANSITION, f'recovered: state of charge is {self.soc:.1f} %', now)
        elif not self.soc <= self._gain + SOC_STEP:
            self._gain, self._gain_time = self.soc, now
        elif now - self._gain_time >= p.recovery_timeout:
            self._fail(f'recovery gained nothing for {p.recovery_timeout:g} s, state of charge is '
                       f'{self.soc:.1f} %', now)

    def _stopping(self, now: float) -> None:
        """Steps: 0 to zero, 1 converter off, 2 contactors open. Late ones are left behind, not waited for."""
        view, p = self._view, self.params
        late = now - self._step_since >= p.stop_timeout
        off, is_open = view.converter_off, view.open(self.since)
        done = (view.rests(now, self.since, p) or view.no_current(now, p.max_data_age), off, is_open)
        text = ('power is not at zero', 'converter is not off', 'contactors are not confirmed open')
        if self._stop_step < 2:
            if done[self._stop_step] or late:
                if not done[self._stop_step]:
                    self._unconfirmed = text[self._stop_step]
                self._stop_step += 1
                self._step_since = now
            return
        if off and is_open:
            self._unconfirmed = ''
            self._enter(S.STOPPED, self.cause, now)
        elif late:
            self._unconfirmed = text[2] if off else text[1]

    # Monitors

    def _watch_soc_in_operation(self, now: float) -> None:
        p = self.params
        recovering = self.state is S.LOW_SOC_RECOVERY
        if now - self._soc_looked < (p.soc_recovery_check_interval if recovering else p.soc_monitor_interval) - 1e-9:
            return
        self._soc_looked = now
        if self.charge.old(now):
            known = isfinite(self.charge.time)
            self._fail(f'state of charge is {now - self.charge.time:.0f} s old' if known
                       else 'no state of charge was ever read', now)
        elif recovering:
            return
        elif self.charge.at_high and self.state in (S.CHARGE_TRANSITION, S.CHARGING):
            self._hold(f'state of charge {self.soc:.1f} % has reached the high limit {p.soc_high_limit:g} %', now)
        elif self.charge.low and self.state not in (S.CHARGE_TRANSITION, S.CHARGING):
            self._rate = p.recovery_rate
            if not self._request(S.LOW_SOC_RECOVERY, self.charge.low_text, now)[0] and self.state in (
                    S.DISCHARGE_TRANSITION, S.DISCHARGING):
                self._hold(self.charge.low_text, now)

    def _watch_faults(self, now: float) -> None:
        p, b = self.params, self._view.battery
        if now - self._fault_looked < p.system_fault_check_interval - 1e-9:
            return
        self._fault_looked = now
        if self._view.faults:
            self._fail('; '.join(self._view.faults), now)
        elif self.state is S.STARTING:
            return  # what is not there yet is waited for
        elif b.mode is Mode.FAULT:
            self._fail('; '.join(('battery is in fault', *b.limit_reasons)), now)
        elif self._view.has_converter and self._view.converter is ConverterState.FAULT:
            self._fail('converter is in fault', now)
        elif self.state in (S.CONNECTING, S.CONNECTED):
            return
        elif b.quality is Quality.INVALID:
            self._fail('battery has no valid reading', now)
        elif self._view.has_contactor and self._view.contactor is Contactor.OPEN:
            self._fail('contactors have opened', now)

    # What is wanted

    def _fill(self, wanted: Wanted, now: float) -> None:
        if self.state is S.STOPPED:
            wanted.contactor, wanted.converter = None, None
        elif self.state is S.STARTING:
            wanted.reasons.append('waits for readings')
        elif self.state is S.STOPPING:
            wanted.order = 0.0
            wanted.converter = False if self._stop_step >= 1 else None
            wanted.contactor = False if self._stop_step >= 2 else None
        else:
            wanted.contactor = True
            wanted.converter = None if self.state is S.CONNECTING else True
            if self.state not in (S.CONNECTING, S.CONNECTED):
                self._order(wanted, now)
        self._granted = wanted.order
        if self._unconfirmed:
            wanted.alarms.append(('storage.stop', f'stop is not confirmed: {self._unconfirmed}'))
            wanted.reasons.append(self._unconfirmed)
        if self._problem:
            wanted.alarms.append(('storage.stopped', self._problem))
        if self.state is S.LOW_SOC_RECOVERY:
            wanted.alarms.append(('storage.soc_recovery', f'recovers from low state of charge: {self.soc:.1f} %'))

    def _order(self, wanted: Wanted, now: float) -> None:
        p, b = self.params, self._view.battery
        if self.state is S.LOW_SOC_RECOVERY:
            asked = self._rate
        elif self.state in (S.CHARGE_TRANSITION, S.CHARGING, S.DISCHARGE_TRANSITION, S.DISCHARGING):
            asked = self.asked
        else:
            wanted.order = 0.0
            return
        if asked > 0.0:
            battery = b.max_charge_current if p.in_current else b.max_charge_power
        else:
            battery = b.max_discharge_current if p.in_current else b.max_discharge_power
        limit, why = p.highest_command, f'max_inverter_command {self._in_words(p.highest_command)}'
        if not self._view.fresh(now, p.max_data_age):
            limit, why = 0.0, 'the battery has no fresh reading'
        elif isnan(battery) or battery < limit:
            limit = 0.0 if isnan(battery) else max(battery, 0.0)
            why = '; '.join(b.limit_reasons[:3]) or 'limit of the battery'
        wanted.order = max(-limit, min(limit, asked))
        if wanted.order != asked:
            wanted.reasons.append(f'{self._in_words(abs(asked))} asked, {self._in_words(limit)} possible: {why}')
        pf = self._power_factor
        if isfinite(pf) and self.state is not S.LOW_SOC_RECOVERY and not p.in_current:
            wanted.reactive = abs(wanted.order) * tan(acos(min(abs(pf), 1.0))) * (1.0 if pf > 0 else -1.0)

    # Inside

    def _request(self, target: StorageState, cause: str, now: float) -> tuple[bool, str]:
        if self.state not in self._allowed[target]:
            return False, f'{target.name} is not allowed from {self.state.name}'
        if target is S.STARTING:
            self._problem = ''
            self._fault_looked = -inf
        if target is S.LOW_SOC_RECOVERY:
            self.asked, self._until, self._power_factor = nan, inf, nan
            self.recovery = False
            self._gain, self._gain_time = self.soc, now
        self._enter(target, cause, now)
        return True, f'{target.name.lower().replace("_", " ")}'

    def _hold(self, cause: str, now: float, problem: bool = False) -> None:
        self._forget()
        if not self._request(S.HOLD_TRANSITION, cause, now)[0]:
            self.stop(cause, now)
        if problem:
            self._problem = cause

    def _fail(self, cause: str, now: float) -> None:
        """Leave operation by oneself."""
        self._problem = cause
        self.stop(cause, now)

    def _forget(self) -> None:
        self.asked, self._until, self._power_factor = nan, inf, nan

    def _in_words(self, value: float) -> str:
        return f'{value:.1f} A' if self.params.in_current else watts(value)

    def _enter(self, state: StorageState, cause: str, now: float) -> None:
        self._changes.append(Change(self.state, state, cause, now))
        self.previous, self.state, self.cause, self.since = self.state, state, cause, now
        self._granted = nan  # an order of the state before proves nothing for this one

    @property
    def soc(self) -> float:
        """State of charge in percent; NaN = never read."""
        return self.charge.soc

    @property
    def granted(self) -> float:
        """What the last tick ordered, W or A, + = charging; NaN = no order."""
        return self._granted

    @property
    def ready(self) -> bool:
        """True while charge, discharge and hold are accepted."""
        return self.state in READY
