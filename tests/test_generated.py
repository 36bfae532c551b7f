"""What is printed from the declarations is what is committed."""
import os

import generated
import pytest
from conftest import ROOT


def test_the_example_configuration_is_what_the_program_prints(run):
    with open(os.path.join(ROOT, 'statbadger.conf.example'), 'rb') as file:
        assert file.read().decode() == run('--example-config').out


@pytest.mark.parametrize('name, arguments', generated.BLOCKS)
def test_the_blocks_of_the_readme_are_what_the_program_prints(run, name, arguments):
    assert generated.split(generated.read(), name)[1] == run(*arguments).out
