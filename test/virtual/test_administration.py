"""Batteries created, moved and destroyed while others run, on real DDS with the example battery."""

from __future__ import annotations

import json
from collections.abc import Iterator
from math import nan
from pathlib import Path
from typing import Any

import pytest
from lifecycle_msgs.srv import ChangeState

from bess.msg import BatteryStatus, PowerSetpoint, Topology
from bess.srv import AddChild, ChangeBattery, ListBatteries, ListSchedule, ScheduleSetPower
from bess_core import overlay, qos, site
from bess_core.administrator import Administrator, hosts
from bess_core.container import Container
from bess_core.convert import stamp, wall_stamp
from bess_virtual.aggregate_node import AggregateNode
from bess_virtual.setpoint_sender_node import SetpointSender

SITE = """
site: {name: site, heartbeat: 0.1}
nodes:
  a: {type: bucket, poll: 0.05, period: 0.05}
  b: {type: bucket, poll: 0.05, period: 0.05}
  c: {type: bucket, poll: 0.05, period: 0.05}
  d: {type: bucket, poll: 0.05, period: 0.05}
  pair: {type: aggregate, members: [a, b], period: 0.05}
"""


class World:
    """A container with its administrator, and a peer that plays everybody else."""

    def __init__(self, runtime: Any, folder: Path, text: str = SITE) -> None:
        from rclpy.node import Node

        self.runtime, self.folder = runtime, folder
        self.file = folder / 'site.yaml'
        self.file.write_text(text)
        self.site = site.load(self.file, state=folder)
        assert hosts(self.site, 'control')
        self.container = Container(runtime, self.site, 'control', folder)
        self.peer = Node('peer', namespace='/site', start_parameter_services=False, enable_rosout=False)
        runtime.executor.add_node(self.peer)
        self.container.make(self.site.nodes)
        self.administrator = Administrator(self.container)
        assert self.container.bring_up() == []
        self.topologies: list[Topology] = []
        self.peer.create_subscription(Topology, 'batteries/topology', self.topologies.append, qos.STATE)
        self.wait(lambda: all(self.node(n).reading.quality == 0 for n in ('a', 'b', 'c', 'd')), 'all measure')
        self._sequence = 0

    def wait(self, condition: Any, what: Any, timeout_s: float = 15.0) -> None:
        assert self.runtime.spin_until(lambda: bool(condition()), timeout_s), what if isinstance(what, str) else what()

    def node(self, name: str) -> Any:
        return self.container.ctx.nodes[name]

    def start(self, srv: Any, name: str, request: Any) -> Any:
        client = self.peer.create_client(srv, name)
        self.wait(client.service_is_ready, name)
        return client.call_async(request)

    def call(self, srv: Any, name: str, request: Any = None) -> Any:
        future = self.start(srv, name, request or srv.Request())
        self.wait(future.done, f'answer of {name}')
        return future.result()

    @property
    def revision(self) -> int:
        return self.container.site.overlay.revision

    def change(self, verb: str, name: str, **fields: Any) -> Any:
        fields.setdefault('revision', self.revision)
        return self.call(ChangeBattery, f'batteries/{verb}', ChangeBattery.Request(name=name, author='test', **fields))

    def schedule(self, battery: str, power: float, start: float, end: float) -> Any:
        wall = self.container.clock.wall()
        answer = self.call(ScheduleSetPower, f'{battery}/schedule_set_power', ScheduleSetPower.Request(
            power=power, start=wall_stamp(wall + start), end=wall_stamp(wall + end)))
        assert answer.accepted, answer.message
        return answer

    def current(self, name: str) -> float:
        return float(self.node(name).reading.current)

    def close(self) -> None:
        self.administrator.end()
        self.container.close()
        self.runtime.executor.remove_node(self.peer)
        self.peer.destroy_node()


@pytest.fixture
def world(runtime: Any, tmp_path: Path, example: Path) -> Iterator[World]:
    made = World(runtime, tmp_path)
    yield made
    made.close()


def test_a_change_whose_answer_was_lost_is_made_once_and_answered_again(world: World) -> None:
    request = ChangeBattery.Request(name='home', type='aggregate', members=['c', 'd'], author='test')
    futures = [world.start(ChangeBattery, 'batteries/create', request) for _ in range(2)]
    world.wait(lambda: all(f.done() for f in futures), 'both answers')
    later = world.call(ChangeBattery, 'batteries/create', request)
    answers = [*(f.result() for f in futures), later]
    assert all(a.accepted and a.revision == 1 for a in answers), answers
    assert len({a.message for a in answers}) == 1 and world.revision == 1
    other = world.call(ChangeBattery, 'batteries/create', ChangeBattery.Request(
        name='home', type='aggregate', members=['c'], author='test'))
    assert not other.accepted, 'another change for the same revision is a conflict'


def test_who_is_made_anew_is_heard_by_what_it_commands_at_once(world: World) -> None:
    """The lease that the former one held does not stand in the way: its numbers go on."""
    for k in range(2):
        answer = world.change('create', 'home', type='aggregate', members=['c', 'd'], parameters='lease: 30.0')
        assert answer.accepted, answer.message
        world.wait(lambda: world.node('home').reading.quality == 0, 'it measures')
        world.schedule('home', 1000.0, 0.0, 600.0)
        world.wait(lambda: world.current('c') + world.current('d') == pytest.approx(20.0),
                   lambda: f'{k}: {world.node("c").reading} {world.node("c").order()}', 5.0)
        if k == 0:
            assert world.change('destroy', 'home', force=True).accepted


def test_a_new_life_of_a_sender_is_heard_while_the_lease_of_the_former_lasts(world: World) -> None:
    battery, clock = world.node('c'), world.container.clock
    for power in (500.0, 700.0):
        sender = SetpointSender(world.administrator, 'c', 30.0)
        world.wait(lambda sender=sender: sender._publisher.get_subscription_count(), 'c listens')
        for _ in range(3):
            sender.send(power, nan, clock.now())
        world.wait(lambda power=power: battery.order() is not None and battery.order().power == power,
                   lambda: f'{battery.order()}', 5.0)
        assert battery.order().expires - clock.now() > 20.0
        sender.close()


def test_create_use_restart_destroy(world: World) -> None:
    answer = world.change('create', 'home', type='aggregate', members=['c', 'd'], parameters='limit: sum')
    assert answer.accepted, answer.message
    assert answer.revision == 1
    assert isinstance(world.node('home'), AggregateNode)
    world.wait(lambda: world.node('home').reading.max_charge_power == pytest.approx(4000.0), 'sum of the limits')
    world.schedule('home', 1000.0, 0.0, 60.0)
    world.wait(lambda: world.current('c') == pytest.approx(10.0) and world.current('d') == pytest.approx(10.0),
               'both members charge')
    world.wait(lambda: world.topologies and world.topologies[-1].revision == 1, 'topology is told')
    node = {n.name: n for n in world.topologies[-1].nodes}['home']
    assert (node.type, list(node.members), node.origin, node.owner) == ('aggregate', ['c', 'd'], 'created', '')
    # What a start would make of it: the same.
    again = site.load(world.file, state=world.folder)
    assert again.node('home').params == world.node('home').params
    assert again.overlay.history[0].text == 'created home (aggregate of c, d)'

    refused = world.change('destroy', 'home')
    assert not refused.accepted
    assert 'request 1, 1000 W' in refused.message
    assert '--force' in refused.message
    forced = world.change('destroy', 'home', force=True)
    assert forced.accepted, forced.message
    assert world.current('c') == 0.0 and world.current('d') == 0.0, 'seen at rest before it ended'
    assert 'home' not in world.container.ctx.nodes
    world.wait(lambda: not world.peer.count_publishers('/site/home/status')
               and not world.peer.count_services('/site/home/change_state'), 'nothing of it is left on the graph')
    # One of the same name begins anew: nobody asked it for anything.
    assert world.change('create', 'home', type='aggregate', members=['c', 'd']).accepted
    assert not world.call(ListSchedule, 'home/list_schedule').entries
    assert list((world.folder / 'retired').rglob('home.jsonl'))


def test_reparent_moves_a_member_and_the_schedules_go_on(world: World) -> None:
    assert world.change('create', 'other', type='aggregate', members=['c']).accepted
    world.schedule('pair', 1000.0, 0.0, 60.0)
    world.wait(lambda: world.current('b') == pytest.approx(10.0), 'both run')
    refused = world.change('reparent', 'b', parent='other')
    assert not refused.accepted
    assert 'pair: request 1' in refused.message
    assert world.current('b') == pytest.approx(10.0), 'a refusal stops nothing'
    moved = world.change('reparent', 'b', parent='other', force=True)
    assert moved.accepted, moved.message
    assert world.node('pair').params.members == ['a']
    assert world.node('other').params.members == ['c', 'b']
    world.wait(lambda: world.current('a') == pytest.approx(20.0), 'the schedule of pair goes on with what is left')
    assert world.current('b') == 0.0
    assert world.node('b').is_active
    back = world.change('reparent', 'b', parent='pair', force=True)
    assert back.accepted, back.message
    world.wait(lambda: world.current('b') == pytest.approx(10.0, rel=0.02), 'and shared again')
    free = world.change('reparent', 'b', parent='', force=True)
    assert free.accepted
    assert world.node('b').reading.quality == 0


REFUSED: list[tuple[str, str, dict[str, Any], str]] = [
    ('create', 'x', {'type': 'aggregate', 'members': ['a', 'c']}, "'a' is already used by 'pair'"),
    ('create', 'x', {'type': 'aggregate', 'members': ['c', 'c']}, "'c' is named twice"),
    ('create', 'x', {'type': 'aggregate', 'members': ['x']}, 'refers to itself: x -> x'),
    ('create', 'x', {'type': 'aggregate', 'members': ['nobody']}, "no node 'nobody'"),
    ('create', 'x', {'type': 'aggregate'}, 'members: is required|members'),
    ('create', 'x', {'type': 'aggregate', 'members': ['c'], 'parameters': 'limit: most'}, "one of 'together', 'sum'"),
    ('create', 'x', {'type': 'aggregate', 'members': ['c'], 'parameters': '[1, 2'}, 'not valid YAML'),
    ('create', 'x', {'type': 'aggregate', 'members': ['c'], 'parameters': '- 1'}, 'must be a mapping'),
    ('create', 'x', {'type': 'aggregate', 'members': ['c'], 'parameters': 'x: ' + 'y' * 70000}, 'at most 65536'),
    ('create', 'x', {'type': 'aggregate', 'members': ['c'], 'parameters': 'when: 2026-01-01'}, 'unknown'),
    ('create', 'x', {'type': 'aggregate', 'members': ['m'] * 2000}, 'at most 1000'),
    ('create', 'x', {'type': 'jbd'}, 'not a type of battery'),
    ('create', 'x', {'type': 'no_such_kind'}, 'unknown type'),
    ('create', 'x', {'type': 'aggregate', 'members': ['c'], 'parameters': 'process: elsewhere'}, 'elsewhere'),
    ('create', 'pair', {'type': 'aggregate', 'members': ['c']}, 'is there already'),
    ('create', 'batteries', {'type': 'aggregate', 'members': ['c']}, 'the system itself'),
    *[('create', name, {'type': 'aggregate', 'members': ['c']}, 'is not a name')
      for name in ('', 'a b', '../../etc', 'a/b', '1st', 'naïve', 'x' * 65, 'y' * 100000, 'a\nb')],
    ('destroy', 'a', {}, 'a is used by pair'),
    ('destroy', 'nobody', {}, "no battery 'nobody'"),
    ('reparent', 'a', {'parent': 'pair'}, 'belongs to pair already'),
    ('reparent', 'a', {'parent': 'c'}, 'does not take further members'),
    ('reparent', 'pair', {'parent': 'pair'}, 'refers to itself'),
    ('reparent', 'nobody', {'parent': 'pair'}, "no battery 'nobody'"),
    ('configure', 'pair', {'parameters': 'members: []'}, 'at least one member'),
    ('configure', 'pair', {'parameters': 'type: unit'}, 'cannot be changed'),
    ('configure', 'pair', {}, 'no parameter given'),
]


def test_refusals_change_nothing(world: World) -> None:
    before = dict(world.container.ctx.nodes)
    for verb, name, fields, reason in REFUSED:
        answer = world.change(verb, name, **fields)
        assert not answer.accepted, (verb, name[:80])
        assert any(r in answer.message for r in reason.split('|')), (verb, name[:80], answer.message[:500])
        assert len(answer.message) <= 4000
        assert answer.revision == 0
        assert world.container.ctx.nodes == before
    assert all(n.is_active for n in before.values())
    assert not (world.folder / overlay.FILE).exists()


def test_two_administrators_at_once(world: World) -> None:
    """Both saw revision 0: one wins, the other is told; then the members of one are not used twice."""
    requests = [ChangeBattery.Request(name=name, type='aggregate', members=['c', 'd'], author=name, revision=0)
                for name in ('home', 'office')]
    futures = [world.start(ChangeBattery, 'batteries/create', r) for r in requests]
    world.wait(lambda: all(f.done() for f in futures), 'both answers')
    answers = [f.result() for f in futures]
    assert sorted(a.accepted for a in answers) == [False, True]
    loser = next(a for a in answers if not a.accepted)
    assert 'another change is under way' in loser.message or 'revision 1 by now' in loser.message
    late = world.change('create', 'late', type='aggregate', members=['c'], revision=0)
    assert not late.accepted
    assert 'the topology is at revision 1 by now, not 0' in late.message
    assert world.revision == 1
    assert [c.author for c in overlay.read(world.folder).history] == [
        r.author for r, a in zip(requests, answers, strict=True) if a.accepted]


def test_another_process_that_wrote_meanwhile_wins(world: World) -> None:
    other = overlay.Overlay().with_change('something else', 'other', 0.0, removed=('nobody',))
    overlay.write(world.folder, other, expected=0)
    answer = world.change('create', 'home', type='aggregate', members=['c', 'd'])
    assert not answer.accepted
    assert 'revision 1 by now' in answer.message
    assert 'home' not in world.container.ctx.nodes
    assert overlay.read(world.folder) == other


def test_a_failed_bring_up_puts_everything_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.schedule('pair', -500.0, 0.0, 60.0)
    world.wait(lambda: world.current('a') == pytest.approx(-5.0), 'discharges')
    real = AggregateNode.configure_battery

    def fails(self: Any) -> None:
        if self.params.limit == 'sum':
            raise OSError('no such luck')
        real(self)

    monkeypatch.setattr(AggregateNode, 'configure_battery', fails)
    answer = world.change('configure', 'pair', parameters='limit: sum', force=True)
    assert not answer.accepted
    assert 'no such luck' in answer.message
    assert world.revision == 0
    assert world.node('pair').params.limit == 'together'
    world.wait(lambda: world.current('a') == pytest.approx(-5.0), 'what was scheduled goes on')
    answer = world.change('create', 'home', type='aggregate', members=['c'], parameters='limit: sum')
    assert not answer.accepted
    assert 'home' not in world.container.ctx.nodes
    assert world.node('c').is_active


def test_a_full_disk_puts_everything_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise overlay.OverlayError('cannot be written: No space left on device')

    monkeypatch.setattr(overlay, 'write', full)
    answer = world.change('reparent', 'b', parent='')
    assert not answer.accepted
    assert 'No space left' in answer.message
    assert world.node('pair').params.members == ['a', 'b']
    assert world.node('pair').is_active


def test_a_battery_that_does_not_come_to_rest_is_not_touched(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from bess_core import administrator

    monkeypatch.setattr(administrator, 'REST_S', 0.5)
    world.node('a')._device._battery.current = 30.0
    monkeypatch.setattr(world.node('a')._device, 'set_current', lambda _: None)
    world.wait(lambda: world.current('a') == 30.0, 'a runs away')
    answer = world.change('reparent', 'a', parent='')
    assert not answer.accepted
    assert 'not at rest after 0.5 s' in answer.message
    assert 'a at 1500 W' in answer.message
    assert world.node('pair').is_active
    assert world.node('pair').params.members == ['a', 'b']


def test_source_removed_under_running_children(world: World) -> None:
    children = ('children: {x: {energy: 0.5, charge_power: 0.5, discharge_power: 0.5}, '
                'y: {energy: 0.5, charge_power: 0.5, discharge_power: 0.5}}')
    made = world.change('create', 'split', type='partition', members=['pair'], parameters=children)
    assert made.accepted, made.message
    world.wait(lambda: world.node('x').reading.max_charge_power > 0.0, 'a child measures')
    world.schedule('x', 500.0, 0.0, 60.0)
    world.wait(lambda: world.current('a') == pytest.approx(5.0), 'the child runs')
    for verb, name, reason in (('destroy', 'pair', 'pair is used by split'), ('destroy', 'x', 'x is a child of split'),
                               ('destroy', 'split', 'x: request 1'), ('reparent', 'pair', 'cannot be without')):
        answer = world.change(verb, name, force=verb == 'destroy' and name == 'pair')
        assert not answer.accepted
        assert reason in answer.message
    # Behind the administrator's back: the children say so, and nothing runs on.
    client = world.peer.create_client(ChangeState, 'pair/change_state')
    world.wait(client.service_is_ready, 'lifecycle service')
    for transition in (4, 2):  # deactivate, clean up
        request = ChangeState.Request()
        request.transition.id = transition
        future = client.call_async(request)
        world.wait(future.done, 'transition')
    world.wait(lambda: world.current('a') == 0.0 and world.current('b') == 0.0, 'members at rest')
    world.wait(lambda: world.node('x').reading.quality > 0, 'stale child')
    assert world.node('pair').trigger_configure().name == world.node('pair').trigger_activate().name == 'SUCCESS'
    world.wait(lambda: world.current('a') == pytest.approx(5.0), 'and goes on when the source is back')
    gone = world.change('destroy', 'pair', cascade=True, force=True)
    assert gone.accepted, gone.message
    assert not {'pair', 'split', 'x', 'y'} & set(world.container.ctx.nodes)
    world.wait(lambda: world.current('a') == 0.0, 'a rests')
    assert overlay.read(world.folder).removed == ('pair',)


def test_children_added_at_run_time_are_seen_protected_and_follow_their_partition(world: World) -> None:
    children = ('children: {x: {energy: 0.4, charge_power: 0.4, discharge_power: 0.4}, '
                'y: {energy: 0.4, charge_power: 0.4, discharge_power: 0.4}}')
    assert world.change('create', 'split', type='partition', members=['pair'], parameters=children).accepted
    world.wait(lambda: world.node('x').reading.max_charge_power > 0.0, 'a child measures')
    share = {'energy': 0.2, 'charge_power': 0.2, 'discharge_power': 0.2}
    answer = world.call(AddChild, 'split/add_child', AddChild.Request(name='car', **share))
    assert answer.accepted, answer.message
    world.wait(lambda: 'car' in world.container.ctx.nodes and world.node('car').reading.max_charge_power > 0.0, 'car')

    def told() -> dict[str, Any]:
        return {n.name: n for n in world.topologies[-1].nodes}

    world.wait(lambda: list(told()['split'].children) == ['x', 'y', 'car'], 'on the topic')
    assert (told()['car'].role, told()['car'].origin) == ('battery', 'created')
    world.schedule('car', 200.0, 0.0, 60.0)
    world.wait(lambda: world.current('a') == pytest.approx(2.0), 'it runs')
    inspected = world.call(ListBatteries, 'batteries/list', ListBatteries.Request(name='car'))
    assert inspected.accepted and len(inspected.nodes) == 1 and inspected.running[0].startswith('car: request 1')
    # Its schedule counts like that of any other battery.
    for verb, name, fields in (('reparent', 'b', {}), ('configure', 'split', {'parameters': 'policy: tranche'}),
                               ('destroy', 'split', {})):
        answer = world.change(verb, name, **fields)
        assert not answer.accepted and 'car: request 1' in answer.message, (verb, answer.message)
    answer = world.change('create', 'more', type='aggregate', members=['car'])
    assert not answer.accepted and 'car was added to split at run time' in answer.message
    answer = world.change('create', 'car', type='aggregate', members=['c'])
    assert not answer.accepted and 'car is there already' in answer.message
    # The partition is made anew: the child goes on with it.
    before = world.node('car')
    answer = world.change('configure', 'split', parameters='policy: tranche', force=True)
    assert answer.accepted, answer.message
    world.wait(lambda: 'car' in world.container.ctx.nodes and world.node('car') is not before, 'a node of the new one')
    world.wait(lambda: world.current('a') == pytest.approx(2.0) and world.node('car').reading.quality == 0, 'runs on')
    assert world.node('car').faults.records == []
    # Named in the configuration it becomes a battery like the others, and keeps its schedule.
    third = children[:-1] + ', car: {energy: 0.2, charge_power: 0.2, discharge_power: 0.2}}'
    answer = world.change('configure', 'split', parameters=third, force=True)
    assert answer.accepted, answer.message
    world.wait(lambda: world.current('a') == pytest.approx(2.0) and world.node('car').reading.quality == 0, 'still')
    assert list(told()['split'].children) == ['x', 'y', 'car'] and world.node('split').guests() == []
    answer = world.change('create', 'more', type='aggregate', members=['car'], force=True)
    assert answer.accepted, answer.message
    # Another one, destroyed with its partition: nothing of it is left for the next of these names.
    assert world.change('destroy', 'more', force=True).accepted
    answer = world.change('configure', 'split', parameters=children, force=True)
    assert answer.accepted, answer.message
    answer = world.call(AddChild, 'split/add_child', AddChild.Request(name='van', **share))
    assert answer.accepted, answer.message
    world.wait(lambda: 'van' in world.container.ctx.nodes and world.node('van').is_active, 'van')
    world.wait(lambda: world.node('van').reading.max_charge_power > 0.0, 'measures')
    world.schedule('van', 100.0, 30.0, 60.0)
    assert not world.change('destroy', 'split').accepted
    assert world.change('destroy', 'split', force=True).accepted
    assert not {'split', 'x', 'y', 'car', 'van'} & set(world.container.ctx.nodes)
    assert not [n for n in world.container.nodes if n.get_name() in ('split', 'x', 'y', 'car', 'van')]
    assert not (world.folder / 'schedules' / 'van.jsonl').exists() and not (world.folder / 'statements/split').exists()
    assert world.change('create', 'split', type='partition', members=['pair'], parameters=children).accepted
    world.wait(lambda: world.node('x').reading.max_charge_power > 0.0, 'a new one')
    assert world.node('split')._desk.notices == [] and 'van' not in world.container.ctx.nodes


def test_what_somebody_holds_goes_on_after_a_change(world: World) -> None:
    """A manager renews its lease all the while; the battery is stopped, changed, and takes orders again."""
    publisher = world.peer.create_publisher(PowerSetpoint, 'pair/setpoint', qos.SETPOINT)
    sequence = iter(range(1, 100000))

    def renew(_: Any) -> None:
        message = PowerSetpoint(power=400.0, reactive_power=nan, lease=1.0, source='manager', sequence=next(sequence))
        message.header.stamp = stamp(world.container.clock, world.container.clock.now())
        publisher.publish(message)

    handle = world.container.ticker.every(0.05, renew)
    world.wait(lambda: world.current('a') == pytest.approx(4.0), 'runs')
    assert world.change('configure', 'pair', parameters='limit: sum').accepted
    world.wait(lambda: world.current('a') == pytest.approx(4.0), 'runs again')
    handle.cancel()


def test_list_inspect_export_dry_run(world: World) -> None:
    would = world.change('create', 'home', type='aggregate', members=['c', 'd'], dry_run=True)
    assert would.accepted
    assert would.message == 'would have created home (aggregate of c, d); stops meanwhile: c, d'
    assert world.revision == 0
    assert world.change('create', 'home', type='aggregate', members=['c', 'd']).accepted
    assert world.change('configure', 'pair', parameters='limit: sum').accepted
    answer = world.call(ListBatteries, 'batteries/list', ListBatteries.Request(name='pair'))
    assert [n.name for n in answer.nodes] == ['pair']
    assert 'limit: sum' in answer.nodes[0].parameters
    assert answer.nodes[0].origin == 'changed'
    assert len(answer.history) == 2
    # The fragment, put into the site file, is the same site.
    whole = world.file.read_text().replace('  pair: {type: aggregate, members: [a, b], period: 0.05}\n', '')
    written = world.folder / 'written.yaml'
    written.write_text(whole + '\n'.join(answer.fragment.splitlines()[1:]) + '\n')
    plain = site.load(written)
    assert {n.name: n.params for n in plain.nodes} == {n.name: n.params for n in world.container.site.nodes}
    assert not world.call(ListBatteries, 'batteries/list', ListBatteries.Request(name='nobody')).accepted


def test_status_of_a_created_battery_has_one_publisher_after_many_changes(world: World) -> None:
    def there() -> tuple[int, int]:
        return world.peer.count_publishers('/site/pair/status'), world.peer.count_services('/site/pair/change_state')

    before = there()
    for limit in ('sum', 'together') * 3:
        assert world.change('configure', 'pair', parameters=f'limit: {limit}').accepted
    world.wait(lambda: (1, 1) <= there() <= before, lambda: f'{there()}, not as before: {before}')
    statuses: list[BatteryStatus] = []
    world.peer.create_subscription(BatteryStatus, 'pair/status', statuses.append, qos.MEASUREMENT)
    world.wait(lambda: statuses and statuses[-1].members_usable == 2, 'good status')
    assert json.loads((world.folder / overlay.FILE).read_text())['revision'] == 6
