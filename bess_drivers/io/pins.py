"""Digital pins through libgpiod (character device of the kernel) or gpiozero (its pin factories)."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

from bess_drivers.device import BadValue, DeviceError, Disconnected, NoAnswer

KINDS = ('input', 'button', 'emergency_stop', 'relay', 'led')
OUTPUTS = ('relay', 'led')


@dataclass(frozen=True)
class Pin:
    """One pin. Active means: pressed, contact closed, energised."""

    name: str
    line: int
    kind: str = 'input'
    active_low: bool = False
    pull: str = ''  # '', 'up' or 'down'
    debounce_ms: int = 0

    @property
    def output(self) -> bool:
        """Whether it is driven."""
        return self.kind in OUTPUTS


def words(text: str) -> tuple[str, str, dict[str, str]]:
    """`name=where word key=value` as (name, where, words with values). Raises ValueError."""
    first, *rest = text.split()
    name, equals, where = first.partition('=')
    if not equals or not where or not name.replace('_', '').isalnum():
        raise ValueError(f'{text!r} does not start with name=place')
    found: dict[str, str] = {}
    for word in rest:
        key, _, value = word.partition('=')
        if key in found:
            raise ValueError(f'{text!r}: {key} is given twice')
        found[key] = value
    return name, where, found


def parse_pin(text: str) -> Pin:
    """`start=17 button active_low pull=up debounce_ms=20`. Raises ValueError that names what is wrong."""
    if not text.split():
        raise ValueError('an empty pin')
    name, where, more = words(text)
    if not where.isdecimal():
        raise ValueError(f'{text!r}: line {where!r} is no number')
    kinds = [k for k in KINDS if k in more]
    if len(kinds) > 1:
        raise ValueError(f'{text!r} is both {" and ".join(kinds)}')
    unknown = set(more) - {*KINDS, 'active_low', 'pull', 'debounce_ms'}
    if unknown:
        raise ValueError(f'{text!r}: unknown {sorted(unknown)[0]!r}; there is {", ".join(KINDS)}, active_low, pull=, '
                         'debounce_ms=')
    kind, pull, debounce = kinds[0] if kinds else 'input', more.get('pull', ''), more.get('debounce_ms', '')
    if pull not in ('', 'up', 'down'):
        raise ValueError(f'{text!r}: pull is {pull!r}, allowed up, down')
    if debounce and (not debounce.isdecimal() or int(debounce) > 1000):
        raise ValueError(f'{text!r}: debounce_ms is {debounce!r}, allowed 0..1000')
    default = 20 if kind in ('button', 'emergency_stop') else 0
    return Pin(name, int(where), kind, 'active_low' in more, pull, int(debounce) if debounce else default)


def parse_pins(texts: list[str]) -> dict[str, Pin]:
    """By name. Raises ValueError also for a name or a line that is there twice."""
    pins = [parse_pin(t) for t in texts]
    for what in ('name', 'line'):
        seen = [getattr(p, what) for p in pins]
        double = sorted({s for s in seen if seen.count(s) > 1})
        if double:
            raise ValueError(f'{what} {double[0]} is there twice')
    return {p.name: p for p in pins}


class Backend(Protocol):
    """Pins of one chip. Values are active or not, whatever their level."""

    def open(self, pins: Mapping[str, Pin], initial: Mapping[str, bool]) -> None:
        """Take the pins; outputs start as `initial`. Raises `Disconnected`."""

    def close(self) -> None:
        """Let them go; never raises."""

    def read(self) -> dict[str, bool]:
        """All pins; outputs as they are driven. Raises `DeviceError`."""

    def write(self, name: str, active: bool) -> None:
        """Drive an output. Raises `DeviceError`."""

    def presses(self) -> dict[str, int]:
        """How often each button was pressed since `open`."""


class Gpiod:
    """libgpiod 2. Buttons are counted by the kernel's edge events, so that none between two polls is lost."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._request: Any = None
        self._pins: Mapping[str, Pin] = {}
        self._presses: dict[str, int] = {}

    def open(self, pins: Mapping[str, Pin], initial: Mapping[str, bool]) -> None:
        """See `Backend`."""
        gpiod = _library('gpiod')
        line = gpiod.line
        pulls = {'': line.Bias.AS_IS, 'up': line.Bias.PULL_UP, 'down': line.Bias.PULL_DOWN}
        config = {}
        for pin in pins.values():
            settings: dict[str, Any] = {'active_low': pin.active_low}
            if pin.output:
                active = initial.get(pin.name, False)
                settings |= {'direction': line.Direction.OUTPUT,
                             'output_value': line.Value.ACTIVE if active else line.Value.INACTIVE}
            else:
                settings |= {'direction': line.Direction.INPUT, 'bias': pulls[pin.pull]}
                if pin.kind == 'button':
                    settings['edge_detection'] = line.Edge.RISING
                if pin.debounce_ms:
                    settings['debounce_period'] = timedelta(milliseconds=pin.debounce_ms)
            config[pin.line] = gpiod.LineSettings(**settings)
        try:
            self._request = gpiod.request_lines(self._path, consumer='bess', config=config)
        except (OSError, ValueError) as error:
            raise Disconnected(f'{self._path}: {error}') from error
        self._pins, self._presses = pins, {n: 0 for n, p in pins.items() if p.kind == 'button'}
        self._active = line.Value.ACTIVE
        self._inactive = line.Value.INACTIVE

    def close(self) -> None:
        """See `Backend`."""
        request, self._request = self._request, None
        if request is not None:
            try:
                request.release()
            except OSError:
                return  # the chip is gone already

    def _guard(self, run: Callable[[Any], Any]) -> Any:
        if self._request is None:
            raise Disconnected(f'{self._path} is not open')
        try:
            return run(self._request)
        except OSError as error:
            self.close()
            raise Disconnected(f'{self._path}: {error}') from error

    def read(self) -> dict[str, bool]:
        """See `Backend`."""
        lines = [p.line for p in self._pins.values()]
        values = self._guard(lambda r: r.get_values(lines))
        return {name: value is self._active for name, value in zip(self._pins, values, strict=True)}

    def write(self, name: str, active: bool) -> None:
        """See `Backend`."""
        self._guard(lambda r: r.set_value(self._pins[name].line, self._active if active else self._inactive))

    def presses(self) -> dict[str, int]:
        """See `Backend`."""
        by_line = {self._pins[n].line: n for n in self._presses}
        while by_line and self._guard(lambda r: r.wait_edge_events(timedelta(0))):
            for event in self._guard(lambda r: r.read_edge_events()):
                if event.line_offset in by_line:
                    self._presses[by_line[event.line_offset]] += 1
        return dict(self._presses)


class Gpiozero:
    """gpiozero, for other ways to the pins; `factory` as its GPIOZERO_PIN_FACTORY ('' = its choice)."""

    def __init__(self, factory: str) -> None:
        self._factory_name = factory
        self._devices: dict[str, Any] = {}
        self._presses: dict[str, int] = {}

    def open(self, pins: Mapping[str, Pin], initial: Mapping[str, bool]) -> None:
        """See `Backend`."""
        gpiozero = _library('gpiozero')
        self.close()
        try:
            factory = self._make_factory()
            for pin in pins.values():
                self._devices[pin.name] = self._make(gpiozero, pin, initial.get(pin.name, False), factory)
        except Exception as error:
            # The factories raise whatever their libraries do: ImportError, OSError, lgpio.error, ...
            self.close()
            if isinstance(error, DeviceError):
                raise
            raise Disconnected(f'gpiozero {self._factory_name}: {error}') from error
        self._presses = {n: 0 for n, p in pins.items() if p.kind == 'button'}

    def _make_factory(self) -> Any:
        if not self._factory_name:
            return None
        module = importlib.import_module(f'gpiozero.pins.{self._factory_name}')
        names = [n for n in vars(module) if n.lower() == f'{self._factory_name}factory']
        if not names:
            raise Disconnected(f'gpiozero has no pin factory {self._factory_name!r}')
        return getattr(module, names[0])()

    def _make(self, gpiozero: Any, pin: Pin, initial: bool, factory: Any) -> Any:
        if pin.output:
            return gpiozero.DigitalOutputDevice(pin.line, active_high=not pin.active_low, initial_value=initial,
                                                pin_factory=factory)
        pull = {'': None, 'up': True, 'down': False}[pin.pull]
        settings: dict[str, Any] = {'pull_up': pull, 'pin_factory': factory}
        if pull is None:
            settings['active_state'] = not pin.active_low
        elif pull is not pin.active_low:
            raise Disconnected(f'gpiozero: pin {pin.name} with pull={pin.pull} is '
                               f'{"active low" if pull else "active high"} by nature')
        made = gpiozero.DigitalInputDevice(pin.line, bounce_time=pin.debounce_ms / 1000.0 or None, **settings)
        if pin.kind == 'button':
            made.when_activated = lambda: self._pressed(pin.name)
        return made

    def _pressed(self, name: str) -> None:
        self._presses[name] = self._presses.get(name, 0) + 1

    def close(self) -> None:
        """See `Backend`."""
        devices, self._devices = self._devices, {}
        for device in devices.values():
            device.close()

    def read(self) -> dict[str, bool]:
        """See `Backend`."""
        if not self._devices:
            raise Disconnected('gpiozero: no pins are open')
        try:
            return {name: bool(device.value) for name, device in self._devices.items()}
        except OSError as error:
            raise NoAnswer(f'gpiozero: {error}') from error

    def write(self, name: str, active: bool) -> None:
        """See `Backend`."""
        if name not in self._devices:
            raise Disconnected('gpiozero: no pins are open')
        try:
            self._devices[name].value = int(active)
        except OSError as error:
            raise NoAnswer(f'gpiozero: {error}') from error

    def presses(self) -> dict[str, int]:
        """See `Backend`."""
        return dict(self._presses)


def backend_for(address: str) -> Backend:
    """`gpio:/dev/gpiochip0` (libgpiod) or `gpiozero:`, `gpiozero:mock`, `gpiozero:lgpio`. Raises ValueError."""
    scheme, colon, rest = address.partition(':')
    if scheme == 'gpio' and rest:
        return Gpiod(rest)
    if scheme == 'gpiozero' and colon:
        return Gpiozero(rest)
    raise ValueError(f'address {address!r} is neither gpio:/dev/gpiochip0 nor gpiozero:[factory]')


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise BadValue(f'the library {name} is missing: pip install -r requirements/gpio.txt') from error
