"""The report page and its files: its content, that it is self-contained, and refused folders."""

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reports.build import build_report, thinned, write_report
from reports.findings import find, is_base
from reports.image_grid import grid_note, image_grid
from reports.load import Run, load_run
from reports.page import inline_svg
from reports.page import page as page_of
from simulator.core.errors import RunFolderError
from simulator.results.folder import RunImage
from tests.reports.build import CASES, IMAGE, case, words, write


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_labels_are_the_users_own_words(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """A label is not interpreted as mathematics, a missing value or a method's name, and no case is dropped."""
    texts = ["NA", "cost $5 and $x_", "base of mine", "方法", "nan"]
    cases = [case(text, 4.0, {"network.preset": "None"}, name="ciar") for text in texts]
    cases += [
        case("cloud only", 8.0, {"network.preset": "None"}, name="base"),
        case("NA", 5.0, {"network.preset": "None"}, name="ciar"),
    ]
    folder = write(tmp_path / "run", cases, images=(), draw=build_report)
    run = load_run(folder)
    assert list(run.summary["label"]) == [*texts, "cloud only", "NA"]
    assert [is_base(row) for _, row in run.summary.iterrows()] == [False] * 5 + [True, False]
    assert set(run.summary["condition"]) == {"None"}
    assert not recwarn.list


# ---- plots and page


def test_files_and_same_bytes_twice(folder: Path, tmp_path: Path) -> None:
    before = files(folder)
    names = ("latency_quality", "latency_parts", "image_grid")
    assert {f"plots/{name}.{form}" for name in names for form in ("png", "svg")} < set(before)
    assert files(write(tmp_path / "elsewhere", CASES, draw=build_report)) == before
    stale = folder / "plots" / "sweep_gone.png"
    stale.write_bytes(b"")
    build_report(folder)
    assert files(folder) == before


def test_page_is_self_contained_and_says_what_it_must(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    assert "http://" not in page
    assert "https://" not in page
    assert set(re.findall(r'src="([^"]{5})', page)) == {"data:"}
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', page)) <= set(ids)  # clip paths and glyphs of the drawings
    assert all((folder / link).is_file() for link in re.findall(r'href="([^"#]+)"', page))
    assert "default-src 'none'" in page
    names = re.findall(r'aria-label="((?:Zoom|SVG|PNG): [^"]+)"', page)  # the links name their plot for screen readers
    assert len(names) == len(set(names)) >= 6
    for expected in (
        "ciar threshold=0.5 is fastest",
        "Latency as if llamagen-xl on a100; acceptance and quality of the scenes pair",
        "No significant difference in latency between",
        "roofline: data sheet",
        "published: &lt;figure&gt; &amp; text",
        "Heat of the device",
        "name: synthetic  # &lt;b&gt;",
        "prompt 0 &amp; &#34;more&#34;",
        "cloud_call_pct",
        "Use code prefix_rate=0.3 (1.3× base&#39;s speed) for wifi, and base or ciar threshold=0.5 (no significant difference "
        "in latency) for lte: "
        "the fastest, by the mean, of the methods whose images do not differ significantly from base&#39;s.",
        "Faster, with images that differ significantly from base&#39;s: ciar threshold=0.5 (2.0× base&#39;s speed) for wifi.",
        "Pareto front of mean latency and cloud_nll, by the means: ciar threshold=0.5, code prefix_rate=0.3, base.",
    ):
        assert expected in page, expected
    # The table marks what the sentence names, not the fastest method whose images differ.
    rows = re.findall(r'<tr( class=best)? data-label="([^"]+)" [^>]*data-condition="([^"]+)".*?</tr>', page, re.DOTALL)
    bold = {(label, condition) for best, label, condition in rows if best}
    assert bold == {("code prefix_rate=0.3", "wifi"), ("base", "lte"), ("ciar threshold=0.5", "lte")}
    assert page.count(">advised</span>") == len(bold)
    assert page.count(">lowest mean</span>") == 2
    hidden = re.search(r"Not shown, no data: ([^.]*)\.", page)
    assert hidden is not None
    assert {"fd_scenes", "cost_usd", "goodput_per_s"} <= set(hidden.group(1).split(", "))
    assert page.count("<figure>") == 4 * 4  # four of five prompts; two images and two maps each
    images = re.findall(r"<img [^>]*>", page)
    assert images
    assert all(re.search(r'alt="[^"]+"', image) for image in images)
    assert re.search(r'<svg[^>]*aria-label="[^"]+"', page)


def test_ids_of_a_drawing_that_nothing_refers_to_are_left_out() -> None:
    """A drawing repeats an id for equal images."""
    body = '<clipPath id="p1"/><image id="i" clip-path="url(#p1)"/><image id="i"/><use xlink:href="#g"/><g id="g"/>'
    svg = inline_svg(f'<svg width="72pt">{body}</svg>', "maps", "alt")
    assert re.findall(r' id="([^"]+)"', svg) == ["maps-p1", "maps-g"]
    assert "url(#maps-p1)" in svg
    assert 'href="#maps-g"' in svg


def test_an_infinite_figure_is_one_to_the_script(tmp_path: Path) -> None:
    run = load_run(write(tmp_path / "run", [case("ciar", 4.0, {}), case("base", 8.0, {})], images=()))
    run.summary["threshold"] = [math.inf, math.nan]
    assert 'data-v="Infinity">∞' in page_of(run, find(run), {})


def test_svg_carries_no_date(folder: Path) -> None:
    for path in (folder / "plots").glob("*.svg"):
        assert b"<dc:date>" not in path.read_bytes()


@pytest.mark.parametrize("count", [0, 1])
def test_hardly_any_requests(tmp_path: Path, count: int) -> None:
    cases = [case("base", 8.0, {}, n=count), case("device-only", 4.0, {}, n=count)]
    folder = write(tmp_path / "run", cases, provenance={"name": "few"}, images=(), draw=build_report)
    page = (folder / "report.html").read_text()
    assert ("nothing to compare" if count == 0 else "nothing can be concluded") in page
    assert not re.search(r"\bnan\b", page)


def test_a_condition_without_answers_stands_beside_others(tmp_path: Path) -> None:
    cases = [
        case(name, 8.0, {"workload.arrivals.poisson_per_s": rate}, n=count)
        for rate, count in ((0.01, 0), (1.0, 12))
        for name in ("base", "ciar")
    ]
    page = (write(tmp_path / "run", cases, draw=build_report) / "report.html").read_text()
    assert "nothing to compare" in page
    assert not re.search(r"\bnan\b", page)


@pytest.mark.usefixtures("undrawn")
def test_methods_that_the_image_grid_leaves_out_are_counted(tmp_path: Path, run: Run) -> None:
    assert grid_note(run) == "A row is one prompt with one seed."
    labels = [f"ciar threshold={number}" for number in range(9)]
    cases = [case(label, 4.0, {"network.preset": "wifi"}) for label in labels]
    images = [RunImage(label, 0, "prompt", "image", IMAGE) for label in labels]
    folder = write(tmp_path / "run", cases, images=images, draw=build_report)
    assert "8 of 9 methods: base and the fastest." in (folder / "report.html").read_text()
    assert "8 of 9 methods: base and the fastest." in words(image_grid(load_run(folder)))


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(("points", "said"), [([(1, 1), (1, 2), (2, 1), (2, 2)], " × "), ([(1, 1), (2, 2)], ", ")])
def test_a_grid_is_told_from_axes_that_change_together(
    tmp_path: Path, points: list[tuple[int, int]], said: str
) -> None:
    cases = [case("base", 8.0, {"network.rtt_ms": rtt, "network.up_mbps": up}) for rtt, up in points]
    page = (write(tmp_path / "run", cases, images=(), draw=build_report) / "report.html").read_text()
    assert f"{len(points)} conditions (network.rtt_ms{said}network.up_mbps)" in page


@pytest.mark.usefixtures("undrawn")
def test_nested_provenance_reads_as_words(tmp_path: Path) -> None:
    provenance = {"name": "x", "network": [{"down": 5, "up": 2.5}, {"down": 9, "up": None}]}
    page = (
        write(tmp_path / "run", [case("base", 8.0, {})], provenance=provenance, draw=build_report) / "report.html"
    ).read_text()
    assert "down 5, up 2.5; down 9, up unknown" in page


def test_without_answers_there_are_no_images_to_show(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", [case("base", 8.0, {}, n=0)], draw=build_report)
    assert "<h2>Images" not in (folder / "report.html").read_text()
    assert not (folder / "plots" / "image_grid.png").exists()


# ---- bad folders


def test_folders_that_are_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="it does not exist"):
        load_run(tmp_path / "nowhere")
    with pytest.raises(RunFolderError, match="cannot be read: File name too long"):
        load_run(tmp_path / ("a" * 300))
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunFolderError, match="not a folder"):
        load_run(tmp_path / "file")
    with pytest.raises(RunFolderError, match=r"it has no provenance\.json"):
        load_run(tmp_path)
    (tmp_path / "provenance.json").write_text('{"program": "other"}')
    with pytest.raises(RunFolderError, match="not from ciar-sim"):
        load_run(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["scenario.yaml", "summary.csv", "requests.parquet", "queue.parquet", "provenance.json", "images/base_0.png"],
)
def test_missing_files_are_named(folder: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(folder, tmp_path / "run")
    (tmp_path / "run" / name).unlink()
    with pytest.raises(RunFolderError, match=re.escape(name)):
        build_report(tmp_path / "run")


def other_columns(name: str, **changes: object) -> Callable[[Path], None]:
    """Return a function that changes columns of a Parquet file, or drops those given as None."""

    def change(folder: Path) -> None:
        table = pd.read_parquet(folder / name)
        kept = table.drop(columns=[key for key, value in changes.items() if value is None])
        kept.assign(**{key: value for key, value in changes.items() if value is not None}).to_parquet(folder / name)

    return change


def other_json(name: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    return lambda folder: (
        (folder / name).write_text(json.dumps(change(json.loads((folder / name).read_text())))) and None
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (other_columns("requests.parquet", latency_s=None), r"requests\.parquet cannot be read: no column latency_s"),
        (other_columns("requests.parquet", latency_s="x"), r"requests\.parquet cannot be read: column latency_s holds"),
        (other_columns("requests.parquet", requested_s=math.nan), "requested_s holds values that are not finite"),
        (other_columns("queue.parquet", queued=None), r"queue\.parquet cannot be read: no column queued"),
        (other_columns("queue.parquet", queued="x"), r"queue\.parquet cannot be read: column queued holds"),
        (other_json("provenance.json", lambda held: {**held, "warnings": 5}), "warnings must be a list of texts"),
        (other_json("provenance.json", lambda held: {**held, "notes": [5]}), "notes must be a list of texts"),
        (other_json("provenance.json", lambda held: {**held, "columns": "x"}), "columns must be a mapping"),
        (
            other_json("images/index.json", lambda held: [{**held[0], "method": 7}]),
            r"method of \S+ in index\.json is '7'",
        ),
        (
            lambda folder: (folder / "images" / "base_0.png").write_bytes(b"x"),
            r"base_0\.png is not a complete PNG file",
        ),
        (
            lambda folder: (folder / "summary.csv").write_text(
                (folder / "summary.csv").read_text().replace("NaN", "-")
            ),
            r"line \d+: \w+ must be a number or NaN, got '-'",
        ),
    ],
)
def test_files_with_other_content_are_named(
    folder: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    shutil.copytree(folder, tmp_path / "run")
    damage(tmp_path / "run")
    with pytest.raises(RunFolderError, match=message):
        build_report(tmp_path / "run")


def test_a_table_that_pandas_has_saved_again_is_read(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "run")
    table = pd.read_csv(tmp_path / "run" / "summary.csv")
    assert table.isna().any(axis=None)
    for index in (False, True):
        table.to_csv(tmp_path / "run" / "summary.csv", index=index)
        pd.testing.assert_frame_equal(
            load_run(tmp_path / "run").summary[table.columns], load_run(folder).summary[table.columns]
        )


def test_files_of_two_runs_are_no_run(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "run")
    lines = (folder / "summary.csv").read_text().splitlines(keepends=True)
    summary, requests = tmp_path / "run" / "summary.csv", tmp_path / "run" / "requests.parquet"
    summary.write_text(lines[0])
    with pytest.raises(RunFolderError, match=r"summary.csv holds no case"):
        load_run(tmp_path / "run")
    summary.write_text("".join(lines[:2]))
    with pytest.raises(RunFolderError, match=r"are not of one run, or one is cut: case \d+ is in the former alone"):
        load_run(tmp_path / "run")
    summary.write_text("".join([*lines, lines[-1]]))
    with pytest.raises(RunFolderError, match=r"summary.csv cannot be read: its cases are not numbered from 0 on"):
        load_run(tmp_path / "run")
    summary.write_text("".join(lines))
    whole = pd.read_parquet(requests)
    table = pa.Table.from_pandas(whole)
    for odd, message in (
        (pa.concat_tables([table, table]), r"request 0 of case 0 is there twice"),
        (table.append_column("latency_s", table["latency_s"]), r"requests.parquet cannot be read: 2 columns latency_s"),
        (table.drop(["request"]), r"requests.parquet cannot be read: no column request"),
    ):
        pq.write_table(odd, requests)
        with pytest.raises(RunFolderError, match=message):
            load_run(tmp_path / "run")
    # As other programs write it: in row groups, with another compression, dictionary-encoded text, and an additional column.
    written = table.set_column(1, "method", table["method"].dictionary_encode()).append_column(
        "l", pa.array([[1]] * len(table))
    )
    pq.write_table(written, requests, compression="zstd", row_group_size=5)
    pd.testing.assert_frame_equal(load_run(tmp_path / "run").requests, load_run(folder).requests)
    whole.set_index(["case", "request"]).to_parquet(requests)  # written by pandas with an index
    pd.testing.assert_frame_equal(load_run(tmp_path / "run").requests, load_run(folder).requests)
    whole.iloc[1:].to_parquet(requests)
    with pytest.raises(RunFolderError, match=r"case 0 has \d+ requests there and \d+ images here"):
        load_run(tmp_path / "run")
    whole.assign(latency_s=whole["latency_s"] * 1.01).to_parquet(requests)
    with pytest.raises(RunFolderError, match=r"case 0 has a mean of"):
        load_run(tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("summary.csv", b"a,b\n1,2\n"),
        ("summary.csv", b""),
        ("provenance.json", b"{"),
        ("images/base_0.png", b"x"),
        ("images/index.json", b"[1]"),
        ("images/index.json", b'[{"file": "a\\u0000.png"}]'),
        ("images/index.json", b'[{"file": "a\\ud800.png"}]'),
        ("images/index.json", b'[{"file": "../summary.csv"}]'),
    ],
)
def test_damaged_files_are_named(folder: Path, tmp_path: Path, name: str, data: bytes) -> None:
    shutil.copytree(folder, tmp_path / "run")
    (tmp_path / "run" / name).write_bytes(data)
    with pytest.raises(RunFolderError, match=name.split("/")[0]):
        build_report(tmp_path / "run")


@pytest.mark.usefixtures("undrawn")
def test_a_report_of_thousands_of_cases_shows_evenly_spaced_values(tmp_path: Path) -> None:
    """The axis with the most values is thinned first; methods without that axis keep all cases."""
    cases = [case("base", 8.0, {"network.rtt_ms": rtt}) for rtt in range(20)] + [
        case("ciar", 4.0, {"network.rtt_ms": rtt, "methods.ciar.threshold": t})
        for rtt in range(20)
        for t in (0.1, 0.2, 0.3)
    ]
    run = load_run(write(tmp_path / "run", cases, images=()))
    assert thinned(run, 80) is run
    few = thinned(run, 60)
    assert len(few.summary) == 40
    assert few.summary["network.rtt_ms"].unique().tolist() == [0, 2, 4, 6, 8, 11, 13, 15, 17, 19]
    assert few.summary["methods.ciar.threshold"].nunique() == 3
    assert few.provenance["warnings"] == [
        "the report shows 40 of 80 cases, at evenly spaced values; summary.csv has all"
    ]
    assert len(thinned(run, 2).summary) == 2
    assert "40 of 80 cases" in write_report(few, tmp_path / "run").read_text()
