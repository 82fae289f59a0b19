"""A small, harmless part of Python: what the assignments of a configuration evaluate to, read from the syntax tree."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

MAX_ITEMS = 100_000
"""length of any list or string that is made here; larger ones are no configuration"""
MAX_NESTING = 60
MAX_STEPS = 300_000
"""expressions read in one file; comprehensions inside comprehensions multiply"""
REFERENCE = re.compile(r"^\{\{\s*_base_\.([\w.]+)\s*\}\}$")
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "tuple": tuple, "list": list, "sum": sum, "min": min, "max": max, "len": len, "range": range, "int": int,
    "float": float, "bool": bool, "abs": abs, "round": round, "sorted": sorted, "set": set, "zip": zip,
    "enumerate": enumerate, "reversed": reversed, "str": str,
}  # fmt: skip
OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod,
}  # fmt: skip
SIGNS: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Not: operator.not_,
}
Values = dict[str, Any]


class Unreadable(Exception):
    """Not Python, or an expression beyond what is read here; the text says where and what."""


def read_assignments(text: str, base: Mapping[str, Any], only: str | None = None) -> tuple[Values, list[str]]:
    """The names that a configuration's text assigns, and a note for each statement that was left out.

    ``base`` is what ``{{_base_.x}}`` refers to; ``only`` reads one name. Raises `Unreadable` for what is no Python.
    """
    try:
        module = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise Unreadable(f"line {getattr(error, 'lineno', '?')}: not Python") from None
    reader = _Reader(base)
    notes: list[str] = []
    for statement in module.body:
        targets = _targets(statement)
        if only is not None and only not in targets:
            continue
        try:
            reader.run(statement)
        except Unreadable as error:
            for name in targets:  # what was there before is no longer true
                reader.values.pop(name, None)
            about = f"'{targets[0]}'" if targets else "a statement"
            notes.append(f"line {statement.lineno}: {about} left out ({error})")
    return {name: value for name, value in reader.values.items() if not name.startswith("__")}, notes


def _targets(statement: ast.stmt) -> list[str]:
    if isinstance(statement, ast.Assign):
        nodes = [node for target in statement.targets for node in ast.walk(target)]
    elif isinstance(statement, ast.AnnAssign | ast.AugAssign):
        nodes = list(ast.walk(statement.target))
    else:
        nodes = []
    return [node.id for node in nodes if isinstance(node, ast.Name)]


class _Reader:
    def __init__(self, base: Mapping[str, Any]) -> None:
        self.base = base
        self.values: Values = {}
        self.steps = 0

    def run(self, statement: ast.stmt) -> None:
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            return  # a text between the lines
        if isinstance(statement, ast.Assign):
            value = self.value(statement.value)
            for target in statement.targets:
                self._assign(target, value)
        elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
            self._assign(statement.target, self.value(statement.value))
        elif isinstance(statement, ast.AugAssign):
            now = self.value(_loaded(statement.target))
            self._assign(statement.target, self._combine(type(statement.op), now, self.value(statement.value)))
        else:
            raise Unreadable(type(statement).__name__.lower())

    def _assign(self, target: ast.expr, value: Any) -> None:
        if isinstance(target, ast.Name):
            self.values[target.id] = value
        elif isinstance(target, ast.Tuple | ast.List) and isinstance(value, list | tuple):
            if len(value) != len(target.elts):
                raise Unreadable("names and values of different number")
            for one, item in zip(target.elts, value, strict=True):
                self._assign(one, item)
        elif isinstance(target, ast.Subscript):
            holder, key = self.value(_loaded(target.value)), self.value(target.slice)
            self._guarded(lambda: operator.setitem(holder, key, value))
        else:
            raise Unreadable("an assignment to something else than a name")

    # ------------------------------------------------------------------------------------------ expressions

    def value(self, node: ast.expr, local: Mapping[str, Any] | None = None, depth: int = 0) -> Any:
        self.steps += 1
        if depth > MAX_NESTING or self.steps > MAX_STEPS:
            raise Unreadable("nested too deeply" if depth > MAX_NESTING else "too much to compute")
        local = local or {}

        def of(inner: ast.expr) -> Any:
            return self.value(inner, local, depth + 1)

        if isinstance(node, ast.Constant):
            return self._constant(node.value)
        if isinstance(node, ast.Name):
            return self._name(node.id, local)
        if isinstance(node, ast.Dict):
            return self._dict(node, of)
        if isinstance(node, ast.Tuple | ast.List):
            items = self._items(node.elts, of)
            return tuple(items) if isinstance(node, ast.Tuple) else items
        if isinstance(node, ast.Set):
            return self._set(node, of)
        if isinstance(node, ast.UnaryOp) and type(node.op) in SIGNS:
            operand = of(node.operand)
            return self._guarded(lambda: SIGNS[type(node.op)](operand))  # type: ignore[index]
        if isinstance(node, ast.BinOp):
            return self._combine(type(node.op), of(node.left), of(node.right))
        if isinstance(node, ast.Subscript):
            holder, key = of(node.value), of(node.slice)
            return self._guarded(lambda: holder[key])
        if isinstance(node, ast.Slice):
            ends = [None if end is None else of(end) for end in (node.lower, node.upper, node.step)]
            return slice(*ends)
        if isinstance(node, ast.Attribute):
            return self._attribute(node, of)
        if isinstance(node, ast.ListComp | ast.GeneratorExp):
            return self._comprehension(node, local, depth)
        if isinstance(node, ast.Call):
            return self._call(node, of)
        if isinstance(node, ast.IfExp):
            raise Unreadable("a condition")
        raise Unreadable(f"{type(node).__name__}")

    def _constant(self, value: Any) -> Any:
        if isinstance(value, str) and (found := REFERENCE.match(value)):
            return self._reference(found[1].split("."))
        return value

    def _name(self, name: str, local: Mapping[str, Any]) -> Any:
        if name in local:
            return local[name]
        if name in self.values:
            return self.values[name]
        if name == "_base_":
            return dict(self.base)
        raise Unreadable(f"the name {name}")

    def _attribute(self, node: ast.Attribute, of: Callable[[ast.expr], Any]) -> Any:
        holder = dict(self.base) if isinstance(node.value, ast.Name) and node.value.id == "_base_" else of(node.value)
        if isinstance(holder, dict) and node.attr in holder:
            return holder[node.attr]
        raise Unreadable(f"the attribute {node.attr}")

    def _reference(self, path: list[str]) -> Any:
        found: Any = self.base
        for part in path:
            if not isinstance(found, Mapping) or part not in found:
                raise Unreadable(f"_base_.{'.'.join(path)} is not there")
            found = found[part]
        return found

    def _dict(self, node: ast.Dict, of: Callable[[ast.expr], Any]) -> Values:
        found: Values = {}
        for key, item in zip(node.keys, node.values, strict=True):
            value = of(item)
            if key is None:
                found.update(self._mapping(value))
            else:
                name = of(key)
                self._guarded(lambda name=name, value=value: operator.setitem(found, name, value))  # type: ignore[misc]
        return found

    def _set(self, node: ast.Set, of: Callable[[ast.expr], Any]) -> Any:
        if len(node.elts) == 1 and isinstance(node.elts[0], ast.Set) and len(node.elts[0].elts) == 1:
            return of(node.elts[0].elts[0])  # {{_base_.x}}
        return self._guarded(lambda: set(self._items(node.elts, of)))

    def _items(self, nodes: list[ast.expr], of: Callable[[ast.expr], Any]) -> list[Any]:
        found: list[Any] = []
        for node in nodes:
            if isinstance(node, ast.Starred):
                value = of(node.value)
                if not isinstance(value, list | tuple):
                    raise Unreadable("a star before something else than a list")
                found += value
            else:
                found.append(of(node))
        return found

    def _comprehension(self, node: ast.ListComp | ast.GeneratorExp, local: Mapping[str, Any], depth: int) -> list[Any]:
        if len(node.generators) != 1 or node.generators[0].ifs:
            raise Unreadable("a comprehension with a condition or two loops")
        loop = node.generators[0]
        found = []
        for item in self._sized(self.value(loop.iter, local, depth + 1)):
            inner = _Reader(self.base)
            inner._assign(loop.target, item)
            found.append(self.value(node.elt, {**local, **inner.values}, depth + 1))
        return found

    def _call(self, node: ast.Call, of: Callable[[ast.expr], Any]) -> Any:
        if not isinstance(node.func, ast.Name):
            raise Unreadable("a call of a method")
        given = self._items(node.args, of)
        named: Values = {}
        for keyword in node.keywords:
            value = of(keyword.value)
            named.update(self._mapping(value) if keyword.arg is None else {keyword.arg: value})
        if node.func.id == "dict":
            return self._guarded(lambda: dict(*given, **named))
        if node.func.id not in FUNCTIONS or named or node.func.id in self.values:
            raise Unreadable(f"a call of {node.func.id}")
        result = self._guarded(lambda: FUNCTIONS[node.func.id](*given))  # type: ignore[attr-defined]
        return self._sized(result) if not isinstance(result, int | float | str | bool) else self._short(result)

    def _mapping(self, value: Any) -> Values:
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise Unreadable("two stars before something else than a dict")
        return value

    def _combine(self, kind: type[ast.operator], left: Any, right: Any) -> Any:
        if kind not in OPERATORS:
            raise Unreadable(kind.__name__)
        for one, other in ((left, right), (right, left)):
            repeats = kind is ast.Mult and isinstance(one, list | tuple | str) and isinstance(other, int)
            if repeats and len(one) * other > MAX_ITEMS:
                raise Unreadable("a list that is too long")
        if kind is ast.Mod and isinstance(left, str):
            raise Unreadable("a formatted text")
        return self._short(self._guarded(lambda: OPERATORS[kind](left, right)))

    def _sized(self, values: Any) -> Any:
        """Lists and tuples as they are, other iterables as lists, none of them endless."""
        if isinstance(values, range) and len(values) > MAX_ITEMS:
            raise Unreadable("a range that is too long")
        if isinstance(values, dict | set | frozenset | list | tuple):
            return self._short(values)
        return self._short(self._guarded(lambda: list(values)))

    def _short(self, value: Any) -> Any:
        if isinstance(value, list | tuple | str | dict | set) and len(value) > MAX_ITEMS:
            raise Unreadable("a list that is too long")
        if isinstance(value, int) and abs(value) > 1 << 128:
            raise Unreadable("a number that is too large")
        return value

    def _guarded(self, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except (TypeError, ValueError, KeyError, IndexError, ZeroDivisionError, AttributeError, OverflowError) as error:
            raise Unreadable(f"{type(error).__name__}: {error}") from None


def _loaded(target: ast.expr) -> ast.expr:
    """The same place, to be read instead of written."""
    return ast.parse(ast.unparse(target), mode="eval").body
