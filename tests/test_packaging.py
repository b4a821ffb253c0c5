"""The three lists of dependencies agree, and the house keeps its floors."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
# Each room may import those on the floors below it in this list, and itself.
FLOORS = [
    {"transforms", "pipeline.files", "pipeline.provenance", "pipeline.chain"},
    {"pipeline.errors", "pipeline.early", "pipeline.tensors"},
    {
        "pipeline.networks",
        "pipeline.ending",
        "pipeline.losses",
        "pipeline.metrics",
        "pipeline.jobs",
        "pipeline.io",
    },
    {"pipeline.data", "pipeline.translators"},
    {"pipeline.models"},
    {"pipeline.engines", "pipeline.inference", "pipeline.tracking", "pipeline.reporting"},
    {"pipeline.handlers", "pipeline.preparation"},
    {"pipeline.settings", "pipeline.methods"},
    {"pipeline.bundle", "pipeline.workflow"},
    {"pipeline.evaluation", "pipeline.packaging", "pipeline.studies", "pipeline.compat"},
    {"pipeline.label_app"},
]
# Rooms of one floor do not know each other, but for these: (who imports, whom): why.
NEIGHBOURS = {
    ("pipeline.workflow", "pipeline.bundle"): "it has to find the bundle's configs",
}


# What is done in one place: calls by their names, and the files that make them; where it is not the home: why. Studies
# measure from outside, with files and processes of their own.
HOMES = {
    "images come in and go out": (
        r"(nib|nibabel)\.(load|save)|itk\.im(read|write)|(pydicom\.)?dcmread|(Load|Save)Imaged?|ITK(Read|Writ)er|np\.load",
        "pipeline/io/",
        {
            "pipeline/data/phantom.py": "makes its own volumes, of which no source has a header",
            "pipeline/reporting/samples.py": "arrays of pictures are no images",
            "pipeline/label_app/studies.py": "hands a series that io has written on to a server",
        },
    ),
    "tensors are read": (r"torch\.load", "pipeline/tensors.py", {}),
    "weights go into a network": (
        r".*\bload_state_dict",
        "pipeline/models/reading.py",
        {
            "pipeline/handlers/checkpoint.py": "optimisers and the like, which are no networks",
            "pipeline/engines/schedule.py": "the schedule's own",
        },
    ),
    "configs are run and opened": (
        r"(\w+\.)?(ConfigParser|bundle\.ConfigWorkflow)|.*\bread_config|.*\brun_bundle",
        "pipeline/workflow.py",
        {"pipeline/chain.py": "reads them as MONAI's command does, to say what is wrong with them"},
    ),
    "work goes to other processes": (
        r"(subprocess\.)?Popen|.*ProcessPoolExecutor|.*LocalCluster|os\.fork|multiprocessing\.\w+",
        "pipeline/jobs.py",
        {},
    ),
    "the stack is walked": (r"sys\._getframe", "pipeline/settings.py", {}),
}


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def requirements(lines):
    parsed = [Requirement(line) for line in lines if not line.startswith("-")]
    return {canonicalize_name(requirement.name): str(requirement.specifier) for requirement in parsed}


def test_environment_yml_names_the_dependencies_of_pyproject():
    entries = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    [pip] = [entry["pip"] for entry in entries if isinstance(entry, dict)]
    assert requirements(pip) == requirements(project()["dependencies"])
    assert "--constraint constraints.txt" in pip


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.13"])
def test_constraints_pin_every_dependency_within_its_range(python):
    environment = {**default_environment(), "python_version": python}
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate(environment):
                name = canonicalize_name(requirement.name)
                assert name not in pins, f"{name} is pinned twice for Python {python}"
                pins[name] = requirement
    extras = project()["optional-dependencies"]
    for line in project()["dependencies"] + extras["dev"] + extras["export"]:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate(environment):
            continue
        [pin] = pins[canonicalize_name(requirement.name)].specifier
        assert pin.operator == "=="
        assert requirement.specifier.contains(pin.version), line


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names if node.module == "pipeline")


def test_imports_run_downwards_only():
    level = {name: index for index, names in enumerate(FLOORS) for name in names}
    faults, neighbours = [], set()
    for path in [*ROOT.glob("pipeline/**/*.py"), *ROOT.glob("transforms/*.py")]:
        parts = path.relative_to(ROOT).with_suffix("").parts
        own = "transforms" if parts[0] == "transforms" else ".".join(parts[:2])
        if own == "pipeline.__init__":
            continue
        for module in imports(path):
            other = "transforms" if re.match(r"transforms(\.|$)", module) else ".".join(module.split(".")[:2])
            if own == "transforms" and module.startswith("pipeline"):
                faults.append(f"{path.relative_to(ROOT)} imports {module}")
            elif other in level and other != own and level[other] >= level[own]:
                if (own, other) in NEIGHBOURS and level[other] == level[own]:
                    neighbours.add((own, other))
                else:
                    faults.append(f"{path.relative_to(ROOT)} imports {module}")
    assert not faults
    assert neighbours == set(NEIGHBOURS), "a pair that is named but does not exist any more"


def test_every_room_is_on_a_floor():
    rooms = {f"pipeline.{path.stem}" for path in (ROOT / "pipeline").iterdir() if not path.name.startswith("_")}
    assert rooms <= set().union(*FLOORS)


@pytest.mark.parametrize("what", HOMES)
def test_everything_has_one_home(what):
    """What makes such calls, or derives from such classes, is the home, or named with a reason."""
    pattern, home, others = HOMES[what]
    found = set()
    for path in (path for folder in ("pipeline", "transforms", "scripts") for path in (ROOT / folder).rglob("*.py")):
        if "studies" in path.relative_to(ROOT).parts:
            continue
        nodes = list(ast.walk(ast.parse(path.read_text())))
        used = [node.func for node in nodes if isinstance(node, ast.Call)]
        used += [base for node in nodes if isinstance(node, ast.ClassDef) for base in node.bases]
        if any(re.fullmatch(pattern, ast.unparse(use)) for use in used):
            found.add(path.relative_to(ROOT).as_posix())
    assert any(path.startswith(home) for path in found), f"{home} does not do it any more"
    assert {path for path in found if not path.startswith(home)} == set(others)


def test_the_size_of_the_house_is_counted():
    """By tests/size.py, which docs/architecture.md names."""
    said = subprocess.run(
        [sys.executable, ROOT / "tests" / "size.py"], capture_output=True, text=True, check=True
    ).stdout
    rooms = {line.split("`")[1] for line in said.splitlines() if line.startswith("|")}
    assert {"pipeline/io", "pipeline/*.py", "scripts", "tests", "transforms"} <= rooms
    shown = re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs" / "architecture.md").read_text(), re.MULTILINE)
    assert set(shown) == rooms, "docs/architecture.md shows other folders than there are"
