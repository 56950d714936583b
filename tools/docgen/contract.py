"""`docs/contract.md` from the comments of msg/*.msg and srv/*.srv, and from where the code uses them."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field
from pathlib import Path

from . import HEADER, code, table

UNITS = ('V', 'A', 'W', 'var', 'VA', 'Hz', 's', 'degC', 'Ah', 'Wh', 'Ohm', 'Pa', 'W or A', 'own unit', 'pu', 'pu or Hz',
         'ratio', 'currency', 'currency/kWh', 'currency per Wh', 'currency per kWh', 'SI units')
RANGE = re.compile(r'^(>= ?0\b.*|> ?0\b.*|-?\d+(\.\d+)?\.\.\d+.*)$')
SIGN = re.compile(r'^\+ ?= ?.+$')
UNKNOWN = re.compile(r'unknown|not known|not measured|NaN|""|empty = none|-inf|\+inf|phase absent|0 = no lease')
LINE = re.compile(r'^(?P<type>[A-Za-z_/0-9]+(?:\[[<=0-9]*\])?)\s+(?P<name>\w+)\s*(?:=\s*(?P<value>\S+))?\s*'
                  r'(?:#\s*(?P<doc>.*))?$')
PLAIN = {'bool', 'string', 'byte', 'char', *(f'{u}int{n}' for u in ('', 'u') for n in (8, 16, 32, 64)),
         'float32', 'float64'}


@dataclass
class Member:
    """A field or constant of an interface."""

    type: str
    name: str
    value: str  # of a constant, '' for a field
    doc: str

    @property
    def columns(self) -> list[str]:
        """Type, name, unit, sign and range, unknown, meaning."""
        unit = ''
        limits: list[str] = []
        unknown: list[str] = []
        rest: list[str] = []
        for number, part in enumerate(_pieces(self.doc, ';')):
            if number and UNKNOWN.search(part):
                unknown.append(part)
                continue
            for piece in _pieces(part, ','):
                if not unit and not rest and piece in UNITS:
                    unit = piece
                elif not unit and not rest and piece.split(' ')[0] in ('fraction', 'percent'):
                    unit, _, limit = piece.partition(' ')
                    limits += [limit] if limit else []
                elif RANGE.match(piece) or SIGN.match(piece):
                    limits.append(piece)
                else:
                    rest.append(piece)
        return [code(self.name), code(self.type), unit, ', '.join(limits), '; '.join(unknown), ', '.join(rest)]


def _pieces(text: str, mark: str) -> list[str]:
    """`text` at its marks, without those in parentheses or quotes."""
    out, depth, start, quoted = [], 0, 0, False
    for i, c in enumerate(text):
        quoted ^= c == '"'
        depth += (c == '(') - (c == ')')
        if c == mark and depth == 0 and not quoted:
            out.append(text[start:i].strip())
            start = i + 1
    return [p for p in (*out, text[start:].strip()) if p]


@dataclass
class Interface:
    """One .msg or .srv file. A message has one part, a service two (request, answer)."""

    name: str
    kind: str
    intro: str
    parts: list[list[Member]] = field(default_factory=lambda: [[]])


def parse(path: Path) -> Interface:
    """Read an interface file. Raises ValueError for a line that is none."""
    intro: list[str] = []
    out = Interface(path.stem, path.suffix[1:], '')
    begun = False
    for number, line in enumerate(path.read_text(encoding='utf-8').splitlines(), 1):
        text = line.strip()
        if text == '---':
            out.parts.append([])
            begun = True
        elif text.startswith('#'):
            if not begun:
                intro.append(text.lstrip('# '))
        elif text:
            begun = True
            found = LINE.match(text)
            if found is None:
                raise ValueError(f'{path}:{number}: not a field: {text}')
            kind, name, value, doc = (part or '' for part in found.group('type', 'name', 'value', 'doc'))
            out.parts[-1].append(Member(kind, name, value, doc.strip()))
    out.intro = ' '.join(intro)
    return out


def missing(interface: Interface) -> list[str]:
    """What a reader cannot learn from the comments."""
    problems = [] if interface.intro else [f'{interface.name}: no comment at the top']
    for part in interface.parts:
        for member in part:
            where = f'{interface.kind}/{interface.name}.{interface.kind}: {member.name}'
            if not member.doc:
                problems.append(f'{where}: no comment')
            elif member.type.startswith('float') and not member.value:
                unit, limits = member.columns[2:4]
                if not unit and not limits:
                    problems.append(f'{where}: no unit at the start of the comment ({", ".join(UNITS)}, fraction, '
                                    'percent)')
    return problems


# -- who carries what ----------------------------------------------------------------------------

METHODS = {'create_publisher': 'publishes', 'create_subscription': 'reads', 'create_service': 'serves',
           'create_deferred_service': 'serves'}
#: Helpers that make publishers in the name of the node that uses them.
HELPERS = {'SetpointSender': 'every node that orders a battery or converter'}
ROLES = {
    'Scheduling': 'logical battery', 'Reservations': 'logical battery',
    'Administrator': 'administrator',
    'BessNode': 'every node', 'DriverNode': 'driver of a device with operations',
    'LogicalBatteryNode': 'logical battery', 'BatteryDriverNode': 'battery driver',
    'ConverterDriverNode': 'converter driver', 'MeterDriverNode': 'meter driver',
    'IoDriverNode': 'I/O driver', 'ClimateDriverNode': 'climate driver', 'ModeNode': 'mode',
    'PowerManagerNode': 'power manager', 'SiteNode': 'site', 'PartitionNode': 'partition', 'UnitNode': 'unit',
    'GroupNode': 'aggregate', 'BmsPackNode': 'pack', 'PhysicalBatteryNode': 'logical battery', 'ClimateNode': 'climate',
    'CostSavingNode': 'cost saving', 'LimiterNode': 'limiter', 'EmergencyStopNode': 'emergency stop',
    'EventLogNode': 'event log', 'FaultManagerNode': 'fault manager', 'MonitorsNode': 'monitors',
    'WatchdogNode': 'watchdog', 'StorageNode': 'storage unit', 'SystemNode': 'system',
    'TestControllerNode': 'test controller', 'GpsDriverNode': 'GPS driver',
    'CanBmsServerNode': 'CAN server', 'CellControllerNode': 'cell controller', 'Door': 'remote server',
    'AggregateNode': 'aggregate', 'Supervisor': 'supervisor', **HELPERS,
}


@dataclass(frozen=True)
class Use:
    """A class publishes, reads or serves a type under a name."""

    kind: str
    type: str
    name: str
    owner: str


def uses(root: Path) -> list[Use]:
    """Every publisher, subscription and service of the nodes, found in the source."""
    found: set[Use] = set()
    for path in sorted(root.glob('bess_*/**/*.py')):
        tree = ast.parse(path.read_text(encoding='utf-8'))
        alias = {a.asname: a.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for a in n.names if a.asname}
        for cls in (n for n in ast.walk(tree) if isinstance(n, ast.ClassDef)):
            for call in (n for n in ast.walk(cls) if isinstance(n, ast.Call)):
                if isinstance(call.func, ast.Attribute) and call.func.attr in METHODS and len(call.args) >= 2:
                    kind, name = call.args[0], _name(call.args[1])
                    if isinstance(kind, ast.Name) and name and cls.name in ROLES:
                        found.add(Use(METHODS[call.func.attr], alias.get(kind.id, kind.id), name, ROLES[cls.name]))
            message = next((n.value.id for n in cls.body if isinstance(n, ast.Assign)
                            and getattr(n.targets[0], 'id', '') == 'Message' and isinstance(n.value, ast.Name)), '')
            if message and cls.name in ROLES:  # the shell of a driver publishes `self.Message` on ~/status
                found.add(Use('publishes', message, '~/status', ROLES[cls.name]))
    return sorted(found, key=lambda u: (u.type, u.kind, u.owner, u.name))


def _name(node: ast.expr) -> str:
    """`~/status`, `<site>/faults`, `<site>/<battery>/status`; '' when it is not written there."""
    if isinstance(node, ast.Call) and node.args and (
            getattr(node.func, 'attr', '') == 'topic' or getattr(node.func, 'id', '') == 'topic'):
        inner = _name(node.args[0])
        return f'<site>/{inner}' if inner else ''
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        out = ''
        for part in node.values:
            if isinstance(part, ast.Constant):
                out += str(part.value)
            elif isinstance(part, ast.FormattedValue):
                value = ast.unparse(part.value).split('.')[-1]
                out += '<site>' if value == 'namespace' else f'<{value}>'
        return out
    return ''


def render(root: Path) -> tuple[str, list[str]]:
    """The page, and what is missing in the comments."""
    interfaces = [parse(p) for kind in ('msg', 'srv') for p in sorted((root / kind).glob(f'*.{kind}'))]
    problems = [p for i in interfaces for p in missing(i)]
    carried = uses(root)
    own = {i.name for i in interfaces}
    lines = [
        HEADER, '# The contract: messages and services\n',
        'SI units throughout: V, A, W, var, VA, Hz, s, degC, Ah, Wh; fractions 0..1. Passive sign: positive power and '
        'current flow *into* the component (battery charging +, load +, grid import +, PV -). NaN means "not '
        'measured", never 0. `~` is the name of the node, `<site>` the namespace of the site (`/home` for a site '
        'named `home`).\n',
        '## Who publishes, reads and serves what\n',
        'Beside its own types a logical battery publishes `sensor_msgs/BatteryState`, and every node '
        '`diagnostic_msgs/DiagnosticArray` on `/diagnostics`. All nodes offer the standard lifecycle services.\n',
        table(['Type', 'Name', 'Published or served by', 'Read by'], _carriers(carried)),
    ]
    for title, kind in (('Messages', 'msg'), ('Services', 'srv')):
        lines.append(f'## {title}\n')
        for interface in (i for i in interfaces if i.kind == kind):
            lines += _section(interface, own)
    return '\n'.join(lines), problems


def _carriers(carried: list[Use]) -> list[list[str]]:
    rows: dict[tuple[str, str], tuple[list[str], list[str]]] = {}
    for use in carried:
        key = (use.type, re.sub(r'^<site>/<\w+>/', '~/', use.name))
        writers, readers = rows.setdefault(key, ([], []))
        side = readers if use.kind == 'reads' else writers
        if use.owner not in side:
            side.append(use.owner)
    return [[code(kind), code(name), ', '.join(w), ', '.join(r)] for (kind, name), (w, r) in sorted(rows.items())]


def _section(interface: Interface, own: set[str]) -> list[str]:
    lines = [f'### bess/{interface.kind}/{interface.name}\n', interface.intro.replace('<', '&lt;') + '\n']
    for title, part in zip(('Request', 'Answer') if interface.kind == 'srv' else ('',), interface.parts, strict=True):
        fields = [m for m in part if not m.value]
        constants = [m for m in part if m.value]
        if title:
            lines.append(f'**{title}**' + ('\n' if part else ': empty\n'))
        if fields:
            rows = []
            for member in fields:
                columns = member.columns
                base = member.type.split('[')[0]
                if base in own:
                    columns[1] = f'[`{member.type}`](#bessmsg{base.lower()})'
                elif base not in PLAIN and '/' not in base:
                    raise ValueError(f'{interface.name}.{member.name}: unknown type {member.type}')
                rows.append(columns)
            lines.append(table(['Field', 'Type', 'Unit', 'Sign, range', 'Unknown', 'Meaning'], rows))
        if constants:
            lines.append(table(['Constant', 'Value', 'Meaning'], [[code(c.name), c.value, c.doc] for c in constants]))
    return lines
