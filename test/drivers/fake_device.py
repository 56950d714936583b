"""Devices in memory that do what tests tell them; honest implementations of the `Device` protocol."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from math import isnan, nan
from typing import Any, ClassVar

from bess_core.params import param
from bess_core.values import BatteryReading, Contactor, ConverterReading, ConverterState, Identity, MeterReading, Mode
from bess_drivers.device import BadValue, Disconnected, Role


@dataclass(frozen=True)
class FakeParams:
    """Where the world of this device is: a key of `WORLD`."""

    address: str = param(doc='key')


class World:
    """What a device meets: failures on demand, and what was done to it."""

    def __init__(self) -> None:
        self.fail: Callable[[], Exception] | None = None  # raised by everything that asks the device
        self.fail_writes: Callable[[], Exception] | None = None
        self.fail_open: Callable[[], Exception] | None = None
        self.hold = threading.Event()  # clear = the device does not answer until it is set
        self.hold.set()
        self.waiting = threading.Event()  # a call waits for `hold`
        self.calls: list[tuple[str, float]] = []
        self.writes: list[tuple[float, float, float]] = []  # W, var, s
        self.stops = 0
        self.contactor: list[tuple[bool, bool]] = []
        self.threads: set[str] = set()
        self.now: Callable[[], float] = lambda: 0.0
        self.power = 0.0  # W, what flows
        self.follows = True  # the power flows as ordered
        self.reads = 0
        self.still = False  # measured values do not move
        self.change: Callable[[Any], None] = lambda _: None  # last touch to each reading

    def call(self, name: str) -> None:
        self.threads.add(threading.current_thread().name)
        if not self.hold.is_set():
            self.waiting.set()
            assert self.hold.wait(20.0)
        self.calls.append((name, self.now()))

    def count(self, name: str) -> int:
        return sum(1 for n, _ in list(self.calls) if n == name)


WORLD: dict[str, World] = {}


class FakeDevice:
    """Common part of the three roles."""

    Params: ClassVar[type] = FakeParams

    def __init__(self, params: FakeParams, read_only: bool = False) -> None:
        self.world = WORLD[params.address]
        self.read_only = read_only
        self._open = False

    def open(self) -> None:
        self.world.call('open')
        if self.world.fail_open is not None:
            raise self.world.fail_open()
        self._open = True

    def close(self) -> None:
        self._open = False
        self.world.calls.append(('close', self.world.now()))

    def identify(self) -> Identity:
        self._ask('identify')
        return Identity('maker', 'model', 'serial', '1.0')

    def _ask(self, name: str) -> None:
        self.world.call(name)
        if not self._open:
            raise Disconnected('not open')
        if self.world.fail is not None:
            raise self.world.fail()

    def _write(self, name: str) -> None:
        assert not self.read_only, 'a write reached a read-only device'
        self._ask(name)
        if self.world.fail_writes is not None:
            raise self.world.fail_writes()

    def _read(self, reading: Any) -> Any:
        self._ask('read')
        if not self.world.still:
            self.world.reads += 1
        self.world.change(reading)
        return reading


class FakeConverter(FakeDevice):
    """A converter of 5 kW that follows its orders."""

    role: ClassVar[Role] = Role.CONVERTER

    def read(self, now: float) -> ConverterReading:
        w = self.world
        return self._read(ConverterReading(
            time=now, state=ConverterState.RUNNING, active_power=w.power, frequency=50.0 + w.reads % 7 * 1e-3,
            voltage=(230.0, nan, nan), max_charge_power=5000.0, max_discharge_power=5000.0,
            max_apparent_power=5000.0))

    def write_power(self, power: float, reactive_power: float, lease: float) -> None:
        self._write('write')
        if isnan(power) or lease <= 0.0:
            raise BadValue(f'{power} W for {lease} s')
        self.world.writes.append((power, reactive_power, lease))
        if self.world.follows:
            self.world.power = power

    def stop(self) -> None:
        self._write('stop')
        self.world.stops += 1
        if self.world.follows:
            self.world.power = 0.0


class FakeBattery(FakeDevice):
    """A battery of 50 V."""

    role: ClassVar[Role] = Role.BATTERY

    def read(self, now: float) -> BatteryReading:
        w = self.world
        return self._read(BatteryReading(
            time=now, newest=now, mode=Mode.IDLE, contactor=Contactor.CLOSED, voltage=50.0 + w.reads % 7 * 1e-3,
            current=w.power / 50.0, power=w.power, soc=0.5, charge=50.0, charge_full=100.0, energy=2500.0,
            energy_full=5000.0, max_charge_current=50.0, max_discharge_current=50.0, max_charge_power=2500.0,
            max_discharge_power=2500.0, cells=(3.3, 3.31), temperatures=(20.0,)))

    def set_contactor(self, charge: bool, discharge: bool) -> None:
        self._write('contactor')
        self.world.contactor.append((charge, discharge))


class FakeMeter(FakeDevice):
    """A meter."""

    role: ClassVar[Role] = Role.METER

    def read(self, now: float) -> MeterReading:
        return self._read(MeterReading(
            time=now, active_power=self.world.power, frequency=50.0 + self.world.reads % 7 * 1e-3,
            voltage=(230.0, 231.0, 232.0)))
