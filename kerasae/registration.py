"""Registers our classes with Keras once it is imported, whoever imports it; `import kerasae` alone imports neither it nor TensorFlow."""

import importlib
import sys


def register():
    """Imports `kerasae.models`, which registers every class: now where Keras is there, or else as soon as it is."""
    if sys.modules.get("keras"):
        importlib.import_module("kerasae.models")
    else:
        sys.meta_path.insert(0, _Watch())


class _Watch:
    """A finder that finds what the others find, and learns when an import of Keras, TensorFlow or a module of ours has ended.

    `kerasae.models` is imported when the outermost of these has: before, one of them would be half imported. (TensorFlow imports Keras
    shortly before its own end and swallows errors meanwhile; our layers import Keras at their beginning.)
    """

    def __init__(self):
        self.under_way = set()

    def find_spec(self, name, path=None, target=None):
        if name not in ("keras", "tensorflow") and not name.startswith("kerasae."):
            return None
        for finder in sys.meta_path:
            find = None if finder is self else getattr(finder, "find_spec", None)
            if find is not None and (spec := find(name, path, target)) is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader, self)
                return spec
        return None

    def ended(self, name):
        self.under_way.discard(name)
        if not self.under_way and sys.modules.get("keras"):
            importlib.import_module("kerasae.models")
            if self in sys.meta_path:
                sys.meta_path.remove(self)


class _Loader:
    """A module's own loader, but for telling the watch when it begins and ends."""

    def __init__(self, loader, watch):
        self.loader, self.watch = loader, watch

    def __getattr__(self, name):
        return getattr(self.loader, name)

    def exec_module(self, module):
        module.__loader__ = module.__spec__.loader = self.loader  # nobody else is to see this one
        self.watch.under_way.add(module.__name__)
        try:
            self.loader.exec_module(module)
        except BaseException:
            self.watch.under_way.discard(module.__name__)
            raise
        self.watch.ended(module.__name__)
