"""The tuning report: what it says, that it is one file, and that names from elsewhere are text in it."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner
from tuning_cases import FAKE, Simulation, TileFamily, relu, stored, tile_seconds, tiles

from tilewright import tuned_ops, tuning_page, tuning_plots
from tilewright.autotune import Budget, tune
from tilewright.cli import commands
from tilewright.dsl.space import Configuration
from tilewright.errors import InputError, UnsupportedError
from tilewright.runtime.roofline import Limits
from tilewright.tuning_db import Status, Store
from tilewright.tuning_page import Page, database_page, render, write_page

NASTY = '<script>alert("$x_{")</script>'
LIMITS = Limits(FAKE.identity, FAKE.driver, 1e-6, ((1 << 20, 8e9), (1 << 28, 4e9)), {"f32": 1e11}, "2026-01-01")


class Tags(HTMLParser):
    """What a page consists of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [v or "" for n, v in attributes if n in ("src", "href", "xlink:href", "data")]


def tuned(store: Store) -> Page:
    """Two stages tuned on a simulated device, one of them with a hostile name."""
    stages = [relu(1000, NASTY), relu(2000)]
    tune(stages, FAKE, store, Budget(evaluations=40), source=tiles(), measurer=Simulation(), weights=[3, 1])
    work = [(stages[0], (), 2.0), (stages[1], (), 1.0), (stages[0], (), 1.0)]
    ops = tuned_ops.tuned_ops(work, FAKE, store, LIMITS)
    return Page(f"{NASTY}.onnx", FAKE.name, FAKE.driver, ops, LIMITS, True)


def test_what_is_known_of_an_op(store: Store) -> None:
    first, second = tuned(store).ops
    assert (first.name, first.weight, second.weight) == (NASTY, 3.0, 1.0)
    assert first.seconds == pytest.approx(1e-3)
    assert first.bound is not None
    assert first.share == pytest.approx(first.bound.seconds / 1e-3)
    assert len(first.tried) + len(second.tried) == 40
    assert first.failures.keys() <= {"crashed", "build_failed"}
    assert [m for m in first.searched if m.round] == []
    assert len(first.history) > len(first.searched)  # the final
    default = dict(TileFamily().default(relu(), FAKE.target))
    seconds = tile_seconds(Configuration.of(default))
    changed = replace(first, default=("tiles", Configuration.of(default).to_json()))
    assert (changed.default_seconds, changed.gain) == (pytest.approx(seconds), pytest.approx((seconds or 0) / 1e-3))


def test_the_page_is_one_file_and_names_are_text(store: Store, tmp_path: Path) -> None:
    page = tuned(store)
    write_page(page, tmp_path / "out.html")
    text = (tmp_path / "out.html").read_text()
    parts = Tags(text)
    assert "script" not in parts.tags
    assert all(link.startswith("#") for link in parts.links)
    assert parts.tags.count("svg") == 4  # times, roofline, two searches
    assert "&lt;script&gt;alert(&#34;$x_{&#34;)&lt;/script&gt;.onnx" in text
    assert re.search(r"<dt>candidates tried</dt><dd>40</dd>", text)
    assert FAKE.driver in text
    assert "mathdefault" not in text


def test_values_of_parameters_are_text_in_pictures(store: Store) -> None:
    stage = relu()
    for n, value in enumerate(("<b>&", "$x_{", "--><script>")):
        store.record(stored(stage, {"m": n, "path": value}, seconds=1e-3 * (n + 1), samples=(1e-3,)))
    store.record(stored(stage, {"m": 9, "path": "p"}, status=Status.CRASHED, seconds=None, samples=()))
    (op,) = tuned_ops.tuned_ops([(stage, (), 1.0)], FAKE, store, None)
    picture = tuning_plots.op_picture(op)
    assert {"b", "script"}.isdisjoint(Tags(picture).tags)
    assert "$x_{" in picture


def test_a_report_from_the_database_alone(store: Store) -> None:
    tuned(store)
    store.record(stored(relu(7), {"m": 1}, driver="0.9", created="2020-01-01T00:00:00.000000+00:00"))
    page = database_page(store, FAKE.identity, None, 10)
    assert (len(page.ops), page.driver, page.limits) == (2, FAKE.driver, None)
    text = render(page)
    assert "<dt>time of all kernels</dt>" not in text
    assert len(database_page(store, FAKE.identity, None, 1).ops) == 1
    with pytest.raises(InputError, match="has no measurement of another device"):
        database_page(store, "another device", None, 10)


def test_nothing_to_report_is_said_so(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ops = tuned_ops.tuned_ops([(relu(), (), 1.0)], FAKE, store, LIMITS)
    with pytest.raises(InputError, match="nothing has been measured of m on fake; tune it first"):
        render(Page("m", "fake", "1", ops, LIMITS, True))
    monkeypatch.setattr(tuning_page, "render", lambda page: "a page")
    with pytest.raises(InputError, match="the report cannot be written to"):
        write_page(Page("m", "fake", "1", ops, LIMITS, True), tmp_path / "no" / "out.html")


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    with pytest.raises(UnsupportedError, match=r'a report needs jinja2; pip install "tilewright\[report\]"'):
        tuning_plots.require()


def test_the_command_reports_a_database(store: Store, tmp_path: Path) -> None:
    tuned(store)
    file = tmp_path / "out.html"
    where = ["db", "--db", str(tmp_path / "tuning.sqlite"), "report", str(file)]
    done = CliRunner().invoke(commands, where, catch_exceptions=False)
    assert (done.exit_code, done.output) == (0, f"2 programs reported in {file}\n")
    assert "<h1>tuning database sqlite:///" in file.read_text()
    refused = CliRunner().invoke(commands, [*where, "--device", "voodoo"])
    assert refused.exit_code == 2
    assert "no device of sqlite:///" in refused.output


def test_reports_alone_measure_nothing(tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(b"")
    refused = CliRunner().invoke(commands, ["tune", str(model), "--evaluations", "0"])
    assert (refused.exit_code, "--evaluations 0 measures nothing" in refused.output) == (2, True)
