# SPDX-License-Identifier: GPL-3.0-or-later
"""Answer questions on standard input with values of one IEC 61850 server; see README.md for the lines.

This program is under the GPL because it uses libiec61850. It shares no code with `bess`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any

#: Names of libiec61850's errors after which the connection cannot be used.
TIMEOUT = ('IED_ERROR_TIMEOUT',)
LOST = ('IED_ERROR_NOT_CONNECTED', 'IED_ERROR_CONNECTION_LOST', 'IED_ERROR_SERVICE_NOT_SUPPORTED',
        'IED_ERROR_CONNECTION_REJECTED')


class Failure(Exception):
    """Answered instead of a result; `kind` as in README.md."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Bridge:
    """The connection and what is asked of it."""

    def __init__(self, read_only: bool) -> None:
        self.read_only = read_only
        self._client: Any = None

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        """The result of one question. Raises `Failure`."""
        handlers = {'connect': self.connect, 'directory': self.directory, 'read': self.read, 'operate': self.operate}
        handler = handlers.get(str(question.get('op')))
        if handler is None:
            raise Failure('frame', f'unknown op {question.get("op")!r}; known: {", ".join(handlers)}')
        try:
            return handler(question)
        except (KeyError, TypeError, ValueError) as error:
            raise Failure('frame', f'{question.get("op")}: {type(error).__name__}: {error}') from error

    def connect(self, question: dict[str, Any]) -> dict[str, Any]:
        """Connect, or connect anew."""
        host, port, seconds = str(question['host']), int(question['port']), float(question['timeout'])
        try:
            from pyiec61850.mms import MMSClient, MMSError
        except (ImportError, OSError) as error:
            raise Failure('missing', f'pyiec61850-ng is not installed: {error}') from error
        if self._client is not None:
            self._client.disconnect()
        self._client = None
        client = MMSClient()
        try:
            client.connect(host, port, timeout=round(1000 * seconds))
            client.set_request_timeout(round(1000 * seconds))
        except MMSError as error:
            raise Failure('disconnected', str(error)) from error
        self._client = client
        try:
            about = client.get_server_identity()
        except MMSError:
            return {'vendor': '', 'model': '', 'revision': ''}  # an optional service
        return {'vendor': about.vendor or '', 'model': about.model or '', 'revision': about.revision or ''}

    def directory(self, _: dict[str, Any]) -> dict[str, Any]:
        """Logical devices and their nodes."""
        from pyiec61850.mms import MMSError

        client = self._connected()
        try:
            return {'devices': {d: list(client.get_logical_nodes(d)) for d in client.get_logical_devices()}}
        except MMSError as error:
            raise Failure('timeout', f'directory: {error}') from error

    def read(self, question: dict[str, Any]) -> dict[str, Any]:
        """Values of references with their functional constraints."""
        return {'values': [self._read_one(str(reference), str(fc)) for reference, fc in question['items']]}

    def _read_one(self, reference: str, fc: str) -> Any:
        from pyiec61850 import pyiec61850 as library
        from pyiec61850.mms.utils import mms_value_to_python, safe_mms_value_delete, unpack_result

        constraint = getattr(library, f'IEC61850_FC_{fc}', None)
        if constraint is None:
            raise Failure('frame', f'{reference}: no functional constraint {fc!r}')
        value, error, _ = unpack_result(library.IedConnection_readObject(self._connected()._connection, reference,
                                                                        constraint))
        try:
            if error in [getattr(library, name, None) for name in TIMEOUT]:
                raise Failure('timeout', f'no answer in time to a read of {reference} [{fc}]')
            if error in [getattr(library, name, None) for name in LOST]:
                raise Failure('disconnected', f'connection lost at a read of {reference} [{fc}] (error {error})')
            if error or not value:
                return None
            found = mms_value_to_python(value)
            return found if isinstance(found, bool | int | float | str) else None
        finally:
            if value:
                safe_mms_value_delete(value)

    def operate(self, question: dict[str, Any]) -> dict[str, Any]:
        """One control, as the control model of the object asks for it."""
        if self.read_only:
            raise Failure('read_only', f'not sent: operate {question.get("object")}')
        from pyiec61850.mms import ControlClient, MMSError

        target, value = str(question['object']), question['value']
        try:
            with ControlClient(self._connected()) as control:
                model = control.get_control_model(target)
                if model == 0:
                    raise Failure('refused', f'{target} only shows its status')
                if model == 2:
                    control.select(target)
                elif model == 4:
                    control.select_with_value(target, value)
                control.operate(target, value)
        except MMSError as error:
            raise Failure('refused', f'operate {target}: {error}') from error
        return {}

    def _connected(self) -> Any:
        if self._client is None or not self._client.is_connected:
            raise Failure('disconnected', 'not connected')
        return self._client


def main() -> None:
    """Answer until standard input ends."""
    parser = argparse.ArgumentParser(description='IEC 61850 bridge; one JSON question per line on standard input')
    parser.add_argument('--read-only', action='store_true', help='refuse whatever changes the server')
    bridge = Bridge(parser.parse_args().read_only)
    # The library may print; nothing of it may come between two answers.
    out = os.fdopen(os.dup(1), 'w', encoding='utf-8', buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin.buffer:
        question: Any = None
        try:
            question = json.loads(line)
            if not isinstance(question, dict):
                raise Failure('frame', 'is no object')
            answer = bridge.answer(question)
        except (ValueError, RecursionError) as error:
            answer = {'error': 'frame', 'message': f'is no JSON: {error}'}
        except Failure as failure:
            answer = {'error': failure.kind, 'message': str(failure)}
        number = question.get('id') if isinstance(question, dict) else None
        out.write(json.dumps({'id': number, **answer}) + '\n')
    out.flush()
    os._exit(0)  # the library crashes when the interpreter takes it down


if __name__ == '__main__':
    main()
