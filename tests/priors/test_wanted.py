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
from upsampling.tiling import SLACK_BYTES, upsample


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


def test_frames_where_chunks_overlap_are_made_once():
    class Cut:
        """One frame on each side matters; a clip of four frames fills the memory."""

        scale, num_neighbours, overlap = 1, 1, 2

        def __init__(self):
            self.asked = []

        def working_bytes(self, t, h, w):
            return 1000 * t * h * w

        def only(self, wanted):
            self.asked.append(wanted)
            return self

        def upsample(self, frames, alignment=None):
            return iter(frames)

    net, frames = Cut(), torch.rand(12, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    found = dict(upsample(net, frames, frozenset(range(12)), SLACK_BYTES + net.working_bytes(4, 4, 6) + 4000))
    assert all(torch.equal(found[i], frames[i]) for i in range(12))
    assert len(net.asked) > 2
    assert sum(map(len, net.asked)) == 12


@pytest.mark.parametrize("ensemble", [1, 2])
def test_a_run_that_was_cut_short_makes_the_rest(tmp_path, ensemble):
    for i in range(4):
        write_png(tmp_path / "lr" / f"{i}.png", smooth_picture(12, 8, i))
    settings = UpsamplingParams(upsampler="small", scale=2, ensemble=ensemble)

    def made(folder, resume=False):
        counting = Counting()
        run(Job(counting.net, settings, folder_source(tmp_path / "lr", "bicubic"), tmp_path / folder), resume)
        return len(counting.asked)

    assert made("whole") == 4 * ensemble
    assert made("hr") == 4 * ensemble
    (tmp_path / "hr" / "2.png").unlink()
    assert made("hr", resume=True) == ensemble
    for i in range(4):
        assert (tmp_path / "hr" / f"{i}.png").read_bytes() == (tmp_path / "whole" / f"{i}.png").read_bytes()
