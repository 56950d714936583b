"""Node of a GPS receiver: position (`~/fix`), its time (`~/time_reference`), difference of the clocks."""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan, nan
from typing import Any, ClassVar

from sensor_msgs.msg import NavSatFix, NavSatStatus, TimeReference

from bess_core import qos
from bess_core.convert import set_stamp, wall_stamp
from bess_core.params import param
from bess_core.values import Quality, Severity
from bess_drivers.driver_node import DriverNode
from bess_drivers.driver_params import DriverParams
from bess_drivers.io.nmea import GpsReading


@dataclass(frozen=True, kw_only=True)
class GpsShellParams(DriverParams):
    """Parameters of the shell."""

    frozen_after: float = param(0.0, 's', 'values that do not move at all for so long raise a fault; 0 = off',
                                low=0.0, high=86400.0)
    stamp: str = param('system', doc='clock of the stamps of ~/fix', choices=['system', 'gps'])
    max_clock_offset: float = param(0.5, 's', 'a larger difference between both clocks is a fault; 0 = off', low=0.0,
                                    high=86400.0)


class GpsDriverNode(DriverNode):
    """`~/fix` and `~/time_reference` of the standard message types."""

    role: ClassVar[str] = 'gps'
    Shell = GpsShellParams
    Message = NavSatFix
    empty = GpsReading

    def configure_role(self) -> None:
        """`~/status` of other drivers is `~/fix` here."""
        self.destroy_publisher(self._status)
        self._status = self.create_publisher(NavSatFix, '~/fix', qos.MEASUREMENT)
        self._reference = self.create_publisher(TimeReference, '~/time_reference', qos.MEASUREMENT)

    def publishers_own(self) -> list[Any]:
        """Publishers that cleanup destroys."""
        own = [*super().publishers_own(), getattr(self, '_reference', None)]
        self._reference = None  # type: ignore[assignment]
        return [p for p in own if p is not None]

    def clock_offset(self) -> float:
        """Clock of this computer minus that of the receiver, s; NaN unknown."""
        time, now = self._client.device.time if self._client else None, self.clock.now()  # type: ignore[attr-defined]
        return nan if time is None or isnan(time.offset) else self.clock.to_wall(now) - time.utc(now)

    def accept(self, reading: GpsReading) -> None:
        """Compare the clocks."""
        offset, limit = self.clock_offset(), self.params.max_clock_offset
        self.set_fault(bool(limit) and abs(offset) > limit, 'gps.clock_offset', Severity.WARNING,
                       f'the clock of this computer is {offset:+.3f} s off that of the receiver')

    def publish(self) -> None:
        """Position; without a fix, or when it is old, NaN and STATUS_NO_FIX."""
        r, m = self.reading, NavSatFix()
        usable = r.fix and r.quality == Quality.OK
        m.header.frame_id = self.name
        time = self._client.device.time if self._client is not None else None  # type: ignore[attr-defined]
        if self.params.stamp == 'gps' and time is not None and not isnan(time.offset):
            m.header.stamp = wall_stamp(time.utc(r.time))
        else:
            set_stamp(m.header.stamp, self.clock, r.time)
        m.status.service = NavSatStatus.SERVICE_GPS
        m.status.status = (NavSatStatus.STATUS_NO_FIX if not usable else
                           NavSatStatus.STATUS_SBAS_FIX if r.augmented else NavSatStatus.STATUS_FIX)
        m.latitude, m.longitude, m.altitude = (r.latitude, r.longitude, r.altitude) if usable else (nan, nan, nan)
        known = usable and not isnan(r.uncertainty)
        variance = r.uncertainty ** 2 if known else 0.0
        # Heights are about twice as uncertain as positions.
        m.position_covariance = [variance, 0.0, 0.0, 0.0, variance, 0.0, 0.0, 0.0, 4.0 * variance]
        m.position_covariance_type = (NavSatFix.COVARIANCE_TYPE_APPROXIMATED if known
                                      else NavSatFix.COVARIANCE_TYPE_UNKNOWN)
        self._status.give(m)
        if not isnan(r.utc) and time is not None and not isnan(time.offset) and r.quality == Quality.OK:
            reference = TimeReference(source=self.name)
            reference.header.frame_id = self.name
            set_stamp(reference.header.stamp, self.clock, r.time)
            reference.time_ref = wall_stamp(time.utc(r.time))
            self._reference.publish(reference)
