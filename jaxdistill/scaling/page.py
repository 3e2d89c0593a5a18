"""The page of a report: one HTML file that opens offline, in light and dark mode, on a wide or a narrow screen."""

import csv
import html as escape_html
import io
import re
from collections.abc import Mapping, Sequence

import numpy as np

from jaxdistill.scaling import style
from jaxdistill.scaling.fit import Fit, NotIdentified
from jaxdistill.scaling.identify import Parameter
from jaxdistill.scaling.table import Table

CAPTIONS: Mapping[str, str] = {
    "supervised-isoflop": "Loss against model size, one curve for each training budget. Points are runs, lines the "
    "law, rings its minima: left of a ring the model is too small for the budget, right of it it sees too few tokens. "
    "Look for points on their line.",
    "supervised-agreement": "What the supervised law says against what was measured. Points near the diagonal, and "
    "errors without a trend, mean that the law has the right shape. Rings are the runs of lowest loss, predicted from "
    "the others alone.",
    "supervised-intervals": "How far each parameter of the supervised law moves when the runs are drawn again. Bars "
    "hold 90 % of the draws. Grey parameters are not identified.",
    "supervised-clouds": "The same draws in pairs, the cross the law itself. Where a cloud is narrow and slanted, the "
    "runs know a combination of the two parameters better than either.",
    "distilled-isoflop": "Loss of students of equal training budgets, a panel for each teacher, as above.",
    "distilled-teachers": "Loss of each student against that of its teacher. Below the dashed line the teacher helped. "
    "On the dotted diagonal the student equals its teacher; a flat or rising left end is the capacity gap.",
    "distilled-agreement": "The same for the distillation law, whose students' own losses come from the supervised "
    "law.",
    "distilled-intervals": "The same for the distillation law.",
    "distilled-clouds": "And in pairs.",
    "advice-crossovers": "What the two laws advise for a student of the largest size of these runs. Above, its loss "
    "against all compute that is paid for; below, its gain over training alone, with the bootstrap's 90 % band: where "
    "a band holds zero, the runs do not tell. Scenarios differ in who pays for the teacher's logits and training.",
    "advice-contours": "The best allocation over student size and compute where both are paid for, far beyond the runs "
    "too: `jaxdistill allocate` says where that begins.",
}
COLUMNS = ("run", "kind", "protocol", "N", "D", "loss", "predicted", "teacher", "L_T", "flops", "status")
STYLE = """
:root { --page: #fff; --ink: #333; --faint: #767676; --rule: #e3e3e3; --card: #f6f7f8; --link: #0062a3 }
@media (prefers-color-scheme: dark) {
  :root { --page: #16181b; --ink: #dcdfe3; --faint: #9299a1; --rule: #33373c; --card: #1f2226; --link: #6cb8ef }
}
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 60rem; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, sans-serif }
h1 { font-size: 1.7rem; margin: .2em 0 }
h2 { font-size: 1.2rem; margin: 2.2em 0 .5em }
a { color: var(--link) }
.lead { color: var(--faint); margin-top: 0 }
.law { font: 1.05rem ui-monospace, monospace; background: var(--card); padding: .6em .8em; border-radius: 6px;
  overflow-x: auto }
.doubt { border-left: 3px solid #d55e00; padding: .3em .9em; background: var(--card) }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums }
th, td { padding: .3em .7em; border-bottom: 1px solid var(--rule); text-align: right; white-space: nowrap }
th.word, td.word, td.why { text-align: left }
td.why { white-space: normal; color: var(--faint); min-width: 16rem }
#runs th { cursor: pointer }
#runs th[data-order="1"]::after { content: " \\2191" }
#runs th[data-order="-1"]::after { content: " \\2193" }
figure { margin: 1.8rem 0 }
figure svg { display: block; width: 100%; height: auto; max-height: 32rem }
figcaption { font-size: .9rem; color: var(--faint); max-width: 44rem; margin-top: .5rem }
pre { overflow-x: auto; font-size: .8rem }
"""
SCRIPT = """
for (const head of document.querySelectorAll("#runs th")) head.onclick = () => {
  const order = head.dataset.order === "1" ? -1 : 1, column = head.cellIndex, body = head.closest("table").tBodies[0];
  for (const other of head.parentNode.cells) delete other.dataset.order;
  head.dataset.order = order;
  const key = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
  body.append(...[...body.rows].sort((a, b) => order * key(a).localeCompare(key(b), undefined, {numeric: true})));
};
"""


def html(
    table: Table,
    fits: Sequence[Fit | NotIdentified],
    summaries: Sequence[str],
    drawings: Mapping[str, str],
    doubts: Sequence[str],
) -> str:
    """The whole page.

    Args:
      table: every run, finished or not.
      fits: the supervised fit, and what became of the distillation fit.
      summaries: the terminal's words for each fit.
      drawings: SVG documents by name, drawn in the colours of `style`.
      doubts: sentences a reader should see before any number.
    """
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'><title>Scaling laws of these runs</title>",
        f"<style>{STYLE}</style></head><body><h1>Scaling laws of these runs</h1>{_lead(table)}",
        *(f"<p class='doubt'>{_text(doubt)}</p>" for doubt in doubts),
        *(_section(fit) + _figures(fit.kind, drawings) for fit in fits),
        f"<h2>What the laws advise</h2>{advice}" if (advice := _figures("advice", drawings)) else "",
        f"<h2>Runs</h2><p class='lead'>Click a heading to sort.</p>{_runs(table, fits)}",
        f"<details><summary>The same in plain text</summary><pre>{_text(chr(10).join(summaries))}</pre></details>",
        f"<script>{SCRIPT}</script></body></html>",
    ]
    return "\n".join(parts) + "\n"


def of_rows(title: str, rows: Sequence[Mapping], drawings: Mapping[str, str]) -> str:
    """A page of one table, a row each with its values by heading, and figures below it: SVG documents by caption."""
    columns = _columns(rows)
    head = "".join(f"<th{_class(name)}>{_text(name)}</th>" for name in columns)
    body = "".join("<tr>" + "".join(_value(row.get(name)) for name in columns) + "</tr>" for row in rows)
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        f"<meta name='viewport' content='width=device-width, initial-scale=1'><title>{_text(title)}</title>",
        f"<style>{STYLE}</style></head><body><h1>{_text(title)}</h1><p class='lead'>Click a heading to sort.</p>",
        f"<div class='scroll'><table id='runs'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>",
        *(
            f"<figure>{inline(f'figure{number}', svg)}<figcaption>{_text(caption)}</figcaption></figure>"
            for number, (caption, svg) in enumerate(drawings.items())
        ),
        f"<script>{SCRIPT}</script></body></html>",
    ]
    return "\n".join(parts) + "\n"


def csv_of(rows: Sequence[Mapping]) -> str:
    """The same table as CSV; blank where a row has no value of a heading."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _columns(rows), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _columns(rows: Sequence[Mapping]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _value(value: float | str | None) -> str:
    if isinstance(value, str):
        return f"<td class='word'>{_text(value)}</td>"
    return "<td data-value=''></td>" if value is None else f"<td>{value:.4g}</td>"


def inline(name: str, svg: str) -> str:
    """An SVG document as an element of a page: ids made unique by `name`, greys following the page's colours."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    for grey, colour in ((style.INK, "currentColor"), (style.FAINT, "var(--faint)"), (style.RULE, "var(--rule)")):
        svg = svg.replace(grey, colour)
    return svg.replace("#ffffff", "var(--page)").replace("<svg ", "<svg role='img' ", 1)


def _figures(section: str, drawings: Mapping[str, str]) -> str:
    """The figures whose name starts with that of the section, in the order of the captions."""
    return "".join(
        f"<figure>{inline(name, drawings[name])}<figcaption>{_text(caption)}</figcaption></figure>"
        for name, caption in CAPTIONS.items()
        if name in drawings and name.startswith(f"{section}-")
    )


def _lead(table: Table) -> str:
    counts = []
    for kind in ("supervised", "distilled"):
        runs = table.finished(kind)
        if len(runs):
            counts.append(f"{len(runs)} {kind} runs ({_range(runs, 'N')} parameters, {_range(runs, 'D')} tokens)")
    said = f"{' and '.join(counts)}. {table.set_aside()} Losses are validation cross-entropies in nats per token."
    return f"<p class='lead'>{_text(said)}</p>"


def _section(fit: Fit | NotIdentified) -> str:
    title = {"supervised": "The supervised law", "distilled": "The distillation law"}[fit.kind]
    if isinstance(fit, NotIdentified):
        return f"<h2>{title}</h2><p class='doubt'>Not fitted: {_text(fit.reason)}.</p>"
    error = 100 * np.abs(fit.relative_error_R)
    unknown = [parameter.symbol for parameter in fit.parameters if not parameter.identified]
    words = f"The law meets the {len(fit.runs)} runs it was fitted to within {error.mean():.2g} % on average. "
    if fit.held_out is None:
        words += "Too few runs would remain to test it on runs it has not seen. "
    else:
        unseen = 100 * np.abs(fit.held_out.relative_error)
        words += f"Fitted without the {len(unseen)} best runs, it misses those by {unseen.mean():.2g} % on average. "
    words += (
        f"These runs do not identify {', '.join(unknown)}." if unknown else "These runs identify every parameter of it."
    )
    how = f"{100 * fit.converged:.0f} % of the starts ended at this minimum. Choice of the law: {fit.why}."
    return (
        f"<h2>{title}</h2><p class='law'>{_greek(fit.law)}</p><p>{_greek(words)}</p>{_parameters(fit.parameters)}"
        f"<p class='lead'>{_text(how)}</p>"
    )


def _parameters(parameters: Sequence[Parameter]) -> str:
    rows = "".join(f"<tr><td class='word'>{_greek(p.symbol)}</td>{_verdict(p)}</tr>" for p in parameters)
    head = "<tr><th class='word'>parameter</th><th>value</th><th>90 % interval</th><th class='word'></th></tr>"
    return f"<div class='scroll'><table><thead>{head}</thead><tbody>{rows}</tbody></table></div>"


def _verdict(p: Parameter) -> str:
    if not p.identified:
        return f"<td></td><td></td><td class='why'>not identified by these runs: {_text(p.reason)}</td>"
    if p.held:
        return f"<td>{p.value:.4g}</td><td></td><td class='why'>held by the choice of the law</td>"
    return f"<td>{p.value:.4g}</td><td>{p.low:.4g} to {p.high:.4g}</td><td></td>"


def _runs(table: Table, fits: Sequence[Fit | NotIdentified]) -> str:
    predicted = {
        run: loss
        for fit in fits
        if isinstance(fit, Fit)
        for run, loss in zip(fit.runs["run"], fit.predicted_R, strict=True)
        if run
    }
    head = "".join(f"<th{_class(name)}>{name}</th>" for name in COLUMNS)
    body = "".join(
        "<tr>"
        + "".join(_cell(name, row | {"predicted": predicted.get(row["run"], np.nan)}) for name in COLUMNS)
        + "</tr>"
        for row in table.rows()
    )
    return f"<div class='scroll'><table id='runs'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _cell(name: str, row: Mapping) -> str:
    value = row[name]
    if isinstance(value, str):
        text = _text(value)
        linked = f"<a href='{_text(row['directory'])}'>{text}</a>" if name == "run" and row["directory"] else text
        return f"<td class='word'>{linked}</td>"
    if np.isnan(value):
        return "<td data-value=''></td>"
    shown = (
        f"{value:.4f}" if name in ("loss", "predicted", "L_T") else f"{value:.3g}" if value > 1e7 else f"{value:,.0f}"
    )
    return f"<td data-value='{value:.0f}'>{shown}</td>" if value > 1e4 else f"<td>{shown}</td>"


def _class(name: str) -> str:
    return " class='word'" if name in ("run", "kind", "protocol", "teacher", "status") else ""


def _range(runs: Table, name: str) -> str:
    return f"{style.count(runs[name].min())} to {style.count(runs[name].max())}"


def _text(words: str) -> str:
    return escape_html.escape(words, quote=True)


def _greek(words: str) -> str:
    """Escaped text in which alpha and its like are letters."""
    return re.sub(r"\b(alpha|beta|gamma|kappa)\b", r"&\1;", _text(words))
