"""How exact flow between views must be: flow and frames from exact depth, an LR model's depth, and depth with errors.

    python -m benchmarks.alignment [-s output/demo/lr] [--lr_geometry DIR] [--pairs 24] [--frames NAME...] [--json FILE]

The scene is the demo's (`make demo` leaves it in output/demo/lr): its exact depth is ray-cast at the centres of the LR
pixels (requirements-demo.txt), or read from --exact. Flow errors are end-point errors in LR pixels against flow from
exact depth, by the angle between the views. Frames are made by vsr_upsample.py, a folder a row, and measured on black
against the HR truth; those that are there are not made again, so that a run that was cut short goes on.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from arguments.flags import Parser, underscored
from arguments.upsampling import UpsamplingParams
from benchmarks import report
from benchmarks.depth_errors import ANGLES_DEG, ERRORS, Depth, changed, chosen_pairs, depth_error, flow_errors
from evaluation.frames import composed, measure_frames
from scene import Scene, load_scene
from scene.angles import pose_angles, viewing_axes
from scene.cameras import Camera
from upsampling import load, resolve_weights
from upsampling.geometry import depth_path, flow_between, read_depth
from utils import errors
from utils.atomic import write_text, writing
from utils.child import run_child
from utils.compute import set_threads
from utils.errors import UserError
from utils.log import note
from utils.provenance import PROJECT
from utils.record import read_record

EXACT, LR_MODEL = "exact", "LR model"
FRAMES = (
    *("single", "learned path", "learned graph", "exact path", "exact graph", f"{LR_MODEL} graph"),
    *("smooth-2% graph", "smooth-5% graph"),
)
TIMED = 20  # pairs whose flow is timed
Row = dict[str, Any]


def exact_depths(scene: Scene, folder: Path) -> Depth:
    """Depths of the training views from `folder`, ray-cast there first where one is missing.

    Raises
    ------
    UserError : the scene is not the demo's, or mitsuba is not installed.
    """
    missing = [name for name in scene.train if not depth_path(folder, name).is_file()]
    if missing:
        from examples.demo_scene.poses import CAMERA_ANGLE_X
        from examples.demo_scene.render import Renderer, RenderSettings

        first = scene.cameras[missing[0]]
        if first.width != first.height or abs(first.fov_x - CAMERA_ANGLE_X) > 1e-6:
            raise UserError(
                f"{scene.root}: its cameras are not the demo scene's; give its exact depths with --exact DIR"
            )
        renderer = Renderer(RenderSettings(size=first.width, samples=1))
        for number, name in enumerate(missing):
            pose = np.linalg.inv(scene.cameras[name].world_to_camera) @ np.diag([1.0, -1.0, -1.0, 1.0])  # OpenGL axes
            write_depth(folder, name, renderer(pose, number).depth)
    return {name: read_depth(depth_path(folder, name)) for name in scene.train}


def write_depth(folder: Path, name: str, z: Float[np.ndarray, "h w"]) -> None:
    """Write a depth as render.py --geometry does."""
    with writing(depth_path(folder, name)) as tmp, open(tmp, "xb") as file:
        np.savez_compressed(file, z=z.astype(np.float32), alpha=(z > 0).astype(np.float32))


def learned_flows(scene: Scene, pairs: Sequence[tuple[str, str]]) -> dict[tuple[str, str], torch.Tensor]:
    """BasicVSR's own flow of each pair (target, support), on black."""
    settings = UpsamplingParams(upsampler="basicvsr", precision="fp32")
    net: Any = load(settings, resolve_weights(settings), torch.device("cpu"))
    names = list(dict.fromkeys(name for pair in pairs for name in pair))
    frames = torch.stack([torch.from_numpy(composed(scene.images.raw(n), "black")) for n in names])  # [N, h, w, 3]
    frames = frames.permute(0, 3, 1, 2).float() / 255
    places = [(names.index(a), names.index(b)) for a, b in pairs]
    with torch.inference_mode():
        flows = net.spynet.flows(net.spynet.pyramid(frames), places, frames.shape[-2:])
        return {pair: flow[0].clone() for pair, flow in zip(pairs, flows, strict=True)}


def flow_rows(scene: Scene, exact: Depth, depths: Mapping[str, Depth], count: int, network: bool) -> list[Row]:
    """Flow errors by the angle between the views."""
    cameras = lr_cameras(scene, exact)
    angles = pose_angles(*viewing_axes(scene, scene.train))
    rows = []
    for angle, indices in chosen_pairs(angles, count).items():
        pairs = [(scene.train[i], scene.train[j]) for i, j in indices]
        learned = learned_flows(scene, pairs) if network else {}
        rows.append({"angle_deg": angle} | flow_errors(cameras, exact, depths, pairs, learned))
        note(f"flow, {angle} degrees: {len(pairs)} pairs")
    return rows


def lr_cameras(scene: Scene, depth: Depth) -> dict[str, Camera]:
    """Cameras at the size of the depths."""
    return {name: scene.cameras[name].resized(z.shape[1], z.shape[0]) for name, z in depth.items()}


def pair_ms(scene: Scene, exact: Depth) -> float:
    """Median time of the flow of one pair from depth, milliseconds."""
    cameras, times = lr_cameras(scene, exact), []
    for a, b in zip(scene.train[:TIMED], scene.train[1:], strict=False):
        z = [torch.from_numpy(exact[name]) for name in (a, b)]
        begin = time.perf_counter()
        flow_between(z[0], cameras[a], z[1], cameras[b], 0.03)
        times.append(1e3 * (time.perf_counter() - begin))
    return float(np.median(times))


def frame_flags(row: str, work: Path) -> list[str]:
    """What vsr_upsample.py is told for a row: a depth and a way of propagating, or "single".

    Raises
    ------
    UserError : no such row.
    """
    if row == "single":
        return ["--propagation", "none"]
    depth, _, propagation = row.rpartition(" ")
    if propagation not in ("path", "graph") or depth not in (EXACT, LR_MODEL, "learned", *ERRORS):
        raise UserError(
            f"--frames {row!r}: single, or one of learned, exact, {LR_MODEL}, {', '.join(ERRORS)}; path or graph"
        )
    if depth == "learned":
        return ["--flow", "learned", "--propagation", propagation]
    return ["--flow", "geometry", "--geometry", str(work / "depth" / depth), "--propagation", propagation]


def frame_row(row: str, scene: Scene, work: Path, threads: int) -> Row:
    """Make the frames of one row where they are not there, and measure them."""
    out = work / row.replace(" ", "_").replace("%", "")
    if not (work / "order" / "sequences.json").is_file():
        _run("align_sequence.py", "-s", str(scene.root), "-m", str(work / "order"), "--eval", "--cost", "pose")
    words = [
        "-s",
        str(scene.root),
        "-m",
        str(out),
        "--eval",
        "--skip_done",
        "--sequences",
        str(work / "order" / "sequences.json"),
    ]
    _run("vsr_upsample.py", *words, "--upsampler", "basicvsr", "--threads", str(threads), *frame_flags(row, work))
    measured = measure_frames(scene, out / "hr", "black")
    if measured is None:
        raise UserError(f"{scene.root}: no HR truth of the training views; the frames cannot be measured")
    record = read_record(out, "upsample")
    assert record is not None
    whole = not record["notes"]["kept_from_before"]  # the time of a run that goes on says nothing
    return {
        "row": row,
        "PSNR": measured["PSNR"],
        "seconds_a_frame": record["seconds"] / measured["views"] if whole else None,
    }


def _run(script: str, *words: str) -> None:
    code = run_child([sys.executable, str(PROJECT / script), *words, "--device", "cpu", "--quiet"])
    if code:
        raise UserError(f"{script} ended with exit code {code}; its own message is above")


def summary(found: Mapping[str, Any]) -> str:
    """Markdown: errors of the depths, of the flows, and the frames."""
    depths = found["depths"]
    lines = ["| depth | relative error: median | mean | 90th centile | silhouette IoU |", "|---|---|---|---|---|"]
    for name, e in depths.items():
        lines.append(f"| {name} | {e['median']:.2%} | {e['mean']:.2%} | {e['p90']:.2%} | {e['iou']:.3f} |")
    names = list(dict.fromkeys(name for row in found["flow"] for name in row["errors"]))
    lines += ["", f"| angle [deg] | pairs | mean flow [px] | {' | '.join(names)} |", "|---" * (3 + len(names)) + "|"]
    for row in found["flow"]:
        cells = [f"{e['mean_px']:.2f}, {e['below_1_px']:.0%}" if (e := row["errors"][n]) else "-" for n in names]
        length = f"{row['flow_px']:.1f}" if row["flow_px"] is not None else "-"
        lines.append(f"| {row['angle_deg']} | {row['pairs']} | {length} | {' | '.join(cells)} |")
    if found["frames"]:
        lines += ["", "| frames | PSNR [dB] | against single | seconds a frame |", "|---|---|---|---|"]
        single = next((row["PSNR"] for row in found["frames"] if row["row"] == "single"), None)
        for row in found["frames"]:
            gain = "-" if single is None else f"{row['PSNR'] - single:+.3f}"
            seconds = "not measured" if row["seconds_a_frame"] is None else f"{row['seconds_a_frame']:.2f}"
            lines.append(f"| {row['row']} | {row['PSNR']:.3f} | {gain} | {seconds} |")
    lines += ["", f"Flow of a pair from depth: {found['pair_ms']:.1f} ms (median)."]
    return "\n".join(lines) + "\n"


def parse(words: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m benchmarks.alignment", description=(__doc__ or "").splitlines()[0], allow_abbrev=False
    )
    add = parser.add_argument
    add(
        "-s",
        "--source_path",
        type=Path,
        default=Path("output/demo/lr"),
        help="the demo's LR scene (default: output/demo/lr)",
    )
    add(
        "--work",
        type=Path,
        default=Path("output/alignment"),
        help="depths and frames go there (default: output/alignment)",
    )
    add("--exact", type=Path, help="folder of exact depths, NAME.npz; default: ray-cast into WORK/depth/exact")
    add("--lr_geometry", type=Path, help="folder of an LR model's depths (render.py --geometry); default: leave it out")
    add("--pairs", type=int, default=24, help=f"pairs for each range of angles {ANGLES_DEG} (default: 24)")
    add("--no_network", action="store_true", help="leave the learned flow out")
    add(
        "--frames",
        nargs="*",
        default=None,
        metavar="ROW",
        help="rows whose frames are made; none = no frames (default: 8 rows)",
    )
    add("--threads", type=int, default=1, help="(default: 1)")
    add("--json", type=Path, help="also write the numbers here")
    args = parser.parse_args(underscored(list(words)))
    if min(args.pairs, args.threads) < 1:
        raise UserError("--pairs and --threads must be at least 1")
    if args.frames is None:
        args.frames = [row for row in FRAMES if args.lr_geometry or not row.startswith(LR_MODEL)]
    for row in args.frames:
        if row.startswith(LR_MODEL) and not args.lr_geometry:
            raise UserError(f"--frames {row!r} needs --lr_geometry DIR")
        frame_flags(row, args.work)
    return args


def depths_of(args: argparse.Namespace, scene: Scene) -> tuple[Depth, dict[str, Depth]]:
    """Exact depth, and all that are compared with it; those that frames are made from are left in WORK/depth."""
    exact = exact_depths(scene, args.exact or args.work / "depth" / EXACT)
    depths: dict[str, Depth] = {}
    if args.lr_geometry:
        depths[LR_MODEL] = {name: read_depth(depth_path(args.lr_geometry, name)) for name in scene.train}
    depths |= {name: changed(exact, change) for name, change in ERRORS.items()}
    for name in {row.rpartition(" ")[0] for row in args.frames}:
        for view, z in (exact if name == EXACT else depths.get(name, {})).items():
            write_depth(args.work / "depth" / name, view, z)
    return exact, depths


def main() -> None:
    args = parse(sys.argv[1:])
    set_threads(args.threads)
    scene = load_scene(args.source_path, eval=True)
    exact, depths = depths_of(args, scene)
    found: Row = {"depths": {name: depth_error(depth, exact) for name, depth in depths.items()}}
    found["flow"] = flow_rows(scene, exact, depths, args.pairs, not args.no_network)
    found["pair_ms"] = pair_ms(scene, exact)
    found["frames"] = [frame_row(row, scene, args.work, args.threads) for row in args.frames]
    print(summary(found))
    if args.json:
        head: Row = {"command": report.command("benchmarks.alignment"), "machine": report.machine()}
        write_text(args.json, report.json_text(report.rounded_values({**head, **found})) + "\n")


if __name__ == "__main__":
    errors.run(main)
