"""Changes of parameters while a site runs, at every bound: over the genuine services, on live nodes of every type.

What a running node was given stays in force until it starts again: ROS parameters are read only and say so. A change is
recorded by the system node, which checks it against the whole site first.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from math import inf, isinf, nan, nextafter
from pathlib import Path
from typing import Any

from kill_stage import SITE
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter

from bess.srv import ListSiteParameters, SetSiteParameter
from bess_control.protection.monitors_node import MonitorsNode
from bess_control.system.system_node import SystemNode
from bess_core import params, plugins, site
from bess_core.context import NodeContext
from bess_core.params import ParameterError, Spec, build, specs


def limits(s: Spec) -> list[tuple[float, float]]:
    """(bound, just beyond it) of a number; empty = it has none."""
    out: list[tuple[float, float]] = []
    for key, outward in (('min', -inf), ('max', inf)):
        bound = s.metadata.get(key)
        if bound is not None and not isinf(bound):
            out.append((bound, int(bound) + (1 if outward > 0 else -1) if s.type is int
                        else nextafter(float(bound), outward)))
    return out


def numbers(cls: type) -> Iterator[Spec]:
    return (s for s in specs(cls) if s.type in (int, float) and limits(s))


# -- recorded changes --------------------------------------------------------------------------------


class Changes:
    """The system node of a site with every node of the control room."""

    def __init__(self, graph: Any, folder: Path) -> None:
        self.graph, self.folder = graph, folder
        file = folder / 'site.yaml'
        file.write_text(SITE)
        self.site = site.load(file, state=folder)
        graph.ctx.site = self.site
        graph.up(graph.add(SystemNode, 'system', {}))

    def set(self, values: dict[str, str]) -> Any:
        return self.graph.call(SetSiteParameter, 'system/set_parameters', SetSiteParameter.Request(
            names=list(values), values=list(values.values()), by='eva'))

    def now(self) -> dict[str, tuple[str, bool]]:
        """Name -> (value, whether it waits for a restart)."""
        answer = self.graph.call(ListSiteParameters, 'system/list_parameters', ListSiteParameters.Request())
        assert not answer.problems
        return {p.name: (p.value, p.pending) for p in answer.parameters}


def test_beyond_each_bound_a_change_is_refused_and_nothing_changes(graph: Any, tmp_path: Path) -> None:
    changes = Changes(graph, tmp_path)
    before = changes.now()
    for node in changes.site.nodes:
        found = list(numbers(type(node.params)))
        wrong = [{f'nodes.{node.name}.{s.name}': repr(limits(s)[which][1]) for s in found} for which in (0, -1)]
        wrong += [{f'nodes.{node.name}.{s.name}': text for s in found if s.default == s.default}
                  for text in ('fast', '[]')]
        wrong += [{f'nodes.{node.name}.{s.name}': '.nan'} for s in found[:3]]
        for values in filter(None, wrong):
            answer = changes.set(values)
            assert not answer.accepted and answer.message.startswith('refused: '), (values, answer.message)
            silent = [n for n in values if n not in answer.message]
            assert not silent, f'refused without naming {silent}: {answer.message}'
    assert changes.now() == before
    assert changes.set({'nodes.manager.nonsense': '1'}).message.count('unknown key') == 1
    assert changes.now() == before


def test_at_each_bound_a_change_is_taken_or_refused_with_the_other_parameter_that_forbids_it(
        graph: Any, tmp_path: Path) -> None:
    changes = Changes(graph, tmp_path)
    taken = refused = 0
    wanted: dict[str, str] = {}
    for node in changes.site.nodes:
        plain = {f.name: getattr(node.params, f.name) for f in dataclasses.fields(node.params)}
        for s in numbers(type(node.params)):
            for bound, _ in limits(s):
                value = s.type(bound)
                try:
                    build(type(node.params), {**plain, s.name: value})
                except ParameterError:
                    refused += 1
                    if refused <= 10:  # each costs a check of the whole site
                        answer = changes.set({f'nodes.{node.name}.{s.name}': json.dumps(value)})
                        assert not answer.accepted and s.name in answer.message, answer.message
                else:
                    taken += 1
                    wanted[f'nodes.{node.name}.{s.name}'] = json.dumps(value)
    # Many at once: each is at its bound, and those that forbid each other together are left out one by one.
    names = list(wanted)
    for node in changes.site.nodes:
        mine = {n: wanted[n] for n in names if n.split('.')[1] == node.name}
        while mine:
            answer = changes.set(mine)
            if answer.accepted:
                break
            mine.popitem()
        shown = changes.now() if node.name in ('manager', 'site', 'climate') else None
        for name, text in mine.items() if shown is not None else ():
            assert json.loads(shown[name][0]) == json.loads(text)  # type: ignore[index]
            assert shown[name][1] == (json.loads(text) != getattr(  # type: ignore[index]
                node.params, name.rpartition('.')[2])), f'{name} waits for the next start'
    assert taken > 200 and changes.site.node('manager').params == graph.ctx.site.node('manager').params


# -- live nodes --------------------------------------------------------------------------------------


SHELLS = {plugins.DRIVERS: 'driver', plugins.MODES: 'mode', plugins.BATTERIES: 'battery'}
TYPES = sorted((group, name) for group in (plugins.NODES, *SHELLS) for name in plugins.available(group))


def instance(cls: type) -> Any:
    """Parameters with a value for each that has no default; None when a check across them refuses these."""
    values: dict[str, Any] = {}
    for s in specs(cls):
        if s.required:
            values[s.name] = (s.metadata['choices'][0] if s.metadata.get('choices')
                              else s.type(max(s.metadata.get('min', 1), 1)) if s.type in (int, float)
                              else 'x' if s.type is str else ['x'])
    try:
        return build(cls, values)
    except ParameterError:
        return None


def asked(s: Spec) -> Iterator[Parameter]:
    """At and beyond each bound, not a number, and of another type."""
    kind = Parameter.Type.INTEGER if s.type is int else Parameter.Type.DOUBLE
    for pair in limits(s):
        for value in pair:
            if s.type is float or abs(value) < 2**63:
                yield Parameter(s.name, kind, s.type(value))
    if s.type is float:
        yield Parameter(s.name, kind, nan)
    yield Parameter(s.name, Parameter.Type.STRING, 'fast')


def test_a_live_node_with_the_parameters_of_every_type_refuses_and_keeps_what_it_has(graph: Any) -> None:
    """Only declared, as every node of the site does it: no device is needed."""
    from rclpy.node import Node

    looked = 0
    for group, name in TYPES:
        cls = plugins.load(group, name)
        if group in SHELLS:
            cls = plugins.load('bess.shells', SHELLS[group])(cls)
        values = instance(cls.Params)
        if values is None:
            continue
        node = Node(f'live_{name}', namespace='/site', start_parameter_services=False, enable_rosout=False)
        params.declare(node, values)  # as every BessNode does
        for s in numbers(cls.Params):
            old = node.get_parameter(s.name)
            for wish in asked(s):
                result = node.set_parameters([wish])[0]
                assert not result.successful and result.reason, f'{name}.{wish.name} = {wish.value!r}'
                looked += 1
            now = node.get_parameter(s.name)
            assert (now.type_, repr(now.value)) == (old.type_, repr(old.value))
        node.destroy_node()
    assert looked > 1500


def test_the_parameter_service_says_why(graph: Any) -> None:
    ctx: NodeContext = dataclasses.replace(graph.ctx, parameter_services=True)
    node = graph.add(MonitorsNode, 'monitors', {}, ctx=ctx)
    request = SetParameters.Request(parameters=[
        Parameter('period', Parameter.Type.DOUBLE, v).to_parameter_msg() for v in (0.05, 60.0, 0.04, 61.0, nan)])
    results = graph.call(SetParameters, 'monitors/set_parameters', request).results
    assert len(results) == 5
    for result in results:
        assert not result.successful and 'read-only' in result.reason
    assert node.get_parameter('period').value == node.params.period == 0.5
    # The system node has services of its own under these names: the two must not meet.
    graph.add(SystemNode, 'system', {}, ctx=ctx)
    kinds = dict(graph.peer.get_service_names_and_types_by_node('system', '/site'))
    assert '/site/system/get_parameters' not in kinds
