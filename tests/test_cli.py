"""The command line: one-line errors, a results folder, and resuming."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from ets import demo
from ets.cli import COMMON, main
from tests.conftest import Refused
from tests.sandboxed import needs_sandbox

BASE = {
    "--task": "arithmetic",
    "--model": "embedded-small",
    "--count": "3",
    "--shots": "0",
    "--methods": "plain,majority,one-step,ets",
    "--candidates": "2",
    "--rollouts": "2",
    "--lam": "0.1",
    "--pool": "chain",
    "--block-size": "16",
    "--max-length": "32",
    "--temperature": "1.0",
    "--seed": "0",
    "--width": "2",
}


GUIDED = "rollouts=2-lam=0.1-pool=chain-reward=majority-minimum=1"
PROPOSED = {"methods": "ets-is", "proposal": "embedded"}


def command(folder: Path, **changed: str) -> list[str]:
    options = BASE | {"--out": str(folder)} | {f"--{name.replace('_', '-')}": value for name, value in changed.items()}
    return ["eval", *(word for pair in options.items() for word in pair)]


def test_a_run_leaves_a_folder_and_the_same_command_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert main(command(folder)) == 0
    table = (folder / "table.md").read_text()
    assert table.strip() in capsys.readouterr().out
    methods_table, curves = table.split("\n| k |")
    assert methods_table.count("\n| ") == 2 + 4 + 1  # ETS has a second row, its vote
    assert "maj@k" in curves.splitlines()[0]
    assert {path.name for path in folder.iterdir()} == {
        "accuracy.png", "configuration.json", "fingerprint.txt", "journal.jsonl", "pass_at_k.png", "problems.jsonl",
        "report.html", "samples.jsonl", "summary.json", "table.md", "traces.jsonl",
    }  # fmt: skip
    journal = folder / "journal.jsonl"
    lines = journal.read_text().splitlines()
    methods = {json.loads(line)["method"] for line in lines}
    assert {re.split("[-[]", method)[0] for method in methods} == {"pool", "ets"}

    journal.write_text("\n".join(lines[:4]) + "\n" + lines[4][:40])  # killed in the middle of a line
    assert main(command(folder, width="3")) == 0
    assert "4 finished chains" in capsys.readouterr().out

    def results(text: list[str]) -> list[tuple[str, ...]]:
        records = [json.loads(line) for line in text]
        return sorted(
            (r["method"], r["problem"], str(r["sample"]), str(r.get("text", [t["text"] for t in r.get("texts", ())])))
            for r in records
        )

    assert results(journal.read_text().splitlines()) == results(lines)
    again = (folder / "table.md").read_text()
    lines_of = [
        [line.split("|")[4:6] for line in text.splitlines() if line.startswith("| ")] for text in (again, table)
    ]
    assert lines_of[0] == lines_of[1]  # a prompt that was read again after the interruption is counted once


def test_the_checkpoints_truncation_is_shown_with_what_it_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(demo.model_path("small"), model)
    written = {"eos_token_id": 0, "top_k": 20, "repetition_penalty": 1.05}
    (model / "generation_config.json").write_text(json.dumps(written))
    law = {"top_k": "checkpoint", "top_p": "checkpoint"}
    assert main(command(tmp_path / "run", model=str(model), methods="plain", samples="1", count="1", **law)) == 0
    shown = capsys.readouterr().out
    assert "p_ref has the checkpoint's top_k 20, top_p None (its generation_config" in shown
    assert "note: p_ref is without the checkpoint's repetition_penalty 1.05, which generate would apply too" in shown
    configuration = json.loads((tmp_path / "run" / "configuration.json").read_text())
    assert (configuration["top_k"], configuration["top_p"]) == (20, None)


def test_a_folder_of_another_configuration_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert main(command(folder, methods="ets")) == 0
    assert main(command(folder, methods="ets", lam="0.2", seed="1")) == 2
    error = capsys.readouterr().err
    assert "error: the results folder" in error
    assert "lam (0.1 there, 0.2 now), seed (0 there, 1 now)" in error


def test_a_folder_takes_further_methods_and_equal_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Settings that a method does not depend on leave its records alone; other beams are sampled again."""
    folder = tmp_path / "run"
    found = {}
    for changed in (
        {"methods": "ets"},
        {"methods": "beam,ets", "beams": "2", "top_p": "1", "memory_gib": "1"},
        {"methods": "ets,beam", "beams": "3", "best_by": "likelihood"},
        {"methods": "beam", "beams": "2", "count": "3"},
    ):
        assert main(command(folder, **changed)) == 0
        line = next(line for line in capsys.readouterr().out.splitlines() if "finished chains" in line)
        found[str(changed)] = int(line.split()[0])
    assert list(found.values()) == [0, 3, 6, 9]
    methods = [json.loads(line)["method"] for line in (folder / "journal.jsonl").read_text().splitlines()]
    assert {name: methods.count(name) for name in methods} == {
        f"ets-2-{GUIDED}": 3,
        "beam-1-beams=2": 3,
        "beam-1-beams=3": 3,
    }


def test_ets_is_joins_a_folder_and_shows_its_ratios(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """ETS's records are found again; another clip is sampled anew; and the same command has nothing left to do."""
    folder, hot = tmp_path / "run", {"model": "embedded", "temperature": "1.9"}  # where the ratios reach the bounds
    proposed = PROPOSED | hot | {"proposal": "embedded-small"}
    assert main(command(folder, **hot, methods="ets")) == 0
    for clip, finished in (("0.5,2", 3), ("0.1,10", 6), ("0.5,2", 9)):
        assert main(command(folder, **proposed | {"methods": "ets,ets-is", "clip": clip})) == 0
        shown = capsys.readouterr().out
        assert f"{finished} finished chains" in shown
    methods = [json.loads(line)["method"] for line in (folder / "journal.jsonl").read_text().splitlines()]
    assert {method: methods.count(method) for method in set(methods)} == {
        f"ets-2-{GUIDED}": 3,
        **{m: 3 for m in methods if m.endswith(("-block16-T1.9-kNone-pNone-clip(0.5, 2.0)", "-clip(0.1, 10.0)"))},
    }
    ets, _, guided, _ = json.loads((folder / "summary.json").read_text())["entries"]
    assert ets["ratios"] is None
    assert set(guided["ratios"]) == {
        "rollouts", "effective", "mean", "spread", "impossible", "clipped", "candidates_effective",
        "candidates_clipped", "complete_drawn", "complete_chosen",
    }  # fmt: skip
    assert guided["ratios"]["clipped"] > 0  # at 0.5 and 2
    assert guided["ratios"]["rollouts"] > 0 and guided["cost"]["positions"] > guided["cost"]["generated"]
    (line,) = [line for line in (folder / "table.md").read_text().splitlines() if "rollouts of the proposal" in line]
    assert line.startswith("ETS-IS (M 2, K 2, block 16): ") and line in shown


def test_a_proposal_without_its_method_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(tmp_path / "run", methods="ets", proposal="embedded", count="1")) == 0
    assert "note: --proposal: no effect without the method ets-is\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"candidates": "0"}, "'0' is not above zero and finite"),
        ({"rollouts": "0"}, "rollouts is 0"),
        ({"lam": "-1"}, "lam is -1.0"),
        ({"lam": "nan"}, "lam is nan"),
        ({"candidates": "many"}, "argument --candidates: 'many' is no number"),
        ({"block_size": "64"}, "--block-size 64 is longer than --max-length 32"),
        ({"max_length": "0"}, "--max-length is 0"),
        ({"temperature": "-0.5"}, "temperature is -0.5"),
        ({"methods": "plain,magic"}, "unknown method 'magic'; choose from base, plain, majority, confident-majority"),
        ({"methods": "majority"}, "the size of majority follows from the cost of ets, which is not among the methods"),
        ({"methods": "ets,ets"}, "method 'ets' is named twice"),
        ({"methods": "ets,beam", "beams": "0"}, "beams is 0"),
        (
            {"methods": "ets,best-of-n", "best_by": "luck"},
            "--best-by is 'luck'; choose from majority, share, likelihood, likelihood-per",
        ),
        ({"pool": "all"}, "pool is 'all'"),
        ({"task": "chess"}, "unknown task 'chess'; choose from arithmetic, sums"),
        ({"count": "0"}, "count is 0"),
        ({"count": "99999"}, "99999 held-out problems are out of range"),
        ({"shots": "-1"}, "shots is -1"),
        ({"width": "0"}, "width is 0"),
        ({"model": "./nowhere"}, "no checkpoint at './nowhere'"),
        ({"shots": "200"}, "leaves no room for a generation of 32 in the model's context of 8192"),
        ({"memory_gib": "0"}, "--memory-gib is 0.0"),
        ({"samples": "0"}, "samples is 0"),
        ({"temperature": "0"}, "at temperature 0 nothing is random, so all 2 draws from a state would be equal"),
        ({"temperature": "0", "methods": "majority", "samples": "3"}, "so all 2 draws from a state would be equal"),
        ({"stops": "answer"}, "stops is 'answer', but the task arithmetic asks for no code; leave stops out"),
        ({"task": "humaneval", "stops": "never"}, "stops is 'never'; choose from completion, answer"),
        ({"task": "humaneval", "data": "x"}, "the task humaneval brings its own problems, and takes no data"),
        pytest.param(
            {"task": "humaneval", "count": "500"},
            "500 problems of humaneval asked for; choose 1 to 164",
            marks=needs_sandbox,
        ),
        ({"steps": "8"}, "steps is 8, which the engine transformers does not have; leave it out"),
        ({"methods": "ets-is"}, "for the method ets-is, there is no proposal; add --proposal"),
        (PROPOSED | {"fast_cache": "dual"}, "--fast-cache is 'dual', which only masked diffusion has; leave it out"),
        ({"cache": "dual"}, "cache is 'dual', which the engine transformers does not have; leave it out"),
        (PROPOSED | {"clip": "0.1"}, "argument --clip: '0.1' is no pair of bounds; give the lowest and the highest"),
        (PROPOSED | {"clip": "2,3"}, "clip is (2.0, 3.0); its bounds must enclose 1"),
        (PROPOSED | {"is_candidates": "0"}, "candidates is 0"),
        (PROPOSED | {"is_block_size": "64"}, "for the method ets-is, block_size 64 is longer than --max-length 32"),
        (PROPOSED | {"proposal_temperature": "0"}, "for the method ets-is, at temperature 0 the proposal draws one"),
        (PROPOSED | {"proposal_top_k": "5"}, "--proposal-top-k is unknown; did you mean "),
        (PROPOSED | {"proposal": "./nowhere"}, "for the method ets-is, no checkpoint at './nowhere'"),
        (PROPOSED | {"proposal": demo.model_path("diffusion")}, "is a masked-diffusion model (llada)"),
        ({"engine": "abacus"}, "unknown engine 'abacus'; choose from transformers, vllm, endpoint, masked-diffusion"),
    ],
)
def test_bad_input_is_one_line_before_any_weights_are_loaded(
    changed: dict[str, str], message: str, tmp_path: Path, refused: Refused
) -> None:
    refused(command(tmp_path / "run", **changed), message)


DIFFUSION = {
    "--engine": "masked-diffusion",
    "--task": "sums",
    "--model": "embedded",
    "--gen-length": "24",
    "--steps": "12",
    "--block-length": "8",
    "--guide-steps": "3",
    "--cfg": "0",
    "--remasking": "low_confidence",
}


FAST = {"methods": "ets-is", "fast_cache": "dual"}


def diffusion_command(folder: Path, **changed: str | None) -> list[str]:
    """The command for masked diffusion; an option changed to None is left out."""
    shared = {name: value for name, value in BASE.items() if name not in ("--block-size", "--max-length")}
    options = shared | DIFFUSION | {"--out": str(folder)}
    options |= {f"--{name.replace('_', '-')}": value for name, value in changed.items()}
    return ["eval", *(word for name, value in options.items() if value is not None for word in (name, value))]


def test_a_fast_sampler_joins_a_folder_level_by_level_and_shows_its_target(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The records of each level are found again; level 0 has no ratios."""
    folder, level_1 = tmp_path / "run", FAST | {"level": "1", "fast_remasking": "largest", "fast_threshold": "0.5"}
    assert main(diffusion_command(folder, methods="ets")) == 0
    shown = capsys.readouterr().out
    assert "row-forwards" in shown and "its target" not in shown
    targets = {"0": "its target is the fast sampler itself", "1": "its target is the exact model's token probabilities"}
    for options, level, finished in ((FAST, "0", 3), (level_1, "1", 6), (FAST | {"level": "0"}, "0", 9)):
        assert main(diffusion_command(folder, **options | {"methods": "ets,ets-is"})) == 0
        shown = capsys.readouterr().out
        assert f"{finished} finished chains" in shown
        before, after = shown.split("row-forwards")
        line = f"ets-is: {targets[level]}"
        assert line in before and line in after and line in (folder / "table.md").read_text()
        ets, _, fast, voted = json.loads((folder / "summary.json").read_text())["entries"]
        assert (voted["readout"], voted["ratios"]) == ("vote", None)
        assert (fast["ratios"] is not None) == (level == "1") == ("rollouts of the proposal" in shown)
        assert fast["cost"]["row_forwards"] > 0 and fast["cost"]["positions"] < ets["cost"]["positions"]
    methods = [json.loads(line)["method"] for line in (folder / "journal.jsonl").read_text().splitlines()]
    assert {method: methods.count(method) for method in set(methods)} == {
        f"ets-2-{GUIDED[:-1]}2": 3,
        f"ets-is-2-{GUIDED[:-1]}2-weighing=level0-temperature1.0-remaskinglow_confidence-cachedual-clipNone": 3,
        f"ets-is-2-{GUIDED[:-1]}2-weighing=level1-temperature1.0-remaskinglargest-threshold0.5-cachedual-clipNone": 3,
    }


def test_a_fast_sampler_may_be_p_ref_of_all_methods(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is another law, so a folder of the exact one is refused."""
    folder, fast = tmp_path / "run", {"cache": "dual", "refresh": "2", "threshold": "0.9", "methods": "ets"}
    assert main(diffusion_command(folder, **fast)) == 0
    assert main(diffusion_command(folder, methods="ets")) == 2
    assert (
        "cache ('dual' there, 'absent' now), refresh (2 there, 'absent' now), threshold (0.9 "
        in capsys.readouterr().err
    )


def test_a_fast_sampler_without_its_method_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(diffusion_command(tmp_path / "run", methods="ets", fast_cache="dual", count="1")) == 0
    assert "note: --fast-cache: no effect without the method ets-is\n" in capsys.readouterr().out


def test_masked_diffusion_is_measured_at_equal_positions(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert main(diffusion_command(folder)) == 0
    rows = {entry["method"]: entry["cost"] for entry in json.loads((folder / "summary.json").read_text())["entries"]}
    assert set(rows) == {"plain", "majority", "one-step", "ets"}
    for row in [rows[name] for name in ("majority", "one-step")]:
        assert abs(row["positions"] / rows["ets"]["positions"] - 1) <= 0.15  # a sample more or less
    before = (folder / "journal.jsonl").read_bytes()
    assert main(diffusion_command(folder, methods="ets", stop_at_end="False")) == 0  # which it is when left out
    assert (folder / "journal.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"gen_length": "20"}, "--gen-length 20 is no multiple of --block-length 8"),
        ({"steps": "13"}, "steps 13 is no multiple of the 3 blocks"),
        ({"steps": "48"}, "steps 48 are more than the 24 tokens"),
        ({"guide_steps": "5"}, "--guide-steps 5 does not divide --steps 12"),
        ({"guide_steps": "0"}, "--guide-steps is 0"),
        ({"remasking": "best"}, "unknown remasking 'best'; choose from low_confidence, random, margin, entropy"),
        ({"cfg": "-1"}, "cfg is -1.0"),
        ({"temperature": "-1"}, "temperature is -1.0"),
        ({"temperature": "0"}, "at temperature 0 nothing is random, so all 2 draws from a state would be equal"),
        ({"model": demo.model_path("small")}, "is a 'qwen3' model, which does not unmask"),
        ({"shots": "400"}, "leaves no room for a generation of 24 in the model's context of 8192"),
        ({"block_size": "8"}, "--block-size is 8 and --guide-steps 3; set one of the two"),
        ({"top_p": "0.9"}, "--top-p is 0.9, which the engine masked-diffusion does not have; leave it out"),
        (
            {"methods": "ets,beam", "beams": "4", "steps": "12"},
            "beam search by --remasking 'low_confidence' needs steps that reveal one",
        ),
        ({"methods": "base,ets"}, "MaskedDiffusionPolicy has no top-k and top-p; leave the method base out"),
        ({"engine": "transformers"}, "steps is 12, which the engine transformers does not have; leave it out"),
        (PROPOSED, "proposal is 'embedded', which only a pair with a proposal has; leave it out"),
        (FAST | {"is_block_size": "8"}, "--is-block-size is 8, which only a pair with a proposal has; leave it out"),
        ({"methods": "ets-is"}, "for the method ets-is, there is no faster sampler; give what makes it fast"),
        ({"methods": "ets, ets-is"}, "for the method ets-is, there is no faster sampler; give what makes it fast"),
        (FAST | {"level": "3"}, "for the method ets-is, unknown level '3'; choose from 0, 1, 1F"),
        (
            FAST | {"level": "1"},
            "for the method ets-is, --level 1 takes the positions as given, but --remasking 'low_conf",
        ),
        (FAST | {"level": "1F", "fast_threshold": "0.9"}, "support is lost and the weights do not average to 1"),
        (FAST | {"level": "1F", "cache": "dual"}, "has a cache itself; leave the cache out, or take level 0"),
        (FAST | {"clip": "0.1,10"}, "at level 0 every weight is exactly 1; leave it out"),
        (FAST | {"fast_temperature": "0"}, "at temperature 0 nothing is random"),
        (FAST | {"fast_cache": "double"}, "for the method ets-is, unknown cache 'double'; choose from dual, prefix"),
        (FAST | {"fast_refresh": "0"}, "for the method ets-is, refresh is 0"),
        (FAST | {"is_candidates": "0"}, "candidates is 0"),
        (FAST | {"cfg": "1"}, "for the method ets-is, --cfg is 1.0, but a cache holds no unguided canvases"),
        ({"threshold": "2"}, "threshold is 2.0"),
        ({"refresh": "2"}, "refresh is 2, but there is no cache to refresh"),
    ],
)
def test_bad_input_for_masked_diffusion_is_one_line_too(
    changed: dict[str, str | None], message: str, tmp_path: Path, refused: Refused
) -> None:
    refused(diffusion_command(tmp_path / "run", **changed), message)


@pytest.mark.parametrize("name", ["sample", "eval", "compare", "estimate"])
def test_the_help_names_code_of_a_module_and_has_no_empty_default(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([name, "--help-all"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "module:function" in shown and "(default: )" not in shown and "linearly of" not in shown
    assert "tokens per guide step (default: 64" in shown


@pytest.mark.parametrize("name", ["sample", "eval", "compare", "estimate"])
def test_the_short_help_fits_on_two_screens(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main([name, "--help"])
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) <= 2 * 30 and "--help-all" in shown and "--memory-gib" not in shown
    for option in COMMON[name]:
        assert f"--{option.replace('_', '-')}" in shown


def test_help_and_version_work(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--help"], ["eval", "--help"], ["--version"]):
        with pytest.raises(SystemExit) as end:
            main(words)
        assert end.value.code == 0
    assert "ets 0.1.0" in capsys.readouterr().out
