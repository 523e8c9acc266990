"""The report of a directory of runs: one HTML file that needs nothing else, the same for the same records."""

from collections.abc import Callable

from analysis import law_sections, report, run_sections
from analysis.findings import Findings, Missing
from analysis.flags import FLAGS, REFUSING
from analysis.law_sections import sentence
from analysis.markup import Html, document, formula, items, join, tag

STRONGEST = 5  # caveats at the top; the others stand in their sections


SECTIONS: dict[str, Callable[[Findings], Html]] = {
    "The curves": law_sections.main,
    "The law": law_sections.law,
    "Three approaches": law_sections.approaches,
    "IsoFLOP valleys": law_sections.valleys,
    "Frontier and outlook": law_sections.ahead,
    "Held out": law_sections.held_out,
    "Residuals": law_sections.residuals,
    "Loss by level": run_sections.levels,
    "Other choices": law_sections.choices,
    "Cooldowns": run_sections.cooldowns,
    "Scores of pictures": run_sections.scores,
    "Scores by task": run_sections.tasks,
    "Pictures": run_sections.pictures,
    "Seeds and learning rates": run_sections.noise,
    "All runs": run_sections.runs,
    "Checklist": run_sections.answers,
    "Raw points": run_sections.data,
}


def render(found: Findings) -> str:
    """The page, in the order a reader wants: what was found, how far to trust it, what was done, the checklist."""
    titles = {title: "-".join(title.lower().split()) for title in SECTIONS}
    contents = tag(
        "nav", *(tag("a", title, href=f"#{place}") for title, place in titles.items()), aria_label="Contents"
    )
    body = [tag("section", tag("h2", title), SECTIONS[title](found), id=place) for title, place in titles.items()]
    name = f"{'Runs' if isinstance(found.law, Missing) else 'Scaling law'} of {found.name}"
    return document(name, tag("h1", name), *_headline(found), contents, *body)


def caveats(found: Findings) -> list[str]:
    """What speaks against the result, the strongest first."""
    law, hold_out = found.law, found.hold_out
    if isinstance(law, Missing):
        return []
    said = [FLAGS[flag] for flag in law.flags if flag in REFUSING]
    unresolved = [report.LETTERS.get(name, name) for name, shown in law.reported.items() if not shown]
    if unresolved:
        said.append(f"The exponents {', '.join(unresolved)} are not resolved to within 0.01: only intervals are given.")
    if not isinstance(found.compared, Missing) and found.compared.agree is False:
        said.append(found.compared.sentence)
    if isinstance(hold_out, Missing):
        said.append(f"Nothing was held out: {hold_out.why}.")
    elif hold_out.covered is False:
        said.append("The 95 % interval did not hold what was held out.")
    if not law.ci95:
        said.append(f"There are no intervals: {law.how}.")
    if not isinstance(found.envelope, Missing):
        said += [FLAGS[flag] for flag in found.envelope.flags]
    return [*said, *(FLAGS[flag] for flag in law.flags if flag not in REFUSING)]


def _headline(found: Findings) -> list[Html]:
    law = found.law
    if isinstance(law, Missing):
        return [tag("p", f"No law is fitted: {law.why}.", class_="lead"), _notes(found)]
    most = f", at most {law.ranges['flops'][1]:.3g} FLOPs a run".replace("e+", "e") if "flops" in law.ranges else ""
    depths = "of depth {:g} to {:g}, ".format(*law.ranges["depth"]) if "depth" in law.ranges else ""
    text = f", {depths}fitted to {law.n_points:,} points of {law.n_runs:,} {law.units}{most}"
    lead = [tag("b", formula(law.form.formula)), text]
    lead += [f": {report.exponents_in_words(law)}."] if law.reported else ["."]
    if not isinstance(found.hold_out, Missing):
        lead.append(" " + sentence(report.held_out_sentence(found.hold_out)))
    found_caveats = caveats(found)
    listed = items(found_caveats[:STRONGEST]) or tag("p", "No flag is raised.")
    return [tag("p", *lead, class_="lead"), tag("div", listed, class_="caveats"), _notes(found)]


def _notes(found: Findings) -> Html:
    return join(tag("p", " ".join(sentence(note) for note in found.notes), class_="soft")) if found.notes else Html()
