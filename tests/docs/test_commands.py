"""Every command of README, docs, CONTRIBUTING and the bundle's page runs, as it is collected from the pages."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def load(name: str):
    """A module of this folder; tests are no package."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


PAGES, RULES = load("pages"), load("rules")
COMMANDS = PAGES.all_commands()
# Each text once, however many pages have it; in their order.
TEXTS = list(dict.fromkeys(command.text for command in COMMANDS))
HERE_RUN = ("python", "shell", "make", "server")
# What the Makefile's targets ask the programs of their environment for.
ASKED = {
    "train": "python -m monai.bundle run training --config_file bundles/reggan/configs/train.json",
    "test": "python -m pytest -n 2",
    "test-slow": "python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m slow",
    "test-sample": "--sample 12",
    "lint": "ruff check .",
    "format": "ruff format .",
    "benchmark": "python scripts/benchmark.py",
    "label": "python -m pipeline.label_app.serve --studies data/studies --models reggan",
    "label-test": "python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -rs tests/label_app",
    "label-test-dicom": "test_orthanc.py",
    ".venv-label/.ready": "",
}


def test_code_blocks_and_spans_are_found(tmp_path, monkeypatch):
    text = (
        "Do this:\n\n    python a.py \\\n        --b 1    # why\n    not a command\n\n"
        "or `make it`, or\n\n```bash\ncp a b\n```\n\n"
        "- a list:\n  `pip install x`\n\n    python -c \"print('#')\"\n"
    )
    (tmp_path / "page.md").write_text(text)
    monkeypatch.setattr(PAGES, "ROOT", tmp_path)
    found = [(command.line, command.text) for command in PAGES.commands(tmp_path / "page.md")]
    assert found == [
        (3, "python a.py --b 1"),
        (7, "make it"),
        (10, "cp a b"),
        (14, "pip install x"),
        (16, "python -c \"print('#')\""),
    ]


def test_every_command_has_a_rule():
    lost = [str(command) for command in COMMANDS if RULES.rule_of(command.text) is None]
    assert not lost, "no rule for these commands, add one to RULES in tests/docs/rules.py:\n" + "\n".join(lost)


def test_no_line_of_a_code_block_is_overlooked():
    """What begins with a program of this machine is a command, or is known to be none."""
    none = {"who": "of a server's answer", "echo": "beside what nginx is given", "chown": "likewise"}
    for page in PAGES.pages():
        for number, line in PAGES.lines(page.read_text()):
            word = line.split()[0]
            known = word in PAGES.PROGRAMS or word in none
            assert known or shutil.which(word) is None, (
                f"{page.name}:{number}: {line}\nadd {word!r} to PROGRAMS in tests/docs/pages.py, and a rule to rules.py"
            )


def test_no_rule_is_idle():
    idle = [rule.pattern for rule in RULES.RULES if not any(RULES.rule_of(text) is rule for text in TEXTS)]
    assert not idle, f"rules of tests/docs/rules.py that match no command any more: {idle}"


def test_what_is_run_elsewhere_is_run_there():
    for text in TEXTS:
        rule = RULES.rule_of(text)
        if rule.how == "elsewhere":
            file, words = rule.add
            assert words in (ROOT / file).read_text(), f"{text}: {file} has no {words!r}"


def run(checkout, text: str) -> None:
    """Run a command by its rule, and expect that it ends well."""
    rule = RULES.rule_of(text)
    line = text
    for old, new in rule.replace.items():
        line = line.replace(old, new)
    if rule.how == "python":
        code, said = checkout.python(*shlex.split(line)[1:], *rule.add)
    elif rule.how == "server":
        code, said = checkout.serve([*shlex.split(line), *rule.add])
    elif rule.how == "make":
        target = line.split()[1]
        if target.startswith("."):
            target = ".venv-label/.ready"
            code, said = checkout.shell(f"make --dry-run {target} LABEL_VENV=.venv-label")
        else:
            code, said = checkout.make(line.split())
        assert ASKED[target] in said, said[-3000:]
    else:
        if line.startswith("source "):  # an environment that is there
            folder = Path(line.split()[1]).parent
            line = f"mkdir -p {folder} && touch {folder}/activate && {line}"
        code, said = checkout.shell(" ".join([line, *rule.add]))
    assert code == 0, f"{text}\n{said[-4000:]}"
    assert not re.search(r"Traceback \(most recent call last\)", said), f"{text}\n{said[-4000:]}"


@pytest.mark.parametrize("text", [text for text in TEXTS if RULES.rule_of(text) and RULES.rule_of(text).fast])
def test_quick_commands_run(checkout, text):
    run(checkout, text)


@pytest.mark.slow(minutes=10)
def test_all_commands_run(checkout, capsys):
    checkout.everything(RULES)
    failed, count = [], {}
    for text in TEXTS:
        how = RULES.rule_of(text).how
        count[how] = count.get(how, 0) + 1
        if how in HERE_RUN:
            try:
                run(checkout, text)
            except AssertionError as error:
                failed.append(str(error))
    with capsys.disabled():
        ran = sum(count[how] for how in HERE_RUN)
        print(
            f"\n{len(COMMANDS)} commands on {len(PAGES.pages())} pages, {len(TEXTS)} different: {ran} run here, {count}"
        )
    assert not failed, f"{len(failed)} commands failed:\n\n" + "\n\n".join(failed)
