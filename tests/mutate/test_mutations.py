"""Every row of the table matches the code: its text occurs once, its tests exist, and the mutated file is valid Python."""

import ast

import pytest

from tests.mutate.table import MUTATIONS, ROOT, Mutation


def test_names_are_unique() -> None:
    assert len({one.name for one in MUTATIONS}) == len(MUTATIONS)


@pytest.mark.parametrize("one", MUTATIONS, ids=lambda one: one.name)
def test_a_mutation_fits_the_code(one: Mutation) -> None:
    source = (ROOT / one.file).read_text()
    assert source.count(one.old) == 1, f"{one.file} holds this {source.count(one.old)} times: {one.old}"
    assert ast.dump(ast.parse(source)) != ast.dump(ast.parse(source.replace(one.old, one.new)))
    assert one.tests
    for test in one.tests:
        file, _, name = test.partition("::")
        assert (ROOT / file).is_file(), f"no test file {file}"
        assert f"def {name}(" in (ROOT / file).read_text() if name else file.endswith(".py"), f"no test {test}"
