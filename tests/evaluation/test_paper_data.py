"""scripts/reproduce_tables.sh on data that are not the paper's: refused, or said beside the published cells."""

import pytest

from arguments.paper import PaperParams
from evaluation.paper.__main__ import remarks, scene_folders
from evaluation.paper.study import MIP360
from tests.scene_factory import write_blender, write_colmap
from utils.errors import UserError


def test_a_part_of_a_scene_in_another_size_is_refused_or_said_in_the_table(tmp_path):
    write_colmap(tmp_path / "mipnerf360/bonsai")
    with pytest.raises(UserError, match="bonsai: images/ holds 9 photographs, the data set has 292"):
        scene_folders(tmp_path, MIP360, PaperParams(scenes=("bonsai",)))
    params = PaperParams(scenes=("bonsai",), unchecked=True)
    folders, differing = scene_folders(tmp_path, MIP360, params)
    assert folders == {"bonsai": tmp_path / "mipnerf360/bonsai"}

    class Plain:
        overrides = None

    (_, said) = remarks(Plain, PaperParams(networks=("bicubic",)), differing)
    assert said == "NOT COMPARABLE with published cells: bonsai: images/ holds 9 photographs, the data set has 292."


def test_a_data_set_that_is_not_there_is_said_to_be_missing(tmp_path):
    write_blender(tmp_path / "nerf_synthetic/lego", views=1)
    with pytest.raises(UserError, match=r"mipnerf360 is not there, and .* holds no bicycle or flowers"):
        scene_folders(tmp_path, MIP360, PaperParams())
