"""The parameters of a chapter: names, types and ranges, read from its own cell, and the check of values against them.

One line declares a parameter: ``name: type = default  # help``. It obeys its annotation (int, float, bool, str or a
list of these); its comment, where that says ``LOW to HIGH`` (HIGH may be another parameter), ``LOW or more`` or
``a, b or c``; and, where `atbook.recipes.Recipe` has a field of its name, that field too (a list ``seeds`` obeys
``seed``, entry by entry). A number that the comment excepts, as in ``0 for all``, is allowed beside. Imports no torch.
"""

import ast
import io
import json
import math
import re
import tokenize
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path

from atbook.names import choose
from atbook.recipes import Recipe

TYPES = {"int": int, "float": float, "bool": bool, "str": str}
WORDS = {int: "whole number", float: "number", bool: "true or false", str: "text"}
_NUMBER = r"-?\d+(?:\.\d+)?(?:e-?\d+)?"
RANGE = re.compile(rf"(?<![\w.])({_NUMBER}) (?:to ({_NUMBER}|[a-z_]\w*)|or more)(?![\w.])")
NAMES = re.compile(r"(?<![\w+.-])((?:[\w+.-]+, )*[\w+.-]+) or ([\w+.-]+)")
BESIDE = re.compile(rf"(?<![\w.])({_NUMBER}) for \w+")
FITTING = {  # beside which the field may have any of its values
    "groups": {"student": "resnet18"},
    "image_size": {"dataset": "folder"},
    "transfer_from": {"epochs": 2**31},
}


@dataclass(frozen=True)
class Parameter:
    """One parameter of a chapter.

    Attributes:
        type: int, float, bool or str; of the entries, where ``many``.
        many: whether it is a list.
        range: which values are allowed, in words; empty where its type is all there is to say.
        names: the allowed names; empty where there is no such list.
        field: the field of `atbook.recipes.Recipe` that it must obey too, if any.
    """

    name: str
    type: type
    many: bool
    default: object
    help: str
    range: str
    names: tuple[str, ...]
    field: str | None

    def typed(self, value: object) -> object:
        """The value in the parameter's type: text is read as what it stands for, ``"3"`` as 3, ``"[0, 1]"`` as a list.

        Raises:
            ValueError: one sentence, if it is not of that type.
        """
        try:
            if not self.many:
                return _typed(self.type, value)
            entries = _entries(value) if isinstance(value, str) else value
            if not isinstance(entries, list | tuple) or not entries:
                raise ValueError("no list")
            return [_typed(self.type, entry) for entry in entries]
        except (ValueError, OverflowError):
            raise self._impossible(value) from None

    def check(self, value: object, others: Mapping[str, object]) -> None:
        """See whether a typed value is possible, given the other parameters' values.

        Raises:
            ValueError: one sentence, if it is not.
        """
        for entry in value if self.many else [value]:
            if self.type in (int, float) and entry in map(float, BESIDE.findall(self.help)):
                continue
            if self.names:
                choose(self.name, entry, self.names)
            if bounds := RANGE.search(self.help if self.type in (int, float) else ""):
                low, high = float(bounds[1]), bounds[2]
                high = others.get(high, high)  # a number, or the name of another parameter
                if not low <= entry <= (math.inf if high is None else float(high)):
                    said = "" if high == bounds[2] else f" ({bounds[2]} is {high})"
                    raise self._impossible(value, said)
            self._check_recipe(entry, value)

    def _check_recipe(self, entry: object, value: object) -> None:
        if self.field is None:
            return
        if self.many and self.field == self.name:  # one field that is a list, not a list of its values
            entry = value
        try:
            Recipe(**{"method": "at", self.field: entry} | FITTING.get(self.field, {}))
        except ValueError as error:
            what = str(error)
            if what.startswith((f"{self.name} ", f"{self.name}=")):
                raise
            raise ValueError(f"{self.name}={value!r} is not possible: {what}") from None

    @property
    def kind(self) -> str:
        """The type in words."""
        return f"list of {self.type.__name__}" if self.many else self.type.__name__

    def _impossible(self, value: object, said: str = "") -> ValueError:
        words = WORDS[self.type]
        if self.many:
            words = f"a list such as {self.default!r}, each entry a {words}"
        elif self.type in (int, float):
            words = f"a {words}"
        allowed = f", {self.range}" if self.range else ""
        return ValueError(f"{self.name}={value!r} is not possible: give {words}{allowed}{said}")


def _typed(kind: type, value: object) -> object:
    if kind is bool and str(value).lower() in ("true", "false"):
        return str(value).lower() == "true"
    if kind is str and isinstance(value, str):
        return value
    numeric = (str, Integral) if kind is int else (str, Real)
    if kind in (int, float) and isinstance(value, numeric) and not isinstance(value, bool):
        if math.isfinite(number := kind(value)):
            return number
    raise ValueError(f"no {kind.__name__}")


def _entries(text: str) -> object:
    import yaml

    try:
        return yaml.safe_load(text)  # also [student, at], for which a shell needs no quotes
    except yaml.YAMLError:
        return None


def find(chapter: str | Path) -> Path:
    """The notebook of a chapter: by its number (6 or 06), its name (06-attention-transfer) or a path to any notebook.

    Raises:
        ValueError: if there is none.
    """
    if str(chapter).endswith(".ipynb"):
        if not Path(chapter).is_file():
            raise ValueError(f"there is no notebook {str(chapter)!r}: give its path, or the number of a chapter")
        return Path(chapter)
    places = [Path.cwd(), *Path.cwd().parents, Path(__file__).parents[1]]
    for folder in (folder for place in places for folder in (place, place / "book")):
        if found := {path.stem: path for path in sorted(folder.glob("[0-9][0-9]-*.ipynb"))}:
            wanted = next((s for s in found if str(chapter).isdecimal() and int(s[:2]) == int(chapter)), str(chapter))
            return found[choose("chapter", wanted, tuple(found))]
    raise ValueError(f"chapter {str(chapter)!r}: no chapters are here, work where the book's notebooks are")


def parameters(chapter: str | Path) -> dict[str, Parameter]:
    """The parameters of a chapter, by name, in their order.

    Args:
        chapter: as for `find`.

    Raises:
        ValueError: one sentence, if there is no such notebook, it has no cell tagged ``parameters``, or a line of that
            cell cannot be understood.
    """
    path = find(chapter)
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        tagged = ["".join(c["source"]) for c in cells if "parameters" in c["metadata"].get("tags", [])]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{str(path)!r} cannot be read as a notebook ({error!r}): restore it") from None
    if not tagged:
        raise ValueError(f"{str(path)!r} has no cell tagged 'parameters': tag the one that holds them")
    try:
        return _declared(tagged[0])
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"the parameters of {str(path)!r} cannot be understood: {error}") from None


def _declared(source: str) -> dict[str, Parameter]:
    """The parameters that a cell declares; a line in another form is an error."""
    lines = ast.parse(source).body
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    found = {}
    for line in lines:
        if not (isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.value):
            raise ValueError(f"line {line.lineno} is not 'name: type = default  # help'")
        found[line.target.id] = _parameter(line, comments.get(line.end_lineno, ""))
    return found


def _parameter(line: ast.AnnAssign, help: str) -> Parameter:
    name, annotation = line.target.id, ast.unparse(line.annotation)
    try:
        default = ast.literal_eval(line.value)
    except ValueError:
        raise ValueError(f"the default of {name} is not a plain value") from None
    many = annotation.startswith("list")
    entries = [type(entry).__name__ for entry in default] if many and isinstance(default, list) else []
    kind = annotation.removeprefix("list").strip("[]") or (entries or ["str"])[0]
    if kind not in TYPES:
        raise ValueError(f"the type of {name} is {annotation}: use int, float, bool, str or a list of these")
    fields = Recipe.model_fields
    field = next((f for f in (name, name.removesuffix("s") if many else "") if f in fields), None)
    said = NAMES.search(help) if kind == "str" else None
    names = (*said[1].split(", "), said[2]) if said else ()
    if not set(default if many else [default]) <= set(names):
        names = ()  # an "or" between other words
    return Parameter(name, TYPES[kind], many, default, help, _range(TYPES[kind], names, help, field), names, field)


def _range(kind: type, names: tuple[str, ...], help: str, field: str | None) -> str:
    """What is allowed, in words: the comment's own, else the recipe's."""
    if names:
        return " or ".join((", ".join(names[:-1]), names[-1]))
    if kind is str and field:
        return str(Recipe.model_fields[field].description).partition(": ")[2]  # the names, where it has them
    if kind not in (int, float):
        return ""
    beside = "".join(f", or {found[0]}" for found in BESIDE.finditer(help))
    if said := RANGE.search(help):
        return said[0] + beside
    limits = {}
    for part in Recipe.model_fields[field].metadata if field else ():
        limits |= {sign: getattr(part, sign) for sign in ("ge", "gt", "le", "lt") if hasattr(part, sign)}
    words = {"ge": "{} or more", "gt": "more than {}", "le": "{} or less", "lt": "less than {}"}
    return ", ".join(words[sign].format(limit) for sign, limit in limits.items()) + beside


def checked(chapter: str | Path, values: Mapping[str, object]) -> dict[str, object]:
    """All parameters of a chapter, typed: the given values, and the defaults of the others.

    Args:
        chapter: as for `find`.
        values: some of its parameters, as typed values or as text.

    Raises:
        ValueError: one sentence naming the parameter that is unknown, of another type or impossible.
    """
    known = parameters(chapter)
    for name in values:
        choose("parameter", name, tuple(known))
    return _checked(known, {name: values.get(name, one.default) for name, one in known.items()})


def _checked(known: Mapping[str, Parameter], values: Mapping[str, object]) -> dict[str, object]:
    typed = {name: one.typed(values[name]) for name, one in known.items()}
    for name, one in known.items():
        one.check(typed[name], typed)
    return typed


def check(namespace: dict[str, object]) -> None:
    """In a notebook, ``check(globals())``: see whether its parameters are possible, and give them their types.

    The parameters cell is found among the cells that were executed before, the last one if it was edited, so that the
    notebook may lie anywhere; as a plain script there is none, and nothing is checked.

    Raises:
        ValueError: one sentence naming the parameter, the same that a rerun on the command line would get.
    """
    for source in reversed(namespace.get("In", ())):
        try:
            known = _declared(source)
        except (SyntaxError, ValueError):
            continue
        if known:
            namespace.update(_checked(known, {name: namespace.get(name) for name in known}))
            return


def table(chapter: str | Path) -> str:
    """The parameters of a chapter as lines of text: name, type, default, meaning, allowed values."""
    known = parameters(chapter).values()
    rows = [(p.name, p.kind, repr(p.default), p.help, "" if p.range in p.help else p.range) for p in known]
    rows.insert(0, ("parameter", "type", "default", "meaning", "allowed, if not said"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    lines = ["  ".join([cell.ljust(n) for cell, n in zip(row, widths, strict=False)] + [row[-1]]) for row in rows]
    return "\n".join(line.rstrip() for line in lines)
