"""The report: one HTML file without scripts and without network, a pure function of results.json."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memberscope.report import details, facts, proof, records, wording
from memberscope.report.document import Results, checked, headline, ranked, thing
from memberscope.report.federation import federation_page
from memberscope.report.figures import class_figure, histogram_figure, learning_figures, precision_figure, roc_figures
from memberscope.report.first_page import first_page

if TYPE_CHECKING:
    from jinja2 import Environment

GLOSSARY = (
    ("Member, non-member", "A record that the model was trained on; one that it was not trained on."),
    ("Attack", "A rule that gives every record a score: the higher, the more likely a member."),
    (
        "Adversary",
        "Somebody with stated knowledge. An attack is listed under the weakest adversary who could run it; a stronger "
        "one can run it too.",
    ),
    ("True-positive rate (TPR)", "The share of members that are called members."),
    (
        "False-positive rate (FPR)",
        "The share of non-members that are called members. An accuser who must rarely be wrong works at a low one.",
    ),
    ("ROC", "The true-positive rate against the false-positive rate over all thresholds of the score."),
    (
        "AUC",
        "Area under the ROC: the probability that a random member gets a higher score than a random non-member. 0.5 is "
        "guessing, 1 is certainty.",
    ),
    (
        "Interval",
        "A range that holds the true figure in the stated share of audits drawn alike. It covers the choice of "
        "records, not the luck of one training.",
    ),
    ("Advantage", "True-positive rate minus false-positive rate, at a threshold chosen on other records."),
    ("Balanced accuracy", "The mean of the shares of members and of non-members judged rightly; 0.5 is guessing."),
    ("Youden's J", "The largest advantage over all thresholds; a way to choose one."),
    ("Average precision", "Mean share of right accusations over all thresholds; depends on the share of members."),
    ("Generalisation gap", "Training accuracy minus test accuracy."),
    ("Cross-fitting", "An attack that learns from known members never scores a record that it learnt from."),
    (
        "Membership permuted",
        "The attack run again with members and non-members shuffled. There is nothing to find then: an AUC away from "
        "0.5 shows an artefact of the attack.",
    ),
    (
        "Blind baseline",
        "Telling members from non-members without the model. If that works, the two groups differ in themselves, and "
        "the figures of all attacks are inflated.",
    ),
    (
        "Canary",
        "A record that a model is likely to memorise, put into the training data or not by a coin, to see the worst "
        "case.",
    ),
    (
        "ε (epsilon), δ",
        "The strength of a promise of differential privacy: the smaller ε, the less one record can change what a "
        "training gives out; δ is the probability with which even that may fail.",
    ),
    (
        "Federation",
        "Clients train on records of their own; a server averages their models, round after round. A seat is a place "
        "in it: a client sees the global models, the server every client's update, or only their sum where secure "
        "aggregation is used.",
    ),
    (
        "Reference model",
        "A model that the adversary trains on similar data, to know the answers with a record in training (IN) and "
        "without it (OUT).",
    ),
    (
        "Threshold from reference models",
        "The score from which on an adversary accuses, chosen on reference models that play the target: the adversary "
        "knows their members, and not those of the target.",
    ),
    (
        "Separation",
        "How far a record's confidence lies apart in models trained with it and without it, in standard deviations: an "
        "estimate of the risk that it runs in any training by this recipe, not a bound.",
    ),
)


def render(results: Results) -> str:
    """Render the report of one run.

    Parameters
    ----------
    results
        The content of results.json. Nothing else is read; the same content gives the same bytes.

    Returns
    -------
    One HTML document: no scripts, nothing loaded from elsewhere, readable in light, dark, print and on a phone.

    Raises
    ------
    RunFolderError
        Not a results.json of this schema version.
    """
    results = checked(results)
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            page=first_page(results),
            results=results,
            thing=thing(results),
            headline=headline(results),
            ran=bool(ranked(results)),
            threat_model=details.threat_model(results),
            attack_figures=details.figures_of_attacks(results),
            thresholds=details.thresholds(results),
            calibrated=records.calibrated_headline(results),
            calibrated_attacks=records.calibrated_attacks(results),
            records=records.records(results),
            targets=records.targets(results),
            precision=details.precision_table(results),
            rejection=details.rejection_table(results),
            confusion=details.confusion(results),
            rocs=roc_figures(results),
            histogram=histogram_figure(results),
            precision_recall=precision_figure(results),
            share=details.share_of_members(results),
            documents=details.documents(results),
            learning=learning_figures(results),
            class_figure=class_figure(results),
            federation=federation_page(results),
            classes=details.class_table(results),
            target=facts.target_facts(results),
            reference=facts.reference_facts(results),
            data=facts.data_facts(results),
            checks=details.checks_by_section(results),
            canary_table=proof.canary_table(results),
            canary_attacks=proof.canary_attacks(results),
            bounds_table=proof.bounds_table(results),
            bounds_figure=proof.bounds_figure(results),
            proof_verdict=proof.verdict(results),
            options=facts.options(results),
            settings=facts.settings_table(results.get("settings"), ("Setting", "Value")),
            recipe=facts.settings_table((results.get("target") or {}).get("recipe"), ("Recipe", "Value")),
            environment=facts.settings_table(results.get("environment"), ("Environment", "Value")),
            cost=facts.cost_table(results),
            files=facts.files_table(results),
            cards=facts.cards(results),
            references=facts.references(results),
            pictures=facts.pictures(results),
            glossary=GLOSSARY,
        )
    )


def render_page(template: str, **content: Any) -> str:
    """Render another page in the same style, such as that of `memberscope compare`."""
    return _environment().get_template(template).render(**content)


def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("memberscope.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"duration": wording.duration, "plural": wording.plural, "weblink": weblink}
    return environment


def weblink(address: Any) -> str:
    """An address that may stand in a link: https only, else nothing."""
    text = str(address or "")
    return text if text.startswith("https://") else ""
