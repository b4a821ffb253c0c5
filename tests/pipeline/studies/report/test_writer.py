"""What a study's report says and shows, for whole and for broken studies."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from pipeline.reporting import panels
from pipeline.studies.report import figures
from pipeline.studies.report.claims import claims
from pipeline.studies.report.findings import Findings
from pipeline.studies.report.galleries import CellSamples, error_limit, shared_slices
from pipeline.studies.report.writer import write_report

PNG = b"\x89PNG\r\n\x1a\n"
ENDS = (("affine", 0.0), ("affine", 5.0))


@pytest.fixture(autouse=True)
def _coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing the files is most of the time."""
    monkeypatch.setattr(panels, "DPI", 20)
    monkeypatch.setattr(figures, "DPI", 30)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Figure]:
    """Every figure that is saved, by file."""
    saved: dict[str, Figure] = {}
    save = Figure.savefig

    def note(self: Figure, path, **options):
        saved[re.sub(r"^\.(.*\.png)\.\d+.*$", r"\1", path.name)] = self
        save(self, path, **options)

    monkeypatch.setattr(Figure, "savefig", note)
    return saved


class Page(HTMLParser):
    """Tags, text and attributes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def write(results, folder, **options):
    return write_report(results, folder, title="Study", facts={"command": "x"}, **options)


def test_whole_study(tmp_path, make_results, make_samples, drawn):
    results = make_results(seeds=2, levels=(*ENDS, ("nonaffine", 5.0)), datasets={"phantom": 3}, slices=2)
    samples = make_samples(results)
    failures = [("cyclegan-3", "RuntimeError: loss is nan\nat step 3")]
    report = write(results, tmp_path / "report", galleries=samples, failures=failures, source="T1", target="T2")
    names = sorted(path.name for path in (tmp_path / "report").iterdir())
    galleries = [f"gallery_phantom_{level}.png" for level in ("0", "5", "non-affine-5")]
    tables = ["differences.csv", "falls.csv"]
    rest = ["levels_phantom.png", "mechanism.png", "quality.png", "report.html", "summary.csv", "summary.md"]
    assert names == sorted([*tables, *galleries, *rest])
    assert sorted(path.name for path in report.files) == names
    for path in report.files:
        if path.suffix == ".png":
            assert path.read_bytes().startswith(PNG)
    page = Page(report.html.read_text())
    assert len(page.of("img")) == 6
    assert all(image["src"].startswith("data:image/png;base64,") and image["alt"] for image in page.of("img"))
    assert len(page.of("table")) > 8
    assert "RuntimeError: loss is nan" in page.text
    text = (tmp_path / "report" / "summary.md").read_text()
    assert "| cyclegan-3 | RuntimeError: loss is nan at step 3 |" in text
    summary = pd.read_csv(tmp_path / "report" / "summary.csv")
    assert set(summary["method"]) == {"pix2pix", "cyclegan", "reggan"}

    titles = [axes.get_title() for axes in drawn["gallery_phantom_5.png"].axes if axes.get_title()]
    assert titles == ["T1", "T2", "pix2pix", "error", "reggan", "error"]
    limits = {
        image.get_clim()
        for name in galleries
        for axes in drawn[name].axes
        for image in axes.images
        if image.get_cmap().name == "inferno"
    }
    assert len(limits) == 1
    titles = [axes.get_title() for axes in drawn["levels_phantom.png"].axes if axes.get_title()]
    assert titles == ["T1", "T2", "level 0", "level 5", "non-affine"]
    captions = [axes.get_xlabel() for axes in drawn["gallery_phantom_5.png"].axes if axes.get_xlabel()]
    psnr = samples[0].load()
    assert len(psnr) == 6
    assert sum(caption.startswith("PSNR") for caption in captions) == 12


def test_page_needs_nothing_else_and_escapes_what_it_is_given(tmp_path, make_results):
    results = make_results(methods=["<b>bold</b>"], levels=ENDS, datasets={"<i>": 2}, slices=1)
    report = write_report(
        results,
        tmp_path,
        title="<script>alert(1)</script>",
        facts={"data": "<img src=x>"},
        failures=[("<u>", "<s>")],
    )
    page = Page(report.html.read_text())
    assert not {tag for tag, _ in page.tags} & {"script", "link", "b", "i", "u", "s", "iframe", "object"}
    for _, attributes in page.tags:
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,"))
    assert not re.search(r"url\(|@import|https?://", report.html.read_text())
    assert "<b>bold</b>" in page.text
    assert not re.search(r"<(b|i|u|s|script|img)\b", (tmp_path / "summary.md").read_text())


def test_sentences_follow_from_the_numbers(make_results):
    results = make_results(methods=["pix2pix", "reggan"], levels=ENDS, seeds=2, slices=1)
    better = results["method"] == "reggan"
    level = results["noise_level"]
    results["psnr"] = np.where(better, 25.0, 27.0) - level * np.where(better, 0.2, 1.4)
    results["endpoint_error"], results["identity_endpoint_error"] = np.where(better, 1.5, math.nan), 6.0
    results["folded"] = np.where(better, 0.001, math.nan)
    text = "\n".join(Findings(results).sentences())
    assert "At noise level 5 reggan is, against pix2pix, 4.00 dB [4.00, 4.00] better in PSNR" in text
    assert "that of pix2pix falls by 7.00 dB [7.00, 7.00]; that of reggan falls by 1.00 dB [1.00, 1.00] (0.14" in text
    assert "is off by 1.500 pixels [1.500, 1.500], 0.25 times the 6.000 of doing nothing; 0.10% of its pixels" in text
    results["psnr"] = np.where(better, 15.0, 27.0)
    text = "\n".join(Findings(results).sentences())
    assert "reggan is, against pix2pix, 12.00 dB [12.00, 12.00] worse in PSNR" in text
    assert "18.0" in text
    assert "above reggan" in text  # the intensity map
    assert "registration of pix2pix" not in text


def test_claims_are_judged_by_their_intervals(make_results):
    """The made-up Pix2Pix falls by 8 dB, RegGAN by 2; aligned they are 0.5 dB apart."""
    found = {claim.text: claim.verdict for claim in claims(Findings(make_results()))}
    assert found["pix2pix falls by at most 0.25 dB PSNR from level 0 to level 5"] == "contradicted"
    assert found["reggan is better than pix2pix at level 5, in PSNR"] == "supported"
    assert found["cyclegan is better than pix2pix at non-affine level 5, in PSNR"] in ("undecided", "contradicted")
    assert found["reggan at level 5 is at most 0.5 dB PSNR below pix2pix on aligned pairs"] == "contradicted"

    few = make_results(seeds=1, datasets={"phantom": 1}, levels=[("affine", 0.0), ("affine", 5.0)])
    assert {claim.verdict for claim in claims(Findings(few))} == {"no interval"}
    assert claims(Findings(make_results(levels=[("affine", 0.0)]))) == []


def test_an_interval_around_zero_is_said(make_results):
    results = make_results(methods=["pix2pix", "reggan"], levels=ENDS[:1], seeds=1, datasets={"d": 2}, slices=1)
    results["psnr"] = [20.0, 22.0, 21.0, 21.0]
    (sentence,) = [text for text in Findings(results).sentences() if "against pix2pix" in text]
    assert "in PSNR (the interval includes 0)" in sentence


def test_one_patient_and_one_seed_are_said(tmp_path, make_results):
    results = make_results(levels=ENDS, seeds=1, datasets={"d": 1}, slices=2)
    report = write(results, tmp_path)
    text = (tmp_path / "summary.md").read_text()
    assert "With one patient and one seed there are no intervals." in text
    assert not re.search(r"\d \[[-+\d]", text)
    assert "[" not in "".join(report.sentences)


@pytest.mark.parametrize(
    "options",
    [
        {"methods": ["cyclegan"]},
        {"methods": ["pix2pix"], "levels": ENDS[1:]},
        {"levels": [("nonaffine", 1.0), ("nonaffine", 3.0)]},
        {"levels": ENDS[:1], "seeds": 1, "datasets": {"d": 1}, "slices": 1},
    ],
    ids=["one method", "one method and level", "non-affine alone", "as little as can be"],
)
def test_part_of_a_study_is_enough(tmp_path, make_results, make_samples, options):
    results = make_results(**{"seeds": 1, "levels": ENDS, "datasets": {"d": 2}, "slices": 1, **options})
    report = write(results, tmp_path / "report", galleries=make_samples(results))
    assert any(path.name.startswith("gallery_") for path in report.files)
    assert report.sentences
    assert "nan" not in Page(report.html.read_text()).text


def test_no_results_at_all(tmp_path):
    report = write(pd.DataFrame(), tmp_path, failures=[("cell", "broke")])
    assert report.sentences == ["There are no results."]
    assert "broke" in report.html.read_text()


def test_missing_cells_are_named(tmp_path, make_results):
    results = make_results(levels=ENDS, seeds=2, datasets={"d": 2}, slices=1)
    gone = (results["method"] == "reggan") & (results["noise_level"] == 5)
    write(results[~gone], tmp_path)
    text = (tmp_path / "summary.md").read_text()
    assert "10 of 12 combinations of method, noise, data set and seed have results." in text
    assert "reggan, noise level 5, d, seed 0; reggan, noise level 5, d, seed 1." in text
    assert re.search(r"\| reggan \| 26\.\d\d \[.*\] \| - \|", text)


def test_samples_that_cannot_be_read_are_noted(tmp_path, make_results, make_samples):
    results = make_results(levels=ENDS, seeds=1, datasets={"d": 2}, slices=1)
    cells = make_samples(results)
    cells[0].path.write_bytes(b"PK broken")
    cells[1].path.unlink()
    write(results, tmp_path / "report", galleries=cells)
    text = (tmp_path / "report" / "summary.md").read_text()
    assert text.count("holds no samples that can be shown") == 2
    assert (tmp_path / "report" / "gallery_d_5.png").is_file()


def test_samples_of_wrong_shape_are_refused(tmp_path):
    image = np.zeros((2, 4, 4), np.float32)
    arrays = {"image": image, "label": image, "pred": image[:, :2], "case": np.array(["a", "b"])}
    np.savez(tmp_path / "samples.npz", **arrays, slice=np.arange(2), psnr=np.zeros(2))
    cell = CellSamples(tmp_path / "samples.npz", "reggan", 0.0, "affine", 0, "d")
    with pytest.raises(ValueError, match=r"pred has shape \(2, 2, 4\), expected \(2, 4, 4\)"):
        cell.load()


def test_galleries_show_slices_that_all_cells_have(make_results, make_samples):
    cells = make_samples(make_results(levels=ENDS[:1], seeds=1, datasets={"d": 2}, slices=2))
    first, second = (cell.load() for cell in cells[:2])
    second.pop(("patient00", 45))
    assert shared_slices([first, second]) == [("patient00", 40), ("patient01", 40), ("patient01", 45)]
    assert shared_slices([first], count=2) == [("patient00", 45), ("patient01", 45)]
    assert shared_slices([]) == []
    assert error_limit([first]) > 0.02


def test_old_pictures_do_not_stay(tmp_path, make_results):
    (tmp_path / "gallery_gone_0.png").write_bytes(PNG)
    write(make_results(levels=ENDS, seeds=1, datasets={"d": 1}, slices=1), tmp_path)
    assert not (tmp_path / "gallery_gone_0.png").exists()


def test_curves_tell_methods_apart_without_colour(tmp_path, make_results, drawn):
    results = make_results(methods=["pix2pix", "reggan"], seeds=2, datasets={"d": 2}, slices=1)
    write(results, tmp_path)
    axes = drawn["quality.png"].axes[1]
    assert axes.get_title() == "PSNR (dB)"
    lines = {container.get_label(): container.lines[0] for container in axes.containers}
    assert lines["pix2pix"].get_marker() != lines["reggan"].get_marker()
    assert lines["pix2pix"].get_linestyle() != lines["reggan"].get_linestyle()
    assert len(lines["reggan"].get_xdata()) == 6
    assert [text.get_text() for text in axes.get_xticklabels()] == [*"012345", "non-\naffine"]
    alone = [container.lines[0] for container in axes.containers if container.get_label() == "_nolegend_"]
    assert [line.get_linestyle() for line in alone] == ["None", "None"]
    assert min(line.get_xdata()[0] for line in alone) > 5.5
    legend = [text.get_text() for text in drawn["quality.png"].legends[0].get_texts()]
    assert legend[:2] == ["pix2pix", "reggan"]
