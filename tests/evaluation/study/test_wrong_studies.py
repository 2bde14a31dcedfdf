"""What is wrong in a study file is one line before anything runs."""

import sys

import pytest

from evaluation.study.__main__ import main
from evaluation.study.spec import with_overrides
from tests.plan_factory import BASE, plan, study
from utils import errors
from utils.errors import UserError

WRONG = {
    "[variants.x]\nupsmaple = {scale = 2}": "did you mean 'upsample'",
    "[variants.x.train]\niteratoins = 2": "did you mean 'iterations'",
    "[variants.x.train]\niterations = 'many'": "a whole number is expected",
    "[variants.x.train]\niterations = 0": "variant x, scene toy, step train: .* 1 or more is expected",
    "[variants.x.train]\nseed = 3": "seed is decided by the study itself",
    "[variants.x]\nflags = {model_path = 'here'}": "decided by the study itself",
    "[variants.x]\nsource = 'lo'": "did you mean 'lr'|there are lr, hr",
    "[variants.x]\nsteps = ['upsample']": "order and upsample go together",
    "[variants.x]\nneeds = {a = 'singel'}": "did you mean 'single'",
    "[variants.x]\nscenes = ['tyo']": "did you mean 'toy'",
    "[variants.x]\nbefore = {train = 'a \"b'}": "No closing quotation",
    "[variants.x]\nbefore = {trian = 'a'}": "did you mean 'train'",
    "[variants.x]\nmethod = 'seqsplt'": "did you mean 'seqsplat'",
    "[variants.'a/b']\nsource = 'lr'": "make a name",
    "[scenes.b]\nhr = 'x'": "source = FOLDER",
    "[scenes.all]\nsource = 'x'": "choose another name",
    "[scenes.b]\nsource = 'x'\nprepare = 'make {task}/lr'": "scene b: prepare would not run",
    "[scenes.b]\nsource = 'x'\nhr = 'x'\nbackgrounds = ['green']": "'green' is not known",
    "[scenes.b]\nsource = '{nothing}'\nhr = 'x'": "means nothing here",
    "[variants.x]\nneeds = {y = 'y'}\ntrain = {init_ply = '{y}'}\n"
    "[variants.y]\nneeds = {x = 'x'}\ntrain = {init_ply = '{x}'}": "circle: x -> y -> x",
    "[variants.x]\nneeds = {frames = 'single'}": "has a meaning already",
    "[use]\nvariants = ['singel']": "did you mean 'single'",
    "[variants.x\n": "Expected ']'",
}  # fmt: skip


@pytest.mark.parametrize("text", WRONG, ids=[m[:40] for m in WRONG.values()])
def test_what_is_wrong_is_said(tmp_path, text):
    with pytest.raises(UserError, match=WRONG[text]):
        plan(tmp_path, text)


@pytest.mark.parametrize(
    "use",
    ["hr = '{prepared}/hr'", "flags = {hr_root = '{prepared}/hr'}", "[variants.v]\nflags = {hr_root = '{prepared}'}"],
)
def test_what_is_prepared_may_be_named_anywhere(tmp_path, use):
    assert study(tmp_path, f"[scenes.b]\nsource = 'x'\nprepare = 'make {{task}}/hr'\n{use}\n").scenes[1].prepare


def test_wrong_values_of_the_whole_study(tmp_path):
    for text, message in {
        "seeds = [0.5]": "numbers from 0",
        "baseline = 'b'": "'b' is not known",
        "sedes = []": "seeds",
    }.items():
        with pytest.raises(UserError, match=message):
            study(tmp_path, "[scenes.a]\nsource = 'x'\n[variants.v]\nsource = 'lr'\n", text + "\n")
    with pytest.raises(UserError, match="includes itself"):
        study(tmp_path, "", 'include = ["s.toml"]\n')
    with pytest.raises(UserError, match="did you mean --iterations"):
        with_overrides(study(tmp_path, ""), ["--iteratons", "3"], "x")
    with pytest.raises(UserError, match=r"no .variants.NAME."):
        study(tmp_path, "", "")


def test_a_bad_file_ends_with_one_line_and_code_2(tmp_path, monkeypatch, capsys):
    path = tmp_path / "bad.toml"

    def refused(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["evaluation.study", str(path), *words])
        with pytest.raises(SystemExit) as end:
            errors.run(main)
        assert end.value.code == 2
        return capsys.readouterr().err

    path.write_text(BASE.replace("OUT", str(tmp_path / "out")) + "[variants.x.train]\niterations = 0\n")
    for action in ("plan", "run", "status", "table"):
        said = refused(action)
        assert len(said.splitlines()) == 1, said
        assert said.startswith("error: ")
    assert not (tmp_path / "out").exists()
    path.write_text(BASE.replace("OUT", str(tmp_path / "out")))
    assert refused("run", "--index", "6") == "error: --index 6: the plan has runs 0 to 5\n"
