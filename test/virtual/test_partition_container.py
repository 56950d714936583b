"""Children at run time in a real container process object, made from a site file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bess.srv import AddChild, RemoveChild
from bess_core import site as site_module
from bess_core.container import Container


def make(runtime: Any, tmp_path: Path) -> Container:
    """A site whose devices are silent: what matters here is who runs."""
    file = tmp_path / 'site.yaml'
    file.write_text("""
site: {name: home}
nodes:
  bms: {type: jbd, address: "serial:/nonexistent", max_charge_current: 10.0, max_discharge_current: 10.0}
  inverter: {type: sunspec_inverter, address: "tcp://127.0.0.1:1", unit: 1, bms: bms, max_charge_power: 100.0,
             max_discharge_power: 100.0}
  battery: {type: unit, bms: bms, converter: inverter}
  split:
    type: partition
    source: battery
    children:
      house: {energy: 0.5, charge_power: 0.5, discharge_power: 0.5}
""")
    container = Container(runtime, site_module.load(file), 'home', tmp_path / 'state')
    container.make([s for s in container.site.nodes if s.name in ('split', 'house')])
    assert container.bring_up() == []
    return container


def test_a_container_serves_a_new_child_and_lets_it_go(runtime: Any, tmp_path: Path) -> None:
    from rclpy.node import Node

    container = make(runtime, tmp_path)
    peer = Node('admin', namespace='/home', start_parameter_services=False, enable_rosout=False)
    runtime.executor.add_node(peer)

    def call(kind: Any, name: str, request: Any) -> Any:
        client = peer.create_client(kind, name)
        assert runtime.spin_until(client.service_is_ready, 10.0)
        future = client.call_async(request)
        assert runtime.spin_until(future.done, 10.0)
        peer.destroy_client(client)
        return future.result()

    share = {'energy': 0.25, 'charge_power': 0.25, 'discharge_power': 0.25}
    try:
        answer = call(AddChild, '/home/split/add_child', AddChild.Request(name='car', **share))
        assert answer.accepted, answer.message
        assert runtime.spin_until(lambda: any(n.name == 'car' and n.is_active for n in container.nodes), 10.0)
        assert not call(AddChild, '/home/split/add_child', AddChild.Request(name='battery', **share)).accepted
        container.close()  # and as after a restart
        runtime.spin_until(lambda: False, 0.1)
        container = make(runtime, tmp_path)
        assert runtime.spin_until(lambda: any(n.name == 'car' and n.is_active for n in container.nodes), 10.0)
        answer = call(RemoveChild, '/home/split/remove_child', RemoveChild.Request(name='car', heir='unassigned'))
        assert answer.accepted, answer.message
        assert runtime.spin_until(lambda: all(n.name != 'car' for n in container.nodes), 10.0)
    finally:
        container.close()
        runtime.spin_until(lambda: False, 0.05)
        runtime.executor.remove_node(peer)
        peer.destroy_node()
