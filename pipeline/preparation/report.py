"""The report on a prepared data set: one page with its pictures inside, and a table."""

from __future__ import annotations

import base64
import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path

from pipeline.files import replacing
from pipeline.preparation.cases import Outcome, Settings, places

PAGE, TABLE = "report.html", "report.csv"
SHOWN = {
    "case": ("case", ""),
    "verdict": ("verdict", ""),
    "mean_mm": ("mean displacement, mm", ".2f"),
    "largest_mm": ("largest, mm", ".2f"),
    "through_plane_mm": ("through the plane, mm", ".2f"),
    "information_before": ("mutual information, header", ".3f"),
    "information_after": ("registered", ".3f"),
    "spread_mm": ("spread over the starts, mm", ".2f"),
    "agreeing_starts": ("starts that agree", ".0%"),
    "halves_mm": ("halves disagree by, mm", ".2f"),
    "overlap": ("overlap of the fields", ".0%"),
    "reasons": ("why", ""),
}
STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:1240px;padding:0 1rem;color:#1d2733;background:#fff}
h1{font-size:1.6rem}h2{font-size:1.15rem;margin:2rem 0 .4rem}table{border-collapse:collapse;width:100%;font-size:13px}
th,td{padding:.35rem .5rem;border-bottom:1px solid #d8dee6;text-align:right;vertical-align:top}
th{border-bottom:2px solid #8a97a6;text-align:right;font-weight:600}
td:first-child,th:first-child,td:last-child,th:last-child,td:nth-child(2),th:nth-child(2){text-align:left}
.good{color:#14663a}.doubtful{color:#8a5a00}.failed{color:#a51d1d}td.good,td.doubtful,td.failed{font-weight:600}
img{width:100%;background:#000}p.note{color:#4a5868}
"""


def write_report(
    output_dir: Path, outcomes: Sequence[Outcome], settings: Settings, modalities: tuple[str, str]
) -> None:
    """Write ``report.html`` and ``report.csv``: numbers of cases and no name."""
    with replacing(output_dir / TABLE) as beside, beside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, Outcome.columns())
        writer.writeheader()
        for outcome in outcomes:
            values = asdict(outcome)
            writer.writerow({key: f"{each:.4g}" if isinstance(each, float) else each for key, each in values.items()})
    with replacing(output_dir / PAGE) as beside:
        beside.write_text(_page(output_dir, outcomes, settings, modalities), encoding="utf-8")


def _cell(outcome: Outcome, key: str) -> str:
    value, form = getattr(outcome, key), SHOWN[key][1]
    text = "" if value is None else f"{value:{form}}" if form else str(value)
    kind = f' class="{outcome.verdict}"' if key == "verdict" else ""
    link = f'<a href="#{escape(text)}">{escape(text)}</a>' if key == "case" else escape(text)
    return f"<td{kind}>{link}</td>"


def _page(output_dir: Path, outcomes: Sequence[Outcome], settings: Settings, modalities: tuple[str, str]) -> str:
    counts = Counter(outcome.verdict for outcome in outcomes)
    summary = ", ".join(f'<b class="{each}">{counts[each]} {each}</b>' for each in ("good", "doubtful", "failed"))
    head = "".join(f"<th>{escape(title)}</th>" for title, _ in SHOWN.values())
    rows = "".join(f"<tr>{''.join(_cell(outcome, key) for key in SHOWN)}</tr>" for outcome in outcomes)
    limits = "; ".join(
        f"{name} {first:g} / {second:g}" for name, (first, second) in asdict(settings.thresholds).items()
    )
    sections = []
    for outcome in outcomes:
        picture = places(output_dir, outcome.case)["pictures"]
        name, verdict = escape(outcome.case), outcome.verdict
        title = f'<h2 id="{name}">{name}: <span class="{verdict}">{verdict}</span></h2>'
        why = f"<p>{escape(outcome.reasons)}</p>" if outcome.reasons else ""
        drawn = ""
        if outcome.mean_mm is not None and picture.is_file():
            data = base64.b64encode(picture.read_bytes()).decode()
            drawn = f'<img alt="checkerboards and contours of {name}" src="data:image/png;base64,{data}">'
        sections.append(title + why + drawn)
    moved = (
        "Displacements are those that the registration took out."
        if settings.registration
        else "Targets are where their headers have them; displacements are the residual that a registration finds."
    )
    source, target = (escape(each) for each in modalities)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Prepared pairs</title><style>{STYLE}</style></head><body>
<h1>Prepared pairs: {source} (source) and {target} (target)</h1>
<p>{len(outcomes)} cases: {summary}.</p>
<p class="note">{moved} They are taken over the voxels of the mask; mutual information is in nats, at voxels of 2 mm.
A case is doubtful / failed from these thresholds on (halves, spread in mm; overlap, information at least):
{escape(limits)}. Look at the pictures of every case: edges should go on from square to square, and contours of the
source should follow the target.</p>
<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>
{"".join(sections)}
</body></html>
"""
