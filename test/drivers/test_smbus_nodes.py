"""Node of the BQ40Z50: administration over the graph, unplugging, read_only."""

from __future__ import annotations

from typing import Any

from test_bq40z50 import bus, key_file  # noqa: F401 - fixtures

from bess.msg import BatteryStatus
from bess.srv import DeviceOperation
from bess_core import qos
from bess_drivers.driver_node import node_type
from bess_drivers.smbus.bq40z50 import Bq40z50Battery


def test_node_operates_and_survives_unplugging(graph, bus, key_file):  # noqa: F811
    node = graph.add(node_type(Bq40z50Battery), 'bms', {
        'address': bus.address, 'period': 0.1, 'key_file': key_file, 'quiet_s': 0.1, 'errors_to_fault': 1})
    graph.up(node)
    statuses = graph.listen(BatteryStatus, 'bms/status', qos.MEASUREMENT)
    graph.wait(lambda: statuses and statuses[-1].quality == 0, 'a good status')

    def operate(operation: str, *arguments: str) -> Any:
        return graph.call(DeviceOperation, 'bms/operate', DeviceOperation.Request(
            operation=operation, arguments=list(arguments)))

    answer = operate('write_flash', '0x4888', '2602')
    assert answer.accepted and list(answer.values) == ['0x4888=2602'] and answer.message == 'done'
    answer = operate('melt')
    assert not answer.accepted and 'there is: info' in answer.message
    bus.plugged = False
    graph.wait(lambda: node.faults.get('comm.disconnected'), 'a fault')
    bus.plugged = True
    count = len(statuses)
    graph.wait(lambda: len(statuses) > count and statuses[-1].quality == 0, 'good again')
    read_only = graph.add(node_type(Bq40z50Battery), 'other', {'address': bus.address, 'read_only': True})
    graph.up(read_only)
    answer = graph.call(DeviceOperation, 'other/operate', DeviceOperation.Request(operation='info'))
    assert (answer.accepted, answer.message) == (False, 'read_only is set')
