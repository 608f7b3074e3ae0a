"""Breaks `atbook.attention` and `atbook.losses` in every place, one at a time, and asks whether a test notices.

``make mutants``. A mutant is the module with one operator, comparison, number, reduction or ``raise`` changed. It is
killed if a test of the two modules fails (or does not end); survivors are listed, and are to be killed by a new test
or explained in ``EXPLAINED``.
"""

import ast
import contextlib
import copy
import importlib
import io
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "book" / "_tools"))

from record import record  # noqa: E402

TESTS = {"attention": ["attention", "losses"], "losses": ["losses", "attention"]}  # its own first: they fail soonest
SECONDS = 120  # after which a mutant counts as killed: it has made a loop endless

OPERATORS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
NAMES = {
    "sum": "mean", "mean": "sum", "amax": "amin", "abs": "neg", "square": "abs", "relu": "abs", "any": "all",
    "all": "any", "detach": "clone", "softmax": "log_softmax", "log_softmax": "softmax", "clamp": "sub",
}  # fmt: skip

# Mutants that change nothing that can be observed: ``module: the line's text: the change`` and why.
LENGTHS = "lists of unlike length were refused before"
EXPLAINED = {
    "attention: return A.square() if p == 2 else A.abs().pow(p): always the second": "the same number, only slower",
    "attention: peak = q.detach().abs().amax(dim=1, keepdim=True): detach -> clone": "the result does not depend on "
    "the peak, so no gradient comes through it",
    "attention: q = q / peak.where(peak > 0, 1.0): 1.0 -> 2.0": "divides an all-zero map",
    "attention: return q / norm.where(peak > 0, 1.0): 1.0 -> 2.0": "divides an all-zero map",
    "attention: logits = model(x.detach().requires_grad_()): detach -> clone": "the map is detached all the same",
    "losses: pairs = zip(student, teacher, strict=True): True -> False": LENGTHS,
    "losses: smaller = all(a <= b for a, b in zip(size, wanted, strict=True)): True -> False": "both have two sizes",
    "losses: larger = all(a >= b for a, b in zip(size, wanted, strict=True)): True -> False": "both have two sizes",
    "losses: for A_S, A_T, r in zip(student, teacher, regressors, strict=True):: True -> False": LENGTHS,
}


def changes(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Each way to change this one node: what it is, and the node that takes its place."""
    if isinstance(node, ast.BinOp | ast.BoolOp) and type(node.op) in OPERATORS:
        new = copy.deepcopy(node)
        new.op = OPERATORS[type(node.op)]()
        yield f"{type(node.op).__name__} -> {type(new.op).__name__}", new
    if isinstance(node, ast.Compare):
        for i, old in enumerate(node.ops):
            if type(old) in OPERATORS:
                new = copy.deepcopy(node)
                new.ops[i] = OPERATORS[type(old)]()
                yield f"{type(old).__name__} -> {type(new.ops[i]).__name__}", new
    if isinstance(node, ast.UnaryOp):
        yield f"without {type(node.op).__name__}", node.operand
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield f"{node.value} -> {not node.value}", ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield f"{node.value} -> {node.value + 1}", ast.Constant(node.value + 1)
    if isinstance(node, ast.Attribute) and node.attr in NAMES:
        yield f"{node.attr} -> {NAMES[node.attr]}", ast.Attribute(node.value, NAMES[node.attr], node.ctx)
    if isinstance(node, ast.Raise):
        yield "no raise", ast.Pass()
    if isinstance(node, ast.IfExp):
        yield "always the first", node.body
        yield "always the second", node.orelse


class Replace(ast.NodeTransformer):
    def __init__(self, number: int, new: ast.AST) -> None:
        self.number, self.new, self.seen = number, new, -1

    def visit(self, node: ast.AST) -> ast.AST:
        self.seen += 1
        if self.seen == self.number:
            return ast.copy_location(self.new, node)
        return self.generic_visit(node)


def preorder(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    for child in ast.iter_child_nodes(node):
        yield from preorder(child)


def in_messages(tree: ast.AST) -> set[int]:
    """Nodes of f-strings, whose text is not what is tested, and of annotations."""
    inside: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            inside |= {id(child) for child in ast.walk(node)}
        for part in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            inside |= {id(child) for child in ast.walk(part)} if isinstance(part, ast.AST) else set()
    return inside


def mutants(source: str) -> Iterator[tuple[str, str]]:
    """Each mutant of a module: a name for it, and its source."""
    tree, lines = ast.parse(source), source.splitlines()
    skip = in_messages(tree)
    for number, node in enumerate(preorder(tree)):
        if id(node) in skip or not hasattr(node, "lineno"):
            continue
        for change, new in changes(node):
            mutated = Replace(number, copy.deepcopy(new)).visit(copy.deepcopy(tree))
            line = lines[node.lineno - 1].partition("  #")[0].strip()
            yield f"{line}: {change}", ast.unparse(ast.fix_missing_locations(mutated))


def survives(module: str, source: str) -> bool:
    """Run the tests against a mutant, in a process of its own."""
    if (child := os.fork()) == 0:
        signal.alarm(SECONDS)
        code = 1
        with open(os.devnull, "w") as nowhere, contextlib.suppress(BaseException):
            os.dup2(nowhere.fileno(), 1), os.dup2(nowhere.fileno(), 2)
            exec(compile(source, module, "exec"), importlib.import_module(f"atbook.{module}").__dict__)
            import pytest

            imported = "ignore::pytest.PytestAssertRewriteWarning"
            tests = [f"tests/test_{name}.py" for name in TESTS[module]]
            code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-W", imported, *tests]))
        os._exit(code)
    return os.waitpid(child, 0)[1] == 0


def main() -> int:
    """Print every survivor; returns how many are not explained."""
    for name in ("torch", "pytest", "hypothesis", "captum.attr", "scipy.stats", "atbook.attention"):
        with contextlib.redirect_stderr(io.StringIO()):
            importlib.import_module(name)  # once for all children
    sys.modules["torch"].set_num_threads(1)
    os.chdir(ROOT)
    total, unexplained, used = 0, 0, set()
    for module in TESTS:
        source = (ROOT / "atbook" / f"{module}.py").read_text()
        assert survives(module, source), f"the tests fail on {module} as it is"
        for name, mutated in mutants(source):
            total += 1
            if survives(module, mutated):
                key = f"{module}: {name}"
                used.add(key)
                unexplained += key not in EXPLAINED
                print(f"survived  {key}  ({EXPLAINED.get(key, 'not explained')})", flush=True)
    print(f"{total} mutants: {total - len(used)} killed, {len(used)} survivors, {unexplained} of them not explained")
    for key in set(EXPLAINED) - used:
        print(f"explained, but killed or gone: {key}")
    survivors = {key: EXPLAINED.get(key, "not explained") for key in sorted(used)}
    record("mutants", {"mutants": total, "survivors": survivors}, tuple(TESTS))
    return unexplained


if __name__ == "__main__":
    sys.exit(main() > 0)
