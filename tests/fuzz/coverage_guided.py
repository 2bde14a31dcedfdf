"""Coverage-guided fuzzing of one reader with atheris (`pip install atheris==3.0.0`), beside the seeded mutations.

    python -m tests.fuzz.coverage_guided READER [flags of libFuzzer, e.g. -max_total_time=600]

READER is a function of test_scene_fuzz.READERS (ply_binary, colmap_images, checkpoint, ...). The valid file is the only
seed. Anything that a reader raises but UserError ends the run, and libFuzzer writes the input as crash-HASH.
"""

import contextlib
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import atheris

with atheris.instrument_imports(include=["scene", "arguments", "utils"]):
    from tests.fuzz.test_scene_fuzz import READERS
    from utils.errors import UserError


def main() -> None:
    """Fuzz the reader that the command line names."""
    readers = {reader.__name__: reader for reader in READERS}
    if len(sys.argv) < 2 or sys.argv[1] not in readers:
        sys.exit(f"error: name a reader, one of {' '.join(readers)}")
    name = sys.argv.pop(1)
    with TemporaryDirectory() as folder:
        path, call = readers[name](Path(folder))
        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        (corpus / "valid").write_bytes(path.read_bytes())

        def one(data: bytes) -> None:
            path.write_bytes(data)
            with contextlib.suppress(UserError):
                call()

        atheris.Setup([*sys.argv, str(corpus)], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
