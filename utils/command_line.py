"""A command line whose mistakes are one line on stderr that names the nearest flag."""

import difflib
import re
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from itertools import takewhile
from typing import Any, NoReturn

from utils.errors import UserError, one_line


def parted(words: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """The words before the first flag, the flags, and what follows "--"."""
    before = list(takewhile(lambda word: word != "--", words))
    names = list(takewhile(lambda word: not word.startswith("-"), before))
    return names, before[len(names) :], list(words[len(before) + 1 :])


class Parser(ArgumentParser):
    """argparse with one-line errors that name the nearest known flag."""

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Namespace:  # type: ignore[override]
        """Parse; an unknown flag is named before anything that is missing is asked for."""
        words = list(sys.argv[1:] if args is None else args)
        for word in takewhile(lambda word: word != "--", words):
            if word.startswith("--") and word.split("=")[0] not in self._option_string_actions:
                self.error(f"unrecognized arguments: {word}")
        return super().parse_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        """Raise UserError instead of printing the usage."""
        wrong = re.search(r"unrecognized arguments: (\S+)", message)
        if wrong:
            near = difflib.get_close_matches(wrong[1].split("=")[0], self._option_string_actions, n=1, cutoff=0.7)
            message = f"unknown flag {wrong[1]}" + (f"; did you mean {near[0]}?" if near else "; --help lists all")
        raise UserError(f"{self.prog}: {one_line(message)}")
