"""How each command of the pages is run in the tests: where, and with which tiny settings.

A command that no rule matches fails ``test_every_command_has_a_rule``. Add a rule for it here, the particular ones
before the general: what the command is (`pattern`), where it runs (`how`) and the words that make it short (`add`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

TRAINING = (
    *("--device", "cpu", "--spatial_size", "32", "--max_epochs", "1", "--decay_epochs", "0", "--batch_size", "2"),
    *("--picture_interval", "1", "--val_interval", "1", "--network_def#generator#filters", "4"),
    *("--network_def#discriminator#filters", "4"),
)
CYCLEGAN = ("--network_def#generator#residual_blocks", "1", "--network_def#registration#channels", "[4,4]")
OTHERS = ("--spatial_size", "72")  # the discriminators of UNIT and MUNIT refuse images below 61 pixels
DATA = ("--dataset_dir", "mydata")
CPU = ("--device", "cpu")
METHODS = ("--dataset-dir", "mydata", "--device", "cpu", "--filters", "4", "--spatial-size", "72", "--only", "pix2pix")


@dataclass(frozen=True)
class Rule:
    """One kind of command.

    Attributes:
        pattern: regular expression of the whole command.
        how: "python" in a fork of a process with all imports; "shell"; "make" with an environment whose programs stand
            in for the installed ones; "server" until it answers; "label" in tests/label_app, in MONAI Label's
            environment; "elsewhere" by the test that ``add`` names, where it takes rights, programs or the internet;
            "named" where the text names a program and gives no command.
        add: words that go behind the command, or for "elsewhere" the test's file and a text in it.
        replace: what stands for what on the page.
        fast: whether it is in the default suite.
    """

    pattern: str
    how: str
    add: tuple[str, ...] = ()
    replace: dict[str, str] = field(default_factory=dict)
    fast: bool = False

    def matches(self, text: str) -> bool:
        """Whether a command is of this kind."""
        return re.fullmatch(self.pattern, text) is not None


TRAIN = r"python -m monai\.bundle run training --config_file "
TRAIN_JSON = TRAIN + r"bundles/reggan/configs/train\.json"
CHAIN = TRAIN + r"\"\[.*train\.json'"
USE = r"python -m monai\.bundle run --config_file \S*"
FILES = {"<file or folder>": "T1.nii.gz", "<folder>": "mydata", "$CONFIGS": "bundles/reggan/configs"}

RULES = (
    # training
    Rule(
        CHAIN + r",'\S*unet\.json'.*\]\" --dataset_dir mydata --noise_level 0 --run_name registered",
        "python",
        (*TRAINING, "--spatial_size", "48", "--output_dir", "outputs/registered"),
    ),
    Rule(
        CHAIN + r",'\S*anchored\.json'\]\" --start_from \S+ --dataset_dir mydata --noise_level 0",
        "python",
        (*CPU, "--max_epochs", "1", "--network_def#registration#channels", "[4,4]", "--output_dir", "outputs/anchored"),
    ),
    Rule(
        TRAIN_JSON + r" --start_from \S+ --dataset_dir .*",
        "python",
        ("--max_epochs", "1", "--output_dir", "outputs/tuned", *CPU),
        {**FILES, "models/model.pt": "model.pt"},
    ),
    Rule(
        TRAIN_JSON + r" --resume true",
        "python",
        (*TRAINING, *CYCLEGAN, *DATA, "--max_epochs", "2", "--noise_level", "0"),
    ),
    Rule(
        TRAIN_JSON + r"( --dataset_dir (mydata|prepared|<folder>) --noise_level 0)?",
        "python",
        (*TRAINING, *CYCLEGAN, *DATA, "--output_dir", "outputs/again"),
        {**FILES, "prepared": "mydata"},
    ),
    Rule(TRAIN_JSON + r" .*--output_dir \S+.*", "python", (*TRAINING, *CYCLEGAN, *DATA)),
    Rule(
        CHAIN + r",'\S*(paper|pix2pix)\.json'\]\"",
        "python",
        (*TRAINING, *CYCLEGAN, *DATA, "--spatial_size", "64", "--output_dir", "outputs/overlaid"),
        FILES,
    ),
    Rule(
        CHAIN + r",'\S*munit\.json','\S*cycle\.json'\]\"",
        "python",
        (*TRAINING, *OTHERS, *DATA, "--output_dir", "outputs/munit"),
        FILES,
    ),
    Rule(
        CHAIN + r",'\S*munit\.json','\S*cycle\.json'\]\" --resume true",
        "python",
        (*TRAINING, *OTHERS, *DATA, "--max_epochs", "2"),
        FILES,
    ),
    Rule(r"torchrun .*multi_gpu\.json.*", "elsewhere", ("tests/bundles/test_multi_gpu.py", "multi_gpu.json")),
    # evaluation and translation
    Rule(USE + r"inference\.json .*model\.onnx.*", "python", CPU, {**FILES, "outputs/reggan/model.onnx": "model.onnx"}),
    Rule(USE + r"inference\.json --image STUDY --series .*", "elsewhere", ("tests/bundles/test_dicom.py", "series")),
    Rule(USE + r"inference\.json --image new_T1\.nii\.gz", "python", CPU, fast=True),
    Rule(USE + r"inference\.json .*", "python", CPU, FILES),
    Rule(USE + r"evaluate\.json( --run_name munit-c\+r| --checkpoint \S+| --run_name reggan)?", "python", CPU, FILES),
    Rule(
        USE + r"evaluate\.json --checkpoint model\.pt --dataset_dir mydata --test_time_flips \"\[0\]\"", "python", CPU
    ),
    Rule(USE + r"evaluate\.json --run_name tuned --split validation", "python", CPU),
    Rule(
        r"python -m monai\.bundle run --config_file \"\[.*evaluate\.json'\]\" .*--output_dir OUT.*",
        "python",
        (*CPU, "--network_def#generator#filters", "4", *CYCLEGAN),
    ),
    Rule(
        r"python -m monai\.bundle run --config_file \"\[.*evaluate\.json'\]\" --output_dir outputs/map",
        "python",
        (*CPU,),
    ),
    Rule(r"python scripts/translate\.py FOLDER out .*", "python", CPU),
    Rule(
        r"python scripts/registration_accuracy\.py .*",
        "elsewhere",
        ("tests/scripts/test_registration_accuracy.py", "registration_accuracy"),
    ),
    Rule(r"python scripts/prepare\.py .*", "elsewhere", ("tests/bundles/test_dicom.py", "scripts/prepare.py")),
    Rule(
        r"(hd-bet|mri_synthstrip|bet) .*",
        "elsewhere",
        ("tests/pipeline/preparation/test_studies.py", "_bet_mask.nii.gz"),
    ),
    Rule(r"(storescu|dicomweb_client) .*", "elsewhere", ("tests/bundles/test_dicom.py", "C-STORE")),
    Rule(r"python scripts/translate_dicom\.py .*", "elsewhere", ("tests/bundles/test_dicom.py", "translate_dicom")),
    Rule(r"python tests/size\.py", "elsewhere", ("tests/test_packaging.py", "tests/size.py")),
    # the zoo
    Rule(
        r"python -m monai\.bundle ckpt_export .*",
        "python",
        (),
        {"models/model": "bundles/reggan/models/model", "configs/": "bundles/reggan/configs/"},
    ),
    Rule(r"python -m monai\.bundle verify_metadata .*", "elsewhere", ("tests/bundles/test_zoo.py", "metadata")),
    # scripts
    Rule(r"python scripts/\w+\.py --help", "python", fast=True),
    Rule(r"python scripts/methods\.py --list", "python", fast=True),
    Rule(r"python scripts/methods\.py --learn.*", "python", (*METHODS, "--steps", "6", "--evaluations", "2")),
    Rule(r"python scripts/methods\.py", "python", METHODS),
    Rule(r"python scripts/method_cost\.py .*", "python", ("--only", "pix2pix", "--steps", "1", "--size", "64")),
    Rule(
        r"python scripts/measure_starts\.py.*", "elsewhere", ("tests/pipeline/studies/test_starts.py", "report_starts")
    ),
    Rule(
        r"python scripts/measure_translation\.py.*",
        "elsewhere",
        ("tests/pipeline/studies/test_starts.py", "report_translation"),
    ),
    Rule(r"python scripts/benchmark\.py --gpu .*", "elsewhere", ("tests/scripts/test_benchmark.py", "gpu")),
    Rule(
        r"python scripts/benchmark\.py --only store", "elsewhere", ("tests/scripts/test_benchmark.py", "report_store")
    ),
    Rule(r"python scripts/benchmark\.py --only step", "elsewhere", ("tests/scripts/test_benchmark.py", "report_step")),
    Rule(
        r"python scripts/benchmark\.py --against .*",
        "elsewhere",
        ("tests/scripts/test_benchmark.py", "report_against"),
    ),
    Rule(
        r"python scripts/benchmark\.py",
        "python",
        ("--steps", "1", "--iterations", "2", "--rounds", "1"),
    ),
    Rule(
        r"python scripts/noise_study\.py .*--dataset-dir .*",
        "python",
        ("--devices", "cpu"),
        {"data/fold1": "mydata", "data/fold2": "DATA", "data/mine": "mydata"},
    ),
    Rule(r"python scripts/noise_study\.py .*", "python", ("--devices", "cpu", "--dataset-dir", "made=mydata")),
    Rule(
        r"python scripts/drift_study\.py.*",
        "python",
        (
            "--dataset-dir",
            "mydata",
            "--seeds",
            "0",
            "--epochs",
            "1",
            "--every",
            "1",
            "--spatial-size",
            "32",
            "--filters",
            "4",
        ),
    ),
    Rule(r"python scripts/describe_model\.py model\.pt", "python", fast=True),
    Rule(r"python scripts/export\.py .*", "python", ("--image", "T1.nii.gz", "--force")),
    Rule(r"python scripts/package_bundle\.py reggan\.zip", "python", ("--data-source", "made up", "--force")),
    Rule(
        r"python scripts/package_bundle\.py new\.zip .*",
        "python",
        ("--force",),
        {"outputs/label/reggan": "outputs/reggan"},
    ),
    Rule(r"python scripts/package_bundle\.py .*", "python", ("--force",)),
    Rule(
        r"python scripts/make_phantom\.py data/phantom",
        "python",
        ("--subjects", "1", "1", "1", "--resolution", "8"),
        {"data/phantom": "data/coarse"},
    ),
    Rule(r"python scripts/import_weights\.py .*", "elsewhere", ("tests/scripts/test_import_weights.py", "netG_A2B")),
    Rule(r"python -m pytest .*", "shell", ("-p", "no:cacheprovider", "-m", "'not slow'")),
    Rule(r"mlflow ui .*", "server"),
    Rule(r"python scripts/try_faults\.py --list", "python", fast=True),
    Rule(r"python scripts/try_faults\.py --kills", "shell", ("--only", "default", "--moments", "1", "--inside", "1")),
    Rule(r"python scripts/try_faults\.py --(slips|disks)", "shell"),
    Rule(r"python scripts/try_faults\.py", "shell", ("--sample",)),
    Rule(r"python -m pipeline\.settings", "shell"),
    # make, and what is installed
    Rule(r"make (train|lint|format|benchmark|test|test-slow|test-sample)", "make"),
    Rule(r"make (label|label-test|label-test-dicom)( STUDIES=data/studies)?", "make"),
    Rule(r"make \.venv-label/\.ready", "make"),
    Rule(r"source \.venv(-label)?/bin/activate", "shell"),
    Rule(
        r"pip install -c constraints\.txt -e '\.\[export\]'",
        "shell",
        ("--dry-run", "--no-deps", "--no-build-isolation", "--quiet"),
    ),
    Rule(r"conda env create --file environment\.yml.*", "elsewhere", ("tests/test_packaging.py", "environment.yml")),
    # a package, in another place
    Rule(r"unzip reggan\.zip && .*", "elsewhere", ("tests/scripts/test_package_bundle.py", "requirements.txt")),
    Rule(r"env/bin/python -m monai\.bundle .*", "elsewhere", ("tests/scripts/test_package_bundle.py", "start_from")),
    # the server
    Rule(r"grep -nE .* theirs\.json", "shell", (), {"theirs.json": "bundles/reggan/configs/munit.json"}),
    Rule(r"mkdir -p data/studies/labels/final", "shell"),
    Rule(r"cp data/phantom/\S+ .*", "shell"),
    Rule(r"cp outputs/reggan/model\.pt bundles/reggan/models/", "shell"),
    Rule(r"python -c \"import secrets.*", "shell"),
    Rule(
        r"curl 'http://127\.0\.0\.1:8042.*|curl .*SERIES_INSTANCE_UID.*",
        "elsewhere",
        ("tests/label_app/test_orthanc.py", "dicom-web"),
    ),
    Rule(
        r"python -m pipeline\.label_app\.serve --studies http.*",
        "elsewhere",
        ("tests/label_app/test_orthanc.py", "dicom-web"),
    ),
    Rule(r"curl .*http://127\.0\.0\.1:8000/.*", "label"),
    Rule(
        r"python -m pipeline\.label_app\.serve .*--token-file token",
        "elsewhere",
        ("tests/label_app/test_access.py", "token_file"),
    ),
    Rule(r"python -m pipeline\.label_app\.serve --studies data/studies --models reggan", "label"),
    Rule(
        r"monailabel start_server --app pipeline/label_app .*",
        "elsewhere",
        ("tests/label_app/conftest.py", "start_server"),
    ),
    Rule(
        r"monailabel (apps|start_server) .*monaibundle.*",
        "elsewhere",
        ("tests/label_app/test_stock_app.py", "monaibundle"),
    ),
    Rule(
        r"cp -r bundles/reggan apps/monaibundle/model/",
        "elsewhere",
        ("tests/label_app/test_stock_app.py", "monaibundle"),
    ),
    Rule(
        r"(apt-get install nginx|mkdir -m 755 /etc/nginx|openssl req|cp docs/reverse-proxy).*",
        "elsewhere",
        ("tests/label_app/test_reverse_proxy.py", "nginx"),
    ),
    Rule(r"apt-get install orthanc.*", "elsewhere", ("tests/label_app/test_orthanc.py", "rthanc")),
    Rule(r"dask worker tcp://node:8786 --nthreads 1", "elsewhere", ("tests/scripts/conftest.py", "dask_worker")),
    Rule(r"python -m monai\.bundle|monailabel start_server|python -m monailabel\.main start_server", "named"),
)


def rule_of(text: str) -> Rule | None:
    """The first rule that matches a command."""
    return next((rule for rule in RULES if rule.matches(text)), None)
