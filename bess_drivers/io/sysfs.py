"""Values that the kernel shows as small files."""

from __future__ import annotations

import errno
from pathlib import Path

from bess_drivers.device import BadValue, Disconnected, NoAnswer, ReadOnlyError

LONGEST = 4096


def read_text(path: Path) -> str:
    """Content without white space around it. Raises `Disconnected` when it is not there, else `NoAnswer`."""
    try:
        with path.open('rb', buffering=0) as file:
            return (file.read(LONGEST) or b'').decode('ascii', errors='replace').strip()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO, errno.EACCES, errno.ENOTDIR):
            raise Disconnected(f'{path}: {error.strerror}') from error
        raise NoAnswer(f'{path}: {error.strerror}') from error


def read_number(path: Path) -> float:
    """A number. Raises `BadValue` for anything else, and as `read_text`."""
    text = read_text(path)
    try:
        value = float(text)
    except ValueError:
        raise BadValue(f'{path}: {text[:40]!r} is no number') from None
    if abs(value) > 1e18 or value != value:
        raise BadValue(f'{path}: {text[:40]!r} is no usable number')
    return value


def read_bit(path: Path) -> bool:
    """0 or 1. Raises `BadValue` for anything else, and as `read_text`."""
    text = read_text(path)
    if text not in ('0', '1'):
        raise BadValue(f'{path}: {text[:40]!r} is neither 0 nor 1')
    return text == '1'


def write_text(path: Path, text: str, *, read_only: bool) -> None:
    """Raises `ReadOnlyError` (nothing was written), `Disconnected`, `NoAnswer`."""
    if read_only:
        raise ReadOnlyError(f'{path} is read-only; not written: {text}')
    try:
        with path.open('r+b', buffering=0) as file:  # never makes a file that the kernel does not offer
            file.write(text.encode('ascii'))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO, errno.EACCES, errno.ENOTDIR):
            raise Disconnected(f'{path}: {error.strerror}') from error
        raise NoAnswer(f'{path}: {error.strerror}') from error
