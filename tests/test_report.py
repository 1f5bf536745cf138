"""The page and the tables of a report: no name breaks them or is markup in them, and a report from elsewhere is checked
before it is drawn."""

import base64
import copy
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from robustgen import ReconstructionError, fortify
from robustgen.attacks import FGSM
from robustgen.evaluation import (
    draw_html,
    evaluate_detection,
    evaluate_detector_robustness,
    evaluate_robustness,
    load_report,
    report,
    report_figures,
    report_markdown,
    write_report,
)
from robustgen.evaluation.by_class import ClassAccuracy, accuracy_by_class, confusion
from robustgen.evaluation.report import draw_markdown
from robustgen.evaluation.report_pictures import _decode, draw_pictures
from robustgen.evaluation.report_tables import class_table
from robustgen.evaluation.score_summary import ScoreSummary
from robustgen.evaluation.summary import of_network

ODD = [
    "runs/$x_{",
    "$\\frac$ \x1b[31mred\x00 \udcff 漢字 \u202e <script>alert(1)</script> &lt;",
    "a|b\nc `code` ![x](http://y/z.png) [a](javascript:b) **b** __c__",
    "n" * 5000,
    "_hidden",
    "",
]


@pytest.fixture(scope="module")
def whole():
    """A report with every section, as it reads back."""
    torch.manual_seed(0)
    net = fortify(
        nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval(), ["1"], example_input=torch.rand(2, 1, 4, 4), init="random"
    )
    x = torch.rand(100, 1, 4, 4)
    y = net(x).argmax(1)
    y[:10] = (y[:10] + 1) % 3  # wrong from the start
    robustness = evaluate_robustness(
        net, x, y, eps=0.1, attacks=[FGSM(eps=0.1)], sweep_examples=20, class_names=["cat", "dog", "frog"]
    )
    detector = ReconstructionError(net).fit(x[:40]).calibrate(x[40:80])
    guarded = evaluate_detector_robustness(
        net, detector, x[80:], y[80:], eps=0.1, fpr=0.1, steps=1, formulations=["sum"], x_ood=x[:5]
    )
    scores = ScoreSummary(
        "mine", repr(detector), fpr=0.1, threshold=detector.calibration.threshold(0.1), n_calibration=40
    )
    scored = detector.score(x)
    scores.add(
        list(range(100)), x, scored, detector.calibration.p_value(scored), detector.calibration.flag(scored, 0.1)
    )
    found = {
        "format": 1,
        "title": "all of it",
        "command": "robustgen attack",
        "seed": 0,
        "remarks": ["a remark"],
        "environment": robustness.environment,
        "networks": [robustness.to_dict()],
        "detection": [evaluate_detection(detector, x[80:], {"others": 1 - x[:20]}, fpr=0.1)],
        "detector_robustness": [guarded.to_dict()],
        "scores": [scores.to_dict()],
        "story": [
            {"title": "A network", "text": "falls", "pictures_of": "network"},
            {"title": "A detector", "text": "flags", "inputs": scores.to_dict()["most"]},
        ],
    }
    return json.loads(json.dumps(found))


def minimal():
    """A report with as little as is allowed."""
    share = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 4}
    network = {"name": "n", "threat_model": {"norm": "Linf", "eps": 8 / 255}, "attacks": {}, "curve": []}
    network |= {"clean_accuracy": share, "worst_case_accuracy": share, "masking_tests": []}
    return {"format": 1, "networks": [network]}


def renamed(found, name):
    """The report with this name in place of every name."""
    found = copy.deepcopy(found)
    found |= {"title": name, "command": name, "remarks": [name], "story": [{"title": name, "text": name}]}
    (scores,) = found["scores"]
    scores |= {"data": name, "detector": name}
    for row in scores["most"] + scores["least"]:
        row["input"] = name
    network, (detection,), (guarded,) = found["networks"][0], found["detection"], found["detector_robustness"]
    network |= {"name": name, "notes": [name], "attacks": {name: network["attacks"]["FGSM"]}, "suite": name}
    network["class_names"] = [name] * 3
    network["masking_tests"][0] |= {"name": name, "detail": name, "advice": name, "verdict": "violated"}
    detection |= {"network": name, "detector": name, "populations": {name: detection["populations"]["others"]}}
    guarded |= {"name": name, "detector": name, "attacks": {name: next(iter(guarded["attacks"].values()))}}
    return found


@pytest.mark.parametrize("name", ODD, ids=range(len(ODD)))
def test_no_name_breaks_the_page_or_is_markup(whole, tmp_path, name):
    found = renamed(whole, name)
    page = write_report(found, tmp_path)
    text = page.read_text(encoding="utf-8")
    assert page.name == "report.html"
    assert text.count("<svg") == 4  # curve, scores, their ROC curves, histogram
    assert "cannot be drawn" not in text
    markdown = draw_markdown(load_report(tmp_path))
    assert markdown.encode()
    for drawn in (text, markdown):
        assert "<script" not in drawn
        assert not {c for c in drawn if ord(c) < 32} - {"\n", "\t"}
    assert "](" not in markdown.replace("]\\(", "")
    assert markdown.count("\n") == draw_markdown(renamed(whole, "n")).count("\n")  # no line of its own
    head = next(line for line in markdown.split("\n") if line.startswith("| Linf eps 0.1 |"))
    assert head.replace("\\|", "").count("|") == 3


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("a|b", "a\\|b"),
        ("a\nb", "a b"),
        ("<b> & c", "&lt;b&gt; &amp; c"),
        ("`a` *b* _c_ ~d~ $e$ \\", "\\`a\\` \\*b\\* \\_c\\_ \\~d\\~ \\$e\\$ \\\\"),
        ("![x](y) [a][b] [c]: d", "![x]\\(y) [a]\\[b] [c]\\: d"),
        ("50.0% [9.5%, 90.5%]", "50.0% [9.5%, 90.5%]"),
    ],
)
def test_markdown_shows_text_as_it_is(text, written):
    assert report_markdown.as_text(text) == written


def test_a_page_that_cannot_be_drawn_takes_nothing_away(whole, tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("no fonts\nhere")

    monkeypatch.setattr(report_figures, "draw_curves", broken)
    text = write_report(whole, tmp_path / "a").read_text()
    assert "this figure cannot be drawn (RuntimeError: no fonts here)" in text
    assert text.count("<svg") == 3
    monkeypatch.setattr(report, "draw_html", broken)
    with pytest.warns(UserWarning, match=r"report\.json is complete, but its page cannot be drawn: RuntimeError"):
        path = write_report(whole, tmp_path / "b")
    assert path == tmp_path / "b" / "report.json"
    assert load_report(path)["networks"] == whole["networks"]


def fields(value, path=()):
    """The path of every field of JSON."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, part in items:
        yield from fields(part, (*path, key))


def changed(found, path, value):
    """A copy with another value at ``path``; the field is taken out if that is ``...``."""
    found = copy.deepcopy(found)
    inner = found
    for key in path[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return found


def outcome(path):
    """The report that is read, or the line that refuses it."""
    try:
        return load_report(path)
    except ValueError as error:
        return str(error)


def test_a_report_from_elsewhere_is_drawn_or_refused_in_one_line(whole, tmp_path, monkeypatch):
    """Whatever stands in whichever field."""
    monkeypatch.setattr(report_figures, "as_svg", lambda draw: "<svg></svg>")  # one that fails leaves its place
    path = tmp_path / "report.json"
    small = changed(whole, ("detector_robustness", 0, "per_example"), {})
    wrong = [..., None, [], {}, "x", -1, 10**400, 1e308, [[[]]], {"a": None}]
    refused = 0
    for k, where in enumerate(p for p in fields(small) if p):
        for value in (wrong[k % len(wrong)], wrong[(7 * k + 3) % len(wrong)]):
            path.write_text(json.dumps(changed(small, where, value)))
            found = outcome(path)
            if isinstance(found, str):
                refused += 1
                assert found.startswith(f"{path}: ")
                assert "\n" not in found
            else:
                draw_markdown(found)
                draw_html(found)
    assert refused > 100


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("detection", 0, "in_distribution"), [1e308, -1e308]),
        (("detection", 0, "in_distribution"), []),
        (("networks", 0, "curve"), [{"eps": e, "value": 0.5, "low": 1, "high": 0} for e in (1e308, -1e308)]),
        (("networks", 0, "threat_model", "eps"), -1e308),
        (("networks", 0, "masking_tests", 0, "verdict"), "x onclick=y"),
        (("networks", 0, "pictures"), {}),
    ],
)
def test_numbers_that_no_figure_can_show_leave_the_tables(whole, tmp_path, where, value):
    (tmp_path / "report.json").write_text(json.dumps(changed(whole, where, value)))
    page = draw_html(load_report(tmp_path))
    assert "Accuracy under attack" in page
    assert "onclick" not in page


@pytest.mark.parametrize(
    ("pictures", "line"),
    [
        ({"shape": [2, 10**6, 1, 10**6, 10**6]}, "shape must be"),
        ({"shape": [2, 8, 1, 2**19, 2**19]}, "uint8 holds 256 values, not the"),
        ({"shape": [2, 8, 2, 4, 4]}, "1 or 3 channels"),
        ({"uint8": "AAAA"}, "uint8 holds 3 values"),
        ({"uint8": "é"}, "uint8 is not base64"),
        ({"uint8": base64.b64encode(bytes(257)).decode()}, "uint8 holds 257 values"),
        ({"ids": [1]}, "ids must have one entry for each"),
        ({"predicted": [1]}, "predicted must have one entry for each"),
    ],
)
def test_pictures_are_as_large_as_they_say(whole, tmp_path, pictures, line):
    found = changed(whole, ("networks", 0, "pictures"), whole["networks"][0]["pictures"] | pictures)
    (tmp_path / "report.json").write_text(json.dumps(found))
    with pytest.raises(ValueError, match=line) as error:
        load_report(tmp_path)
    assert "networks[0].pictures" in str(error.value)


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("networks", 0, "clean_accuracy", "value"), 7.5),
        (("networks", 0, "clean_accuracy", "n"), -1),
        (("detection", 0, "populations", "others", "auroc"), -0.1),
        (("story", 1, "inputs", 0, "p_value"), 2),
    ],
)
def test_shares_and_counts_out_of_range_are_refused(whole, tmp_path, where, value):
    found = copy.deepcopy(whole)
    part = found
    for key in where[:-1]:
        part = part[key]
    part[where[-1]] = value
    (tmp_path / "report.json").write_text(json.dumps(found))
    with pytest.raises(ValueError, match=rf"{where[-1]} must be a (whole )?number from 0 to"):
        load_report(tmp_path)


def test_outcomes_of_examples_go_together(whole, tmp_path):
    path = ("networks", 0, "per_example", "predicted", "worst_case")
    (tmp_path / "report.json").write_text(json.dumps(changed(whole, path, [0])))
    with pytest.raises(ValueError, match=r"per_example\.predicted\.worst_case must have as many entries as labels"):
        load_report(tmp_path)


@pytest.mark.parametrize("found", [minimal(), {"format": 1, "networks": []}], ids=["network", "nothing"])
def test_a_minimal_report_has_a_page(found, tmp_path):
    (tmp_path / "report.json").write_text(json.dumps(found))
    found = load_report(tmp_path)
    assert "</html>" in draw_html(found)
    assert draw_markdown(found)


def test_a_report_of_before_has_a_page(whole, tmp_path):
    """Of the same format, without what was added since."""
    old = copy.deepcopy(whole)
    (network,) = old["networks"]
    for name in ("class_names", "suite"):
        del network[name]
    for part, names in (("per_example", ["predicted"]), ("pictures", ["labels", "predicted"])):
        for name in names:
            del network[part][name]
    del old["scores"], old["story"]
    (tmp_path / "report.json").write_text(json.dumps(old))
    page = draw_html(load_report(tmp_path))
    assert "right and fell" in page
    assert "By class" in page
    assert 'class="confusion"' not in page


def test_classes_are_in_the_order_that_the_page_states(whole):
    """Outcomes of three classes, of which the second and third stand alike under attack."""
    assert "weakest class first: by its accuracy in the worst case, of equal ones by the clean one" in draw_html(whole)
    classes = [ClassAccuracy("a", 4, 4, 3), ClassAccuracy("b", 4, 4, 1), ClassAccuracy("c", 8, 6, 2)]
    head, rows = class_table(classes)
    assert head == ["class", "examples", "clean", "worst case"]
    assert rows == [["c", 8, "75.0%", "25.0%"], ["b", 4, "100.0%", "25.0%"], ["a", 4, "100.0%", "75.0%"]]


class TestTheSentence:
    def network(self, eps=8 / 255, **changes):
        network = minimal()["networks"][0]
        network["threat_model"]["eps"] = eps
        network["clean_accuracy"] = network["clean_accuracy"] | {"value": 0.26}
        network["worst_case_accuracy"] = network["clean_accuracy"] | {"value": 0.06}
        tests = [{"name": f"t{k}", "verdict": "holds", "detail": ""} for k in range(14)]
        tests += [{"name": "not", "verdict": "not run", "detail": ""}] * 4
        outcomes = self.outcomes(n=10)
        new = {"suite": "standard", "attacks": {"A": {}}, "masking_tests": tests, "per_example": outcomes}
        return network | new | {"class_names": ["cat", "dog"]} | changes

    def outcomes(self, n):
        """n cats, all of which fall, and n dogs, one of which does."""
        fell = [True] * n + [True] + [False] * (n - 1)
        return {"labels": [0] * n + [1] * n, "clean_correct": [True] * 2 * n, "broken_by": {"A": fell}}

    def test_says_the_numbers(self):
        found = of_network(self.network())
        assert found.sentence == (
            "26 % clean, 6 % under the standard suite at Linf 8/255; 14 tests hold, 0 violated, 4 not run; "
            "weakest class cat."
        )
        assert found.kind == "holds"
        assert "upper bounds" in found.verdict

    @pytest.mark.parametrize(
        ("changes", "words", "kind"),
        [
            ({"suite": None}, "6 % under A at", "holds"),
            ({"suite": None, "attacks": {"A": {}, "B": {}}}, "6 % under 2 attacks at", "holds"),
            ({"attacks": {}}, "no attack was finished", "holds"),
            ({"unfinished": {"Square": "not begun"}}, "under 1 attack of an unfinished evaluation", "holds"),
            ({"notes": ["wrong preprocessing"]}, "14 tests hold", "violated"),
            ({"masking_tests": []}, "no tests of the attacks", "not run"),
            (
                {"masking_tests": [{"name": "a", "verdict": "violated", "detail": ""}]},
                "0 tests hold, 1 violated, 0 not run",
                "violated",
            ),
            ({"class_names": None}, "weakest class 0.", "holds"),
            ({"eps": 0.3}, "at Linf 0.3;", "holds"),
        ],
    )
    def test_says_what_else_there_is(self, changes, words, kind):
        found = of_network(self.network(**changes))
        assert words in found.sentence
        assert found.kind == kind

    def test_names_no_weakest_class_where_all_are_alike(self):
        outcomes = self.outcomes(n=10) | {"broken_by": {"A": [True] * 20}}
        assert "weakest" not in of_network(self.network(per_example=outcomes)).sentence

    def test_names_no_weakest_class_of_few_examples(self):
        assert "weakest" not in of_network(self.network(per_example=self.outcomes(n=9))).sentence

    def test_stands_on_top_and_before_it_names_the_network_where_there_are_several(self, whole):
        sentence = of_network(whole["networks"][0]).sentence
        page = draw_html(whole)
        assert page.index(sentence) < page.index("Accuracy under attack")
        twice = whole | {"networks": [whole["networks"][0], whole["networks"][0] | {"name": "other"}]}
        assert f"other: {sentence}" in draw_html(twice)


def test_violated_tests_come_first_and_those_that_hold_are_folded(whole):
    found = copy.deepcopy(whole) | {"story": []}
    tests = found["networks"][0]["masking_tests"]
    for k, test in enumerate(tests):
        test |= {"name": f"test number {k}.", "verdict": "holds"}
    tests[-1] |= {"verdict": "violated", "advice": "do better"}
    tests[0] |= {"verdict": "not run"}
    page = draw_html(found)
    violated = page.index(f"test number {len(tests) - 1}.")
    assert violated < page.index("do better") < page.index("data:image") < page.index("Accuracy under attack")
    for k in range(len(tests) - 1):
        before = page[: page.index(f"test number {k}.")]
        assert before.count("<details") - before.count("</details") == 1
    lines = [line for line in draw_markdown(found).split("\n") if "test number" in line]
    assert f"test number {len(tests) - 1}." in lines[0]


class TestPictures:
    def test_say_from_what_to_what(self, whole):
        network = whole["networks"][0]
        found = draw_pictures(network)
        assert found["fell"]
        outcomes, page = network["per_example"], draw_html(whole)
        for item in found["items"]:
            k = outcomes["ids"].index(item["id"])
            assert outcomes["clean_correct"][k]
            names = [network["class_names"][c] for c in (outcomes["labels"][k], outcomes["predicted"]["worst_case"][k])]
            assert item["caption"] == " to ".join(names)
            assert names[0] != names[1]
            assert f"<b>{item['caption']}</b>" in page

    @pytest.mark.parametrize(("eps", "times"), [(8, 31), (1, 255), (200, 1)])
    def test_amplify_the_difference_until_it_is_seen(self, whole, eps, times):
        clean = torch.full((1, 1, 4, 4), 100, dtype=torch.uint8)
        adversarial = clean.clone()
        adversarial[..., 0], adversarial[..., 1] = 100 + min(eps, 155), 100 - min(eps, 100)
        if eps == 200:
            adversarial[..., 0] = 255
        both = torch.stack([clean, adversarial])
        pictures = {"shape": list(both.shape), "uint8": base64.b64encode(both.numpy().tobytes()).decode()}
        found = draw_pictures({"pictures": pictures})
        assert found["amplified"] == times
        drawn = pixels(found["items"][0]["difference"])
        assert len(set(drawn[0])) == 3
        assert drawn[0][2] == 128  # unchanged
        assert drawn[0][0] > 200
        assert drawn[0][1] < 90

    def test_scored_inputs_are_kept_small(self):
        from robustgen.evaluation.report_pictures import encode_picture

        assert encode_picture(torch.rand(3, 500, 250))["shape"] == [3, 96, 48]
        small = torch.rand(1, 5, 7)
        assert (_decode(encode_picture(small)) == small.mul(255).round().numpy()).all()
        assert encode_picture(torch.rand(7)) is None
        assert encode_picture(torch.rand(2, 5, 5)) is None


def pixels(address):
    """Of a grey image in an address."""
    from PIL import Image

    image = Image.open(io.BytesIO(base64.b64decode(address.removeprefix("data:image/png;base64,"))))
    width = image.size[0]
    values = list(image.tobytes())
    return [values[k : k + width] for k in range(0, len(values), width)]


def test_the_confusion_matrix_counts_every_example_once(whole):
    network = whole["networks"][0]
    for which, accuracy in (("clean", "clean_accuracy"), ("worst_case", "worst_case_accuracy")):
        found = confusion(network, which)
        assert found.names == ["cat", "dog", "frog"]
        assert sum(map(sum, found.counts)) == 100
        right = sum(found.counts[k][k] for k in range(3))
        assert right == round(100 * network[accuracy]["value"])
    by_class = accuracy_by_class(network)
    assert [sum(row) for row in found.counts] == [c.n for c in by_class]
    assert [found.counts[k][k] for k in range(3)] == [c.standing for c in by_class]
    page = draw_html(whole)
    cells = re.findall(r'<td class="(?:right|wrong)"[^>]*>(\d+)</td>', page)
    assert sum(map(int, cells)) == 100


def test_of_many_classes_the_most_frequent_confusions_are_listed(whole):
    labels = list(range(30)) * 2
    outcomes = {"labels": labels, "predicted": {"clean": labels, "worst_case": [7] * 60}}
    found = changed(whole, ("networks", 0, "per_example"), outcomes)
    page = draw_html(found)
    assert 'class="confusion"' not in page
    assert "The most frequent of 29 confusions" in page


def test_a_verdict_of_another_spelling_does_not_pass_for_one_that_holds():
    report = json.loads((Path(__file__).parent.parent / "results" / "demo" / "report.json").read_text())
    before = draw_html(report).count('<li class="violated">')
    report["networks"][0]["masking_tests"][0]["verdict"] = "Violated"
    assert draw_html(report).count('<li class="violated">') == before + 1


# What is kept of a stream of scores: exact counts at the threshold, both ends, and no more the longer it is.


def summary(scores, threshold=1.0, x=None, parts=1):
    """Of ``scores``, told in so many batches."""
    found = ScoreSummary("mine", "Detector()", fpr=0.1, threshold=threshold, n_calibration=9)
    scores = torch.as_tensor(scores, dtype=torch.float64)
    x = torch.zeros(len(scores), 3) if x is None else x
    for i in torch.arange(len(scores)).chunk(parts):
        found.add(i.tolist(), x[i], scores[i], torch.full((len(i),), 0.5), scores[i] > threshold)
    return found


SCALES = {
    "usual": lambda z: z,
    "tiny": lambda z: 1e-9 * z,
    "likelihoods": lambda z: -1e4 + 50 * z,
    "heavy tails": lambda z: z.sinh().sinh(),
}


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
def test_the_histogram_counts_every_score_and_none_on_the_wrong_side(scale):
    scores = scale(torch.randn(3000, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    threshold = scores.quantile(0.9).item()
    entry = summary(scores, threshold, parts=7).to_dict()
    histogram = entry["histogram"]
    edges, counts = np.array(histogram["edges"]), np.array(histogram["counts"])
    assert counts.sum() + histogram["below"] + histogram["above"] == 3000
    assert histogram["below"] + histogram["above"] <= 32
    middle = (edges[1:] + edges[:-1]) / 2
    assert counts[middle > threshold].sum() + histogram["above"] == (scores > threshold).sum()
    assert 20 <= len(counts) <= 110
    exact, _ = np.histogram(scores, edges)
    assert np.abs(exact - counts).sum() <= 0.05 * 3000  # a score far from the threshold may lie in the next bin
    assert entry["flagged"]["value"] == pytest.approx(0.1)


def test_it_does_not_depend_on_batches():
    scores = torch.randn(500, generator=torch.Generator().manual_seed(1))
    assert summary(scores, parts=1).to_dict() == summary(scores, parts=50).to_dict()


def test_the_ends_are_kept_with_their_pictures():
    scores = torch.randperm(100, generator=torch.Generator().manual_seed(0)).double()
    entry = summary(scores, x=scores[:, None, None, None].expand(100, 1, 2, 2) / 255, parts=9).to_dict()
    assert [row["score"] for row in entry["most"]] == list(range(99, 91, -1))
    assert [row["score"] for row in entry["least"]] == list(range(8))
    assert all(scores[row["input"]] == row["score"] for row in entry["most"] + entry["least"])
    pictures = summary(torch.tensor([3.0]), x=torch.full((1, 1, 2, 2), 0.2)).to_dict()["most"][0]["picture"]
    assert pictures == {"shape": [1, 2, 2], "uint8": "MzMzMw=="}


def test_of_few_inputs_none_is_at_both_ends():
    entry = summary([3.0, 1.0, 2.0]).to_dict()
    assert [row["input"] for row in entry["most"]] == [0, 2]
    assert [row["input"] for row in entry["least"]] == [1]


def test_memory_does_not_grow_with_the_stream():
    found = summary(torch.randn(1000))
    sizes = []
    for k in range(2, 60):
        scores = torch.randn(5000, generator=torch.Generator().manual_seed(k))
        found.add(list(range(5000)), torch.zeros(5000, 3), scores, torch.ones(5000), scores > 1)
        sizes.append(len(found._counts))
    assert found._n > 290_000
    assert sizes[-1] < 1.3 * sizes[len(sizes) // 2] < 40_000
    assert len(found._most) == len(found._least) == 8


@pytest.mark.parametrize(
    ("scores", "threshold"),
    [([], 1.0), ([2.0], 1.0), ([1.0, 1.0], 1.0), ([float("inf"), -float("inf"), 0.0], 1.0), ([1.0], float("inf"))],
)
def test_odd_scores_have_a_page(scores, threshold):
    entry = summary(scores, threshold).to_dict()
    assert entry["n"] == len(scores)
    histogram = entry["histogram"]
    if scores:
        assert sum(histogram["counts"]) + histogram["below"] + histogram["above"] == len(scores)
    entry = json.loads(json.dumps(entry, allow_nan=False))
    page = draw_html({"networks": [], "scores": [entry]})
    assert "cannot be drawn" not in page
