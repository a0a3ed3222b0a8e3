"""Programs of JAX that differ in their constants only, as one program.

What Python computes from a learner's settings, such as `1 - beta_1`, is a
constant of the program that JAX traces (a "jaxpr"). Where the programs of
several learners differ in constants only, one of them serves all, once these
constants are among its arguments.

A constant's place in a program is a tuple: the number of the equation and that
of the operand. Before them stand, from outside to inside, the equations that
it is within, each with the name of the parameter that holds its inner program,
and with the number of the branch where there are several.
"""

import jax
import jax.extend.core
import numpy as np

# Kinds of equations that call another program, and the parameter that holds it.
_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "checkpoint": "jaxpr",
    "remat2": "jaxpr",  # The same, of newer versions of JAX.
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}
# Of these nothing else matters: what is traced has its derivatives already.
_WITH_DERIVATIVES = ("custom_jvp_call", "custom_vjp_call")
_CONSTANTS, _OUTPUTS = "constants", "outputs"


class OtherProgramError(Exception):
    """Two programs differ in more than constants that can be arguments."""


def differing_constants(first, other):
    """Compares two programs.

    Args:
        first: `jax.extend.core.ClosedJaxpr`.
        other: The same, of another learner.

    Returns:
        Dict from place to a tuple of two arrays, the constants that differ.

    Raises:
        OtherProgramError: If the programs differ in anything else.
    """
    found = {}
    _compare(first, other, (), found)
    return found


def evaluate(program, arguments, constants):
    """Computes a program with other constants.

    Args:
        program: `jax.extend.core.ClosedJaxpr`.
        arguments: List of tensors.
        constants: Dict from place to the tensor that is there instead of the
            program's own constant.

    Returns:
        List of tensors.
    """
    return _evaluate(program, arguments, constants, ())


def _compare(first, other, path, found):
    if first is other:
        return
    (first, held), (other, its_held) = _opened(first), _opened(other)
    _check_same(len(held), len(its_held))
    for number, pair in enumerate(zip(held, its_held)):
        _compare_constants(pair, (*path, _CONSTANTS, number), found)
    its_variables = {}

    def define(variables, others):
        _check_same(len(variables), len(others))
        for variable, its_other in zip(variables, others):
            _check_same(variable.aval, its_other.aval)
            its_variables[variable] = its_other

    def compare_read(atoms, others, path):
        _check_same(len(atoms), len(others))
        for number, (atom, its_other) in enumerate(zip(atoms, others)):
            _check_same(_is_constant(atom), _is_constant(its_other))
            if _is_constant(atom):
                _check_same(atom.aval, its_other.aval)
                pair = _value(atom), _value(its_other)
                _compare_constants(pair, (*path, number), found)
            elif its_variables[atom] is not its_other:
                raise OtherProgramError

    define(first.constvars, other.constvars)
    define(first.invars, other.invars)
    _check_same(len(first.eqns), len(other.eqns))
    for number, (equation, its_other) in enumerate(zip(first.eqns, other.eqns)):
        where = (*path, number)
        _check_same(equation.primitive, its_other.primitive)
        compare_read(equation.invars, its_other.invars, where)
        _compare_parameters(equation, its_other, where, found)
        define(equation.outvars, its_other.outvars)
    compare_read(first.outvars, other.outvars, (*path, _OUTPUTS))


def _compare_parameters(equation, other, path, found):
    name = equation.primitive.name
    keys = equation.params.keys() - {"name"}
    _check_same(keys, other.params.keys() - {"name"})
    if name in _WITH_DERIVATIVES:
        keys = [_CALLS[name]]
    num_found = len(found)
    for key in keys:
        value, its_other = equation.params[key], other.params[key]
        programs = _programs(value)
        if programs is None:
            _check_same(value, its_other)
            continue
        its_programs = _programs(its_other) or {}
        _check_same(programs.keys(), its_programs.keys())
        for step, program in programs.items():
            _compare(program, its_programs[step], (*path, key, *step), found)
    if len(found) > num_found and name not in {**_CALLS, **_CONTROL_FLOW}:
        raise OtherProgramError


def _compare_constants(pair, place, found):
    if pair[0] is pair[1]:
        return
    first, other = map(_array, pair)
    _check_same((first.shape, first.dtype), (other.shape, other.dtype))
    if first.tobytes() == other.tobytes():  # NaN equals NaN, but -0 not 0.
        return
    if any(map(_is_key, pair)):
        raise OtherProgramError
    found[place] = first, other


def _check_same(first, other):
    if first is not other and not np.all(first == other):
        raise OtherProgramError


def _evaluate(program, arguments, constants, path):
    jaxpr, held = _opened(program)
    depth = len(path)
    inside = [place[depth:] for place in constants if place[:depth] == path]
    # The numbers of equations whose inner programs have such constants.
    opened = {rest[0] for rest in inside if isinstance(rest[1], str)}
    values = dict(zip(jaxpr.invars, arguments))
    for number, variable in enumerate(jaxpr.constvars):
        place = (*path, _CONSTANTS, number)
        values[variable] = constants.get(place, held[number])

    def read(atoms, path):
        return [
            constants.get((*path, number), atom.val)
            if _is_constant(atom)
            else values[atom]
            for number, atom in enumerate(atoms)
        ]

    for number, equation in enumerate(jaxpr.eqns):
        where = (*path, number)
        operands = read(equation.invars, where)
        if number in opened:
            results = _evaluate_opened(equation, operands, constants, where)
        else:
            results = _evaluate_whole(equation, operands)
        values.update(zip(equation.outvars, results))
    return read(jaxpr.outvars, (*path, _OUTPUTS))


def _evaluate_whole(equation, operands):
    primitive = equation.primitive
    parameters = primitive.get_bind_params(equation.params)
    functions = ()
    if isinstance(parameters, tuple):  # Of older versions of JAX.
        functions, parameters = parameters
    with equation.ctx.manager:
        results = primitive.bind(*functions, *operands, **parameters)
    return results if primitive.multiple_results else [results]


def _evaluate_opened(equation, operands, constants, path):
    name, parameters = equation.primitive.name, equation.params

    def inner(key, *step):
        program = _programs(parameters[key])[step]
        where = (*path, key, *step)
        return lambda *values: _evaluate(program, values, constants, where)

    if name in _CALLS:
        return inner(_CALLS[name])(*operands)
    return _CONTROL_FLOW[name](inner, operands, parameters)


def _while(inner, operands, parameters):
    condition, body = inner("cond_jaxpr"), inner("body_jaxpr")
    num_cond, num_body = parameters["cond_nconsts"], parameters["body_nconsts"]
    of_cond, of_body, state = _split(operands, num_cond, num_body)
    return jax.lax.while_loop(
        lambda state: condition(*of_cond, *state)[0],
        lambda state: body(*of_body, *state),
        state,
    )


def _cond(inner, operands, parameters):
    index, *operands = operands
    branches = range(len(parameters["branches"]))
    return jax.lax.switch(
        index, [inner("branches", i) for i in branches], *operands
    )


def _scan(inner, operands, parameters):
    body, num_carry = inner("jaxpr"), parameters["num_carry"]
    shared, carry, xs = _split(operands, parameters["num_consts"], num_carry)

    def step(carry, xs):
        results = body(*shared, *carry, *xs)
        return results[:num_carry], results[num_carry:]

    carry, outputs = jax.lax.scan(
        step,
        carry,
        xs,
        length=parameters["length"],
        reverse=parameters["reverse"],
        unroll=parameters["unroll"],
    )
    return [*carry, *outputs]


_CONTROL_FLOW = {"while": _while, "cond": _cond, "scan": _scan}


def _split(values, *sizes):
    """Lists of so many values each, and of the rest."""
    parts = []
    for size in sizes:
        parts.append(list(values[:size]))
        values = values[size:]
    return [*parts, list(values)]


def _opened(program):
    if isinstance(program, jax.extend.core.ClosedJaxpr):
        return program.jaxpr, program.consts
    return program, ()


def _programs(value):
    """Dict with the programs in an equation's parameter; `None` without."""
    kinds = jax.extend.core.ClosedJaxpr, jax.extend.core.Jaxpr
    if isinstance(value, kinds):
        return {(): value}
    if isinstance(value, tuple) and any(isinstance(v, kinds) for v in value):
        return {(number,): each for number, each in enumerate(value)}
    return None


def _is_constant(atom):
    return isinstance(atom, jax.extend.core.Literal)


def _value(literal):
    """The value of a constant, which may be a number of Python's."""
    if isinstance(literal.val, (bool, int, float, complex)):
        return np.asarray(literal.val, literal.aval.dtype)
    return literal.val


def _is_key(constant):
    """Whether it is a key of random numbers, which NumPy has not."""
    kind = getattr(constant, "dtype", None)
    return kind is not None and jax.dtypes.issubdtype(kind, jax.dtypes.prng_key)


def _array(constant):
    if _is_key(constant):
        constant = jax.random.key_data(constant)
    return np.asarray(constant)
