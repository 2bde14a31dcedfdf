"""Windows of video frames, or of a scene's ordered views, as training folders: see priors/prepare_frames.py.

python scripts/prepare_frames.py --frames_path ROOT --n_frames 3 --interval STRIDE --split train --out OUT --size 16,128
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project runs from its checkout, never installed

from priors.prepare_frames import main
from utils import errors

if __name__ == "__main__":
    errors.run(main)
