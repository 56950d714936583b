"""Structured logs: one line per event, JSON in a rotated file, short text on the console.

>>> log = get('home/meter')
>>> log.info('device connected', address='tcp://127.0.0.1:502', attempts=3)
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import sys
import time
from collections.abc import Callable
from math import isfinite
from pathlib import Path
from typing import Any

ROOT = 'bess'
LEVELS = ('debug', 'info', 'warning', 'error', 'critical')


class Log:
    """Logger of one component; keyword arguments become fields of the line."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._logger = logging.getLogger(f'{ROOT}.{name}')

    def _write(self, level: int, event: str, fields: dict[str, Any], exc_info: bool = False) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(level, event, extra={'component': self.name, 'fields': fields}, exc_info=exc_info)

    def debug(self, event: str, **fields: Any) -> None:
        """Detail for developers."""
        self._write(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: Any) -> None:
        """Something happened."""
        self._write(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        """Works on, somebody should look."""
        self._write(logging.WARNING, event, fields)

    def error(self, event: str, **fields: Any) -> None:
        """This component cannot do its job at present."""
        self._write(logging.ERROR, event, fields)

    def exception(self, event: str, **fields: Any) -> None:
        """An error with the traceback of the exception being handled."""
        self._write(logging.ERROR, event, fields, exc_info=True)


def get(name: str) -> Log:
    """Logger of a component, e.g. a node's full name without the first slash."""
    return Log(name.strip('/') or 'bess')


class Refusals:
    """Which refusals are worth a line: a sender that is refused a hundred times a second gets one in `quiet_s`,
    with the number of those that were not told."""

    def __init__(self, log: Log, event: str, quiet_s: float = 10.0) -> None:
        self._log, self._event, self._quiet_s = log, event, quiet_s
        self._told: dict[str, tuple[float, int]] = {}  # source -> (when, refused since)

    def refuse(self, source: str, reason: str, now: float, *, expected: bool = False) -> None:
        """One refusal at `now` (s); an `expected` one is detail for developers."""
        told, since = self._told.get(source, (-self._quiet_s, 0))
        if now - told < self._quiet_s:
            self._told[source] = (told, since + 1)
            return
        self._told[source] = (now, 0)
        tell = self._log.debug if expected else self._log.warning
        tell(self._event, source=source, reason=reason, **({'refused_meanwhile': since} if since else {}))


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time (UTC, ISO 8601), level, component, event, fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Format one record."""
        line: dict[str, Any] = {
            'time': time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created)) + f'.{record.msecs:03.0f}Z',
            'level': record.levelname.lower(),
            'component': getattr(record, 'component', record.name),
            'event': record.getMessage(),
        }
        for key, value in getattr(record, 'fields', {}).items():
            plain = str(value) if isinstance(value, float) and not isfinite(value) else value  # NaN is no JSON
            line[f'{key}_' if key in line else key] = plain
        if record.exc_info:
            line['traceback'] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """`12:34:56 WARNING home/meter: no answer address=...` for people."""

    def format(self, record: logging.LogRecord) -> str:
        """Format one record."""
        fields = ''.join(f' {k}={v}' for k, v in getattr(record, 'fields', {}).items())
        clock = time.strftime('%H:%M:%S', time.localtime(record.created))
        component = getattr(record, 'component', record.name)
        text = f'{clock} {record.levelname:<7} {component}: {record.getMessage()}{fields}'
        return f'{text}\n{self.formatException(record.exc_info)}' if record.exc_info else text


class CallbackHandler(logging.Handler):
    """Hand each record to a function, e.g. to publish it on /rosout."""

    def __init__(self, fn: Callable[[logging.LogRecord], None]) -> None:
        super().__init__(logging.INFO)
        self._fn = fn

    def emit(self, record: logging.LogRecord) -> None:
        """Pass on one record."""
        try:
            self._fn(record)
        except Exception:  # noqa: BLE001 - logging must not raise; its own hook reports it on stderr
            self.handleError(record)


def setup(
    directory: Path | None,
    process: str,
    *,
    level: str = 'info',
    console: str = 'warning',
    max_bytes: int = 5_000_000,
    backups: int = 5,
) -> None:
    """Configure the logs of this process: `<directory>/<process>.jsonl`, rotated, and the console.

    `console` 'off' writes nothing on stderr. Call once per process.
    """
    root = logging.getLogger(ROOT)
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    root.propagate = False
    root.setLevel(level.upper())
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
        file = logging.handlers.RotatingFileHandler(
            directory / f'{process}.jsonl', maxBytes=max_bytes, backupCount=backups, encoding='utf-8'
        )
        file.setFormatter(JsonFormatter())
        root.addHandler(file)
    if console != 'off':
        stream = logging.StreamHandler(sys.stderr)
        stream.setLevel(console.upper())
        stream.setFormatter(TextFormatter())
        root.addHandler(stream)


def add_sink(fn: Callable[[logging.LogRecord], None]) -> None:
    """Also hand every record from INFO up to `fn`."""
    logging.getLogger(ROOT).addHandler(CallbackHandler(fn))
