"""Generate `docs/contract.md`, `docs/parameters.md`, `docs/faults.md` and `docs/drivers.md` from the code.

    python tools/generate_docs.py            # write what changed
    python tools/generate_docs.py --check    # exit code 1 when a file is out of date or a comment is missing
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from docgen import contract, drivers, faults, parameters

ROOT = Path(__file__).resolve().parent.parent
PAGES: dict[str, Callable[[Path], tuple[str, list[str]]]] = {
    'contract.md': contract.render,
    'parameters.md': lambda _: parameters.render(),
    'faults.md': faults.render,
    'drivers.md': drivers.render,
}


def first_difference(old: str, new: str) -> str:
    """The first changed lines, so that a failing check shows what it is about."""
    changed = [x for x in difflib.unified_diff(old.splitlines(), new.splitlines(), n=0, lineterm='')
               if x[:1] in '+-' and x[:3] not in ('+++', '---')]
    return '\n'.join(f'    {x[:160]}' for x in changed[:6])


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 1 with one line per problem."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0] if __doc__ else '')
    parser.add_argument('--check', action='store_true', help='write nothing')
    args = parser.parse_args(argv)
    problems: list[str] = []
    for name, render in PAGES.items():
        text, found = render(ROOT)
        problems += found
        path = ROOT / 'docs' / name
        old = path.read_text(encoding='utf-8') if path.exists() else ''
        if not text or text == old:
            continue
        if args.check:
            problems.append(f'docs/{name} is out of date; run `make docs`\n{first_difference(old, text)}')
        else:
            path.write_text(text, encoding='utf-8')
            print(f'docs/{name} written')
    print('\n'.join(problems) or f'docs: {len(PAGES)} generated pages, nothing missing')
    return 1 if problems else 0


if __name__ == '__main__':
    sys.exit(main())
