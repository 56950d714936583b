"""Calls whose answers may be lost are asked again until they are answered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from std_srvs.srv import SetBool

from bess_core.calls import Call
from bess_core.node import BessNode


@dataclass(frozen=True)
class NoParams:
    """None."""


class Asker(BessNode):
    """Asks one service."""

    Params = NoParams

    def on_bess_configure(self) -> None:
        self.client = self.create_client(SetBool, self.ctx.topic('switch'))

    def on_bess_cleanup(self) -> None:
        if hasattr(self, 'client'):
            self.destroy_client(self.client)
            del self.client


class Server(BessNode):
    """Answers from the request number `deaf` + 1 on, as one that has not found the client before."""

    Params = NoParams
    deaf = 0

    def on_bess_configure(self) -> None:
        self.asked = 0
        self.service = self.create_deferred_service(SetBool, self.ctx.topic('switch'), self.on_request)

    def on_request(self, request: SetBool.Request, answer: Callable[[Any], None]) -> None:
        self.asked += 1
        if self.asked > self.deaf:
            answer(SetBool.Response(success=request.data, message=f'request {self.asked}'))


@pytest.fixture
def asker(graph: Any) -> Any:
    node = graph.add(Asker, 'asker')
    graph.up(node)
    return node


@pytest.mark.parametrize('deaf', [0, 2])
def test_it_is_asked_until_it_is_answered_and_told_once(graph: Any, asker: Any, deaf: int) -> None:
    server = graph.add(Server, 'server')
    server.deaf = deaf
    graph.up(server)
    graph.wait(asker.client.service_is_ready, 'service')
    told: list[Any] = []
    Call(asker, asker.client, SetBool.Request(data=True), 5.0, lambda *said: told.append(said), 0.1)
    graph.wait(lambda: told, 'an answer')
    graph.settle(0.3)
    ((answer, reason),) = told
    assert answer.success and reason == ''
    assert not asker.open_calls
    assert deaf < server.asked <= deaf + 2, 'and not asked any more'


def test_a_service_that_comes_late_is_waited_for(graph: Any, asker: Any) -> None:
    told: list[Any] = []
    Call(asker, asker.client, SetBool.Request(data=True), 8.0, lambda *said: told.append(said), 0.1)
    graph.settle(0.3)
    assert not told
    graph.up(graph.add(Server, 'server'))
    graph.wait(lambda: told, 'an answer')
    assert told[0][0].success


@pytest.mark.parametrize('there', [True, False])
def test_silence_has_an_end_and_a_reason(graph: Any, asker: Any, there: bool) -> None:
    if there:
        server = graph.add(Server, 'server')
        server.deaf = 1000
        graph.up(server)
        graph.wait(asker.client.service_is_ready, 'service')
    told: list[Any] = []
    Call(asker, asker.client, SetBool.Request(), 0.4, lambda *said: told.append(said), 0.1)
    graph.wait(lambda: told, 'the end')
    assert told == [(None, 'it does not answer within 0.4 s' if there else 'it is not there')]


def test_a_node_that_is_cleaned_up_gives_up_what_it_asked(graph: Any, asker: Any) -> None:
    told: list[Any] = []
    Call(asker, asker.client, SetBool.Request(), 60.0, lambda *said: told.append(said))
    assert asker.trigger_deactivate().name == asker.trigger_cleanup().name == 'SUCCESS'
    assert told == [(None, 'the node is being cleaned up')] and not asker.open_calls
    graph.settle(0.1)
    assert len(told) == 1
