"""Doubles of what a computer has at its own pins and in its own files: at the lowest level that can be replaced."""

from __future__ import annotations

import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gpiod
import pytest
from gpiozero.pins.mock import MockFactory

from bess_drivers.io.pins import Gpiozero


class ZeroBench:
    """gpiozero on its mock pins."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.factory = MockFactory()
        monkeypatch.setattr(Gpiozero, '_make_factory', lambda _: self.factory)
        self.address = 'gpiozero:mock'

    def drive(self, line: int, high: bool) -> None:
        pin = self.factory.pin(line)
        pin.drive_high() if high else pin.drive_low()

    def level(self, line: int) -> bool:
        return bool(self.factory.pin(line).state)

    def unplug(self) -> None:
        raise NotImplementedError


class FakeRequest:
    """What libgpiod returns for requested lines, on levels kept here."""

    def __init__(self, levels: dict[int, bool], config: dict[int, Any]) -> None:
        self.levels, self.config, self.events, self.gone, self.released = levels, config, [], False, False
        for line, s in config.items():
            if s.direction is gpiod.line.Direction.OUTPUT:
                levels[line] = (s.output_value is gpiod.line.Value.ACTIVE) is not s.active_low

    def _look(self) -> None:
        if self.gone:
            raise OSError(errno.ENODEV, 'No such device')

    def get_values(self, lines: list[int]) -> list[Any]:
        self._look()
        return [gpiod.line.Value.ACTIVE if self.levels.get(n, False) is not self.config[n].active_low
                else gpiod.line.Value.INACTIVE for n in lines]

    def set_value(self, line: int, value: Any) -> None:
        self._look()
        self.levels[line] = (value is gpiod.line.Value.ACTIVE) is not self.config[line].active_low

    def wait_edge_events(self, _: Any) -> bool:
        self._look()
        return bool(self.events)

    def read_edge_events(self) -> list[Any]:
        events, self.events = self.events, []
        return events

    def release(self) -> None:
        self.released = True


class DBench:
    """libgpiod with its `request_lines` replaced; its own classes stay."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.levels: dict[int, bool] = {}
        self.request: FakeRequest | None = None
        self.there = True
        self.address = 'gpio:/dev/gpiochip0'
        monkeypatch.setattr(gpiod, 'request_lines', self._request)

    def _request(self, path: str, consumer: str, config: dict[int, Any]) -> FakeRequest:
        assert (path, consumer) == ('/dev/gpiochip0', 'bess')
        if not self.there:
            raise FileNotFoundError(errno.ENOENT, 'No such file')
        self.request = FakeRequest(self.levels, config)
        return self.request

    def drive(self, line: int, high: bool) -> None:
        before, self.levels[line] = self.levels.get(line, False), high
        settings = self.request.config[line]
        if settings.edge_detection is gpiod.line.Edge.RISING and before is not high and high is not settings.active_low:
            self.request.events.append(SimpleNamespace(line_offset=line))

    def level(self, line: int) -> bool:
        return self.levels[line]


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root
