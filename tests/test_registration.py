"""`import kerasae` registers every class with Keras, in whatever order a program imports them, and whatever the program is called."""

import subprocess
import sys

import pytest

from kerasae import builders

LOAD = "model = keras.saving.load_model(sys.argv[1]); print(type(model).__name__, sum('Watch' in repr(f) for f in sys.meta_path))"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "model.keras"
    builders.denoising((4,), latent_dim=2, hidden_units=(3,), noise_stddev=0.1).save(path)
    return path


def run(*arguments):
    return subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, check=False)


def rarely(imports):
    return pytest.param(imports, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "imports",
    [
        "import kerasae, keras",
        "import keras, kerasae",
        # TensorFlow imports Keras before its own end, and our modules at their beginning.
        "import kerasae, tensorflow, keras",
        "import kerasae.layers, keras",
        rarely("import tensorflow, kerasae, keras"),
        rarely("import tensorflow, keras, kerasae"),
        rarely("import kerasae.models, keras"),
        rarely("import kerasae.tasks, keras"),
        rarely("import kerasae; kerasae.builders.undercomplete((4,), latent_dim=1); import keras"),
        rarely("from kerasae import layers; import keras"),
        rarely("from kerasae import zoo, export; import keras"),
        rarely("exec('import kerasae'); import keras"),
    ],
)
def test_a_saved_model_loads_after(imports, saved):
    result = run("-c", f"import sys; {imports}; {LOAD}", saved)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["DenoisingAutoencoder", "0"]  # and nothing watches imports any longer


def test_a_script_may_be_called_kerasae(saved, tmp_path):
    (tmp_path / "kerasae.py").write_text(f"import sys, kerasae, keras; {LOAD}")
    assert run("-P", tmp_path / "kerasae.py", saved).stdout.split() == ["DenoisingAutoencoder", "0"]


def test_errors_while_registering_are_not_swallowed():
    # TensorFlow goes on without Keras where its import fails.
    result = run("-c", "import sys, kerasae; sys.modules['kerasae.models'] = None; import tensorflow")
    assert result.returncode == 1
    assert "kerasae.models" in result.stderr.splitlines()[-1]
