"""A source as mypyc compiles it well. What is computed stays the same; what is looked up does not.

* mypyc leaves the constructors of dataclasses and named tuples to the interpreter: each gets one in its source, with
  the same names, order and defaults.
* Constants, members of enumerations, infinity and NaN are looked up by name at each use unless they are `Final`.
* A value with a format in a text (`f'{x:.0f}'`) goes through `str.format`, which parses the format each time: it
  becomes `format(x, '.0f')`.
* `zip(..., strict=True)` goes through an iterator object, and without `strict` it does not: the copy leaves this check
  out, as `python -O` leaves out assertions. Every test runs with it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable

#: Named tuples of which nothing but the fields is used: neither unpacked nor compared with tuples.
RECORDS = frozenset({'Setpoint', 'GateOutput', 'Order', 'Demand'})


def enumerations(sources: Iterable[str]) -> frozenset[str]:
    """Names of the enumerations that these sources define. Raises SyntaxError."""
    return frozenset(n.name for source in sources for n in ast.walk(ast.parse(source))
                     if isinstance(n, ast.ClassDef) and any(_name(b) in ('Enum', 'IntEnum') for b in n.bases))


def explicit(source: str, enumerations: frozenset[str] = frozenset()) -> str:
    """The source with explicit constructors and lasting constants. Raises SyntaxError.

    Parameter classes (`...Params`, which others inherit from, together with more) stay classes of the interpreter.
    """
    tree = ast.parse(source)
    marked = False
    for cls in [n for n in ast.walk(tree) if isinstance(n, ast.ClassDef)]:
        decorator = next((d for d in cls.decorator_list if _name(d) == 'dataclass'), None)
        if decorator is not None and cls.name.endswith('Params'):
            _stay(cls)
            marked = True
        elif decorator is not None and not cls.bases and not _has(cls, '__init__', '__post_init__'):
            _construct(cls)
            cls.decorator_list[cls.decorator_list.index(decorator)] = _expression('dataclass(init=False)')
        elif cls.name in RECORDS and [_name(b) for b in cls.bases] == ['NamedTuple']:
            _construct(cls)
            cls.bases = []
        elif _is_base(cls, tree):
            cls.decorator_list.append(_expression('mypyc_attr(allow_interpreted_subclasses=True)'))
            marked = True
    _constants(tree)
    _numbers(tree)
    members = _Members(enumerations)
    members.visit(tree)
    tree.body += [_statement(f'{short}: Final = {member}') for member, short in sorted(members.used.items())]
    _import(tree, 'typing', 'Any', 'Final')
    if marked:
        _import(tree, 'mypy_extensions', 'mypyc_attr')
    return ast.unparse(ast.fix_missing_locations(tree)) + '\n'


def _name(node: ast.expr) -> str:
    node = node.func if isinstance(node, ast.Call) else node
    return node.id if isinstance(node, ast.Name) else ''


def _has(cls: ast.ClassDef, *names: str) -> bool:
    return any(isinstance(n, ast.FunctionDef) and n.name in names for n in cls.body)


def _expression(text: str) -> ast.expr:
    return ast.parse(text, mode='eval').body


def _is_base(cls: ast.ClassDef, tree: ast.Module) -> bool:
    """Whether classes of this module or of others are meant to inherit: plain classes that have a role or are one's
    base."""
    if any(_name(b) == 'Protocol' for b in cls.bases) or cls.decorator_list:
        return False
    bases = {_name(b) for n in ast.walk(tree) if isinstance(n, ast.ClassDef) for b in n.bases}
    return cls.name in bases or any(_name(b) in {c.name for c in tree.body if isinstance(c, ast.ClassDef)}
                                    for b in cls.bases)


def _stay(cls: ast.ClassDef) -> None:
    """A class of the interpreter: its methods are handed other classes with the same fields, too."""
    cls.decorator_list.insert(0, _expression('mypyc_attr(native_class=False)'))
    for method in cls.body:
        if isinstance(method, ast.FunctionDef) and method.args.args and method.args.args[0].arg == 'self':
            method.args.args[0].annotation = _expression('Any')


def _construct(cls: ast.ClassDef) -> None:
    """Put `__init__` behind the fields of a class."""
    fields = [n for n in cls.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
              and 'ClassVar' not in ast.unparse(n.annotation)]
    arguments, lines = [], []
    for f in fields:
        name, kind = ast.unparse(f.target), ast.unparse(f.annotation)
        value = f'self.{name} = {name}'
        if f.value is None:
            arguments.append(f'{name}: {kind}')
        elif isinstance(f.value, ast.Call) and _name(f.value) == 'field':
            given = {k.arg: ast.unparse(k.value) for k in f.value.keywords}
            if 'default_factory' in given:
                arguments.append(f'{name}: {kind} | None = None')
                value = f'self.{name} = {given["default_factory"]}() if {name} is None else {name}'
            else:
                arguments.append(f'{name}: {kind} = {given["default"]}')
        else:
            arguments.append(f'{name}: {kind} = {ast.unparse(f.value)}')
        lines.append(value)
        f.value = None
    text = f'def __init__(self, {", ".join(arguments)}) -> None:\n' + ''.join(f'    {line}\n' for line in lines)
    last = max((cls.body.index(f) for f in fields), default=-1)
    cls.body.insert(last + 1, ast.parse(text).body[0])


def _statement(text: str) -> ast.stmt:
    return ast.parse(text).body[0]


def _constants(tree: ast.Module) -> None:
    """Numbers and texts that a module names in capitals."""
    for k, node in enumerate(tree.body):
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            value = node.value.operand if isinstance(node.value, ast.UnaryOp) else node.value
            if node.targets[0].id.lstrip('_').isupper() and isinstance(value, ast.Constant):
                tree.body[k] = ast.AnnAssign(node.targets[0], _expression('Final'), node.value, 1)


def _numbers(tree: ast.Module) -> None:
    """Infinity, NaN and `isfinite` of the module math."""
    ours = {'inf': "inf: Final = float('inf')", 'nan': "nan: Final = float('nan')",
            'isfinite': 'def isfinite(value: float) -> bool:\n    return value - value == 0.0'}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module == 'math':
            taken = [a.name for a in node.names if a.name in ours and a.asname is None]
            node.names = [a for a in node.names if a.name not in taken] or [ast.alias('pi', '_pi')]
            after = max(k for k, n in enumerate(tree.body) if isinstance(n, ast.Import | ast.ImportFrom))
            tree.body[after + 1:after + 1] = [_statement(ours[name]) for name in taken]
            return


class _Members(ast.NodeTransformer):
    """Members of enumerations within functions by a name of the module, formats, and `zip` without its check."""

    def __init__(self, enumerations: frozenset[str]) -> None:
        self.enumerations, self.used = enumerations, dict[str, str]()
        self._deep = 0

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        """Only what runs after the module is there; defaults are evaluated before."""
        self._deep += 1
        node.body = [self.visit(n) for n in node.body]
        self._deep -= 1
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        """A member, by its short name."""
        if self._deep and isinstance(node.value, ast.Name) and node.value.id in self.enumerations \
                and node.attr.isupper():
            member = f'{node.value.id}.{node.attr}'
            return ast.Name(self.used.setdefault(member, f'_{node.value.id}_{node.attr}'), ast.Load())
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """Without `strict=True`."""
        if _name(node) == 'zip':
            node.keywords = [k for k in node.keywords if k.arg != 'strict']
        return self.generic_visit(node)

    def visit_FormattedValue(self, node: ast.FormattedValue) -> ast.AST:
        """Formatted by itself, where the format is fixed."""
        self.generic_visit(node)
        if node.conversion == -1 and isinstance(node.format_spec, ast.JoinedStr) \
                and all(isinstance(part, ast.Constant) for part in node.format_spec.values):
            text = ''.join(str(part.value) for part in node.format_spec.values if isinstance(part, ast.Constant))
            node.value = ast.Call(ast.Name('format', ast.Load()), [node.value, ast.Constant(text)], [])
            node.format_spec = None
        return node

    def visit_MatchValue(self, node: ast.MatchValue) -> ast.AST:
        """A pattern has to stay one."""
        return node


def _import(tree: ast.Module, module: str, *names: str) -> None:
    """`from module import names`, behind the docstring and what is imported from the future."""
    at = next(k for k, n in enumerate(tree.body) if not (
        (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))
        or (isinstance(n, ast.ImportFrom) and n.module == '__future__')))
    tree.body.insert(at, ast.ImportFrom(module, [ast.alias(name) for name in names], 0))
