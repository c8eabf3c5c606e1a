"""The agent that travels in a Kubernetes object has neither comments nor docstrings, and is the same program, line by line."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from retina_runner.bundle import bare
from tests.lab import REPOSITORY

MODULES = sorted((REPOSITORY / "retina_runner" / "agent").rglob("*.py"))


def undocumented(tree: ast.AST) -> str:
    """The program with its lines, and every string that is only a statement taken as the same one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            node.value.value = ""
            node.end_lineno = node.value.end_lineno = node.end_col_offset = node.value.end_col_offset = 0
        elif hasattr(node, "end_lineno"):  # a function may end with its docstring
            node.end_lineno = node.end_col_offset = 0  # type: ignore[attr-defined]
    return ast.dump(tree, include_attributes=True)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(REPOSITORY).as_posix())
def test_it_is_the_same_program_at_the_same_lines(path: Path) -> None:
    source = path.read_bytes()
    spare = bare(source)
    assert undocumented(ast.parse(spare)) == undocumented(ast.parse(source))
    assert bare(spare) == spare


def test_what_looks_like_a_comment_or_a_docstring_and_is_none_stays() -> None:
    source = b"""'''Doc'''
from __future__ import annotations
A = '# no comment'  # a comment
'''Of A,
two lines'''  # with a comment
def f(x):
    '''Only this.'''


def g():
    '''More.
    '''
    return '''not
    a docstring'''
f('''x''')
"""
    assert (
        bare(source)
        == b"""""
from __future__ import annotations
A = '# no comment'
""

def f(x):
    ""


def g():
    ""

    return '''not
    a docstring'''
f('''x''')
"""
    )
