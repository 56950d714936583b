"""The steps of a simulation, within the executor: physics, then what is due, until all messages have settled."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from bess_core.container import Container
from bess_core.exchange import Exchange
from bess_core.runtime import Runtime

from .limit_watch import LimitWatch
from .plant import Plant

Progress = Callable[[float, float], None]
TICKS_AT_ONCE = 10  # before the executor has its turn, which costs as much as several messages


class Conductor:
    """Runs the steps inside the executor."""

    def __init__(self, runtime: Runtime, container: Container, plant: Plant, tick: float, end: float,
                 progress: Progress | None, substeps: int = 1) -> None:
        self._runtime, self._ctx, self._plant = runtime, container.ctx, plant
        self._ticker: Any = container.ticker
        self._tick, self._end, self._progress = tick, end, progress
        self._substeps = substeps
        self._steps = self._run()
        self._activity = -1
        self._ticks = 0  # that are over
        self._posted: list[Callable[[], None]] = []
        self._ctx.post = self._posted.append
        self.limits = LimitWatch()
        self._batteries = [n for n in container.nodes if n.role == 'battery']
        self.error: BaseException | None = None

    def start(self) -> None:
        """Begin; `runtime.spin` returns when the end is reached."""
        self._runtime.post(self._next)

    def _next(self) -> None:
        """Some ticks, or a look at what still comes through the executor."""
        ctx = self._ctx
        if ctx.exchange is None or ctx.asking:
            going = self._look()
        else:
            ticks, going = self._ticks + TICKS_AT_ONCE, True
            while going and self._ticks < ticks and not self._held_up():
                self._settle(ctx.exchange)
                going = self._held_up() or self._step()
        if going and not self._runtime.stopped.done():
            self._activity = ctx.activity
            self._runtime.post(self._next)

    def _held_up(self) -> bool:
        """Whether it takes the executor to go on: for the answer of a service, or because a signal came."""
        return self._ctx.asking > 0 or bool(self._runtime.stopped.done())

    def _settle(self, exchange: Exchange) -> None:
        """Hand over all messages, and what follows from them, in the order of the executor."""
        while (exchange.queue or self._posted) and not self._held_up():
            exchange.deliver()
            self._call_posted()

    def _look(self) -> bool:
        """Run what nodes have posted; with nothing posted and no message since the last look, go on.

        Each look comes behind all messages that were under way at the one before. Nodes post here and
        not into the executor, where each call costs as much as a message.
        """
        exchange = self._ctx.exchange
        if exchange is not None and exchange.queue:
            exchange.deliver()
            self._call_posted()
        elif self._posted:
            self._call_posted()
        elif self._ctx.activity == self._activity:
            return self._step()
        return True

    def _call_posted(self) -> None:
        calls = self._posted.copy()
        self._posted.clear()
        for call in calls:
            call()

    def _step(self) -> bool:
        """What is due next; False at the end."""
        try:
            next(self._steps)
        except StopIteration:
            self._runtime.stop()
            return False
        except BaseException as error:  # noqa: BLE001 (handed to the caller of simulate)
            self.error = error
            self._runtime.stop()
            return False
        return True

    def _run(self) -> Iterator[None]:
        now = 0.0
        steps = round(self._end / self._tick)
        told = time.monotonic()
        for k in range(1, steps + 1):
            now = k * self._tick
            for _ in range(self._substeps):
                self._plant.step(self._tick / self._substeps)
            while (due := self._ticker.next_due()) is not None and due[0] <= now + 1e-9:
                self._ticker.run(*due)
                yield
            for node in self._batteries:
                self.limits.look(node.name, node.reading)
            if self._progress is not None and time.monotonic() - told > 0.5:
                told = time.monotonic()
                self._progress(k / steps, now)
            self._ticks = k
