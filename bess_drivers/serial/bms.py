"""What all serial BMS drivers share: the port, repeated questions, limits of the pack."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from bess_core.params import param
from bess_core.values import BatteryReading, Identity
from bess_drivers.device import BadChecksum, BadFrame, Refused, Role
from bess_drivers.serial.bms_reading import PackParams, Snapshot, reading_from
from bess_drivers.serial.link import Extract, Incomplete, SerialLink, SerialPorts

T = TypeVar('T')


@dataclass(frozen=True)
class SerialBmsParams(PackParams):
    """Settings of one BMS on a serial line."""

    address: str = param('', doc='serial port: serial:<path>?baud=9600&parity=N&stopbits=1')
    timeout_s: float = param(0.6, 's', 'time for one answer', low=0.05, high=10.0)
    late_s: float = param(1.5, 's', 'after silence, wait so long for a late answer', low=0.1, high=60.0)
    tries: int = param(2, doc='how often a question is asked whose answer came damaged', low=1, high=5)


class SerialBms:
    """A BMS that answers questions (`BatteryDevice`). A driver fills in `identify` and `poll`."""

    Params: ClassVar[type] = SerialBmsParams
    role: ClassVar[Role] = Role.BATTERY
    prefix: ClassVar[str] = 'bms'  # first part of its fault ids
    idle: ClassVar[float] = 0.1  # A, smaller currents count as none
    max_frame: ClassVar[int] = 512  # bytes of the longest answer, with what may stand before it

    addressed: ClassVar[bool] = False  # its answers name the unit

    def __init__(self, params: SerialBmsParams, read_only: bool = False, *, link: SerialLink | None = None) -> None:
        self.params = params
        self.link = link or self.make_link(params, read_only)
        self.repeated = 0  # questions asked again because an answer came damaged

    @classmethod
    def make_link(cls, params: SerialBmsParams, read_only: bool, shared: dict[str, Any] | None = None) -> SerialLink:
        """Its line; with `shared` (of the process) one that other units use too. Raises ValueError."""
        ports = None if shared is None else shared.setdefault('serial_ports', SerialPorts())
        return SerialLink(params.address, timeout_s=params.timeout_s, late_s=params.late_s, max_frame=cls.max_frame,
                          read_only=read_only, ports=ports, addressed=cls.addressed)

    def open(self) -> None:
        """Open the port. Raises `Disconnected`."""
        self.link.open()

    def close(self) -> None:
        """Close the port; never raises."""
        self.link.close()

    def identify(self) -> Identity:
        """Who answers. Raises `DeviceError` when it is no BMS of this kind."""
        raise NotImplementedError(f'{type(self).__name__} does not identify')

    def poll(self) -> Snapshot:
        """One complete poll. Raises `DeviceError`."""
        raise NotImplementedError(f'{type(self).__name__} does not poll')

    def read(self, now: float) -> BatteryReading:
        """One poll; `now` (s, site clock) becomes its time. Raises `DeviceError`."""
        return reading_from(self.poll(), self.params, self.prefix, now, self.idle)

    def set_contactor(self, charge: bool, discharge: bool) -> None:
        """Raises `Refused`: not every BMS has an order for it."""
        raise Refused(f'{type(self).__name__} has no published order to switch its paths')

    def ask(self, request: bytes, extract: Extract, parse: Callable[[bytes], T], *, write: bool = False) -> T:
        """Send, find the answer, parse it; a damaged answer is asked for again. Raises `DeviceError`."""
        for left in range(self.params.tries - 1, -1, -1):
            try:
                return parse(self.link.transact(request, extract, write=write))
            except (BadChecksum, BadFrame, Incomplete):
                if not left:
                    raise
                self.repeated += 1
        raise AssertionError('tries is at least 1')
