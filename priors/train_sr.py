"""`python -m priors.train_sr --config FILE.json {train,val}`: small priors of our own, three objectives, one loop.

train: OUT/checkpoint/I*_E*.safetensors as it goes, OUT/log.jsonl, and OUT/model.safetensors in the end. The same
command goes on where it was stopped, with the same bits. val: scores and images of the newest weights.
`-c FILE -p train`, as that of the SR3 code, means the same.
"""

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from priors import train_state
from priors.denoisers.tiny import TinyNet, TinyPrior, load_prior, save_prior
from priors.frame_data import Batch, FolderSamples, Samples, batch_indices
from priors.moving_crops import MovingCrops
from priors.objectives import Levels, levels_of, loss_of
from priors.train_config import DataConfig, TrainConfig, read_config
from priors.train_state import State
from priors.validation import Score, evaluate
from scene.image_files import write_png
from utils import errors
from utils.atomic import write_json
from utils.command_line import Parser
from utils.compute import choose_device, set_threads, use_device, use_fixed_order
from utils.errors import Interrupted, UserError
from utils.locks import locked
from utils.log import JsonLines, Progress, note, say, set_quiet
from utils.rng import generator

MODEL, LOG, SCORES = "model.safetensors", "log.jsonl", "val.json"


@dataclass(eq=False)
class Stop:
    """The number of the signal that asked for an end, 0 = none."""

    signum: int = 0


@dataclass(frozen=True, eq=False)
class Run:
    """What does not change while training."""

    config: TrainConfig
    out: Path
    device: torch.device
    data: Samples
    levels: Levels | None
    made_of: dict[str, Any]

    @property
    def folder(self) -> Path:
        return self.out / self.config.checkpoints


def open_data(data: DataConfig, frames: int, seed: int) -> Samples:
    """The samples of one part. Raises UserError where they are not there."""
    if data.kind == "moving":
        limits = {"stride": data.stride, "limit": data.limit, "seed": seed}
        return MovingCrops(data.root, data.part, data.lr_px, data.hr_px, frames, **limits)
    return FolderSamples(data.root, data.lr_px, data.hr_px, frames, data.stride, data.limit)


def train(config: TrainConfig, out: Path, device: torch.device, stop: Stop | None = None) -> Path:
    """Train up to `config.iterations`, or go on from the newest checkpoint in `out`.

    Returns
    -------
    The file of the trained prior, OUT/model.safetensors.

    Raises
    ------
    UserError : data, disk, a checkpoint of another configuration, or a loss that is not finite.
    Interrupted : `stop` was set; the iteration was finished and a checkpoint written.
    """
    data = open_data(config.train, config.network.frames, config.seed)
    levels = None if config.objective == "regression" else levels_of(config.process.make())
    run = Run(config, out, device, data, levels, train_state.facts(config, data.digest()))
    with locked(out):
        state = _begin(run)
        log = JsonLines(out / LOG, state.log_bytes)
        progress = Progress(f"train {config.name}", config.iterations, done=state.done)
        try:
            while state.done < config.iterations:
                _iteration(run, state, log, progress)
                last = state.done == config.iterations
                if stop and stop.signum and not last:
                    _save(run, state, log)
                    raise Interrupted(stop.signum)
                if state.done % config.save_every == 0 or last:
                    _save(run, state, log)
        finally:
            progress.close()
            log.close()
        return _finish(run, state)


def _begin(run: Run) -> State:
    """A new state, the newest of `out`, or what path.resume_state names."""
    state = train_state.new_state(run.config, run.device)
    there = train_state.newest(run.folder, run.device)
    if there is None and run.config.resume:
        path = train_state.named(run.config.resume)
        there = (path, *train_state.load(path, run.device))
        there[2]["log_bytes"] = 0  # the log of another folder
    if there is None:
        return state
    path, tensors, info = there
    train_state.check_same(path, info, run.made_of)
    train_state.restore(state, tensors, info, path)
    if state.done > run.config.iterations:
        raise UserError(f"{path} is beyond train.n_iter = {run.config.iterations}; use another --out")
    note(f"{run.out}: going on after iteration {state.done}")
    return state


def _iteration(run: Run, state: State, log: JsonLines, progress: Progress) -> None:
    config, started, now = run.config, time.perf_counter(), state.done + 1
    loss = advance(run, state)
    if not math.isfinite(loss):
        raise UserError(f"iteration {now}: the loss is {loss}; lower train.optimizer.lr, or look at the data")
    if now % config.log_every == 0 or now == config.iterations:
        seconds = time.perf_counter() - started
        log.write(iteration=now, loss=loss, learning_rate=learning_rate(config, now), seconds=seconds)
    if now % config.val_every == 0 and now < config.iterations:
        scores = _validate(run, _prior(run, _weights(state)), config.validation.count)
        log.write(iteration=now, validation={name: asdict(score) for name, score in scores.items()})
    if progress.due(now):
        progress.update(now, loss=f"{loss:.4f}")


def advance(run: Run, state: State) -> float:
    """One step of the optimizer; all it draws follows from the seed and its number. Returns the loss before it.

    Where that is not finite nothing is changed.
    """
    config, now = run.config, state.done + 1
    draws = generator(config.seed, "step", now)
    indices = batch_indices(now, config.train.batch, len(run.data), config.seed, config.train.shuffle)
    batch = run.data.batch(indices)
    if config.train.hflip:
        batch = batch.flipped((torch.rand(len(indices), generator=draws) < 0.5).tolist())
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(config, now)
    state.net.train()
    devices = [run.device] if run.device.type == "cuda" else []
    with torch.random.fork_rng(devices):  # dropout draws from the global generator
        torch.manual_seed(int(torch.randint(1 << 62, (), generator=draws)))
        loss = loss_of(state.net, batch.to(run.device), run.levels, config.loss, draws)
    value = float(loss.detach())
    if not math.isfinite(value):
        return value
    state.optimizer.zero_grad()
    loss.backward()
    state.optimizer.step()
    state.done = now
    if config.ema.on:
        state.update_mean(config.ema.start, config.ema.every, config.ema.decay)
    return value


def learning_rate(config: TrainConfig, iteration: int) -> float:
    """Of iteration 1, 2, ...; "cosine" falls from the full rate to 0 after the last one."""
    if config.lr_schedule == "constant":
        return config.learning_rate
    return config.learning_rate * (1 + math.cos(math.pi * (iteration - 1) / config.iterations)) / 2


def _save(run: Run, state: State, log: JsonLines) -> None:
    state.log_bytes = log.size()
    epoch = state.done * run.config.train.batch // len(run.data)
    train_state.write(run.folder, state, run.made_of, epoch, run.config.keep)


def _finish(run: Run, state: State) -> Path:
    path = run.out / MODEL
    prior = _prior(run, _weights(state))
    record = {"name": run.config.name, "iterations": state.done, "made_of": run.made_of}
    save_prior(path, prior.net, run.config.process, record)
    return path


def _weights(state: State) -> dict[str, Tensor]:
    return state.mean or state.net.state_dict()


def _prior(run: Run, weights: dict[str, Tensor]) -> TinyPrior:
    """A frozen prior of these weights, with the process that validation samples with."""
    net = TinyNet(run.config.network)
    net.load_state_dict(weights)
    return TinyPrior(net.eval().requires_grad_(False).to(run.device), run.config.val_process.make())


def _validate(run: Run, prior: TinyPrior, count: int) -> dict[str, Score]:
    config = run.config
    data = open_data(config.val, config.network.frames, config.seed)
    return evaluate(prior, data, count, config.validation, config.seed)


def validate(config: TrainConfig, out: Path, device: torch.device) -> dict[str, Score]:
    """Score OUT/model.safetensors, or the newest checkpoint; writes val.json and images.

    Raises
    ------
    UserError : neither is there, or it was made with another configuration.
    """
    prior = _trained(config, out, device)
    data = open_data(config.val, config.network.frames, config.seed)
    folder = out / config.results

    def save(batch: Batch, images: Tensor) -> None:
        middle = batch.lr[:, batch.lr.shape[1] // 2]
        for name, *views in zip(batch.names, middle, batch.up, images, batch.hr, strict=True):
            for kind, view in zip(("lr", "inf", "sr", "hr"), views, strict=True):  # that program's names
                write_png(folder / f"{name}_{kind}.png", _as_8_bit(view))

    count = len(data) if config.val.limit < 0 else config.val.limit
    if config.val.kind == "moving" and config.val.limit < 0:
        raise UserError("datasets.val.data_len = -1: moving crops have no end; give a number")
    scores = evaluate(prior, data, count, config.validation, config.seed, save=save)
    write_json(
        out / SCORES, {"count": min(count, len(data)), **{name: asdict(score) for name, score in scores.items()}}
    )
    return scores


def _trained(config: TrainConfig, out: Path, device: torch.device) -> TinyPrior:
    if (out / MODEL).is_file():
        prior = load_prior(out / MODEL, device)
        where, net = out / MODEL, prior.net
        walk = "resshift" if prior.process.uses_up else "sr3"
        _refuse_other(where, walk if net.config.noisy else "regression", config)
    else:
        there = train_state.newest(out / config.checkpoints, device)
        if there is None and config.resume:
            path = train_state.named(config.resume)
            there = (path, *train_state.load(path, device))
        if there is None:
            raise UserError(f"{out}: nothing is trained yet; run it with `train` first, or name its folder with --out")
        where, net = there[0], TinyNet(config.network)
        _refuse_other(where, there[2].get("made_of", {}).get("objective"), config)
        net.load_state_dict(train_state.averaged(there[1]))
    if net.config != config.network:
        raise UserError(f"{where} holds another network than the configuration describes; use the one it was made with")
    return TinyPrior(net.eval().requires_grad_(False).to(device), config.val_process.make())


def _refuse_other(where: Path, saved: Any, config: TrainConfig) -> None:
    """SR3 and ResShift have the same network, so that nothing else would tell them apart."""
    if saved != config.objective:
        raise UserError(f"{where} was made with objective = {saved!r}, the configuration says {config.objective!r}")


def _as_8_bit(image: Tensor) -> np.ndarray:
    return (255 * image.clamp(0, 1)).round().byte().permute(1, 2, 0).cpu().numpy()


@contextmanager
def stopping() -> Iterator[Stop]:
    """While in scope SIGINT and SIGTERM are noted instead of ending the process; a second one ends it."""
    stop = Stop()

    def handle(signum: int, frame: FrameType | None) -> None:
        if stop.signum:
            raise Interrupted(signum)
        stop.signum = signum

    before = {signum: signal.signal(signum, handle) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def main() -> None:
    """Parse, train or validate, say what came out."""
    about = "Train a small prior, or measure it; the configuration is JSON with // comments."
    parser = Parser(prog="python -m priors.train_sr", description=about, allow_abbrev=False)
    parser.add_argument("action", nargs="?", choices=("train", "val"), help="what is done")
    parser.add_argument("-p", "--phase", choices=("train", "val"), help="the same as a flag")
    parser.add_argument("-c", "--config", required=True, metavar="FILE.json", help="see docs and configs/priors")
    parser.add_argument("-o", "--out", default="", help="folder of the run (default: experiments/NAME)")
    parser.add_argument("--resume", default="", help="checkpoint to start from, in place of path.resume_state")
    parser.add_argument("--seed", type=int, default=-1, help="in place of the configuration's")
    parser.add_argument("--device", default="auto", help="auto, cpu, or cuda[:N]")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 = all; 1 is fastest for small networks")
    parser.add_argument("--quiet", action="store_true", help="no progress, results and errors only")
    given = parser.parse_args()
    if given.action and given.phase and given.action != given.phase:
        parser.error(f"{given.action} and -p {given.phase} contradict each other")
    action = given.action or given.phase or parser.error("train or val is missing")
    set_quiet(given.quiet)
    set_threads(given.threads)
    config = read_config(given.config)
    config = replace(config, resume=given.resume or config.resume, seed=config.seed if given.seed < 0 else given.seed)
    for text in config.notes:
        note(text)
    device = choose_device(given.device)
    use_device(device)
    if device.type == "cuda":
        use_fixed_order()
    out = Path(given.out or Path("experiments") / config.name)
    if action == "train":
        with stopping() as stop:
            say(f"wrote {train(config, out, device, stop)}")
        return
    scores = validate(config, out, device)
    for name, score in scores.items():
        similar = "" if score.ssim is None else f"  SSIM {score.ssim:.4f}"
        error = "" if score.lr_error is None else f"  LR error {score.lr_error:.2f}/255"
        say(f"{name}: PSNR {score.psnr:.2f} dB{similar}{error}")


if __name__ == "__main__":
    errors.run(main)
