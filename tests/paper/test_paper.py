"""A paper says what the results say, traces it, and names what is missing."""

import gzip
import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from latentbridge.audit.figures import layer_routing as split_figures
from latentbridge.errors import ConfigError, DamageError
from latentbridge.launch.cli import main
from latentbridge.layer_routing import metrics as split_rules
from latentbridge.paper import figures, routing
from latentbridge.paper.quote import Quote
from latentbridge.paper.results import Results
from latentbridge.paper.template import fill
from latentbridge.paper.trace import Trace
from latentbridge.paper.typeset import to_pdf
from latentbridge.paper.write import tables
from latentbridge.rundir import RunDir, write_json

ROOT = Path(__file__).parents[2]
BASELINE = {"nll": 4.294, "perplexity": 73.2, "accuracy": 0.314}
DYNAMIC = {"nll": 4.156, "perplexity": 64.0, "accuracy": 0.321}
TEMPLATE = """\
# A study of r₁[0] by others [1,2]

We choose by token. [RESULTS PLACEHOLDER: X% better
at Y% balance]. More follows.

```
h = r[0] + [not a placeholder]
```

## 5. Results

**[TABLE 1 HERE: Main]**

| Model | Val Loss ↓ | Perplexity ↓ | Accuracy ↑ | Collapse? |
|---|---|---|---|---|
| Static | **X.XXX** | **XX.X** | **XX.X%** | N/A |
| Ours | **X.XXX** | **XX.X** | **XX.X%** | Yes/No |
| Gain | **+X.X%** | **+X.X%** | **+X.X%** | - |

*Table 1: Both arms. [INSTRUCTIONS: fill ((a - b)/a) in.]*

**[TABLE 2 HERE: Routing]**

**[TABLE 3 HERE: Cost]**

**[FIGURE 2 HERE: Curves]**

*Figure 2 should show:*
- four panels
  - of curves

**[FIGURE 5 HERE: Tokens]**

## 6. Discussion

**[DISCUSSION PLACEHOLDER - adapt]**

### If it wins

[X%] of [Analyze this.]

## 8. Conclusion

The method [ACHIEVED/DID NOT ACHIEVE] improvements.

- [If successful:] Tokens differ.
- [If failed:] Layers suffice.

[1] A. Author (2021). A title.
"""


def markdown_of(template, launch, **settings):
    return fill(template, Results([launch.path]), settings).markdown


def unlinked(markdown):
    return re.sub(r"\[([^\[\]]*(?:\[[^\]]*\])?)\]\(#n\d+\)", r"\1", markdown)


def test_the_guides_worked_example_gives_its_gains(quote):
    gains = [quote.gain("dynamic", "baseline", f"val_{metric}").text for metric in ("nll", "perplexity")]

    assert [*gains, quote.points("dynamic", "baseline", "val_accuracy").text] == [
        "+3.2 %",
        "+12.6 %",
        "+0.7 pp",
    ]


def test_what_runs_of_a_shared_card_cost_has_no_overhead(template, worked):
    for name in ("baseline-s5", "dynamic-s6"):
        attempt = RunDir(worked.path / name).new_attempt()
        write_json(attempt / "env.json", {"host": "node1", "cards": "0"})
        write_json(attempt / "exit.json", {"began": 0.0, "ended": 9.0})
    text = unlinked(markdown_of(template(TEMPLATE), worked))

    assert "| Dynamic | 4,500 | 11.0 min | void |" in text
    assert "Up to 2 runs had a card together: rates and minutes do not compare." in text


def test_by_a_metric_without_a_better_side_nothing_is_gained(launch):
    for name, shift in (("baseline", 0.0), ("dynamic", 0.4)):
        launch.cell(name, {"nll": 4.0 + shift}, shares=(0.3,) if shift else ())
    for run in launch.runs:
        log = launch.path / run["folder"] / "metrics.jsonl"
        log.write_text(log.read_text().replace("val_nll", "val_entropy"))
    quote = Quote(Results([launch.path]), Trace())
    asked = ("dynamic", "baseline", "val_entropy")

    assert quote.verdict(*asked).startswith("neither better nor worse ([+0.400 [")
    for number in (quote.gain, quote.p):
        with pytest.raises(
            ConfigError, match=r"neither less nor more of val_entropy is better.*difference\(\)"
        ):
            number(*asked)


def test_the_published_grammar_is_filled_as_the_guide_fills_it(template, worked):
    text = unlinked(markdown_of(template(TEMPLATE), worked))

    assert "| Static | 4.294 | 73.2 | 31.4 % | N/A |" in text
    assert "| Ours | 4.156 | 64.0 | 32.1 % | No |" in text
    assert "| Gain | +3.2 % | +12.6 % | +0.7 pp | - |" in text
    assert "*Table 1: Both arms.* Means over 3 seeds" in text
    # by hand: -0.48 log 0.48 - 0.52 log 0.52 = 0.692
    assert "| Layer 1 | 48.0 % | 52.0 % | 0.69 | Balanced |" in text
    assert "| Dynamic | 4,500 | 11.0 min | 1.10× |" in text
    assert "static baseline by +3.2 % (val loss 4.156 against 4.294)" in text
    assert "### 6.1 Performance" in text and "### 6.3 Balance" in text
    assert "achieved improvements.\n\n- Tokens differ." in text and "Layers suffice" not in text
    assert "figures/figure2_training_curves.png" in text
    assert "h = r[0] + [not a placeholder]" in text
    assert not re.search(r"PLACEHOLDER|HERE|INSTRUCTIONS|should show|four panels|X\.X|If it wins", text)


def test_a_lower_loss_within_the_spread_of_the_seeds_has_not_won(template, launch):
    launch.cell("baseline", BASELINE, spread=0.2)
    launch.cell("dynamic", DYNAMIC, spread=0.2, shares=(0.48, 0.95))

    text = unlinked(markdown_of(template(TEMPLATE), launch))

    assert "The seeds cannot tell it from the static baseline" in text
    assert "did not achieve improvements." in text and "- Layers suffice." in text
    assert "### 6.1 Why a static choice suffices" in text and "Tokens differ" not in text
    assert "### 6.2 Collapse" in text and "GDN, which takes 95.0 % of the tokens" in text
    assert "The balance weight, 0.01, was too small" in text and "### 6.3 Alternative" in text
    assert "| Ours | 4.156 | 64.0 | 32.1 % | Yes |" in text


def test_the_comparison_that_the_spec_states_first_is_the_papers(template, launch):
    """A template that names cells by hand judged by the metric that had chosen them."""
    launch.cell("static_2", BASELINE)
    launch.cell("routed_2", DYNAMIC, shares=(0.48, 0.55))
    plan = json.loads((launch.path / "plan.json").read_text())
    plan["compare"] = [{"baseline": "static_2", "against": ["routed_2"], "metric": "val_nll"}]
    (launch.path / "plan.json").write_text(json.dumps(plan))
    page = template("{{ achieved() }} {{ discussion() }}")

    stated = markdown_of(page, launch)
    other = markdown_of(page, launch, baseline="static_2", dynamic="routed_2", metric="val_perplexity")

    assert stated.startswith("achieved") and "not stated before the run" not in stated
    assert other.startswith("did not achieve") and "there is no spread to judge by" in other


def test_the_rules_of_splits_stand_once_and_a_paper_spells_them_as_published():
    """They stood three times, each free to drift."""
    assert routing.split_entropy is split_rules.split_entropy and routing.status is split_rules.status
    for borders in (split_figures, figures):
        assert borders.COLLAPSED is split_rules.COLLAPSED
    assert split_figures.BALANCED is split_rules.BALANCED
    found = {share: routing.Layer(2, "m", [share]).status for share in (0.6, 0.61, 0.95, 0.39, 0.05)}
    skewed = {0.61: "Skewed to GDN", 0.39: "Skewed to Softmax"}
    assert found == {0.6: "Balanced", 0.95: "Collapsed to GDN", 0.05: "Collapsed to Softmax", **skewed}


def test_a_single_seed_decides_nothing(template, launch):
    launch.cell("baseline", BASELINE, seeds=(5,))
    launch.cell("dynamic", DYNAMIC, shares=(0.5,), seeds=(5,))

    text = markdown_of(template("{{ abstract() }} {{ achieved() }}"), launch)

    assert (
        "could not be judged against the static baseline: dynamic: one run tells nothing of the spread"
        in text
        and "did not achieve" in text
    )


def test_every_placeholder_that_is_left_is_named_with_its_line(template, worked):
    text = TEMPLATE + "[3] [Your Experiment 7 if published]\n\nLoss X.XXX, [Citation needed: who].\n"
    lines = len(TEMPLATE.splitlines())

    with pytest.raises(ConfigError) as refused:
        markdown_of(template(text), worked)

    found = re.findall(r"template\.md:(\d+): placeholder '(.*?)' is left", str(refused.value))
    assert found == [
        (str(lines + 1), "[Your Experiment 7 if published]"),
        (str(lines + 3), "X.XXX"),
        (str(lines + 3), "[Citation needed: who]"),
    ]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("{{ value('dynamic', 'val_nl') }}", "dynamic has no metric 'val_nl'; did you mean 'val_nll'?"),
        ("{{ value('dynamo', 'val_nll') }}", "demo has no cell 'dynamo'; did you mean 'dynamic'?"),
        ("{{ valve('dynamic', 'val_nll') }}", "'valve' is undefined; known: value, interval"),
        ("{{ value('dynamic' }}", "unexpected '}'"),
        ("{{ table('compression') }}", "demo has no results for table 'compression'"),
        ("{{ figure('overlai') }}", "no figure 'overlai'; did you mean 'overlay'?"),
        ("[TABLE 4 HERE: more]", "no table 4; the grammar has 1 to 3"),
        ("[FIGURE 6 HERE: more]", "no figure 6; the grammar has 1 to 5"),
        ("[TABLE 1 HERE: t]\n\n| a | b |\n|-|-|\n| c | X.X |\n", "table 1 has 2 columns, the grammar 5"),
    ],
)
def test_a_bad_call_is_told_by_file_line_and_call(template, worked, call, said):
    with pytest.raises(ConfigError) as refused:
        markdown_of(template(f"One\ntwo\n{call}\n"), worked)

    assert "template.md:3: {{ " in str(refused.value) or "unexpected '}'" in said
    assert "template.md:3:" in str(refused.value) and said in str(refused.value)


def test_a_void_metric_is_never_printed(template, launch):
    launch.cell("a", BASELINE)
    (launch.path / "a-s6" / "DONE").unlink()

    with pytest.raises(ConfigError, match=r"val_nll of a is void \(seed 6 not started\)"):
        markdown_of(template("{{ value('a', 'val_nll') }}"), launch)


def test_every_number_is_traced_to_run_id_file_and_hash(template, worked):
    filled = fill(template("{{ value('dynamic', 'val_nll') }}"), Results([worked.path]))
    (number,) = filled.quote.trace.numbers

    assert filled.markdown.startswith("[4.156](#n1)")
    assert [source.id for source in number.sources] == [f"00dynamic-s{seed}" for seed in (5, 6, 7)]
    data = (worked.path / "dynamic-s5/metrics.jsonl").read_bytes()
    assert number.sources[0].sha256 == hashlib.sha256(data).hexdigest()
    assert number.sources[0].file == f"{worked.path.name}/dynamic-s5/metrics.jsonl"
    assert hashlib.sha256(data).hexdigest() in filled.markdown


def test_a_value_a_seed_is_traced_to_that_seeds_file_alone(template, worked):
    filled = fill(template("{{ each('baseline', 'val_nll', digits=2) }}"), Results([worked.path]))

    assert filled.markdown.startswith("[4.28](#n1), [4.29](#n2), [4.30](#n3)\n")
    sources = [source.file for number in filled.quote.trace.numbers for source in number.sources]
    assert sources == [f"{worked.path.name}/baseline-s{seed}/metrics.jsonl" for seed in (5, 6, 7)]


def test_a_file_that_changed_since_it_was_preserved_gives_no_number(template, worked):
    sums = f"{'0' * 64}  dynamic-s6/metrics.jsonl\n"
    (worked.path / "SHA256SUMS").write_text(sums)

    with pytest.raises(DamageError, match="changed since it was preserved"):
        markdown_of(template("{{ value('dynamic', 'val_nll') }}"), worked)


def test_a_number_from_a_compressed_file_is_traced_to_that_file(template, worked):
    plain = worked.path / "dynamic-s5" / "metrics.jsonl"
    packed = plain.with_name("metrics.jsonl.gz")
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()

    (number,) = fill(
        template("{{ value('dynamic', 'val_nll') }}"), Results([worked.path])
    ).quote.trace.numbers

    assert number.sources[0].file == f"{worked.path.name}/dynamic-s5/metrics.jsonl.gz"
    assert number.sources[0].sha256 == hashlib.sha256(packed.read_bytes()).hexdigest()


def test_a_comparison_nobody_stated_is_called_that(template, worked):
    call = "{{ verdict('dynamic', 'baseline', 'val_nll') }}"
    assert "not stated before the run" in markdown_of(template(call), worked)

    plan = json.loads((worked.path / "plan.json").read_text())
    plan["compare"] = [{"baseline": "baseline", "against": ["dynamic"], "metric": "val_nll"}]
    (worked.path / "plan.json").write_text(json.dumps(plan))
    assert "not stated" not in markdown_of(template(call), worked)


def test_tables_are_latex_that_names_its_numbers(template, worked):
    plan = json.loads((worked.path / "plan.json").read_text())
    plan["compare"] = [{"baseline": "baseline", "against": ["dynamic"], "metric": "val_nll"}]
    (worked.path / "plan.json").write_text(json.dumps(plan))
    found = tables(fill(template("No number."), Results([worked.path])))

    latex = found["tables/ablations.tex"]
    assert r"\label{tab:ablations}" in latex and r"\toprule" in latex
    assert re.search(r"dynamic & baseline & val\\_nll & \$-\$0\.138 \[\$-\$0\.\d+, \$-\$0\.\d+\] &", latex)
    assert "sha256 of n1 n2" in latex and r"\begin{tabular}{lllrrl}" in latex


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="there is no LaTeX here")
def test_latex_takes_every_table_of_the_example_paper_and_none_is_wider_than_its_page(tmp_path):
    files = sorted((Path(__file__).parents[2] / "papers/mixtures/tables").glob("*.tex"))
    inputs = "".join(rf"\input{{{file}}}\clearpage" for file in files)
    packages = r"\usepackage[margin=2cm]{geometry}\usepackage{booktabs,graphicx}"
    whole = rf"\documentclass{{article}}{packages}\begin{{document}}{inputs}\end{{document}}"
    (tmp_path / "all.tex").write_text(whole)

    command = ["pdflatex", "-halt-on-error", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout[-2000:]
    assert len(files) == 11 and "Overfull" not in done.stdout


def test_the_pdf_is_one_and_the_same_for_the_same_paper(tmp_path):
    text = '# A_title\n\n- *a* **b**(c) $5 [x](#n1)\n\n1. `#d`\n\n| a |\n| --- |\n| <a id="n1"></a>n1 |\n'

    pdf = to_pdf(text, tmp_path)

    assert pdf.startswith(b"%PDF") and pdf == to_pdf(text, tmp_path)


def test_the_command_writes_a_paper_or_tells_of_one_number(template, worked, tmp_path, capsys):
    path = template("{{ value('dynamic', 'val_nll') }}\n")
    argv = ["paper", str(path), "--results", str(worked.path)]

    with pytest.raises(SystemExit) as ended:
        main([*argv, "--out", str(tmp_path / "out")])
    assert ended.value.code == 0
    names = {str(found.relative_to(tmp_path / "out")) for found in (tmp_path / "out").rglob("*.*")}
    assert {"paper.md", "paper.pdf", "numbers.json"} <= names
    capsys.readouterr()

    with pytest.raises(SystemExit):
        main([*argv, "--trace", "n1"])
    out = capsys.readouterr().out
    assert "n1: 4.156" in out and "run 00dynamic-s6 demo_20261122_101500/dynamic-s6/metrics.jsonl" in out


def test_a_bad_template_is_exit_code_2_and_writes_nothing(template, worked, tmp_path, capsys):
    path = template("[Link to the code]\n")

    with pytest.raises(SystemExit) as ended:
        main(["paper", str(path), "--results", str(worked.path), "--out", str(tmp_path / "out")])

    assert ended.value.code == 2 and not (tmp_path / "out").exists()
    assert "template.md:1: placeholder '[Link to the code]' is left" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["layer_routing", "mixtures", "tables"])
def test_a_paper_that_ships_is_what_its_template_gives(name):
    shipped = ROOT / "papers" / name
    files = json.loads((shipped / "numbers.json").read_text())["files"].values()
    launches = dict.fromkeys(file["run"].partition("/")[0] for file in files)
    results = Results([ROOT / "preserved_data" / launch for launch in launches])

    filled = fill(ROOT / f"papers/{name}.md", results)

    assert (shipped / "paper.md").read_text() == filled.markdown
    if name != "tables":
        for table, text in tables(filled).items():
            assert (shipped / table).read_text() == text, table


def test_one_command_makes_a_paper_of_any_launch(worked, tmp_path, monkeypatch, capsys):
    plan = json.loads((worked.path / "plan.json").read_text())
    plan["compare"] = [{"baseline": "baseline", "against": ["dynamic"], "metric": "val_nll"}]
    (worked.path / "plan.json").write_text(json.dumps(plan))
    (worked.path / "spec.yaml").write_text(
        "# Does it help?  Two arms.\n# Expected: no.\nname: demo\n# of runs\n"
    )
    for run in worked.runs[1:3]:
        attempt = RunDir(worked.path / run["name"]).new_attempt()
        write_json(attempt / "env.json", {"host": "node1", "cards": "0"})
        write_json(attempt / "exit.json", {"began": 0.0, "ended": 9.0})
    monkeypatch.chdir(tmp_path)

    with pytest.raises(SystemExit) as ended:
        main(["paper", str(ROOT / "papers/launch.md"), "--results", str(worked.path), "--out", "out"])
    text = (tmp_path / "out/paper.md").read_text()

    assert not ended.value.code
    assert "# demo\n\nDoes it help?  Two arms. Expected: no.\n" in text
    assert "\n6 of 6 runs done.\n" in text
    assert "- dynamic against baseline, by val_nll: won (-0.138 [" in unlinked(text)
    # of what is measured on validation text there are verdicts, and no table of test scores
    assert "| dynamic | baseline | val_nll | [-0.138 [" in text
    assert "![training curve](figures/demo_training_curve.png)" in text
    assert "- shared: 2 runs had a card" in text
    assert (tmp_path / "out/paper.pdf").read_bytes().startswith(b"%PDF")


def test_the_template_in_the_published_grammar_that_ships_can_be_filled(worked):
    settings = {"baseline": "baseline", "dynamic": "dynamic"}

    text = fill(ROOT / "papers/layer_routing.md", Results([worked.path]), settings).markdown

    assert all(f"figures/figure{number}_" in text for number in (1, 2, 3, 4))
    assert "| Dynamic | [4.156](#n" in text and "| [64.00](#n" in text


def test_launches_of_one_name_are_told_apart_by_their_folders_and_compared_as_compare_does(worked, another):
    later = another("demo_20261123_090000").cell("dynamic", DYNAMIC, shares=(0.48, 0.55))
    both = Quote(Results([worked.path, later.path]), Trace())
    cells = f"{later.path.name}:dynamic", f"{worked.path.name}:baseline", "val_nll"

    assert both.outcome(*cells) == "won"
    assert both.difference(*cells).text.startswith("-0.138 [")
    assert "not stated before the run" in both.verdict(*cells)
    with pytest.raises(ConfigError, match="no launch 'demo'"):
        both.value("demo:dynamic", "val_nll")
    with pytest.raises(ConfigError, match="a second launch called 'demo_20261122_101500'"):
        Results([worked.path, worked.path])


def test_cells_of_two_launches_with_other_seeds_are_not_compared(worked, another):
    later = another("later_20261123_090000").cell("dynamic", DYNAMIC, seeds=(5, 6, 8))
    both = Quote(Results([worked.path, later.path]), Trace())

    with pytest.raises(ConfigError, match="seed"):
        both.outcome("later:dynamic", "demo:baseline", "val_nll")


def test_a_pattern_is_no_metric_of_cells_of_two_launches(worked, another):
    later = another("later_20261123_090000").cell("dynamic", DYNAMIC)
    both = Quote(Results([worked.path, later.path]), Trace())

    with pytest.raises(ConfigError, match=r"dynamic has no metric 'val_\*'"):
        both.outcome("later:dynamic", "demo:baseline", "val_*")


def test_one_experiment_that_ran_in_two_launches_is_not_compared_with_itself(worked, another):
    again = another("demo_20261123_090000").cell("baseline", BASELINE, spread=0.02)
    both = Quote(Results([worked.path, again.path]), Trace())

    with pytest.raises(ConfigError, match=r"not compared in a paper: .*one experiment"):
        both.outcome(f"{again.path.name}:baseline", f"{worked.path.name}:baseline", "val_nll")
