"""`docs/parameters.md` from the parameter dataclasses of all node types, drivers and modes."""

from __future__ import annotations

import typing
from typing import Any

from bess_core import params, plugins
from bess_core.site import SiteParams, known_types, resolve_type
from bess_virtual.physical_node import PhysicalParams

from . import HEADER, code, table

#: Types that a site file cannot name usefully: another entry makes them.
MADE = {'partition_child': 'made by `partition`, one per child; not written in a site file'}
GROUPS = ((plugins.DRIVERS, 'Drivers'), (plugins.MODES, 'Modes'), (plugins.NODES, 'Other nodes'))
#: Distributions whose types belong on the page: other installed plug-ins have pages of their own.
OURS = ('bess_drivers.', 'bess_virtual.', 'bess_control.', 'bess_telemetry.', 'bess_core.', 'bess_sim.')


def render() -> tuple[str, list[str]]:
    """The page, and the parameters without description or unit."""
    problems: list[str] = []
    lines = [
        HEADER, '# Parameters\n',
        'Every key that an entry under `nodes:` of a site file may have, beside `type`, `process` and `required` '
        '(see [sites.md](sites.md)). The same names are ROS parameters of the running node (read only). '
        '`bess nodes types TYPE` prints these tables for what is installed, plug-ins included. A default in '
        '**bold** is none: the key must be given. A value of 1e12 means "no limit".\n',
        '## Section `site`\n', _table('site', SiteParams, problems),
        '## Batteries of two functions (entry points `bess.batteries`)\n',
        'Beside their own; see [simple_driver.md](simple_driver.md).\n',
        _table('battery', PhysicalParams, problems),
    ]
    names = set(known_types())
    for group, title in GROUPS:
        lines.append(f'## {title}\n')
        for name, entry in sorted(plugins.available(group).items()):
            if name not in names or not entry.value.startswith(OURS):
                continue
            cls = resolve_type(name)
            lines.append(f'### `{name}`\n')
            lines.append(' '.join(filter(None, [_about(entry.load(), cls), _role(cls), MADE.get(name, '')])) + '\n')
            lines.append(_table(name, cls.Params, problems))
    return '\n'.join(lines), problems


def _about(named: Any, cls: Any) -> str:
    """First paragraph of what describes the type best: the parameters of a battery, else the class."""
    doc = named.__doc__ or ''
    if doc.startswith('See `') and cls.Params.__doc__:
        doc = cls.Params.__doc__
    text = ' '.join(doc.split('\n\n')[0].split())
    return text if text.endswith('.') else f'{text}.'


def _role(cls: Any) -> str:
    return f'Role: `{cls.role}`.' if cls.role else ''


def _table(owner: str, cls: Any, problems: list[str]) -> str:
    rows = []
    for spec in params.specs(cls):
        doc = str(spec.metadata.get('doc', ''))
        if not doc:
            problems.append(f'parameter {owner}.{spec.name} has no description')
        rows.append([code(spec.name), type_words(spec.type), str(spec.metadata.get('unit', '')), _default(spec),
                     _allowed(spec), doc])
    return table(['Parameter', 'Type', 'Unit', 'Default', 'Allowed', 'Description'], rows)


def type_words(wanted: Any) -> str:
    """`float`, `list of text`, ..."""
    names = {float: 'float', int: 'int', bool: 'bool', str: 'text', Any: 'any'}
    if wanted in names:
        return names[wanted]
    origin, args = typing.get_origin(wanted), [a for a in typing.get_args(wanted) if a is not Ellipsis]
    if origin in (list, tuple):
        return f'list of {type_words(args[0])}'
    if origin is dict or wanted is dict:
        return 'mapping'
    return ' or '.join(type_words(a) for a in args) or str(wanted)


def _default(spec: params.Spec) -> str:
    if spec.required:
        return '**required**'
    value = spec.default
    if isinstance(value, bool):
        return code(str(value).lower())
    if isinstance(value, float):
        return code(f'{value:.10g}')
    if isinstance(value, (list, tuple)):
        return code('[' + ', '.join(map(str, value)) + ']')
    return code(str(value)) if value != '' else 'empty'


def _allowed(spec: params.Spec) -> str:
    meta = spec.metadata
    if 'ref' in meta:
        owns = ', which then has no other owner' if meta.get('owns') else ''
        return f'name of a node with role {" or ".join(code(r) for r in str(meta["ref"]).split("|"))}{owns}'
    if 'choices' in meta:
        return ', '.join(code(str(c)) if c != '' else 'empty' for c in meta['choices'])
    low, high = meta.get('min'), meta.get('max')
    if low is not None and high is not None:
        return f'{low:g} to {high:g}'
    return f'at least {low:g}' if low is not None else f'at most {high:g}' if high is not None else ''
