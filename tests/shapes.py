"""Evaluates the jaxtyping annotations of layers 0 and 1, and checks values and calls by them.

jaxtyping is no dependency of the package: it is imported only for the type checker, and its
annotations stay strings until they come here.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from functools import cache, wraps
from pathlib import Path
from types import ModuleType, UnionType
from typing import Any, Union, get_args, get_origin

from jaxtyping import AbstractArray, jaxtyped
from torch import Tensor

MODULES = ("types", "loss", "advantages", "stats", "interventions", "predictors")
UNCHECKED = (Any, inspect.Signature.empty)


@cache
def namespace(module: ModuleType) -> dict[str, Any]:
    """The module's names as a type checker sees them: with its `if TYPE_CHECKING:` blocks run."""
    names = dict(vars(module))
    for node in ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            exec(compile(ast.Module(node.body, []), str(module.__file__), "exec"), names)
    return names


@cache
def hints(owner: Any) -> dict[str, Any]:
    """The evaluated annotations of a function, or of the fields that a class itself declares."""
    names = namespace(importlib.import_module(owner.__module__))
    own = inspect.get_annotations(owner).items()
    return {key: eval(text, names) if isinstance(text, str) else text for key, text in own}


def fault(value: Any, hint: Any, where: str = "value") -> str | None:
    """What is wrong with `value`, or None; binds the axes of the jaxtyping context around it.

    Dataclasses are checked field by field in the same binding, the micro-batches of a list each
    in a binding of their own. What holds no tensor (Any, Literal, protocols) is not checked.
    """
    kind, args = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        faults = [fault(value, option, where) for option in args]
        return None if None in faults else " and ".join(map(str, faults))
    if kind in (list, tuple):
        if not isinstance(value, kind) or (kind is tuple and len(value) != len(args)):
            return f"{where} is no {hint}"
        for index, item in enumerate(value):
            name = f"{where}[{index}]"
            found = apart(item, args[0], name) if kind is list else fault(item, args[index], name)
            if found:
                return found
        return None
    if hint is float:
        return None if isinstance(value, float | int) else f"{where} is no float"
    if hint in UNCHECKED or not isinstance(hint, type) or getattr(hint, "_is_protocol", False):
        return None
    if not isinstance(value, hint):
        shown = f"{value.dtype}{list(value.shape)}" if isinstance(value, Tensor) else value
        return f"{where} is {shown}, not {getattr(hint, '__name__', hint)}"
    if is_dataclass(hint):
        for name, inner in hints(hint).items():
            if found := fault(getattr(value, name), inner, f"{where}.{name}"):
                return found
    return None


def apart(value: Any, hint: Any, where: str) -> str | None:
    with jaxtyped("context"):
        return fault(value, hint, where)


def checking(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The runtime type checker given to `jaxtyped`, in the manner of beartype."""
    signature = inspect.signature(fn)

    @wraps(fn)
    def checked(*args: Any, **kwargs: Any) -> Any:
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            if found := fault(value, signature.parameters[name].annotation, name):
                raise TypeError(found)
        result = fn(*args, **kwargs)
        if found := fault(result, signature.return_annotation, "result"):
            raise TypeError(found)
        return result

    return checked


def typed(fn: Callable[..., Any], spoil: Callable[[Any], Any] | None = None) -> Callable[..., Any]:
    """`fn` through `jaxtyped`, with evaluated annotations; `spoil` changes what it returns."""
    found, signature = hints(fn), inspect.signature(fn)
    # A method's axes are those of its own object as well.
    owner = namespace(importlib.import_module(fn.__module__)).get(fn.__qualname__.split(".")[0])

    @wraps(fn)
    def body(*args: Any, **kwargs: Any) -> Any:
        result = fn(*args, **kwargs)
        return spoil(result) if spoil else result

    parameters = [
        p.replace(annotation=owner if name == "self" else found[name])
        for name, p in signature.parameters.items()
    ]
    body.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=parameters, return_annotation=found["return"]
    )
    return jaxtyped(body, typechecker=checking)


def modules() -> Iterator[ModuleType]:
    for name in MODULES:
        module = importlib.import_module(f"entropy_lab.{name}")
        yield module
        for found in pkgutil.iter_modules(getattr(module, "__path__", [])):
            yield importlib.import_module(f"{module.__name__}.{found.name}")


def public_functions(module: ModuleType) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Functions, methods and properties of the public names that `module` defines.

    Each has the name of its definition without `entropy_lab.`, so inherited ones come repeatedly.
    """
    for name, value in vars(module).items():
        if getattr(value, "__module__", "") != module.__name__ or name.startswith("_"):
            continue
        found = [value]
        if inspect.isclass(value):
            public = (key for key in dir(value) if not key.startswith("_"))
            found = [inspect.getattr_static(value, key) for key in public]
        for fn in found:
            fn = getattr(fn, "fget", getattr(fn, "__func__", fn))
            if inspect.isfunction(fn):
                yield f"{fn.__module__.removeprefix('entropy_lab.')}.{fn.__qualname__}", fn


def parts(hint: Any) -> Iterator[Any]:
    """`hint` and all that it is made of; a Callable's own arguments are out of anyone's sight."""
    yield hint
    if get_origin(hint) is not Callable:
        for inner in get_args(hint):
            yield from parts(inner)


def shapeless(module: ModuleType) -> list[str]:
    """Public arguments, returns and fields that are unannotated or a Tensor without a shape."""
    found = []
    for name, fn in public_functions(module):
        known = hints(fn)
        for key in [*inspect.signature(fn).parameters, "return"]:
            if key not in known and key not in ("self", "cls"):
                found.append(f"{name}: {key} has no annotation")
        bare = [key for key, hint in known.items() if Tensor in parts(hint)]
        found += [f"{name}: {key} is a Tensor without a shape" for key in bare]
    for name, value in vars(module).items():
        own = getattr(value, "__module__", "") == module.__name__ and not name.startswith("_")
        if own and isinstance(value, type) and is_dataclass(value):
            bare = [key for key, hint in hints(value).items() if Tensor in parts(hint)]
            found += [f"{name}.{key} is a Tensor without a shape" for key in bare]
    return found


def is_array(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, AbstractArray)


def sees_tensors(fn: Callable[..., Any]) -> bool:
    """Whether an argument or the return is a tensor, or a dataclass with a tensor field."""
    seen = [part for hint in hints(fn).values() for part in parts(hint)]
    inner = [hint for part in seen if is_dataclass(part) for hint in hints(part).values()]
    return any(map(is_array, [*seen, *(part for hint in inner for part in parts(hint))]))
