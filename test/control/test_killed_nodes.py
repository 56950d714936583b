"""Each node of the control room killed in each state: what it commanded rests within its lease, and it comes back to
what was in force - without doing anything that nobody asks for now.

A case is a generator: it brings the node to work in a state of the site, yields, and looks at the process that
followed. What holds for all of them (rest within the lease, nothing asked by itself afterwards) is checked between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import entry_points
from math import inf, isfinite, nan
from pathlib import Path
from typing import Any

import pytest
from builtin_interfaces.msg import Time
from kill_stage import ACTIVE, RUN, SITE, Stage, Zygote
from pymodbus.client import ModbusTcpClient
from std_srvs.srv import SetBool, Trigger

from bess.msg import Event, Fault, SystemState
from bess.srv import (
    AcknowledgeFault,
    AdoptCurve,
    ForceClimate,
    GetStorageState,
    GetSystemInfo,
    QueryEvents,
    ResetEmergencyStop,
    RunTest,
    SetPower,
    SetPrices,
    SleepTimer,
    StorageCommand,
    TriggerEmergencyStop,
)
from bess_control.modbus_map import words_32
from bess_control.proposals import Proposal
from bess_core import emergency, plugins
from bess_core.site import load

INIT, SLEEP, MAINTENANCE, ERROR = (
    SystemState.INIT, SystemState.SLEEP, SystemState.MAINTENANCE, SystemState.ERROR)
STATES = {'INIT': INIT, 'RUN': RUN, 'SLEEP': SLEEP, 'MAINTENANCE': MAINTENANCE, 'ERROR': ERROR}
QUIET_S = 0.4  # in which a node that does something by itself would have done it
SLACK_S = 1.0  # of a busy machine
COMMANDS = ('proposes', 'external', 'bat', 'heater', 'contactors closed')  # what no node may begin by itself
Case = Callable[[Stage, str], Iterator[None]]


def manager(stage: Stage, state: str) -> Iterator[None]:
    stage.proposing = 800.0
    if state == 'RUN':
        stage.wait(lambda: stage.powers['bat'] == 800.0, 'power')
    else:
        stage.stays_at_rest(QUIET_S)
    stage.proposing = nan
    yield
    stage.proposing = 800.0
    if state == 'RUN':
        stage.wait(lambda: stage.powers['bat'] == 800.0, 'power again, when somebody asks now')
    else:
        stage.stays_at_rest(QUIET_S)
    stage.proposing = nan
    stage.wait(stage.at_rest, 'nobody asks')


def manager_stopped(stage: Stage, state: str) -> Iterator[None]:
    assert stage.call(Trigger, 'stop').success
    yield
    stage.proposing = 800.0
    stage.retell()
    stage.stays_at_rest(QUIET_S)
    if state == 'RUN':
        stage.tell(RUN)  # anew
        stage.wait(lambda: stage.powers['bat'] == 800.0, 'power after a start')
    stage.proposing = nan


def mode(proposes: Callable[[Proposal], bool], **around: Any) -> Case:
    """A mode that makes such proposals while the stage is as in `around`."""
    def case(stage: Stage, state: str) -> Iterator[None]:
        for name, value in around.items():
            assert hasattr(stage, name)
            setattr(stage, name, value)

        def works() -> bool:
            return any(map(proposes, stage.book))

        if state == 'RUN':
            stage.wait(works, 'proposes')
        else:
            stage.stays_at_rest(QUIET_S)
        yield
        if state == 'RUN':
            stage.drive(True)
            stage.wait(works, 'proposes again once the site activates it')
        else:
            stage.stays_at_rest(QUIET_S)
    return case


def curve(stage: Stage, state: str) -> Iterator[None]:
    """Volt-var; in RUN with an adopted curve, which holds for its time whatever happens to the process."""
    def reactive(value: float) -> bool:
        return any(p.preferred_reactive_power == pytest.approx(value) for p in stage.book)

    stage.volts = 0.95 * 230.0
    if state == 'RUN':
        stage.wait(lambda: reactive(-0.22 * 5000.0), 'the configured curve')
        request = AdoptCurve.Request(x=[0.9, 1.1], y=[0.4, -0.4], response_time=0.0, reversion_time=60.0)
        assert stage.call(AdoptCurve, 'adopt_curve', request).accepted
        stage.wait(lambda: reactive(-0.2 * 5000.0), 'the adopted curve')
    else:
        stage.stays_at_rest(QUIET_S)
    yield
    if state == 'RUN':
        stage.drive(True)
        stage.wait(lambda: reactive(-0.2 * 5000.0), 'the adopted curve still')
        assert stage.call(AdoptCurve, 'adopt_curve', AdoptCurve.Request(reversion_time=nan, response_time=nan)).accepted
        stage.wait(lambda: reactive(-0.22 * 5000.0), 'the configured curve')
    else:
        stage.stays_at_rest(QUIET_S)


def backup(stage: Stage, state: str) -> Iterator[None]:
    """`island`: the grid is away; `ramping`: it has come back. Otherwise a state of the site."""
    def now() -> str:
        return stage.said['mode'].state if 'mode' in stage.said else ''

    def bound() -> bool:
        return any(p.low > -inf and p.high < inf for p in stage.book)

    away = state in ('island', 'ramping')
    if away:
        stage.wait(lambda: now() in ('on_grid', 'ramping'), 'the grid is there')
        stage.volts = 0.0
        stage.wait(lambda: now() == 'island' and stage.switched['switch'][-1] is False, 'island')
        stage.wait(lambda: stage.switched['kitchen'][-1] and not stage.switched['pump'][-1], 'sheds by state of charge')
    if state == 'ramping':
        stage.volts = 230.0
        stage.wait(lambda: now() == 'ramping' and stage.switched['switch'][-1] is True, 'back on the grid')
    if away:
        stage.wait(bound, 'bounds the battery')
        # Killed before that it would resume in the state before: an outage does not wait for the disk.
        file = stage.folder / 'modes' / 'backup.json'
        stage.wait(lambda: file.exists() and f'"state": "{state}"' in file.read_text(), 'it is stored')
    elif state == 'RUN':
        stage.wait(lambda: now() == 'on_grid', 'looks on')
        stage.stays_at_rest(QUIET_S)
    else:
        stage.stays_at_rest(QUIET_S)
    yield
    assert not stage.switched, 'switches before the site activates it'
    if not away and state != 'RUN':
        stage.stays_at_rest(QUIET_S)
        return
    stage.drive(True)
    stage.wait(lambda: stage.switched.get('switch') and now() == {'RUN': 'on_grid'}.get(state, state), 'goes on')
    # The transfer switch stays where it was: closed onto an island, or opened under load, it would do harm.
    assert set(stage.switched['switch']) == {state != 'island'}
    stage.graph.settle(QUIET_S)
    assert bound() is away and set(stage.switched['switch']) == {state != 'island'}
    stage.volts = 230.0
    if state == 'island':
        stage.wait(lambda: now() == 'ramping' and stage.switched['switch'][-1], 'back when the grid is')


def cost(stage: Stage, state: str) -> Iterator[None]:
    """Cost saving; prices that were delivered are delivered once a day, not once per process."""
    stage.load = 1500.0

    def price() -> float:
        said = stage.said.get('mode')
        return dict(zip(said.keys, said.values, strict=True)).get('import_price_per_kwh', nan) if said else nan

    def works() -> bool:
        return any(p.preferred_power < -1000.0 for p in stage.book)

    hour = int(stage.graph.clock.wall() // 3600.0) * 3600
    request = SetPrices.Request(start=[Time(sec=hour + 3600 * i) for i in range(4)],
                                price_import=[0.5, 0.5, 0.5, 0.5], price_export=[0.01] * 4)
    assert stage.call(SetPrices, 'set_prices', request).accepted
    if state == 'RUN':
        stage.wait(lambda: works() and price() == 0.5, 'covers the load, knows the price')
    else:
        stage.stays_at_rest(QUIET_S)
    yield
    if state == 'RUN':
        stage.drive(True)
        stage.wait(lambda: works() and price() == 0.5, 'covers the load, still knows the price')
    else:
        stage.stays_at_rest(QUIET_S)
    assert '0.5' in (stage.folder / 'modes' / 'cost.json').read_text()


def local(stage: Stage, state: str) -> Iterator[None]:
    if state == 'RUN':
        assert stage.call(SetPower, 'set_power', SetPower.Request(power=700.0, reactive_power=nan)).accepted
        stage.wait(lambda: any(p.preferred_power == 700.0 for p in stage.book), 'manual setpoint')
    yield
    if state == 'RUN':
        stage.drive(True)
        stage.stays_at_rest(QUIET_S)  # a manual setpoint is of its time


def external(stage: Stage, state: str) -> Iterator[None]:
    from bess.msg import PowerSetpoint
    from bess_core import qos
    from bess_core.convert import stamp

    orders = stage.graph.peer.create_publisher(PowerSetpoint, 'external/setpoint', qos.SETPOINT)
    if state == 'RUN':
        def again() -> bool:
            m = PowerSetpoint(power=600.0, reactive_power=nan, lease=3.0, source='ems', sequence=stage.sequence)
            m.header.stamp = stamp(stage.graph.clock, stage.graph.clock.now())
            orders.publish(m)
            return any(p.preferred_power == 600.0 for p in stage.book)

        stage.wait(again, 'setpoint')
    yield
    if state == 'RUN':
        stage.drive(True)
        stage.stays_at_rest(QUIET_S)  # the setpoint had a lease, but was given to another process
    stage.graph.peer.destroy_publisher(orders)


def modbus(stage: Stage, state: str) -> Iterator[None]:
    """The Modbus server: an order is given once, by a master that is there; a killed server has none to give."""
    port = next(n.params.port for n in load(stage.file, state=stage.folder).nodes if n.name == 'modbus')

    def write(power: float) -> int:
        """Exception code; 0 = taken. The master waits in a thread, while the stage goes on."""
        def ask() -> int:
            with ModbusTcpClient('127.0.0.1', port=port, timeout=5) as master:
                answer = master.write_registers(0, words_32(power), device_id=1)
                return int(answer.exception_code) if answer.isError() else 0

        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(ask)
            stage.wait(future.done, 'an answer')
            return future.result()

    taken = 0 if state == 'RUN' else 6
    stage.wait(lambda: write(600.0) == taken, 'the server knows the mode')
    if state == 'RUN':
        stage.wait(lambda: 'external 600 W for 1 s' in stage.asked, 'ordered')
    else:
        stage.stays_at_rest(QUIET_S)
    yield
    stage.stays_at_rest(QUIET_S)
    stage.wait(lambda: write(-300.0) == taken, 'the server knows the mode again')
    if state == 'RUN':
        stage.wait(lambda: 'external -300 W for 1 s' in stage.asked, 'ordered')
    else:
        stage.stays_at_rest(QUIET_S)


def site(stage: Stage, state: str) -> Iterator[None]:
    def now() -> int:
        return int(stage.said['system_state'].state) if 'system_state' in stage.said else -1

    def lives(name: str) -> bool:
        return stage.lifecycles[name] == ACTIVE

    stage.wait(lambda: now() == RUN and lives('fixed') and lives('inv'), 'runs')
    if state == 'SLEEP':
        assert stage.call(Trigger, 'stop').success
    elif state == 'SLEEP timer':
        assert stage.call(SleepTimer, 'sleep', SleepTimer.Request(duration=3600.0)).accepted
    elif state == 'MAINTENANCE':
        assert stage.call(SetBool, 'set_maintenance', SetBool.Request(data=True)).success
    elif state == 'ERROR fault':
        stage.faults(fire=Fault.SEVERITY_CRITICAL)
    elif state in ('ERROR lost', 'INIT'):
        stage.silent.add('manager')
    target = STATES[state.partition(' ')[0]]
    stage.wait(lambda: now() == (ERROR if state == 'INIT' else target), 'the state')
    stage.wait(lambda: lives('inv') is (state == 'RUN'), 'drives')
    yield
    # A node that never came is no error but a start that is not finished.
    back = INIT if state == 'ERROR lost' else target
    stage.wait(lambda: now() == back, 'the same state')
    if state == 'RUN':
        stage.wait(lambda: lives('fixed') and lives('inv'), 'runs')
    else:
        stage.graph.settle(QUIET_S)
        assert now() == back and not [a for a in stage.asked if a.endswith(' on')], stage.asked
    if state in ('MAINTENANCE', 'ERROR fault'):
        assert not stage.call(Trigger, 'start').success
    stage.silent.discard('manager')
    stage.faults()
    if state == 'MAINTENANCE':
        assert stage.call(SetBool, 'set_maintenance', SetBool.Request(data=False)).success
    if state == 'ERROR fault':
        stage.wait(lambda: now() == SLEEP, 'cleared; waits for somebody')
    assert stage.call(Trigger, 'start').success
    stage.wait(lambda: now() == RUN, 'runs again')


def store(stage: Stage, state: str) -> Iterator[None]:
    def command(name: str, value: float = 0.0) -> None:
        answer = stage.call(StorageCommand, name, StorageCommand.Request(value=value))
        assert answer.accepted, answer.message

    def now() -> str:
        return str(stage.look(GetStorageState, 'get_storage_state').status.name)

    if state != 'STOPPED':
        command('start')
        stage.wait(lambda: now() in ('HOLDING', 'HOLD_TRANSITION'), 'started')
    if state == 'CHARGING':
        command('charge', 900.0)
        stage.wait(lambda: stage.powers['bat2'] == 900.0, 'charges')
    if state == 'DISCHARGING':
        command('discharge', 900.0)
        stage.wait(lambda: stage.powers['bat2'] == -900.0, 'discharges')
    left = stage.closed
    assert left is (state != 'STOPPED')
    yield
    # Before the site activates it, and by itself: what was left on is stopped in order, nothing is begun.
    stage.wait(lambda: now() == 'STOPPED' and not stage.closed and stage.lifecycles['inv2'] != ACTIVE, 'stopped')
    stage.drive(True)
    stage.stays_at_rest(QUIET_S)
    assert now() == 'STOPPED' and not stage.closed
    command('start')
    stage.wait(lambda: now() == 'HOLDING', 'can be started')
    command('stop')
    stage.wait(lambda: now() == 'STOPPED', 'stopped')


def emergency_stop(stage: Stage, state: str) -> Iterator[None]:
    pressed = state == 'pressed'
    if pressed:
        request = TriggerEmergencyStop.Request(cause='test', by='eva')
        assert stage.call(TriggerEmergencyStop, 'trigger', request).accepted
    stage.wait(lambda: 'emergency_stop' in stage.said and stage.said['emergency_stop'].active is pressed, 'it says so')
    old = (stage.folder / emergency.TOKEN).read_text()
    yield
    stage.wait(lambda: 'emergency_stop' in stage.said, 'it says its state')
    assert stage.said['emergency_stop'].active is pressed
    if pressed:
        assert stage.said['emergency_stop'].cause == 'test (by eva)'
        assert not stage.call(ResetEmergencyStop, 'reset', ResetEmergencyStop.Request(token=old, by='eva')).accepted
        token = (stage.folder / emergency.TOKEN).read_text()
        assert stage.call(ResetEmergencyStop, 'reset', ResetEmergencyStop.Request(token=token, by='eva')).accepted
        stage.wait(lambda: not stage.said['emergency_stop'].active, 'released on the spot')


def fault_manager(stage: Stage, state: str) -> Iterator[None]:
    hot, fire = Fault.SEVERITY_ERROR, Fault.SEVERITY_CRITICAL
    stage.faults(hot=hot, fire=fire)
    seen = AcknowledgeFault.Request(source='bms', id='hot', by='eva')
    stage.wait(lambda: stage.call(AcknowledgeFault, 'acknowledge', seen).accepted, 'acknowledged')
    stage.wait(lambda: any(p.high == 1000.0 for p in stage.book), 'derates')
    if state == 'RUN':
        stage.wait(lambda: 'site stop' in stage.asked and 'site manager stop' in stage.asked, 'stops')
    yield
    stage.wait(lambda: any(p.high == 1000.0 for p in stage.book), 'derates again')
    if state == 'RUN':
        stage.wait(lambda: 'site stop' in stage.asked, 'still stops')
    assert 'eva' in (stage.folder / 'fault_manager.json').read_text(), 'still acknowledged'
    stage.faults()
    stage.wait(stage.at_rest, 'no bound any more')


def event_log(stage: Stage, state: str) -> Iterator[None]:
    def found(**query: Any) -> list[Event]:
        return list(stage.call(QueryEvents, 'query', QueryEvents.Request(**query)).events)

    text = f'killed in {state}'
    stage.wait(lambda: stage.events.get_subscription_count() > 0, 'listens')
    event = Event(kind='test', source='me', name='x', change='entered', text=text)
    stage.events.publish(event)
    stage.wait(lambda: [e.text for e in found(kind='test', text=text)] == [text], 'stored')
    stage.wait(lambda: [e.name for e in found(kind='state')][-1:] == [state], 'the state is stored')
    count = len(found(kind='state'))
    yield
    stage.wait(lambda: [e.text for e in found(kind='test', text=text)] == [text], 'still there')
    stage.graph.settle(QUIET_S)
    assert len(found(kind='state')) == count, 'a state is entered once, however often it is told'


def climate(stage: Stage, state: str) -> Iterator[None]:
    def temperature(value: float) -> None:
        stage.readings['bms'] = stage.readings['bms'].__class__(**{
            **{f: getattr(stage.readings['bms'], f) for f in stage.readings['bms'].__slots__},
            'temperature': value, 'temperature_min': value})

    temperature(20.0)
    answer = stage.call(ForceClimate, 'force', ForceClimate.Request(
        zone='cabinet', output='fan', value=1.0, duration=600.0, by='eva'))
    assert answer.accepted, answer.message
    stage.wait(lambda: stage.on['fan'] == 1.0 and stage.said['climate/zone_cabinet'].forced, 'forced')
    temperature(-10.0)
    stage.wait(lambda: stage.on['heater'] == 1.0 and any(p.high == 0.0 for p in stage.book), 'heats, no charging')
    temperature(20.0)
    yield
    stage.graph.settle(QUIET_S)
    # The force was an order to another process (the fan runs until a temperature is known: that is its safe value).
    assert not stage.said['climate/zone_cabinet'].forced and stage.on['heater'] == 0.0
    temperature(-10.0)
    stage.wait(lambda: stage.on['heater'] == 1.0 and any(p.high == 0.0 for p in stage.book), 'heats when it is cold')
    temperature(20.0)


def test_controller(stage: Stage, state: str) -> Iterator[None]:
    stage.mode = 'fixed'
    stage.retell()

    def run(*steps: str) -> Any:
        return stage.call(RunTest, 'run', RunTest.Request(steps=list(steps), by='eva', alive=20.0))

    steps = ('mode:none', 'hold:500:60') if state == 'RUN' else ('mode:none', 'mode:self')
    stage.wait(lambda: (answer := run(*steps)).accepted or answer.message.startswith('test '), 'a test runs')
    stage.wait(lambda: 'site set_mode none' in stage.asked or 'site set_mode self' in stage.asked, 'the mode is taken')
    if state == 'RUN':
        stage.wait(lambda: any(p.preferred_power == 500.0 for p in stage.book), 'proposes')
    yield
    stage.wait(lambda: stage.mode == 'fixed', 'the mode from before the test is back')
    stage.graph.settle(QUIET_S)
    assert not [a for a in stage.asked if a.startswith('proposes')], 'the test is over'
    assert not list((stage.folder / 'tests').glob('running*'))


test_controller.__test__ = False  # type: ignore[attr-defined]


def soc(stage: Stage, state: str) -> Iterator[None]:
    file = stage.folder / 'soc' / 'soc.json'
    stage.wait(file.exists, 'stored')
    yield
    stage.wait(lambda: stage.at_rest(), 'it only measures')


def system(stage: Stage, state: str) -> Iterator[None]:
    before = stage.call(GetSystemInfo, 'get_info').info
    yield
    after = stage.call(GetSystemInfo, 'get_info').info
    assert after.starts >= before.starts and after.runtime >= 0.0
    if state != 'INIT':
        stage.wait(lambda: stage.call(GetSystemInfo, 'get_info').info.state == state, 'it knows the state again')


def watchdog(stage: Stage, state: str) -> Iterator[None]:
    def feeds() -> int:
        return len(stage.watchdog.read_bytes())

    count = feeds()
    stage.wait(lambda: feeds() > count, 'feeds')
    yield
    assert b'V' not in stage.watchdog.read_bytes(), 'a killed watchdog is not disarmed'
    count = feeds()
    stage.wait(lambda: feeds() > count, 'feeds again')
    stage.silent.add('manager')
    stage.graph.settle(0.8)
    count = feeds()
    stage.graph.settle(QUIET_S)
    assert feeds() == count, 'not while the control grid is not healthy'
    stage.silent.discard('manager')


def onlooker(stage: Stage, state: str) -> Iterator[None]:
    yield
    stage.stays_at_rest(QUIET_S)


#: node -> (what it does, states, longest lease of what it commands in s)
CASES: dict[str, tuple[Case, tuple[str, ...], float]] = {
    'manager': (manager, tuple(STATES), 1.0),
    'manager stopped': (manager_stopped, ('RUN', 'SLEEP'), 1.0),
    'fixed': (mode(lambda p: p.preferred_power > 0.0), tuple(STATES), 3.0),
    'self': (mode(lambda p: p.preferred_power < 0.0, load=1500.0), tuple(STATES), 3.0),
    'peak': (mode(lambda p: p.high < 0.0, load=1500.0), tuple(STATES), 3.0),
    'charge': (mode(lambda p: p.preferred_power > 0.0), tuple(STATES), 3.0),
    'delayed': (mode(lambda p: 0.0 < p.high < inf), tuple(STATES), 3.0),
    'optimized': (mode(lambda p: p.high < inf, load=-2000.0), tuple(STATES), 3.0),
    'passive': (mode(lambda p: p.preferred_power == 0.0), tuple(STATES), 3.0),
    'deep': (mode(lambda p: p.low == 0.0), tuple(STATES), 3.0),
    'reserve': (mode(lambda p: p.low >= 0.0), tuple(STATES), 3.0),
    'feed_in': (mode(lambda p: p.low > 0.0, load=-2000.0), tuple(STATES), 3.0),
    'contact': (mode(lambda p: p.high == 1000.0, closed_contact=True), tuple(STATES), 3.0),
    'ramp': (mode(lambda p: p.has_preference, load=500.0), tuple(STATES), 3.0),
    'smooth': (mode(lambda p: p.has_preference, pv=-1000.0), tuple(STATES), 3.0),
    'match': (mode(lambda p: p.preferred_power == -1000.0, pv=1000.0), tuple(STATES), 3.0),
    'cost': (cost, tuple(STATES), 3.0),
    'backup': (backup, (*STATES, 'island', 'ramping'), 3.0),
    'volt_var': (curve, tuple(STATES), 3.0),
    'watt_var': (mode(lambda p: p.preferred_reactive_power == -1000.0), tuple(STATES), 3.0),
    'factor': (mode(lambda p: isfinite(p.preferred_reactive_power)), tuple(STATES), 3.0),
    'volt_watt': (mode(lambda p: p.low >= 0.0, volts=1.1 * 230.0), tuple(STATES), 3.0),
    'droop': (mode(lambda p: p.low > -inf, hertz=51.0), tuple(STATES), 3.0),
    'local': (local, tuple(STATES), 3.0),
    'external': (external, tuple(STATES), 3.0),
    'modbus': (modbus, tuple(STATES), 1.0),
    'site': (site, ('RUN', 'SLEEP', 'SLEEP timer', 'MAINTENANCE', 'ERROR fault', 'ERROR lost', 'INIT'), 0.0),
    'store': (store, ('STOPPED', 'HOLDING', 'CHARGING', 'DISCHARGING'), 2.0),
    'emergency_stop': (emergency_stop, ('released', 'pressed'), 0.0),
    'fault_manager': (fault_manager, tuple(STATES), 3.0),
    'event_log': (event_log, tuple(STATES), 0.0),
    'climate': (climate, tuple(STATES), 1.0),
    'test': (test_controller, ('RUN', 'SLEEP'), 1.0),
    'soc': (soc, tuple(STATES), 0.0),
    'system': (system, tuple(STATES), 0.0),
    'watchdog': (watchdog, tuple(STATES), 0.0),
    'monitors': (onlooker, tuple(STATES), 0.0),
    'safe': (onlooker, tuple(STATES), 0.0),
}
#: The states in which most can go wrong, for every run; all of them with BESS_SOAK.
ALWAYS = {'manager stopped': ('RUN',), 'fixed': ('MAINTENANCE',), 'site': ('MAINTENANCE',), 'store': ('CHARGING',),
          'emergency_stop': ('pressed',), 'fault_manager': ('RUN',), 'test': ('RUN',), 'backup': ('island',),
          'volt_var': ('RUN',)}


@pytest.fixture(scope='module')
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    made = Zygote(tmp_path_factory.mktemp('zygote'))
    yield made
    made.close()


def killed(graph: Any, zygote: Zygote, folder: Path, name: str, states: tuple[str, ...]) -> None:
    """Kill the node in each of these states, one after the other."""
    case, _, lease = CASES[name]
    stage = Stage(graph, zygote, folder, name.partition(' ')[0])
    try:
        stage.start()
        for state in states:
            stage.tell(STATES.get(state, RUN))
            steps = case(stage, state)
            next(steps)
            stage.kill()
            stage.wait(stage.at_rest, f'at rest within its lease of {lease:g} s', lease + SLACK_S)
            stage.asked.clear()
            stage.start()
            if name != 'site':  # its case looks at what it drives
                moved = [a for a in stage.asked if a.startswith(COMMANDS)]
                assert not moved, f'{state}: asked by itself: {moved}'
            assert next(steps, 'over') == 'over'
    finally:
        stage.end()


def test_none_is_forgotten(tmp_path: Path) -> None:
    """Every node type and every mode of the control room that is registered stands in the table above."""
    rooms = {e.name for e in entry_points(group=plugins.NODES) if e.value.startswith('bess_control.')}
    modes = {e.name for e in entry_points(group=plugins.MODES)}
    assert {'power_manager', 'storage'} <= rooms and {'backup', 'volt_var'} <= modes
    played = set(CASES) | {name.partition(' ')[0] for name in CASES}
    file = tmp_path / 'site.yaml'
    file.write_text(SITE)
    killed_types = {n.type for n in load(file, state=tmp_path).nodes if n.name in played}
    assert rooms | modes <= killed_types, f'not killed by any case: {sorted((rooms | modes) - killed_types)}'


@pytest.mark.parametrize('name', ALWAYS)
def test_a_killed_node(graph: Any, zygote: Zygote, tmp_path: Path, name: str) -> None:
    killed(graph, zygote, tmp_path, name, ALWAYS[name])


@pytest.mark.soak
@pytest.mark.parametrize('name', CASES)
def test_a_node_killed_in_each_state(graph: Any, zygote: Zygote, tmp_path: Path, name: str) -> None:
    killed(graph, zygote, tmp_path, name, CASES[name][1])
