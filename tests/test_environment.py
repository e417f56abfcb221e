"""The three lists of packages agree: pyproject.toml, requirements.in/.txt, environment.yml."""

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def names(lines) -> set[str]:
    lines = (line.split("#")[0].strip() for line in lines)
    return {normal(re.match(r"[A-Za-z0-9._-]+", line).group()) for line in lines if line}


def text(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def test_lock_covers_what_was_asked_for():
    locked = names(text("requirements.txt").splitlines())
    asked = names(text("requirements.in").splitlines())
    assert asked <= locked


def test_lock_pins_every_line_and_holds_no_local_build():
    for line in text("requirements.txt").splitlines():
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line), line


def test_lib_s_dependencies_are_asked_for():
    project = tomllib.loads(text("pyproject.toml"))["project"]
    assert names(project["dependencies"]) <= names(text("requirements.txt").splitlines())


def test_conda_environment_installs_the_same_lock():
    environment = yaml.safe_load(text("environment.yml"))
    pip = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert pip == [["-r requirements.txt", "-e ."]]
    floor = tomllib.loads(text("pyproject.toml"))["project"]["requires-python"]
    python = next(e for e in environment["dependencies"] if str(e).startswith("python="))
    assert floor == ">=" + python.removeprefix("python=")
