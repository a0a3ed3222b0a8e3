"""What JAX compiles for all learners: their models' steps, as one program."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import keras
import numpy as np

from keras_plasticity import backend
from keras_plasticity import keras_compat
from keras_plasticity.optimizers import UnitResetOptimizer
from keras_plasticity.optimizers.unit_reset_optimizer import reset_optimizer
from keras_plasticity.training import program_settings
from keras_plasticity.training.jax_constants import OtherProgramError
from keras_plasticity.training.jax_constants import differing_constants
from keras_plasticity.training.jax_constants import evaluate


class Programs:
    """The programs of all learners, and a model for each of their settings.

    Whatever is not held in variables is part of the program that a model's
    step is traced to. Learners whose programs differ in constants only train
    by one program, which is given these constants. To compare the models'
    settings is fast, and mostly enough to know that programs are the same.
    Where settings differ, or do not tell all, the programs are compared.

    Args:
        batch: Tuple, the data of one step of one learner.

    Attributes:
        models: List of `keras.Model`s, the first learner of each setting.
    """

    def __init__(self, batch):
        self.models = []
        self._batch = batch
        self._settings = []  # Of each of the models.
        self._learners = []  # Whose model it is.
        self._num_learners = 0
        self._programs = {}
        self._lent = None

    def add(self, model):
        """Adds the next learner. Its model is kept if its settings are new.

        Args:
            model: Compiled and built `keras.Model`, whose state has been
                copied: to save memory it loses it.

        Returns:
            Integer, the index of the learner's settings.

        Raises:
            ValueError: If no program can train it together with the first.
        """
        learner = self._num_learners
        self._num_learners += 1
        settings = program_settings.settings_of(model)
        if learner == 0:
            self._lent = model
            _make_room_for(model, model)
            self._keep(model, settings, learner)
            return 0
        self.make_room_for(model)
        _make_room_for(model, self.models[0])
        shapes = _differing_shapes(self.models[0], model)
        if shapes:
            raise self._refusal(settings, learner, shapes)
        for number, known in enumerate(self._settings):
            if program_settings.surely_same_program(known, settings):
                return number
        programs = self._of_a_step()
        self._keep(model, settings, learner)
        for program in programs:
            self._extend(program)
        for number, known in enumerate(self._settings[:-1]):
            if known == settings and all(
                program.is_same(number, -1) for program in programs
            ):
                self._forget_last(programs)
                return number
        _share_values(model, self._lent)
        return len(self.models) - 1

    def get(self, name, *specs):
        """One of the programs that all models have.

        Args:
            name: String, `"train"`, `"test"` or `"results"`.
            *specs: Nests of `jax.ShapeDtypeStruct`s, the program's arguments.

        Returns:
            `Program`.
        """
        leaves, structure = jax.tree.flatten(specs)
        key = name, structure, tuple((s.shape, s.dtype) for s in leaves)
        if key not in self._programs:
            program = Program(_FUNCTIONS[name], specs)
            for _ in self.models:
                self._extend(program)
            self._programs[key] = program
        return self._programs[key]

    def lend(self, number, state):
        """A model of some settings, with the values of a learner's state.

        The one lent before has the same values then: no more than one state
        is held by models.
        """
        model = self.models[number]
        for variables, values in zip(state_variables(model), state):
            for variable, value in zip(variables, values):
                variable.assign(jnp.copy(value))
        if self._lent is not model:
            _share_values(self._lent, model)
            self._lent = model
        return model

    def make_room_for(self, model):
        """Lets the programs serve a model that may need more room.

        Returns:
            Boolean, whether they have changed.
        """
        grows = [_make_room_for(each, model) for each in self.models]
        if any(grows):
            self._programs.clear()
        return any(grows)

    def _of_a_step(self):
        """All programs, for a step's data."""
        specs = [
            [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in part]
            for part in variable_specs(self.models[0])
        ]
        batch = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(
                np.shape(a), jax.dtypes.canonicalize_dtype(np.asarray(a).dtype)
            ),
            self._batch,
        )
        return [
            self.get("train", specs, batch),
            self.get("test", specs, batch),
            self.get("results", specs[3]),
        ]

    def _keep(self, model, settings, learner):
        self.models.append(model)
        self._settings.append(settings)
        self._learners.append(learner)

    def _forget_last(self, programs):
        for program in programs:
            program.remove_last()
        for each in (self.models, self._settings, self._learners):
            each.pop()

    def _extend(self, program):
        """Adds to a program the next of the models."""
        number = program.num_models
        try:
            program.add(self.models[number])
        except OtherProgramError:
            raise self._refusal(
                self._settings[number], self._learners[number]
            ) from None

    def _refusal(self, settings, learner, shapes=()):
        differences = program_settings.deciding_differences(
            self._settings[0], settings
        )
        return ValueError(
            "All learners must have the same architecture and settings, as "
            "JAX trains them by one program. Only names, seeds and numbers "
            "such as a learning rate, a momentum or a dropout rate may "
            "differ, and not where a number decides what is computed: a "
            "momentum of zero is another program, and so is `None`. Train the "
            "others by another `OnlineTrainer`. Received, for learners 0 and "
            f"{learner}: "
            + (
                "; ".join(differences or shapes)
                or "what configs do not show, such as the code of a function"
            )
        )


class Program:
    """A function of each of some models, as one program.

    Args:
        function: Function of a model and of nests of tensors.
        specs: Tuple of nests of `jax.ShapeDtypeStruct`s.
    """

    def __init__(self, function, specs):
        self._function = function
        self._specs = specs
        self._first = None
        # Of each model the constants that differ from those of the first, and
        # what they are in the first one.
        self._constants = []
        self._first_constants = {}

    @property
    def num_models(self):
        return len(self._constants)

    def add(self, model):
        """Adds a model; raises an `OtherProgramError` if that cannot be."""
        self.__dict__.pop("_arguments", None)
        if self._first is None:
            self._first = model
            self._constants.append({})
            return
        (first, _), (other, _) = self._traced, self._trace(model)
        found = differing_constants(first, other)
        for place, (own, _) in found.items():
            self._first_constants[place] = own
        self._constants.append({place: found[place][1] for place in found})

    def remove_last(self):
        self.__dict__.pop("_arguments", None)
        self._constants.pop()

    def is_same(self, number, other):
        """Whether the programs of two of the models have no other constants."""
        first, other = self._constants[number], self._constants[other]
        return first.keys() == other.keys() and all(
            first[place].tobytes() == other[place].tobytes() for place in first
        )

    def constants(self, numbers):
        """The arguments that take the place of constants.

        Args:
            numbers: Integer, the index of a model; or a list of that of each
                learner.

        Returns:
            List of arrays. The first axis counts learners if there is a list.
        """
        arrays, _ = self._arguments
        return [array[numbers] for array in arrays]

    def __call__(self, constants, *arguments):
        """Computes the function of one of the models.

        Args:
            constants: List of tensors, see `constants`.
            *arguments: Nests of tensors.
        """
        _, places = self._arguments
        if not places:
            return self._function(self._first, *arguments)
        program, structure = self._traced
        outputs = evaluate(
            program,
            jax.tree.leaves(arguments),
            {place: constants[number] for place, number in places.items()},
        )
        return jax.tree.unflatten(structure, outputs)

    @functools.cached_property
    def _arguments(self):
        """Arrays with the constants of all models, and which goes where."""
        numbers, arrays, places = {}, [], {}
        for place in dict.fromkeys(p for each in self._constants for p in each):
            own = self._first_constants[place]
            array = np.stack([each.get(place, own) for each in self._constants])
            # Most of them stand in many places.
            key = array.tobytes(), array.dtype, array.shape
            if key not in numbers:
                numbers[key] = len(arrays)
                arrays.append(array)
            places[place] = numbers[key]
        return arrays, places

    @functools.cached_property
    def _traced(self):
        return self._trace(self._first)

    def _trace(self, model):
        """The program of a model, and the structure of what it returns."""
        function = functools.partial(self._function, model)
        program, outputs = jax.make_jaxpr(function, return_shape=True)(
            *self._specs
        )
        return program, jax.tree.structure(outputs)


def state_variables(model):
    """A learner's state: lists of variables.

    They are the trainable ones, the others, and those of the optimizer and of
    the metrics.
    """
    return [
        model.trainable_variables,
        model.non_trainable_variables,
        model.optimizer.variables,
        model.metrics_variables,
    ]


def variable_specs(model):
    """The shapes and types of a learner's state."""
    return [
        [(v.shape, v.dtype) for v in part] for part in state_variables(model)
    ]


def _differing_shapes(model, other):
    """List with a string for what differs between the states of two models."""
    first, second = variable_specs(model), variable_specs(other)
    if first == second:
        return []
    if list(map(len, first)) != list(map(len, second)):
        return ["the number of variables"]
    return [
        f"the shape or type of `{variable.path}`, {ours} and {theirs}"
        for variables, *specs in zip(state_variables(model), first, second)
        for variable, ours, theirs in zip(variables, *specs)
        if ours != theirs
    ]


def _share_values(model, other):
    """Gives the variables of a model the arrays that another one's have."""
    for mine, its in zip(state_variables(model), state_variables(other)):
        for variable, its_variable in zip(mine, its):
            variable.assign(its_variable.value)


def _train_step(model, state, batch):
    with _apply_after_backward(model.optimizer):
        _, state = model.train_step(state, batch)
    return [list(part) for part in state]


def _test_step(model, state, batch):
    trainable, non_trainable, _, metrics = state
    _, state = model.test_step((trainable, non_trainable, metrics), batch)
    return list(state[2])


def _results(model, metrics_variables):
    mapping = list(zip(model.metrics_variables, metrics_variables))
    with keras.StatelessScope(state_mapping=mapping):
        # Without their names, which differ between models.
        return list(model.get_metrics_result().values())


_FUNCTIONS = {"train": _train_step, "test": _test_step, "results": _results}


def _make_room_for(model, other):
    """Lets a model's program serve another one; returns whether it changes."""
    optimizer, others = reset_optimizer(model), reset_optimizer(other)
    if optimizer is None or others is None:
        return False
    return optimizer._make_room_for(others)


@contextlib.contextmanager
def _apply_after_backward(optimizer):
    """Context in which any optimizer's step begins after back-propagation."""
    if isinstance(optimizer, UnitResetOptimizer):
        yield  # It calls `after_backward` itself.
        return
    with keras_compat.transform_gradients(optimizer, backend.after_backward):
        yield
