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
from pipeline.preparation.cases import Outcome, Settings, Thresholds, places

PAGE, TABLE = "report.html", "report.csv"
SHOWN = {
    "case": ("case", ""),
    "verdict": ("verdict", ""),
    "mean_mm": ("mean displacement, mm", ".2f"),
    "largest_mm": ("largest, mm", ".2f"),
    "through_plane_mm": ("through the plane, mm", ".2f"),
    "information_before": ("mutual information, header", ".2f"),
    "information_after": ("mutual information, registered", ".2f"),
    "spread_mm": ("spread over the starts, mm", ".2f"),
    "agreeing_starts": ("starts that agree", ".0%"),
    "halves_mm": ("halves disagree by, mm", ".2f"),
    "agreeing_blocks": ("blocks that agree", ".0%"),
    "overlap": ("overlap of the fields", ".0%"),
    "reasons": ("why", ""),
}
LIMITS = {
    "halves": "halves of the head disagree by, mm",
    "blocks": "blocks that agree, share",
    "spread": "spread over the starts, mm",
    "overlap": "overlap of the fields, share of the mask",
    "information": "mutual information, nats",
    "residual": "target lies off, not registered, mm",
}
STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:1400px;padding:0 1rem;color:#1d2733;background:#fff}
h1{font-size:1.6rem}h2{font-size:1.15rem;margin:2rem 0 .3rem}table{border-collapse:collapse;font-size:13px}
.wide{overflow-x:auto}.wide table{width:100%}.limits{margin:0 0 1rem}p{margin:.3rem 0 .6rem}
th,td{padding:.35rem .5rem;border-bottom:1px solid #d8dee6;text-align:right;vertical-align:top}
th{border-bottom:2px solid #8a97a6;vertical-align:bottom;font-weight:600}
td:first-child,th:first-child,.wide :is(td,th):is(:last-child,:nth-child(2)){text-align:left}
.good{color:#14663a}.doubtful{color:#8a5a00}.failed{color:#a51d1d}td.good,td.doubtful,td.failed{font-weight:600}
img{width:100%;background:#000}p.note,summary{color:#4a5868}summary{cursor:pointer;margin:.8rem 0}
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


def _limits(thresholds: Thresholds) -> str:
    """The thresholds as a table; of what has to be at least so much, the second number is the smaller one."""
    rows = "".join(
        f"<tr><td>{title} <code>--{name}</code></td>"
        f"<td>{'below' if first > second else 'from'} {first:g}</td><td>{second:g}</td></tr>"
        for name, title in LIMITS.items()
        for first, second in [getattr(thresholds, name)]
    )
    return f"<table class='limits'><tr><th>of each case</th><th>doubtful</th><th>failed</th></tr>{rows}</table>"


def _section(output_dir: Path, outcome: Outcome) -> str:
    picture = places(output_dir, outcome.case)["pictures"]
    name, verdict = escape(outcome.case), outcome.verdict
    title = f'<h2 id="{name}">{name}: <span class="{verdict}">{verdict}</span></h2>'
    if outcome.mean_mm is None:
        return f"{title}<p>{escape(outcome.reasons)}</p>"
    moved = "moved by" if outcome.registered else "not moved; lies off by"
    numbers = f"{moved} {outcome.mean_mm:.1f} mm on average, {outcome.largest_mm:.1f} mm at most"
    numbers += f", {outcome.through_plane_mm:.1f} mm of it through the plane; halves within {outcome.halves_mm:.1f} mm"
    if outcome.agreeing_blocks is not None:
        numbers += f", {outcome.agreeing_blocks:.0%} of the blocks agree"
    why = f"<p><b>{escape(outcome.reasons)}</b></p>" if outcome.reasons else ""
    drawn = ""
    if picture.is_file():
        data = base64.b64encode(picture.read_bytes()).decode()
        drawn = f'<img loading="lazy" alt="checkerboards and contours of {name}" src="data:image/jpeg;base64,{data}">'
    return f"{title}{why}<p class='note'>{numbers}</p>{drawn}"


def _page(output_dir: Path, outcomes: Sequence[Outcome], settings: Settings, modalities: tuple[str, str]) -> str:
    counts = Counter(outcome.verdict for outcome in outcomes)
    verdicts = ("failed", "doubtful", "good")
    summary = ", ".join(f'<b class="{each}">{counts[each]} {each}</b>' for each in verdicts[::-1])
    head = "".join(f"<th>{escape(title)}</th>" for title, _ in SHOWN.values())
    rows = "".join(f"<tr>{''.join(_cell(outcome, key) for key in SHOWN)}</tr>" for outcome in outcomes)
    worst_first = sorted(outcomes, key=lambda outcome: (verdicts.index(outcome.verdict), outcome.case))
    moved = (
        "Targets were moved onto their sources; displacements are those that the registration took out."
        if settings.registration
        else "Targets are where their headers have them; displacements are the residual that a registration finds."
    )
    source, target = (escape(each) for each in modalities)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Prepared pairs</title><style>{STYLE}</style></head><body>
<h1>Prepared pairs: {source} (source) and {target} (target)</h1>
<p>{len(outcomes)} cases: {summary}. {moved}</p>
<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>
<details><summary>What the numbers are, and the thresholds of the verdict</summary>
<p class="note">Displacements are over the voxels of the mask. Mutual information is in nats, at voxels of 2 mm.
<b>Spread</b>: how far the two best of several starts ended apart. <b>Halves</b>: how far half the head alone (left,
right, front, back, top, bottom) would be moved from the answer. <b>Blocks</b>: share of blocks of 32 mm inside the head
that fit best where they are, and not 4 mm beside it; another patient's scan has few of them, whatever its outline.
<b>Overlap</b>: share of the mask in both fields of view.</p>
{_limits(settings.thresholds)}</details>
<p class="note">Look at the pictures of every case, the worst come first: edges should go on from square to square, and
the yellow contours of the source should follow the target's edges.</p>
{"".join(_section(output_dir, outcome) for outcome in worst_first)}
</body></html>
"""
