"""Bulk runs of a bundle over Parquet files: `run` on many cores or a cluster, `encode_file` for one file in an engine of your own."""

from kerasae.export.running.bulk import run
from kerasae.export.running.parquet import encode_file

__all__ = ["encode_file", "run"]
