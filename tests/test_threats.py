"""The sentences of docs/threats.md that can be checked: weights are no pickles, and no code of a model runs."""

from __future__ import annotations

import ast
import inspect
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import ets
from ets import demo
from ets.commands.serve import Address
from ets.policies.autoregressive import vllm
from ets.policies.checkpoint import Checkpoint
from ets.rewards.reward_model import reward_model
from ets.sandbox import process
from ets.tasks.expressions import extracted
from ets.types import InputError
from tests.conftest import random_qwen3, tiny_tokenizer
from tests.sandbox.test_process import FORGERIES, HOSTILE

PACKAGE = Path(ets.__file__).parent
PAGE = (PACKAGE.parent / "docs" / "threats.md").read_text(encoding="utf-8")
READERS = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
RUNNING = {"sandbox/examination.py", "sandbox/process.py", "tasks/evalplus.py"}
"""Modules with functions that run in the sandbox, or in its judge, and call `eval` or `exec`."""


class Bomb:
    """A pickle that makes the file "run" in the working directory when it is read."""

    def __reduce__(self) -> tuple[Callable[[str], Any], tuple[str]]:
        return eval, ("open('run', 'w').close()",)


def modules() -> Iterator[tuple[str, ast.AST]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield str(path.relative_to(PACKAGE)), ast.parse(path.read_text(encoding="utf-8"))


def calls(tree: ast.AST) -> Iterator[tuple[str, set[str | None]]]:
    """The calls of a module, as it writes them, with the names of their keyword arguments."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {each.arg for each in node.keywords}


def test_no_module_imports_a_reader_of_pickles() -> None:
    found = []
    for path, tree in modules():
        for node in ast.walk(tree):
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found += [(path, name) for name in names if name.split(".")[0] in READERS]
    assert found == []


def test_no_module_calls_a_function_that_reads_a_pickle() -> None:
    readers = {"torch.load", "np.load", "numpy.load", "yaml.load", "read_pickle", "torch.jit.load", "joblib.load"}
    assert [(path, name) for path, tree in modules() for name, _ in calls(tree) if name in readers] == []


def test_eval_and_exec_are_called_where_the_sandbox_runs_them() -> None:
    found = {path for path, tree in modules() for name, _ in calls(tree) if name in ("eval", "exec")}
    assert found and found <= RUNNING


def test_every_loading_refuses_the_code_of_a_checkpoint() -> None:
    """Also of a configuration or a tokenizer; the generation configuration has no code."""
    wrong, found = [], 0
    for path, tree in modules():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            name, source = ast.unparse(node.func), ast.unparse(node)
            if name.endswith("from_pretrained") and name != "GenerationConfig.from_pretrained":
                found += 1
                wrong += [] if "trust_remote_code=False" in source else [(path, source)]
            elif any(ast.unparse(each).endswith("from_pretrained") for each in node.args):
                found += 1
                wrong += [] if name == "self._loading" else [(path, source)]
    assert found >= 4 and wrong == []
    assert "load(files.name, trust_remote_code=False" in inspect.getsource(Checkpoint._loading)
    assert not any("trust_remote_code=True" in path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))


def test_vllm_gets_neither_code_nor_pickles() -> None:
    given = inspect.getsource(vllm._arguments)
    assert '"trust_remote_code": False' in given and '"load_format": "safetensors"' in given


def test_the_page_counts_the_programs_and_names_its_limits() -> None:
    assert f"{len(HOSTILE)} hostile programs and {len(FORGERIES)} forgeries" in PAGE
    assert "64 open files" in PAGE and '"NOFILE": 64' in process._START
    assert "1 MiB of output" in PAGE and process.OUTPUT_BYTES == 2**20


def test_a_server_listens_at_the_loopback_by_default() -> None:
    assert "the loopback, `127.0.0.1`" in PAGE and Address().host == "127.0.0.1"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint whose weights are a pickle that runs code."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "model"
    random_qwen3(4, end=0).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    return folder


def test_the_pickle_of_these_tests_runs_code(tmp_path: Path, folder: Path) -> None:
    pickle.loads((folder / "pytorch_model.bin").read_bytes())
    assert (tmp_path / "run").exists()


def test_weights_that_are_a_pickle_are_refused_in_one_line(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(InputError, match=r"are a pickle, which is never read; save them as safetensors$"):
        Checkpoint(str(folder))
    assert not (tmp_path / "run").exists()


def test_weights_of_torch_are_refused_too(folder: Path) -> None:
    torch.save(random_qwen3(4, end=0).state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="are a pickle"):
        Checkpoint(str(folder))


def test_an_adapter_that_is_a_pickle_is_refused(tmp_path: Path, folder: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(
        f'{{"peft_type": "LORA", "base_model_name_or_path": "{demo.model_path("small")}"}}'
    )
    (folder / "pytorch_model.bin").rename(adapter / "adapter_model.bin")
    with pytest.raises(InputError, match=r"weights of the adapter .* are a pickle"):
        Checkpoint(str(adapter))
    assert not (tmp_path / "run").exists()


def test_the_code_of_a_checkpoint_does_not_run(tmp_path: Path, folder: Path) -> None:
    (folder / "modeling_bomb.py").write_text("open('run', 'w').close()\nclass Bomb: pass\nclass BombConfig: pass\n")
    config = '{"model_type": "bomb", "auto_map": {"AutoConfig": "modeling_bomb.BombConfig"}}'
    (folder / "config.json").write_text(config)
    (folder / "pytorch_model.bin").unlink()
    for load in (lambda: Checkpoint(str(folder)).config, lambda: reward_model(str(folder))):
        with pytest.raises(InputError):
            load()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ self.__init__.__globals__.__builtins__.open('run', 'w') }}",
        "{{ cycler.__init__.__globals__.os.system('touch run') }}",
    ],
)
def test_a_chat_template_cannot_leave_its_sandbox(tmp_path: Path, template: str, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "template.jinja").write_text(template)
    with pytest.raises(InputError) as caught:
        ets.sample("a", model=demo.model_path("small"), chat=tmp_path / "template.jinja", max_length=1)
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "answer", ["__import__('os').system('touch run')", "open('run', 'w')", 'exec(\'open("run", "w")\')']
)
def test_an_answer_to_a_mathematical_problem_is_not_evaluated(tmp_path: Path, answer: str, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    pytest.importorskip("math_verify")
    for text in (rf"\boxed{{{answer}}}", f"The final answer is {answer}.", f"answer: 1+{answer}", f"${answer}$"):
        extracted(text)
    assert not (tmp_path / "run").exists()
