"""Of a clip only the frames that are still wanted are made, and they are what they would have been."""

import pytest
import torch

pytest.importorskip("diffusers")

from priors.making import Maker
from priors.processes import Flow
from priors.samplers import PriorUpsampler
from scene.images import write_png
from tests.priors.exact_priors import Perfect
from tests.priors_factory import smooth_picture
from upsampling import Job, UpsamplingParams, run
from upsampling.sources import folder_source
from upsampling.tiling import upsample


class Counting:
    """An upsampler of three frames whose image is their mean, enlarged; keeps what it was asked for."""

    def __init__(self):
        self.asked = []
        maker = Maker(self.make, 2, 3, Perfect(Flow(3.0), torch.zeros(1)))
        self.net = PriorUpsampler(maker, 2, None, 0.0, 1, True, 0)

    def make(self, window, known, draws):
        self.asked.append(window)
        return window.mean(0).repeat_interleave(2, -1).repeat_interleave(2, -2)


def test_only_wanted_frames_are_made():
    frames, counting = torch.rand(5, 3, 4, 6, generator=torch.Generator().manual_seed(0)), Counting()
    whole = torch.stack(list(counting.net.upsample(frames)))
    assert len(counting.asked) == 5
    counting.asked.clear()
    found = dict(upsample(counting.net, frames, frozenset({1, 4}), 1 << 30))
    assert all(torch.equal(*pair) for pair in zip(counting.asked, (frames[:3], frames[[3, 4, 4]]), strict=True))
    assert sorted(found) == [1, 4]
    assert all(torch.equal(frame, whole[i]) for i, frame in found.items())


@pytest.mark.parametrize("ensemble", [1, 2])
def test_a_run_that_was_cut_short_makes_the_rest(tmp_path, ensemble):
    for i in range(4):
        write_png(tmp_path / "lr" / f"{i}.png", smooth_picture(12, 8, i))
    settings = UpsamplingParams(upsampler="small", scale=2, ensemble=ensemble)

    def made(folder, resume=False):
        counting = Counting()
        run(Job(counting.net, settings, folder_source(tmp_path / "lr", "bicubic"), tmp_path / folder, resume=resume))
        return len(counting.asked)

    assert made("whole") == 4 * ensemble
    assert made("hr") == 4 * ensemble
    (tmp_path / "hr" / "2.png").unlink()
    assert made("hr", resume=True) == ensemble
    for i in range(4):
        assert (tmp_path / "hr" / f"{i}.png").read_bytes() == (tmp_path / "whole" / f"{i}.png").read_bytes()
