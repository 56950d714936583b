"""The relay (any SetBool service) that lets batteries sleep: told until it answers."""

from __future__ import annotations

from functools import partial
from math import inf
from typing import Any

from std_srvs.srv import SetBool

from bess_core.values import Severity

ANSWER_S = 2.0  # a request without an answer for so long may be sent again


class SleepSwitch:
    """For the site node `node`; `service` relative to the site, '' = there is none."""

    def __init__(self, node: Any, service: str) -> None:
        self._node, self._service = node, service
        self._client = node.create_client(SetBool, node.ctx.topic(service)) if service else None
        self._told: bool | None = None
        self._asked = -inf

    def close(self) -> None:
        """Take it back."""
        if self._client is not None:
            self._node.destroy_client(self._client)
            self._client = None

    def drive(self, asleep: bool, now: float) -> None:
        """On when the site sleeps, off as soon as it wakes; a site that never slept tells nothing."""
        if self._client is None or asleep is self._told or (self._told is None and not asleep):
            return
        if now - self._asked < ANSWER_S or not self._client.service_is_ready():
            return
        self._asked = now
        self._client.call_async(SetBool.Request(data=asleep)).add_done_callback(partial(self._answered, asleep))

    def _answered(self, asleep: bool, future: Any) -> None:
        result = future.result()
        ok = result is not None and result.success
        self._asked = -inf if ok else self._asked
        self._told = asleep if ok else self._told
        self._node.set_fault(not ok, 'site.sleep_switch', Severity.WARNING,
                             f'{self._service} did not switch: {getattr(result, "message", "no answer")}')
