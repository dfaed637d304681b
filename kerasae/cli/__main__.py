"""`python -m kerasae.cli`: the command, where its script is not on the path."""

from kerasae.cli import main

main()
