"""What a mode switches: outputs of I/O modules, topics, and a converter that is to form the grid."""

from __future__ import annotations

from typing import Any

from std_msgs.msg import Bool
from std_srvs.srv import SetBool

from bess.msg import OutputSetpoint
from bess_core import qos
from bess_core.calls import Call
from bess_core.convert import set_stamp
from bess_core.leases import Numbers
from bess_core.values import ConverterReading, Quality, Severity

OUTPUT_LEASE_S = 5.0  # lease of an output of an I/O module; renewed in turn, one per module and look
FORM_S = 5.0  # how long the converter may take to answer
FORM_AGAIN_S = 1.0  # time between two orders to form (or follow) the grid while the converter does not


class ModeOutputs:
    """For the mode node `node`, whose mode may name a `converter`."""

    def __init__(self, node: Any, converter: str) -> None:
        self._node, self._converter = node, converter
        self._outputs: dict[str, tuple[Any, bool | None]] = {}  # publisher, last value
        self._sent: dict[str, tuple[bool | None, float]] = {}  # value, when
        self._numbers = Numbers(node.clock.now())
        self._client: Any = None
        self._asked_at, self._asking = -1e9, False

    def close(self) -> None:
        """Take back what it made."""
        for publisher, _ in self._outputs.values():
            self._node.destroy_publisher(publisher)
        self._outputs.clear()
        if self._client is not None:
            self._node.destroy_client(self._client)
            self._client = None

    def drive(self, outputs: dict[str, bool], due: bool, now: float) -> None:
        """`module:output` are leased orders to an I/O module, other names topics of std_msgs/Bool. `due`: again."""
        node = self._node
        waiting: dict[str, list[tuple[bool, float, str]]] = {}
        for name, value in outputs.items():
            module, colon, _ = name.partition(':')
            kind, topic = (OutputSetpoint, f'{module}/output') if colon else (Bool, name)
            publisher, last = self._outputs.get(name, (None, None))
            if publisher is None:
                publisher = node.create_publisher(kind, node.ctx.topic(topic), qos.SETPOINT if colon else qos.STATE)
            if colon:
                sent, at = self._sent.get(name, (None, -1e9))
                waiting.setdefault(module, []).append((sent is value, at, name))
            elif due or value is not last:
                publisher.publish(Bool(data=bool(value)))
            self._outputs[name] = (publisher, value)
        for entries in waiting.values():
            # A module keeps the newest order only: one at a time, changed ones first, then the oldest.
            same, at, name = min(entries)
            if same and now - at < 0.2 * OUTPUT_LEASE_S:
                continue
            publisher, wanted = self._outputs[name]
            message = OutputSetpoint(name=name.partition(':')[2], value=1.0 if wanted else 0.0, lease=OUTPUT_LEASE_S,
                                     source=node.get_name(), sequence=self._numbers.next())
            set_stamp(message.header.stamp, node.clock, now)
            publisher.publish(message)
            self._sent[name] = (wanted, now)

    def form(self, wanted: bool | None, converter: ConverterReading | None, now: float) -> None:
        """Ask the converter until it measures what is wanted; None = the mode has nothing to say."""
        node = self._node
        if wanted is None or converter is None or self._asking or now - self._asked_at < FORM_AGAIN_S:
            return
        if converter.quality is Quality.OK and converter.grid_forming is wanted:
            node.clear_fault('mode.grid_forming')
            return
        self._asked_at = now
        if self._client is None:
            self._client = node.create_client(SetBool, node.ctx.topic(f'{self._converter}/set_grid_forming'))
        if not self._client.service_is_ready():
            node.raise_fault('mode.grid_forming', Severity.ERROR, f'{self._converter} takes no order to form the grid')
            return
        self._asking = True
        Call(node, self._client, SetBool.Request(data=wanted), FORM_S, self._formed, FORM_AGAIN_S)

    def _formed(self, said: Any, why: str) -> None:
        self._asking = False
        refused = why if said is None else '' if said.success else said.message or 'refused'
        if self._client is not None:
            self._node.set_fault(bool(refused), 'mode.grid_forming', Severity.ERROR, f'{self._converter}: {refused}')
