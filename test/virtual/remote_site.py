"""Two sites in one process: an owner with a battery, and others that reach it through a breakable wire."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from bess.msg import BatteryStatus, PowerSetpoint
from bess.srv import CancelSchedule, GetStatus, ListSchedule, ScheduleSetPower
from bess_core import certs, qos
from bess_core.context import NodeContext
from bess_core.convert import battery_to_msg, stamp, wall_stamp
from bess_core.values import BatteryReading, Contactor, Mode, Quality
from bess_virtual.aggregate_node import AggregateNode
from bess_virtual.remote_node import RemoteNode
from bess_virtual.remote_server_node import RemoteServerNode

TICK = {'period': 0.05, 'max_age': 0.6, 'invalid_after': 1.5}
CELL = BatteryReading(
    quality=Quality.OK, mode=Mode.IDLE, contactor=Contactor.CLOSED, voltage=50.0, current=0.0, power=0.0,
    charge=50.0, charge_full=100.0, energy=2500.0, energy_full=5000.0, max_charge_current=40.0,
    max_discharge_current=40.0, max_charge_power=2000.0, max_discharge_power=2000.0, soc=0.5, soh=1.0)


def free_port() -> int:
    """A port of the system's choice."""
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return int(s.getsockname()[1])


def make_pki(folder: Path, *clients: str) -> Path:
    """Authority, server and clients."""
    certs.init(folder)
    certs.issue(folder, 'owner', 'server', hosts=['localhost', '127.0.0.1'])
    for client in clients:
        certs.issue(folder, client, 'client')
    return folder


class Wire:
    """A TCP relay that can be cut, or made to lose what goes back."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(('127.0.0.1', 0))
        self.port = int(self._listener.getsockname()[1])
        self.up, self.back = True, True
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._closed = False
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while not self._closed:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                if not self.up:
                    raise OSError('cut')
                far = socket.create_connection(('127.0.0.1', self._target))
            except OSError:
                near.close()
                continue
            self._pairs.append((near, far))
            threading.Thread(target=self._pump, args=(near, far, False), daemon=True).start()
            threading.Thread(target=self._pump, args=(far, near, True), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, back: bool) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if not back or self.back:
                    sink.sendall(data)
        self._end(source, sink)

    @staticmethod
    def _end(*sockets: socket.socket) -> None:
        for s in sockets:
            with suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)
            s.close()

    def cut(self) -> None:
        """Break all connections and take no new ones."""
        self.up = False
        for pair in self._pairs:
            self._end(*pair)
        self._pairs.clear()

    def mend(self) -> None:
        """Take connections again."""
        self.up = self.back = True

    def close(self) -> None:
        """For good."""
        self._closed = True
        self.cut()
        self._end(self._listener)


class Cell:
    """Hardware below the owner's battery."""

    def __init__(self, graph: Any, name: str) -> None:
        self.graph, self.name, self.reading = graph, name, CELL
        self._status = graph.peer.create_publisher(BatteryStatus, f'{name}/status', qos.MEASUREMENT)
        self.orders: list[PowerSetpoint] = []
        graph.peer.create_subscription(PowerSetpoint, f'{name}/setpoint', self._on_setpoint, qos.SETPOINT)
        graph.ticker.every(0.04, lambda _: self.publish())

    def _on_setpoint(self, message: PowerSetpoint) -> None:
        self.orders.append(message)
        self.reading = replace(self.reading, power=message.power)

    def publish(self) -> None:
        now = self.graph.clock.now()
        self._status.publish(battery_to_msg(replace(self.reading, time=now, newest=now), self.graph.clock, self.name))

    @property
    def power(self) -> float:
        return self.orders[-1].power if self.orders else 0.0


class Owner:
    """Site /site with battery `house`, offered to clients."""

    def __init__(self, graph: Any, pki: Path, rights: dict[str, Any], **params: Any) -> None:
        self.graph, self.pki, self.rights, self.params = graph, pki, rights, params
        self.cell = Cell(graph, 'cell')
        self.battery = graph.add(AggregateNode, 'house', {'members': ['cell'], **TICK})
        graph.up(self.battery)
        graph.wait(lambda: self.battery.reading.quality == Quality.OK, 'a good status of the owner')
        self.port = free_port()
        self.serve()

    def serve(self) -> None:
        """Start the server."""
        self.server = self.graph.add(RemoteServerNode, 'gate', {
            'endpoint': f'127.0.0.1:{self.port}', 'authority': str(self.pki / 'ca.pem'),
            'certificate': str(self.pki / 'owner.pem'), 'batteries': ['house'], 'clients': self.rights, **self.params})
        self.graph.up(self.server)

    def list(self) -> Any:
        return self.graph.call(ListSchedule, 'house/list_schedule').entries


class Client:
    """Another site with a remote battery."""

    def __init__(self, graph: Any, site: str, **params: Any) -> None:
        self.graph, self.site = graph, site
        state = graph.ctx.state_dir / site
        self.ctx = NodeContext(f'/{site}', state, graph.clock, graph.ticker, graph.ctx.post, heartbeat_s=0.0,
                               diagnostics_s=0.0)
        self.node = graph.add(RemoteNode, 'far', {'poll': 0.05, 'request_timeout': 4.0, **TICK, **params}, self.ctx)
        graph.up(self.node)
        self._publisher: Any = None
        self._sequence = 0

    @classmethod
    def over_tls(cls, graph: Any, pki: Path, name: str, port: int, authority: Path | None = None,
                 **params: Any) -> Client:
        return cls(graph, f'site_{name}', endpoint=f'localhost:{port}', realm='site', battery='house',
                   authority=str((authority or pki) / 'ca.pem'), certificate=str(pki / f'{name}.pem'), **params)

    def wait_up(self) -> Client:
        self.graph.wait(lambda: self.node.reading.quality == Quality.OK, lambda: f'remote: {self.node.reading}')
        return self

    def ask(self, power: float, lease: float = 0.5) -> None:
        if self._publisher is None:
            self._publisher = self.graph.publisher(PowerSetpoint, f'/{self.site}/far/setpoint', qos.SETPOINT)
        self._sequence += 1
        message = PowerSetpoint(power=power, lease=lease, source='manager', sequence=self._sequence)
        message.reactive_power = float('nan')
        message.header.stamp = stamp(self.graph.clock, self.graph.clock.now())
        self._publisher.publish(message)

    def request(self, power: float, start: float, end: float, **fields: Any) -> ScheduleSetPower.Request:
        wall = self.graph.clock.wall()
        return ScheduleSetPower.Request(power=power, start=wall_stamp(wall + start), end=wall_stamp(wall + end),
                                        **fields)

    def schedule(self, power: float, start: float, end: float, **fields: Any) -> Any:
        return self.graph.call(ScheduleSetPower, f'/{self.site}/far/schedule_set_power',
                               self.request(power, start, end, **fields))

    def cancel(self, event_id: int) -> Any:
        return self.graph.call(CancelSchedule, f'/{self.site}/far/cancel_schedule',
                               CancelSchedule.Request(event_id=event_id))

    def list(self) -> Any:
        return self.graph.call(ListSchedule, f'/{self.site}/far/list_schedule').entries

    def status(self) -> Any:
        return self.graph.call(GetStatus, f'/{self.site}/far/get_status')
