"""The site file: what is right is ordered, what is wrong is refused with one message each, nothing started."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from bess_core import plugins
from bess_core.site import Site, SiteError, find, known_types, load

GOOD = """\
site:
  name: home

nodes:
  meter:
    type: carlo_gavazzi
    address: tcp://127.0.0.1:1502
  bms_a:
    type: jbd
    address: serial:${state}/dev/jbd
    period: 1.0
  inverter_a:
    type: sunspec_inverter
    address: tcp://127.0.0.1:1503
    bms: bms_a
  unit_a:
    type: unit
    bms: bms_a
    converter: inverter_a
  all:
    type: aggregate
    members: [unit_a]
  split:
    type: partition
    source: all
    children:
      house: {energy: 0.8, charge_power: 0.8, discharge_power: 0.8}
      grid: {energy: 0.2, charge_power: 0.2, discharge_power: 0.2}
  self_consumption:
    type: self_consumption
    battery: house
    meter: meter
  power_manager:
    type: power_manager
    battery: house
    meter: meter
  site:
    type: site
    mode: self_consumption

simulation:
  units:
    unit_a:
      pack: {chemistry: lfp, cells: 16}
  house: {profile: builtin}
  devices:
    meter: {kind: carlo_gavazzi, address: "tcp://127.0.0.1:1502"}
    bms_a: {kind: jbd, unit: unit_a, address: "serial:${state}/dev/jbd"}
    inverter_a: {kind: sunspec_inverter, unit: unit_a, address: "tcp://127.0.0.1:1503"}
"""


def edited(*changes: tuple[str, str], good: str = GOOD) -> str:
    """The good file with replacements, each of which must hit exactly once."""
    for old, new in changes:
        assert good.count(old) == 1, old
        good = good.replace(old, new)
    return good


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / 'site.yaml'
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def read(path: Path, *overrides: str) -> Site:
    return load(path, overrides=overrides, variables={'state': '/state'}, check_simulation=True)


def refused(path: Path, *overrides: str) -> tuple[str, ...]:
    with pytest.raises(SiteError) as caught:
        read(path, *overrides)
    for message in caught.value.messages:
        assert '\n' not in message
    return caught.value.messages


def line_of(text: str, mark: str, occurrence: int = 1) -> int:
    """Number of the line in which `mark` appears for the n-th time."""
    hits = [n for n, line in enumerate(text.splitlines(), start=1) if mark in line]
    return hits[occurrence - 1]


def test_a_good_file_is_read_and_ordered(tmp_path: Path) -> None:
    site = read(written(tmp_path, GOOD))
    assert (site.name, site.namespace, site.processes) == ('home', '/home', ('control',))
    names = [n.name for n in site.nodes]
    assert sorted(names) == sorted(['meter', 'bms_a', 'inverter_a', 'unit_a', 'all', 'split', 'house', 'grid',
                                    'self_consumption', 'power_manager', 'site'])
    for node in site.nodes:
        for other in node.refs:
            assert names.index(other) < names.index(node.name), f'{other} must come before {node.name}'
    assert site.node('bms_a').params.address == 'serial:/state/dev/jbd'
    assert site.node('bms_a').params.period == 1.0
    assert site.node('meter').line == line_of(GOOD, 'meter:')
    assert site.simulation['units']['unit_a']['pack']['cells'] == 16


def test_references_order_nodes_whatever_the_order_of_the_file(tmp_path: Path) -> None:
    text = edited(('site:\n  name: home\n\nnodes:\n', ''), good=GOOD)
    body, simulation = text.split('\nsimulation:')
    entries = re.split(r'\n(?=  \w+:\n)', '\n' + body.rstrip())[1:]
    shuffled = 'site:\n  name: home\nnodes:\n' + '\n'.join(reversed(entries)) + '\nsimulation:' + simulation
    names = [n.name for n in read(written(tmp_path, shuffled)).nodes]
    assert names.index('meter') < names.index('power_manager')
    assert names.index('bms_a') < names.index('unit_a') < names.index('all') < names.index('split')
    assert names.index('split') < names.index('house') < names.index('self_consumption') < names.index('site')


def test_installed_sites_are_valid_and_found_by_name() -> None:
    folder = find('home_demo').parent
    files = sorted(folder.glob('*.yaml'))
    assert files
    for file in files:
        assert read(file).nodes
    with pytest.raises(SiteError, match=r'nowhere: no such site file; installed sites: .*home_demo'):
        find('nowhere')


# (what is broken, replacements in the good file, where the message must point, pattern of key and text)
BROKEN: list[tuple[str, list[tuple[str, str]], str, str]] = [
    ('yaml syntax', [('members: [unit_a]', 'members: [unit_a')], 'split:', r'not valid YAML: '),
    ('tab', [('  name: home', '\tname: home')], '\tname', r'not valid YAML: '),
    ('unknown section', [('simulation:', 'simulations:')], 'simulations:',
     r'simulations: unknown key; allowed: site, nodes, simulation$'),
    ('no site name', [('  name: home', '  description: x')], 'site:',
     r"site\.name: missing; needed: text - name of the site"),
    ('unknown key of site', [('  name: home', '  name: home\n  heart_beat: 1')], 'heart_beat',
     r"site\.heart_beat: unknown key; did you mean 'heartbeat'\?; allowed: .*log_level"),
    ('choice of site', [('  name: home', '  name: home\n  log_level: loud')], 'log_level',
     r"site\.log_level: 'loud' is not allowed; allowed: one of 'debug', 'info', 'warning', 'error'$"),
    ('bad site name', [('  name: home', '  name: my home')], 'my home', r"site\.name: 'my home' is not a ROS name; "),
    ('bad namespace', [('  name: home', '  name: home\n  namespace: x/y')], 'x/y',
     r"site\.namespace: 'x/y' is not a ROS namespace; allowed: .*leading slash"),
    ('unknown key of a node', [('    period: 1.0', '    peroid: 1.0')], 'peroid',
     r"nodes\.bms_a\.peroid: unknown key; did you mean 'period'\?; allowed: .*period"),
    ('no type', [('    type: jbd\n', '')], 'bms_a:', r'nodes\.bms_a: needs a type; known: .*jbd'),
    ('node without content', [('    type: aggregate\n    members: [unit_a]\n', '')], 'all:',
     r'nodes\.all: needs a type; known: '),
    ('unknown type', [('type: jbd', 'type: jbt')], 'type: jbt',
     r"nodes\.bms_a\.type: unknown type 'jbt'; did you mean 'jbd'\?; known: .*jbd"),
    ('missing parameter', [('    converter: inverter_a\n', '')], 'unit_a:',
     r'nodes\.unit_a\.converter: missing; needed: text - node of the converter$'),
    ('wrong type', [('period: 1.0', 'period: fast')], 'period: fast',
     r"nodes\.bms_a\.period: 'fast' is not a number; allowed: 0\.02 to 3600 s$"),
    ('true is no number', [('period: 1.0', 'period: true')], 'period: true',
     r'nodes\.bms_a\.period: True is not a number; allowed: 0\.02 to 3600 s$'),
    ('text in quotes is no number', [('period: 1.0', 'period: "1.0"')], 'period: "1.0"',
     r"nodes\.bms_a\.period: '1\.0' is not a number"),
    ('list expected', [('members: [unit_a]', 'members: unit_a')], 'members:',
     r"nodes\.all\.members: 'unit_a' is not a list; allowed: a list$"),
    ('out of range', [('period: 1.0', 'period: 0.001')], 'period: 0.001',
     r'nodes\.bms_a\.period: 0\.001 is out of range; allowed: 0\.02 to 3600 s$'),
    ('infinite', [('period: 1.0', 'period: .inf')], 'period: .inf',
     r'nodes\.bms_a\.period: inf is out of range; allowed: 0\.02 to 3600 s$'),
    ('not a number', [('period: 1.0', 'period: .nan')], 'period: .nan',
     r'nodes\.bms_a\.period: not a number; allowed: 0\.02 to 3600 s$'),
    ('a number of 400 digits', [('period: 1.0', 'period: 1' + '0' * 400)], 'period: 1',
     r'nodes\.bms_a\.period: 10+\.\.\. is not a number; allowed: 0\.02 to 3600 s$'),
    ('a number of 5000 digits', [('period: 1.0', 'period: ' + '9' * 5000)], 'period: 9',
     r"nodes\.bms_a\.period: '9+' cannot be read: "),
    ('a date that does not exist', [('period: 1.0', 'period: 2026-13-45')], '2026-13-45',
     r"nodes\.bms_a\.period: '2026-13-45' cannot be read: "),
    ('a tag that would run code', [('period: 1.0', 'period: !!python/object/apply:os.system [x]')], 'os.system',
     r"nodes\.bms_a\.period: "),
    ('null where text is needed',
     [('    bms: bms_a\n    converter: inverter_a', '    bms:\n    converter: inverter_a')],
     '    bms:\n', r'nodes\.unit_a\.bms: None is not text; allowed: text$'),
    ('unknown reference', [('members: [unit_a]', 'members: [unit_b]')], 'members:',
     r"nodes\.all\.members: no node 'unit_b'; allowed: .*unit_a"),
    ('wrong role', [('    converter: inverter_a', '    converter: meter')], 'converter: meter',
     r"nodes\.unit_a\.converter: 'meter' is a meter, not a converter; allowed: inverter_a$"),
    ('double use of a battery',
     [('    type: power_manager\n    battery: house', '    type: power_manager\n    battery: all')],
     'battery: all', r"nodes\.power_manager\.battery: 'all' is already used by 'split'; a battery has one owner$"),
    ('member named twice', [('members: [unit_a]', 'members: [unit_a, unit_a]')], 'members:',
     r"nodes\.all\.members: 'unit_a' is named twice$"),
    ('no member', [('members: [unit_a]', 'members: []')], 'all:',
     r'nodes\.all: needs at least one member'),
    ('refers to itself', [('members: [unit_a]', 'members: [all]'), ('source: all', 'source: unit_a')], 'all:',
     r'nodes\.all: refers to itself: all -> all$'),
    ('cycle', [('members: [unit_a]', 'members: [grid]')], 'all:',
     r'nodes\.all: refers to itself: all -> grid -> split -> all$'),
    ('duplicate key', [('    period: 1.0', '    period: 1.0\n    period: 2.0')], 'period: 2.0',
     r'nodes\.bms_a\.period: given twice$'),
    ('duplicate node', [('  unit_a:\n    type: unit', '  meter:\n    type: unit')], '  meter:\n    type: unit',
     r'nodes\.meter: given twice$'),
    ('child and node of one name', [('      grid: {', '      site: {')], '  site:\n    type',
     r'nodes\.site: two nodes have this name$'),
    ('bad node name', [('  all:\n', '  the-all:\n'), ('source: all', 'source: unit_a')], 'the-all',
     r"nodes\.the-all: 'the-all' is not a ROS name; allowed: letters, digits and underscores"),
    ('number as node name', [('  all:\n', '  7:\n'), ('source: all', 'source: unit_a')], '  7:',
     r'nodes\.7: 7 is not a ROS name'),
    ('number as child name', [('      grid: {', '      2: {')], '      2:', r'nodes\.split\.children\.2: 2 is not a '),
    ('endless name', [('  all:\n', f'  {"x" * 300}:\n'), ('source: all', 'source: unit_a')], 'xxx',
     r"nodes\.x{300}: 'x{300}' is not a ROS name; allowed: .*at most 64"),
    ('bad process', [('    type: site', '    type: site\n    process: "a b"')], 'process:',
     r"nodes\.site\.process: 'a b' is not a name; allowed: letters"),
    ('required is no list', [('    type: aggregate', '    type: aggregate\n    required: 1')], 'required: 1',
     r'nodes\.all\.required: must be true or false$'),
    ('one address for two', [('tcp://127.0.0.1:1503\n', 'tcp://127.0.0.1:1502\n')], '    address: tcp://127.0.0.1:1502',
     r"nodes\.inverter_a\.address: tcp://127\.0\.0\.1:1502 is already used by 'meter'$"),
    ('no address', [('    address: tcp://127.0.0.1:1502\n', '')], 'meter:', r'nodes\.meter: address is missing; e\.g\. tcp://'),
    ('bad address', [('    address: tcp://127.0.0.1:1502\n', '    address: tcp:/127.0.0.1\n')], 'meter:',
     r"nodes\.meter: 'tcp:/127\.0\.0\.1' is not tcp://host:port$"),
    ('shares do not add up', [('      grid: {energy: 0.2,', '      grid: {energy: 0.3,')], 'split:',
     r'nodes\.split: energy shares add up to 1\.1, must be 1 or less$'),
    ('unknown share', [('      grid: {energy: 0.2,', '      grid: {enrgy: 0.2, energy: 0.2,')], 'split:',
     r"nodes\.split: children\.grid: enrgy: unknown key; did you mean 'energy'\?"),
    ('share out of range', [('      grid: {energy: 0.2,', '      grid: {energy: 20,')], 'split:',
     r'nodes\.split: children\.grid: energy: 20 is out of range; allowed: 0 to 1$'),
    ('unknown mode', [('    mode: self_consumption', '    mode: meter')], 'mode: meter',
     r"nodes\.site\.mode: 'meter' is a meter, not a mode; allowed: self_consumption$"),
    ('unknown variable', [('    address: serial:${state}/dev/jbd', '    address: serial:${sate}/dev/jbd')], '${sate}',
     r'nodes\.bms_a\.address: unknown variable \$\{sate\}; known: state$'),
    ('simulation is no mapping', [('simulation:\n  units:\n    unit_a:\n      pack: {chemistry: lfp, cells: 16}\n'
                                   '  house: {profile: builtin}\n  devices:\n', 'simulation: yes\nx: \n')], 'x:',
     r'x: unknown key'),
    ('unknown key of the simulation', [('cells: 16', 'cels: 16')], 'cels',
     r"simulation\.units\.unit_a\.pack\.cels: unknown key; did you mean 'cells'\?; allowed: chemistry, cells"),
    ('simulation out of range', [('cells: 16', 'cells: 1000')], 'cells: 1000',
     r'simulation\.units\.unit_a\.pack\.cells: 1000: .*less than or equal to 400'),
    ('unknown device', [('kind: jbd', 'kind: jbt')], 'kind: jbt',
     r"simulation\.devices\.bms_a: unknown device kind 'jbt'; known: jbd, "),
    ('device of an unknown unit', [('kind: jbd, unit: unit_a', 'kind: jbd, unit: unit_z')], 'unit_z',
     r"simulation\.devices\.bms_a\.unit: no unit 'unit_z'; known: unit_a$"),
    ('unknown option of a device', [('kind: jbd, unit', 'kind: jbd, bauds: 9600, unit')], 'bauds',
     r"simulation\.devices\.bms_a: jbd: unknown option 'bauds'; known: name, baud, echo_read$"),
    ('no profile', [('profile: builtin', 'profile: missing.csv')], 'simulation:',
     r'simulation: missing\.csv: cannot be read: No such file or directory$'),
    ('two devices on one port', [('address: "tcp://127.0.0.1:1503"', 'address: "tcp://127.0.0.1:1502"')],
     'inverter_a: {',
     r"simulation\.devices\.inverter_a\.address: tcp://127\.0\.0\.1:1502 is already used by 'meter'$"),
    ('merge key', [('    period: 1.0', '    <<: {period: 1.0}')], '<<', r'nodes\.bms_a: merge keys \(<<\)'),
    ('alias of itself', [('members: [unit_a]', 'members: &x [*x]')], 'members:',
     r'nodes\.all\.members\.0: an alias that contains itself$'),
    ('deeply nested', [('members: [unit_a]', 'members: ' + '[' * 40 + ']' * 40)], 'members:',
     r'nodes\.all\.members: nested too deeply; at most 20 levels are allowed$'),
]  # fmt: skip


@pytest.mark.parametrize(('changes', 'mark', 'pattern'), [b[1:] for b in BROKEN], ids=[b[0] for b in BROKEN])
def test_a_mistake_is_named_once_with_file_line_and_key(
    tmp_path: Path, changes: list[tuple[str, str]], mark: str, pattern: str
) -> None:
    text = edited(*changes)
    path = written(tmp_path, text)
    messages = refused(path)
    if 'simulation: yes' in text:  # several mistakes: the one that is meant must be among them
        messages = tuple(m for m in messages if 'unknown key' in m)
    assert len(messages) == 1, messages
    match = re.match(r'(.*?):(\d+): (.*)', messages[0])
    assert match, messages[0]
    assert match[1] == str(path)
    assert re.match(pattern, match[3]), match[3]
    at = text.rindex(mark) if '\n' in mark or mark == '    address: tcp://127.0.0.1:1502' else text.index(mark)
    line = text.count('\n', 0, at) + 1
    assert int(match[2]) == line, f'{messages[0]}: should point to line {line}'


def test_several_mistakes_are_all_named(tmp_path: Path) -> None:
    text = edited(('period: 1.0', 'period: 0'), ('type: sunspec_inverter', 'type: nonsense'),
                  ('cells: 16', 'cells: 0'))
    messages = refused(written(tmp_path, text))
    # But not what only follows from them: the unit refers to nodes that are there, though not usable.
    assert [int(m.split(':')[1]) for m in messages] == sorted(
        [line_of(text, 'period: 0'), line_of(text, 'nonsense'), line_of(text, 'cells: 0')])


@pytest.mark.parametrize(('text', 'pattern'), [
    ('', r':1: a site file is a mapping with the keys site, nodes, simulation$'),
    ('- a\n- b\n', r':1: a site file is a mapping'),
    ('just text', r':1: a site file is a mapping'),
    ('site: {name: x}\nnodes: {}\n', r':2: nodes: a site needs at least one node$'),
    ('site: {name: x}\nnodes: 5\n', r':2: nodes: a site needs at least one node$'),
    ('site: {name: x}\nnodes:\n', r':2: nodes: a site needs at least one node$'),
    ('site: {name: x}\n', r':1: nodes: a site needs at least one node$'),
    ('a: 1\n---\nb: 2\n', r':2: not valid YAML: '),
    ('? [a, b]\n: 1\n', r':1: merge keys \(<<\) and keys that are lists or mappings are not allowed'),
    (b'\x00\x01\x02\xff\xfe' * 1000, r':1: not UTF-8 text: invalid start byte$'),
    (b'site:\n  name: x\n  a: \x00\n', r':3: not text: character 0x00 is not allowed$'),
    ('site:\n  name: h\xf6me\n'.encode('latin-1'), r':2: not UTF-8 text: '),
    (b'\x7fELF' + bytes(range(128)) * 100, r':1: not text: character 0x\w+ is not allowed$'),
    ('[' * 999_999, r':1: nested too deeply; at most 20 levels are allowed$'),
    ('{a: ' * 5_000, r':1: nested too deeply; at most 20 levels are allowed$'),
    ('x' * 1_000_001, r'site\.yaml: larger than 1000 kB, which is the most that is allowed$'),
    ('a: &a [x,x,x,x,x,x,x,x,x]\n' + ''.join(
        f'{c}: &{c} [{",".join(["*" + p] * 9)}]\n' for p, c in zip('abcdefgh', 'bcdefghi', strict=True)),
     r':6: f: more than 100000 values in the file'),
], ids=['empty', 'list', 'text', 'no nodes', 'nodes a number', 'nodes null', 'nodes missing', 'two documents',
        'list as key', 'binary', 'nul', 'latin-1', 'executable', 'a megabyte of brackets', 'nested mappings',
        'over a megabyte', 'billion laughs'])  # fmt: skip
@pytest.mark.timeout(20)
def test_hostile_and_empty_files(tmp_path: Path, text: str | bytes, pattern: str) -> None:
    path = written(tmp_path, text)
    messages = [m for m in refused(path) if 'site.name: missing' not in m]
    assert len(messages) == 1, messages
    assert messages[0].startswith(str(path))
    assert re.search(pattern, messages[0]), messages[0][:300]
    assert len(messages[0]) < 400 + len(str(path))


def test_a_long_chain_of_references_is_refused_or_ordered(tmp_path: Path) -> None:
    count = 1200
    nodes = ''.join(f'  b{i}: {{type: aggregate, members: [b{i + 1}]}}\n' for i in range(count))
    messages = refused(written(tmp_path, f'site: {{name: x}}\nnodes:\n{nodes}'))
    assert any('too many nodes refer to each other' in m or f"no node 'b{count}'" in m for m in messages)


def test_a_folder_and_an_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match='cannot be read: Is a directory'):
        load(tmp_path)
    with pytest.raises(SiteError, match='no such site file'):
        find(str(tmp_path))
    with pytest.raises(SiteError, match='cannot be read: No such file or directory'):
        load(tmp_path / 'none.yaml')


def test_settings_win_over_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)
    site = read(path, 'nodes.bms_a.period=2', 'nodes.meter.address=tcp://10.0.0.1:502', 'site.name=other',
                'simulation.units.unit_a.pack.cells=8')
    assert site.node('bms_a').params.period == 2.0
    assert site.node('meter').params.address == 'tcp://10.0.0.1:502'
    assert (site.name, site.simulation['units']['unit_a']['pack']['cells']) == ('other', 8)
    site = read(path, 'nodes.second.type=carlo_gavazzi', 'nodes.second.address=tcp://10.0.0.2:502')
    assert site.node('second').role == 'meter'


@pytest.mark.parametrize(('setting', 'pattern'), [
    ('period=2', r'^--set period=2: must look like nodes\.meter\.address=tcp'),
    ('nodes.bms_a.period', r'^--set nodes\.bms_a\.period: must look like '),
    ('nodes.bms_a.period=[1', r'^--set nodes\.bms_a\.period=\[1: not valid YAML: '),
    ('nodes.bms_a.period=0', r'^--set nodes\.bms_a\.period=0: nodes\.bms_a\.period: 0 is out of range; allowed: 0'),
    ('nodes.bms_a.peroid=1', r"^--set nodes\.bms_a\.peroid=1: nodes\.bms_a\.peroid: unknown key; did you mean 'per"),
    ('nodes.bms_a.type.x=1', r"^--set nodes\.bms_a\.type\.x=1: 'type' is not a mapping$"),
    ('nodes.extra.period=1', r'^--set nodes\.extra\.period=1: nodes\.extra: needs a type; known: '),
    ('nodes.unit_a.bms=bms_x', r"^--set nodes\.unit_a\.bms=bms_x: nodes\.unit_a\.bms: no node 'bms_x'; allowed: bms_a"),
    ('simulation.pv.peak=1', r'^--set simulation\.pv\.peak=1: simulation\.pv\.peak: unknown key; .*peak_power'),
    ('nonsense.x=1', r'^--set nonsense\.x=1: nonsense: unknown key; allowed: site, nodes, simulation$'),
])  # fmt: skip
def test_a_bad_setting_is_named(tmp_path: Path, setting: str, pattern: str) -> None:
    messages = refused(written(tmp_path, GOOD), setting)
    assert len(messages) == 1, messages
    assert re.match(pattern, messages[0]), messages[0]


def test_an_override_does_not_hide_other_lines(tmp_path: Path) -> None:
    text = edited(('period: 1.0', 'period: 0'))
    path = written(tmp_path, text)
    messages = refused(path, 'nodes.bms_a.read_only=true')
    assert [m.split(': ')[0] for m in messages] == [f'{path}:{line_of(text, "period: 0")}']


def test_a_broken_plugin_is_a_message_of_the_site_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / 'plugins'
    (folder / 'bad-0.dist-info').mkdir(parents=True)
    (folder / 'bad-0.dist-info' / 'METADATA').write_text('Metadata-Version: 2.1\nName: bad\nVersion: 0\n')
    (folder / 'bad-0.dist-info' / 'entry_points.txt').write_text(
        '[bess.drivers]\nabsent = no_such_module_here:X\nempty = bad_plugin_for_test:Empty\n'
        '[bess.nodes]\nplain = bad_plugin_for_test:Empty\n')
    (folder / 'bad_plugin_for_test.py').write_text('class Empty:\n    pass\n')
    monkeypatch.syspath_prepend(str(folder))
    plugins.forget()
    try:
        assert {'absent', 'empty', 'plain'} <= set(known_types())
        for name, pattern in (('absent', r"cannot be loaded: No module named 'no_such_module_here'"),
                              ('empty', r"bess\.drivers 'empty' is not a driver: "),
                              ('plain', r"type 'plain' .* has no parameter dataclass")):
            text = edited(('type: jbd', f'type: {name}'))
            messages = refused(written(tmp_path, text))
            assert messages[0].startswith(f'{tmp_path}/site.yaml:{line_of(text, f"type: {name}")}: nodes.bms_a.type: ')
            assert re.search(pattern, messages[0]), messages[0]
    finally:
        monkeypatch.undo()
        plugins.forget()


def _bess(*words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, '-m', 'bess_core.cli.main', *words], capture_output=True, text=True,
                          timeout=60, check=False, env={**os.environ, **(env or {})})


@pytest.mark.parametrize(('changes', 'setting', 'check'), [
    ([('period: 1.0', 'period: 0.001')], '', True),
    ([('members: [unit_a]', 'members: [unit_a')], '', False),
    ([('cells: 16', 'cells: 0')], '', False),
    ([], 'nodes.bms_a.peroid=1', False),
])  # fmt: skip
def test_bess_up_refuses_with_code_2_and_starts_nothing(
    tmp_path: Path, changes: list[tuple[str, str]], setting: str, check: bool
) -> None:
    state = tmp_path / 'state'
    words = ['up', str(written(tmp_path, edited(*changes))), '--state', str(state)]
    words += ['--check'] * check + ['--set', setting] * bool(setting)
    result = _bess(*words)
    assert result.returncode == 2, result
    assert result.stdout == ''
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert result.stderr.startswith((str(tmp_path), '--set'))
    assert not state.exists(), 'nothing may have been started, made or locked'


def test_bess_up_check_of_a_good_file(tmp_path: Path) -> None:
    state = tmp_path / 'state'
    result = _bess('up', str(written(tmp_path, GOOD)), '--state', str(state), '--check')
    assert (result.returncode, result.stderr) == (0, '')
    assert result.stdout.endswith('site.yaml: ok, 11 nodes in 1 processes\n')
    assert not state.exists()


def test_reading_a_site_starts_no_thread(tmp_path: Path) -> None:
    before = threading.active_count()
    read(written(tmp_path, GOOD))
    assert threading.active_count() == before
