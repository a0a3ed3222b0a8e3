"""How well a model learns, beside the same model newly initialized."""

import contextlib
import dataclasses
import random
import weakref

import keras
import numpy as np

from keras_plasticity import backend
from keras_plasticity import keras_compat
from keras_plasticity import validation
from keras_plasticity.callbacks import new_layers
from keras_plasticity.diagnosis.differentiation import differentiation_of
from keras_plasticity.models.make_plastic import make_alike
from keras_plasticity.seeds import derived_seed
from keras_plasticity.training import OnlineTrainer
from keras_plasticity.training import TaskCallback
from keras_plasticity.training import nests

# The points of a learning curve.
_NUM_POINTS = 20
_FEWEST_STEPS = 1000
# Examples whose losses are computed at once.
_BATCH_SIZE = 256


@dataclasses.dataclass
class Learning:
    """What copies of a model learned of some examples.

    Attributes:
        num_steps: Integer, the updates that each copy made.
        steps: Array of the numbers of updates at which losses are known.
        old_curves: Array of shape `(points, copies)`, the losses while copies
            of the model learned, each a mean since the point before.
        new_curves: The same of newly initialized models.
        old_before, old_after: Arrays of the losses on all examples before and
            after, of each copy of the model.
        new_before, new_after: The same of newly initialized models.
    """

    num_steps: int
    steps: np.ndarray
    old_curves: np.ndarray
    new_curves: np.ndarray
    old_before: np.ndarray
    old_after: np.ndarray
    new_before: np.ndarray
    new_after: np.ndarray


class Copies:
    """Copies of a model, with its weights or with new ones.

    Args:
        model: A built `keras.Model`. Nothing in it changes.
        loss: A loss, or `None` for the model's own.
        optimizer: A `keras.optimizers.Optimizer` whose config the copies'
            optimizers get, or `None` for the model's own.
        build_model: Function that returns a new model without a loss or
            optimizer, for models that their config does not describe; or
            `None`.
        seed: Integer, from which the seeds of new weights are derived.
    """

    def __init__(self, model, loss, optimizer, build_model, seed):
        self._model = model
        if loss is None:
            if not model.compiled or model.loss is None:
                raise ValueError(
                    "`loss` must be given where `model` has none. Received: "
                    f"model '{model.name}', which is not compiled with a loss, "
                    "and loss=None"
                )
            loss = model.loss
        if optimizer is None:
            optimizer = getattr(model, "optimizer", None)
        if optimizer is None:
            raise ValueError(
                "`optimizer` must be given where `model` has none. Received: "
                f"model '{model.name}', which is not compiled, and "
                "optimizer=None"
            )
        for each in keras.tree.flatten(loss):
            _check_loss(each)
        self._loss = loss
        self._loss_weights = getattr(model, "loss_weights", None)
        self._optimizer = _keras_optimizer(optimizer)
        self._build_model = build_model
        # What a new model must not have, by ids.
        self._taken = weakref.WeakValueDictionary()
        self._take(model)
        self._seed = seed

    def old(self):
        """A copy with the weights of the model."""
        copy = self._compiled(self._new(0))
        assign(self._model.variables, copy.variables)
        _finalize(copy)
        return copy

    def new(self, number):
        """A copy with new weights, those of a number.

        What is not trained stays: frozen layers and adapted normalizations.
        """
        copy = self._compiled(self._new(number))
        kept = _kept_variables(self._model)
        pairs = [
            (v, new)
            for v, new in zip(self._model.variables, copy.variables)
            if id(v) in kept
        ]
        if pairs:
            assign(*zip(*pairs))
        _finalize(copy)
        return copy

    def _new(self, number):
        seed = derived_seed(self._seed, "new weights", number)
        if self._build_model is None:
            copy = new_layers.new_layer(self._model, seed)
        else:
            with _seeded(seed):
                copy = self._build_model()
            validation.check_model("build_model()", copy)
            self._check_is_new(copy)
            if not copy.built:
                raise ValueError(
                    "`build_model` must return a built model: call it on a "
                    "batch of inputs in the function, before it returns. "
                    f"Received: model '{copy.name}', which is not built"
                )
            self._take(copy)
        new_layers.check_alike(self._model, copy)
        # Neither says all that was changed in the built model.
        make_alike(copy, self._model)
        return copy

    def _check_is_new(self, copy):
        """Checks that a model has nothing that changes with another one."""
        for part in (copy, *_changing_variables(copy)):
            if self._taken.get(id(part)) is not part:
                continue
            if part is self._model:
                what = "`model` itself"
            elif part is copy:
                what = f"model '{copy.name}', which it has returned before"
            else:
                what = (
                    f"model '{copy.name}', whose variable '{part.path}' "
                    "belongs to `model`, or to one that it has returned before"
                )
            raise ValueError(
                "`build_model` must return a new model each time, with layers "
                f"of its own: make them inside the function. Received: {what}"
            )

    def _take(self, model):
        parts = (model, *_changing_variables(model))
        self._taken.update((id(part), part) for part in parts)

    def _compiled(self, copy):
        # A config each time: some optimizers empty the one they are made of.
        config = keras.optimizers.serialize(self._optimizer)
        copy.compile(
            keras.optimizers.deserialize(config),
            self._loss,
            loss_weights=self._loss_weights,
        )
        return copy


@contextlib.contextmanager
def _seeded(seed):
    """Context in which whatever draws random numbers draws those of a seed.

    Afterwards the program goes on with its own, as if nothing had been drawn.
    Only what `tf.random` draws and `tf.data` shuffles without a seed depends
    on this one from then on: TensorFlow does not tell where it was.
    """
    python, numpy = random.getstate(), np.random.get_state()
    with keras_compat.keep_random_state(), backend.keep_random_state():
        try:
            keras.utils.set_random_seed(seed)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def _check_loss(loss):
    rule = "a loss of Keras, its name, or a function of targets and predictions"
    try:
        keras.losses.get(loss)
    except Exception as error:  # Whatever Keras raises of what it is not.
        raise validation.error("loss", rule, loss) from error
    if hasattr(loss, "forward"):
        rule += "; those of `torch.nn` take the predictions first"
        raise validation.error("loss", rule, loss)


def _keras_optimizer(optimizer):
    try:
        return keras.optimizers.get(optimizer)
    except Exception as error:  # Whatever Keras raises of what it is not.
        rule = (
            "an optimizer of Keras, or its name. In the place of another one, "
            "such as one of `torch.optim`, give one like it: "
            "`keras.optimizers.SGD(0.01)`"
        )
        raise validation.error("optimizer", rule, optimizer) from error


def learn(
    copies, x, y, num_old, num_new, num_steps, batch_size, seed, verbose=False
):
    """Has copies of a model learn, side by side where the backend can.

    Args:
        copies: `Copies`.
        x: Nest of arrays: inputs.
        y: Nest of arrays: targets.
        num_old: Integer, the copies with the model's weights, which see the
            examples in different orders.
        num_new: Integer, those with new weights.
        num_steps: Integer, the updates of each copy, or `None` for one pass
            over the examples, but 1,000 at least.
        batch_size: Integer, the number of examples of each update.
        seed: Integer, of the orders.
        verbose: Boolean, whether to show progress.

    Returns:
        `Learning`.
    """
    num_examples = len(keras.tree.flatten(x)[0])
    batch_size = min(batch_size, num_examples)
    if num_steps is None:
        num_steps = max(num_examples // batch_size, _FEWEST_STEPS)
    num_points = min(_NUM_POINTS, num_steps)
    chunk = -(-num_steps // num_points)
    num_points = -(-num_steps // chunk)
    # The last one may be shorter, but all tasks of the engine are alike.
    num_steps = num_points * chunk

    models = [copies.old() for _ in range(num_old)]
    models += [copies.new(number) for number in range(num_new)]
    trainer = OnlineTrainer(models.__getitem__, len(models))
    # One model computes the losses of all, so that one program is compiled.
    evaluated = copies.old()

    def losses(models):
        result = []
        for model in models:
            assign(model.variables, evaluated.variables)
            settle(evaluated, x)
            loss = differentiation_of(evaluated).data_loss(x, y, _BATCH_SIZE)
            result.append(loss)
        return np.array(result)

    before = losses(models)
    with _Progress(num_points) if verbose else contextlib.nullcontext() as bar:
        curves = trainer.fit(
            lambda learner: _Examples(
                x, y, chunk * batch_size, [seed, learner]
            ),
            batch_size=batch_size,
            num_tasks=num_points,
            callbacks=[] if bar is None else [bar],
            on_nan="continue",
        )["loss"]
    if trainer.interrupted:  # What it has learned so far proves nothing.
        raise KeyboardInterrupt
    after = losses(trainer.model(i) for i in range(len(models)))
    return Learning(
        num_steps,
        chunk * np.arange(1, num_points + 1),
        curves[:, :num_old],
        curves[:, num_old:],
        before[:num_old],
        after[:num_old],
        before[num_old:],
        after[num_old:],
    )


class _Progress(TaskCallback):
    """Shows how far the copies are, and the time left.

    Args:
        total: Integer, the number of tasks.
    """

    def __init__(self, total):
        # Imported here: `utils` needs TensorBoard.
        from keras_plasticity.utils import ProgressBar

        self._bar = ProgressBar()
        self._line = self._bar.add_task("copies learn", total=total)

    def __enter__(self):
        self._bar.start()
        return self

    def __exit__(self, *error):
        self._bar.stop()

    def on_progress(self, task, done):
        self._bar.update(self._line, completed=task + done)

    def on_task_end(self, task, results):
        self._bar.update(self._line, completed=task + 1)


class _Examples:
    """A stream of the same examples, in an order of its own in each pass."""

    def __init__(self, x, y, size, seed):
        self._x, self._y = x, y
        self._size = size
        self._seed = seed
        self._num_examples = len(keras.tree.flatten(x)[0])

    def task(self, index):
        start = index * self._size
        numbers = np.arange(start, start + self._size)
        passes, places = np.divmod(numbers, self._num_examples)
        order = np.empty(self._size, "int64")
        for number in np.unique(passes):
            rng = np.random.default_rng([*self._seed, int(number)])
            permutation = rng.permutation(self._num_examples)
            chosen = passes == number
            order[chosen] = permutation[places[chosen]]
        return keras.tree.map_structure(
            lambda array: array[order], (self._x, self._y), none_is_leaf=False
        )


def _kept_variables(model):
    """The ids of variables that a new model takes over: nobody trains them."""
    # Those of a layer within a layer are the inner one's, which comes later.
    owners = {
        id(variable): layer
        for layer in keras_compat.in_order(model)
        for variable in layer.variables
    }
    return {
        id(variable)
        for variable in model.variables
        if _is_kept(variable, owners[id(variable)])
    }


def _is_kept(variable, layer):
    if isinstance(layer, keras.layers.Normalization):
        return True
    # A weight may be frozen by itself, such as a kernel by LoRA. What is not
    # there to be trained, such as a moving average, goes with its layer.
    if keras_compat.is_meant_to_be_trained(layer, variable):
        return not variable.trainable
    return not layer.trainable


def _changing_variables(model):
    """The variables of a model that change while it learns."""
    kept = _kept_variables(model)
    # The state of a random generator changes in a frozen layer, too.
    weights = {id(weight) for weight in model.weights}
    return [
        variable
        for variable in model.variables
        if id(variable) not in kept or id(variable) not in weights
    ]


def _finalize(model):
    """Makes normalizations use their new variables."""
    for layer in keras_compat.in_order(model):
        if isinstance(layer, keras.layers.Normalization):
            # They have computed what they use of these when they were built.
            layer.finalize_state()


def settle(model, x):
    """Sets the moving averages of batch normalizations to those of examples.

    They follow slowly: after a thousand updates those of a new model would
    still be a mixture with what they began with, and what is computed by them
    would say little of its weights.

    Args:
        model: A built `keras.Model`.
        x: Nest of arrays: inputs, of which some are taken, evenly.
    """
    layers = [
        layer
        for layer in keras_compat.in_order(model)
        if isinstance(layer, keras.layers.BatchNormalization)
        and layer.trainable
    ]
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    size = len(keras.tree.flatten(x)[0])
    chosen = np.linspace(0, size - 1, min(size, _BATCH_SIZE), dtype="int64")
    x = nests.take(x, chosen)
    try:
        for layer in layers:
            layer.momentum = 0.0
        with backend.no_gradient():
            model(x, training=True)
    finally:
        for layer, momentum in zip(layers, momenta):
            layer.momentum = momentum


def assign(values, variables):
    for value, variable in zip(values, variables, strict=True):
        variable.assign(keras.ops.copy(keras.ops.convert_to_tensor(value)))
