"""Several BMS with addresses on one RS485 line: one port, one worker, each its own values."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from bess.msg import BatteryStatus
from bess_core import qos
from bess_drivers.device import DeviceError, Disconnected, NoAnswer, ReadOnlyError
from bess_drivers.driver_node import node_type
from bess_drivers.serial import daly, jbd_up16s, jk, pylontech
from bess_drivers.serial.bms import SerialBms
from bess_drivers.serial.link import SerialPorts, parse_address
from bess_sim.device_faults import DeviceFaults
from bess_sim.devices.serial_bms import KINDS, SimulatedBms
from bess_sim.devices.serial_line import SerialLine
from bess_sim.plant_api import PackSample, StaticPlant

UNITS = (2, 3, 4)
#: kind -> driver, and its parameter for a unit
ADDRESSED: dict[str, tuple[type[SerialBms], Any]] = {
    'daly': (daly.DalyBms, lambda unit: {'host_address': 0x3F + unit}),
    'jk_pb': (jk.JkPbBms, lambda unit: {'unit': unit}),
    'pylontech': (pylontech.PylontechBms, lambda unit: {'unit': unit}),
    'seplos': (pylontech.SeplosBms, lambda unit: {'unit': unit}),
    'jbd_up16s': (jbd_up16s.Up16sBms, lambda unit: {'unit': unit}),
}


class Party:
    """Simulated BMS of one kind on one pty; a silent one gives the answers that it owes with the next question."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.plant, self.faults = kind, StaticPlant(), DeviceFaults()
        self.silent: set[int] = set()
        self.owed = b''  # comes before the next answer of another unit
        self.members: dict[int, SimulatedBms] = {}
        cls, _ = KINDS[kind]
        for unit in UNITS:
            self.plant.packs[f'p{unit}'] = PackSample(voltage=50.0 + unit, charge=10.0 * unit)
            self.members[unit] = cls(self.plant, f'p{unit}', self.faults, unit)
        self.line = SerialLine(folder / 'line', self.faults, self.answer)
        self.address = self.line.start()

    def answer(self, data: bytes) -> tuple[bytes | None, int]:
        """That of the member that is asked; what nobody takes is used up."""
        used = 0
        for unit, member in self.members.items():
            answer, taken = member.answer(data)
            if answer is not None:
                if unit in self.silent:
                    self.owed = answer
                    return b'', taken
                late, self.owed = self.owed, b''
                return late + answer, taken
            used = max(used, taken)
        return None, used

    def devices(self, **params: Any) -> dict[int, SerialBms]:
        """One driver per unit, as the nodes of one process make them."""
        cls, unit_of = ADDRESSED[self.kind]
        shared: dict[str, Any] = {}
        out = {}
        for unit in UNITS:
            own = cls.Params(address=self.address, timeout_s=0.2, late_s=1.0, tries=1, **unit_of(unit), **params)
            out[unit] = cls(own, link=cls.make_link(own, False, shared))
        return out


@pytest.fixture(params=sorted(ADDRESSED))
def party(request: Any, tmp_path: Path) -> Iterator[Party]:
    made = Party(request.param, tmp_path)
    yield made
    made.line.stop()
    made.line.check()


def voltages(devices: dict[int, SerialBms]) -> dict[int, float]:
    return {unit: round(device.read(0.0).voltage, 1) for unit, device in devices.items()}


def test_each_unit_of_a_line_shows_its_own_pack(party):
    devices = party.devices()
    for device in devices.values():
        device.open()
    assert voltages(devices) == {2: 52.0, 3: 53.0, 4: 54.0}
    devices[2].close()
    assert not any(devices[2].link._line.users & {id(devices[2].link)})
    with pytest.raises(Disconnected):
        devices[2].read(0.0)  # it let the line go; the others keep it
    assert voltages({u: d for u, d in devices.items() if u != 2}) == {3: 53.0, 4: 54.0}
    devices[3].close()
    devices[4].close()
    assert not devices[4].link.is_open


def test_a_silent_unit_costs_the_others_nothing_and_its_late_answer_is_nobodys(party):
    devices = party.devices()
    for device in devices.values():
        device.open()
    party.silent = {3}
    for _ in range(2):
        started = monotonic()
        with pytest.raises(NoAnswer):
            devices[3].read(0.0)
        began = monotonic()
        assert began - started < 0.9  # its time-out, twice at most
        assert devices[4].read(0.0).voltage == pytest.approx(54.0, abs=0.06)  # after unit 3's answer, late
        assert devices[2].read(0.0).voltage == pytest.approx(52.0, abs=0.06)
        assert monotonic() - began < 0.9  # not the late_s of the silent one
    party.silent = set()
    good, deadline = None, monotonic() + 10.0
    while good is None and monotonic() < deadline:
        try:
            good = devices[3].read(0.0)
        except DeviceError:
            continue
    assert good is not None and good.voltage == pytest.approx(53.0, abs=0.06)
    for device in devices.values():
        device.close()


def test_other_settings_on_a_line_in_use_are_refused():
    ports = SerialPorts()
    port = ports.take(parse_address('serial:/dev/x?baud=9600'))
    port.users.add(1)
    assert ports.take(parse_address('/dev/x')) is port  # the same line, the same settings
    with pytest.raises(ValueError, match='9600 8N1 and 19200 8E1'):
        ports.take(parse_address('serial:/dev/x?baud=19200&parity=E'))
    port.users.clear()
    assert ports.take(parse_address('serial:/dev/x?baud=19200')) is not port  # nobody uses it any more


def test_read_only_is_of_one_unit_and_not_of_the_line(tmp_path):
    made = Party('daly', tmp_path)
    cls, unit_of = ADDRESSED['daly']
    shared: dict[str, Any] = {}
    own = {u: cls.Params(address=made.address, timeout_s=0.3, late_s=0.3, **unit_of(u)) for u in (2, 3)}
    watched = cls(own[2], read_only=True, link=cls.make_link(own[2], True, shared))
    switched = cls(own[3], link=cls.make_link(own[3], False, shared))
    try:
        watched.open()
        switched.open()
        with pytest.raises(ReadOnlyError):
            watched.set_contactor(False, True)
        switched.set_contactor(False, True)
        assert made.plant.pack('p2').charge_switch and not made.plant.pack('p3').charge_switch
    finally:
        watched.close()
        switched.close()
        made.line.stop()


def test_nodes_of_three_packs_on_one_line(graph, tmp_path):
    made = Party('pylontech', tmp_path)
    nodes = {u: graph.add(node_type(pylontech.PylontechBms), f'bms{u}', {
        'address': made.address, 'unit': u, 'period': 0.2, 'timeout_s': 0.3, 'late_s': 0.3}) for u in UNITS}
    heard = {u: graph.listen(BatteryStatus, f'bms{u}/status', qos.MEASUREMENT) for u in UNITS}
    for node in nodes.values():
        graph.up(node)
    graph.wait(lambda: all(s and s[-1].quality == 0 for s in heard.values()), 'three good packs')
    assert {u: round(s[-1].voltage) for u, s in heard.items()} == {2: 52, 3: 53, 4: 54}
    made.faults.inject('disconnect')
    graph.wait(lambda: all(any(n.faults.get(f'comm.{k}') for k in ('disconnected', 'timeout')) for n in nodes.values()),
               'a fault each')
    made.faults.clear()
    counts = {u: len(s) for u, s in heard.items()}
    graph.wait(lambda: all(len(s) > counts[u] and s[-1].quality == 0 for u, s in heard.items()), 'all good again')
    made.line.stop()
