"""A simulated sonnenBatterie: its REST interface over real HTTP, in the local (v2) or the cloud form (v1).

Pac_total_W + = discharging, as the device counts. It keeps a setpoint until the next; it takes one only in manual
mode (1) and not without the grid.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from bess_sim.control_server import Request
from bess_sim.device_faults import DeviceFaults
from bess_sim.plant_api import PlantApi

MANUAL, SELF_CONSUMPTION = '1', '2'


class SonnenSimulator:
    """Listens on `host:port` (`RunningDevice`). Attributes may be changed at run time.

    token: what a request must bring along, '' = none is asked for. reserve: % that are kept for backup.
    """

    def __init__(self, plant: PlantApi, unit: str, faults: DeviceFaults, host: str = '127.0.0.1', port: int = 0, *,
                 form: str = 'local', token: str = '', clock: Callable[[], float] = time.time) -> None:
        if form not in ('local', 'cloud'):
            raise ValueError(f'form must be local or cloud, not {form!r}')
        self.plant, self.unit, self.faults, self.form, self.token = plant, unit, faults, form, token
        self.mode = SELF_CONSUMPTION if form == 'local' else '8'
        self.reserve = 0.0
        self.system = 'OnGrid'
        self.installed = 1
        self.vpp = False  # a virtual power plant of the maker has control: setpoints are refused
        self.shutdown: set[str] = set()
        self.requests: list[tuple[str, str]] = []  # (method, path), the last 1000
        self._clock, self._address = clock, (host, port)
        self._server: ThreadingHTTPServer | None = None
        self._frozen: dict[str, Any] | None = None

    def start(self) -> str:
        """See `RunningDevice`."""
        device = self

        class Handler(BaseHTTPRequestHandler):
            """One request after the other on a connection."""

            protocol_version = 'HTTP/1.1'
            disable_nagle_algorithm = True

            def log_message(self, *_: Any) -> None:
                """Quiet."""

            def handle_one_request(self) -> None:
                """Answer, or whatever the injected fault wants."""
                try:
                    super().handle_one_request()
                except (ConnectionError, TimeoutError):
                    self.close_connection = True

            def _serve(self) -> None:
                body = self.rfile.read(int(self.headers.get('Content-Length') or 0))
                device._serve(self, self.command, body)

            do_GET = do_PUT = do_POST = _serve

        self._server = ThreadingHTTPServer(self._address, Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), name='sonnen', daemon=True).start()
        return f'http://{self._address[0]}:{self._server.server_address[1]}'

    def stop(self) -> None:
        """See `RunningDevice`."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def check(self) -> None:
        """See `RunningDevice`. Each request has a thread of its own; nothing can end the device."""

    def command(self, request: Request) -> Request:
        """`requests`: what was asked."""
        if request['cmd'] == 'requests':
            return {'requests': [list(r) for r in self.requests]}
        raise ValueError(f'unknown command {request["cmd"]!r}')

    def _serve(self, handler: BaseHTTPRequestHandler, method: str, body: bytes) -> None:
        faults = self.faults
        self.requests.append((method, handler.path))
        del self.requests[:-1000]
        if faults.on('disconnect'):
            handler.close_connection = True
            return
        while faults.on('no_answer'):
            time.sleep(0.01)
        if faults.on('late_answer'):
            time.sleep(faults.value('late_answer', 2.0))
        status, answer = self._answer(method, handler, body)
        if faults.on('modbus_exception'):
            status, answer = 500, 'internal error'
        data = json.dumps(answer).encode()
        if faults.on('flipped_bytes'):
            data = b'\xff' + data[1:]
        handler.send_response(status)
        handler.send_header('Content-Type', 'application/json')
        handler.send_header('Content-Length', str(len(data)))
        handler.end_headers()
        if faults.on('truncated_frame'):
            data = data[: len(data) // 2]
            handler.close_connection = True
        handler.wfile.write(data)

    def _answer(self, method: str, handler: BaseHTTPRequestHandler, body: bytes) -> tuple[int, Any]:
        parts = urlsplit(handler.path)
        local = self.form == 'local'
        sent = handler.headers.get('Auth-Token') if local else (handler.headers.get('Authorization') or '')[7:]
        version = 'v2' if local else 'v1'
        if parts.path == f'/api/{version}/status' and method == 'GET' and (local or sent == self.token):
            return 200, self.status()
        if self.token and sent != self.token:
            return 401, {'error': 'Unauthorized'}
        setpoint = f'/api/{version}/setpoint/'
        if parts.path.startswith(setpoint) and method == ('POST' if local else 'GET'):
            return self._setpoint(parts.path.removeprefix(setpoint))
        if local and parts.path == '/api/v2/configurations':
            if method == 'PUT':
                return self._configure(json.loads(body))
            return 200, {'EM_OperatingMode': self.mode, 'DE_Software': '1.31.0', 'IC_BatteryModules': '2',
                         'CM_MarketingModuleCapacity': '2750', 'EM_USOC': f'{self.reserve:.0f}',
                         'IC_InverterMaxPower_w': f'{self.plant.inverter(self.unit).max_charge_power:.0f}'}
        if local and parts.path == '/api/v2/latestdata':
            return 200, {'FullChargeCapacity': 5500, 'ic_status': {
                'DC Shutdown Reason': {'Critical BMS Alarm': False, 'Electrolyte Leakage': False,
                                       **dict.fromkeys(self.shutdown, True)}}}
        if not local and parts.path == '/api/setting':
            return self._configure({k: v[0] for k, v in parse_qs(parts.query).items()})
        return 404, {'error': 'not found'}

    def _configure(self, settings: dict[str, str]) -> tuple[int, Any]:
        mode = settings.get('EM_OperatingMode', self.mode)
        if mode not in (('1', '2', '10') if self.form == 'local' else ('1', '7', '8', '10')):
            return 400, {'error': 'invalid value'}
        if mode != MANUAL and self.mode == MANUAL:
            self.plant.set_inverter(self.unit, 0.0, 0.0)
        self.mode = mode
        return 200, {'EM_OperatingMode': mode}

    def _setpoint(self, path: str) -> tuple[int, Any]:
        way, _, watts = path.partition('/')
        if way not in ('charge', 'discharge') or not watts.isdigit():
            return 400, {'error': 'invalid value'}
        if self.vpp or self.mode != MANUAL or self.system != 'OnGrid':
            return 200, False
        sample = self.plant.inverter(self.unit)
        power = min(float(watts), sample.max_charge_power) if way == 'charge' else -min(
            float(watts), sample.max_discharge_power)
        self.plant.set_inverter(self.unit, power, 0.0)
        return 200, True

    def status(self) -> dict[str, Any]:
        """The status object."""
        if self.faults.on('frozen_value') and self._frozen is not None:
            return self._frozen
        s, p = self.plant.inverter(self.unit), self.plant.pack(self.unit)
        power = round(-s.active_power)
        self._frozen = {
            'Apparent_output': abs(power), 'BackupBuffer': f'{self.reserve:.0f}', 'BatteryCharging': power < 0,
            'BatteryDischarging': power > 0, 'Consumption_W': 400, 'Fac': s.frequency, 'GridFeedIn_W': power - 400,
            'IsSystemInstalled': self.installed, 'OperatingMode': self.mode, 'Pac_total_W': power, 'Production_W': 0,
            'RSOC': round(100 * p.soc), 'Sac1': abs(power), 'Sac2': None, 'Sac3': None, 'SystemStatus': self.system,
            'Timestamp': datetime.fromtimestamp(self._clock(), UTC).strftime('%Y-%m-%d %H:%M:%S'),
            'USOC': round(100 * p.soc), 'Uac': 0 if self.system == 'OffGrid' else round(s.voltage[0]),
            'Ubat': round(p.voltage),
        }
        return self._frozen
