"""The generated pages fit the code, and the generator notices when something is missing."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from bess_core.site import SiteError, known_types, load

ROOT = Path(__file__).parents[2]
PAGES = ['README.md', 'CHANGELOG.md', *sorted(f'docs/{p.name}' for p in (ROOT / 'docs').glob('*.md'))]
FILES = re.compile(r'`((?:bess_\w+|test|tools|config|docs|bench|launch)/[\w./]+\.(?:py|yaml|md|sh))`')


def tool(name: str) -> Any:
    """A module of tools/, which is a folder of scripts and no package."""
    folder = str(ROOT / 'tools')
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(name)


generate_docs, docgen = tool('generate_docs'), tool('docgen')
contract, faults, parameters = (tool(f'docgen.{n}') for n in ('contract', 'faults', 'parameters'))
Found = faults.Found


def interface(tmp_path: Path, text: str, name: str = 'Thing.msg') -> Any:
    path = tmp_path / name
    path.write_text(text)
    return contract.parse(path)


def test_pages_are_up_to_date_and_nothing_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert generate_docs.main(['--check']) == 0, capsys.readouterr().out


def test_check_fails_and_writes_nothing_when_a_page_differs(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / 'docs').mkdir()
    page = tmp_path / 'docs' / 'a.md'
    page.write_text('old\n')
    monkeypatch.setattr(generate_docs, 'ROOT', tmp_path)
    monkeypatch.setattr(generate_docs, 'PAGES', {'a.md': lambda _: ('new\n', [])})
    assert generate_docs.main(['--check']) == 1
    assert 'docs/a.md is out of date' in capsys.readouterr().out
    assert page.read_text() == 'old\n'
    assert generate_docs.main([]) == 0
    assert page.read_text() == 'new\n'
    assert generate_docs.main(['--check']) == 0


def test_columns_of_a_field(tmp_path: Path) -> None:
    made = interface(tmp_path, '# A thing.\nfloat64 p  # W, + = charging, at the AC side (fast, exact); NaN unknown\n')
    assert made.parts[0][0].columns == ['`p`', '`float64`', 'W', '+ = charging', 'NaN unknown',
                                        'at the AC side (fast, exact)']


@pytest.mark.parametrize(('text', 'problem'), [
    ('float64 p  # W\n', 'no comment at the top'),
    ('# A thing.\nfloat64 p\n', 'p: no comment'),
    ('# A thing.\nuint8 X=1\n', 'X: no comment'),
    ('# A thing.\nfloat64 p  # how much\n', 'p: no unit'),
])
def test_what_a_comment_lacks_is_a_problem(tmp_path: Path, text: str, problem: str) -> None:
    assert [p for p in contract.missing(interface(tmp_path, text)) if problem in p]


def test_a_service_has_a_request_and_an_answer(tmp_path: Path) -> None:
    made = interface(tmp_path, '# Asks.\n---\nbool ok  # whether it went well\n', 'Ask.srv')
    assert [[m.name for m in part] for part in made.parts] == [[], ['ok']]


def test_a_line_that_is_no_field_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r'Thing\.msg:2: not a field'):
        interface(tmp_path, '# A thing.\nfloat64\n')


@pytest.fixture(scope='module')
def uses() -> Any:
    return contract.uses(ROOT)


def test_carriers_are_found_in_the_code(uses: Any) -> None:
    found = {(u.kind, u.type, u.name, u.owner) for u in uses}
    assert ('serves', 'SetContactor', '~/set_contactor', 'battery driver') in found
    assert ('publishes', 'MeterStatus', '~/status', 'meter driver') in found
    assert ('reads', 'PowerProposal', '<site>/proposals', 'power manager') in found


def test_every_service_of_the_contract_has_a_server_and_every_message_a_carrier(uses: Any) -> None:
    used = {u.type for u in uses}
    files = [p for kind in ('msg', 'srv') for p in (ROOT / kind).iterdir()]
    own = {p.stem for p in files}
    text = '\n'.join(p.read_text(encoding='utf-8') for p in files)
    inside = {name for name in own if re.search(rf'^{name}(\[\])? ', text, re.MULTILINE)}  # parts of other messages
    assert own - used - inside == set()


def test_every_type_has_a_table_of_parameters() -> None:
    text, problems = parameters.render()
    assert not problems
    assert [t for t in known_types() if f'### `{t}`' not in text and t not in ('acme',)] == []


# -- faults --------------------------------------------------------------------------------------


def ids(tmp_path: Path, text: str) -> set[tuple[str, str]]:
    room = tmp_path / 'bess_room'
    room.mkdir(exist_ok=True)
    (room / 'a.py').write_text(text)
    return {(f.id, f.severity) for f in faults.ids_in_code(tmp_path)}


def test_ids_are_read_from_every_way_to_raise_one(tmp_path: Path) -> None:
    text = '''
NAME = 'a.constant'
class Node:
    def f(self, kind, bit):
        self.raise_fault('a.direct', Severity.ERROR, 'x')
        self.set_fault(True, 'a.set', Severity.WARNING, 'x')
        chosen = 'a.one' if kind else 'a.other'
        self.raise_fault(chosen, Severity.ERROR, 'x')
        registry.raise_('a.registry', Severity.CRITICAL, 'x', 0.0)
        return Alarm(NAME, Severity.ERROR, 'x'), Alarm(f'a.bit_{bit}', worst, 'x')
    def raise_fault(self, fault_id, severity, text):
        self.faults.raise_(fault_id, severity, text)
'''
    assert ids(tmp_path, text) == {
        ('a.direct', 'ERROR'), ('a.set', 'WARNING'), ('a.one', 'ERROR'), ('a.other', 'ERROR'),
        ('a.registry', 'CRITICAL'), ('a.constant', 'ERROR'), ('a.bit_*', '')}


def test_an_id_that_cannot_be_read_is_not_passed_over(tmp_path: Path) -> None:
    with pytest.raises(faults.Unreadable, match=r'a\.py:1'):
        ids(tmp_path, 'node.raise_fault(table[3], Severity.ERROR, "x")\n')


@pytest.mark.parametrize(('catalogue', 'found', 'problem'), [
    ({}, [Found('a.b', 'ERROR', 'f:1')], "f:1: fault 'a.b' is not in"),
    ({'a.b': 'ERROR'}, [], "nothing in the code raises 'a.b'"),
    ({'a.b': 'WARNING'}, [Found('a.b', 'ERROR', 'f:1')], 'a.b is ERROR, docs/faults.yaml says WARNING'),
    ({'a.b': 'BAD'}, [Found('a.b', '', 'f:1')], "severity 'BAD'"),
    ({'k.x': 'ERROR'}, [Found('k.*', '', 'f:1')], "'k.y' is not in"),
])
def test_catalogue_and_code_must_agree(catalogue: dict[str, str], found: list[Any], problem: str) -> None:
    assert any(problem in p for p in faults.compare(catalogue, found, {'k.*': {'k.x', 'k.y'}}))


def test_agreement_has_no_problems() -> None:
    found = [Found('a.b', 'ERROR', 'f:1'), Found('k.*', '', 'f:2'), Found('n.*', 'WARNING', 'f:3')]
    catalogue = {'a.b': 'ERROR', 'k.x': 'ERROR', 'n.*': 'WARNING'}
    assert faults.compare(catalogue, found, {'k.*': {'k.x'}}) == []


# -- links ---------------------------------------------------------------------------------------


def test_cells_of_a_table_keep_code_and_escape_the_rest() -> None:
    assert docgen.cell('a <b> `<c>` | d') == 'a &lt;b> `<c>` \\| d'


@pytest.mark.parametrize('page', PAGES)
def test_links_between_the_pages_lead_somewhere(page: str) -> None:
    path = ROOT / page
    text = re.sub(r'^```.*?^```', '', path.read_text(encoding='utf-8'), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r'(?<!!)\[[^\]]*\]\(([^)\s]+)\)', text):
        if '://' in target:
            continue
        file, _, anchor = target.partition('#')
        there = (path.parent / file) if file else path
        assert there.exists(), f'{page}: {target}'
        if anchor:
            heads = {re.sub(r'[^\w\- ]', '', h.lower()).replace(' ', '-')
                     for h in re.findall(r'^#+ (.+)$', there.read_text(encoding='utf-8'), re.MULTILINE)}
            assert anchor in heads, f'{page}: {target}'


@pytest.mark.parametrize('page', PAGES)
def test_files_named_in_the_pages_exist(page: str) -> None:
    for name in FILES.findall((ROOT / page).read_text(encoding='utf-8')):
        assert (ROOT / name).exists(), f'{page}: {name}'


@pytest.mark.parametrize('file', sorted((ROOT / 'config' / 'sites').glob('*.yaml')), ids=lambda f: f.stem)
def test_the_sites_that_are_shipped_are_right(file: Path, tmp_path: Path) -> None:
    assert load(file, variables={'state': str(tmp_path)}, check_simulation=True).nodes


@pytest.mark.parametrize('page', [p for p in PAGES if '/' in p])
def test_nodes_in_the_pages_are_as_a_site_file_has_them(page: str, tmp_path: Path) -> None:
    """Parts of site files, without the nodes that stand elsewhere: mappings, known types, known parameters."""
    types = known_types()
    text = (ROOT / page).read_text(encoding='utf-8')
    for block in re.findall(r'^```yaml\n(.*?)^```', text, re.MULTILINE | re.DOTALL):
        values = yaml.safe_load(block)
        assert not (isinstance(values, list) and any('type' in v for v in values if isinstance(v, dict))), block
        nodes = values.get('nodes', values) if isinstance(values, dict) else {}
        nodes = {k: v for k, v in nodes.items() if isinstance(v, dict) and v.get('type') in types}
        file = tmp_path / 'part.yaml'
        file.write_text(yaml.safe_dump({'site': {'name': 'part'}, 'nodes': nodes}))
        try:
            if nodes:
                load(file, variables={'state': str(tmp_path)})
        except SiteError as error:
            elsewhere = (': no node ', 'no such ', ' is missing')
            assert not [m for m in error.messages if not any(t in m for t in elsewhere)], block


def test_the_change_to_a_real_house_is_the_one_in_the_readme(tmp_path: Path) -> None:
    text = (ROOT / 'config' / 'sites' / 'home_demo.yaml').read_text(encoding='utf-8')
    diff = re.search(r'^```diff\n(.*?)^```', (ROOT / 'README.md').read_text(encoding='utf-8'), re.MULTILINE | re.DOTALL)
    assert diff is not None
    text, _, simulation = text.partition('\nsimulation:\n')
    assert simulation
    removed = ''
    for line in diff[1].splitlines():
        if line.startswith('-') and not line.startswith('-simulation'):
            removed = line[1:]
        elif line.startswith('+'):
            assert text.count(f'\n{removed}\n') == 1, removed
            text = text.replace(f'\n{removed}\n', f'\n{line[1:]}\n')
    assert '127.0.0.1:15' not in text
    path = tmp_path / 'my_house.yaml'
    path.write_text(text, encoding='utf-8')
    site = load(path, variables={'state': str(tmp_path)})
    assert not site.simulation
    addresses = [n.params.address for n in site.nodes if hasattr(n.params, 'address')]
    assert len(addresses) == diff[1].count('\n+')
    assert all(a.startswith(('tcp://192.168.', 'serial:/dev/')) for a in addresses)


def examples() -> list[str]:
    text = (ROOT / 'docs' / 'sites.md').read_text(encoding='utf-8')
    return [b for b in re.findall(r'^```yaml\n(.*?)^```', text, re.MULTILINE | re.DOTALL) if b.startswith('site:')]


@pytest.mark.parametrize('number', range(3))
def test_whole_sites_in_the_pages_are_valid(number: int, tmp_path: Path) -> None:
    path = tmp_path / 'site.yaml'
    path.write_text(examples()[number], encoding='utf-8')
    assert load(path, variables={'state': str(tmp_path)}).nodes


def test_tests_named_in_the_pages_exist() -> None:
    counts = {}
    for page in PAGES:
        named = re.findall(r'`(test/[\w/]+\.py)::(\w+)`', (ROOT / page).read_text(encoding='utf-8'))
        counts[page] = len(named)
        for file, name in named:
            assert f'def {name}(' in (ROOT / file).read_text(encoding='utf-8'), f'{page}: {file}::{name}'
    assert counts['docs/design.md'] > 20 and counts['docs/batteryos_defects.md'] > 56


def test_each_listed_defect_of_batteryos_has_a_row_with_a_test() -> None:
    text = (ROOT / 'docs' / 'batteryos_defects.md').read_text(encoding='utf-8')
    rows = re.findall(r'^\| (\d+) \| .+ \| .+ \| (.+) \|$', text, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 57))
    assert all('::test_' in tests for _, tests in rows)


def test_a_driver_without_a_word_on_what_is_verified_is_refused() -> None:
    drivers = tool('docgen.drivers')
    entry = {'device': 'x', 'transport': 'serial', 'verified': [{'what': 'all', 'against': 'nothing'}]}
    problems: list[str] = []
    names = [n for n in drivers.plugins.available(drivers.plugins.DRIVERS) if not drivers.CARRIERS.match(n)]
    rows = drivers._programs(dict.fromkeys(names, entry), {}, problems)
    assert rows and problems == []
    drivers._programs({**dict.fromkeys(names, entry), 'jbd': {'device': 'x'}}, {}, problems)
    assert problems == ['docs/drivers.yaml: jbd: transport, verified missing; every driver says what is verified']
    problems.clear()
    drivers._programs({n: entry for n in names if n != 'gps'}, {}, problems)
    assert len(problems) == 1 and 'gps: device' in problems[0]
