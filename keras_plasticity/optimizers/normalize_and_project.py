from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_plasticity import backend
from keras_plasticity.functional.matrices import at_least_float32
from keras_plasticity.functional.projections import joint_norm
from keras_plasticity.functional.projections import project_to_norm
from keras_plasticity.optimizers.layer_weights import by_layer
from keras_plasticity.optimizers.layer_weights import is_gain
from keras_plasticity.optimizers.layer_weights import is_kernel
from keras_plasticity.optimizers.layer_weights import is_offset
from keras_plasticity.optimizers.settings import Setting
from keras_plasticity.optimizers.weight_optimizer import WeightOptimizer
from keras_plasticity.validation import check_positive_integer


@keras.saving.register_keras_serializable(package="keras_plasticity")
class NormalizeAndProject(WeightOptimizer):
    """Optimizer wrapper that keeps the norms of kernels as they were.

    After every `period`-th update of the inner optimizer, each kernel becomes

    `W <- W * norm(W0) / norm(W)`,

    where `norm` is the Frobenius norm, and `W0` is the kernel when the
    optimizer is built on the model.

    It is the projection of Normalize-and-Project; the normalization is up to
    the model. There, a layer such as `keras.layers.LayerNormalization` stands
    between each kernel and its non-linearity, so that the norm of a kernel
    changes nothing but how large a step is by comparison: without the
    projection the norm grows, and steps become smaller and smaller. A kernel
    that is followed by a normalization needs no bias (`use_bias=False`).

    - All kernels are projected, those of the output layer too, unless
        `exclude` names it. It should: the norm of the output's kernel is that
        of what can be learned.
    - The gain and the offset of a normalization layer are projected together,
        as one vector, to their initial norm; the gain alone in a layer without
        an offset. (The paper has this, or a penalty that pulls them to 1 and
        0.) `exclude=["gamma", "beta"]` leaves them free.
    - Biases and embeddings are free, and so is what is zero at first.

    Args:
        inner_optimizer: The `keras.optimizers.Optimizer` to wrap.
        period: Positive integer, the number of updates between two
            projections. The paper found 1,000 as good as 1. Defaults to `1`.
        exclude: Strings. Weights are left alone whose path, such as
            `"sequential/output/kernel"`, has one of them in it. Defaults to
            `()`.
        name: String, the optimizer's name.

    Raises:
        ValueError: In `build`, if a kernel has a constraint, which would be
            broken.

    Example:

    ```python
    model = keras.Sequential(
        [
            keras.layers.Dense(50, use_bias=False),
            keras.layers.LayerNormalization(),
            keras.layers.ReLU(),
            keras.layers.Dense(3, name="output"),
        ]
    )
    optimizer = keras_plasticity.optimizers.NormalizeAndProject(
        keras.optimizers.Adam(1e-4), exclude=["output"]
    )
    model.compile(optimizer=optimizer, loss="mse")
    model.fit(x, y)
    ```

    References:

    - [Lyle et al., 2024](https://arxiv.org/abs/2407.01800)
    """

    period = Setting(check_positive_integer)

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer,
        period: int = 1,
        exclude: Sequence[str] = (),
        name: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(inner_optimizer, exclude=exclude, name=name, **kwargs)
        self.period = period
        # Ids of the weights that have a norm together, and the norms.
        self._groups = []
        self._norms = []

    def acts_on(self, variable):
        return any(
            is_kind(variable) for is_kind in (is_kernel, is_gain, is_offset)
        )

    def add_state(self, weights):
        for group in _groups(weights):

            def initial_norm(shape, dtype=None, group=group):
                tensors = [ops.convert_to_tensor(weight) for weight in group]
                norm = joint_norm(
                    [at_least_float32(tensor) for tensor in tensors]
                )
                return ops.cast(norm, dtype)

            self._groups.append(tuple(id(weight) for weight in group))
            self._norms.append(
                self.add_variable((), initializer=initial_norm, name="norm")
            )

    def _choose(self, variables):
        chosen = super()._choose(variables)
        for weight in chosen:
            if weight.constraint is not None:
                raise ValueError(
                    "A weight that a `NormalizeAndProject` projects must have "
                    "no constraint, which the projection would break. Leave it "
                    f"out, or `exclude` the weight. Received: '{weight.path}' "
                    f"with a `{type(weight.constraint).__name__}`"
                )
        return chosen

    def before_update(self, weights):
        if self.period == 1:
            return None
        # The number of this update. (What is run where there is an update may
        # not read the inner optimizer's.)
        return ops.equal((self.iterations + 1) % self.period, 0)

    def after_update(self, weights, gradients, before):
        if self.period == 1:
            self._project(weights)
            return
        backend.run_if(
            before,
            lambda: self._project(weights),
            [*weights, *self.own_variables()],
        )

    def _project(self, weights):
        known = {id(weight): weight for weight in weights}
        for ids, norm in zip(self._groups, self._norms):
            # None of a group, if one of it has no gradient.
            if not all(each in known for each in ids):
                continue
            group = [known[each] for each in ids]
            values = [at_least_float32(weight.value) for weight in group]
            values = project_to_norm(values, norm.value)
            for weight, value in zip(group, values):
                weight.assign(ops.cast(value, weight.dtype))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **self.settings("period")}


def _groups(weights):
    """Lists of the weights that are projected together."""
    groups = [[weight] for weight in weights if is_kernel(weight)]
    others = [weight for weight in weights if not is_kernel(weight)]
    return groups + by_layer(others)
