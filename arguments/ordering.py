"""Settings of align_sequence.py. The last four flags are the keys of the paper's configuration files."""

from dataclasses import dataclass

from arguments.flags import opt
from utils.errors import UserError
from utils.plugins import check_name

ORDERINGS = ("file", "random", "greedy", "als", "tour")
COSTS = ("pose", "distance", "orb", "covisibility")
SIMILARITIES = ("pose", "feature")


@dataclass(frozen=True)
class OrderingParams:
    """How the views are ordered"""

    ordering: str = opt(
        "auto",
        "file: as listed; random; greedy: nearest unvisited view next (the paper's S); als: adaptive-length "
        "subsequences; tour: greedy improved by 2-opt and Or-opt; auto: tour, or what --als and --similarity ask for; "
        "or a callable MODULE:NAME",
    )
    cost: str = opt(
        "auto",
        "what makes two views neighbours. pose: angle about the scene's centre; distance: between the cameras; orb: "
        "mean Hamming distance of ORB matches; covisibility: shared COLMAP points; auto: pose for file, random and "
        "tour, for greedy and als the paper's choice (orb on NeRF-synthetic scenes, else pose); or a callable "
        "MODULE:NAME",
    )
    gate: str = opt(
        "auto",
        "what als limits, a cost: pose = the angle in degrees; orb = the rank of the ORB cost; others in their own "
        "unit; auto: the paper's choice (pose when ordered by orb, orb when ordered by pose), else pose. pose needs no "
        "images",
    )
    als: bool = opt(False, "the paper's key: adaptive-length subsequences, as --ordering als")
    similarity: str = opt(
        "",
        "the paper's key: feature = order by ORB, als limits the angle; pose = order by angle, als limits the ORB rank",
        choices=("", *SIMILARITIES),
    )
    thres_values: tuple[float, ...] = opt(
        (),
        "limits of the gate, strict first; none: 15 30 45 degrees, or the ORB ranks 30 50",
        type=float,
    )
    num_images_in_sequence: int = opt(
        0,
        "longest subsequence; 0: no limit (the upsampler cuts by memory); als, and everything under --compat: 100 when "
        "ordered by ORB, else 8",
    )

    def __post_init__(self) -> None:
        for flag, names in (("ordering", ORDERINGS), ("cost", COSTS), ("gate", COSTS)):
            check_name(f"--{flag}", getattr(self, flag), ("auto", *names))
        if self.als and self.ordering not in ("auto", "als"):
            raise UserError(f"--als contradicts --ordering {self.ordering}; give one of the two")
        if self.similarity and self.cost != "auto":
            raise UserError("--similarity and --cost both choose what views are ordered by; give one of the two")
        if not all(0 < eps < float("inf") for eps in self.thres_values):
            raise UserError(f"--thres_values {self.thres_values}: positive numbers are expected")
        if self.num_images_in_sequence < 0:
            raise UserError(f"--num_images_in_sequence {self.num_images_in_sequence}: 0 or more is expected")
