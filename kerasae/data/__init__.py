"""Data: image datasets by name (`load`, `stream`), a person's own files (`files`), and their values as a model's input."""

from kerasae.data.datasets import load, stream
from kerasae.data.prepared import NoLabelsError, UnknownDatasetError

__all__ = ["NoLabelsError", "UnknownDatasetError", "load", "stream"]
