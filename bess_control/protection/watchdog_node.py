"""Watchdog node: feeds a hardware watchdog only while the control grid is healthy.

The kernel's interface: any write feeds; the letter V before closing disarms it (magic close), where the
driver allows that; WDIOC_SETTIMEOUT sets the time after which the machine is reset (Linux,
Documentation/watchdog/watchdog-api.rst).
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
from dataclasses import dataclass
from typing import Any, ClassVar

from bess.msg import Heartbeat
from bess_core import plugins, qos
from bess_core.node import BessNode
from bess_core.params import param
from bess_core.ticker import Tick
from bess_core.values import Severity

from .feeding import FeedRule

WDIOC_SETTIMEOUT = 0xC0045706  # _IOWR('W', 6, int)


@dataclass(frozen=True)
class WatchdogParams:
    """Parameters of the watchdog node."""

    device: str = param('', '', 'watchdog device, e.g. /dev/watchdog, or strato_pi (strato_pi:/sys/class/stratopi); '
                                 'empty = none, only the fault')
    nodes: list[str] = param([], '', 'nodes that must live and work; name the power manager and the drivers that '
                             'are polled all the time')
    timeout: float = param(2.0, 's', 'a node that is silent or makes no progress for so long is not healthy', low=0.2,
                           high=60.0)
    period: float = param(0.5, 's', 'how often the watchdog is fed', low=0.05, high=10.0)
    hardware_timeout: int = param(15, 's', 'time without food after which the hardware resets the machine', low=1,
                                  high=3600)
    max_late: float = param(1.0, 's', 'an own tick later than this feeds nothing', low=0.05, high=60.0)
    grace: float = param(30.0, 's', 'time that bring-up may take', low=0.0, high=600.0)
    disarm_on_end: bool = param(True, '', 'an orderly end disarms it; false: only a running system feeds it')

    def __post_init__(self) -> None:
        if not self.nodes:
            raise ValueError('nodes is empty; a watchdog without a condition would feed a dead system')
        if self.period * 3.0 > self.hardware_timeout:
            raise ValueError(f'period {self.period:g} s is too long for hardware_timeout {self.hardware_timeout} s; '
                             'at most a third of it')


class WatchdogNode(BessNode):
    """Fault `watchdog.starved` while it is not fed."""

    Params: ClassVar[type] = WatchdogParams
    role: ClassVar[str] = 'watchdog'

    def on_bess_configure(self) -> None:
        """Arm it. Raises OSError when the device cannot be opened."""
        p = self.params
        self._rule = FeedRule(p.nodes, p.timeout, now=self.clock.now(), grace=p.grace, max_late=p.max_late)
        self._fd = -1
        self._board: Any = None
        self.feeds, self.why = 0, ''
        name, _, place = p.device.partition(':')
        if name and not p.device.startswith('/'):
            self._board = plugins.load(plugins.WATCHDOGS, name)(place)
            self._board.start(float(p.hardware_timeout))
        elif p.device:
            # Non-blocking: a stuck device must not hold the executor; a real one never blocks.
            self._fd = os.open(p.device, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            if stat.S_ISCHR(os.fstat(self._fd).st_mode):
                fcntl.ioctl(self._fd, WDIOC_SETTIMEOUT, struct.pack('i', p.hardware_timeout))
        self._own = [self.create_subscription(Heartbeat, self.ctx.topic('heartbeat'), self._on_heartbeat, qos.EVENT)]
        self.every(p.period, self._tick, phase=2)

    def on_bess_cleanup(self) -> None:
        """Disarm where that is wished; otherwise the hardware resets the machine unless somebody goes on feeding."""
        for subscription in getattr(self, '_own', []):
            self.destroy_subscription(subscription)
        self._own = []
        board, self._board = getattr(self, '_board', None), None
        if board is not None and self.params.disarm_on_end and not self.why:
            board.stop()
        fd, self._fd = getattr(self, '_fd', -1), -1
        if fd >= 0:
            try:
                # A starved watchdog is not disarmed: the end may be part of what went wrong.
                if self.params.disarm_on_end and not self.why:
                    os.write(fd, b'V')
            finally:
                os.close(fd)

    def _on_heartbeat(self, message: Heartbeat) -> None:
        self._rule.beat(message.node, message.lifecycle, message.progress, self.clock.now())

    def _tick(self, tick: Tick) -> None:
        self._rule.tick(tick.late)
        self.why = self._rule.problem(self.clock.now())
        self.set_fault(bool(self.why), 'watchdog.starved', Severity.ERROR, f'not fed: {self.why}')
        if self.why:
            return
        self.progress += 1
        if self._fd < 0 and self._board is None:
            return
        try:
            if self._board is None:
                os.write(self._fd, b'1')
            else:
                self._board.feed()
        except OSError as error:
            self.raise_fault('watchdog.device', Severity.ERROR, f'{self.params.device} cannot be fed: {error}')
        else:
            self.feeds += 1
            self.clear_fault('watchdog.device')

    def diagnostics(self) -> dict[str, Any]:
        """For people."""
        return {'device': self.params.device, 'feeds': getattr(self, 'feeds', 0), 'starved': getattr(self, 'why', '')}
