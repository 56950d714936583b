"""sonnenBatterie over its REST interface: the local one (v2) and the maker's cloud.

`sonnen` is the converter, `sonnen_battery` the battery of the same box; each has a connection of its own. There is
no revert timer in the device: it keeps the last setpoint for ever, which an alarm says while an order stands.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite, isnan, nan, trunc
from typing import Any, ClassVar

from bess_core.params import param
from bess_core.values import Alarm, BatteryReading, ConverterReading, Identity, Quality, Severity, smallest_known
from bess_drivers.device import BadFrame, BadValue, Counters, DeviceError, ReadOnlyError, Refused, Role
from bess_drivers.http.client import JsonClient, read_token
from bess_drivers.http.sonnen_codec import (
    Ratings,
    battery_reading,
    converter_reading,
    number,
    off_grid,
    shutdown_reasons,
    status_of,
)

MANUAL = '1'
SELF_CONSUMPTION = {'local': '2', 'cloud': '8'}
SLOW_EVERY_S = 10.0  # reasons of a shutdown; settings
ACCEPT_CLOUD = 'application/vnd.sonnenbatterie.api.core.v1+json'


@dataclass(frozen=True)
class SonnenParams:
    """Where the box is and what it does not say. Raises ValueError for an address that is none."""

    address: str = param('', doc='local: http://host; cloud: https://core-api.sonnenbatterie.de/proxy/<serial>')
    form: str = param('local', doc='which interface answers there', choices=['local', 'cloud'])
    token_file: str = param('', doc='file with the API token, readable by its owner only')
    timeout_s: float = param(5.0, 's', 'time for one answer', low=0.1, high=60.0)
    rated_power: float = param(0.0, 'W', 'greatest power of the box; 0 = what it says (local form)', low=0.0, high=1e6)
    energy_full: float = param(0.0, 'Wh', 'energy when full; 0 = what it says (local form)', low=0.0, high=1e7)
    stale_after: float = param(60.0, 's', 'values whose Timestamp stands still for longer are stale; 0 = do not look',
                               low=0.0, high=86400.0)
    rewrite_after: float = param(30.0, 's', 'an unchanged setpoint is written again after this time', low=0.1,
                                 high=3600.0)
    release_mode: str = param('', doc='operating mode after a stop; empty = the one before our first order')

    def __post_init__(self) -> None:
        if self.address:
            JsonClient(self.address, self.timeout_s)
        if self.release_mode and not self.release_mode.isdigit():
            raise ValueError(f'release_mode {self.release_mode!r}: must be a number or empty')


class SonnenBox:
    """What both roles share: the connection, status and settings."""

    Params: ClassVar[type] = SonnenParams

    def __init__(self, params: SonnenParams, read_only: bool = False, *,
                 clock: Callable[[], float] = time.monotonic) -> None:
        if not params.address:
            raise ValueError('address is missing')
        self.params, self._read_only, self._clock = params, read_only, clock
        self.client = JsonClient(params.address, params.timeout_s, read_only)
        self._local = params.form == 'local'
        self._forget()

    def _forget(self) -> None:
        self._ratings = Ratings()
        self._reasons: tuple[str, ...] = ()
        self._slow_at = self._slow_read = self._status_read = nan  # s; the last two of the site
        self._stamp: Any = None
        self._stamp_at = nan

    @property
    def counters(self) -> Counters:
        """Traffic of the connection."""
        return self.client.counters

    def open(self) -> None:
        """Read the token; the connection is made with the first request. Raises `BadValue`."""
        self._forget()
        self.client.close()
        if not self.params.token_file:
            raise BadValue('token_file is not set')
        token = read_token(self.params.token_file)
        self.client.headers = {'Auth-Token': token} if self._local else {
            'Authorization': f'Bearer {token}', 'Accept': ACCEPT_CLOUD}

    def close(self) -> None:
        """See `Device`."""
        self.client.close()

    def identify(self) -> Identity:
        """Who answers. Raises `DeviceError`, `BadValue` if the answer is not that of a sonnenBatterie."""
        status = self._status()
        if 'Pac_total_W' not in status or 'USOC' not in status:
            raise BadValue('the answer is not the status of a sonnenBatterie')
        settings = self._settings() if self._local else {}
        return Identity('sonnen', 'sonnenBatterie', '', str(settings.get('DE_Software', ''))[:40])

    def _status(self) -> Mapping[str, Any]:
        return status_of(self.client.get(f'/api/{"v2" if self._local else "v1"}/status'))

    def _settings(self) -> Mapping[str, Any]:
        settings = self.client.get('/api/v2/configurations')
        if not isinstance(settings, dict):
            raise BadFrame('the configuration is no JSON object')
        return settings

    def _poll(self, now: float) -> tuple[Mapping[str, Any], Quality]:
        """Status, and the slow things when they are due. The cloud form has no slow things."""
        status = self._status()
        self._status_read = now
        if not self._clock() - self._slow_at < SLOW_EVERY_S:
            p = self.params
            rated, energy = p.rated_power or nan, p.energy_full or nan
            if self._local:
                settings = self._settings()
                self._reasons = shutdown_reasons(self.client.get('/api/v2/latestdata'))
                rated = smallest_known(rated, number(settings, 'IC_InverterMaxPower_w', 0, 1e6))
                if isnan(energy):
                    energy = (number(settings, 'IC_BatteryModules', 0, 1000)
                              * number(settings, 'CM_MarketingModuleCapacity', 0, 1e6))
            self._ratings = Ratings(rated, rated, energy)
            self._slow_at, self._slow_read = self._clock(), now
        stamp = status.get('Timestamp')
        if stamp is None or stamp != self._stamp:
            self._stamp, self._stamp_at = stamp, now
        old = self.params.stale_after and now - self._stamp_at > self.params.stale_after
        return status, Quality.STALE if old else Quality.OK

    def ages(self, now: float) -> dict[str, float]:
        """Seconds since the status and, in the local form, the configuration were read."""
        return {'status': now - self._status_read, **({'configuration': now - self._slow_read} if self._local else {})}


class SonnenBattery(SonnenBox):
    """The battery of the box (`BatteryDevice`). Never writes."""

    role: ClassVar[Role] = Role.BATTERY

    def read(self, now: float) -> BatteryReading:
        """See `BatteryDevice`."""
        status, quality = self._poll(now)
        reading = battery_reading(status, self._ratings, self._reasons, now)
        reading.quality = quality
        return reading

    def set_contactor(self, charge: bool, discharge: bool) -> None:
        """Raises `Refused`: there is no order for it."""
        raise Refused('a sonnenBatterie has no order to switch its contactors')


class SonnenConverter(SonnenBox):
    """The converter of the box (`ConverterDevice`): whole watts, one path each for charging and discharging."""

    role: ClassVar[Role] = Role.CONVERTER

    def _forget(self) -> None:
        super()._forget()
        self._watts: int | None = None  # as written last, + = charging; None = no order stands
        self._written_at = nan
        self._mode_before = getattr(self, '_mode_before', '')
        self._mode = ''  # as read last
        self._off_grid = False

    def read(self, now: float) -> ConverterReading:
        """See `ConverterDevice`."""
        status, quality = self._poll(now)
        reading = converter_reading(status, self._ratings, self._reasons, now)
        reading.quality = quality
        self._mode, self._off_grid = str(status.get('OperatingMode', '')), off_grid(status)
        if self._watts is not None:
            reading.setpoint = float(self._watts)
            reading.alarms += (Alarm('sonnen.no_reversion_timer', Severity.WARNING,
                                     'the battery would keep its last order if communication failed'),)
            if self._mode not in ('', MANUAL):
                reading.alarms += (Alarm('sonnen.order_dropped', Severity.WARNING,
                                         f'the battery left manual mode (OperatingMode {self._mode[:10]})'),)
                self._watts = None  # the next order begins anew
        return reading

    def write_power(self, power: float, reactive_power: float, lease: float) -> None:
        """See `ConverterDevice`. An unchanged order is not repeated at once; the device knows no lease."""
        if self._read_only:
            raise ReadOnlyError('nothing written: read-only')
        if not isfinite(power):
            raise BadValue(f'power of {power} W')
        if not isnan(reactive_power) and reactive_power != 0:
            raise BadValue('a sonnenBatterie takes no reactive power')
        if not self._mode:
            status = self._status()
            self._mode, self._off_grid = str(status.get('OperatingMode', '')), off_grid(status)
        if self._off_grid:
            raise Refused('the battery runs without the grid: it takes no setpoint')
        watts = trunc(power)
        if watts == self._watts and self._clock() - self._written_at < self.params.rewrite_after:
            return
        if self._watts is None and self._mode != MANUAL:
            self._mode_before = self._mode_before or self._mode
            self._set_mode(MANUAL)
        self._setpoint(watts)

    def _setpoint(self, watts: int) -> None:
        path = f'/api/{"v2" if self._local else "v1"}/setpoint/{"discharge" if watts < 0 else "charge"}/{abs(watts)}'
        answer = self.client.request('POST', path) if self._local else self.client.get(path, write=True)
        _check(answer, path)
        self._watts, self._written_at = watts, self._clock()

    def _set_mode(self, mode: str) -> None:
        if self._local:
            answer = self.client.request('PUT', '/api/v2/configurations', {'EM_OperatingMode': mode})
        else:
            answer = self.client.get(f'/api/setting?EM_OperatingMode={mode}', write=True)
        _check(answer, f'operating mode {mode}')
        self._mode = mode

    def stop(self) -> None:
        """See `ConverterDevice`: zero, then the operating mode of before. Both are tried."""
        if self._read_only:
            raise ReadOnlyError('nothing written: read-only')
        failure: DeviceError | None = None
        try:
            self._setpoint(0)
        except DeviceError as error:
            failure = error
        self._set_mode(self.params.release_mode or self._mode_before or SELF_CONSUMPTION[self.params.form])
        self._watts, self._mode_before = None, ''
        if failure:
            raise failure


def _check(answer: Any, what: str) -> None:
    """Raise `Refused` where the answer to an order says no."""
    if answer is False or (isinstance(answer, dict) and (answer.get('error') or answer.get('ReturnCode') not in (
            None, 0, '0'))):
        raise Refused(f'{what}: the battery answers {str(answer)[:80]}')


__all__ = ['SonnenBattery', 'SonnenConverter', 'SonnenParams']
