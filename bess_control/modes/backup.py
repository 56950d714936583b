"""Backup: the machine of `bess_control.backup` as a mode, with its inputs and outputs."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite, nan
from typing import Any, ClassVar

from bess_control.backup import BackupMachine, BackupParams, LoadGroup, Seen
from bess_control.modes.base import BoundParams, ModeBase, View
from bess_control.proposals import Proposal
from bess_control.words import magnitude
from bess_core.params import param
from bess_core.values import Quality


@dataclass(frozen=True)
class BackupModeParams(BackupParams, BoundParams):
    """Parameters of backup."""

    converter: str = param(
        '', '', 'converter that forms the grid: its status tells whether it does', ref='converter')
    switch_output: str = param(
        '', '', 'topic (std_msgs/Bool) of the transfer switch: true = connected to the grid; empty = the converter '
        'does it by itself')
    form_output: str = param('', '', 'topic (std_msgs/Bool) that makes the converter form the grid')
    form_converter: bool = param(False, '', 'the driver of `converter` makes it form the grid, instead of form_output')
    switch_input: str = param('', '', 'topic (std_msgs/Bool) of the switch\'s feedback: true = open')
    test_input: str = param('', '', 'topic (std_msgs/Bool) of a button: a change to true begins a test, or a new '
                                     'try after a failure')
    loads: list[str] = param(
        [], '', 'load groups in order of importance, the last is shed first: topic of the output and the state of '
        'charge below which it is off in an island, e.g. "io/kitchen", "io/heat_pump 0.6"')
    meter_silent_s: float = param(
        1.0, 's', 'age of the meter reading from which it counts as silent', low=0.1, high=60.0)
    period: float = param(0.1, 's', 'how often it looks', low=0.01, high=60.0)
    priority: int = param(250, '', 'Priority of the proposals.', low=0, high=255)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.form_converter and (not self.converter or self.form_output):
            raise ValueError('form_converter needs a converter, and no form_output')
        for text in self.loads:
            LoadGroup.parse(text)


class Backup(ModeBase):
    """Feeds the site in an outage: opens the transfer switch, forms the grid, sheds loads, comes back.

    `meter` is the one on the grid's side of the switch. Runs beside the other modes; in an island the
    converter gives what the loads draw by itself, and other modes have nothing to say.
    """

    Params: ClassVar[type] = BackupModeParams
    needs_meter: ClassVar[bool] = True
    signals: ClassVar[tuple[str, ...]] = ('switch_input', 'test_input')

    params: BackupModeParams

    def __init__(self, params: BackupModeParams, source: str = 'backup', battery: str = '', meter: str = '') -> None:
        super().__init__(params, source, battery, meter)
        self.machine = BackupMachine(params, [LoadGroup.parse(t) for t in params.loads])
        self._button = False
        self.form_grid: bool | None = None  # what the converter is told; None = nothing

    def decide(self, view: View) -> Proposal | None:
        """See `ModeBase`."""
        p, machine, now = self.params, self.machine, view.now
        seen = self._look(view)
        button = view.signals.get('test_input')
        pressed = button is not None and button.value
        if pressed and not self._button:
            if machine.state == 'failed':
                machine.restart(now)
            elif refused := machine.start_test(seen, now, view.wall):
                machine.last_result = f'refused: {refused}'
        self._button = pressed
        before = (machine.state, machine.last_result)
        out = machine.tick(seen, now, view.wall)
        self.dirty = self.dirty or (machine.state, machine.last_result) != before
        self.outputs = dict(out.loads)
        if p.switch_output:
            self.outputs[p.switch_output] = out.switch_closed
        if p.form_output:
            self.outputs[p.form_output] = out.form_grid
        self.form_grid = out.form_grid if p.form_converter else None
        self.state = machine.state
        self.problem = ''
        if machine.state == 'failed':
            self.problem = f'backup failed: {machine.cause}'
        elif machine.state == 'on_grid' and seen.grid_silent:
            self.problem = 'the grid is not measured: an outage would not be seen by the meter'
        self.values = {'loads_on': float(sum(out.loads.values())), 'testing': float(machine.testing),
                       'last_test_s': nan if machine.last_test is None else machine.last_test}
        bound = machine.bound(now)
        if bound == inf:
            test = f', last test {machine.last_result}' if machine.last_result else ''
            return self.propose(view, reason=f'on the grid{test}')
        if machine.state == 'ramping':
            return self.propose(view, low=-bound, high=bound, reason=f'back on the grid: at most {magnitude(bound)}')
        return self.propose(view, 0.0, low=0.0, high=0.0, reason=f'{machine.state}: {machine.cause}')

    def _look(self, view: View) -> Seen:
        p, meter, converter, battery = self.params, view.meter, view.converter, view.battery
        silent = meter is None or view.now - meter.time > p.meter_silent_s or meter.quality is not Quality.OK
        seen = Seen(grid_silent=silent, soc=battery.soc, power=battery.power, max_discharge=battery.max_discharge_power)
        if not silent and meter is not None:
            seen.voltage, seen.frequency = meter.voltage, meter.frequency
        if converter is not None and converter.quality is Quality.OK:
            seen.forming = converter.grid_forming
            volts = [v for v in converter.voltage if isfinite(v)]
            seen.converter_dead = not converter.grid_forming and bool(volts) and (
                max(volts) < p.loss_voltage_low * p.nominal_voltage)
        switch = view.signals.get('switch_input')
        seen.switch_open = None if switch is None else switch.value
        return seen

    def save(self) -> dict[str, Any]:
        """What survives a restart."""
        return {'last_test': self.machine.last_test, 'last_result': self.machine.last_result,
                'state': self.machine.state}

    def restore(self, saved: dict[str, Any]) -> None:
        """Take back what `save` gave."""
        last = saved['last_test']
        self.machine.last_test = None if last is None else float(last)
        self.machine.last_result = str(saved['last_result'])
        self.machine.resume(str(saved.get('state', 'on_grid')))
