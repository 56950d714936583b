"""A site as processes of launch.

    ros2 launch bess site.launch.py site:=home_demo
    ros2 launch bess site.launch.py site:=/etc/bess/site.yaml state:=/var/lib/bess sim:=false

Per process group of the site file one container, which brings its nodes up in order, and one watchdog
for their heartbeats. A container that ends, or that its watchdog gives up, is started again; the other
groups go on. A site that is asked to restart has all its groups ended one after the other, control first, and started
again. Ctrl-C ends the groups one after the other, control first, then the simulated
devices, so that the last set-points still reach them.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from launch import Action, LaunchContext, LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    ExecuteProcess,
    OpaqueFunction,
    RegisterEventHandler,
    TimerAction,
)
from launch.event_handlers import OnProcessExit, OnProcessStart, OnShutdown
from launch.events import matches_action
from launch.events.process import SignalProcess

from bess_core import launching
from bess_core.supervisor import lock_state

#: launch and the terminal interrupt all processes at once; these wait for SIGTERM, which comes in order.
HOLD = ('env', '--block-signal=INT')
KILL_S = 1.0  # how long a container that was given up may take to end

ARGUMENTS = {
    'site': (None, 'site file, or name of an installed one, e.g. home_demo'),
    'state': ('', 'folder for journals, logs, recordings (empty: $XDG_STATE_HOME/bess/<site>)'),
    'sim': ('true', 'start the simulated devices of the site file, if it has some: true or false'),
    'set': ('', 'settings that win over the site file, divided by spaces: nodes.meter.address=tcp://...'),
    'node': ('', 'only this node of the site (empty: all)'),
    'respawn_delay': ('1.0', 's until a container that ended is started again'),
    'console': ('warning', 'lowest level of the log on the console: off, debug, info, warning, error'),
}


class Processes:
    """What runs, in stopping order. At shutdown the first one that lives gets SIGTERM, at its end the next."""

    def __init__(self) -> None:
        self.order: list[Action] = []
        self._pids: dict[Action, int] = {}
        self._stopping = False
        self._groups: list[Action] = []  # those that a restart of the site ends
        self._restarting: list[Action] = []  # still to be ended for a restart of the site, in order

    def add(self, action: Action, *, restarts: bool = False) -> list[Action]:
        """Stop this one after those added before. `restarts`: it ends, too, when the site restarts."""
        self.order.append(action)
        if restarts:
            self._groups.append(action)
        return [
            RegisterEventHandler(OnProcessStart(target_action=action, on_start=self._started)),
            RegisterEventHandler(OnProcessExit(target_action=action, on_exit=self._ended)),
        ]

    def pid(self, action: Action) -> int:
        """Process id while it lives, else 0."""
        return self._pids.get(action, 0)

    def stop(self, *_: Any) -> list[Action]:
        """For `OnShutdown`."""
        self._stopping = True
        first = next((a for a in self.order if a in self._pids), None)
        return [] if first is None else [send(signal.SIGTERM, first)]

    def restart(self) -> list[Action]:
        """End the process groups one after the other; each is started again when it has ended."""
        if self._stopping or self._restarting:
            return []
        self._restarting = [a for a in self._groups if a in self._pids]
        return self._end_first()

    def _end_first(self) -> list[Action]:
        if not self._restarting:
            return []
        first = self._restarting[0]
        pid = self._pids.get(first, 0)
        if not pid:
            self._restarting.pop(0)
            return self._end_first()
        return [send(signal.SIGTERM, first), kill_later(launching.STOP_S, lambda: self.pid(first) == pid, first)]

    def _started(self, event: Any, _: LaunchContext) -> list[Action]:
        self._pids[event.action] = event.pid
        return self.stop() if self._stopping else []

    def _ended(self, event: Any, _: LaunchContext) -> list[Action]:
        self._pids.pop(event.action, None)
        if self._stopping:
            return self.stop()
        if event.action in self._restarting:
            self._restarting.remove(event.action)
            return self._end_first()
        return []


def send(number: signal.Signals, action: Action) -> Action:
    """Send a signal to a process that runs."""
    return EmitEvent(event=SignalProcess(signal_number=number, process_matcher=matches_action(action)))


def kill_later(seconds: float, lives: Callable[[], bool], action: Action) -> Action:
    """Kill the process after so long, if it still lives."""
    def kill(_: LaunchContext) -> list[Action]:
        return [send(signal.SIGKILL, action)] if lives() else []

    return TimerAction(period=seconds, actions=[OpaqueFunction(function=kill)])


def group_actions(group: launching.Group, processes: Processes, respawn_delay: float, stop_s: float) -> list[Action]:
    """A container, and with each of its lives a watchdog that lives as long."""
    container = ExecuteProcess(
        cmd=[*HOLD, *group.container], name=group.name, output='screen', respawn=True, respawn_delay=respawn_delay,
        sigterm_timeout=str(stop_s), sigkill_timeout=str(launching.STOP_S))
    watching: dict[int, Action] = {}  # pid of a container -> its watchdog

    def watch(event: Any, context: LaunchContext) -> list[Action]:
        if context.is_shutdown:
            return []
        pid = event.pid
        watchdog = ExecuteProcess(cmd=list(group.watchdog), name=f'{group.name}_watchdog', output='screen')

        def given_up(ended: Any, _: LaunchContext) -> list[Action]:
            watching.pop(pid, None)
            if processes.pid(container) != pid:
                return []
            if ended.returncode == launching.SITE_RESTART:
                return processes.restart()
            if ended.returncode != launching.RESTART:
                return []
            return [send(signal.SIGTERM, container),
                    kill_later(KILL_S, lambda: processes.pid(container) == pid, container)]

        watching[pid] = watchdog
        return [RegisterEventHandler(OnProcessExit(target_action=watchdog, on_exit=given_up)), watchdog]

    def dismiss(event: Any, _: LaunchContext) -> list[Action]:
        watchdog = watching.pop(event.pid, None)
        return [] if watchdog is None else [send(signal.SIGTERM, watchdog)]

    return [
        *processes.add(container, restarts=True),
        RegisterEventHandler(OnProcessStart(target_action=container, on_start=watch)),
        RegisterEventHandler(OnProcessExit(target_action=container, on_exit=dismiss)),
        container,
    ]


def site_actions(context: LaunchContext) -> Sequence[Action]:
    """Everything of the site. Raises `SiteError` for a site file that cannot be used; nothing is started then."""
    given = {name: context.launch_configurations[name] for name in ARGUMENTS}
    plan = launching.plan(
        given['site'], state=given['state'], settings=given['set'], node=given['node'],
        sim=launching.boolean('sim', given['sim']), console=given['console'], python=sys.executable)
    lock_state(plan.state)  # held until launch ends: a site runs once with a state folder
    processes = Processes()
    actions: list[Action] = []
    for group in plan.groups:
        actions += group_actions(group, processes, float(given['respawn_delay']), plan.stop_s)
    if plan.bench is not None:
        plan.bench.prepare()
        bench = ExecuteProcess(cmd=list(plan.bench.command), name='bench', output='screen',
                               sigterm_timeout=str(plan.stop_s), sigkill_timeout=str(launching.STOP_S))
        actions = [*processes.add(bench), bench, *actions]  # started first, ended last
    return [*actions, RegisterEventHandler(OnShutdown(on_shutdown=processes.stop))]


def generate_launch_description() -> LaunchDescription:
    """Arguments and the site."""
    return LaunchDescription([
        *(DeclareLaunchArgument(name, default_value=default, description=text)
          for name, (default, text) in ARGUMENTS.items()),
        OpaqueFunction(function=site_actions),
    ])
