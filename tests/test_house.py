"""The plan of the house: imports only go down, and importing kerasae costs what importing Keras costs."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Each room may import the rooms before it. `export` and `zoo` stand on kerasae, not on each other; only the command imports them.
FLOORS = [
    {"checks", "registration", "runtime", "writing"},
    {"registry", "untrusted"},
    {"keras_internals"},
    {"layers", "losses", "functions", "preparation", "sequences"},
    {"distributions"},
    {"networks"},
    {"models"},
    {"builders"},
    {"data", "metrics", "streams"},
    {"tasks", "figures"},
    {"callbacks", "export"},
    {"runs"},
    {"zoo"},
    {"cli"},
]
FLOOR = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}


def imported_rooms(path):
    """The rooms that a module imports, at its top or within functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module == "kerasae":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("kerasae.")):
            yield (node.module or "").removeprefix("kerasae.").split(".")[0] if not node.level else "relative import"
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("kerasae."))


def modules():
    for folder, package in (("kerasae", ""), ("export", "export"), ("zoo", "zoo")):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            if (package or parts[0]) != "__init__" and "clients" not in parts:
                yield pytest.param(package or parts[0], path, id=str(path.relative_to(ROOT)))


@pytest.mark.parametrize(("room", "path"), modules())
def test_imports_only_go_down(room, path):
    assert room in FLOOR, f"{path} stands in no room: add it to FLOORS, or move it"
    for imported in set(imported_rooms(path)) - {room, "__version__"}:
        assert FLOOR[imported] < FLOOR[room], f"{room} imports {imported}"


# What `kerasae.keras_internals` wraps. The names of other attributes of Keras's classes are theirs alone, too.
PRIVATE_NAMES = re.compile(
    r"keras\.src|tensorflow\.python|_flatten_layers|_compile_loss|_compile_metrics|_loss_tracker|_distribute_strategy|_symbolic_build"
    r"|_in_multi_worker_mode|_cross_device_ops|\._clip_gradients|_keras_history|_inbound_nodes|_use_cached_eval_dataset"
    r"|variable_created_in_scope"
)


def test_private_names_of_keras_and_tensorflow_stand_in_one_file():
    here, only = Path(__file__), ROOT / "kerasae" / "keras_internals.py"
    paths = [path for folder in ("kerasae", "export", "zoo", "tests") for path in (ROOT / folder).rglob("*.py")]
    found = {
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in set(paths) - {here, only}
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if PRIVATE_NAMES.search(line)
    }
    assert not found
    assert PRIVATE_NAMES.search(only.read_text())


def imported_by(statement):
    code = f"import sys; {statement}; print(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_importing_kerasae_imports_no_more_than_keras_does():
    heavy = {"tensorflow_datasets", "sklearn", "matplotlib", "onnx", "onnxruntime", "tf2onnx", "pydantic", "click"}
    assert not heavy & (imported_by("import kerasae, keras") - imported_by("import keras"))
    assert not {*heavy, "keras", "tensorflow", "numpy"} & imported_by("import kerasae")


def test_importing_kerasae_registers_its_classes():
    paths = [*(ROOT / "kerasae" / "models").rglob("*.py"), *(ROOT / "kerasae").glob("layers*.py")]
    nodes = [node for path in paths for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]
    registered = {
        f"kerasae>{node.name}" for node in nodes if "register_keras" in "".join(map(ast.dump, node.decorator_list))
    }
    assert {"kerasae>IncompleteDataAutoencoder", "kerasae>TiedDense"} <= registered
    assert registered <= imported_by("import kerasae, keras; sys.modules = keras.saving.get_custom_objects()")


def test_every_package_is_installed():
    text = (ROOT / "pyproject.toml").read_text()
    for folder in ("kerasae", "export", "zoo"):
        for init in (ROOT / folder).rglob("__init__.py"):
            package = ".".join(init.parent.relative_to(ROOT).parts)
            assert f'"{package if folder == "kerasae" else "kerasae." + package}"' in text


def test_nobody_asks_what_family_a_model_is():
    """A model says what it computes: a family's class or name is asked in its own file alone."""
    from kerasae import models

    classes = {
        name: value.__module__.split(".")[-1]
        for name in models.__all__
        if isinstance(value := getattr(models, name), type) and issubclass(value, models.Autoencoder)
    }
    del classes["Autoencoder"]
    asked = re.compile(
        r"""hasattr\(\w*\.?model_?, |(type\([^)]*\)|__class__)\.__name__ (==|in)|\bfamily == |"""
        rf"""isinstance\([^)]*\b({"|".join(classes)})\b"""
    )
    for folder in ("kerasae", "export", "zoo"):
        for path in (ROOT / folder).rglob("*.py"):
            for line in path.read_text().splitlines():
                found = asked.search(line)
                own_file = found and path.parent.name == "models" and classes.get(found[3]) == path.stem
                in_general = found and (path.name, found[0]) in {
                    ("bundle.py", "hasattr(model, "),  # whether it is a model at all
                    ("webpage.py", "hasattr(model, "),
                }
                assert not found or own_file or in_general, f"{path}: {line.strip()}"
