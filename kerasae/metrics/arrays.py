"""Checks of the metrics' arguments."""

from kerasae import checks


def batch(array, name):
    """The array, of rank 2 or more."""
    array = checks.array(array, name=name)
    if array.ndim < 2:
        raise ValueError(f"`{name}` must have the batch first and a rank of at least 2. Received shape: {array.shape}")
    return array


def flat(array):
    """Examples as rows."""
    return array.reshape(len(array), -1)


def train_and_test(train, test, names):
    """Training and test arrays with the same features, flattened to `(num, features)`."""
    train, test = batch(train, names[0]), batch(test, names[1])
    if train.shape[1:] != test.shape[1:]:
        raise ValueError(
            f"`{names[0]}` and `{names[1]}` must have the same features. Received shapes: {train.shape} and {test.shape}."
        )
    return flat(train), flat(test)


def at_most(value, name, maximum, of):
    """The value as an int from 1 to `maximum`, the number of things that `of` names."""
    value = checks.positive_int(value, name)
    if value > maximum:
        raise ValueError(f"`{name}` must be at most {maximum}, the number of {of}. Received: {value}")
    return value
