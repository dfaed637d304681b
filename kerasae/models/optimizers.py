"""Several optimisers in one training step: each lowers the terms of its group by the variables of its group."""

import copy
from typing import NamedTuple

import keras


class TrainingGroup(NamedTuple):
    """What one optimiser of a model lowers, and by which variables.

    Args:
        variables: of the model, which the optimiser updates; a variable may be in several groups.
        terms: names of logged terms: the group's loss is their sum by `term_weights`, plus the layers' regularisers. Default: all.
        steps: whole number, at least 1: updates per training step. Each has a pass of its own, after the updates before it.
    """

    variables: list
    terms: tuple | None = None
    steps: int = 1


def for_groups(optimizer, groups, scale_loss):
    """What `compile(optimizer=...)` means to a model with these groups.

    Args:
        optimizer: what Keras takes, or a dict by the names of all groups. Of one alone, the first group has it and the others have copies
            made from its config.
        groups: `{name: TrainingGroup}`.
        scale_loss: whether each optimiser scales its loss, as Keras has it in mixed precision.

    Returns:
        What Keras takes, for one group; `GroupedOptimizer`, for several.

    Raises:
        ValueError: where a dict does not name the groups, or one optimiser is to serve two of them.
    """
    if isinstance(optimizer, GroupedOptimizer):
        optimizer = optimizer.by_group
    if not isinstance(optimizer, dict) or "class_name" in optimizer:  # a dict with it is one optimiser's config
        if len(groups) == 1 or optimizer is None:
            return optimizer
        first = keras.optimizers.get(optimizer)
        names = list(groups)
        by_group = {names[0]: first, **{name: _copy(first, name) for name in names[1:]}}
    elif set(optimizer) != set(groups):
        raise ValueError(
            f"compile(optimizer={{...}}) must name each group of the model once: {sorted(groups)}. Missing: "
            f"{sorted(set(groups) - set(optimizer))}; unknown: {sorted(set(optimizer) - set(groups))}."
        )
    else:
        by_group = {name: keras.optimizers.get(optimizer[name]) for name in groups}
    if len(groups) == 1:
        return by_group.popitem()[1]
    if len(set(map(id, by_group.values()))) < len(groups):
        raise ValueError("Each group needs an optimiser of its own, and one object was passed for two of them.")
    empty = [name for name, group in groups.items() if not group.variables]
    if empty:
        raise ValueError(
            f"The groups {empty} have nothing to train. Build their networks in `__init__`, and leave layers trainable."
        )
    if scale_loss:
        scaled = keras.optimizers.LossScaleOptimizer
        by_group = {name: o if isinstance(o, scaled) else scaled(o) for name, o in by_group.items()}
    grouped = GroupedOptimizer(by_group)
    grouped.build_groups(groups)
    return grouped


def _copy(optimizer, group):
    config = optimizer.get_config()
    return type(optimizer).from_config({**config, "name": f"{config['name']}_{group}"})


def each(optimizer):
    """All optimisers behind a model's."""
    return getattr(optimizer, "optimizers", [optimizer])


@keras.saving.register_keras_serializable("kerasae")
class GroupedOptimizer(keras.optimizers.Optimizer):
    """The optimisers of a model's groups, `model.optimizer["discriminator"]`, as Keras's callbacks and files take them.

    `iterations` and `learning_rate` are those of the first group; setting `learning_rate`, or its `assign`, sets all.

    Args:
        by_group: `{name of a group: optimiser}`.
    """

    def __init__(self, by_group, name="grouped_optimizer"):
        super().__init__(learning_rate=0.0, name=name)
        self._groups = tuple(by_group)
        self._optimizers = list(by_group.values())

    @property
    def optimizers(self):
        """In the order of the groups: Keras's callbacks go over them."""
        return list(self._optimizers)

    @property
    def by_group(self):
        return dict(zip(self._groups, self._optimizers, strict=True))

    def __getitem__(self, group):
        return self.by_group[group]

    def build_groups(self, groups):
        self._group_variables = {name: list(group.variables) for name, group in groups.items()}
        for name, variables in self._group_variables.items():
            self[name].build(variables)
        self.built = True

    def build(self, variables):
        """Does nothing: `compile` has built each optimiser for its group's variables."""

    @property
    def variables(self):
        return [variable for optimizer in self._optimizers for variable in optimizer.variables]

    @property
    def iterations(self):
        return self._optimizers[0].iterations

    @property
    def learning_rate(self):
        rate = self._optimizers[0].learning_rate
        if not isinstance(rate, keras.Variable):  # of a schedule
            return rate
        common = copy.copy(rate)  # of the same value, while the group's own variable stays its own
        common.assign = lambda value: setattr(self, "learning_rate", value)
        return common

    @learning_rate.setter
    def learning_rate(self, learning_rate):
        for optimizer in self._optimizers:
            optimizer.learning_rate = learning_rate

    def finalize_variable_values(self, var_list):
        for name, variables in self._group_variables.items():
            self[name].finalize_variable_values(variables)

    # Keras saves each of `optimizers` by itself.

    def save_own_variables(self, store):
        pass

    def load_own_variables(self, store):
        pass

    def get_config(self):
        return {"name": self.name, "by_group": keras.saving.serialize_keras_object(self.by_group)}

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "by_group": keras.saving.deserialize_keras_object(config["by_group"])})
