"""Without the packages of requirements-priors.txt, on machines that have them and on those that lack them."""

import subprocess
import sys

import numpy as np

from scene.image_files import read_image, write_png

WITHOUT = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("diffusers", "transformers", "pywt", "huggingface_hub"):
            raise ModuleNotFoundError(f"No module named {name!r}")
sys.meta_path.insert(0, Missing())
import train, vsr_upsample, training.session, training.guidance, upsampling, evaluation.run_metrics, priors.samplers
from arguments.priors import PriorParams
from priors import wavelets
from priors.making import Loading
from utils import errors
import torch
folder = sys.argv[1]
words = ["--frames", f"{folder}/lr", "-o", f"{folder}/out", "--upsampler", "bicubic", "--scale", "2", "--quiet"]
sys.argv = ["vsr_upsample.py", *words]
errors.run(vsr_upsample.main)
wavelets.analyse(torch.zeros(1, 3, 8, 8), "db4")
errors.run(lambda: priors.samplers.SAMPLERS["ldm_sr"](PriorParams(), Loading(torch.device("cpu"))))
"""


def test_without_the_optional_packages_the_rest_works_and_the_message_says_what_to_install(tmp_path):
    (tmp_path / "lr").mkdir()
    write_png(tmp_path / "lr" / "0.png", np.full((6, 8, 3), 90, np.uint8))
    done = subprocess.run([sys.executable, "-c", WITHOUT, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: the package diffusers cannot be imported")
    assert "pip install -r requirements-priors.txt" in done.stderr
    assert read_image(tmp_path / "out" / "0.png").shape == (12, 16, 3)
