"""Power flow picture: an SVG of grid, PV, house and batteries around a bus, with moving arrows."""

from __future__ import annotations

from dataclasses import dataclass
from math import atan2, degrees, hypot, isnan, pi
from typing import Any

from nicegui.element import Element

from bess_telemetry import site_words as words
from bess_telemetry.web_parts import set_quality, tag

HUB = (180.0, 186.0)
RADIUS = 41.0
SMALLEST = 20.0  # W, below it nothing is drawn as flowing
MOST_BATTERIES = 3  # more than that are drawn as one

ICONS = {
    'grid': 'M-5 10L0 -11L5 10M-8 -4H8M-6 1H6M-4 5L3.5 1M4 5L-3.5 1',
    'pv': 'M0 -4.5A4.5 4.5 0 1 0 .01 -4.5M0 -11V-8M0 8V11M-11 0H-8M8 0H11'
    'M-8 -8L-6 -6M6 6L8 8M-8 8L-6 6M6 -6L8 -8',
    'house': 'M-10 0L0 -10L10 0M-7 -2V9H7V-2M-2 9V3H2V9',
}


@dataclass(frozen=True)
class Spot:
    """A place in the picture."""

    key: str
    x: float
    y: float
    colour: str
    label_above: bool = False


def spots(flow: dict[str, Any]) -> list[Spot]:
    """Where what stands, for this set of components."""
    found = [Spot('grid', 50, 186, 'grid'), Spot('house', 310, 186, 'house')]
    if flow['pv'] is not None:
        found.append(Spot('pv', 180, 66, 'pv', label_above=True))
    names = [b['name'] for b in flow['batteries']]
    if len(names) > MOST_BATTERIES or not names:
        return [*found, Spot('batteries', 180, 308, 'battery')]
    columns = {1: (180,), 2: (108, 252), 3: (56, 180, 304)}[len(names)]
    return found + [
        Spot(f'battery:{n}', x, 308, 'battery') for n, x in zip(names, columns, strict=True)
    ]


class PowerPicture:
    """The picture; `update` changes only what is different."""

    def __init__(self) -> None:
        with tag('div', 'flow').props('data-test=flow'):
            self._holder = tag('div')
        self._spots: list[Spot] = []
        self._nodes: dict[str, _Node] = {}

    def update(self, flow: dict[str, Any]) -> None:
        """Show these powers (`power_flow` of a snapshot)."""
        wanted = spots(flow)
        if wanted != self._spots:
            self._build(wanted)
        for spot in wanted:
            values, name, direction, incoming = _content(spot, flow)
            self._nodes[spot.key].update(values, name, direction, incoming)

    def _build(self, wanted: list[Spot]) -> None:
        self._holder.clear()
        self._spots = wanted
        top = -8 if any(s.key == 'pv' for s in wanted) else 118
        svg = {'viewBox': f'0 {top} 360 {392 - top}', 'role': 'img', 'aria-label': 'power flow'}
        with self._holder, _svg('svg', **svg):
            wires = [_Wire(s) for s in wanted]
            _svg('circle', cx=HUB[0], cy=HUB[1], r=7, fill='var(--muted)')
            self._nodes = {s.key: _Node(s, w) for s, w in zip(wanted, wires, strict=True)}


def _content(spot: Spot, flow: dict[str, Any]) -> tuple[dict[str, Any], str, str, float]:
    """(values, name, direction in words, W towards the bus) of a spot."""
    kind, _, name = spot.key.partition(':')
    if kind in ('grid', 'pv', 'house'):
        values = flow[kind]
        power = values['power']
        if kind == 'grid':
            return (
                values,
                'Grid',
                '' if abs(power) < SMALLEST else 'import' if power > 0 else 'export',
                power,
            )
        if kind == 'pv':
            return values, 'PV', 'production' if power >= SMALLEST else '', power
        title = 'House'
        if values['derived'] and flow['pv'] is None:
            # What is left over also contains a PV system that nobody measures.
            return (
                values,
                title,
                'feeds back' if power <= -SMALLEST else 'grid \u2212 batteries',
                -power,
            )
        return values, title, 'calculated' if values['derived'] else 'consumption', -power
    if kind == 'batteries':
        values = flow['battery']
        count = len(flow['batteries'])
        name = f'{count} batteries' if count else 'No battery'
    else:
        values = next(b for b in flow['batteries'] if b['name'] == name)
    power = values['power']
    direction = 'idle' if abs(power) < SMALLEST else 'charging' if power > 0 else 'discharging'
    return values, name, '' if isnan(power) else direction, -power


def _svg(name: str, classes: str = '', text: str | None = None, **attributes: Any) -> Element:
    element = tag(name, classes, text)
    for key, value in attributes.items():
        element.props[key.replace('_', '-') if key != 'viewBox' else key] = value
    return element


class _Wire:
    """Connection of a node with the bus; its path runs from the node to the bus."""

    def __init__(self, spot: Spot) -> None:
        dx, dy = HUB[0] - spot.x, HUB[1] - spot.y
        length = hypot(dx, dy)
        ux, uy = dx / length, dy / length
        x1, y1 = spot.x + ux * (RADIUS + 3), spot.y + uy * (RADIUS + 3)
        x2, y2 = HUB[0] - ux * 9, HUB[1] - uy * 9
        path = f'M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}'
        # The head stands nearer to the bus, clear of the labels under the circles.
        self._at = (x1 + (x2 - x1) * 0.55, y1 + (y2 - y1) * 0.55, degrees(atan2(uy, ux)))
        with _svg('g', 'wiring off') as self._group:
            _svg('path', 'wire', d=path)
            _svg('path', 'move', d=path, stroke=f'var(--{spot.colour})')
            self._head = _svg(
                'path', 'head', d='M9 0L-6 -7.5L-3 0L-6 7.5Z', fill=f'var(--{spot.colour})'
            )
        self._turn(0.0)

    def _turn(self, by: float) -> None:
        x, y, angle = self._at
        transform = f'translate({x:.1f} {y:.1f}) rotate({angle + by:.1f})'
        if self._head.props.get('transform') != transform:
            self._head.props['transform'] = transform

    def update(self, incoming: float) -> None:
        """incoming: W towards the bus, NaN = unknown."""
        size = abs(incoming)
        if isnan(incoming):
            look = 'off unsure'
        elif size < SMALLEST:
            look = 'off'
        else:
            speed = 'fast' if size > 3000 else 'slow' if size < 500 else ''
            look = f'{"back" if incoming < 0 else ""} {speed}'
            self._turn(180.0 if incoming < 0 else 0.0)
        self._group.classes(replace=f'wiring {look}')


class _Node:
    """A circle with icon or state of charge, power, name and direction."""

    def __init__(self, spot: Spot, wire: _Wire) -> None:
        self._wire = wire
        kind = spot.key.partition(':')[0]
        self._is_battery = kind in ('battery', 'batteries')
        colour = f'var(--{spot.colour})'
        with _svg(
            'g', 'node', transform=f'translate({spot.x} {spot.y})', data_test=f'flow-{spot.key}'
        ) as self._group:
            _svg('circle', 'disc', r=RADIUS, stroke='var(--line)' if self._is_battery else colour)
            if self._is_battery:
                self._ring = _svg(
                    'circle', 'ring', r=RADIUS, stroke=colour, transform='rotate(-90)'
                )
                self._soc = _svg('text', 's', '', y=-8)
            else:
                _svg('path', 'icon', d=ICONS[kind], stroke=colour, transform='translate(0 -16)')
            self._power = _svg('text', 'v', '', y=15)
            y = -RADIUS - 18 if spot.label_above else RADIUS + 19
            self._name = _svg('text', 'n', '', y=y)
            self._direction = _svg('text', 'd', '', y=y + 14)

    def update(self, values: dict[str, Any], name: str, direction: str, incoming: float) -> None:
        """Show the values of one component."""
        power = values['power']
        self._wire.update(incoming)
        self._power.text = words.power(abs(power))  # type: ignore[attr-defined]
        self._name.text = name if len(name) < 18 else name[:16] + '\u2026'  # type: ignore[attr-defined]
        quality = values['quality']
        aged = '' if quality == 'ok' else f'{words.age(values["age"])} old'
        if values['age'] == float('inf'):
            aged = 'no data'
        self._direction.text = aged or direction  # type: ignore[attr-defined]
        set_quality(self._group, quality)
        if self._is_battery:
            soc = float(values.get('soc', float('nan')))
            if quality == 'invalid':
                soc = float('nan')
            self._soc.text = '' if isnan(soc) else words.percent(soc)  # type: ignore[attr-defined]
            around = 2 * pi * RADIUS
            dashes = f'{around * (0.0 if isnan(soc) else min(1.0, max(0.0, soc))):.1f} {around:.1f}'
            if self._ring.props.get('stroke-dasharray') != dashes:
                self._ring.props['stroke-dasharray'] = dashes
