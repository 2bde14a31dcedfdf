"""`python -m priors list` and `python -m priors verify NAME`: published diffusion models, and whether one fits."""

import sys
from collections.abc import Sequence

from priors.verify import Options, listing, verify
from utils.command_line import Parser
from utils.errors import UserError, run
from utils.log import say

USAGE = "list (published diffusion models), or verify NAME (load one strictly, take one step, print hashes)"


def main(words: Sequence[str] | None = None) -> None:
    """List the table, or verify one model."""
    command, *rest = [*(sys.argv[1:] if words is None else words), ""]
    if command == "list":
        Parser(prog="python -m priors list", description="Name, licence, page, files, remarks.").parse_args(rest[:-1])
        say("\n".join(listing()))
    elif command == "verify":
        _verify(rest[:-1])
    elif command in ("-h", "--help"):
        say(f"usage: python -m priors COMMAND; COMMAND is {USAGE}")
    else:
        raise UserError(f"{f'python -m priors {command}'.strip()}: a command is expected: {USAGE}")


def _verify(words: Sequence[str]) -> None:
    one = Parser(prog="python -m priors verify", description="Load strictly, take one step, print hashes and licence.")
    one.add_argument("name", help="see `python -m priors list`")
    one.add_argument("--model", default="", metavar="DIR", help="folder of the model or of its files, or a hub id")
    one.add_argument("--base", default="", metavar="DIR", help="folder or hub id of Stable Diffusion 2, where needed")
    one.add_argument(
        "--trust_weights", default=(), nargs="+", metavar="SHA256", help="that you vouch for, in the table's order"
    )
    one.add_argument("--accept_licence", action="store_true", help="you obey a licence without commercial use")
    one.add_argument("--texts", default="", metavar="FILE", help="file of embeddings, read or written")
    one.add_argument("--download", action="store_true", help="fetch what is not here")
    one.add_argument("--device", default="cpu", help="cpu (its hash is the one to compare), cuda")
    args = one.parse_args(words)
    trust = tuple(args.trust_weights)
    options = Options(args.model, args.base, trust, args.accept_licence, args.download, args.device, args.texts)
    say("\n".join(verify(args.name, options).lines()))


if __name__ == "__main__":
    run(main)
