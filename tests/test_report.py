"""The page and the tables of a report: no name breaks them or is markup in them, and a report from elsewhere is checked
before it is drawn.
"""

import base64
import copy
import json

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
    write_report,
)
from robustgen.evaluation.report import draw_markdown

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
    robustness = evaluate_robustness(net, x, y, eps=0.1, attacks=[FGSM(eps=0.1)], sweep_examples=20)
    detector = ReconstructionError(net).fit(x[:40]).calibrate(x[40:80])
    guarded = evaluate_detector_robustness(
        net, detector, x[80:], y[80:], eps=0.1, fpr=0.1, steps=1, formulations=["sum"], x_ood=x[:5]
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
    }
    return json.loads(json.dumps(found))


def renamed(found, name):
    """The report with this name in place of every name."""
    found = copy.deepcopy(found)
    found |= {"title": name, "command": name, "remarks": [name]}
    network, (detection,), (guarded,) = found["networks"][0], found["detection"], found["detector_robustness"]
    network |= {"name": name, "notes": [name], "attacks": {name: network["attacks"]["FGSM"]}}
    detection |= {"network": name, "detector": name, "populations": {name: detection["populations"]["others"]}}
    guarded |= {"name": name, "detector": name, "attacks": {name: next(iter(guarded["attacks"].values()))}}
    return found


@pytest.mark.parametrize("name", ODD, ids=range(len(ODD)))
def test_no_name_breaks_the_page_or_is_markup(whole, tmp_path, name):
    found = renamed(whole, name)
    page = write_report(found, tmp_path)
    text = page.read_text(encoding="utf-8")
    assert page.name == "report.html"
    assert text.count("<svg") == 3  # curve, scores, pictures
    assert "cannot be drawn" not in text
    markdown = draw_markdown(load_report(tmp_path))
    assert markdown.encode()
    for drawn in (text, markdown):
        assert "<script" not in drawn
        assert not {c for c in drawn if ord(c) < 32} - {"\n", "\t"}
    assert "](" not in markdown.replace("]\\(", "")
    assert markdown.count("\n") == draw_markdown(whole).count("\n")  # no line of its own
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
    assert report._markdown(text) == written


def test_a_page_that_cannot_be_drawn_takes_nothing_away(whole, tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("no fonts\nhere")

    monkeypatch.setattr(report, "_draw_curves", broken)
    text = write_report(whole, tmp_path / "a").read_text()
    assert "this figure cannot be drawn (RuntimeError: no fonts here)" in text
    assert text.count("<svg") == 2
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


def test_a_report_from_elsewhere_is_drawn_or_refused_in_one_line(whole, tmp_path):
    """Whatever stands in whichever field."""
    path = tmp_path / "report.json"
    small = changed(whole, ("networks", 0, "per_example"), {})
    small = changed(small, ("detector_robustness", 0, "per_example"), {})
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
    assert refused > 100


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("detection", 0, "in_distribution"), [1e308, -1e308]),
        (("detection", 0, "in_distribution"), []),
        (("networks", 0, "curve"), [{"eps": 1e308, "value": -1e308, "low": 1e308, "high": 0}]),
        (("networks", 0, "threat_model", "eps"), -1e308),
        (("networks", 0, "masking_tests", 0, "verdict"), "x onclick=y"),
        (("networks", 0, "pictures"), {}),
    ],
)
def test_numbers_that_no_figure_can_show_leave_the_tables(whole, tmp_path, where, value):
    (tmp_path / "report.json").write_text(json.dumps(changed(whole, where, value)))
    page = draw_html(load_report(tmp_path))
    assert "Do the attacks work?" in page
    assert "class=x" not in page


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
    ],
)
def test_pictures_are_as_large_as_they_say(whole, tmp_path, pictures, line):
    found = changed(whole, ("networks", 0, "pictures"), whole["networks"][0]["pictures"] | pictures)
    (tmp_path / "report.json").write_text(json.dumps(found))
    with pytest.raises(ValueError, match=line) as error:
        load_report(tmp_path)
    assert "networks[0].pictures" in str(error.value)
