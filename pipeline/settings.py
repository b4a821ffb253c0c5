"""Every setting of the bundle, described once: its kind, range, meaning and default.

What checks a run, the command line's help, docs/settings.md and MLflow's parameters read it here. A config calls
`check` before anything else; what is typed on the command line stays text where a setting is text.
"""

from __future__ import annotations

import difflib
import inspect
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from monai.bundle.reference_resolver import ReferenceResolver
from monai.utils import optional_import

from pipeline.chain import MONAI_WORDS, as_fire, command_line, fault, is_monai_command, named_files, read_chain
from pipeline.data.misaligned import PAIRS
from pipeline.metrics.catalogue import KEYS
from transforms import FOREGROUND_RULES, MAX_NOISE_LEVEL, NOISE_KINDS

TRAINING, EVALUATION, INFERENCE = "training", "evaluation", "inference"
_ALL = (TRAINING, EVALUATION, INFERENCE)
# What may stand in a config whether or not anything in it refers to it: what every bundle of the model zoo has.
_UNREFERENCED = ("bundle_root", "dataset_dir", "network_size")
# What only an overlay may change, since other entries of the config change with it.
_OF_OVERLAYS = ("backbone", "translator", "method", "variants")


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        name: in the configs, and on the command line behind ``--``.
        kind: "text", "path", "number", "whole", "flag", "size" (one number or one for each axis), "list", "mapping" or
            "any".
        default: as a reader is told it; the value itself stands in the config.
        meaning: in a few words, with the unit.
        of: chains that have it.
        least: smallest value of a number.
        most: largest value of a number.
        choices: all values of a text; none for any.
        none: whether None is a value.
        logged: whether it is one of MLflow's parameters.
    """

    name: str
    kind: str
    default: str
    meaning: str
    of: tuple[str, ...] = (TRAINING,)
    least: float = -math.inf
    most: float = math.inf
    choices: tuple[str, ...] = ()
    none: bool = False
    logged: bool = True

    def fault(self, value: Any) -> str | None:
        """What is wrong with a value; None where nothing is."""
        wanted = f"be {self.range()}"
        if self.kind == "number" and self.most < math.inf:
            wanted = f"lie in [{self.least:g}, {self.most:g}]"
        if value is None:
            return None if self.none else f"{self.name} must {wanted}, got None"
        if self.kind in ("number", "whole"):
            right = not isinstance(value, bool) and isinstance(value, int if self.kind == "whole" else (int, float))
            right = right and math.isfinite(value) and self.least <= value <= self.most
            right = right and not (
                self.kind == "number" and self.least == 0 and self.name in _ABOVE_ZERO and value == 0
            )
        elif self.kind == "flag":
            right = str(value).strip().lower() in FLAGS
        elif self.choices:
            right = value in self.choices
        elif self.kind in ("text", "path"):
            right = isinstance(value, str | Path) and str(value).strip() != ""
        else:
            right = True
        return None if right else f"{self.name} must {wanted}, got {value!r}"

    def range(self) -> str:
        """What a value must be, in words."""
        if self.kind in ("number", "whole"):
            words = "a whole number" if self.kind == "whole" else "a number"
            if self.name in _ABOVE_ZERO:
                words = "a positive number"
            elif self.most < math.inf:
                words += f" in [{self.least:g}, {int(self.most) if self.kind == 'whole' else format(self.most, 'g')}]"
            elif self.least > -math.inf:
                words += f" of at least {self.least:g}"
        elif self.choices:
            words = f"one of {', '.join(self.choices)}"
        else:
            words = _WORDS[self.kind]
        return words


FLAGS = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}
_ABOVE_ZERO = ("learning_rate",)
_WORDS = {
    "text": "a text",
    "path": "a path",
    "flag": "true or false",
    "size": "a whole number, or one for each axis",
    "list": "a list",
    "mapping": "a dictionary",
    "any": "a value",
}
_LARGEST_SEED = 2**32 - 1  # of NumPy's generators


def _settings() -> list[Setting]:
    both, use = (TRAINING, EVALUATION), (EVALUATION, INFERENCE)
    return [
        Setting("dataset_dir", "path", "the phantom", "folder of the data", both, none=True),
        Setting("datalist", "path", "none", "JSON file that lists the data, in place of folders", both, none=True),
        Setting("image", "path", "dataset_dir", "volume to translate, or a folder of volumes", (INFERENCE,)),
        Setting(
            "series", "text", "none", "which DICOM series of image: UID, pattern, modality", (INFERENCE,), none=True
        ),
        Setting("mask", "path", "none", "file that is not 0 in the foreground of image", (INFERENCE,), none=True),
        Setting("derived_series", "flag", "true", "write a derived DICOM series, where image is one", (INFERENCE,)),
        Setting("deidentify", "flag", "false", "that series by DICOM's basic profile", (INFERENCE,)),
        Setting("pseudonym_key", "path", "none", "file that keeps its pseudonyms", (INFERENCE,), none=True),
        Setting("checkpoint", "path", "the run's", "model file", use, none=True),
        Setting(
            "split", "text", "test", "cases that are scored", (EVALUATION,), choices=("training", "validation", "test")
        ),
        Setting("output_dir", "path", "outputs/RUN_NAME", "everything that is written goes there", _ALL, logged=False),
        Setting("output_ext", "text", ".nii.gz", "format of translated volumes", (INFERENCE,)),
        Setting("compression", "whole", "2", "of .nii.gz: 0 is fastest, 3 smallest", (INFERENCE,), 0, 3),
        Setting(
            "store", "path", "outputs/store", "preprocessed volumes; none keeps them in memory", logged=False, none=True
        ),
        Setting("source_modality", "text", "none", "name of the source's modality", _ALL, none=True),
        Setting("target_modality", "text", "none", "name of the target's modality", _ALL, none=True),
        Setting("registration_check", "flag", "true", "warn of pairs that do not line up", (TRAINING,), logged=False),
        Setting("start_from", "path", "none", "model to go on from with other data", none=True),
        Setting("resume", "flag", "false", "continue the run in output_dir", logged=False),
        Setting("resume_changed", "flag", "false", "continue it with other data, networks or weights", logged=False),
        Setting("seed", "whole", "0", "all that is drawn at random follows from it", both, 0, _LARGEST_SEED),
        Setting("device", "text", "auto", "auto, cpu, cuda:0, ...", _ALL),
        Setting(
            "num_workers",
            "whole",
            "0",
            "processes that load data, and threads that preprocess it first; 0: none, and one for each core",
            both,
            0,
            logged=False,
        ),
        Setting("precision", "text", "auto", "of the networks", choices=("auto", "fp32", "bf16")),
        Setting("amp", "flag", "none", "true: precision bf16; false: fp32", _ALL, none=True),
        Setting("compile", "text", "off", "how a step is run", choices=("off", "default", "reduce-overhead")),
        Setting("deterministic", "text", "auto", "auto, true or false: the same result each time on a GPU"),
        Setting("max_epochs", "whole", "11", "passes over the training slices", least=1),
        Setting("batch_size", "whole", "2", "slices in a step, of all processes together", least=1),
        Setting("accumulation", "whole", "1", "batches in a step of the optimisers", least=1),
        Setting("learning_rate", "number", "0.0007", "of both optimisers", least=0),
        Setting("decay_epochs", "whole", "3/4 of max_epochs", "over the last so many the rate falls linearly", least=0),
        Setting("ema_decay", "number", "0", "of the running mean of the weights; 0 for none", least=0, most=0.9999),
        Setting("val_interval", "whole", "1", "epochs between two validations", least=1),
        Setting("drift", "flag", "false", "measure how far the generator moves its output, without a target", both),
        Setting("best_by", "text", "psnr", "metric that says which epoch is the best", choices=KEYS),
        Setting("picture_interval", "whole", "5", "epochs between two pictures", least=1, logged=False),
        Setting("loss_interval", "whole", "30", "least iterations of a mean for MLflow", least=1, logged=False),
        Setting("weights", "mapping", "the paper's", "weights of the loss terms"),
        Setting(
            "network_size", "text", "small", "networks", (TRAINING, INFERENCE), choices=("small", "paper"), none=True
        ),
        Setting("noise_level", "number", "3", "misalignment added on purpose", both, 0, MAX_NOISE_LEVEL, none=True),
        Setting("true_field", "flag", "false", "warp by the field of the added noise, in place of finding one"),
        Setting("pairs", "text", "anew", "when pairs are misaligned; registered: once, then registered", choices=PAIRS),
        Setting("noise_kind", "text", "affine", "of the misalignment", both, choices=tuple(NOISE_KINDS), none=True),
        Setting(
            "noise_amplitude",
            "number",
            "0.03",
            "of non-affine noise: largest spline coefficient per level",
            both,
            0,
            1,
            none=True,
        ),
        Setting("spatial_dims", "whole", "2", "dimensions of the networks", _ALL, 2, 3, none=True),
        Setting("spatial_size", "size", "[96, 96]", "of the slices in pixels", _ALL, none=True),
        Setting(
            "slice_axis", "whole", "found", "that counts slices: 0 sagittal, 1 coronal, 2 axial", _ALL, 0, 2, none=True
        ),
        Setting("orientation", "text", "RAS", "of the volumes' axes", _ALL, none=True),
        Setting("fit", "text", "pad", "slices to spatial_size", _ALL, choices=("pad", "resize"), none=True),
        Setting("spacing", "any", "found", "size of a pixel in mm", _ALL, none=True),
        Setting(
            "foreground",
            "text",
            "found",
            "what counts as the patient: found, or all above the background",
            _ALL,
            choices=FOREGROUND_RULES,
            none=True,
        ),
        Setting(
            "min_foreground", "number", "0.1", "least share of a slice that shows something", _ALL, 0, 1, none=True
        ),
        Setting("slices_at_once", "whole", "8", "slices that the network sees together", use, least=1),
        Setting("test_time_flips", "list", "none", "axes of a slice to average mirror images over, such as [0]", use),
        Setting("style", "any", "drawn", "MUNIT's style code", use, none=True),
        Setting("style_image", "path", "none", "image to translate in the style of, with MUNIT", use, none=True),
        Setting("trusted_modules", "list", "none", "modules whose classes a model may name", _ALL, logged=False),
        Setting("backbone", "text", "cyclegan", "set by overlays", _ALL, none=True),
        Setting("translator", "text", "that of the backbone", "set by overlays", _ALL, none=True, logged=False),
        Setting("variants", "list", "none", "set by overlays: what they change beside the weights", logged=False),
        Setting("method", "text", "that of the weights", "name of the method; follows from backbone and weights"),
        Setting("run_name", "text", "the method", "of the run, in outputs/ and in MLflow", _ALL, logged=False),
        Setting("experiment_name", "text", "reggan", "of the run, in MLflow", both, logged=False),
        Setting(
            "tracking_uri", "text", "outputs/mlflow.db", "MLflow store; none for none", both, none=True, logged=False
        ),
        Setting("cases#patient_pattern", "text", "none", "regular expression; its one group is the patient", none=True),
        Setting(
            "cases#validation_fraction", "number", "0.2", "of the patients, where none are named", (TRAINING,), 0, 1
        ),
    ]


SETTINGS: dict[str, Setting] = {setting.name: setting for setting in _settings()}
"""All settings by name."""


def calling_parser() -> ConfigParser | None:
    """The parser that is building this part, None outside of one.

    A config's part is not told of the config it stands in, and MONAI offers no way to ask; the parser is up the stack.
    """
    frame = sys._getframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, ConfigParser):
            return owner
        frame = frame.f_back  # type: ignore[assignment]
    return None


def check(chain: str, read: Sequence[str] = ()) -> None:
    """Check a config's settings before anything is done with them; a config's ``initialize`` begins with it.

    Where the config was started by MONAI's command, texts are put back as they were typed (``2024_11_27`` is no
    number), and ``--help`` prints the settings and ends.

    Args:
        chain: "training", "evaluation" or "inference".
        read: settings that a part looks up by itself, without a reference to them in the config.

    Raises:
        ValueError: naming every setting that is unknown, out of its range or of another kind, and what was expected.
        SystemExit: after ``--help``.
    """
    parser = calling_parser()
    if parser is None:
        raise ValueError("settings are checked in a config's initialize")
    typed = _typed(parser)
    if "help" in typed or "h" in typed or parser.config.get("help") is True:
        print(help_text(chain))
        raise SystemExit(0)
    files: Mapping[str, Any] = {}
    if is_monai_command() and (why := fault(sys.argv[1:])):
        raise ValueError(why)
    if typed or is_monai_command():  # the files as they are, without what was typed
        files = read_chain(named_files(sys.argv[1:]) or [])
    faults = _restore_texts(parser, typed, files)
    faults += _unknown(parser, typed, files, chain, read)
    if not faults:
        faults += _out_of_range(parser, chain)
    if faults:
        raise ValueError("; ".join(faults))


def values(parser: ConfigParser) -> dict[str, Any]:
    """The values of a training's settings, for MLflow; expressions resolved."""
    found: dict[str, Any] = {}
    for name, setting in SETTINGS.items():
        if setting.logged and TRAINING in setting.of and name in parser:
            value = parser.ref_resolver.get_resolved_content(name)
            if isinstance(value, Mapping):
                found |= {f"{name}#{key}": entry for key, entry in value.items()}
            else:
                found[name] = value
    return {name: value for name, value in found.items() if value is not None}


def table(chain: str | None = None) -> str:
    """The settings as a Markdown table, of one chain or of all."""
    rows = ["| setting | default | values | meaning |", "| --- | --- | --- | --- |"]
    for setting in SETTINGS.values():
        if chain is None or chain in setting.of:
            rows.append(f"| `{setting.name}` | {setting.default} | {setting.range()} | {setting.meaning} |")
    return "\n".join(rows)


def help_text(chain: str) -> str:
    """What ``--help`` prints."""
    own = [setting for setting in SETTINGS.values() if chain in setting.of]
    width = max(len(setting.name) for setting in own)
    lines = [f"Settings of the {chain}, each given as --NAME VALUE:\n"]
    for setting in own:
        lines.append(
            f"  --{setting.name.ljust(width)}  {setting.meaning} ({setting.range()}; default: {setting.default})"
        )
    lines.append("\nEverything else in the config can be set by its path, such as --network_def#generator#filters 64.")
    return "\n".join(lines)


def _typed(parser: ConfigParser) -> dict[str, str | None]:
    """What was typed for settings of this very config; nothing where the config was started from Python."""
    words = sys.argv[1:]
    if "run" not in words:
        return {}
    pairs = command_line(words)
    typed = {name: value for name, value in pairs if name not in MONAI_WORDS or name == "help"}
    for name, value in typed.items():  # another config, run from Python by a program whose command line looks like ours
        if name in ("help", "h"):
            continue
        if value is None or as_fire(value) is None:
            continue
        if name not in parser or parser[name] not in (value, as_fire(value)):
            return {}
    return typed


def _restore_texts(parser: ConfigParser, typed: Mapping[str, str | None], files: Mapping[str, Any]) -> list[str]:
    """Put texts back into a config as they were typed; returns what cannot be a text."""
    faults = []
    for name, text in typed.items():
        setting = SETTINGS.get(name)
        if text is not None and as_fire(text) is None:  # MONAI's command passes over what is None
            if setting is None or not setting.none:
                wanted = "another value" if setting is None else setting.range()
                faults.append(f"{name} must be {wanted}, got None")
            else:
                _keep(parser, name, None)
            continue
        before = _entry(files, name)
        is_text = setting.kind in ("text", "path") if setting else isinstance(before, str) and before[:1] not in "$@%"
        if not is_text or text is None:
            continue
        if text[:1] in ("$", "@", "%"):  # to MONAI an expression, a reference or a part of another file
            if setting is None or setting.kind != "path":
                faults.append(f"{name} must not begin with {text[0]!r}, got {text!r}")
                continue
            text = f"./{text}"
        _keep(parser, name, text)
    for name, setting in SETTINGS.items():
        value = _entry(parser.config, name)
        if setting.kind in ("text", "path") and isinstance(value, str) and value[:1] not in ("$", "@", "%"):
            _keep(parser, name, value)  # where it has a '#', which MONAI takes for a part of a path into the config
    return faults


def _keep(parser: ConfigParser, name: str, value: Any) -> None:
    """Give an entry a value that stays as it is; not by ``parser[name]``, which forgets all that was parsed."""
    *place, last = ReferenceResolver.split_id(name)
    _entry(parser.config, "#".join(place))[last] = value
    parser.ref_resolver.resolved_content[ReferenceResolver.normalize_id(name)] = value


def _entry(config: Any, name: str) -> Any:
    """The entry of that path, None where there is none."""
    for key in ReferenceResolver.split_id(name) if name else ():
        if isinstance(config, Mapping) and key in config:
            config = config[key]
        elif isinstance(config, list) and key.isdigit() and int(key) < len(config):
            config = config[int(key)]
        else:
            return None
    return config


def _unknown(
    parser: ConfigParser, typed: Mapping[str, str | None], files: Mapping[str, Any], chain: str, read: Sequence[str]
) -> list[str]:
    """Names that nothing refers to, and paths that lead nowhere."""
    faults = []
    used = {ReferenceResolver.split_id(name)[0] for name in all_references(parser.config)}
    entries = set(parser.config) - {parser.meta_key, *_UNREFERENCED, *read}
    known = sorted((used & entries) | {*read} | {name for name, setting in SETTINGS.items() if chain in setting.of})
    for name in typed:
        top = ReferenceResolver.split_id(name)[0]
        if chain == TRAINING and top in _OF_OVERLAYS and top == name:
            faults.append(
                f"{name} is set by overlays, with all that goes with it: in place of --{name} {typed[name]}, stack one "
                "behind train.json, such as unit.json, munit.json, nicegan.json or pix2pix.json"
            )
        elif name in files or name in read or (name in SETTINGS and chain in SETTINGS[name].of):
            continue
        elif name == top:
            faults.append(f"unknown knob {name!r}{_hint(name, known)}")
        elif top not in files:
            faults.append(f"unknown knob {name!r}{_hint(top, [*known, *map(str, files)])}")
        else:
            faults += _inner_fault(files, name)
    plain = {
        name
        for name in entries - used - set(typed)
        if not isinstance(parser.config[name], dict | list) and str(parser.config[name])[:1] not in ("$", "@")
    }
    # A chain of evaluation or inference may have the overlays of a training.
    unknown = sorted(plain - set(SETTINGS))
    faults += [f"unknown knob {name!r}{_hint(name, known)}" for name in unknown]
    return faults


def _hint(name: str, known: Sequence[str]) -> str:
    name = name.replace(".", "#")
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    if close:
        return f": did you mean '{close[0]}'?"
    if "#" in name:
        return f": the parts of a path are joined by '#', as in '{name}'"
    return ": nothing in the config refers to it; --help lists the settings"


def _inner_fault(files: Mapping[str, Any], name: str) -> list[str]:
    """What is wrong with a path into the config."""
    *place, last = ReferenceResolver.split_id(name)
    parent: Any = files
    for depth, key in enumerate(place):
        child = _entry(parent, key)
        if child is None:
            if isinstance(parent, Mapping) and "_target_" in parent and key in (_arguments(parent) or [key]):
                return []  # an argument that is not given so far, whose own entries nobody knows
            where = "#".join(place[:depth])
            return [f"there is no {key!r} in {where!r}, which has {_list_of(parent)}"]
        parent = child
    if not isinstance(parent, Mapping) or last in parent:
        return []
    arguments = _arguments(parent) if "_target_" in parent else list(parent)
    if not arguments or last in arguments or last.startswith("_"):
        return []
    where = "#".join(place)
    return [f"there is no {last!r} in {where!r}, which has {', '.join(arguments)}{_close(last, arguments)}"]


def _close(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f": did you mean '{close[0]}'?" if close else ""


def _list_of(entry: Any) -> str:
    if isinstance(entry, Mapping):
        return ", ".join(str(key) for key in entry if not str(key).startswith("_"))
    return f"{len(entry)} entries" if isinstance(entry, list) else repr(entry)


def _arguments(part: Mapping[str, Any]) -> list[str] | None:
    """Names of what a part of a config can be given; None where anything, or where nobody can tell."""
    target = part.get("_target_")
    given = [key for key in part if not key.startswith("_")]
    if not isinstance(target, str) or target[:1] in ("$", "@"):
        return None
    module, _, name = target.rpartition(".")
    found, there = optional_import(module, name=name)
    if not there:
        return None
    try:
        parameters = inspect.signature(found).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return list(dict.fromkeys([*given, *(parameter.name for parameter in parameters)]))


def _out_of_range(parser: ConfigParser, chain: str) -> list[str]:
    """Settings whose values cannot be."""
    faults = []
    for name, setting in SETTINGS.items():
        if chain not in setting.of or name not in parser:
            continue
        value = parser[name]
        if isinstance(value, str) and value[:1] in ("$", "@", "%"):
            if setting.kind not in ("number", "whole") or "start" in value:
                continue  # what is read off a model is right
            value = parser.ref_resolver.get_resolved_content(name)
            if value is None:
                continue
        elif value is None and chain != TRAINING:
            continue  # where a model says it
        fault = setting.fault(value)
        faults += [fault] if fault else []
        if setting.kind == "mapping" and fault is None:
            faults += _weight_faults(name, value)
    return faults


def _weight_faults(name: str, weights: Any) -> list[str]:
    if not isinstance(weights, Mapping) or not any(weights.values()):
        return [
            f"{name} must be a dictionary of loss weights such as {{'adversarial': 1}}, at least one of them above 0, "
            f"got {weights!r}"
        ]
    faults = []
    for term, weight in weights.items():
        if isinstance(weight, str) and weight[:1] in ("$", "@"):
            continue
        right = not isinstance(weight, bool) and isinstance(weight, int | float) and 0 <= weight < math.inf
        if not right:
            faults.append(f"{name}#{term} must be a number of at least 0, got {weight!r}")
    return faults


def all_references(config: Any) -> set[str]:
    """The ids that a part of a config refers to."""
    if isinstance(config, Mapping):
        return set().union(*(all_references(value) for value in config.values()))
    if isinstance(config, list):
        return set().union(*(all_references(value) for value in config))
    return set(ReferenceResolver.match_refs_pattern(config)) if isinstance(config, str) else set()


if __name__ == "__main__":
    print(table())
