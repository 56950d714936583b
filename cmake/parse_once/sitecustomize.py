"""Python starts with this while interfaces are generated: what was parsed once is not parsed again.

Each of the ten generators of rosidl reads all `.idl` files anew through a parser for any grammar, which takes five
times as long as what it then writes. `BESS_PARSED` names the folder, within the build, that keeps the results. A name
there is a hash of the text and of the parser: a result is taken for the same text and the same parser only.

Most of the time of what is left goes into the templates, which are read character by character for each interface:
within a process a token is kept with the text that it was read from.
"""

import hashlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

try:
    import em
    from rosidl_parser import definition, parser
except ImportError:  # a command that is no generator, or one that will itself say what it lacks
    parser = None


def remember(parse: Callable[..., Any], folder: Path, version: bytes) -> Callable[..., Any]:
    """`parse`, whose results are kept in `folder`; `version` stands for the parser."""
    folder.mkdir(parents=True, exist_ok=True)

    def parse_idl_string(idl_string: str, png_file: str | None = None) -> Any:
        kept = folder / hashlib.sha256(version + idl_string.encode()).hexdigest()
        try:
            return pickle.loads(kept.read_bytes())
        except (OSError, EOFError, pickle.UnpicklingError):
            content = parse(idl_string, png_file)
        half = kept.with_suffix(f'.{os.getpid()}')  # generators run beside each other
        half.write_bytes(pickle.dumps(content))
        half.replace(kept)
        return content

    return parse_idl_string


def remember_tokens(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`Scanner.one` of empy, `read`, which takes the next token from a text; tokens do not change when they run."""
    kept: dict[tuple[str, str], tuple[Any, str]] = {}

    def one(scanner: Any) -> Any:
        if scanner.lock or scanner.pointer:  # within a token
            return read(scanner)
        key = scanner.prefix, scanner.buffer
        if key not in kept:
            token = read(scanner)
            kept[key] = token, scanner.buffer
        token, scanner.buffer = kept[key]
        return token

    return one


if parser is not None and os.environ.get('BESS_PARSED'):
    sources = (parser.__file__, definition.__file__, parser.grammar_file)
    parser.parse_idl_string = remember(parser.parse_idl_string, Path(os.environ['BESS_PARSED']),
                                       hashlib.sha256(b''.join(Path(f).read_bytes() for f in sources)).digest())
    em.Scanner.one = remember_tokens(em.Scanner.one)
