"""rclpy without its traps: one EventsExecutor in the main thread, orderly signals and exit.

Why each line is as it is: with the Jazzy wheels `spin()` hangs, rclpy's own signal handlers shut the
context down before safe setpoints can go out, and a process that exits while a spin thread lives aborts.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

os.environ.setdefault('ROS_PYTHON_CHECK_FIELDS', '1')  # before the first message import
os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')

import rclpy
from rclpy.experimental import EventsExecutor  # type: ignore[attr-defined]
from rclpy.signals import SignalHandlerOptions
from rclpy.task import Future

END_S = 10.0  # how long the middleware may take to end; it takes some ms


@contextmanager
def _bounded() -> Iterator[None]:
    """End the process with code 1, and its stacks on stderr, when the middleware does not end in `END_S`.

    It can wait for ever: Fast DDS 2.14 takes its listener away (`set_listener`) while its discovery thread waits for a
    lock of the same participant, when another process leaves at that moment. It turns round and round then and holds
    the GIL, so that no thread or signal handler of Python would see it.
    """
    faulthandler.dump_traceback_later(END_S, exit=True, file=sys.__stderr__ or 2)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


class Runtime:
    """Executor of this process. Use as a context manager; `spin` blocks until `stop` or a signal."""

    def __init__(self, args: list[str] | None = None, *, signals: bool = True) -> None:
        rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
        self.executor = EventsExecutor()
        self.stopped: Future = Future()
        self.signal = 0
        self._ended = False
        self._previous: dict[int, Any] = {}
        if signals:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        self.signal = number
        self.stop()

    def stop(self) -> None:
        """End `spin`; safe from any thread and repeatedly."""
        if not self.stopped.done():
            self.stopped.set_result(None)
        self.executor.wake()

    def post(self, fn: Callable[[], None]) -> None:
        """Run `fn` in the executor thread."""
        if not self._ended:
            self.executor.create_task(fn)

    def spin(self, timeout_s: float = 1e9) -> bool:
        """Handle callbacks until `stop`; whether it was stopped (not timed out).

        The process needs something periodic (10 Hz or faster, a `Ticker`) for signals to be seen.
        """
        # Not spin(): with these wheels it hangs, and so does a time-out above about 7e9 s.
        self.executor.spin_until_future_complete(self.stopped, timeout_sec=timeout_s)
        return bool(self.stopped.done())

    def spin_until(self, done: Callable[[], bool], timeout_s: float) -> bool:
        """Handle callbacks until `done()` is true or the time is over; whether it was."""
        deadline = time.monotonic() + timeout_s
        # What was true once is not asked again: it may not be true a moment later, or have an effect.
        while not (reached := done()) and not self.stopped.done():
            left = deadline - time.monotonic()
            if left <= 0:
                break
            self.executor.spin_until_future_complete(self.stopped, timeout_sec=min(left, 0.02))
        return reached

    def drop(self, node: Any) -> None:
        """Take a node out and destroy it; with the last one of a process goes the middleware."""
        with _bounded():
            self.executor.remove_node(node)
            node.destroy_node()

    def close(self) -> None:
        """Shut down; idempotent."""
        if self._ended:
            return
        self._ended = True
        with _bounded():
            self.executor.shutdown()
            rclpy.try_shutdown()  # type: ignore[attr-defined]
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
