"""Messages without the middleware: the same copies, queues and late joiners."""

from __future__ import annotations

import struct
from collections import deque
from pathlib import Path
from typing import Any

import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from hypothesis import given, settings
from hypothesis import strategies as st
from message_filler import same
from rclpy.serialization import deserialize_message, serialize_message
from std_srvs.srv import Trigger

from bess.msg import FaultArray, Heartbeat, PowerSetpoint
from bess_core import qos
from bess_core.clock import SimClock
from bess_core.context import NodeContext
from bess_core.exchange import Exchange
from bess_core.messages import copier
from bess_core.node import BessNode
from bess_core.ticker import SimTicker


def heard(exchange: Exchange, topic: str, profile: Any, kind: Any = PowerSetpoint) -> list[float]:
    """What a new subscription is handed."""
    out: list[float] = []
    exchange.subscription(kind, topic, lambda m: out.append(m.power), profile)
    return out


def test_listeners_get_the_moment_of_sending() -> None:
    exchange = Exchange()
    first, second = heard(exchange, '/x', qos.EVENT), heard(exchange, '/x', qos.EVENT)
    publisher = exchange.publisher(PowerSetpoint, '/x', qos.EVENT)
    message = PowerSetpoint(power=1.0)
    publisher.publish(message)
    message.power = 2.0
    assert publisher.get_subscription_count() == 2 and not second
    assert exchange.deliver() and first == second == [1.0]
    assert not exchange.deliver()


def test_what_is_given_away_is_not_copied() -> None:
    exchange, got = Exchange(), list[Any]()
    publisher = exchange.publisher(PowerSetpoint, '/x', qos.STATE)
    message = PowerSetpoint(power=1.0)
    publisher.give(message)
    exchange.subscription(PowerSetpoint, '/x', got.append, qos.STATE)
    exchange.subscription(PowerSetpoint, '/x', got.append, qos.EVENT)
    publisher.give(message)
    exchange.deliver()
    assert len(got) == 2 and all(m is message for m in got)
    with pytest.raises(TypeError, match='expected PowerSetpoint, got Heartbeat'):
        publisher.give(Heartbeat())


@pytest.mark.parametrize(('field', 'value'), [('_source', None), ('_term', -1), ('_term', 2**64), ('_power', 'x')])
def test_a_field_that_cannot_hold_its_value_is_found_out(field: str, value: Any) -> None:
    exchange = Exchange()
    got, publisher = heard(exchange, '/x', qos.EVENT), exchange.publisher(PowerSetpoint, '/x', qos.EVENT)
    bad = PowerSetpoint(power=1.0)
    setattr(bad, field, value)
    for _ in range(2):  # not only once
        with pytest.raises((AttributeError, struct.error)):
            publisher.give(bad)
    publisher.give(PowerSetpoint(power=2.0))
    exchange.deliver()
    assert got == [2.0]


def test_what_is_sent_meanwhile_waits_for_the_next_round() -> None:
    exchange = Exchange()
    order: list[str] = []
    answer = exchange.publisher(Heartbeat, '/b', qos.EVENT)

    def first(_: Any) -> None:
        order.append('a')
        answer.publish(Heartbeat())

    exchange.subscription(Heartbeat, '/a', first, qos.EVENT)
    exchange.subscription(Heartbeat, '/b', lambda _: order.append('b'), qos.EVENT)
    ask = exchange.publisher(Heartbeat, '/a', qos.EVENT)
    ask.publish(Heartbeat())
    ask.publish(Heartbeat())
    assert exchange.deliver() and order == ['a', 'a']
    assert exchange.deliver() and order == ['a', 'a', 'b', 'b']


def test_late_joiners_of_a_state() -> None:
    exchange = Exchange()
    state = exchange.publisher(PowerSetpoint, '/s', qos.STATE)
    event = exchange.publisher(PowerSetpoint, '/e', qos.EVENT)
    for power in (1.0, 2.0):
        state.publish(PowerSetpoint(power=power))
        event.publish(PowerSetpoint(power=power))
    late, too_late = heard(exchange, '/s', qos.STATE), heard(exchange, '/e', qos.EVENT)
    volatile = heard(exchange, '/s', qos.EVENT)
    exchange.deliver()
    assert (late, too_late, volatile) == ([2.0], [], [])
    wanting = heard(exchange, '/e', qos.STATE)  # a volatile publisher does not satisfy it
    other = heard(exchange, '/e', qos.EVENT, Heartbeat)
    event.publish(PowerSetpoint(power=3.0))
    exchange.deliver()
    assert (wanting, other, too_late) == ([], [], [3.0])


@settings(max_examples=200)
@given(depth=st.integers(1, 4), actions=st.lists(st.one_of(st.none(), st.floats(0, 9)), max_size=30))
def test_a_full_queue_loses_the_oldest(depth: int, actions: list[float | None]) -> None:
    """Against a bounded queue; None = all is handed over."""
    exchange, model, expected = Exchange(), deque[float](maxlen=depth), list[float]()
    got = heard(exchange, '/q', qos.profile(depth))
    publisher = exchange.publisher(PowerSetpoint, '/q', qos.profile(1))
    for action in [*actions, None]:
        if action is None:
            exchange.deliver()
            expected += model
            model.clear()
        else:
            publisher.publish(PowerSetpoint(power=action))
            model.append(action)
    assert got == expected


def test_what_has_ended_hears_nothing_more() -> None:
    exchange, got = Exchange(), []
    subscription = exchange.subscription(Heartbeat, '/x', got.append, qos.EVENT)
    publisher = exchange.publisher(Heartbeat, '/x', qos.EVENT)
    publisher.publish(Heartbeat())
    assert exchange.remove(subscription) and not exchange.remove(subscription)
    publisher.publish(Heartbeat())
    exchange.deliver()
    assert not got and publisher.get_subscription_count() == 0
    assert exchange.remove(publisher) and not exchange.remove(publisher)
    exchange.subscription(Heartbeat, '/x', got.append, qos.EVENT)
    assert publisher.get_subscription_count() == 0
    with pytest.raises(TypeError, match='expected Heartbeat, got PowerSetpoint'):
        publisher.publish(PowerSetpoint())


def test_bytes_are_sent_as_the_message_they_are() -> None:
    exchange = Exchange()
    got, publisher = heard(exchange, '/x', qos.EVENT), exchange.publisher(PowerSetpoint, '/x', qos.EVENT)
    publisher.publish(serialize_message(PowerSetpoint(power=4.0)))
    exchange.deliver()
    assert got == [4.0]


class Listener(BessNode):
    """Counts what it hears; a negative power is too much for it."""

    Params = type('Params', (), {'__dataclass_fields__': {}})

    def __init__(self, name: str, ctx: NodeContext) -> None:
        super().__init__(name, self.Params(), ctx)
        self.got: list[float] = []
        self.subscription = self.create_subscription(PowerSetpoint, '~/setpoint', self.on_setpoint, 10)

    def on_setpoint(self, message: PowerSetpoint) -> None:
        """Take it."""
        if message.power < 0:
            raise ValueError('negative')
        self.got.append(message.power)


@pytest.fixture
def context(runtime: Any, tmp_path: Path) -> NodeContext:
    """A process with an exchange."""
    clock = SimClock(start_wall=1.8e9)
    return NodeContext('/site', tmp_path, clock, SimTicker(clock), runtime.post, heartbeat_s=0.0, diagnostics_s=0.0,
                       exchange=Exchange())


def test_nodes_use_it(context: NodeContext, runtime: Any) -> None:
    exchange = context.exchange
    assert exchange is not None
    node = Listener('a', context)
    runtime.executor.add_node(node)
    try:
        faults: list[FaultArray] = []
        exchange.subscription(FaultArray, '/site/faults', faults.append, qos.FAULTS)
        sender = Listener('b', context)
        runtime.executor.add_node(sender)
        publisher = sender.create_publisher(PowerSetpoint, '/site/a/setpoint', qos.SETPOINT)
        raw: list[bytes] = []
        node.create_subscription(PowerSetpoint, '~/setpoint', raw.append, qos.SETPOINT, raw=True)
        publisher.publish(PowerSetpoint(power=3.0))
        exchange.deliver()
        assert node.got == [3.0]
        assert [deserialize_message(b, PowerSetpoint).power for b in raw] == [3.0]
        publisher.publish(PowerSetpoint(power=-3.0))
        exchange.deliver()
        exchange.deliver()
        assert [(f.id, f.text) for f in faults[-1].faults] == [('node.callback', 'ValueError: negative')]
        assert sender.destroy_publisher(publisher) and not sender.destroy_publisher(publisher)
        assert node.destroy_subscription(node.subscription) and not node.destroy_subscription(node.subscription)
        # Whoever moves time on sees that a call waits for its answer.
        node.create_service(Trigger, '~/go', lambda _, answer: answer)
        client = sender.create_client(Trigger, '/site/a/go')
        assert runtime.spin_until(client.service_is_ready, 5.0)
        future = client.call_async(Trigger.Request())
        assert context.asking == 1
        assert runtime.spin_until(lambda: future.done() and context.asking == 0, 5.0)
    finally:
        for each in (node, sender):
            runtime.executor.remove_node(each)
            each.destroy_node()
    status = DiagnosticArray(status=[DiagnosticStatus(values=[KeyValue(key='k', value='v')])])
    assert same(copier(DiagnosticArray)(status), status)
    again = heard(exchange, '/site/faults', qos.FAULTS, FaultArray)
    exchange.deliver()
    assert not again, 'publishers of nodes that are gone have left'
