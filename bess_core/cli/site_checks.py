"""Checks of one site for `bess doctor`: its file, its devices, its ports."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from .checks import Finding, access_advice, fail, ok, warn
from .up import changes, default_state

CONNECT_S = 2.0
_TCP_PORTS = {'tcp': 502}


def state_folder_of(site: str, state: Path | None) -> Path:
    """State folder that a site would use."""
    return state.absolute() if state is not None else default_state(Path(site).stem if site else '')


def check_site(name: str, state: Path | None, overrides: Sequence[str]) -> Iterator[Finding]:
    """All findings about a site."""
    from .. import site as site_module

    folder = state_folder_of(name, state)
    try:
        site = site_module.load(site_module.find(name), overrides=overrides, state=folder)
    except site_module.SiteError as error:
        for message in error.messages:
            yield fail('site file', message, 'correct the file; `bess nodes types TYPE` shows what is allowed')
        return
    yield ok('site file', f'{site.path}: {len(site.nodes)} nodes in {len(site.processes)} processes')
    if site.overlay.revision:
        yield ok('topology', changes(site))
    running = is_running(folder)
    yield ok('site', f'is running with {folder}' if running else 'is not running')
    simulated = _simulated(site)
    for spec in site.nodes:
        address = getattr(spec.params, 'address', '')
        if isinstance(address, str) and address:
            yield check_address(spec.name, address, simulated=spec.name in simulated or address in simulated,
                                running=running)
        port = getattr(spec.params, 'port', None)
        if isinstance(port, int) and port > 0 and not isinstance(port, bool):
            yield check_port(spec.name, str(getattr(spec.params, 'host', '') or '127.0.0.1'), port, running=running)


def is_running(folder: Path) -> bool:
    """Whether somebody holds the lock of a state folder."""
    try:
        handle = os.open(folder / 'lock', os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False


def _simulated(site: Any) -> set[str]:
    """Names and addresses of the devices that the site file brings itself."""
    devices = site.simulation.get('devices') or {}
    found = set()
    for name, device in devices.items() if isinstance(devices, dict) else ():
        found.add(str(name))
        if isinstance(device, dict):
            found.add(str(device.get('address', '')))
    return found - {''}


def check_address(node: str, address: str, *, simulated: bool, running: bool) -> Finding:
    """A driver's address: a device answers there; a simulated one has its port free until it runs."""
    url = urlsplit(address)
    if url.scheme in _TCP_PORTS:
        try:
            host, port = url.hostname or '', url.port or _TCP_PORTS[url.scheme]
        except ValueError as error:
            return fail(node, f'{address}: {error}', 'write tcp://host:port')
        if simulated and not running:
            return check_port(node, host, port, running=False)
        return _connect(node, host, port)
    path = address.split(':', 1)[-1].split('?', maxsplit=1)[0]
    if url.scheme in ('serial', 'rtu') or address.startswith('/'):
        return _serial(node, path, simulated=simulated, running=running)
    return ok(node, f'{address}: not checked (no test for {url.scheme or "such"} addresses)')


def _connect(node: str, host: str, port: int) -> Finding:
    where = f'tcp://{host}:{port}'
    try:
        socket.create_connection((host, port), timeout=CONNECT_S).close()
    except socket.gaierror as error:
        return fail(node, f'{where}: no such host ({error.strerror})', 'correct the host name, or use the IP address')
    except TimeoutError:
        return fail(node, f'{where}: no answer within {CONNECT_S:g} s',
                    'check the IP address, cable and power of the device, and firewalls')
    except OSError as error:
        return fail(node, f'{where}: {error.strerror or error}',
                    'check the port, and that the device serves Modbus TCP')
    return ok(node, f'{where} accepts connections')


def _serial(node: str, path: str, *, simulated: bool, running: bool) -> Finding:
    if not os.path.exists(path):
        if simulated and not running:
            return ok(node, f'{path}: made by the simulated device when the site runs')
        return fail(node, f'{path}: no such port', 'plug in the adapter; `ls -l /dev/serial/by-id` shows what is there')
    if not os.access(path, os.R_OK | os.W_OK):
        return fail(node, f'{path}: no access for this user', access_advice(path))
    return ok(node, f'{path} can be opened')


def check_port(node: str, host: str, port: int, *, running: bool) -> Finding:
    """A port that the site will listen on is free (or used by the site itself)."""
    where = f'port {port} on {host}'
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        if running:
            return ok(node, f'{where} is in use (the site is running)')
        advice = ('choose a port above 1023, or allow this one with setcap' if isinstance(error, PermissionError)
                  else f'stop the program that uses it (ss -ltnp "sport = :{port}"), or choose another')
        return fail(node, f'{where}: {error.strerror or error}', advice)
    if running:
        return warn(node, f'{where} is free although the site is running', 'look at the log of this node')
    return ok(node, f'{where} is free')
