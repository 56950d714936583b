"""Household's side of a private total: split a day schedule, submit a share to each server, ask what became of it."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Sequence
from typing import Any

from .private_book import Terms
from .private_sum import pack, split, to_units
from .remote_link import LinkClient, Tls
from .remote_wire import Ask, WireError, decode_answer, encode

TRY_S = 2.0


class PrivateError(RuntimeError):
    """A server refuses or is not reached; in words."""


class PrivateRefusedError(PrivateError):
    """A server has answered that it does not take this: nothing has changed there."""


class Servers:
    """Connections to collector and helper. Use as a context manager."""

    def __init__(self, collector: str, helper: str, realm: str, tls: Tls, timeout_s: float = 10.0) -> None:
        self._timeout = timeout_s
        self._links = {'collector': LinkClient(collector, realm, tls), 'helper': LinkClient(helper, realm, tls)}

    def __enter__(self) -> Servers:
        return self

    def __exit__(self, *_: object) -> None:
        for link in self._links.values():
            link.close()

    def ask(self, server: str, op: str, **body: Any) -> dict[str, Any]:
        """Answer of one server; asks again until it is there. Raises `PrivateError`."""
        deadline = time.monotonic() + self._timeout
        while time.monotonic() < deadline:
            heard: list[bytes | None] = []
            there = threading.Event()

            def done(data: bytes | None, heard: list[bytes | None] = heard, there: threading.Event = there) -> None:
                heard.append(data)
                there.set()

            if self._links[server].ask(op, encode(Ask(body=body)), TRY_S, done) and there.wait(2 * TRY_S) and heard[0]:
                try:
                    answer = decode_answer(heard[0])
                except WireError as error:
                    raise PrivateError(f'{server}: {error}') from error
                if answer.error:
                    raise PrivateRefusedError(f'{server}: {answer.error}')
                return answer.body
            time.sleep(0.1)
        raise PrivateError(f'{server}: no answer within {self._timeout:g} s ({self._why(server)})')

    def _why(self, server: str) -> str:
        said: list[str] = []
        there = threading.Event()

        def told(why: str) -> None:
            said.append(why)
            there.set()

        link = self._links[server]
        if link.ask_why(TRY_S, told) and there.wait(2 * TRY_S) and said[0]:
            return said[0]
        return link.problem or 'not reachable, or it does not accept this certificate'

    def terms(self) -> Terms:
        """What both servers say that they agreed on. Raises `PrivateError` when they differ."""
        said = [self.ask(s, 'terms') for s in self._links]
        if said[0] != said[1]:
            raise PrivateError(f'the servers have different terms: {said[0]} and {said[1]}')
        try:
            terms = Terms(**said[0])
        except (TypeError, ValueError) as error:
            raise PrivateError(f'the servers\' terms make no sense: {error}') from error
        return terms

    def submit(self, epoch: int, powers: Sequence[float], *, minimum: int = 2) -> str:
        """Submit a day schedule (W, + = charging, one value per slot); its id. It takes the place of an earlier one.

        It counts when both servers have it, else not at all; an earlier one does not count any more when the helper has
        taken this one. `minimum`: fewer households than this are not private enough for this one. Raises
        `PrivateError`, `private_sum.ShareError`.
        """
        terms = self.terms()
        if terms.minimum < minimum:
            raise PrivateError(f'the servers add up {terms.minimum} households already, {minimum} are wanted')
        if len(powers) != terms.slots:
            raise PrivateError(f'{len(powers)} values for {terms.slots} slots')
        name = secrets.token_hex(16)
        for_collector, for_helper = split(to_units(powers, terms.max_power))
        reached = False  # whether a server may have it
        try:
            for server, share in (('helper', for_helper), ('collector', for_collector)):
                self.ask(server, 'submit', epoch=epoch, submission=name, share=pack(share))
                reached = True
        except PrivateError as error:
            if not reached and isinstance(error, PrivateRefusedError):
                raise
            raise PrivateError(f'{error}; {self._try_to_withdraw(epoch, name)}') from error
        return name

    def _try_to_withdraw(self, epoch: int, name: str) -> str:
        try:
            self.withdraw(epoch, name)
        except PrivateError as error:
            return f'not withdrawn everywhere ({error}); it counts only where both servers have it'
        return 'withdrawn from both servers'

    def withdraw(self, epoch: int, name: str) -> None:
        """Take a submission back at both servers; one is enough for it not to count. Raises `PrivateError`."""
        problems = []
        for server in self._links:
            try:
                self.ask(server, 'withdraw', epoch=epoch, submission=name)
            except PrivateError as error:
                problems.append(str(error))
        if problems:
            raise PrivateError('; '.join(problems))

    def result(self, epoch: int) -> dict[str, Any]:
        """What became of an epoch: state (open, added, applied, refused), message, households, included."""
        return self.ask('collector', 'result', epoch=epoch)


def next_epoch(terms: Terms, now: float) -> int:
    """Begin of the first epoch that can still be submitted for."""
    earliest = now + terms.close_before
    return round(terms.offset + ((earliest - terms.offset) // terms.length + 1) * terms.length)


