"""A thousand clients of one battery, each with an endpoint of its own, in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from test_schedule_nodes import Stack
from test_virtual_nodes import TICK

from bess.srv import ListSchedule
from bess_virtual.aggregate_node import AggregateNode

CROWD = 4, 250  # processes, clients with an endpoint of their own in each


@contextmanager
def crowd(service: str, processes: int, count: int) -> Iterator[tuple[list[str], list[Any]]]:
    """What the processes of a crowd (see crowd.py) have said, line by line, and the processes."""
    lines: list[str] = []
    root = Path(__file__).resolve().parents[2]
    with ExitStack() as stack:
        made = []
        for i in range(processes):
            process = stack.enter_context(subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name('crowd.py')), service, str(i * count), str(count)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, 'PYTHONPATH': str(root)}))
            stack.callback(process.kill)
            thread = threading.Thread(target=lambda p=process: lines.extend(iter(p.stdout.readline, '')), daemon=True)
            thread.start()
            made.append(process)
        yield lines, made


@pytest.mark.timeout(400)
def test_a_crowd_of_clients_each_with_its_own_endpoint_is_answered_and_nothing_is_lost(
        graph: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand clients in four processes. All ask at the same moment."""
    # This process plays the hardware, too: the crowd must not make it too slow for its own values.
    monkeypatch.setitem(TICK, 'max_age', 30.0)
    monkeypatch.setitem(TICK, 'invalid_after', 60.0)
    stack = Stack(graph)
    processes, count = CROWD
    everybody = processes * count
    with crowd('/site/all/schedule_set_power', processes, count) as (lines, made):
        graph.wait(lambda: lines.count('ready\n') == processes, lambda: f'all found: {lines}', 150.0)
        ticks, wall = stack.all.progress, graph.clock.wall()
        for process in made:
            process.stdin.write(f'{wall!r}\n')
            process.stdin.flush()
        graph.wait(lambda: sum(line.startswith('{') for line in lines) == processes, lambda: f'answers: {lines}', 150.0)
        graph.wait(lambda: all(process.poll() is not None for process in made), 'their end', 30.0)
    answers: dict[int, Any] = {}
    for line in lines:
        if line.startswith('{'):
            answers |= {int(n): a for n, a in json.loads(line)['answers'].items()}
    assert sorted(answers) == list(range(everybody)), 'everybody is answered'
    assert all(accepted for accepted, *_ in answers.values()), [a for a in answers.values() if not a[0]][:3]
    assert stack.all.progress > ticks, 'the battery worked on meanwhile'

    def kept() -> dict[int, Any]:
        return {int(e.source.split()[1]): e for e in graph.call(ListSchedule, 'all/list_schedule').entries}

    entries = kept()
    assert len(entries) == everybody
    for number, (_, event_id, _) in answers.items():
        entry = entries[number]
        assert (entry.event_id, entry.request_id, entry.value) == (event_id, f'client {number}', 1.0 + number / 100.0)
    assert len({e.event_id for e in entries.values()}) == everybody
    node = stack.all
    graph.remove(node)
    graph.up(graph.add(AggregateNode, 'all', node.params))
    assert {n: e.event_id for n, e in kept().items()} == {n: e.event_id for n, e in entries.items()}, 'all on disk'
