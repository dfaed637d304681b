"""Writes a benchmark's tables to `results/<name>.md`, beside its place first and then moved in."""

import os
import platform
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).with_name("results")


def table(header, rows):
    """A Markdown table; numbers are given as strings."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows])


def write(name, title, protocol, tables):
    """Prints the tables, and writes them under their title and protocol."""
    versions = ", ".join(
        f"{package} {version(package)}" for package in ("kerasae", "keras", "tensorflow", "scikit-learn")
    )
    command = f"`{' '.join(['python', f'tests/benchmarks/{name}.py', *sys.argv[1:]])}`, Python {platform.python_version()}, {versions}"
    text = "\n\n".join([f"# {title}", protocol, *tables, command]) + "\n"
    print(text)
    RESULTS.mkdir(exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=RESULTS, suffix=".tmp", delete=False, encoding="utf-8") as file:
        file.write(text)
    os.replace(file.name, RESULTS / f"{name}.md")
