"""--lr_kernel FILE: what the file says is part of a step's inputs, not its name alone."""

import json
import sys

import vsr_upsample
from arguments.lr_kernel import kernel_files
from scene.image_files import write_png
from tests.scene_factory import picture


def test_a_file_that_says_something_else_makes_frames_anew(tmp_path, monkeypatch, capsys):
    write_png(tmp_path / "lr" / "f0.png", picture(0, 24, 20))
    kernel = tmp_path / "k.json"
    words = ["--frames", str(tmp_path / "lr"), "-o", str(tmp_path / "out"), "--upsampler", "bicubic", "--project"]
    words += ["--lr_kernel", str(kernel), "--skip_done", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["vsr_upsample.py", *words])

    def frame(name: str) -> tuple[bytes, str]:
        kernel.write_text(json.dumps({"kernel": name}))
        vsr_upsample.main()
        return (tmp_path / "out" / "f0.png").read_bytes(), capsys.readouterr().err

    first, _ = frame("bicubic")
    again, said = frame("bicubic")
    assert again == first
    assert "up to date" in said
    other, said = frame("area")
    assert other != first
    assert "its input lr_kernel changed" in said


def test_a_name_is_no_file():
    assert kernel_files("") == kernel_files("bicubic") == {}
