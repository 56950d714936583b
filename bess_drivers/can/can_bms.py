"""Batteries that speak the CAN-bms frame set: Victron, SMA, Pylontech, BYD and those that imitate them."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isnan, nan
from time import monotonic
from typing import ClassVar

from bess_core.params import param
from bess_core.values import Alarm, BatteryReading, Contactor, Identity, Mode, Quality, Severity, finite_or
from bess_drivers.can import can_bms_codec as codec
from bess_drivers.can.can_bms_codec import BatteryFrames
from bess_drivers.can.channel import CanLink, Mailbox, parse_address
from bess_drivers.device import Refused, Role, Silent

REQUIRED = (codec.LIMITS, codec.STATE, codec.MEASURED)
KEEP_ALIVE_S = 1.0
IDLE_A = 0.15  # the current has a resolution of 0.1 A


@dataclass(frozen=True)
class CanBmsParams:
    """Settings of one battery with the CAN-bms frame set."""

    address: str = param('', doc='can:can0, can:slcan:/dev/ttyUSB0?bitrate=500000 or can:INTERFACE:CHANNEL')
    timeout_s: float = param(3.0, 's', 'a frame that is older is missing; inverters stop after about 3 s',
                             low=0.2, high=60.0)
    keep_alive: bool = param(True, doc='send 0x305 each second, as the inverter does that the battery expects')
    capacity: float = param(0.0, 'Ah', 'when full; 0 = what the battery says', low=0.0, high=1e5)
    nominal_voltage: float = param(0.0, 'V', 'turns Ah into Wh; 0 = the measured voltage', low=0.0, high=1500.0)
    charge_voltage_taper: float = param(0.3, 'V', 'over which the charge current falls to 0 before the charge voltage '
                                                  'limit', low=0.0, high=20.0)
    cell_extremes: bool = param(True, doc='0x373 holds live values (some senders put limits there)')


def alarms_of(frames: BatteryFrames) -> tuple[Alarm, ...]:
    """Each alarm, warning and request of the battery as a named fault."""
    found = [
        Alarm(f'can_bms.{a.condition.id}_warning', Severity.WARNING, a.condition.text) if a.warning else
        Alarm(f'can_bms.{a.condition.id}', a.condition.severity, a.condition.text)
        for a in frames.active
    ]
    if frames.unknown:
        found.append(Alarm('can_bms.unknown_alarm', Severity.WARNING, 'alarm bits without a published meaning: '
                           + ', '.join(frames.unknown)))
    requests = frames.requests or 0
    if requests & (codec.FORCE_CHARGE_1 | codec.FORCE_CHARGE_2):
        level = 2 if requests & codec.FORCE_CHARGE_2 else 1
        found.append(Alarm('can_bms.force_charge', Severity.WARNING, f'the battery asks to be charged (level {level})'))
    if requests & codec.FULL_CHARGE:
        found.append(Alarm('can_bms.full_charge_request', Severity.WARNING,
                           'the battery asks for a full charge to calibrate its state of charge'))
    if frames.modules_offline:
        found.append(Alarm('can_bms.modules_offline', Severity.ERROR,
                           f'{frames.modules_offline} modules offline, {frames.modules} online'))
    return tuple(found)


def current_limits(frames: BatteryFrames, taper: float) -> tuple[float, float, list[str]]:
    """Allowed charge and discharge current (A, magnitudes) and one line per limit that binds."""
    charge, discharge, reasons = frames.charge_current, frames.discharge_current, []
    if charge == 0.0:
        reasons.append('bms: charge current limit is 0')
    if discharge == 0.0:
        reasons.append('bms: discharge current limit is 0')
    room = frames.charge_voltage - frames.voltage
    if frames.charge_voltage > 0.0 and room < taper:
        share = max(0.0, room / taper) if taper > 0.0 else 0.0
        charge *= share
        reasons.append(f'bms: {frames.voltage:.2f} V near the charge voltage limit {frames.charge_voltage:.1f} V, '
                       f'charging at {share:.0%}')
    if frames.voltage <= finite_or(frames.discharge_voltage, -inf):
        discharge = 0.0
        reasons.append(f'bms: {frames.voltage:.2f} V at the discharge voltage limit {frames.discharge_voltage:.1f} V')
    for condition, warning in frames.active:
        if warning:
            continue
        charge = 0.0 if condition.blocks_charge else charge
        discharge = 0.0 if condition.blocks_discharge else discharge
        if condition.blocks_charge or condition.blocks_discharge:
            reasons.append(f'bms: {condition.text}')
    requests = frames.requests
    if requests is not None:
        if not requests & codec.CHARGE_ENABLE:
            charge = 0.0
            reasons.append('bms: charging is not enabled')
        if not requests & codec.DISCHARGE_ENABLE:
            discharge = 0.0
            reasons.append('bms: discharging is not enabled')
        if requests & (codec.FORCE_CHARGE_1 | codec.FORCE_CHARGE_2):
            discharge = 0.0
            reasons.append('bms: asks to be charged')
    return charge, discharge, reasons


def contactor_of(requests: int | None) -> Contactor:
    """Charge and discharge enable bits as one contactor."""
    if requests is None:
        return Contactor.UNKNOWN
    ways = bool(requests & codec.CHARGE_ENABLE), bool(requests & codec.DISCHARGE_ENABLE)
    return {(True, True): Contactor.CLOSED, (True, False): Contactor.CHARGE_ONLY,
            (False, True): Contactor.DISCHARGE_ONLY, (False, False): Contactor.OPEN}[ways]


def mode_of(current: float, idle: float, failed: bool) -> Mode:
    """Operating mode from the current (A, + = charging); below `idle` (A) nothing flows."""
    if failed:
        return Mode.FAULT
    if isnan(current):
        return Mode.UNKNOWN
    return Mode.IDLE if abs(current) < idle else Mode.CHARGING if current > 0 else Mode.DISCHARGING


def reading_from(frames: BatteryFrames, params: CanBmsParams, time: float, newest: float) -> BatteryReading:
    """A complete reading; `time` and `newest` in s (site clock), of the oldest and newest frame."""
    charge_limit, discharge_limit, reasons = current_limits(frames, params.charge_voltage_taper)
    alarms = alarms_of(frames)
    full = params.capacity or frames.capacity
    volts = params.nominal_voltage or frames.voltage
    hot, cold = finite_or(frames.temperature_max, frames.temperature), finite_or(frames.temperature_min, nan)
    extremes = params.cell_extremes
    return BatteryReading(
        time=time, newest=newest, quality=Quality.OK,
        mode=mode_of(frames.current, IDLE_A, any(a.severity is Severity.CRITICAL for a in alarms)),
        contactor=contactor_of(frames.requests),
        voltage=frames.voltage, current=frames.current, power=frames.voltage * frames.current,
        charge=full * frames.soc, charge_full=full, energy=full * frames.soc * volts, energy_full=full * volts,
        max_charge_current=charge_limit, max_discharge_current=discharge_limit,
        max_charge_power=charge_limit * frames.voltage, max_discharge_power=discharge_limit * frames.voltage,
        soc=frames.soc, soh=frames.soh, temperature=hot, temperature_min=finite_or(cold, frames.temperature),
        cell_voltage_min=frames.cell_min if extremes else nan, cell_voltage_max=frames.cell_max if extremes else nan,
        energy_charged=frames.energy_charged, energy_discharged=frames.energy_discharged,
        members=max(1, frames.modules + frames.modules_offline), members_usable=max(1, frames.modules),
        limit_reasons=reasons, alarms=alarms)


class CanBmsBattery:
    """One battery with the CAN-bms frame set (`BatteryDevice`)."""

    Params: ClassVar[type] = CanBmsParams
    role: ClassVar[Role] = Role.BATTERY

    def __init__(self, params: CanBmsParams, read_only: bool = False) -> None:
        self.params = params
        self.link = CanLink(parse_address(params.address), Mailbox(codec.IDS), read_only)
        self._kept_alive = -inf
        self._listening = 0.0  # monotonic s since when

    def open(self) -> None:
        """Join the bus. Raises `Disconnected`."""
        self.link.open()
        self._listening, self._kept_alive = monotonic(), -inf

    def close(self) -> None:
        """Leave the bus."""
        self.link.close()

    def ages(self, now: float) -> dict[str, float]:
        """Seconds since each frame came."""
        return self.link.mailbox.ages()

    def identify(self) -> Identity:
        """Who talks. Raises `Silent` while the limits, state and measurements were not all heard."""
        self._keep_alive()
        frames, _, _ = self._frames()
        said = codec.decode(frames)
        return Identity(said.maker or 'CAN-bms', said.model, said.serial, said.version)

    def read(self, now: float) -> BatteryReading:
        """What the battery said last. Raises `DeviceError`; `Silent` when a needed frame is too old."""
        self.link.check()
        self._keep_alive()
        frames, oldest, newest = self._frames()
        current = monotonic()
        return reading_from(codec.decode(frames), self.params, now - (current - oldest), now - (current - newest))

    def set_contactor(self, charge: bool, discharge: bool) -> None:
        """This frame set has no order for it. Raises `Refused`."""
        raise Refused('the CAN-bms frame set has no order to open or close contactors')

    def _keep_alive(self) -> None:
        now = monotonic()
        if self.params.keep_alive and not self.link.read_only and now - self._kept_alive >= KEEP_ALIVE_S:
            self._kept_alive = now
            self.link.send(codec.KEEP_ALIVE, bytes(8))

    def _frames(self) -> tuple[dict[int, bytes], float, float]:
        """Data by id, and when the oldest and newest needed frame came (monotonic s)."""
        now, fresh = monotonic(), {}
        for (can_id, _), frame in self.link.mailbox.frames.copy().items():
            if now - frame.time <= self.params.timeout_s:
                fresh[can_id] = frame
        missing = [f'{can_id:#x}' for can_id in REQUIRED if can_id not in fresh]
        if missing:
            since = min(self.params.timeout_s, now - self._listening)
            raise Silent(f'no frame {", ".join(missing)} for {since:.1f} s')
        times = [fresh[can_id].time for can_id in REQUIRED]
        return {can_id: frame.data for can_id, frame in fresh.items()}, min(times), max(times)
