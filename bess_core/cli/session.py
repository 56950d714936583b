"""What the commands share: arguments, one-line errors, a node on the graph, calls with a deadline."""

from __future__ import annotations

import argparse
import difflib
import functools
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from . import words
from .running import Running, domain, running

#: FastDDS repeats lost discovery messages every 3 s: whoever looks for less may miss a site that runs.
TIMEOUT_S = 5.0
QUIET_S = 0.5  # the graph is taken for complete when nothing new came for so long
DISCOVERY_S = 15.0  # how much longer a site that is known to run is waited for
LOOK_S = 0.1  # period of looks at the graph
AGAIN_S = 1.0  # from a question without an answer to the next one
READS = re.compile(r'Get|List|Query|ScheduleAt$|EnergyStatement$')  # services that change nothing
SHOWN = 8  # names offered in an error
_NAME = re.compile(r'/?[A-Za-z_]\w*(/[A-Za-z_]\w*)*')
_HIDDEN_SERVICE = 'type_description_interfaces/srv/GetTypeDescription'


class CliError(Exception):
    """Ends a command with one line on stderr; code 1 = refused or not found, 2 = wrong use."""

    def __init__(self, text: str, code: int = 1) -> None:
        self.code = code
        super().__init__(text)


# -- arguments -----------------------------------------------------------------------------------


def add_command(commands: Any, name: str, short: str, text: str | None, examples: str,
                run: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
    """Parser of a command with description and examples; errors of `run` become one line."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=short, description=text, epilog=f'examples:\n{examples.rstrip()}',
        formatter_class=argparse.RawDescriptionHelpFormatter)

    @functools.wraps(run)
    def guarded(args: argparse.Namespace) -> int:
        try:
            return run(args)
        except CliError as error:
            print(f'bess {name}: {error}', file=sys.stderr)
            return error.code

    # `--power -4kW`: a value, not an option; no option of ours begins with a digit.
    parser._negative_number_matcher = re.compile(r'^-\.?\d')
    parser.set_defaults(run=guarded, parser=parser)
    return parser


def add_site(parser: argparse.ArgumentParser) -> None:
    """`--site` and `--timeout`."""
    parser.add_argument('--site', default='', metavar='NAME',
                        help='site (ROS namespace), needed when several run')
    add_timeout(parser)


def add_timeout(parser: argparse.ArgumentParser) -> None:
    """`--timeout`."""
    parser.add_argument('--timeout', type=seconds, default=TIMEOUT_S, metavar='S',
                        help='longest wait for the graph and for an answer, s (default: %(default)g)')


def add_json(parser: argparse.ArgumentParser, what: str = 'the result as JSON') -> None:
    """`--json`."""
    parser.add_argument('--json', action='store_true', help=f'print {what}')


def seconds(text: str) -> float:
    """Duration as an argparse type, in s."""
    try:
        return words.duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def positive(text: str) -> float:
    """A finite number above 0 as an argparse type."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text!r} is not a number') from None
    if not 0.0 < value < float('inf'):
        raise argparse.ArgumentTypeError(f'{text} is not a finite number above 0')
    return value


def count(text: str) -> int:
    """A whole number from 1 as an argparse type."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is not a whole number from 1')
    return int(text)


def print_json(values: Any) -> None:
    """One JSON value on one line."""
    print(json.dumps(values), flush=True)


def nearest(name: str, known: Iterable[str], limit: int = SHOWN) -> list[str]:
    """The names most like `name`, the best first; some of `known` when none is alike."""
    names = sorted(set(known))
    close = difflib.get_close_matches(name, names, n=limit, cutoff=0.6)
    last = name.rsplit('/', 1)[-1]
    close += [n for n in names if last and last in n and n not in close]
    return (close or names)[:limit]


def absolute(name: str) -> str:
    """A ROS name with leading slash, '' stays. Raises `CliError` for what is no name."""
    if not name:
        return ''
    if not _NAME.fullmatch(name.rstrip('/')):
        raise CliError(f'{name!r} is not a ROS name (letters, digits, underscore, parts divided by /)', 2)
    return '/' + name.strip('/')


# -- the graph -----------------------------------------------------------------------------------


def where() -> str:
    """Where this process looks for sites, for errors."""
    reach = os.environ.get('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    return f'ROS_DOMAIN_ID={domain()}, discovery range {reach}'


def noted(wanted: str, on: str = '') -> list[Running]:
    """Sites that were started here by this user: of this name ('' = any), in this ROS domain ('' = any)."""
    return [r for r in running() if wanted in ('', r.namespace) and on in ('', r.domain)]


def no_site(wanted: str) -> str:
    """Why no site was found, in words."""
    text = f'no site{" " + wanted if wanted else ""} is heard here ({where()})'
    if here := noted(wanted, domain()):
        return (f'{text}, although {here[0].namespace} was started as process {here[0].pid}: see the log in '
                f'{here[0].state}/log')
    if far := noted(wanted):
        return f'{text}; {far[0].namespace} runs with ROS_DOMAIN_ID={far[0].domain}: set the same here'
    return f'{text}; start one with `bess up`'


class Session:
    """A node on the graph for the length of one command. Made by `open_session`."""

    def __init__(self, runtime: Any, node: Any, timeout_s: float) -> None:
        self.runtime, self.node, self.timeout = runtime, node, timeout_s

    def until(self, done: Callable[[], Any], timeout_s: float | None = None) -> bool:
        """Handle messages until `done()`; False at the deadline. Raises KeyboardInterrupt on a signal."""
        wait = self.timeout if timeout_s is None else timeout_s
        reached = self.runtime.spin_until(lambda: bool(done()), wait)
        if self.runtime.stopped.done():
            raise KeyboardInterrupt
        return bool(reached)

    def settle(self, ready: Callable[[], Any], seen: Callable[[], Any],
               timeout_s: float | None = None, look: Callable[[], object] | None = None,
               quiet: float = 1.0) -> bool:
        """Until `ready()` holds and `seen()` did not change for a moment; False at the deadline.

        `look` is called first and then every 0.1 s (discovery); `quiet` scales the moment."""
        last: Any = object()
        changed = looked = float('-inf')

        def done() -> bool:
            nonlocal last, changed, looked
            now = time.monotonic()
            if look is not None and now - looked >= LOOK_S:
                looked = now
                look()
            current = seen()
            if current != last:
                last, changed = current, now
            return bool(ready()) and now - changed >= QUIET_S * quiet

        return self.until(done, timeout_s)

    def undiscovered(self, wanted: str = '') -> list[str]:
        """Processes (node names) of sites started here, of this name ('' = any), that are not on the graph yet."""
        expected = [f'{r.namespace}/{p}_process' for r in noted(wanted, domain()) for p in r.processes]
        if not expected:
            return []
        there = {f'{space.rstrip("/")}/{name}' for name, space in self.node.get_node_names_and_namespaces()}
        return [name for name in expected if name not in there]

    # -- sites and names

    def sites(self) -> list[str]:
        """Namespaces in which somebody publishes a system state or heartbeats now."""
        found = set()
        for topic, types in self.node.get_topic_names_and_types():
            space, _, last = topic.rpartition('/')
            fits = ((last == 'system_state' and 'bess/msg/SystemState' in types)
                    or (last == 'heartbeat' and 'bess/msg/Heartbeat' in types))
            if fits and space and self.node.count_publishers(topic):
                found.add(space)
        return sorted(found)

    def site(self, given: str = '') -> str:
        """Namespace of the site that is meant: the given one, or the only one that runs.

        Raises `CliError` when there is none, or several and none was named."""
        wanted = absolute(given)
        if wanted:
            if not self.patiently(lambda wait: self.until(lambda: wanted in self.sites(), wait), wanted):
                raise CliError(self._no_site(wanted))
            return wanted
        if not self.patiently(lambda wait: self.settle(self.sites, self.sites, wait) or self.sites()):
            raise CliError(self._no_site(''))
        found = self.sites()
        if len(found) != 1:
            raise CliError(f'several sites run here, choose one with --site: {", ".join(found)}', 2)
        return found[0]

    def patiently(self, found: Callable[[float | None], Any], wanted: str = '') -> bool:
        """`found(seconds)` within the usual time (None), and longer, saying so, while a site is known to run here."""
        if found(None):
            return True
        site = next(iter(noted(wanted, domain())), None)
        if site is None:
            return False
        print(f'{site.namespace} runs since {time.time() - site.since:.0f} s (process {site.pid}) and is not heard '
              f'yet; waiting up to {DISCOVERY_S:g} s more', file=sys.stderr)
        return bool(found(DISCOVERY_S))

    def _no_site(self, wanted: str) -> str:
        others = self.sites()
        if wanted and others:
            return f'no site {wanted} runs here; there is: {", ".join(others)}'
        return no_site(wanted)

    def full_name(self, name: str, site: str = '') -> str:
        """Absolute name of a node or battery: as given with leading slash, else inside the site."""
        if name.startswith('/'):
            return absolute(name)
        local = absolute(name)
        return f'{self.site(site)}{local}'

    def services(self, type_name: str = '') -> dict[str, str]:
        """Services on the graph by name with their type, without those of ROS itself."""
        return {name: types[0] for name, types in self.node.get_service_names_and_types()
                if types[0] != _HIDDEN_SERVICE and (not type_name or type_name in types)
                and self.node.count_services(name)}  # clients alone make a name appear, too

    # -- calls

    def call(self, service: str, kind: Any, request: Any, *, deadline_s: float | None = None,
             longer_s: float = 0.0, again: bool = False,
             after: tuple[str, Any] | None = None) -> Any:
        """Answer of a service; `longer_s`: how much longer than for the service its answer is waited for.

        `again`: doing it twice changes nothing. Then, and for what only reads, it is asked again while there is no
        answer: a server that has not found the client yet loses its answers. `after`: for what must not be done twice,
        a service (name, type) of the same node that only reads. It is asked until it answers; by then the node has also
        found the client that was made before, because the middleware announces clients in their order. Raises
        `CliError` when the service is not there or does not answer in time."""
        from .. import qos

        wait = self.timeout if deadline_s is None else deadline_s
        # Every client of a service gets the answers to all: a deep queue, so that a crowd does not push ours out.
        client = self.node.create_client(kind, service, qos_profile=qos.SERVICE)
        try:
            if self.until(client.service_is_ready, wait):
                if after is not None:
                    self.call(after[0], after[1], after[1].Request(), deadline_s=wait)
                futures: list[Any] = []
                repeat = again or READS.match(kind.__name__) is not None
                asked = float('-inf')

                def answered() -> bool:
                    nonlocal asked
                    now = time.monotonic()
                    if not futures or (repeat and now - asked >= AGAIN_S):
                        asked = now
                        futures.append(client.call_async(request))
                    return any(f.done() for f in futures)

                if self.until(answered, wait + longer_s):
                    return next(f for f in futures if f.done()).result()
                raise CliError(f'{service}: no answer within {wait + longer_s:g} s')
        finally:
            self.node.destroy_client(client)
        # Without our own client the graph shows what the others offer.
        raise CliError(self._absent(service, type_of(kind), wait))

    def _absent(self, service: str, type_name: str, wait: float) -> str:
        same = self.services(type_name)
        other = self.services().get(service)
        if other and service not in same:
            return f'{service} is of type {other}, not {type_name}'
        text = f'no service {service} within {wait:g} s'
        if same:
            # Only what differs matters to who typed it: the owner of the service, not its last part.
            last = service.rsplit('/', 1)[-1]
            owners = [n.rsplit('/', 1)[0] for n in same if n.endswith(f'/{last}')]
            asked = service.rsplit('/', 1)[0]
            return (f'{text}; {last} is offered by: {", ".join(nearest(asked, owners))}' if owners
                    else f'{text}; close: {", ".join(nearest(service, same))}')
        known = self.services()
        return f'{text}; {"close: " + ", ".join(nearest(service, known)) if known else self._no_site("")}'


def type_of(kind: Any) -> str:
    """`bess/srv/GetStatus` of a service class, `std_msgs/msg/String` of a message class."""
    package, folder = kind.__module__.split('.')[:2]
    return f'{package}/{folder}/{kind.__name__}'


@contextmanager
def open_session(timeout_s: float = TIMEOUT_S, *, name: str = 'bess_cli') -> Iterator[Session]:
    """A `Session`; the node is gone afterwards."""
    from rclpy.node import Node

    from ..runtime import Runtime

    try:
        runtime = Runtime()
    except Exception as error:
        raise CliError(f'ROS cannot be started ({where()}): {error}') from error
    with runtime:
        node = Node(f'{name}_{os.getpid()}', start_parameter_services=False, enable_rosout=False)
        runtime.executor.add_node(node)
        try:
            yield Session(runtime, node, timeout_s)
        finally:
            runtime.drop(node)


def load_plugin(group: str, name: str) -> Any:
    """An object of another room. Raises `CliError` when it is not installed."""
    from .. import plugins

    try:
        return plugins.load(group, name)
    except plugins.PluginError as error:
        raise CliError(str(error)) from error


def accepted(ok: bool, text: str, *, json_values: dict[str, Any] | None = None) -> int:
    """Print an answer (refusals on stderr unless JSON); exit code 0 or 1."""
    if json_values is not None:
        print_json(json_values)
    else:
        print(text, file=sys.stdout if ok else sys.stderr)
    return 0 if ok else 1


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of words, all to the left (`render.table` is for numbers)."""
    lines = [header, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return '\n'.join('  '.join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip()
                     for line in lines)


def glob_choice(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """Names that fit one of the globs; all without globs."""
    from fnmatch import fnmatchcase

    return [n for n in names if not patterns or any(fnmatchcase(n, p) for p in patterns)]
