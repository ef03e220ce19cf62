"""Files are what they were when they were sealed."""

import pytest

from afmrl_jax.errors import RunError
from afmrl_jax.runtime.seals import require_sealed, seals_of


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "f" / "inner").mkdir(parents=True)
    (tmp_path / "f" / "one").write_text("1")
    (tmp_path / "f" / "inner" / "two").write_text("22")
    return tmp_path / "f"


def test_a_change_is_noticed(folder):
    seals = seals_of(folder)
    assert seals.keys() == {"one", "inner/two"}
    require_sealed(folder, seals, remedy="write it again")
    for content in ("33", "333"):
        (folder / "inner" / "two").write_text(content)
        with pytest.raises(RunError, match=r"inner/two is not what was written.*; write it again"):
            require_sealed(folder, seals, remedy="write it again")
    (folder / "one").unlink()
    with pytest.raises(RunError, match=r"one cannot be read .*No such file"):
        require_sealed(folder, {"one": seals["one"]}, remedy="write it again")


@pytest.mark.parametrize("name", ["", "../one", "/etc/passwd", "inner/../../x", "a\0b"])
def test_a_name_outside_the_folder_is_refused(folder, name):
    with pytest.raises(RunError, match="is no name in it"):
        require_sealed(folder, {name: seals_of(folder)["one"]}, remedy="write it again")
