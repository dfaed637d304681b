"""Every example in a docstring, every Python block of the README and the handbook, and every command that a page marks, runs."""

import doctest
import importlib
import inspect
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import keras
import numpy as np
import pytest
from families import fast

import kerasae
from kerasae import models
from kerasae.registry import FAMILIES, NETWORKS

ROOT = Path(__file__).parents[1]
MODULES = [
    "checks",
    "layers",
    "losses",
    "registry",
    "networks",
    "builders",
    "data",
    "metrics",
    "callbacks",
    "streams",
    "export",
    "zoo",
    *(
        f"{room}.{path.stem}"
        for room in ("figures", "models", "networks", "runs", "tasks")
        for path in sorted((ROOT / "kerasae" / room).glob("*.py"))
        if path.stem != "__init__"
    ),
]
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
PAGES = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]
# A page's block of Python, and why it is not run where a comment before it says so; or of commands, which run where a comment says so.
PAGE_BLOCK = re.compile(
    r"^(?:(?:<!-- not run: (?P<reason>[^\n]+) -->\n+)?```python|<!-- run -->\n+```(?P<bash>bash))\n(?P<code>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
# Pages of families are made alike; their docstrings' examples all run. Here one with a layer of its own, and one with noise.
SLOW_PAGES = {
    page for page in PAGES if page.startswith("docs/families/") and Path(page).stem not in ("k_sparse", "variational")
}
NOT_RUN = []
# This page adds files to the package: it is followed in a copy of the tree.
ADDING = "docs/adding-a-family.md"
NEW_FILE = re.compile(r"^<!-- file: (?P<path>\S+) -->\n+```python\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE)
NEW_ROWS = re.compile(r"^<!-- row -->\n+```diff\n(?P<diff>.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")


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


@pytest.fixture(autouse=True)
def _registries_as_before(monkeypatch):
    """What an example registers is gone after it."""
    for registry in (FAMILIES, NETWORKS):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))


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


@pytest.mark.filterwarnings("ignore:Overcomplete")
@pytest.mark.parametrize("page", fast(set(PAGES) - SLOW_PAGES, [page for page in PAGES if page != ADDING]))
def test_blocks_of_a_page(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    text = (ROOT / page).read_text()
    namespace = {}
    for block in PAGE_BLOCK.finditer(text):
        if block["bash"]:
            result = subprocess.run(
                ["bash", "-e", "-c", block["code"]], capture_output=True, text=True, check=False, timeout=600
            )
            assert result.returncode == 0, result.stderr
        elif block["reason"] is None:
            # On the page's own lines, so that a traceback names them.
            code = "\n" * text[: block.start("code")].count("\n") + block["code"]
            exec(compile(code, page, "exec"), namespace)


def test_a_family_is_added_by_one_file_and_its_rows(tmp_path):
    page = (ROOT / ADDING).read_text()
    tree = tmp_path / "tree"
    for folder in ("kerasae", "tests"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__", "benchmarks"))
    for room in ("export", "zoo"):
        if not (tree / "kerasae" / room).exists():
            (tree / "kerasae" / room).symlink_to(ROOT / room)
    shutil.copy(ROOT / "pyproject.toml", tree)
    new = NEW_FILE.search(page)
    assert not (tree / new["path"]).exists()
    (tree / new["path"]).write_text(new["code"])
    rows = [line[1:] for line in NEW_ROWS.search(page)["diff"].splitlines() if line.startswith("+")]
    table = (tree / "tests/families.py").read_text()
    (tree / "tests/families.py").write_text(table.replace("FAMILIES = {\n", "\n".join(["FAMILIES = {", *rows, ""]), 1))

    def run(*command, cwd=tree):
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        environment = {**os.environ, "PATH": path, "PYTHONPATH": str(tree)}
        result = subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=600
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    blocks = [block for block in PAGE_BLOCK.finditer(page) if block["code"] != new["code"]]
    for block in blocks:
        if block["bash"]:
            run("bash", "-e", "-c", block["code"], cwd=tmp_path)
    assert (tmp_path / "bundle/manifest.json").is_file()
    printed = run(sys.executable, "-c", "\n".join(block["code"] for block in blocks if not block["bash"]), cwd=tmp_path)
    assert printed.startswith("['codes to which a prior can be fitted']\n")
    assert re.search("regularized +codes to which a prior can be fitted", run("kerasae", "train", "--help"))
    # Of the contract the fit and going on; the record, its documentation, and that it is read from source.
    chosen = "regularized-dense and (lowers or go_on) or records and regularized or without_importing"
    files = ("tests/test_models.py", "tests/test_families.py")
    passed = run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files, "-k", chosen, "-m", "")
    assert int(re.search(r"(\d+) passed", passed)[1]) == 4


def lecture():
    """A command a topic, and the figures that its report is said to have."""
    for line in (ROOT / "docs/lecture.md").read_text().splitlines():
        if command := re.search(r"`kerasae (train [^`]+)`", line):
            figures = {name.replace(" ", "_") for name in re.findall(r"\*([a-z ]+)\*", line)}
            yield pytest.param(command[1], figures, id=command[1].split("--folder ")[1])


@pytest.mark.slow
@pytest.mark.parametrize(("command", "figures"), lecture())
def test_the_lecture_s_reports_show_what_is_said(command, figures, tmp_path):
    assert figures
    kerasae_command = Path(sys.executable).with_name("kerasae")
    subprocess.run([kerasae_command, *command.split(), "--epochs", "1"], cwd=tmp_path, check=True)
    (folder,) = tmp_path.iterdir()
    assert figures <= {path.stem for path in (folder / "figures").iterdir()}


def test_what_the_handbook_does_not_run_is_known():
    marked = [
        (page, block["reason"])
        for page in PAGES
        for block in PAGE_BLOCK.finditer((ROOT / page).read_text())
        if block["reason"] is not None
    ]
    assert marked == NOT_RUN


@pytest.mark.parametrize("page", PAGES)
def test_links_of_a_page_lead_somewhere(page):
    path = ROOT / page
    for target in links(path):
        if not target.startswith(("http://", "https://", "#")):
            file, _, heading = target.partition("#")
            assert (path.parent / file).exists(), f"{page} links {target}"
            if heading:
                assert heading in headings(path.parent / file), f"{page} links {target}"


def links(path):
    """The targets of a page's links and pictures; code has brackets of its own."""
    return LINK.findall(re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE))


def headings(path):
    """The anchors that GitHub gives to a page's headings."""
    for title in re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE):
        yield re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def test_every_page_of_the_handbook_can_be_reached():
    reached, waiting = set(), {ROOT / "README.md"}
    while waiting:
        page = waiting.pop()
        reached.add(page)
        targets = (target.partition("#")[0] for target in LINK.findall(page.read_text()))
        links = {
            (page.parent / target).resolve() for target in targets if target.endswith(".md") and "://" not in target
        }
        waiting |= {link for link in links if link.exists()} - reached
    assert {ROOT / page for page in PAGES} <= reached
