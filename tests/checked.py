"""What checks the annotations of the package while tests run, at half the price of jaxtyping's own decorator.

That one checks arguments twice, and binds them by hand, for words in which a failure is told.
"""

import inspect
from dataclasses import is_dataclass
from functools import wraps
from typing import Any, get_args

from beartype import beartype
from jaxtyping import config, jaxtyped


def checked(fn=None, *, typechecker):
    """Stands for ``jaxtyping.jaxtyped``, by which the hook that imports the package decorates functions and classes.

    A name of an axis means one number within a call. Functions inside of functions are made anew at each call, and are
    left to mypy unless they say shapes.
    """
    if fn is None:
        return lambda fn: checked(fn, typechecker=typechecker)
    if inspect.isclass(fn):
        if is_dataclass(fn) and "__init__" in vars(fn):
            fn.__init__ = checked(fn.__init__, typechecker=typechecker)
        return fn
    shaped = "jaxtyping" in repr(fn.__annotations__)
    if shaped and inspect.isgeneratorfunction(fn):  # what it yields, and when, is nobody's call
        return jaxtyped(fn, typechecker=typechecker)
    if not shaped and "<locals>" in fn.__qualname__:
        return fn
    if "TYPE_CHECKING" in fn.__globals__:  # names that mypy alone imports
        unknown = [name for name, hint in fn.__annotations__.items() if {str} & set(map(type, (hint, *get_args(hint))))]
        fn.__annotations__.update(dict.fromkeys(unknown, Any))
    inner = beartype(fn)

    @wraps(fn)
    def call(*args, **kwargs):
        if config.jaxtyping_disable:
            return fn(*args, **kwargs)
        if not shaped:
            return inner(*args, **kwargs)
        with jaxtyped("context"):
            return inner(*args, **kwargs)

    return call
