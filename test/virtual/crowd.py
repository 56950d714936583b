"""A process of a crowd: many clients of one battery, each with an endpoint of its own and one request.

    crowd.py SERVICE FIRST COUNT

Says `ready` when all its clients have found the service, waits for a line with a wall time on standard input, asks
with all of them at once and prints the answers as one JSON object: client number -> [accepted, event id, message].
Who hears nothing asks again under the same id, as every client of a battery may.
Standard input that ends stops it.
"""

from __future__ import annotations

import json
import sys
import time

import rclpy
from rclpy.node import Node

from bess.srv import ScheduleSetPower
from bess_core import qos
from bess_core.convert import wall_stamp
from bess_core.runtime import Runtime

FOUND_S, AGAIN_S, TIMES = 120.0, 20.0, 5


def request(number: int, wall: float) -> ScheduleSetPower.Request:
    """What client `number` wants: a power, a time and an id that nobody else has."""
    return ScheduleSetPower.Request(power=1.0 + number / 100.0, start=wall_stamp(wall + 600 + number),
                                    end=wall_stamp(wall + 1200 + number), request_id=f'client {number}',
                                    source=f'crowd {number}')


def main(service: str, first: int, count: int) -> int:
    with Runtime(signals=False) as runtime:
        node = Node(f'crowd_{first}', namespace='/site', start_parameter_services=False, enable_rosout=False)
        clients = [node.create_client(ScheduleSetPower, service, qos_profile=qos.SERVICE) for _ in range(count)]
        runtime.executor.add_node(node)
        if not runtime.spin_until(lambda: all(c.service_is_ready() for c in clients), FOUND_S):
            print(f'{sum(not c.service_is_ready() for c in clients)} clients found no service', flush=True)
            return 1
        print('ready', flush=True)
        line = sys.stdin.readline()
        if not line:
            return 1
        wall, began = float(line), time.monotonic()
        answers: dict[int, list[object]] = {}
        asked = 0
        for _ in range(TIMES):
            futures = {i: client.call_async(request(first + i, wall)) for i, client in enumerate(clients)
                       if first + i not in answers}
            asked += len(futures)
            runtime.spin_until(lambda f=futures: all(x.done() for x in f.values()), AGAIN_S)
            answers |= {first + i: [f.result().accepted, f.result().event_id, f.result().message]
                        for i, f in futures.items() if f.done()}
            if len(answers) == count:
                break
        print(json.dumps({'answers': answers, 'asked': asked, 'seconds': time.monotonic() - began}), flush=True)
        return 0 if len(answers) == count else 1


if __name__ == '__main__':
    code = main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    sys.stdout.flush()
    if rclpy.ok():
        rclpy.shutdown()
    sys.exit(code)
