"""Remote batteries on real DDS and real TLS over loopback."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from remote_site import CELL, TICK, Client, Owner, Wire, make_pki
from ros_domain import claim_domain

from bess.msg import BatteryStatus, PowerSetpoint
from bess.srv import ListSchedule, ScheduleAt, ScheduleSetPower
from bess_core import certs, qos
from bess_core.convert import battery_to_msg
from bess_core.params import ParameterError, build
from bess_core.values import Quality
from bess_virtual.aggregate_node import AggregateNode
from bess_virtual.remote_link import LinkClient, LinkError, Tls
from bess_virtual.remote_node import RemoteParams
from bess_virtual.remote_ros_node import _OtherDomain
from bess_virtual.remote_server_node import RemoteServerParams
from bess_virtual.remote_wire import Ask, decode_answer, encode

ALL = {'house': ['read', 'schedule', 'setpoint']}


@pytest.fixture(scope='module')
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pki(tmp_path_factory.mktemp('remote') / 'pki', 'alice', 'bob', 'carol')


@pytest.fixture
def wire(pki: Path) -> Iterator[list[Wire]]:
    made: list[Wire] = []
    yield made
    for w in made:
        w.close()


def faults(node: Any) -> dict[str, str]:
    return {r.id: r.text for r in node.faults.records if r.active}


def test_a_battery_of_another_site_keeps_the_whole_contract(graph: Any, pki: Path) -> None:
    owner = Owner(graph, pki, {'alice': ALL})
    far = Client.over_tls(graph, pki, 'alice', owner.port).wait_up()
    reading = far.node.reading
    assert (reading.soc, reading.energy, reading.max_charge_power) == (0.5, 2500.0, 2000.0)
    assert 0.0 <= graph.clock.now() - reading.time < 0.6
    status = far.status()
    assert status.fresh and status.status.voltage == 50.0

    far.ask(700.0, lease=0.6)
    graph.wait(lambda: owner.cell.power == 700.0, 'order of the remote battery at the cell')
    assert owner.battery.demand.source == 'alice:manager'
    graph.wait(lambda: far.node.reading.setpoint_source == 'alice:manager', 'who asks, seen from afar')
    graph.wait(lambda: owner.cell.power == 0.0, 'rest once the lease is over', 3.0)

    answer = far.schedule(-900.0, 0.0, 600.0, request_id='mine', source='planner')
    assert answer.accepted and answer.event_id and not answer.repeated, answer.message
    graph.wait(lambda: owner.cell.power == -900.0, 'schedule at the cell')
    again = far.schedule(-900.0, 0.0, 600.0, request_id='mine', source='planner')
    assert not again.accepted or again.event_id == answer.event_id  # other times under the same id are refused
    entries = far.list()
    assert [(e.event_id, e.value, e.running, e.source) for e in entries] == [
        (answer.event_id, -900.0, True, 'alice:planner')]
    refused = far.schedule(9999.0, 0.0, 600.0)
    assert not refused.accepted and '9999' in refused.message
    cancelled = far.cancel(answer.event_id)
    assert cancelled.accepted and cancelled.cancelled == 1
    graph.wait(lambda: owner.cell.power == 0.0, 'rest after the cancellation')
    assert far.list() == []


def test_permissions_hold_per_client_and_battery_and_refusals_say_why(graph: Any, pki: Path) -> None:
    owner = Owner(graph, pki, {'alice': ALL, 'bob': {'house': ['read']}})
    alice = Client.over_tls(graph, pki, 'alice', owner.port).wait_up()
    bob = Client.over_tls(graph, pki, 'bob', owner.port).wait_up()
    mine = alice.schedule(500.0, 60.0, 600.0)
    assert mine.accepted
    answer = bob.schedule(-500.0, 0.0, 600.0)
    denied = "permission denied: needs 'schedule' on battery house (bob has read)"
    assert not answer.accepted and answer.message == f'remote: {denied}'
    assert denied in bob.cancel(mine.event_id).message
    assert len(bob.list()) == 1  # reading is allowed
    bob.ask(800.0)
    graph.wait(lambda: "needs 'setpoint' on battery house" in faults(bob.node).get('remote.refused', ''),
               'refused order')
    assert owner.cell.power == 0.0 and [e.event_id for e in owner.list()] == [mine.event_id]

    # Rights are by certificate: carol's is of the same authority but not listed, so the link lets nothing through but
    # the reason.
    carol = Client.over_tls(graph, pki, 'carol', owner.port, request_timeout=1.0)
    unknown = "permission denied: the other side has no client 'carol'"
    graph.wait(lambda: unknown in faults(carol.node).get('remote.link', ''), 'carol is told why')
    assert carol.node.reading.quality == Quality.INVALID
    answer = carol.schedule(-500.0, 0.0, 600.0)
    assert not answer.accepted and unknown in answer.message
    assert unknown in graph.call(ListSchedule, f'/{carol.site}/far/list_schedule').message
    assert unknown in graph.call(ScheduleAt, f'/{carol.site}/far/schedule_at').message
    assert [e.event_id for e in owner.list()] == [mine.event_id]
    # A client that asks under the name of another is not let through either.
    thief = LinkClient(f'localhost:{owner.port}', 'site', Tls(pki / 'ca.pem', certs.pair(pki, 'bob')))
    thief._prefix = 'bess/site/alice'
    heard: list[bytes | None] = []
    asked: list[bool] = []

    def ask() -> bool:  # until there is a session, and then not again
        if not any(asked):
            asked.append(thief.ask('status', encode(Ask('house')), 1.0, heard.append))
        return asked[-1]

    graph.wait(ask, 'session')
    graph.wait(lambda: heard, 'end of the question')
    assert heard == [None]
    thief.close()


@pytest.mark.parametrize('way', ['tls', 'ros'])
def test_a_battery_made_of_remote_ones_is_admitted_by_their_owners_and_runs(graph: Any, pki: Path, way: str) -> None:
    owner = Owner(graph, pki, {'alice': ALL})
    far = (Client.over_tls(graph, pki, 'alice', owner.port) if way == 'tls'
           else Client(graph, 'site_ros', topic='/site/house')).wait_up()
    street = graph.add(AggregateNode, 'street', {'members': ['far'], **TICK}, far.ctx)
    graph.up(street)
    graph.wait(lambda: street.reading.quality == Quality.OK, 'the street measures')

    def schedule(power: float, start: float, end: float) -> Any:
        return graph.call(ScheduleSetPower, f'/{far.site}/street/schedule_set_power', far.request(power, start, end))

    assert schedule(-700.0, 0.0, 60.0).accepted
    graph.wait(lambda: owner.cell.power == pytest.approx(-700.0), 'it runs at the owner')
    assert owner.battery.scheduling.book.promised().at(graph.clock.wall() + 30.0) == pytest.approx(-700.0)
    mine = owner.graph.call(ScheduleSetPower, 'house/schedule_set_power', far.request(100.0, 200.0, 300.0))
    assert mine.accepted
    refused = schedule(500.0, 250.0, 260.0)
    assert not refused.accepted and 'far: its own schedule' in refused.message, refused.message


def test_who_may_schedule_but_not_read_can_schedule_and_is_told_what_is_denied(graph: Any, pki: Path) -> None:
    owner = Owner(graph, pki, {'bob': {'house': ['schedule']}})
    bob = Client.over_tls(graph, pki, 'bob', owner.port)
    denied = "permission denied: needs 'read' on battery house (bob has schedule)"
    graph.wait(lambda: denied in faults(bob.node).get('remote.link', ''), 'why there is no status')
    graph.wait(lambda: denied in ' '.join(bob.node.reading.limit_reasons), 'and in the status')
    answer = bob.schedule(-500.0, 60.0, 600.0)
    assert answer.accepted, answer.message
    assert [e.event_id for e in owner.list()] == [answer.event_id]
    answer = graph.call(ListSchedule, f'/{bob.site}/far/list_schedule')
    assert answer.message == f'remote: {denied}' and not answer.entries


def test_another_realm_is_named(graph: Any, pki: Path) -> None:
    owner = Owner(graph, pki, {'alice': ALL}, realm='elsewhere')
    far = Client.over_tls(graph, pki, 'alice', owner.port)
    graph.wait(lambda: "the realm there is 'elsewhere', not 'site'" in faults(far.node).get('remote.link', ''), 'why')


def test_a_client_takes_back_only_what_it_asked_for(graph: Any, pki: Path) -> None:
    owner = Owner(graph, pki, {'alice': ALL, 'bob': ALL})
    alice = Client.over_tls(graph, pki, 'alice', owner.port).wait_up()
    bob = Client.over_tls(graph, pki, 'bob', owner.port).wait_up()
    first, second = alice.schedule(500.0, 60.0, 600.0), bob.schedule(300.0, 700.0, 800.0)
    assert first.accepted and second.accepted
    refused = bob.cancel(first.event_id)
    assert not refused.accepted and 'was not asked for by bob' in refused.message
    assert bob.cancel(0).cancelled == 1
    assert [e.event_id for e in owner.list()] == [first.event_id]
    assert not bob.cancel(12345).accepted


@pytest.mark.parametrize('who', ['foreign', 'expired', 'not yet', 'no certificate', 'a server certificate'])
def test_who_has_no_good_certificate_is_refused(graph: Any, pki: Path, tmp_path: Path, who: str,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    owner = Owner(graph, pki, {'alice': ALL})
    authority, folder, name = pki, tmp_path / 'other', 'alice'
    folder.mkdir()
    if who == 'foreign':
        make_pki(folder / 'x', 'alice')
        folder = folder / 'x'
    elif who in ('expired', 'not yet'):
        days = -3.0 if who == 'expired' else 3.0
        certs.issue(pki, 'alice', 'client', days=1.0, now=time.time() + days * 86400.0, out=folder)
    elif who == 'a server certificate':
        certs.issue(pki, 'alice', 'server', hosts=['localhost'], out=folder)
    tls = Tls(authority / 'ca.pem', certs.pair(folder, name))
    with pytest.raises(LinkError):  # says so before it tries
        tls.check('client')
    if who == 'no certificate':
        return
    monkeypatch.setattr(Tls, 'check', lambda *_: None)  # and the server refuses it, too
    link = LinkClient(f'localhost:{owner.port}', 'site', tls)
    heard: list[bytes | None] = []
    deadline = time.monotonic() + 0.8
    while time.monotonic() < deadline:
        link.ask('status', encode(Ask('house')), 0.3, heard.append)
        graph.settle(0.1)
    link.close()
    assert not [h for h in heard if h is not None]
    good = Client.over_tls(graph, pki, 'alice', owner.port)
    monkeypatch.undo()
    good.wait_up()


def test_a_server_that_only_has_a_client_certificate_is_not_believed(graph: Any, pki: Path,
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tls, 'check', lambda *_: None)
    owner = Owner(graph, pki, {'alice': ALL}, certificate=str(pki / 'bob.pem'))
    far = Client.over_tls(graph, pki, 'alice', owner.port)
    graph.settle(1.0)
    assert far.node._heard_at < 0.0 and far.node.reading.quality == Quality.INVALID


def test_link_lost_schedules_run_on_leases_end_and_the_age_shows(graph: Any, pki: Path, wire: list[Wire]) -> None:
    owner = Owner(graph, pki, {'alice': ALL})
    wire.append(Wire(owner.port))
    far = Client.over_tls(graph, pki, 'alice', wire[0].port).wait_up()
    assert far.schedule(-600.0, 0.0, 600.0).accepted
    far.ask(400.0, lease=1.0)
    graph.wait(lambda: owner.cell.power == 400.0, 'setpoint goes before the schedule')
    wire[0].cut()
    graph.wait(lambda: owner.cell.power == -600.0, 'the lease ends at the owner, its schedule goes on', 3.0)
    graph.wait(lambda: far.node.reading.quality == Quality.STALE, 'STALE', 3.0)
    graph.wait(lambda: far.node.reading.quality == Quality.INVALID, 'INVALID', 3.0)
    graph.settle(0.7)
    status = far.status()
    assert not status.fresh and 'INVALID' in status.message
    assert graph.clock.now() - far.node.reading.time > 1.5
    assert 'the owner is silent for' in far.node.reading.limit_reasons[0]
    assert 'remote.link' in faults(far.node)
    assert owner.cell.power == -600.0 and owner.battery.is_active
    wire[0].mend()
    far.wait_up()
    graph.wait(lambda: 'remote.link' not in faults(far.node), 'no fault any more')
    assert [e.value for e in far.list()] == [-600.0]


def test_requests_made_while_the_link_is_down_are_kept_until_their_deadline(
        graph: Any, pki: Path, wire: list[Wire]) -> None:
    owner = Owner(graph, pki, {'alice': ALL})
    wire.append(Wire(owner.port))
    far = Client.over_tls(graph, pki, 'alice', wire[0].port, request_timeout=8.0).wait_up()
    client = graph.peer.create_client(ScheduleSetPower, '/site_alice/far/schedule_set_power')
    graph.wait(client.service_is_ready, 'service')
    # An answer that is lost: the owner accepts, the way back is broken.
    wire[0].back = False
    lost = client.call_async(far.request(-300.0, 60.0, 120.0, request_id='lost'))
    graph.wait(lambda: owner.list(), 'accepted by the owner')
    wire[0].cut()
    graph.wait(lambda: far.node.reading.quality == Quality.INVALID, 'link down')
    down = client.call_async(far.request(300.0, 200.0, 300.0, request_id='down'))
    graph.settle(0.3)
    assert not lost.done() and not down.done()
    wire[0].mend()
    graph.wait(lambda: lost.done() and down.done(), 'both answered after the link came back')
    assert lost.result().accepted and down.result().accepted
    assert sorted(e.value for e in owner.list()) == [-300.0, 300.0]  # one entry each
    assert {e.event_id for e in owner.list()} == {lost.result().event_id, down.result().event_id}


def test_what_was_given_up_does_not_run(graph: Any, pki: Path, wire: list[Wire]) -> None:
    owner = Owner(graph, pki, {'alice': ALL})
    wire.append(Wire(owner.port))
    far = Client.over_tls(graph, pki, 'alice', wire[0].port, request_timeout=0.6).wait_up()
    wire[0].back = False
    answer = far.schedule(-300.0, 60.0, 120.0, request_id='gone')
    assert not answer.accepted and 'given up after 0.6 s' in answer.message
    assert len(owner.list()) == 1  # the owner had accepted it
    assert 'gone' in (graph.ctx.state_dir / 'site_alice' / 'remote' / 'far.json').read_text()
    wire[0].cut()
    wire[0].mend()
    far.wait_up()
    graph.wait(lambda: not owner.list(), 'withdrawn at the owner')
    graph.wait(lambda: not far.node._outbox.to_withdraw, 'and known to be')
    assert 'gone' not in (graph.ctx.state_dir / 'site_alice' / 'remote' / 'far.json').read_text()
    answer = far.schedule(-300.0, 60.0, 120.0, request_id='gone')
    assert not answer.accepted and 'withdrawn' in answer.message
    assert far.schedule(-300.0, 60.0, 120.0, request_id='new').accepted


@pytest.mark.parametrize('way', ['tls', 'ros'])
def test_what_was_given_up_does_not_run_when_the_owner_gets_to_it_later(graph: Any, pki: Path, way: str) -> None:
    """The request waits in the queue of the owner's battery when its maker gives it up."""
    owner = Owner(graph, pki, {'alice': ALL})
    far = (Client.over_tls(graph, pki, 'alice', owner.port, request_timeout=0.6) if way == 'tls'
           else Client(graph, 'site_ros', topic='/site/house', request_timeout=0.6)).wait_up()
    leave: list[Any] = []
    assert owner.battery.scheduling.turns.enter(leave.append)
    answer = far.schedule(-300.0, 0.0, 120.0, request_id='slow')
    assert not answer.accepted and 'given up after 0.6 s' in answer.message
    graph.wait(lambda: not far.node._outbox.to_withdraw, 'withdrawn while it waits')
    leave[0]()
    other = far.schedule(-10.0, 60.0, 120.0, request_id='next')
    assert other.accepted, other.message  # it came behind the other one
    assert [e.value for e in owner.list()] == [-10.0]
    assert all(o.power == 0.0 for o in owner.cell.orders)


@pytest.mark.parametrize('way', ['tls', 'ros'])
def test_an_owner_that_takes_longer_than_one_try_is_asked_again(graph: Any, pki: Path, way: str) -> None:
    """Silence of the owner's battery leaves open what becomes of a request: it is no refusal."""
    owner = Owner(graph, pki, {'alice': ALL})
    far = (Client.over_tls(graph, pki, 'alice', owner.port, request_timeout=10.0) if way == 'tls'
           else Client(graph, 'site_ros', topic='/site/house', request_timeout=10.0)).wait_up()
    client = graph.peer.create_client(ScheduleSetPower, f'/{far.site}/far/schedule_set_power')
    graph.wait(client.service_is_ready, 'service')
    leave: list[Any] = []
    assert owner.battery.scheduling.turns.enter(leave.append)
    answer = client.call_async(far.request(-300.0, 60.0, 120.0, request_id='slow'))
    graph.wait(lambda: answer.done() or any(p.tries > 1 for p in far.node._outbox._pending.values()), 'a second try')
    assert not answer.done()
    leave[0]()
    graph.wait(answer.done, 'the answer')
    assert answer.result().accepted, answer.result().message
    assert [e.value for e in owner.list()] == [-300.0], 'once'


def test_the_owner_is_started_anew(graph: Any, pki: Path) -> None:
    owner = Owner(graph, pki, {'alice': ALL})
    far = Client.over_tls(graph, pki, 'alice', owner.port).wait_up()
    first = far.schedule(-300.0, 60.0, 120.0, request_id='one')
    graph.remove(owner.server)
    graph.wait(lambda: far.node.reading.quality != Quality.OK, 'no owner')
    owner.serve()
    far.wait_up()
    assert [e.event_id for e in far.list()] == [first.event_id]
    assert far.schedule(-200.0, 130.0, 140.0).accepted
    far.ask(250.0)
    graph.wait(lambda: owner.cell.power == 250.0, 'orders reach the new server')


def test_one_client_that_floods_or_sends_rubbish_does_not_stall_another(graph: Any, pki: Path) -> None:
    owner = Owner(graph, pki, {'alice': ALL, 'bob': ALL})
    far = Client.over_tls(graph, pki, 'alice', owner.port).wait_up()
    bad = LinkClient(f'localhost:{owner.port}', 'site', Tls(pki / 'ca.pem', certs.pair(pki, 'bob')))
    heard: list[bytes | None] = []
    good = encode(Ask('house'))
    rubbish = [b'', b'\xff' * 100, b'{' * 50_000, b'[' * 200_000, good[:-5], b'x' * 1_000_000, b'{"v": 1e400}',
               b'{"v":1,"battery":"' + b'a' * 70_000 + b'"}', b'{"v":1,"body":{"power":"x"}}', os.urandom(5000),
               encode(Ask('nowhere')), b'{"v":2}', b'1' * 10_000]
    graph.wait(lambda: bad.ask('status', good, 1.0, heard.append), 'session')
    graph.wait(lambda: heard and heard[-1], 'bob can ask')
    heard.clear()
    for data in rubbish:
        for op in ('status', 'schedule_set_power', 'setpoint', 'no_such_op'):
            bad.ask(op, data, 1.0, heard.append)
        graph.settle(0.02)
    graph.wait(lambda: len(heard) == 4 * len(rubbish), 'an end of every question')
    errors = [decode_answer(h).error for h in heard if h is not None]
    assert errors and all(errors)
    assert 'not JSON' in ' '.join(errors) and 'no rights on a battery' in ' '.join(errors)

    end = threading.Event()

    def flood() -> None:
        while not end.is_set():
            bad.ask('list_schedule', good, 0.5, lambda _: None)
            time.sleep(0.0002)

    thread = threading.Thread(target=flood, daemon=True)
    thread.start()
    try:
        worst = 0.0
        for k in range(5):
            before = time.monotonic()
            assert far.schedule(100.0, 60.0 + 20 * k, 70.0 + 20 * k).accepted
            worst = max(worst, time.monotonic() - before)
            graph.settle(0.1)
            assert far.node.reading.quality == Quality.OK
        link = owner.server._link
        assert link is not None
        graph.wait(lambda: link.refused['bob'] > 0, 'a question of the flood is refused')  # busy machines ask slower
    finally:
        end.set()
        thread.join()
    assert worst < 2.0
    assert owner.server._link.refused['alice'] == 0
    assert not faults(owner.server)
    bad.close()


def test_the_same_network_needs_no_certificates(graph: Any, pki: Path) -> None:
    owner = Owner(graph, pki, {'alice': ALL})
    far = Client(graph, 'garden', topic='/site/house').wait_up()
    check_plain(graph, owner, far)


def test_another_ros_domain(graph: Any, pki: Path) -> None:
    """The owner lives in the domain of the test; the remote battery reaches it through a context of its own."""
    owner = Owner(graph, pki, {'alice': ALL})
    domain = int(os.environ['ROS_DOMAIN_ID'])
    far = Client(graph, 'cellar', topic='/site/house', domain=domain).wait_up()
    check_plain(graph, owner, far)
    graph.remove(far.node)
    assert not [t for t in threading.enumerate() if t.name == f'domain {domain}']


def test_a_battery_that_only_another_domain_knows(graph: Any) -> None:
    """Status and orders cross between two domains; nothing of the battery is on the graph of this one."""
    other, lock = claim_domain()
    orders: list[float] = []
    publishers: list[Any] = []

    def opened(node: Any) -> None:
        publishers.append(node.create_publisher(BatteryStatus, '/site/house/status', qos.MEASUREMENT))
        node.create_subscription(PowerSetpoint, '/site/house/setpoint', lambda m: orders.append(m.power), qos.SETPOINT)

    def publish() -> None:
        now = graph.clock.now()
        publishers[0].publish(battery_to_msg(replace(CELL, time=now, newest=now), graph.clock, 'house'))

    owner = _OtherDomain(other, 'owner', opened, publish)
    try:
        far = Client(graph, 'attic', topic='/site/house', domain=other).wait_up()
        assert far.node.reading.soc == 0.5
        assert '/site/house/status' not in dict(graph.peer.get_topic_names_and_types())
        far.ask(321.0)
        graph.wait(lambda: 321.0 in orders, 'order in the other domain')
    finally:
        owner.close(lambda: None)
        lock.close()
    graph.wait(lambda: far.node.reading.quality == Quality.INVALID, 'owner gone: INVALID')


def check_plain(graph: Any, owner: Owner, far: Client) -> None:
    far.ask(700.0, lease=0.5)
    graph.wait(lambda: owner.cell.power == 700.0, 'setpoint')
    graph.wait(lambda: owner.cell.power == 0.0, 'lease over')
    answer = far.schedule(-800.0, 0.0, 300.0, request_id='a', source='planner')
    assert answer.accepted, answer.message
    graph.wait(lambda: owner.cell.power == -800.0, 'schedule')
    assert [(e.request_id, e.source) for e in far.list()] == [('a', 'planner')]
    assert far.cancel(answer.event_id).accepted
    graph.remove(owner.battery)
    graph.wait(lambda: far.node.reading.quality == Quality.INVALID, 'owner gone: INVALID')
    answer = far.schedule(-800.0, 0.0, 300.0)
    assert not answer.accepted and 'not offered' in answer.message


@pytest.mark.parametrize(('values', 'text'), [
    ({}, 'either topic'), ({'topic': 'house'}, 'does not begin'), ({'topic': '/a/b', 'endpoint': 'x:1'}, 'either'),
    ({'endpoint': 'x:1'}, 'realm, battery, authority, certificate')])
def test_parameters_that_make_no_link_are_refused(values: dict[str, Any], text: str) -> None:
    with pytest.raises(ParameterError, match=text):
        build(RemoteParams, values)


@pytest.mark.parametrize('clients', [
    {'*': ALL}, {'a/b': ALL}, {'alice': {'cellar': ['read']}}, {'alice': {'house': ['all']}}, {'alice': {'house': []}},
    {'alice': ['read']}, {'Alice': ALL}])
def test_permissions_that_mean_nothing_are_refused(clients: Any) -> None:
    with pytest.raises(ParameterError):
        build(RemoteServerParams, {'endpoint': 'x:1', 'authority': 'a', 'certificate': 'b', 'batteries': ['house'],
                                   'clients': clients})
