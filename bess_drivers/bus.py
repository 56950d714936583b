"""One worker thread per port: it owns the wire, so that no executor callback ever waits for a device.

Orders go before polls; polls run earliest-due first; what a device calls slow (`read_slow`) goes one
request at a time, device by device in turn, whenever neither an order nor a poll is due. A device
that fails is closed and tried again with capped backoff, and does not delay the others of its port
for longer than its own time-out. Results are handed to the executor thread. `InlineBus` does the same
work without a thread, for simulated time.
"""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from operator import attrgetter
from typing import Any

from bess_core.clock import Clock

from .device import Counters, Device, DeviceError, NoAnswer

Post = Callable[[Callable[[], None]], object]
BACKOFF_FIRST_S, BACKOFF_MAX_S = 0.25, 15.0
MAX_LOGGED = 100  # different places in the code
_log = logging.getLogger('bess.bus')
_logged: set[Any] = set()


@dataclass
class Order:
    """Something to do on the device; a newer order of the same name replaces an older one."""

    name: str
    run: Callable[[], None]
    done: Callable[[DeviceError | None], None]
    expires: float = inf  # s, site time; an order that waited longer (device away) is dropped
    attempts: int = 1  # how often it is tried
    wait: float = 0.0  # s between two attempts; the bus goes on meanwhile
    not_before: float = -inf  # s, site time of the next attempt


@dataclass
class Client:
    """One device on a bus. The callbacks run in the executor thread."""

    name: str
    device: Device
    poll: Callable[[], Any]  # one complete read, e.g. lambda: device.read(clock.now())
    period: float  # s
    on_reading: Callable[[Any], None]
    on_error: Callable[[DeviceError], None]
    on_identity: Callable[[Any], None]
    counters: Counters = field(default_factory=Counters)
    round_trip: float = 0.0  # s, of the last poll
    is_open: bool = False
    identified: bool = False
    backoff: float = BACKOFF_FIRST_S
    due: float = -inf  # s, site time of the next poll or attempt
    orders: dict[str, Order] = field(default_factory=dict)
    removed: bool = False
    slow: Callable[[float], float] | None = None  # `device.read_slow`: one request, returns when the next is due
    slow_due: float = -inf  # s, site time
    slow_turn: int = 0  # when it was its turn last

    def waiting(self) -> tuple[Order, ...]:
        """Orders at this moment; others may be added meanwhile from another thread."""
        return tuple(self.orders.values())

    def has_order(self, now: float) -> bool:
        """Whether an order can go out now."""
        return self.is_open and any(o.not_before <= now for o in self.waiting())


class InlineBus:
    """Work of a bus without a thread: `run_due` does everything that is due and returns when next to come."""

    def __init__(self, clock: Clock, post: Post) -> None:
        self._clock, self._post = clock, post
        self._clients: list[Client] = []
        self._turn = 0
        self._lock = threading.Lock()

    def add(self, client: Client) -> None:
        """Start polling a device."""
        with self._lock:
            client.due = self._clock.now()
            self._clients = [*self._clients, client]

    def remove(self, client: Client) -> None:
        """Stop polling; the device is closed (by the worker, or here when there is none)."""
        with self._lock:
            self._clients = [c for c in self._clients if c is not client]
            client.removed = True
        self._close(client)

    def order(self, client: Client, order: Order) -> None:
        """Queue an order; it replaces a waiting one of the same name (that one is silently superseded)."""
        with self._lock:
            client.orders[order.name] = order
        if client.is_open:
            self._run_orders(client)

    def poll_now(self, client: Client) -> None:
        """Poll a device as soon as possible, whatever its period."""
        with self._lock:
            client.due = min(client.due, self._clock.now())
        self.run_due()

    @property
    def empty(self) -> bool:
        """Whether no device is left."""
        return not self._clients

    def run_due(self) -> float:
        """Run waiting orders and due polls once; the site time at which the next poll is due."""
        for client in self._clients:
            if client.has_order(self._clock.now()):
                self._run_orders(client)
            elif client.orders:
                self._drop_expired(client)
        nxt = inf
        for client in sorted(self._clients, key=attrgetter('due')):
            now = self._clock.now()
            if any(c.has_order(now) for c in self._clients):
                return now  # orders first
            if client.due <= now + 1e-9:
                self._visit(client, now)
            nxt = min(nxt, client.due)
        waiting = [o.not_before for c in self._clients if c.is_open for o in c.waiting()]
        return min(nxt, *waiting, self._slow_one())

    def _slow_one(self) -> float:
        """One slow request of the device whose turn it is; the site time at which the next is due."""
        ready = [c for c in self._clients if c.slow is not None and c.is_open and c.identified]
        if not ready:
            return inf
        now = self._clock.now()
        due = [c for c in ready if c.slow_due <= now]
        # Polls that have become due meanwhile go first.
        if due and not any(c.due <= now for c in self._clients):
            client = min(due, key=lambda c: c.slow_turn)
            self._turn += 1
            client.slow_turn = self._turn
            assert client.slow is not None
            try:
                client.slow_due = max(client.slow(now), now)
            except DeviceError as error:
                client.slow_due = now + client.backoff  # a register that is refused must not be asked for all the time
                if error.kind in ('timeout', 'disconnected'):
                    self._failed(client, error)
                else:
                    client.counters.count(error)
                    self._hand_over(client, client.on_error, error)
            except Exception as error:  # noqa: BLE001 - as above
                client.slow_due = now + client.backoff
                self._failed(client, _defect(error))
        return min((c.slow_due for c in ready if c.is_open), default=inf)

    def _visit(self, client: Client, now: float) -> None:
        try:
            if not client.is_open:
                client.device.open()
                client.is_open = True
                if client.counters.ok or client.counters.errors:
                    client.counters.reconnects += 1
            if not client.identified:
                identity = client.device.identify()
                client.identified = True
                self._hand_over(client, client.on_identity, identity)
            client.counters.requests += 1
            started = self._clock.now()
            reading = client.poll()
            client.round_trip = self._clock.now() - started
            client.counters.round_trips.append(client.round_trip)
            client.counters.ok += 1
            client.backoff = BACKOFF_FIRST_S
            # Stay on the grid; a poll that took longer than its period starts a new grid.
            client.due = max(client.due + client.period, now) if client.due > -inf else now + client.period
            self._hand_over(client, client.on_reading, reading)
        except DeviceError as error:
            self._failed(client, error)
        except Exception as error:  # noqa: BLE001 - a defect of one driver must not end the bus for all others
            self._failed(client, _defect(error))

    def _run_orders(self, client: Client) -> None:
        now = self._clock.now()
        with self._lock:
            orders = [o for o in client.orders.values() if o.not_before <= now]
            client.orders = {n: o for n, o in client.orders.items() if o.not_before > now}
        for order in orders:
            if self._clock.now() > order.expires:
                self._expired(client, order)
                continue
            try:
                client.counters.writes += 1
                order.run()
                self._hand_over(client, order.done, None)
            except Exception as error:  # noqa: BLE001 - as above
                failure = error if isinstance(error, DeviceError) else _defect(error)
                if not self._again(client, order, failure):
                    self._hand_over(client, order.done, failure)
                self._failed(client, failure)

    def _again(self, client: Client, order: Order, failure: DeviceError) -> bool:
        """Keep a failed order for another attempt, unless a newer one of its name waits already."""
        if order.attempts <= 1 or failure.kind == 'read_only':
            return False
        order.attempts -= 1
        order.not_before = self._clock.now() + order.wait
        with self._lock:
            return client.orders.setdefault(order.name, order) is order

    def _drop_expired(self, client: Client) -> None:
        with self._lock:
            late = [o for o in client.orders.values() if self._clock.now() > o.expires]
            client.orders = {name: o for name, o in client.orders.items() if o not in late}
        for order in late:
            self._expired(client, order)

    def _expired(self, client: Client, order: Order) -> None:
        # Its lease is over: carried out now, it would be an order that nobody gives any more.
        self._hand_over(client, order.done, NoAnswer(f'{order.name}: the device was away for too long'))

    def _failed(self, client: Client, error: DeviceError) -> None:
        client.counters.count(error)
        # An answer that is merely wrong does not cost the connection; silence and loss do.
        if error.kind in ('timeout', 'disconnected'):
            self._close(client)
            client.identified = client.identified and error.kind == 'timeout'
            client.due = self._clock.now() + client.backoff
            client.backoff = min(client.backoff * 2, BACKOFF_MAX_S)
        else:
            client.due = self._clock.now() + client.period
        self._hand_over(client, client.on_error, error)

    def _hand_over(self, client: Client, fn: Callable[[Any], None], value: Any) -> None:
        def run() -> None:
            if not client.removed:
                fn(value)

        self._post(run)

    @staticmethod
    def _close(client: Client) -> None:
        client.is_open = False
        try:
            client.device.close()
        except Exception as error:  # noqa: BLE001 - as above
            client.counters.count(_defect(error))


def _defect(error: Exception) -> DeviceError:
    """What a driver must not raise, as something that a device failed at. Its place in the code is logged once."""
    place = traceback.extract_tb(error.__traceback__)[-1] if error.__traceback__ else None
    if (place and (place.filename, place.lineno)) not in _logged and len(_logged) < MAX_LOGGED:
        _logged.add(place and (place.filename, place.lineno))
        _log.error('defect of a driver', exc_info=error)
    failure = DeviceError(f'{type(error).__name__}: {error}')
    failure.__cause__ = error
    return failure


class Bus(InlineBus):
    """A bus with a worker thread of its own."""

    def __init__(self, name: str, clock: Clock, post: Post) -> None:
        super().__init__(clock, post)
        self._wake = threading.Condition(self._lock)
        self._stopping = False
        self._worker = threading.Thread(target=self._run, name=f'bus {name}', daemon=True)
        self._worker.start()

    def add(self, client: Client) -> None:
        """See `InlineBus`."""
        super().add(client)
        self._notify()

    def order(self, client: Client, order: Order) -> None:
        """See `InlineBus`."""
        with self._wake:
            client.orders[order.name] = order
            self._wake.notify()

    def poll_now(self, client: Client) -> None:
        """See `InlineBus`."""
        with self._wake:
            client.due = min(client.due, self._clock.now())
            self._wake.notify()

    def remove(self, client: Client) -> None:
        """Stop polling; orders that wait are still sent, then the device is closed."""
        with self._wake:
            client.removed = True
            self._wake.notify()

    def stop(self, timeout_s: float = 3.0) -> None:
        """Send waiting orders, close all devices, end the thread."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._worker.join(timeout_s)

    def _notify(self) -> None:
        with self._wake:
            self._wake.notify()

    def _run(self) -> None:
        while True:
            nxt = self.run_due()
            leaving = [c for c in self._clients if c.removed or self._stopping]
            for client in leaving:
                for order in client.waiting():
                    order.not_before = -inf
                if client.orders and client.is_open:
                    self._run_orders(client)
                self._close(client)
            with self._wake:
                self._clients = [c for c in self._clients if c not in leaving]
                if self._stopping and not self._clients:
                    return
                now = self._clock.now()
                busy = self._stopping or any(c.has_order(now) or c.removed for c in self._clients)
                if not busy and (wait := min(nxt - now, 1.0)) > 0:
                    self._wake.wait(wait)


def bus_for(shared: dict[str, Any], address: str, clock: Clock, post: Post) -> InlineBus:
    """The bus of a port, one per process and address; on simulated time an `InlineBus`."""
    buses: dict[str, InlineBus] = shared.setdefault('buses', {})
    port = address.split('?', maxsplit=1)[0].removeprefix('serial:')
    if port not in buses:
        buses[port] = InlineBus(clock, post) if clock.simulated else Bus(port, clock, post)
    return buses[port]
