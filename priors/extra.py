"""Optional packages: diffusers, transformers, PyWavelets. Imported where they are used, and nowhere else."""

import importlib
from types import ModuleType

from utils.errors import UserError


def needed(name: str) -> ModuleType:
    """The module `name` ("diffusers", "transformers", "pywt").

    Raises
    ------
    UserError : it cannot be imported; says how to install it.
    """
    try:
        return importlib.import_module(name)
    except Exception as error:  # a broken companion of the package may raise anything
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"the package {name} cannot be imported ({what}); pip install -r requirements-priors.txt"
        ) from error
