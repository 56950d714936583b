"""The pure chain and the node graph give the same energies, and say what they cannot simulate."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench import chain
from bess.msg import Heartbeat
from bess_core import qos
from bess_core import site as site_module
from bess_core.clock import SimClock
from bess_core.context import NodeContext
from bess_core.exchange import Exchange, LocalPublisher, LocalSubscription
from bess_core.ticker import SimTicker, Tick
from bess_sim import conductor, lockstep
from bess_sim.plant import Plant
from bess_sim.plant_config import BenchConfig

DEMO = Path(__file__).parents[2] / 'config' / 'sites' / 'home_demo.yaml'


def load(folder: Path, *overrides: str) -> Any:
    """The demo site with its state in `folder`."""
    return site_module.load(DEMO, overrides=list(overrides), variables={'state': str(folder)})


@pytest.fixture
def plants(monkeypatch: pytest.MonkeyPatch) -> list[Plant]:
    """Every plant that is made, in order."""
    made: list[Plant] = []

    class Kept(Plant):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            made.append(self)

    monkeypatch.setattr(conductor, 'Plant', Kept)
    monkeypatch.setattr(chain, 'Plant', Kept)
    return made


def books(plant: Plant) -> dict[str, float]:
    """Everything that was counted, unrounded (Ws, Wh, Ah)."""
    out = {'import': plant.energy_import, 'export': plant.energy_export}
    for name, unit in plant.units.items():
        out |= {f'{name} charge': plant.pack(name).charge, f'{name} ac in': unit.inverter.energy_import,
                f'{name} ac out': unit.inverter.energy_export, f'{name} heat': plant.books(name).heat}
    return out


CASES = {
    'evening': (0.5, []),
    'morning sun': (0.5, ['simulation.start=08:00:00']),
    'full by the sun': (0.5, ['simulation.start=11:30:00', 'simulation.units.unit_a.pack.initial_soc=0.985',
                              'simulation.units.unit_b.pack.initial_soc=0.985']),
    'nearly empty': (0.25, ['simulation.units.unit_a.pack.initial_soc=0.125',
                            'simulation.units.unit_b.pack.initial_soc=0.12']),
}


@pytest.mark.parametrize('case', CASES)
def test_same_energies_as_the_node_graph(case: str, tmp_path: Path, plants: list[Plant]) -> None:
    hours, overrides = CASES[case]
    compare(load(tmp_path, *overrides), tmp_path, hours, plants)


def test_same_energies_through_the_middleware(tmp_path: Path, plants: list[Plant]) -> None:
    """As on a running site; without it messages take a shorter way."""
    compare(load(tmp_path, 'simulation.start=08:00:00'), tmp_path, 0.25, plants, middleware=True)


@pytest.mark.soak
def test_same_energies_over_a_day(tmp_path: Path, plants: list[Plant]) -> None:
    compare(load(tmp_path), tmp_path, 24.0, plants)


def test_nobody_changes_a_message_that_others_hear_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the middleware all listeners of a topic share one message, and some senders give theirs away."""
    hand_over, seen = LocalSubscription.hand_over, set()
    give, given = LocalPublisher.give, list[tuple[str, Any, str]]()

    def recorded(self: LocalPublisher, message: Any) -> None:
        given.append((self.topic_name, message, repr(message)))
        give(self, message)

    def checked(self: LocalSubscription) -> None:
        message = self._waiting[0] if self._waiting else None
        before = None if message is None else repr(message)
        hand_over(self)
        if message is not None:
            seen.add(self.topic_name)
            assert repr(message) == before, self.topic_name

    monkeypatch.setattr(LocalSubscription, 'hand_over', checked)
    monkeypatch.setattr(LocalPublisher, 'give', recorded)
    result = conductor.simulate(load(tmp_path), tmp_path, hours=0.01)
    for topic, message, before in given:
        assert repr(message) == before, topic
    assert len(seen) > 10 and len(given) > 500 and not result['faults']


@pytest.mark.timeout(20)
@pytest.mark.parametrize('stopped', [False, True])
def test_who_posts_on_and_on_does_not_keep_the_executor(tmp_path: Path, stopped: bool) -> None:
    """The answer of a service comes through it, and so does the end after a signal."""
    looks: list[Any] = []
    runtime = SimpleNamespace(post=looks.append, stopped=SimpleNamespace(done=lambda: calls > 5 and stopped),
                              stop=lambda: None)
    clock = SimClock()
    ctx = NodeContext('/site', tmp_path, clock, SimTicker(clock), looks.append, exchange=Exchange())
    made = lockstep.Conductor(runtime, SimpleNamespace(ctx=ctx, ticker=ctx.ticker, nodes=[]),  # type: ignore[arg-type]
                               Plant(BenchConfig()), 1.0, 60.0, None)
    calls = 0

    def again() -> None:
        nonlocal calls
        calls += 1
        if calls > 5 and not stopped:
            ctx.asking = 1
        ctx.post(again)

    ctx.post(again)
    made._next()
    assert 5 < calls < 10
    assert len(looks) == (0 if stopped else 1), 'asked for another turn unless it is over'


def test_time_goes_on_until_somebody_asks(tmp_path: Path) -> None:
    """Some ticks per turn of the executor; none while an answer is awaited and a message is on its way."""
    turns: list[Any] = []
    runtime = SimpleNamespace(post=turns.append, stopped=SimpleNamespace(done=lambda: False), stop=lambda: None)
    clock, exchange = SimClock(), Exchange()
    ctx = NodeContext('/site', tmp_path, clock, SimTicker(clock), turns.append, exchange=exchange)
    made = lockstep.Conductor(runtime, SimpleNamespace(ctx=ctx, ticker=ctx.ticker, nodes=[]),  # type: ignore[arg-type]
                              Plant(BenchConfig()), 1.0, 60.0, None)
    ticks: list[float] = []
    heard: list[float] = []
    publisher = exchange.publisher(Heartbeat, '/x', qos.EVENT)
    exchange.subscription(Heartbeat, '/x', lambda _: heard.append(clock.now()), qos.EVENT)

    def tick(_: Tick) -> None:
        ticks.append(clock.now())
        if len(ticks) == 13:
            publisher.publish(Heartbeat())
            ctx.asking = 1

    ctx.ticker.every(1.0, tick)
    made._next()
    over = lockstep.TICKS_AT_ONCE  # and the next one has begun
    assert ticks == [float(k) for k in range(1, over + 2)] and len(turns) == 1
    made._next()
    assert len(ticks) == 13 and not heard, 'asked: the executor has its turn at once'
    made._next()
    assert len(ticks) == 13 and heard == [13.0], 'what was on its way is handed over before time goes on'
    ctx.asking = 0
    made._next()
    assert len(ticks) == 13 + over


def compare(site: Any, folder: Path, hours: float, plants: list[Plant], *, middleware: bool = False) -> None:
    """Chain and graph, bit by bit."""
    pure = chain.simulate_chain(site, hours=hours)
    graph = conductor.simulate(site, folder, hours=hours, middleware=middleware)
    assert 0 < pure['nodes_active'] < graph['nodes_active'], 'the chain leaves out nodes that only look on'
    for key in set(graph) - {'wall_s', 'speed', 'faults', 'nodes_active'}:
        assert pure[key] == graph[key], key
    assert graph['control_ticks'] == hours * 3600
    assert books(plants[0]) == pytest.approx(books(plants[1]), rel=1e-12)
    assert sum(u.inverter.energy_import + u.inverter.energy_export for u in plants[0].units.values()) > 0


def test_a_run_can_go_on(tmp_path: Path) -> None:
    site = load(tmp_path)
    config = chain.BenchConfig.model_validate(dict(site.simulation))
    whole, parts = (chain.Chain(site, Plant(config), config, 1.0) for _ in range(2))
    whole.run(0.1)
    parts.run(0.04)
    parts.run(0.06)
    assert books(whole.loop.plant) == books(parts.loop.plant)


@pytest.mark.parametrize(('overrides', 'arguments', 'text'), [
    (['nodes.bms_b.period=1.5'], {}, 'a period of 1.5 s is not a whole number of ticks of 1 s'),
    (['nodes.site.autostart=false'], {}, 'autostart is off'),
    ([], {'tick': 0.0}, r'tick \(0.0 s\) and hours'),
])
def test_what_cannot_be_simulated_is_said(tmp_path: Path, overrides: list[str], arguments: dict[str, float],
                                          text: str) -> None:
    with pytest.raises(ValueError, match=text):
        chain.simulate_chain(load(tmp_path, *overrides), hours=0.01, **arguments)


def test_simulated_nodes_find_nobody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranges = []

    class Seen(conductor.Runtime):
        def __init__(self, *arguments: Any) -> None:
            ranges.append(os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'])
            super().__init__(*arguments)

    monkeypatch.setattr(conductor, 'Runtime', Seen)
    before = os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE']
    conductor.simulate(load(tmp_path), tmp_path, hours=0.01)
    assert ranges == ['OFF'] and os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] == before
