"""Secrets reach no file, no log and no error."""

from __future__ import annotations

import json
import shutil

import yaml

from faults.kinds import cause
from faults.trial import Done, Trial, files_with, silent
from faults.written import STUDY

KIND = "secrets"
SECRET = "s3cr3tPassw0rd"
GONE = f"http://someone:{SECRET}@127.0.0.1:9"
# A server that is not there is given up after one try.
ONCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "2"}


def kept(trial: Trial, *done: Done, secret: str = SECRET, of: str = "") -> str:
    """Neither what was printed nor any file below the folder holds it."""
    for one in done:
        if secret in one.text:
            line = next(line for line in one.lines if secret in line)
            silent(f"printed: {line.replace(secret, '***')[:200]}")
    found = [name for name in files_with(trial.folder, secret) if not of or not name.endswith(of)]
    return "right" if not found else silent(f"in {', '.join(found[:4])}")


@cause(KIND, "a password in tracking_uri", reported=True)
def _(trial: Trial) -> str:
    return kept(trial, trial.train(settings={"tracking_uri": GONE}, env=ONCE))


@cause(KIND, "a password in MLFLOW_TRACKING_URI")
def _(trial: Trial) -> str:
    return kept(trial, trial.train(settings={"tracking_uri": None}, env={**ONCE, "MLFLOW_TRACKING_URI": GONE}))


@cause(KIND, "a user and a password in MLflow's own variables")
def _(trial: Trial) -> str:
    env = {**ONCE, "MLFLOW_TRACKING_USERNAME": "someone", "MLFLOW_TRACKING_PASSWORD": SECRET}
    return kept(trial, trial.train(settings={"tracking_uri": "http://127.0.0.1:9"}, env=env))


@cause(KIND, "a token in a query of tracking_uri")
def _(trial: Trial) -> str:
    return kept(trial, trial.train(settings={"tracking_uri": f"http://127.0.0.1:9/?token={SECRET}"}, env=ONCE))


@cause(KIND, "a password of a database that is not there")
def _(trial: Trial) -> str:
    return kept(trial, trial.train(settings={"tracking_uri": f"postgresql://me:{SECRET}@127.0.0.1:9/mlflow"}, env=ONCE))


@cause(KIND, "a password of a database whose driver is not there")
def _(trial: Trial) -> str:
    return kept(trial, trial.train(settings={"tracking_uri": f"mysql+pymysql://me:{SECRET}@127.0.0.1:9/m"}, env=ONCE))


@cause(KIND, "a password with signs that are percent-encoded")
def _(trial: Trial) -> str:
    done = trial.train(settings={"tracking_uri": f"http://me:p%40{SECRET}%2F@127.0.0.1:9"}, env=ONCE)
    return kept(trial, done)


@cause(KIND, "a password with an @ in it")
def _(trial: Trial) -> str:
    return kept(trial, trial.train(settings={"tracking_uri": f"http://me:p@{SECRET}@127.0.0.1:9"}, env=ONCE))


@cause(KIND, "a user's token without a password")
def _(trial: Trial) -> str:
    return kept(trial, trial.train(settings={"tracking_uri": f"http://{SECRET}@127.0.0.1:9"}, env=ONCE))


@cause(KIND, "an address that is refused: its scheme is misspelt")
def _(trial: Trial) -> str:
    done = trial.train(settings={"tracking_uri": f"htpp://me:{SECRET}@127.0.0.1:9"}, env=ONCE)
    kept(trial, done)
    return trial.refused(done, "tracking_uri")


@cause(KIND, "an address that cannot be taken apart")
def _(trial: Trial) -> str:
    done = trial.train(settings={"tracking_uri": f"http://me:{SECRET}@[::1:9"}, env=ONCE)
    kept(trial, done)
    return trial.right_or_said(done, lambda: False, "tracking_uri", "MLflow")


@cause(KIND, "an error elsewhere, with a password in tracking_uri")
def _(trial: Trial) -> str:
    done = trial.train(settings={"tracking_uri": GONE, "max_epochs": 0}, env=ONCE)
    kept(trial, done)
    return trial.refused(done, "max_epochs", anywhere=True)


@cause(KIND, "a fault in the middle of training, with a password in tracking_uri")
def _(trial: Trial) -> str:
    done = trial.train(settings={"tracking_uri": GONE, "learning_rate": 1000, "max_epochs": 6}, env=ONCE)
    kept(trial, done)
    return trial.refused(done, "finite", "learning_rate", anywhere=True)


@cause(KIND, "a password in the tracking_uri of an overlay")
def _(trial: Trial) -> str:
    overlay = trial.folder / "mine.json"
    overlay.write_text(json.dumps({"tracking_uri": GONE}))
    return kept(trial, trial.train(overlays=(overlay,), settings={"tracking_uri": None}, env=ONCE), of="mine.json")


@cause(KIND, "a password in the tracking_uri of an evaluation")
def _(trial: Trial) -> str:
    return kept(trial, trial.evaluate(tracking_uri=GONE, env=ONCE))


@cause(KIND, "a run that is resumed, with a password in tracking_uri")
def _(trial: Trial) -> str:
    settings = {"tracking_uri": GONE, "max_epochs": 1}
    first = trial.train(settings=settings, env=ONCE)
    return kept(trial, first, trial.train("--resume", "true", settings={**settings, "max_epochs": 2}, env=ONCE))


@cause(KIND, "a package of a run that had a password in tracking_uri")
def _(trial: Trial) -> str:
    trained = trial.train(settings={"tracking_uri": GONE}, env=ONCE)
    done = trial.script("package_bundle.py", "b.zip", "--run", "out", "--data-source", "made up")
    if done.code != 0:
        silent("it was not packaged", done)
    shutil.unpack_archive(trial.folder / "b.zip", trial.folder / "unpacked")
    return kept(trial, trained, done)


@cause(KIND, "a study with a password in its tracking-uri")
def _(trial: Trial) -> str:
    (trial.folder / "study.yaml").write_text(yaml.safe_dump(STUDY))
    done = trial.script(
        *("noise_study.py", "--study", trial.folder / "study.yaml", "--dataset-dir", f"made={trial.data}"),
        *("--output-dir", trial.folder / "study", "--jobs", "1", "--devices", "cpu", "--tracking-uri", GONE),
        env=ONCE,
    )
    return kept(trial, done)


@cause(KIND, "a password among the parameters that MLflow is told")
def _(trial: Trial) -> str:
    from mlflow import MlflowClient

    uri = trial.store
    settings = {"tracking_uri": uri, "run_name": "r", "source_modality": "T1"}
    overlay = trial.folder / "mine.json"
    overlay.write_text(json.dumps({"mine": {"_target_": "dict", "url": GONE}}))
    done = trial.train(overlays=(overlay,), settings=settings)
    if done.code != 0:
        return trial.refused(done, r"\bmine\b", anywhere=True)
    [run] = MlflowClient(uri).search_runs(["1"])
    if SECRET in json.dumps(run.to_dictionary()):
        silent("MLflow was told", done)
    return kept(trial, done, of="mine.json")
