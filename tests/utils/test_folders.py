"""No results in a source folder; a source in the output folder is fine."""

import pytest

from utils.errors import UserError
from utils.folders import refuse_inside


@pytest.mark.parametrize("out", ["scene", "scene/out", "scene/../scene/deep/er", "link", "link/out"])
def test_an_output_in_a_source_is_refused(tmp_path, out):
    (tmp_path / "scene").mkdir()
    (tmp_path / "link").symlink_to("scene")
    with pytest.raises(UserError, match="is a source"):
        refuse_inside(tmp_path / out, None, "", tmp_path / "other", tmp_path / "scene")


@pytest.mark.parametrize("out", ["", "scene_2", "out"])
def test_beside_and_around_a_source_is_allowed(tmp_path, out):
    refuse_inside(tmp_path / out, tmp_path / "scene", tmp_path / "out" / "hr", None)
