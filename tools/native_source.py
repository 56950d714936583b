"""A source as mypyc compiles it well. What is computed stays the same; what is looked up does not.

* mypyc leaves the constructors of dataclasses and named tuples to the interpreter: each gets one in its source, with
  the same names, order and defaults.
* Constants, members of enumerations, infinity and NaN are looked up by name at each use unless they are `Final`.
* A value with a format in a text (`f'{x:.2f}'`) goes through `str.format`, which parses the format each time: it
  becomes `format(x, '.2f')`; with no or one decimal, as most of them have, digits are counted out.
* Parameter classes stay classes of the interpreter, whose attributes are looked up by name: who keeps `params` keeps
  what its methods use of them as attributes of its own, too.
* `max` and `min` of three values go through a tuple: they become two of two values.
* `zip(..., strict=True)` goes through an iterator object, and without `strict` it does not: the copy leaves this check
  out, as `python -O` leaves out assertions. Every test runs with it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping

#: What gives the same text as a format, several times as fast.
_DIGITS_OF = {'.0f': '_whole', '.1f': '_tenths'}
DIGITS = {
    '_whole': """def _whole(value: float) -> str:
    size = abs(value)
    if not 0.0 < size < 1e15:
        return format(value, '.0f')
    count = int(size)
    rest = size - count  # exact
    if rest > 0.5 or (rest == 0.5 and count % 2 == 1):
        count += 1
    return str(count) if value > 0.0 else '-' + str(count)
""",
    '_tenths': """def _tenths(value: float) -> str:
    size = abs(value)
    scaled = size * 10.0
    if not 0.0 < scaled < 1e12:
        return format(value, '.1f')
    count = int(scaled)
    rest = scaled - count
    if abs(rest - 0.5) < 1e-3:  # what was lost by scaling may decide
        return format(value, '.1f')
    if rest > 0.5:
        count += 1
    text = str(count // 10) + '.' + str(count % 10)
    return text if value > 0.0 else '-' + text
"""}

#: Named tuples of which nothing but the fields is used: neither unpacked nor compared with tuples.
RECORDS = frozenset({'Setpoint', 'GateOutput', 'Order', 'Demand', 'Flow'})


def enumerations(sources: Iterable[str]) -> frozenset[str]:
    """Names of the enumerations that these sources define. Raises SyntaxError."""
    return frozenset(n.name for source in sources for n in ast.walk(ast.parse(source))
                     if isinstance(n, ast.ClassDef) and any(_name(b) in ('Enum', 'IntEnum') for b in n.bases))


def parameters(sources: Iterable[str]) -> dict[str, dict[str, str]]:
    """Fields of the parameter classes that these sources define, inherited ones included: name -> type.

    Raises SyntaxError.
    """
    classes = {n.name: n for source in sources for n in ast.walk(ast.parse(source))
               if isinstance(n, ast.ClassDef) and _is_params(n)}

    def fields(name: str) -> dict[str, str]:
        cls = classes.get(name)
        if cls is None:
            return {}
        inherited = {k: v for b in reversed(cls.bases) for k, v in fields(_name(b)).items()}
        return inherited | {f.target.id: ast.unparse(f.annotation) for f in cls.body
                            if isinstance(f, ast.AnnAssign) and isinstance(f.target, ast.Name)}

    return {name: fields(name) for name in classes}


def explicit(source: str, enumerations: frozenset[str] = frozenset(),
             parameters: Mapping[str, Mapping[str, str]] | None = None) -> str:
    """The source with explicit constructors and lasting constants. Raises SyntaxError.

    Parameter classes (`...Params` of site files, which others inherit from, together with more) stay classes of the
    interpreter.
    """
    tree = ast.parse(source)
    marked = False
    for cls in [n for n in ast.walk(tree) if isinstance(n, ast.ClassDef)]:
        decorator = next((d for d in cls.decorator_list if _name(d) == 'dataclass'), None)
        _keep(cls, parameters or {})
        if decorator is not None and _is_params(cls):
            _stay(cls)
            marked = True
        elif decorator is not None and not cls.bases and not _has(cls, '__init__'):
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
    tree.body += [_statement(DIGITS[name]) for name in sorted(members.digits)]
    tree.body += [_statement(f'{short}: Final = {member}') for member, short in sorted(members.used.items())]
    _import(tree, 'typing', 'Any', 'Final')
    if marked:
        _import(tree, 'mypy_extensions', 'mypyc_attr')
    return ast.unparse(ast.fix_missing_locations(tree)) + '\n'


def _is_params(cls: ast.ClassDef) -> bool:
    """Whether a class holds parameters of site files: at least one field says so, or a base does."""
    return cls.name.endswith('Params') and (bool(cls.bases) or any(
        isinstance(f, ast.AnnAssign) and isinstance(f.value, ast.Call) and _name(f.value) == 'param' for f in cls.body))


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


class _Kept(ast.NodeTransformer):
    """`self.params.x`, and `p.x` after `p = self.params`, as an attribute of its own."""

    def __init__(self, fields: Mapping[str, str], names: frozenset[str]) -> None:
        self.fields, self.names, self.used = fields, names, set[str]()

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        """One parameter."""
        self.generic_visit(node)
        if (isinstance(node.ctx, ast.Load) and self.fields.get(node.attr) in ('float', 'int', 'bool', 'str')
                and (_is_own_params(node.value) or (isinstance(node.value, ast.Name) and node.value.id in self.names))):
            self.used.add(node.attr)
            return ast.Attribute(ast.Name('self', ast.Load()), f'_params_{node.attr}', ast.Load())
        return node


def _is_own_params(node: ast.expr) -> bool:
    return (isinstance(node, ast.Attribute) and node.attr == 'params' and isinstance(node.value, ast.Name)
            and node.value.id == 'self')


def _keep(cls: ast.ClassDef, parameters: Mapping[str, Mapping[str, str]]) -> None:
    """What the methods of a class use of the parameters that its constructor is given, as its own attributes."""
    made = next((n for n in cls.body if isinstance(n, ast.FunctionDef) and n.name == '__init__'), None)
    given = next((a for a in made.args.args if a.annotation is not None and _name(a.annotation) in parameters),
                 None) if made is not None else None
    if made is None or given is None or given.annotation is None:
        return
    at = next((k for k, n in enumerate(made.body) if isinstance(n, ast.Assign) and any(map(_is_own_params, n.targets))
               and isinstance(n.value, ast.Name) and n.value.id == given.arg), None)
    if at is None:
        return
    fields, used = parameters[_name(given.annotation)], set[str]()
    for method in cls.body:
        if isinstance(method, ast.FunctionDef) and method is not made:
            kept = _Kept(fields, frozenset(_names_of_params(method)))
            method.body = [kept.visit(n) for n in method.body]
            used |= kept.used
    made.body[at + 1:at + 1] = [_statement(f'self._params_{name}: {fields[name]} = {given.arg}.{name}')
                                for name in sorted(used)]


def _names_of_params(method: ast.FunctionDef) -> Iterator[str]:
    """Local names of `self.params`: `p = self.params`, with an annotation, or beside others."""
    for node in ast.walk(method):
        if isinstance(node, ast.AnnAssign) and node.value is not None and _is_own_params(node.value) \
                and isinstance(node.target, ast.Name):
            yield node.target.id
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                pairs = (zip(target.elts, node.value.elts, strict=True)
                         if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)
                         else [(target, node.value)])
                yield from (t.id for t, v in pairs if isinstance(t, ast.Name) and _is_own_params(v))


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
    if _has(cls, '__post_init__'):
        lines.append('self.__post_init__()')
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
        self.enumerations, self.used, self.digits = enumerations, dict[str, str](), set[str]()
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
        """`zip` without `strict=True`; `max` and `min` of two values each."""
        if _name(node) == 'zip':
            node.keywords = [k for k in node.keywords if k.arg != 'strict']
        self.generic_visit(node)
        while (_name(node) in ('max', 'min') and len(node.args) > 2 and not node.keywords
               and not any(isinstance(a, ast.Starred) for a in node.args)):
            node.args[:2] = [ast.Call(ast.Name(_name(node), ast.Load()), node.args[:2], [])]
        return node

    def visit_FormattedValue(self, node: ast.FormattedValue) -> ast.AST:
        """Formatted by itself, where the format is fixed."""
        self.generic_visit(node)
        if node.conversion == -1 and isinstance(node.format_spec, ast.JoinedStr) \
                and all(isinstance(part, ast.Constant) for part in node.format_spec.values):
            text = ''.join(str(part.value) for part in node.format_spec.values if isinstance(part, ast.Constant))
            function = _DIGITS_OF.get(text)
            if function is None:
                node.value = ast.Call(ast.Name('format', ast.Load()), [node.value, ast.Constant(text)], [])
            else:
                self.digits.add(function)
                node.value = ast.Call(ast.Name(function, ast.Load()), [node.value], [])
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
