"""A launch as one page, looked at by a parser and, where there is one, by a real browser without a screen."""

import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import latentbridge.audit.page as page_module
from latentbridge.audit import figures
from latentbridge.audit.ablations import read_launch
from latentbridge.audit.figures import curves, draw
from latentbridge.audit.page import inline, page, polyline, write_page
from latentbridge.audit.table import COMPARISONS, blocks, notes
from latentbridge.launch.cli import main
from latentbridge.rundir import append_jsonl, hash_file, read_jsonl

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# what a browser made of the page, told by the page itself
PROBE = """<script>window.onload = () => {
  document.querySelectorAll("details").forEach(found => found.open = true);
  const size = found => found.getBoundingClientRect();
  const ids = [...document.querySelectorAll("[id]")].map(found => found.id);
  const seen = {
    title: document.title,
    loaded: performance.getEntriesByType("resource").map(found => found.name),
    overflow: document.documentElement.scrollWidth - window.innerWidth,
    twice: ids.filter((id, place) => ids.indexOf(id) != place),
    figures: [...document.querySelectorAll("figure svg")].map(svg => [size(svg).width, size(svg).height]),
    drawn: [...document.querySelectorAll("figure svg")].map(svg => size(svg.querySelector("g")).width),
    curves: [...document.querySelectorAll("svg.curve polyline")].map(line => size(line).width),
    dead: [...document.querySelectorAll('a[href^="#"]')].filter(
      link => !document.querySelector(link.getAttribute("href"))).length,
    rows: document.querySelectorAll("#runs tr").length - 1,
    spec: size([...document.querySelectorAll("details pre")].at(-1)).height,
  };
  document.body.innerHTML = ""; document.body.textContent = JSON.stringify(seen);
};</script>"""


class Reader(HTMLParser):
    """Tags with their attributes, text, and tags that were not closed in order."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self.open, self.faults = [], "", [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if self.open.pop() != tag:
            self.faults.append(tag)

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def browser():
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not found and os.environ.get("LATENTBRIDGE_REQUIRE_BROWSER"):
        pytest.fail(f"none of {', '.join(BROWSERS)} is installed")
    return found or pytest.skip(f"none of {', '.join(BROWSERS)} is installed")


@pytest.fixture
def few(monkeypatch):
    """Two figures in place of all, which take seconds."""
    monkeypatch.setattr(page_module, "FIGURES", tuple(map(figures.known, ("frontier", "overlay"))))


@pytest.fixture
def drawn(launch):
    launch.compare = [{"baseline": "plain", "against": ["<hot>"], "metric": "test_nll"}]
    for seed in (5, 6):
        launch.mixture("plain", seed)
        folder = launch.mixture("<hot>", seed, {"mixture.router.temperature.start": 30.0})
    *_, final = read_jsonl(folder.metrics_log)
    final["metrics"]["test_nll"]["value"] += 0.002
    append_jsonl(folder.metrics_log, final)
    attempt = folder.new_attempt()
    (attempt / "stdout.log").write_text("said")
    (launch.path / "spec.yaml").write_text("name: demo  # <b>&\n")
    return launch


def test_the_page_names_verdicts_tables_runs_logs_and_hashes(drawn, few):
    html = page(drawn.path, relative_to=drawn.path)
    read = Reader(html)
    links = [attrs["href"] for tag, attrs in read.tags if tag == "a"]

    assert read.faults == [] and read.open == []
    assert "4 of 4 runs done" in read.text and "<hot>" in read.text and "name: demo  # <b>&" in read.text
    # 0.290 and 0.292 nats above: t = 291 at one degree of freedom
    assert ("td", {"class": "lost"}) in read.tags
    assert "./%3Chot%3E-s6/attempts/1/stdout.log" in links
    digest = hash_file(drawn.path / "plain-s5/metrics.jsonl")
    assert f"{digest}  plain-s5/metrics.jsonl" in read.text


def test_the_page_shows_the_comparisons_and_notes_of_summary_log(launch, few, metric):
    """Who was chosen, and by which test, was in summary.log and not on the page."""
    best = {"best_of": "b*", "metric": "val_nll", "mode": "min"}
    launch.compare = [{"baseline": "a", "against": [best], "metric": "test_nll"}]
    for cell, values in {"a": (3.0, 3.1), "b1": (2.0, 2.2), "b2": (2.5, 2.4)}.items():
        for seed, value in enumerate(values):
            launch.run(cell, seed, {"test_nll": metric(value), "val_nll": metric(value)})
    launch.run("late", 0, state="FAILED", cause="oom")
    launch.run("late", 1, {"test_nll": metric(2.0)})

    text = Reader(page(launch.path, relative_to=launch.path)).text

    summary = read_launch(launch.path)
    (block,) = (block for block in blocks(summary) if block.title == COMPARISONS)
    assert "by" in block.header and all(cell in text for row in block.rows for cell in row)
    assert "2 pairs" in text and "chosen: b1 has the lowest val_nll, 2.1; beaten: b2 2.45" in text
    assert all(note in text for note in notes(summary)) and "seed 0 FAILED (oom)" in text


def test_the_page_needs_no_script_and_nothing_from_elsewhere(drawn, few):
    read = Reader(page(drawn.path, relative_to=drawn.path))

    assert not [tag for tag, _ in read.tags if tag in ("script", "link", "img", "iframe")]
    assert not [attrs for _, attrs in read.tags if str(attrs.get("href", "")).startswith("http")]


def test_equal_results_give_equal_bytes(drawn, few):
    first = write_page(drawn.path).read_bytes()

    assert write_page(drawn.path).read_bytes() == first


def test_an_archive_stays_as_it_is(drawn, few, tmp_path, monkeypatch):
    (drawn.path / "SHA256SUMS").write_text("")
    monkeypatch.chdir(tmp_path)

    written = write_page(drawn.path)

    assert written == Path(f"{drawn.path.name}.html")
    assert f'href="{drawn.path.name}/plain-s5/metrics.jsonl"' in written.read_text()
    assert not (drawn.path / "report.html").exists()


def test_a_launch_that_has_not_begun_has_a_page(launch):
    launch.run("a", 5, state=None)

    assert "0 of 1 runs done" in page(launch.path, relative_to=launch.path)


def test_a_figure_that_cannot_be_drawn_is_named_and_costs_no_other(drawn, few, monkeypatch):
    def die(*_, **__):
        raise ValueError("no ink")

    monkeypatch.setattr(curves, "draw_band", die)
    html = page(drawn.path, relative_to=drawn.path)

    assert "overlay could not be drawn: no ink" in html and "<figcaption>frontier" in html


def test_without_matplotlib_the_page_says_so_once_and_no_log_does(drawn, few, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    html = page(drawn.path, relative_to=drawn.path)

    assert Reader(html).text.count("matplotlib is missing; pip install 'latentbridge[report]'") == 1
    assert caplog.records == []


def test_what_was_just_drawn_is_not_drawn_again_and_gives_the_same_page(drawn, few, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(figures, "FIGURES", page_module.FIGURES)
    monkeypatch.setattr(figures, "DPI", 30)
    expected = page(drawn.path, relative_to=drawn.path)
    files = draw(drawn.path)
    monkeypatch.setattr(page_module, "render", None)

    assert "<svg role" in expected and len(files) == 2 * 4
    assert page(drawn.path, relative_to=drawn.path, drawn=files) == expected


def test_drawings_of_one_page_share_no_ids():
    svg = '<?xml?><svg><metadata>x</metadata><path id="a"/><use xlink:href="#a" clip-path="url(#a)"/></svg>'

    assert inline(svg, "f2-", "n") == (
        '<svg role="img" aria-label="n"><path id="f2-a"/>'
        '<use xlink:href="#f2-a" clip-path="url(#f2-a)"/></svg>'
    )


def test_a_curve_runs_from_left_to_right_with_the_largest_value_on_top():
    assert polyline([4.0, 2.0, 3.0]) == "0.0,1.0 55.0,21.0 110.0,11.0"
    assert polyline([2.0, 2.0]) == "0.0,1.0 110.0,1.0"


def test_the_command_writes_the_page(drawn, few, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["report", str(drawn.path)])

    assert ended.value.code == 0 and capsys.readouterr().out.strip() == str(drawn.path / "report.html")


@pytest.mark.parametrize("width", [400, 1300])
def test_a_real_browser_lays_the_page_out_and_loads_nothing(drawn, browser, tmp_path, width):
    path = tmp_path / "page.html"
    path.write_text(page(drawn.path, relative_to=tmp_path).replace("</body>", f"{PROBE}</body>"))
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    argv = [browser, *options, f"--window-size={width},900", "--dump-dom", path.as_uri()]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=True)

    seen = json.loads(Reader(re.sub(r"<head>.*</head>", "", done.stdout, flags=re.DOTALL)).text)

    assert seen["title"] == drawn.path.name and seen["rows"] == 4
    assert seen["loaded"] == [] and seen["twice"] == [] and seen["dead"] == 0
    assert seen["overflow"] <= 0, "only tables scroll sideways"
    assert len(seen["figures"]) >= 5 and all(w > 200 and h > 50 for w, h in seen["figures"])
    assert all(inner > 100 for inner in seen["drawn"])
    assert len(seen["curves"]) == 4 and all(line > 100 for line in seen["curves"])
    assert seen["spec"] > 10
