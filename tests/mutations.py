"""The small changes that `mutants.py` makes in the text of a module."""

import ast
import copy

_COMPARISONS = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_OPERATORS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
_NAMES = {"amax": "amin", "any": "all", "argmax": "argmin", "floor": "ceil"}
_NAMES |= {"max": "min", "maximum": "minimum", "zeros": "ones"}
_NAMES |= {new: old for old, new in _NAMES.items()}
# Whose swapped arguments the first call notices.
_NOT_SWAPPED = ("isinstance", "getattr", "validation.")
# Whose arguments have no order.
_SYMMETRIC = ("max", "maximum", "min", "minimum")
# What is called to tell something.
_MESSAGES = ("logging", "warnings", "print", "error", "received", "describe")


def mutants_of(source: str) -> list[tuple[int, str, str, str]]:
    """All mutants of a module.

    Args:
        source: String, the module's text.

    Returns:
        List of tuples: number of the line, the old text, the new text, and the
        text of the module with it.
    """
    lines = source.encode().splitlines(keepends=True)
    starts = [sum(map(len, lines[:i])) for i in range(len(lines) + 1)]
    found = {}
    for node, new in _changes(ast.parse(source)):
        start = starts[node.lineno - 1] + node.col_offset
        end = starts[node.end_lineno - 1] + node.end_col_offset
        text = source.encode()
        old = text[start:end].decode()
        # In brackets, or else it might read otherwise.
        new = f"({new})" if isinstance(node, ast.expr) else new
        changed = (text[:start] + new.encode() + text[end:]).decode()
        found[start, new] = node.lineno, _short(old), _short(new), changed
    return list(found.values())


def _short(text):
    text = " ".join(text.split())
    return text if len(text) <= 70 else f"{text[:67]}..."


def _changes(tree):
    """Yields pairs of a node and the text that replaces it."""
    for parent, node, in_function in _nodes(tree, False):
        for changed in _variants(node):
            yield node, ast.unparse(changed)
        has_test = isinstance(node, ast.If | ast.While | ast.IfExp)
        if has_test and not isinstance(node.test, ast.Compare | ast.UnaryOp):
            yield node.test, f"not ({ast.unparse(node.test)})"
        if in_function and _can_be_deleted(node, parent):
            yield node, "pass"
        if isinstance(node, ast.Return) and ast.unparse(node) not in (
            "return",
            "return None",
        ):
            yield node, "return None"


def _nodes(node, in_function):
    """Yields what may be changed, with its parent."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "format_spec"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or _is_text(child):
                continue
            yield node, child, in_function
            if not isinstance(child, ast.Raise):
                is_function = isinstance(child, ast.FunctionDef | ast.Lambda)
                yield from _nodes(child, in_function or is_function)


def _is_text(node):
    """Whether a node is a message, a docstring, an import or `__all__`."""
    if isinstance(node, ast.Expr):
        return _is_text(node.value)
    if isinstance(node, ast.Call):
        words = ast.unparse(node.func).split(".")
        return not {words[0], words[-1]}.isdisjoint(_MESSAGES)
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str)
    if isinstance(node, ast.Assign):
        return ast.unparse(node.targets[0]) in ("__all__", "__version__")
    return isinstance(node, ast.JoinedStr | ast.Import | ast.ImportFrom)


def _can_be_deleted(node, parent):
    if isinstance(node, ast.Assign):
        # Without a first assignment there would be no such name.
        return not all(isinstance(each, ast.Name) for each in node.targets)
    kinds = ast.Expr | ast.AugAssign | ast.Raise | ast.Continue | ast.Break
    return isinstance(node, kinds) and not isinstance(parent, ast.ClassDef)


def _variants(node):
    """Yields changed copies of a node."""

    def changed(**fields):
        new = copy.copy(node)
        for name, value in fields.items():
            setattr(new, name, value)
        return new

    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        for kind in _COMPARISONS[type(node.ops[0])]:
            yield changed(ops=[kind()])
    elif isinstance(node, ast.BinOp | ast.AugAssign | ast.BoolOp):
        if type(node.op) in _OPERATORS:
            yield changed(op=_OPERATORS[type(node.op)]())
    elif isinstance(node, ast.UnaryOp):
        if isinstance(node.op, ast.Not | ast.USub):
            yield node.operand
    elif isinstance(node, ast.Constant):
        if isinstance(node.value, bool):
            yield changed(value=not node.value)
        elif isinstance(node.value, int | float):
            for value in (node.value + 1, node.value - 1):
                if value != node.value:  # As of a large float.
                    yield changed(value=value)
    elif isinstance(node, ast.Name) and node.id in _NAMES:
        yield changed(id=_NAMES[node.id])
    elif isinstance(node, ast.Attribute) and node.attr in _NAMES:
        yield changed(attr=_NAMES[node.attr])
    elif isinstance(node, ast.Call) and len(node.args) > 1:
        stars = [isinstance(each, ast.Starred) for each in node.args[:2]]
        name = ast.unparse(node.func)
        is_symmetric = name.split(".")[-1] in _SYMMETRIC
        is_left_out = name.startswith(_NOT_SWAPPED) or is_symmetric
        if not any(stars) and not is_left_out:
            yield changed(args=[*node.args[1::-1], *node.args[2:]])
