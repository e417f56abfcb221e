"""One style for all losses: what messages say, what docstrings hold, what imports what."""

import ast
import importlib
import inspect
import re
from pathlib import Path
from typing import NamedTuple

import pytest
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
LIB = ROOT / "lib"
LOSSES = ("softmax", "zlpr", "soft_zlpr", "exact", "emo", "divergence", "global_pointer")
FILES = (
    *(LIB / f"_{name}.py" for name in ("checks", "refusals", "rows")),
    *(path for package in LOSSES for path in sorted((LIB / package).rglob("*.py"))),
    LIB / "casrel" / "tagging.py",
)
SECTIONS = ["Parameters", "Attributes", "Returns", "Raises", "Notes", "Examples"]
OLD_NAMES = {"fit_temperature"}  # they point to the new ones


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


def text_of(node: ast.expr) -> str:
    """Write a message as it stands, with {} for what is put in."""
    match node:
        case ast.Constant(value=str(value)):
            return value
        case ast.JoinedStr(values=values):
            return "".join(map(text_of, values))
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return text_of(left) + text_of(right)
        case _:
            return "{}"


class Message(NamedTuple):
    place: str
    text: str


def messages(path: Path) -> list[Message]:
    found = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if not (isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)):
            continue
        # An assertion speaks to us, not to a user; what is raised from elsewhere has its own words.
        if isinstance(node.exc.func, ast.Name) and node.exc.func.id != "AssertionError":
            text = text_of(node.exc.args[0]) if node.exc.args else ""
            found.append(Message(f"{short(path)}:{node.lineno}", text))
    return found


def test_every_message_says_what_must_be_and_what_was_got():
    everywhere = [message for path in FILES for message in messages(path)]
    assert len(everywhere) > 100
    pattern = re.compile(r"\S.* must .*\S, got .*\S", re.DOTALL)
    assert [message for message in everywhere if not pattern.fullmatch(message.text)] == []


@pytest.mark.parametrize("path", FILES, ids=short)
def test_every_file_lists_its_public_names(path):
    names = {}
    defined = set()
    for node in ast.parse(path.read_text("utf-8")).body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                names[name] = value
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                defined.add(name)
    assert "__all__" in names
    listed = ast.literal_eval(names["__all__"])
    assert {name for name in defined if not name.startswith("_")} <= set(listed)
    assert not [name for name in listed if name.startswith("_") and name != "__version__"]


def test_no_package_imports_what_is_private_to_another():
    found = []
    for path in sorted(LIB.rglob("*.py")):
        package = path.relative_to(LIB).parts[0]
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            match node:
                case ast.ImportFrom(module=str(module), level=0):
                    full = [f"{module}.{alias.name}" for alias in node.names]
                case ast.Import():
                    full = [alias.name for alias in node.names]
                case _:
                    continue
            for name in full:
                parts = name.split(".")
                private = any(part.startswith("_") for part in parts[2:])
                if parts[0] == "lib" and parts[1] != package and private:
                    # Names like _checks.no_autocast are public in a module that all share.
                    if not (parts[1].startswith("_") and not parts[2].startswith("_")):
                        found.append(f"{short(path)}: {name}")
    assert found == []


def functions_and_classes() -> dict[str, object]:
    homes = {f"lib.{package}": importlib.import_module(f"lib.{package}") for package in LOSSES}
    names = {home: module.__all__ for home, module in homes.items()}
    tagging = importlib.import_module("lib.casrel.tagging")
    homes["lib.casrel"] = tagging  # what its model brings needs more than PyTorch
    names["lib.casrel"] = sorted(
        set(tagging.__all__) & set(importlib.import_module("lib.casrel").__all__)
    )
    found = {f"{home}.{name}": getattr(homes[home], name) for home in homes for name in names[home]}
    return {
        name: value
        for name, value in found.items()
        if inspect.isfunction(value) or inspect.isclass(value)
    }


PUBLIC = functions_and_classes()


def sections(docstring: str) -> dict[str, str]:
    """Cut a docstring at its headings; what stands before the first has none."""
    parts = re.split(r"^(\w+)\n-+\n", docstring, flags=re.MULTILINE)
    return {"": parts[0]} | dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("name", PUBLIC)
def test_docstrings_hold_what_a_reader_looks_for(name):
    value = PUBLIC[name]
    docstring = inspect.getdoc(value)
    assert docstring
    found = sections(docstring)
    headings = list(found)[1:]
    assert headings == sorted(headings, key=SECTIONS.index)
    if inspect.isfunction(value):
        needed = {"Parameters", "Returns", "Raises", "Examples"}
        if value.__name__ in OLD_NAMES:
            needed.remove("Raises")
        if value.__annotations__["return"] is None:
            needed.remove("Returns")
        assert needed <= set(headings)
        if "Equations:" in docstring:
            assert "Source: " in found.get("Notes", ""), "a formula without its source"
    elif issubclass(value, nn.Module):
        assert {"Parameters", "Examples"} <= set(headings)
    if "Examples" in headings:
        assert ">>> " in found["Examples"]


@pytest.mark.parametrize("name", PUBLIC)
def test_what_is_told_about_a_function_is_no_longer_than_it(name):
    """Purpose and notes; lists of arguments, results and errors are as long as they must be."""
    value = PUBLIC[name]
    docstring = inspect.getdoc(value) or ""
    found = sections(docstring)
    told = found[""] + found.get("Notes", "")
    code = len(inspect.getsource(value).splitlines()) - len(docstring.splitlines())
    assert sum(bool(line.strip()) for line in told.splitlines()) <= max(20, code)
