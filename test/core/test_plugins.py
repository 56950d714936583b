"""Plug-ins: ours and those of others from entry points; what cannot be loaded is named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bess_core import plugins
from bess_core.node import BessNode
from bess_core.site import known_types, resolve_type


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A function that installs a distribution with these entry points, for one test."""
    def make(name: str, entry_points: str, module: str = '') -> None:
        folder = tmp_path / name
        info = folder / f'{name}-1.dist-info'
        info.mkdir(parents=True)
        (info / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: 1\n')
        (info / 'entry_points.txt').write_text(entry_points)
        (folder / f'module_of_{name}.py').write_text(module)
        monkeypatch.syspath_prepend(str(folder))
        plugins.forget()

    yield make
    monkeypatch.undo()
    plugins.forget()


def test_ours_are_registered_the_same_way() -> None:
    for name in known_types():
        cls = resolve_type(name)
        assert issubclass(cls, BessNode), name
        assert cls.Params
        assert cls.__doc__, name


def test_a_driver_and_a_node_of_another_package(install: Any) -> None:
    entries = '[bess.nodes]\nspecial = module_of_other:Special\n[bess.drivers]\ngadget = module_of_other:Gadget\n'
    install('other', entries, '''
from dataclasses import dataclass
from bess_core.node import BessNode
from bess_core.params import param
from bess_drivers.device import Role

@dataclass(frozen=True)
class P:
    address: str = param(doc='where')

class Special(BessNode):
    """Special."""
    Params = P
    role = 'special'

class Gadget:
    """Gadget."""
    Params = P
    role = Role.METER
''')
    assert {'special', 'gadget'} <= set(known_types())
    assert resolve_type('special').role == 'special'
    assert resolve_type('gadget').role == 'meter'
    assert resolve_type('gadget').DeviceClass.__name__ == 'Gadget'


def test_a_plug_in_is_loaded_once() -> None:
    assert plugins.load(plugins.DRIVERS, 'jbd') is plugins.load(plugins.DRIVERS, 'jbd')


def test_unknown_names_say_what_is_known() -> None:
    with pytest.raises(plugins.PluginError, match=r"unknown bess\.drivers 'nope'; known: .*jbd"):
        plugins.load(plugins.DRIVERS, 'nope')
    with pytest.raises(plugins.PluginError, match=r"unknown no\.such\.group 'x'; known: none"):
        plugins.load('no.such.group', 'x')
    with pytest.raises(plugins.PluginError, match=r"unknown type 'agregate'; did you mean 'aggregate'\?"):
        resolve_type('agregate')


def test_a_plug_in_that_does_not_import_is_named_with_the_reason(install: Any) -> None:
    install('bad', '[bess.drivers]\nboom = module_of_bad:X\nhole = module_of_bad2:X\n', 'raise RuntimeError("bad day")')
    with pytest.raises(plugins.PluginError, match=r"'boom' \(module_of_bad:X\) cannot be loaded: bad day"):
        plugins.load(plugins.DRIVERS, 'boom')
    with pytest.raises(plugins.PluginError, match="No module named 'module_of_bad2'"):
        resolve_type('hole')


def test_the_same_entry_twice_is_one_but_two_different_ones_are_refused(install: Any) -> None:
    install('again', '[bess.drivers]\njbd = bess_drivers.serial.jbd:JbdBattery\n')
    assert plugins.load(plugins.DRIVERS, 'jbd').__name__ == 'JbdBattery'
    install('rival', '[bess.drivers]\njbd = module_of_rival:Other\n', 'class Other: pass')
    with pytest.raises(plugins.PluginError, match=r"bess\.drivers 'jbd' is defined twice: "):
        plugins.available(plugins.DRIVERS)
