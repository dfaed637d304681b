"""Imputation against scikit-learn's imputers: `python tests/benchmarks/imputation.py [--banknote FILE FILE]`.

The protocol of MIWAE (Mattei and Frellsen 2019): a table is standardised, half of its entries are removed completely at random, each
imputer is fitted to what is left and fills it, and the squared error is averaged over the removed entries. Mean and standard deviation
over several random masks; every imputer sees the same ones, with its defaults. "Forest" is `IterativeImputer` with extremely random
trees, as missForest. Nothing is chosen by these errors.
"""

import argparse
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tables
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer

from kerasae.tasks import Imputer


def imputers(seed, forest):
    yield "kerasae", Imputer(random_state=seed)
    yield "mean", SimpleImputer()
    yield "k-NN", KNNImputer()
    yield "iterative, Bayesian ridge", IterativeImputer(random_state=seed)
    if forest:
        trees = ExtraTreesRegressor(n_estimators=50, random_state=seed)
        yield "iterative, forest", IterativeImputer(trees, max_iter=5, random_state=seed)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--banknote", nargs="+", default=[], metavar="FILE", help="comma-separated; the last column is the class"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--datasets", nargs="+", default=["breast", "wine", "diabetes"])
    parser.add_argument("--no-forest", action="store_true", help="leave the slowest imputer out")
    arguments = parser.parse_args()
    loaders = {"breast": load_breast_cancer, "wine": load_wine, "diabetes": load_diabetes}
    datasets = {name: loaders[name]().data for name in arguments.datasets}
    if arguments.banknote:
        parts = [np.genfromtxt(path, delimiter=",") for path in arguments.banknote]
        values = np.concatenate(parts)
        datasets["banknote"] = values[~np.isnan(values).any(axis=1), :-1]
    rows = []
    for name, x in datasets.items():
        x = (x - x.mean(axis=0)) / x.std(axis=0)
        errors = {}
        for seed in arguments.seeds:
            missing = np.random.default_rng(seed).random(x.shape) < 0.5
            incomplete = np.where(missing, np.nan, x)
            for imputer_name, imputer in imputers(seed, not arguments.no_forest):
                start = time.perf_counter()
                imputed = imputer.fit_transform(incomplete)
                errors.setdefault(imputer_name, []).append(np.square(imputed - x)[missing].mean())
                seconds = time.perf_counter() - start
                print(
                    f"{name}, mask {seed}, {imputer_name}: {errors[imputer_name][-1]:.3f} ({seconds:.0f} s)", flush=True
                )
        rows.append([name, str(x.shape), *(f"{np.mean(e):.3f} ± {np.std(e):.3f}" for e in errors.values())])
    seeds = ", ".join(map(str, arguments.seeds))
    tables.write(
        "imputation",
        "Imputation",
        f"Mean squared error on the missing entries of a standardised table, half of them missing completely at random; mean ± standard "
        f"deviation over masks and fits with the seeds {seeds}.",
        [tables.table(["table", "shape", *errors], rows)],
    )


if __name__ == "__main__":
    main()
