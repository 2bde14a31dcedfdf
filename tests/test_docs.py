"""The documentation says what is there: links, commands, flags, paths, names, messages, examples and numbers."""

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest

from arguments.degrade import DegradeParams
from arguments.downscale import DownscaleParams
from arguments.evaluation import FrameQualityParams, TableParams
from arguments.loading import CommonParams, ModelParams
from arguments.lr_scene import LRSceneParams
from arguments.paper import PaperParams
from arguments.pipeline import RunParams
from arguments.prepare_frames import PrepareParams
from arguments.priors import PriorParams
from arguments.renew import RenewParams
from arguments.steps import STEPS
from arguments.study import ExecutorParams, StudyParams, StudyTableParams, WorkerParams
from arguments.subset import SubsetParams
from benchmarks.choose_lambda import Lengths
from scene.sequences import read_sequences

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
IDS = [str(page.relative_to(ROOT)) for page in PAGES]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.S | re.M)
SPAN = re.compile(r"(?<!`)(`{1,2})(?!`)(.+?)(?<!`)\1(?!`)")
LINK = re.compile(r"(!?)\[[^\]]*\]\(([^)\s]+)\)", re.S)
FLAG = re.compile(r"(?<![\w-])--[A-Za-z][\w-]*\*?")
COMMAND = re.compile(r"python \S|scripts/\w+\.sh\b|make( [a-z-]+| [A-Z]+=\S+)+$")
PROMISES = re.compile(r"\b(TODO|TBD|FIXME|XXX|coming soon)\b", re.I)
SOURCES = (".py", ".toml", ".sh", ".md", ".h", ".inl", ".cpp")

# Flags of other programs, and of the original 3DGS code, that pages name to say what they are.
FOREIGN_FLAGS = {
    "--cap_max",
    "--init_type",
    "--train_test_exp",
    *("--no-deps", "--against", "--index-url"),
}
# Files of other projects, and of the reader's own.
FOREIGN_FILES = {
    *("render_samename.py", "full_eval.py", "convert.py", "my_lab/net.py", "my_lab/orders.py", "my_lab/costs.py"),
    "my_lab/near.py",
    *("scripts/downscale_dataset_blender.py", "scripts/downscale_dataset_mip360.py"),
}
GROUPS: dict[str, tuple[type, ...]] = {
    **{step.script: step.groups for step in STEPS.values()},
    "run.py": (RunParams, *(group for step in STEPS.values() for group in step.groups)),
    "scene.downscale": (LRSceneParams, DownscaleParams),
    "scene.degrade": (LRSceneParams, DegradeParams),
    "scene.subset": (SubsetParams,),
    "evaluation.tables": (TableParams,),
    "evaluation.study": (StudyParams, ExecutorParams, StudyTableParams),
    "evaluation.study.tasks": (WorkerParams,),
    "evaluation.paper": (PaperParams, ExecutorParams),
    "evaluation.frame_quality": (ModelParams, FrameQualityParams),
    "examples.demo": (CommonParams,),
    "scripts/prepare_frames.py": (PrepareParams,),
    "upsampling.renew": (CommonParams, ModelParams, PriorParams, RenewParams),
    "benchmarks.choose_lambda": (*STEPS["train"].groups, Lengths),
}
HELD_BY = {"priors": "priors/__main__.py"}  # their flags
PRIORS = ("priors", "priors.ddnm", "priors.diffusehigh", "priors.train_sr")
BENCHMARKS = ("rasterizer", "losses", "training_step", "memory", "knn", "ordering", "vsr")
ABLATIONS = ("alignment", "backend", "estimates", "lambda", "ordering")
RUNS_PIPELINE = {
    "run_scene.sh",
    *(f"ablate_{name}.sh" for name in ABLATIONS),
}  # what follows their two folders goes to run.py
TOOLS = {"pip", "pytest", "venv"}  # their own flags are not ours to check


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return FENCE.sub("", page.read_text())


def spans(page: Path) -> list[str]:
    """Contents of all `code spans`."""
    return [match[2].strip() for match in SPAN.finditer(prose(page))]


def commands(page: Path) -> list[list[str]]:
    """Words of every command that the page shows, in blocks and in spans."""
    blocks = [body for language, body in FENCE.findall(page.read_text()) if language in ("", "sh", "bash")]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()] + spans(page)
    found = []
    for line in lines:
        text = re.sub(r"^(\w+=\S+ +)+", "", line.partition(" #")[0].strip())
        for part in text.split("&&"):
            if COMMAND.match(part := part.strip()):
                found.append(shlex.split(part.replace("...", " ").replace("'", "")))
    return found


@cache
def flags_of(program: str) -> set[str]:
    """All flags of a script (`train.py`) or module (`scene.check`), long and short."""
    if program in GROUPS:
        own = [f for group in GROUPS[program] for f in fields(group)]
        return {"--config", "--help", *(f"--{f.name}" for f in own), *(f.metadata["short"] or "" for f in own)}
    if program.endswith(".sh"):  # what its head explains
        return {
            flag for line in (ROOT / program).read_text().splitlines() if line[:1] == "#" for flag in FLAG.findall(line)
        }
    program = HELD_BY.get(program, program)
    path = ROOT / (program if program.endswith(".py") else program.replace(".", "/") + ".py")
    return set(re.findall(r"\"(--?\w[\w-]*)\"", path.read_text())) | {"--help"}


@cache
def all_flags() -> set[str]:
    modules = (
        "scene.check",
        "utils.weights",
        "scripts/gpu_check.sh",
        *PRIORS,
        *(f"benchmarks.{name}" for name in BENCHMARKS),
    )
    return {flag for program in (*GROUPS, *modules) for flag in flags_of(program)}


@cache
def make_targets() -> set[str]:
    text = (ROOT / "Makefile").read_text()
    return {name for line in re.findall(r"^([\w -]+):(?!=)", text, re.M) for name in line.split()}


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_resolve(page):
    for picture_mark, target in LINK.findall(prose(page)):
        if re.match(r"https?://|mailto:", target) or picture_mark:
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"{page.name}: {target} leads nowhere"
        if anchor:
            assert anchor in anchors(path), f"{page.name}: {target}: no such heading"


def anchors(page: Path) -> set[str]:
    """Headings as GitHub turns them into anchors."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_pictures_are_there():
    wanted = [(page, target) for page in PAGES for mark, target in LINK.findall(prose(page)) if mark]
    missing = [f"{page.name}: {target}" for page, target in wanted if not (page.parent / target).is_file()]
    assert wanted
    assert not missing, f"pictures that pages show are not there: {missing}"


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_commands_exist_and_take_these_flags(page):
    for words in commands(page):
        shown = " ".join(words)
        if words[0] == "make":
            targets = [word for word in words[1:] if "=" not in word]
            assert set(targets) <= make_targets(), f"{page.name}: {shown}: no such target"
        elif words[0].startswith("scripts/"):
            assert (ROOT / words[0]).is_file(), f"{page.name}: {shown}: no such script"
            check_flags(page, "run.py" if Path(words[0]).name in RUNS_PIPELINE else words[0], words[1:], shown)
        elif words[0] == "python":
            program = words[2] if words[1] == "-m" else words[1]
            if program not in TOOLS and program != "-c":
                check_program(page, program, shown)
                check_flags(page, program, words[3 if words[1] == "-m" else 2 :], shown)


def check_program(page: Path, program: str, shown: str) -> None:
    if program.endswith(".sh"):  # what its head explains
        return {
            flag for line in (ROOT / program).read_text().splitlines() if line[:1] == "#" for flag in FLAG.findall(line)
        }
    path = ROOT / (program if program.endswith(".py") else f"{program.replace('.', '/')}.py")
    path = path if path.is_file() else path.with_suffix("") / "__main__.py"
    assert path.is_file(), f"{page.name}: {shown}: no such script or module"


def check_flags(page: Path, program: str, words: list[str], shown: str) -> None:
    known = flags_of(program)
    for word in words:
        if word.startswith("-") and not re.match(r"-\d", word):
            assert word.split("=")[0] in known, f"{page.name}: {shown}: {program or words} has no flag {word}"


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_flags_exist(page):
    blocks = [body for _, body in FENCE.findall(page.read_text())]
    named = {flag for text in [*spans(page), *blocks] for flag in FLAG.findall(text)}
    assert named <= all_flags() | FOREIGN_FLAGS, sorted(named - all_flags() - FOREIGN_FLAGS)


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_paths_exist(page):
    here = {path.name for path in ROOT.iterdir()}
    for text in spans(page):
        path = text.partition("::")[0]
        if not re.fullmatch(r"[\w.\-]+(/[\w.\-]+)*/?", path) or path in FOREIGN_FILES:
            continue
        ours = "/" in path and path.split("/")[0] in here - {"output"}
        if ours or path.endswith(SOURCES):
            found = (ROOT / path).exists() or (page.parent / path).exists()
            assert found, f"{page.name}: `{text}` is not there"


def names_in(path: Path) -> dict[str, ast.AST | None]:
    """What a source file defines at its top: Python by its syntax tree, C++ by name followed by ( or {."""
    if path.suffix != ".py":
        return dict.fromkeys(re.findall(r"\b(\w+)(?: \{|\()", path.read_text()))
    found: dict[str, ast.AST | None] = {}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id: None for target in targets if isinstance(target, ast.Name)}
    return found


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_names_in_files_exist(page):
    text = prose(page)
    for path, name in re.findall(r"`([\w./-]+)::(\w+)`", text):
        assert name in names_in(ROOT / path), f"{page.name}: {path} defines no {name}"
    for path, name, members in re.findall(r"`([\w./-]+)::(\w+)`: ((?:`\w+`(?:, )?)+)", text):
        node = names_in(ROOT / path)[name]
        assert isinstance(node, ast.ClassDef)
        defined = {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
        assert set(re.findall(r"\w+", members)) <= defined, f"{page.name}: members of {name}: {members}"


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_nothing_is_promised(page):
    assert not PROMISES.findall(page.read_text())


def test_measured_tables_are_filled():
    """A table below `<!-- measured: COMMAND -->` holds numbers, or the words "not measured", in every cell."""
    empty = []
    for page in PAGES:
        for command, table in re.findall(r"<!-- measured: (.+?) -->\n((?:\|.*\n)+)", page.read_text()):
            rows = table.splitlines()[2:]
            if not rows or any(not cell.strip() for row in rows for cell in row.strip().strip("|").split("|")):
                empty.append(f"{page.name}: {command}")
    assert not empty, f"tables with empty cells: {empty}"


@cache
def texts_in_code() -> tuple[str, ...]:
    """Every string of the project's Python code; what an f-string fills in is one NUL."""
    found = []
    for path in [*ROOT.glob("*.py"), *(p for name in sorted(packages()) for p in (ROOT / name).rglob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(str(v.value) if isinstance(v, ast.Constant) else "\0" for v in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return tuple(found)


def packages() -> Iterator[str]:
    yield from ("arguments", "evaluation", "gaussian_renderer", "ordering", "priors", "scene")
    yield from ("training", "upsampling", "utils")


def test_messages_are_those_of_the_code():
    """The first cells of troubleshooting.md are literal; `...` stands for what is filled in."""
    rows = re.findall(r"^\| (.+?) \| ", prose(ROOT / "docs/troubleshooting.md"), re.M)
    messages = [match[2].strip() for row in rows for match in SPAN.finditer(row)]
    assert len(messages) > 80
    for message in messages:
        pattern = re.compile(".*?".join(re.escape(piece) for piece in message.split("...")), re.S)
        assert any(pattern.search(text) for text in texts_in_code()), f"no message of the code reads {message!r}"


def test_messages_name_flags_that_exist():
    named = {flag for text in texts_in_code() for flag in FLAG.findall(text)}
    assert named <= all_flags() | FOREIGN_FLAGS | {"--lambda-tex"}, sorted(named - all_flags() - FOREIGN_FLAGS)


def test_example_of_a_schedule_is_read(tmp_path):
    text = (ROOT / "docs/formats.md").read_text()
    found = re.search(r"```json\n(\{\n  \"format\".*?)^```", text, re.S | re.M)
    assert found
    (tmp_path / "sequences.json").write_text(found[1])
    sequences = read_sequences(tmp_path / "sequences.json", ["train/r_0", "train/r_3", "train/r_7"])
    assert sequences.saved == ("train/r_0", "train/r_7", "train/r_3")
    assert sequences.subsequences[0].padded
