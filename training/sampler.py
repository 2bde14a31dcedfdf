"""In which order views are trained on: each view once in a pass, each pass shuffled anew."""

import torch


class ViewSampler:
    """Draws view names; its whole state is the rest of the present pass and the generator's state.

    Parameters
    ----------
    names : views, at least one, in a fixed order.
    generator : CPU generator of its own.
    """

    def __init__(self, names: list[str], generator: torch.Generator) -> None:
        self.names = names
        self.generator = generator
        self.left: list[int] = []

    def next(self) -> str:
        """Return the next view's name."""
        if not self.left:
            self.left = torch.randperm(len(self.names), generator=self.generator).tolist()
        return self.names[self.left.pop()]
