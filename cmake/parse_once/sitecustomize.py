"""Python starts with this while interfaces are generated: what one generator has parsed, others do not parse again.

Each of the ten generators of rosidl reads all `.idl` files anew through a parser for any grammar, which takes five
times as long as what it then writes. `BESS_PARSED` names the folder, within the build, that keeps the results. A name
there is a hash of the text and of the parser: a result is taken for the same text and the same parser only.
"""

import hashlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

try:
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


if parser is not None and os.environ.get('BESS_PARSED'):
    sources = (parser.__file__, definition.__file__, parser.grammar_file)
    parser.parse_idl_string = remember(parser.parse_idl_string, Path(os.environ['BESS_PARSED']),
                                       hashlib.sha256(b''.join(Path(f).read_bytes() for f in sources)).digest())
