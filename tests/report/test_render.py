import copy
import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from memberscope.errors import RunFolderError
from memberscope.report import wording
from memberscope.report.records import records
from memberscope.report.render import render

VOID = {"meta", "img", "br", "input", "link", "hr"}
HOSTILE = "\"><script>alert('x')</script><img src=x onerror=alert(1)>"
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="


class Reader(HTMLParser):
    """Checks that elements are closed in order, and collects ids, links, sources and text."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.ids, self.links, self.sources, self.names, self.words = [], [], [], [], set(), []

    def handle_starttag(self, tag, attrs):
        self.names.add(tag)
        values = dict(attrs)
        assert not any(key.startswith("on") for key in values), values
        if "id" in values:
            self.ids.append(values["id"])
        if tag == "a":
            self.links.append(values["href"])
        if "src" in values:
            self.sources.append(values["src"])
        if tag not in VOID and tag not in ("line", "circle", "rect", "path"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.names.add(tag)

    def handle_endtag(self, tag):
        if tag in ("line", "circle", "rect", "path"):
            return
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def read(page):
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    assert len(reader.ids) == len(set(reader.ids))
    for link in reader.links:
        assert link.startswith("https://") or (link.startswith("#") and link[1:] in reader.ids), link
    for source in reader.sources:
        assert source.startswith("data:image/png;base64,")
    assert not reader.names & {"script", "iframe", "object", "embed", "link", "form"}
    assert "http" not in page.replace('http-equiv="', "").replace("http://www.w3.org/2000/svg", "")
    for drawing in re.findall(r"<svg .*?</svg>", page, re.S):
        root = ElementTree.fromstring(drawing)
        if root.get("class") == "chart":
            assert root.find("{http://www.w3.org/2000/svg}title").text
            assert root.find("{http://www.w3.org/2000/svg}desc").text
    assert "undefined" not in page.lower()
    assert "None" not in reader.text.replace("None of", "")
    return reader


def first_page(page):
    return page[page.index('<section class="first"') : page.index('id="decision"')]


def test_the_contents_name_every_section_in_its_order(make_results):
    page = render(make_results())
    contents = re.findall(r'href="#([\w-]+)"', page[page.index('class="contents"') : page.index("</nav>")])
    body = page[page.index("</nav>") :]
    sections = [found for found in re.findall(r'<h2 id="([\w-]+)"', body) if found != "references"]
    assert contents == sections  # the references stand with the glossary


def test_the_ladder_names_the_attack_that_ranks_best_where_it_is_another(make_results):
    results = make_results()
    text = read(render(results)).text
    row = next(r for r in results["ladder"] if r["status"] == "measured" and r["attack"] == r["auc_attack"])
    titles = {a["name"]: a["title"] for a in results["attacks"]}
    row["auc_attack"] = next(name for name in titles if name != row["attack"])
    assert "for the pairs" not in text
    assert f"for the pairs: {titles[row['auc_attack']]}" in read(render(results)).text


def test_labels_alone_are_compared_with_the_adversary_of_the_answer(make_results):
    """Not with the AUC of one attack that was picked by its true-positive rate and may rank worse."""
    results = make_results()
    rows = {r["adversary"]: r for r in results["ladder"] if r["status"] == "measured"}
    only = rows.pop("stranger, labels only")
    (answered,) = (r for r in rows.values() if r["attack"] == results["headline"])
    text = read(render(results)).text
    assert f"sees labels only: AUC {wording.estimate_text(only['auc'])}, against" in text
    assert f"{wording.estimate_text(answered['auc'])} of the {answered['adversary']}." in text


def test_a_probability_is_not_rounded_up_to_one_that_no_record_has():
    posterior = {"prior": 0.5, "largest": 0.8996, "sure": [{"above": 0.9, "records": 0}]}
    posterior["here"] = {"prior": 0.5, "bins": []}
    told = records({"exposed": {"posterior": posterior}})["posterior"]
    assert told["largest"].replace(wording.NBSP, " ") == "89.9 %"


def test_the_same_results_give_the_same_bytes(make_results):
    results = make_results()
    page = render(results)
    assert page == render(copy.deepcopy(results))
    assert page == render(json.loads(json.dumps(results)))


def test_the_page_is_well_formed_and_self_contained(make_results):
    page = render(make_results())
    read(page)
    assert '<html lang="en">' in page
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page
    assert "default-src 'none'" in page
    assert len(page.encode()) < 250_000


def test_a_hundred_classes_and_twenty_attacks_stay_below_half_a_megabyte(make_results):
    results = make_results(n=3000, attacks=20, classes=tuple(f"class number {i}" for i in range(100)))
    page = render(results)
    reader = read(page)
    assert len(page.encode()) < 500_000
    assert "the 40 most exposed of 100" in reader.text
    assert all(f"class number {i}" in reader.text for i in range(100))


def test_of_many_attacks_the_strongest_are_named_and_all_are_in_the_tables(make_results):
    page = render(make_results(n=500, attacks=40, classes=("a", "b")))
    text = read(page).text
    assert page.count('class="faint" d=') == 3 * 28
    assert "28 others" in text
    assert all(f"attack{i}" in text for i in range(40))
    assert len(page.encode()) < 500_000


def test_the_answer_gives_frequency_interval_and_guessing_in_one_sentence(make_results):
    results = make_results()
    row = [r for r in results["ladder"] if r.get("attack") == results["headline"]][-1]
    tpr = row["tpr"]["estimate"]
    text = read(render(results)).text
    found, low, high = (f"{round(10_000 * tpr[k]):,}" for k in ("value", "low", "high"))
    assert (
        f"Of every 10,000 images used in training, the strongest attack tested picks out about {found} "
        f"(95 % interval: {low} to {high}) while wrongly picking out at most 100 of every 10,000 images that were not "
        "used; guessing would pick out 100." in text.replace("\N{NO-BREAK SPACE}", " ")
    )
    assert f"The intervals allow for having picked the best of {row['corrected_for']} attacks." in text


def test_the_first_page_has_no_unexplained_abbreviation(make_results):
    reader = Reader()
    reader.feed(first_page(render(make_results())))
    for word in ("TPR", "FPR", "AUC", "ROC", "PPV", "CI", "DeLong"):
        assert word not in re.findall(r"[A-Za-z]+", reader.text)


def test_an_attack_that_cannot_be_told_from_guessing_is_called_so(make_results):
    results = make_results(strength=0.0)
    for row in results["ladder"]:
        if row["status"] == "measured":
            row["tpr"]["estimate"] |= {"value": 0.011, "low": 0.006, "high": 0.02}
            row["auc"] |= {"value": 0.503, "low": 0.49, "high": 0.52}
    text = read(render(results)).text
    assert "by this count the audit cannot tell the attack from guessing" in text
    assert "The interval includes 50" in text
    assert "can be recognised as training data" not in text


def test_every_adversary_has_its_place_on_the_ladder_with_the_reason_if_unmeasured(make_results):
    results = make_results()
    text = read(render(results)).text
    for row in results["ladder"]:
        assert row["adversary"] in text
        assert row["status"] == "measured" or f"not measured: {row['reason']}" in text
    assert "not measured: the model was trained in one place" in text


def test_every_attack_asked_for_is_listed_with_what_became_of_it(make_results):
    results = make_results()
    reader = read(render(results))
    for attack in results["attacks"]:
        assert attack["title"] in reader.text
        if attack["status"] != "run":
            assert attack["reason"] in reader.text
    assert "failed" in reader.text
    assert "skipped" in reader.text


def test_what_the_sample_does_not_support_is_never_printed_as_a_number(make_results):
    page = render(make_results(n=300))
    text = read(page).text.replace("\N{NO-BREAK SPACE}", " ")
    assert "n too small needs ≥ 1,000 non-members" in text
    assert "TPR at FPR 0.1 %" not in text


def test_too_small_for_any_rate_still_gives_an_answer(make_results):
    text = read(render(make_results(n=60, classes=("only",)))).text
    assert "too few images to say how many could be picked out" in text
    assert "of 100 such pairs" in text
    assert "Class only" not in text


def test_hostile_names_stay_text(make_results):
    results = make_results()
    results["dataset"]["name"] = HOSTILE
    results["dataset"]["classes"] = [HOSTILE] * 10
    results["run"] |= {"id": HOSTILE, "command": HOSTILE}
    results["settings"]["dataset"] = HOSTILE
    results["target"] |= {"model": HOSTILE, "origin": HOSTILE}
    results["policy"] = {
        "metric": "tpr", "fpr": 0.01, "threshold": 0.05, "owner": HOSTILE, "reason": HOSTILE, "verdict": "exceeds",
        "text": HOSTILE,
    }  # fmt: skip
    for attack in results["attacks"]:
        attack |= {"title": HOSTILE, "reason": HOSTILE}
        attack["card"] = dict.fromkeys(attack["card"], HOSTILE)
        for entry in (attack["evaluation"] or {"per_class": []})["per_class"]:
            entry["name"] = HOSTILE
    for check in results["checks"]:
        check |= {"title": HOSTILE, "text": HOSTILE, "docs": "javascript:alert(1)"}
    for row in results["ladder"]:
        row |= {"adversary": HOSTILE, "sees": HOSTILE, "reason": HOSTILE}
    page = render(results)
    reader = read(page)
    assert "<script" not in page
    assert "<img" not in page
    assert "javascript:alert(1)" not in reader.links


def test_a_check_links_to_its_explanation_when_it_has_an_address(make_results):
    results = make_results()
    results["checks"][0]["docs"] = "https://example.org/checks#mia001"
    assert '<a href="https://example.org/checks#mia001">' in render(results)


def test_a_problem_of_the_audit_is_a_banner_above_the_question(make_results):
    results = make_results()
    results["checks"][0] |= {"status": "problem", "text": "They differ."}
    page = render(results)
    assert page.index('class="banner"') < page.index("<h1>")
    text = read(page).text
    assert "Do not use the figures below as they stand. 1 check of the audit itself found a problem" in text
    assert 'class="banner"' not in render(make_results())


@pytest.mark.parametrize(
    ("verdict", "told"),
    [
        ("within", "Within the policy."),
        ("exceeds", "Exceeds the policy."),
        ("cannot tell", "This audit cannot tell."),
    ],
)
def test_a_verdict_is_given_only_against_a_policy(make_results, verdict, told):
    results = make_results()
    assert "No threshold was set for this audit, so no verdict is given." in read(render(results)).text
    results["policy"] = {
        "metric": "auc", "threshold": 0.6, "fpr": 0.001, "owner": "the board", "reason": "because", "verdict": verdict,
        "text": "AUC of loss is 0.61",
    }  # fmt: skip
    text = read(render(results)).text
    assert told in text
    assert "Set by the board. Reason: because" in text
    assert "no verdict is given" not in text


def test_answers_from_elsewhere_have_no_target(make_results):
    text = read(render(make_results(kind="score", n=500))).text
    assert "answers computed elsewhere" in text
    assert "the model itself was not seen" in text
    assert "Of every 10,000 records used in training" in text


def test_no_attack_no_answer(make_results):
    results = make_results()
    for attack in results["attacks"]:
        attack |= {"status": "failed", "reason": "it broke", "evaluation": None, "null": None, "histogram": None}
    results["headline"] = None
    results["exposed"] = {"worst_classes": [], "generalization_gap": None, "top_records": None}
    results["ladder"] = [r | {"status": "not measured", "reason": "nothing ran"} for r in results["ladder"]]
    page = render(results)
    text = read(page).text
    assert "No answer. None of the attacks asked for could be run" in text
    assert "This says nothing about the model." in text
    assert 'id="curves"' not in page


def test_a_model_without_history_or_hash_is_described_without_them(make_results):
    results = make_results()
    results["target"] |= {"history": [], "weights_sha256": None, "val_acc": None, "images_per_second": None}
    text = read(render(results)).text
    assert "there are no learning curves" in text
    assert "not available" in text


def test_pictures_are_shown_on_request_only_and_kept_small(make_results):
    results = make_results()
    assert "It holds no record and no record number." in read(render(results)).text
    record = {"index": 17, "class": "cat", "score": 4.2, "member": True, "png_base64": PIXEL}
    huge = record | {"png_base64": "A" * 900_000}
    evil = record | {"png_base64": '"><script>'}
    results["exposed"]["top_records"] = [record, huge, evil, record | {"png_base64": None, "index": 18}]
    page = render(results)
    reader = read(page)
    assert len(reader.sources) == 1
    assert 'alt="Record 17, class cat, member"' in page
    assert "2 further pictures left out" in reader.text
    assert "It holds no record" not in reader.text
    assert len(page.encode()) < 1_000_000


def test_missing_parts_are_left_out_not_invented(make_results):
    results = make_results()
    for attack in results["attacks"]:
        attack.pop("histogram", None)
    for key in ("files", "environment", "policy"):
        results.pop(key)
    results["run"].pop("seconds")
    results["checks"] = []
    text = read(render(results)).text
    assert "No check of the audit was made." in text
    assert "Scores under" not in text


def test_very_long_names_do_not_lengthen_the_first_page(make_results):
    results = make_results()
    results["dataset"]["name"] = "d" * 400
    results["target"]["model"] = "m" * 400
    page = render(results)
    assert "d" * 50 not in first_page(page)
    assert "m" * 50 not in first_page(page)
    assert "d" * 400 in page


@pytest.mark.parametrize("change", [{"schema_version": 2}, {"kind": "study"}, {"schema_version": None}])
def test_another_schema_is_refused(make_results, change):
    with pytest.raises(RunFolderError, match="schema version"):
        render(make_results() | change)


def test_figures_come_with_reading_and_numbers(make_results):
    page = render(make_results())
    assert page.count("<figure ") == page.count("The numbers of this figure") == page.count("How to read it:") == 7
