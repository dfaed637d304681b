"""Runs: a recipe's data loaded, its model trained, measured and reported, in one folder per run; and detectors fitted likewise."""
