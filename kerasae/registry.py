"""Registries of what files and users add by a decorator: model families, kinds of networks.

A file of the package declares an entry by its decorator, so that its names can be read from source without importing TensorFlow, as the
command line needs them. An entry is there once its module is imported.
"""

import ast
from pathlib import Path

from kerasae import checks


class Registry:
    """Entries by name.

    Args:
        package: folder beside this file whose modules declare entries, such as `"models"`.
        decorator: name of the decorator that they are declared with, such as `"family"`.
        what: what an entry is called in messages.
    """

    def __init__(self, package, decorator, what):
        self.folder = Path(__file__).parent / package
        self.decorator = decorator
        self.what = what
        self._entries = {}

    def add(self, name, entry, definition):
        """Adds an entry; raises `ValueError` where another definition has the name. The same one may come again, as in a notebook."""
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(f"The name of a {self.what} must be a Python name. Received: {name!r}")
        known = self._entries.get(name)
        source = (definition.__module__, definition.__qualname__)
        if known is not None and known[1] != source:
            raise ValueError(
                f"There is a {self.what} {name!r} already, of {'.'.join(filter(None, known[1]))}. Choose another name."
            )
        self._entries[name] = entry, source

    def remove(self, name):
        """Takes an entry out again."""
        del self._entries[name]

    def __iter__(self):
        """The names, sorted."""
        return iter(sorted(self._entries))

    def __getitem__(self, name):
        """The entry; raises `ValueError`, naming the nearest, where there is none."""
        return self._entries[checks.choice(name, self.what, self)][0]

    def declared(self):
        """`{name: {argument: value}}` of the package's own entries, by the literal arguments of their decorators; imports nothing."""
        found = {}
        for path in sorted(self.folder.glob("*.py")):
            source = path.read_text(encoding="utf-8")
            if f"@{self.decorator}(" not in source:
                continue
            for node in ast.parse(source).body:
                for call in getattr(node, "decorator_list", ()):
                    if isinstance(call, ast.Call) and getattr(call.func, "id", None) == self.decorator:
                        name = ast.literal_eval(call.args[0]) if call.args else node.name
                        found[name] = {entry.arg: ast.literal_eval(entry.value) for entry in call.keywords}
        return dict(sorted(found.items()))


FAMILIES = Registry("models", "family", "family")
NETWORKS = Registry("networks", "register", "network")
