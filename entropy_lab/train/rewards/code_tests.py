"""The tests of a coding problem, read from the layouts that data sets keep them in."""

from __future__ import annotations

import ast
import base64
import binascii
import builtins
import io
import json
import pickle
import zlib
from dataclasses import dataclass
from typing import Any

from entropy_lab.errors import ConfigError
from entropy_lab.user_code import first_line

LAYOUTS = (
    'give {"inputs", "outputs"} (with "fn_name" for calls), a list of {"input", "output", '
    '"testtype"}, a list of assert strings, {"test_list"} or {"test", "entry_point"}'
)


@dataclass(frozen=True)
class StdinTests:
    """Programs: what each one reads and what it has to print."""

    inputs: list[str]
    outputs: list[str]


@dataclass(frozen=True)
class CallTests:
    """Calls of one function: arguments and the values that may come back, as JSON values."""

    fn_name: str
    inputs: list[list[Any]]
    outputs: list[list[Any]]


@dataclass(frozen=True)
class AssertTests:
    """Test code: what runs before, each test, and the functions of the solution that it tests."""

    prompt: str
    setup: str
    tests: list[str]
    entries: list[str]


Tests = StdinTests | CallTests | AssertTests


class _NoClasses(pickle.Unpickler):
    """Reads a pickled string and nothing that could run code."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        raise pickle.UnpicklingError(f"{module_name}.{global_name} is not a string")


def read_tests(tests: Any) -> Tests:
    """The tests in any of these layouts, or as JSON of one.

    * {"inputs": [...], "outputs": [...], "fn_name": name or None}: APPS, LiveCodeBench's runner,
      verl and PRIME. With fn_name an input is a list of arguments, or LiveCodeBench's string with
      one JSON value a line, whose output is JSON as well. PRIME puts each output into a list of
      one: where all outputs of a problem look like that, what is inside also passes.
    * a list of {"input", "output", "testtype": "stdin" | "functional"}, or the row of a
      LiveCodeBench data set ("public_test_cases", "private_test_cases", "metadata"), packed or not.
    * a list of assert strings, or MBPP's row ("test_list", "test_setup_code", "test_imports").
    * HumanEval's row ("test" with check(candidate), "entry_point", "prompt").

    Raises ConfigError where it is none of these, or there is no test in it.
    """
    if isinstance(tests, str):
        tests = _unpack(tests)
    tests = _plain(tests)
    try:
        found = _found(tests)
    except (KeyError, TypeError, AttributeError) as error:  # a layout with other things inside
        why = first_line(error)
        raise ConfigError(
            f"tests of a problem = {_short(tests)} cannot be read ({why}): {LAYOUTS}"
        ) from None
    if not (found.tests if isinstance(found, AssertTests) else found.inputs):
        raise ConfigError(f"tests of a problem = {_short(tests)} hold no test: {LAYOUTS}")
    return found


def _found(tests: Any) -> Tests:
    if isinstance(tests, dict):  # the fields that a row of a Parquet file lacks are None
        return _from_dict({k: v for k, v in tests.items() if v is not None})
    if isinstance(tests, list) and tests and all(isinstance(t, str) for t in tests):
        return _asserts(tests, "", "")
    if isinstance(tests, list) and all(isinstance(t, dict) and "input" in t for t in tests):
        return _cases(tests, {})
    raise ConfigError(f"tests of a problem = {_short(tests)} cannot be read: {LAYOUTS}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _plain(value: Any) -> Any:
    """Arrays of a Parquet file as lists, at any depth."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return {k: _plain(v) for k, v in value.items()} if isinstance(value, dict) else value


def _unpack(text: str) -> Any:
    """JSON, or LiveCodeBench's private tests: JSON, pickled, compressed and in base64."""
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        packed = zlib.decompress(base64.b64decode(text, validate=True))
        return json.loads(_NoClasses(io.BytesIO(packed)).load())
    except (binascii.Error, zlib.error, pickle.UnpicklingError, ValueError, TypeError, EOFError):
        raise ConfigError(f"tests of a problem = {_short(text)} are not JSON: {LAYOUTS}") from None


def _from_dict(tests: dict[str, Any]) -> Tests:
    if "input_output" in tests:
        return read_tests(tests["input_output"])
    if "private_test_cases" in tests or "public_test_cases" in tests:
        packed = [tests.get(f"{kind}_test_cases") or [] for kind in ("public", "private")]
        cases = [case for p in packed for case in (_unpack(p) if isinstance(p, str) else p)]
        about = tests.get("metadata") or {}
        return _cases(cases, _unpack(about) if isinstance(about, str) else about)
    if "inputs" in tests and "outputs" in tests:
        name = tests.get("fn_name")
        return _pairs(list(tests["inputs"]), list(tests["outputs"]), name)
    if "test_list" in tests:
        imports = "\n".join(tests.get("test_imports") or [])
        setup = f"{imports}\n{tests.get('test_setup_code') or ''}"
        return _asserts(list(tests["test_list"]), setup, "")
    if "test" in tests and "entry_point" in tests:
        name, prompt = str(tests["entry_point"]), str(tests.get("prompt") or "")
        code = f"{tests['test']}\n\ncheck({name})\n"
        return AssertTests(prompt if parses(prompt) else "", "", [code], [name])
    raise ConfigError(f"tests of a problem have the keys {sorted(tests)}: {LAYOUTS}")


def _cases(cases: list[dict[str, Any]], about: dict[str, Any]) -> Tests:
    """LiveCodeBench's list; the function's name stands beside it or in a case."""
    kinds = {case.get("testtype", "stdin") for case in cases}
    name = about.get("func_name") or about.get("fn_name")
    for case in cases:
        own = case.get("metadata") or {}
        name = name or case.get("fn_name") or own.get("func_name")
    if "functional" in kinds and not name:
        raise ConfigError(
            'tests of testtype "functional" name no function: add metadata {"func_name": ...}'
        )
    functional = kinds == {"functional"}
    inputs, outputs = ([case[key] for case in cases] for key in ("input", "output"))
    return _pairs(inputs, outputs, name if functional else None)


def _pairs(inputs: list[Any], outputs: list[Any], name: str | None) -> Tests:
    if len(inputs) != len(outputs):
        raise ConfigError(f"tests have {len(inputs)} inputs and {len(outputs)} outputs: pair them")
    if name is None:
        return StdinTests([_text(v) for v in inputs], [_text(v) for v in outputs])
    wrapped = all(isinstance(v, list) and len(v) == 1 for v in outputs)
    calls, results = [], []
    for given, wanted in zip(inputs, outputs, strict=True):
        if isinstance(given, str):
            calls.append([_json(line) for line in given.split("\n") if line.strip()])
            results.append([_json(wanted) if isinstance(wanted, str) else wanted])
        else:
            calls.append(given if isinstance(given, list) else [given])
            results.append([wanted, wanted[0]] if wrapped else [wanted])
    return CallTests(str(name), calls, results)


def _text(value: Any) -> str:
    """One string, also of a list of lines."""
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise ConfigError(
            f"a test of a function has {_short(text)}, which is not JSON: one JSON value a line"
        ) from None


def parses(code: str) -> bool:
    """Whether it is Python."""
    try:
        ast.parse(code)
    except (SyntaxError, ValueError):
        return False
    return True


def _asserts(tests: list[str], setup: str, prompt: str) -> AssertTests:
    """Assert strings: the functions under test are those that every one of them calls by name.

    Builtins count only where nothing else is called: MBPP has functions named `sum`.
    """
    called = []
    for test in filter(parses, tests):
        calls = (n.func for n in ast.walk(ast.parse(test)) if isinstance(n, ast.Call))
        called.append({f.id for f in calls if isinstance(f, ast.Name)})
    shared = set.intersection(*called) if called else set()
    if parses(setup):
        shared -= _bound(ast.parse(setup))
    own = {name for name in shared if not hasattr(builtins, name)}
    return AssertTests(prompt, setup, tests, sorted(own or shared))


def _bound(tree: ast.AST) -> set[str]:
    """Names that this code defines or imports."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(a.asname or a.name).split(".")[0] for a in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names
