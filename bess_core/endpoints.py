"""What a node offers and listens to: publishers, subscriptions, services and clients, each with a guard.

An exception in a callback is logged with its traceback and becomes the fault ``node.callback``; the process goes on.
Messages go through the middleware, or, where nobody outside of the process can listen, through an exchange.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.lifecycle import LifecycleNode
from rclpy.serialization import serialize_message

from . import cdr, log, qos
from .context import NodeContext
from .exchange import Exchange, LocalPublisher, LocalSubscription
from .values import Severity


def _serialized(callback: Callable[[bytes], object]) -> Callable[[Any], None]:
    """A callback of bytes for whoever has the message."""
    def taken(message: Any) -> None:
        callback(serialize_message(message))

    return taken


class _Slot:
    """One request of a deferred service: answered before or after its callback returned."""

    __slots__ = ('final', 'header')

    def __init__(self) -> None:
        self.final: Any = None
        self.header: Any = None


class Endpoints(LifecycleNode):
    """A lifecycle node whose callbacks cannot stop the process. Subclasses have `raise_fault`."""

    def __init__(self, ctx: NodeContext, name: str, **kwargs: Any) -> None:
        self.ctx = ctx
        self.log = log.get(f'{ctx.namespace}/{name}')
        self._alive: dict[Any, list[bool]] = {}  # subscriptions, see `create_subscription`
        self._exchange: Exchange | None = None  # what rclpy makes for itself goes through the middleware
        self._local: list[LocalPublisher | LocalSubscription] = []
        super().__init__(name, **kwargs)
        self._exchange = ctx.exchange

    def raise_fault(self, fault_id: str, severity: Severity, text: str) -> None:
        """Make a fault active (again)."""
        raise NotImplementedError(f'{type(self).__name__} has no faults')

    def create_publisher(self, msg_type: Any, topic: str, qos_profile: Any, **kwargs: Any) -> Any:
        """As rclpy's; messages are encoded by `bess_core.cdr` where it can (several times faster)."""
        if self._exchange is not None:
            self._local.append(publisher := self._exchange.publisher(
                msg_type, self.resolve_topic_name(topic), qos.profile(qos_profile)))
            return publisher
        kwargs.setdefault('publisher_class', cdr.EncodingPublisher)
        return super().create_publisher(msg_type, topic, qos_profile, **kwargs)

    def create_subscription(self, msg_type: Any, topic: str, callback: Any, *args: Any, **kwargs: Any) -> Any:
        """As rclpy's, with an exception guard: one bad callback must not stop the process.

        Messages are decoded by `bess_core.cdr` where it can (several times faster than rclpy's own way).
        """
        raw = bool(kwargs.get('raw'))
        if self._exchange is not None:
            profile = qos.profile(args[0] if args else kwargs['qos_profile'])
            local = self._exchange.subscription(
                msg_type, self.resolve_topic_name(topic), _serialized(callback) if raw else callback, profile,
                self._callback_failed)
            self._local.append(local)
            return local
        decode: Any = None if raw else cdr.decoder(msg_type)
        alive = [True]  # empty once it is destroyed: the executor still hands over what it had queued before

        def received(data: Any) -> None:  # `_guarded`, without a call more for each message
            if not alive:
                return
            self.ctx.activity += 1
            try:
                callback(data if decode is None else decode(data))
            except Exception as error:  # noqa: BLE001 - logged and a fault
                self._callback_failed(callback, error)

        if decode is not None:
            kwargs['raw'] = True  # decoded here
        subscription = super().create_subscription(msg_type, topic, received, *args, **kwargs)
        self._alive[subscription] = alive
        return subscription

    def destroy_subscription(self, subscription: Any) -> bool:
        """As rclpy's; nothing that has arrived before is handed over any more."""
        self._alive.pop(subscription, []).clear()
        if isinstance(subscription, LocalSubscription):
            return self._end_local(subscription)
        return super().destroy_subscription(subscription)

    def destroy_publisher(self, publisher: Any) -> bool:
        """As rclpy's."""
        if isinstance(publisher, LocalPublisher):
            return self._end_local(publisher)
        return super().destroy_publisher(publisher)

    def _end_local(self, endpoint: LocalPublisher | LocalSubscription) -> bool:
        if self._exchange is None or endpoint not in self._local:
            return False
        self._local.remove(endpoint)
        return self._exchange.remove(endpoint)

    def create_client(self, srv_type: Any, srv_name: str, *args: Any, **kwargs: Any) -> Any:
        """As rclpy's; with an exchange, who moves time on can see which calls are not answered yet."""
        client = super().create_client(srv_type, srv_name, *args, **kwargs)
        if self._exchange is not None:
            ctx, call = self.ctx, client.call_async

            def answered(_: Any) -> None:
                ctx.asking -= 1

            def counted(request: Any) -> Any:
                future = call(request)
                ctx.asking += 1
                future.add_done_callback(answered)
                return future

            client.call_async = counted  # type: ignore[method-assign]
        return client

    def create_service(  # type: ignore[override]
        self, srv_type: Any, name: str, callback: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """As rclpy's, with an exception guard: the caller gets an empty answer, the site goes on."""

        def guarded(request: Any, response: Any) -> Any:
            self.ctx.activity += 1
            try:
                return callback(request, response)
            except Exception as error:
                self.log.exception('service failed', service=name)
                self.raise_fault('node.callback', Severity.ERROR, f'{name}: {type(error).__name__}: {error}')
                refused = srv_type.Response()
                if hasattr(refused, 'message'):
                    refused.message = f'internal error: {error}'
                return refused

        return super().create_service(srv_type, name, guarded, *args, **kwargs)

    def create_deferred_service(
        self, srv_type: Any, name: str, callback: Callable[[Any, Callable[[Any], None]], None], **kwargs: Any
    ) -> Any:
        """A service whose answer may come later: `callback(request, answer)`, then `answer(response)` once.

        For work that waits for a wire; the executor goes on meanwhile. Whoever takes `answer` must
        call it in the executor thread, also when the work fails.
        """
        slots: dict[int, _Slot] = {}

        def on_request(request: Any, response: Any) -> Any:
            slot = slots[id(response)] = _Slot()

            def answer(final: Any) -> None:
                if slot.header is None:
                    slot.final = final
                else:
                    send(final, slot.header)

            try:
                callback(request, answer)
            except BaseException:
                slot.final = response  # the guard of create_service fills it in
                raise
            return response

        service = self.create_service(srv_type, name, on_request, **kwargs)
        send = service.send_response

        def send_response(response: Any, header: Any) -> None:
            slot = slots.pop(id(response), None)
            if slot is None:
                send(response, header)
            elif slot.final is not None:
                send(slot.final, header)
            else:
                slot.header = header

        service.send_response = send_response
        return service

    def destroy_node(self) -> None:
        """Take what the node offers off the graph at once.

        rclpy leaves the services of the life cycle to the garbage collector: until then a request could reach a
        node that is gone, and a new one of the same name would be there twice.
        """
        for endpoint in self._local.copy():
            self._end_local(endpoint)
        super().destroy_node()
        self._state_machine.destroy_when_not_in_use()

    def _guarded(self, fn: Callable[..., Any], *args: Any) -> None:
        self.ctx.activity += 1
        try:
            fn(*args)
        except Exception as error:  # noqa: BLE001 - logged and a fault
            self._callback_failed(fn, error)

    def _callback_failed(self, fn: Callable[..., Any], error: Exception) -> None:
        self.log.exception('callback failed', callback=getattr(fn, '__qualname__', str(fn)))
        self.raise_fault('node.callback', Severity.ERROR, f'{type(error).__name__}: {error}')
