"""Targets that teach an autoencoder codes to search by."""

import numpy as np

from kerasae import checks


def diffuse(images, num_neighbors=10, num_steps=32, num_components=50):
    """Targets that teach an autoencoder codes to search by: of each image, the mean of what a random walk among neighbours meets.

    Images are linked with their `num_neighbors` nearest, both ways, and with themselves; from each the walk goes on to one of those
    linked with it, all equally likely, P being the matrix of probabilities. The target of image i is
    `m + a (sum_j (P^t)_ij x_j - m)`, with `t = num_steps`, m the images' mean, and a such that targets vary as much as images do, in
    all. No labels are needed: an image's target is what it has in common with those that are like it, so a model fitted to targets,
    `model.fit(x, diffuse(x))`, gives like images like codes.

    Args:
        images: `(n, ...)`, at least `num_neighbors + 1`. The search for neighbours compares all with all: some ten seconds for 60,000.
        num_neighbors: at least 1. Default 10.
        num_steps: t, at least 1; more steps join more of what hangs together. Default 32.
        num_components: principal components in which images are compared, at most as many as there are. Default 50.

    Returns:
        float32, of `images`' shape. Values may lie outside the images' range.

    Raises:
        ValueError: on too few images, and options that can't be.

    Example:

    ```python
    model = kerasae.builders.undercomplete((8, 8, 1), latent_dim=16)
    model.compile("adam")
    model.fit(x_train, kerasae.tasks.diffuse(x_train), epochs=2, verbose=0)
    index = kerasae.tasks.SearchIndex(model)
    ```

    Reference:
        Coifman and Lafon 2006, "Diffusion Maps", whose coordinates span the targets. That an autoencoder learns them is ours.
    """
    from scipy import sparse
    from sklearn.decomposition import PCA
    from sklearn.neighbors import NearestNeighbors

    images = checks.array(images, name="images")
    num_neighbors = checks.positive_int(num_neighbors, "num_neighbors")
    num_steps = checks.positive_int(num_steps, "num_steps")
    if len(images) <= num_neighbors:
        raise ValueError(f"`images` must be more than `num_neighbors`, {num_neighbors}. Received: {len(images)}")
    flat = images.reshape(len(images), -1).astype("float32")
    size = min(checks.positive_int(num_components, "num_components"), *flat.shape)
    components = PCA(
        size, svd_solver="covariance_eigh" if size <= flat.shape[1] <= len(flat) else "full"
    ).fit_transform(flat)
    neighbors = NearestNeighbors(n_neighbors=num_neighbors, algorithm="brute").fit(components)
    links = neighbors.kneighbors_graph().astype("float32")
    links = (links.maximum(links.T) + sparse.identity(len(flat), dtype="float32")).tocsr()
    walk = sparse.diags(1 / np.asarray(links.sum(axis=1)).ravel(), dtype="float32") @ links
    mean = flat.mean(axis=0)
    targets = flat - mean
    scale = np.sqrt(np.square(targets).sum())
    for _ in range(num_steps):
        targets = walk @ targets
    targets -= targets.mean(axis=0)
    targets *= scale / max(np.sqrt(np.square(targets).sum()), np.finfo("float32").tiny)
    return (targets + mean).reshape(images.shape)
