"""Wrong forms of an equation made by machine.

Each form differs from the right one in one place: a sign, a constant, an index, an argument, a
term or factor dropped, a clamp or a square dropped, a sum turned into a mean, ``<`` into ``<=``,
``max`` into ``min``. The form's test must fail with each; :mod:`tools.ledger.outcomes` keeps what
passes.
"""

from __future__ import annotations

import ast
import copy
import inspect
import random
import textwrap
import types
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any

__all__ = ["mutants"]

MOST = 24  # forms for one test; longer forms are sampled, always in the same way

COMPARED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
}
JOINED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Pow: ast.Mult,
}
CALLED = {
    "abs": "float",
    "amax": "amin",
    "cosh": "sinh",
    "exp": "expm1",
    "expm1": "exp",
    "log": "log1p",
    "log1p": "log",
    "logsumexp": "amax",
    "max": "min",
    "mean": "sum",
    "min": "max",
    "sigmoid": "exp",
    "sinh": "cosh",
    "softplus": "exp",
    "sum": "max",
    "tanh": "sinh",
}
Change = tuple[ast.AST, ast.AST]  # what stands there, what takes its place


def mean(values: Iterable[Any], start: Any = 0) -> Any:
    """Return the mean of some values: what a sum becomes."""
    listed = list(values)
    return sum(listed, start) / len(listed)


def mutants(form: Any, label: str) -> dict[str, Any]:
    """Return wrong forms by what was changed; none where the form's text cannot be had."""
    made: dict[str, Any]
    if isinstance(form, tuple) and not hasattr(form, "_fields"):
        made = {
            f"[{place}] {name}": (*form[:place], wrong, *form[place + 1 :])
            for place, part in enumerate(form)
            for name, wrong in mutants(part, label).items()
        }
    elif isinstance(form, bool):
        made = {f"{form} → {not form}": not form}
    elif isinstance(form, (int, float)):
        made = {
            f"{form} → {wrong}": wrong for wrong in (form + 1, -form, 2 * form) if wrong != form
        }
    elif isinstance(form, types.FunctionType) and form.__module__.startswith("tests."):
        made = _of_function(form)
    else:
        made = {}
    names = sorted(made)
    if len(names) > MOST:
        names = sorted(random.Random(zlib.crc32(label.encode())).sample(names, MOST))
    return {name: made[name] for name in names}


def _of_function(form: types.FunctionType) -> dict[str, Any]:
    found = _definition(form)
    made: dict[str, Any] = {}
    for place in range(len(list(_changes(found)))):
        tree = copy.deepcopy(found)
        old, new = list(_changes(tree))[place]
        # A call's parts may be part of its replacement: print both before either changes.
        name = " → ".join(" ".join(ast.unparse(part).split())[:80] for part in (old, new))
        changed = _Swap(old, new).visit(tree)
        twin = sum(known.partition(" #")[0] == name for known in made)
        made[f"{name} #{twin + 1}" if twin else name] = _Late(form, changed)
    return made


class _Late:
    """A form that is compiled when it is first called: most that are made never run."""

    def __init__(self, form: types.FunctionType, tree: ast.AST) -> None:
        self.form, self.tree = form, tree
        self.built: Callable[..., Any] | None = None

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        if self.built is None:
            self.built = _build(self.form, self.tree)
        return self.built(*arguments, **named)


def _build(form: types.FunctionType, tree: ast.AST) -> Callable[..., Any]:
    cells = zip(form.__code__.co_freevars, form.__closure__ or (), strict=True)
    space = {**form.__globals__, **{n: c.cell_contents for n, c in cells}, "_mean": mean}
    if isinstance(tree, ast.Lambda):
        whole = ast.fix_missing_locations(ast.Expression(tree))
        built: Callable[..., Any] = eval(compile(whole, "<wrong form>", "eval"), space)
        return built
    assert isinstance(tree, ast.FunctionDef)
    exec(compile(ast.fix_missing_locations(ast.Module([tree], [])), "<wrong form>", "exec"), space)
    built = space[tree.name]
    return built


@cache
def _parsed(text: str) -> ast.Module:
    return ast.parse(textwrap.dedent(text))


def _definition(form: types.FunctionType) -> ast.Lambda | ast.FunctionDef:
    """Return the syntax tree of a function or lambda, found by the place of its code."""
    code = form.__code__
    spots = [p for p in code.co_positions() if None not in p and p[3]]  # line, end, column, end
    found: ast.Lambda | None = None
    for node in ast.walk(_parsed(inspect.getsource(inspect.getmodule(form) or form))):
        if isinstance(node, ast.FunctionDef) and node.name == form.__name__:
            starts = [node.lineno, *(d.lineno for d in node.decorator_list)]
            if min(starts) == code.co_firstlineno:
                plain = copy.deepcopy(node)
                plain.decorator_list = []
                return plain
        if isinstance(node, ast.Lambda) and form.__name__ == "<lambda>":
            start = (node.lineno, node.col_offset)
            end = (node.end_lineno or 0, node.end_col_offset or 0)
            if node.lineno == code.co_firstlineno and all(
                start <= (first, column) and (last, stop) <= end
                for first, last, column, stop in spots
            ):
                found = node  # the innermost comes last
    if found:
        return copy.deepcopy(found)
    raise LookupError(f"no definition of {form.__qualname__} in {code.co_filename}")


def _changes(tree: ast.Lambda | ast.FunctionDef) -> Iterator[Change]:
    """Yield each small change, in the order of the text."""
    own = [a.arg for a in tree.args.args]
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARED:
            yield node, _with(node, ops=[COMPARED[type(node.ops[0])](), *node.ops[1:]])
        elif isinstance(node, ast.BinOp) and type(node.op) in JOINED:
            yield node, _with(node, op=JOINED[type(node.op)]())
            yield node, node.left
            yield node, node.right
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
            yield node, _with(node, left=node.right, right=node.left)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.Not)):
            yield node, node.operand
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, (int, float))
            and not isinstance(node.value, bool)
        ):
            yield node, ast.Constant(node.value + 1)
        elif isinstance(node, ast.BoolOp):
            other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
            yield node, _with(node, op=other)
        elif isinstance(node, ast.comprehension) and node.ifs:
            yield node, _with(node, ifs=[])
        elif isinstance(node, (ast.If, ast.IfExp)):
            yield node, _with(node, test=ast.UnaryOp(ast.Not(), node.test))
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
            yield from _of_index(node)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in own:
            other_name = own[(own.index(node.id) + 1) % len(own)]
            if other_name != node.id:
                yield node, ast.Name(other_name, ast.Load())
        elif isinstance(node, ast.Call):
            yield from _of_call(node)


def _of_index(node: ast.Subscript) -> Iterator[Change]:
    if isinstance(node.slice, ast.Name):
        yield node, _with(node, slice=ast.Constant(0))
    elif isinstance(node.slice, ast.Tuple) and len(node.slice.elts) == 2:
        turned = ast.Tuple(node.slice.elts[::-1], ast.Load())
        if ast.dump(turned) != ast.dump(node.slice):
            yield node, _with(node, slice=turned)


def _of_call(node: ast.Call) -> Iterator[Change]:
    called = node.func
    name = called.id if isinstance(called, ast.Name) else getattr(called, "attr", "")
    if name in CALLED and isinstance(called, ast.Name):
        yield node, _with(node, func=ast.Name(CALLED[name], ast.Load()))
    elif name in CALLED and isinstance(called, ast.Attribute):
        yield node, _with(node, func=_with(called, attr=CALLED[name]))
    if name == "sum" and isinstance(called, ast.Name):
        yield node, _with(node, func=ast.Name("_mean", ast.Load()))
    if name in ("max", "min") and len(node.args) == 2:  # a clamp dropped
        yield node, node.args[0]
        yield node, node.args[1]
    if name in ("clamp", "relu", "clip", "square", "sqrt", "abs"):
        dropped = node.args[0] if isinstance(called, ast.Name) else None
        if isinstance(called, ast.Attribute):
            of_module = isinstance(called.value, ast.Name) and called.value.id in ("torch", "np")
            dropped = node.args[0] if of_module and node.args else called.value
        if dropped is not None:
            yield node, dropped


def _with(node: Any, **fields: Any) -> Any:
    """Return a copy of one node, its parts shared, with some fields replaced."""
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


class _Swap(ast.NodeTransformer):
    """Put one node in the place of another."""

    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> Any:
        return self.new if node is self.old else super().visit(node)
