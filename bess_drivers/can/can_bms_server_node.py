"""A logical battery offered to an inverter that expects a CAN battery: sends the CAN-bms frame set.

The battery may be an aggregate or a partition: the inverter sees one low-voltage battery. What the
inverter then does is its own decision; this node tells it what the battery bears.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isnan, nan
from time import monotonic
from typing import Any, ClassVar

from bess.msg import BatteryStatus
from bess_core import qos
from bess_core.context import NodeContext
from bess_core.convert import battery_from_msg
from bess_core.node import BessNode
from bess_core.params import param
from bess_core.ticker import Tick
from bess_core.values import BatteryReading, Contactor, Identity, Quality, Severity, finite_or, quality_of
from bess_drivers.bus import Client, InlineBus, bus_for
from bess_drivers.can import can_bms_codec as codec
from bess_drivers.can.can_bms_codec import ALARM_PAIRS, Active, BatteryFrames
from bess_drivers.can.channel import CanLink, Mailbox, parse_address
from bess_drivers.device import Role

INTERNAL_FAILURE = next(c for c in ALARM_PAIRS.values() if c.id == 'internal_failure')


@dataclass(frozen=True, kw_only=True)
class CanBmsServerParams:
    """Offers a battery on a CAN bus to an inverter that expects the CAN-bms frame set."""

    battery: str = param(doc='battery that the inverter shall see', ref='battery')
    address: str = param('', doc='can:can0, can:slcan:/dev/ttyUSB0?bitrate=500000 or can:INTERFACE:CHANNEL')
    charge_voltage: float = param(56.0, 'V', 'charge voltage limit told to the inverter (DC)', low=1.0, high=1500.0)
    discharge_voltage: float = param(46.0, 'V', 'discharge voltage limit told to the inverter', low=0.0, high=1500.0)
    period: float = param(1.0, 's', 'how often all frames are sent', low=0.1, high=2.0)
    zero_limit: float = param(0.0, 'A', 'sent instead of a current limit of 0 (some inverters ignore 0)',
                              low=0.0, high=1.0)
    maker: str = param('BESS', doc='maker text of frame 0x35E, at most 8 characters; some inverters know only some')
    model: str = param('BESS', doc='product text of frame 0x382, at most 8 characters')
    max_age: float = param(5.0, 's', 'older values of the battery are STALE: limits are 0', low=0.1, high=600.0)
    invalid_after: float = param(30.0, 's', 'older ones are INVALID: nothing is sent, the inverter stops',
                                 low=0.5, high=3600.0)
    inverter_timeout: float = param(10.0, 's', 'fault when the inverter sends no 0x305 for so long; 0 = it sends none',
                                    low=0.0, high=3600.0)

    def __post_init__(self) -> None:
        if self.discharge_voltage >= self.charge_voltage:
            raise ValueError(f'discharge_voltage {self.discharge_voltage:g} V must be below charge_voltage '
                             f'{self.charge_voltage:g} V')


def frames_of(reading: BatteryReading, params: CanBmsServerParams) -> BatteryFrames | None:
    """What to tell the inverter; None = nothing, so that it stops by its own time-out.

    A charge limit of 0 comes with the present voltage as charge voltage limit, because some inverters
    take a charge voltage limit of 0 for an order to discharge.
    """
    if reading.quality == Quality.INVALID:
        return None
    sound = reading.quality == Quality.OK
    charge = finite_or(reading.max_charge_current, 0.0) if sound else 0.0
    discharge = finite_or(reading.max_discharge_current, 0.0) if sound else 0.0
    if reading.contactor in (Contactor.OPEN, Contactor.DISCHARGE_ONLY):
        charge = 0.0
    if reading.contactor in (Contactor.OPEN, Contactor.CHARGE_ONLY):
        discharge = 0.0
    voltage = finite_or(reading.voltage, params.charge_voltage)
    return BatteryFrames(
        charge_voltage=params.charge_voltage if charge > 0.0 else min(voltage, params.charge_voltage),
        charge_current=charge or params.zero_limit, discharge_current=discharge or params.zero_limit,
        discharge_voltage=params.discharge_voltage, soc=reading.soc, soh=reading.soh, voltage=reading.voltage,
        current=reading.current, temperature=reading.temperature,
        requests=codec.CHARGE_ENABLE * (charge > 0.0) | codec.DISCHARGE_ENABLE * (discharge > 0.0),
        capacity=reading.charge_full, cell_min=reading.cell_voltage_min, cell_max=reading.cell_voltage_max,
        temperature_min=reading.temperature_min, temperature_max=reading.temperature,
        modules=reading.members_usable, modules_offline=reading.members - reading.members_usable,
        energy_charged=reading.energy_charged, energy_discharged=reading.energy_discharged,
        maker=params.maker, model=params.model, active=[] if sound else [Active(INTERNAL_FAILURE, False)])


class Sender:
    """The frames of one battery on a bus; runs in the bus thread like a device that is polled."""

    role: ClassVar[Role] = Role.BATTERY

    def __init__(self, address: str) -> None:
        self.link = CanLink(parse_address(address), Mailbox([codec.KEEP_ALIVE]))
        self.frames: dict[int, bytes] = {}  # replaced as a whole by the executor thread
        self.opened = -inf  # monotonic s

    def open(self) -> None:
        """Join the bus. Raises `Disconnected`."""
        self.link.open()
        self.opened = monotonic()

    def close(self) -> None:
        """Leave the bus."""
        self.link.close()

    def identify(self) -> Identity:
        """Nobody is asked."""
        return Identity()

    def send(self) -> float:
        """Send all frames; returns s since the inverter was heard. Raises `Disconnected`."""
        self.link.check()
        for can_id, data in self.frames.items():
            self.link.send(can_id, data)
        heard = self.link.mailbox.get(codec.KEEP_ALIVE)
        return monotonic() - (heard.time if heard else self.opened)


class CanBmsServerNode(BessNode):
    """See `CanBmsServerParams`."""

    Params: ClassVar[type] = CanBmsServerParams

    def __init__(self, name: str, parameters: Any, ctx: NodeContext) -> None:
        super().__init__(name, parameters, ctx)
        self.reading = BatteryReading()
        self._bus: InlineBus | None = None
        self._client: Client | None = None
        self._sender: Sender | None = None
        self._subscription: Any = None
        self._silent = nan  # s since the inverter was heard

    @classmethod
    def check(cls, parameters: Any) -> str:
        """What is wrong with the address; '' = nothing."""
        try:
            parse_address(parameters.address)
        except ValueError as error:
            return str(error)
        return ''

    def on_bess_configure(self) -> None:
        """Listen to the battery; nothing is sent before activation."""
        p = self.params
        self._sender = Sender(p.address)
        self._subscription = self.create_subscription(
            BatteryStatus, self.ctx.topic(f'{p.battery}/status'), self._on_status, qos.MEASUREMENT)
        self.every(p.period, self._on_tick)

    def on_bess_activate(self) -> None:
        """Begin to send."""
        assert self._sender is not None
        self._encode()
        self._bus = bus_for(self.ctx.shared, self.params.address, self.clock, self.ctx.post)
        self._client = Client(
            name=self.name, device=self._sender, poll=self._sender.send, period=self.params.period,
            on_reading=self._on_sent, on_error=self._on_error, on_identity=lambda _: None)
        self._bus.add(self._client)

    def on_bess_deactivate(self) -> None:
        """Send nothing any more: the inverter stops."""
        if self._bus is not None and self._client is not None:
            self._bus.remove(self._client)
        self._bus = self._client = None
        self._silent = nan
        self.clear_fault('can_bms.not_sent')
        self.clear_fault('can_bms.inverter_lost')

    def on_bess_cleanup(self) -> None:
        """Let the battery go."""
        if self._subscription is not None:
            self.destroy_subscription(self._subscription)
        self._subscription = self._sender = None

    def _on_status(self, message: BatteryStatus) -> None:
        self.reading = battery_from_msg(message, self.clock)
        self._encode()

    def _on_tick(self, _: Tick) -> None:
        self._encode()
        self.progress += 1

    def _encode(self) -> None:
        p, reading = self.params, self.reading
        age = self.clock.now() - reading.time
        reading.quality = max(reading.quality, quality_of(age, p.max_age, p.invalid_after))
        frames = frames_of(reading, p)
        if self._sender is not None:
            self._sender.frames = {} if frames is None else codec.encode(frames)
        self.set_fault(self.is_active and frames is None, 'battery.stale', Severity.WARNING,
                       f'{p.battery} has no valid values: nothing is sent to the inverter')

    def _on_sent(self, silent: float) -> None:
        self._silent, limit = silent, self.params.inverter_timeout
        self.clear_fault('can_bms.not_sent')
        self.set_fault(0.0 < limit < silent, 'can_bms.inverter_lost', Severity.WARNING,
                       f'the inverter has not sent 0x305 for {silent:.0f} s')

    def _on_error(self, error: Any) -> None:
        self.log.warning('frames not sent', kind=error.kind, reason=str(error))
        self.raise_fault('can_bms.not_sent', Severity.ERROR, str(error))

    def diagnostics(self) -> dict[str, Any]:
        """Traffic, for people."""
        unheard = isnan(self._silent)
        return {'address': self.params.address, 'frames': len(self._sender.frames) if self._sender else 0,
                'inverter heard before [s]': '-' if unheard else f'{self._silent:.1f}'}
