"""Calls of a solution's functions, asked for by another process over a channel.

The process of the solution learns the arguments of a call and nothing else: neither the expected
result nor the code that checks it. What it answers is compared elsewhere, so an answer that is
made up gains nothing over a right one.
"""

from __future__ import annotations

import types
from typing import Any

from .wire import Lines, decode, encode


def describe(error: BaseException) -> list[str]:
    """Type and text of an exception, whatever its own methods do."""
    try:
        return [type(error).__name__, str(error)[:500]]
    except BaseException:
        return [type(error).__name__, "its text cannot be read"]


class Server:
    """Answers requests about the names of one module.

    A request is {"do": one of the methods without "do_", "on": reference, "args": JSON of a list,
    "kwargs": ...}; a reference is a name of the module or the number of a kept object. An answer is
    {"value": JSON} or {"raised": [type, text]}.
    """

    def __init__(self, module: types.ModuleType) -> None:
        self.names, self.kept = vars(module), []

    def keep(self, value: Any) -> Any:
        self.kept.append(value)
        return {"h": [len(self.kept) - 1, type(value).__name__]}

    def resolve(self, reference: Any) -> Any:
        if isinstance(reference, int):
            return self.kept[reference]
        if reference not in self.names:
            raise NameError(f"name {reference!r} is not defined")
        return self.names[reference]

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            args = decode(request["args"], lambda *_: None, self.resolve)
            kwargs = decode(request.get("kwargs", {"d": []}), lambda *_: None, self.resolve)
            value = getattr(self, "do_" + request["do"])(request["on"], args, kwargs)
            return {"value": encode(value, self.keep)}
        except BaseException as error:
            return {"raised": describe(error)}

    def do_has(self, on: Any, args: list[Any], kwargs: dict[str, Any]) -> bool:
        return on in self.names

    def do_entry(self, on: Any, args: list[Any], kwargs: dict[str, Any]) -> int:
        """Number of the function to test: a method of Solution() where there is that class."""
        holder = self.names.get("Solution")
        self.kept.append(self.resolve(on) if holder is None else getattr(holder(), on))
        return len(self.kept) - 1

    def do_call(self, on: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        return self.resolve(on)(*args, **kwargs)

    def do_attribute(self, on: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        return getattr(self.resolve(on), *args)

    def do_set(self, on: Any, args: list[Any], kwargs: dict[str, Any]) -> None:
        setattr(self.resolve(on), *args)

    def do_item(self, on: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        return self.resolve(on)[args[0]]

    def do_length(self, on: Any, args: list[Any], kwargs: dict[str, Any]) -> int:
        return len(self.resolve(on))

    def do_elements(self, on: Any, args: list[Any], kwargs: dict[str, Any]) -> list[Any]:
        return list(self.resolve(on))

    def do_text(self, on: Any, args: list[Any], kwargs: dict[str, Any]) -> str:
        return str(self.resolve(on))


def serve(module: types.ModuleType, channel: int) -> None:
    """Answer until the other side closes the channel."""
    lines, server = Lines(channel), Server(module)
    lines.send({"value": None})  # the module is loaded
    while True:
        try:
            request = lines.receive()
        except EOFError:
            return
        lines.send(server.answer(request))
