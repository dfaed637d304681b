"""The `kerasae` command: what a person types, checked, carried out by the other rooms, and answered."""

from kerasae.cli.app import main

__all__ = ["main"]
