"""The list of commands: each is where the table says, and one is started without the others."""

import subprocess
import sys

import pytest

from afmrl_jax.cli import main as cli

LOADED = """
import sys
from afmrl_jax.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
print(*(x for x in sys.modules if x.startswith(("afmrl_jax.cli.", "flax", "grain"))), sep="\\n")
"""


def loaded_by(*arguments):
    run = [sys.executable, "-c", LOADED, *arguments]
    return set(subprocess.run(run, capture_output=True, text=True, check=True).stdout.split("\n"))


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_a_command_is_where_the_table_says(name):
    kind = cli.command_class(name)
    assert callable(kind.execute)
    assert len(kind.__doc__.split("\n\n")[0]) > 20


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    assert not ended.value.code
    told = capsys.readouterr().out
    assert [x for x in cli.COMMANDS if x not in told] == []


def test_the_version_loads_no_command():
    found = loaded_by("--version")
    assert "afmrl_jax.cli.train" not in found
    assert "flax" not in found
    assert "grain" not in found


def test_a_command_loads_no_other():
    found = {x for x in loaded_by("plan", "--help") if x.startswith("afmrl_jax.cli.")}
    assert "afmrl_jax.cli.plan" in found
    assert found <= {"afmrl_jax.cli.main", "afmrl_jax.cli.command", "afmrl_jax.cli.plan"}
