"""Every example in a docstring, and every Python block of the README, runs."""

import doctest
import importlib
import inspect
import re
import textwrap
from pathlib import Path

import keras
import numpy as np
import pytest

import kerasae
from kerasae import models

ROOT = Path(__file__).parents[1]
MODULES = [
    "checks",
    "layers",
    "losses",
    "networks",
    "builders",
    "data",
    "metrics",
    "figures",
    "recipes",
    "export",
    "zoo",
    *(f"models.{path.stem}" for path in sorted((ROOT / "kerasae/models").glob("*.py")) if path.stem != "__init__"),
]
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)


def public_objects(module):
    """(name, docstring) of a module's own public functions, classes and their methods."""
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        yield name, inspect.getdoc(value)
        if inspect.isclass(value):
            for method, function in vars(value).items():
                if not method.startswith("_") and inspect.isfunction(function):
                    yield f"{name}.{method}", inspect.getdoc(function)


def examples():
    for module in MODULES:
        for name, doc in public_objects(importlib.import_module(f"kerasae.{module}")):
            for i, block in enumerate(BLOCK.findall(doc or "")):
                yield pytest.param(block, id=f"{module}.{name}{f'-{i}' if i else ''}")


@pytest.mark.filterwarnings("ignore:Overcomplete")
@pytest.mark.parametrize("block", examples())
def test_docstring_example(block, digits, tmp_path, monkeypatch):
    if "mnist" in block or "cifar" in block:
        pytest.skip("needs a prepared dataset")
    monkeypatch.chdir(tmp_path)
    x_train, x_test = digits
    namespace = {"keras": keras, "kerasae": kerasae, "np": np, "x_train": x_train, "x_test": x_test}
    namespace |= {name: getattr(models, name) for name in models.__all__}
    exec(compile(textwrap.dedent(block), "<docstring>", "exec"), namespace)


@pytest.mark.parametrize("module", MODULES)
def test_doctests(module):
    failed, _ = doctest.testmod(importlib.import_module(f"kerasae.{module}"))
    assert failed == 0


@pytest.mark.parametrize("module", MODULES)
def test_public_objects_are_documented(module):
    for name, doc in public_objects(importlib.import_module(f"kerasae.{module}")):
        if "." not in name:  # methods may inherit Keras's
            assert doc, f"kerasae.{module}.{name} has no docstring"


def test_readme_python_blocks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = BLOCK.findall((ROOT / "README.md").read_text())
    assert blocks
    namespace = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)
