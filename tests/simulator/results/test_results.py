"""Tables of a run: requests, summaries, intervals."""

import csv
import io
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from benchmarks.methods import method_table
from ciar_sim.cli.console import summary_lines
from simulator.results.columns import COLUMNS, JUDGED, PARTS, QUALITY_COLUMNS, REQUEST_COLUMNS, SAMPLED, definitions
from simulator.results.files import ROWS, csv_bytes, csv_text, json_bytes, write_parquet
from simulator.results.statistics import bounded, half_width, percentile, ratio
from simulator.results.tables import CaseRecords, queue_blocks, request_blocks, summary_table, tiers_table


def case(method: str, latency: list[float], swept: dict[str, Any] | None = None, **more: Any) -> CaseRecords:
    """Return a case of requests 10 s apart, whose latency is all device computing, with prompts 0, 1, 0, 1, ..."""
    n = len(latency)
    columns = {name: np.zeros(n) for name in REQUEST_COLUMNS}
    columns |= {
        "request": np.arange(n),
        "prompt": np.arange(n) % 2,
        "image": np.arange(n) % 2,
        "requested_s": 10.0 * np.arange(n),
    }
    columns |= {"latency_s": np.array(latency, dtype=float), "device_compute_s": np.array(latency, dtype=float)}
    columns |= {"done_s": columns["requested_s"] + columns["latency_s"], "cloud_gpu_s": np.full(n, 0.5)}
    return CaseRecords(
        method, more.pop("name", method.split(" ")[0]), swept or {}, columns | more.pop("columns", {}), **more
    )


def requests_table(cases: list[CaseRecords], rows: int = ROWS) -> pd.DataFrame:
    """Return requests.parquet, written in blocks of `rows` rows."""
    file = io.BytesIO()
    write_parquet(file, request_blocks(cases, rows))
    return pq.read_table(file).to_pandas()


def summary(*cases: CaseRecords) -> pd.DataFrame:
    return summary_table(list(cases))


def test_the_method_table_has_a_row_per_case() -> None:
    columns = {"bytes_up": np.array([1000.0, 3001.0]), "device_passes": np.array([4, 5])}
    quality = {"image": np.arange(2), "base_greedy_pct": np.array([100.0, 50.0])}
    header, _, row = method_table(summary(case("base", [1.0, 3.0], columns=columns, quality=quality))).splitlines()
    assert (
        header
        == "| method | cloud calls % | calls | kB up | kB down | device passes | cloud passes | tokens as base % |"
    )
    assert row == "| base | 0.0 | 0.0 | 2.0 | 0.0 | 4.5 | 0.0 | 75.0 |"


def test_each_tier_has_a_row_of_its_own_requests() -> None:
    """Two kinds of devices at the edge and one in the region; requests in the warm-up do not count."""
    columns = {"device": np.array([0, 3, 1, 2, 0])}
    fields = {
        "devices": [1, 1, 2],
        "tiers": ["edge", "region", "edge"],
        "gpu_usd_per_hour": [7200.0, 3600.0, 7200.0],
        "slos_s": [math.inf] * 3,
        "warmup_s": 5.0,
        "duration_s": 60.0,
    }
    spread = case("ciar", [9.0, 2.0, 5.0, 4.0, 3.0], {"seed": 1}, columns=columns, **fields)
    plain = case("base", [1.0, 2.0], {"seed": 1})
    table = tiers_table([plain, spread])
    rows = table[["case", "method", "seed", "tier", "devices", "images", "latency_mean_s", "cost_usd"]].values.tolist()
    assert rows == [[1, "ciar", 1, "edge", 3, 3, 3.0, 1.0], [1, "ciar", 1, "region", 1, 1, 5.0, 0.5]]
    assert tiers_table([plain]).empty
    own = summary(plain, spread).iloc[1]
    assert (table["images"] * table["latency_mean_s"]).sum() / table["images"].sum() == own["latency_mean_s"]


# ---- statistics


def test_percentile_is_linear_between_order_statistics() -> None:
    assert percentile(np.array([1.0, 2.0, 4.0]), 50) == 2.0
    assert percentile(np.array([1.0, 2.0, 4.0]), 75) == 3.0
    assert math.isnan(percentile(np.empty(0), 50))


def test_half_width_of_singles_is_students() -> None:
    values = np.array([1.0, 2.0, 4.0, 9.0])
    expected = stats.t.ppf(0.975, 3) * values.std(ddof=1) / 2
    assert half_width(values, 4) == pytest.approx(expected, rel=1e-12)
    assert math.isnan(half_width(values[:1], 20))


@pytest.mark.parametrize("n", [*range(2, 24), 32, 127, 128, 129, 200])
def test_half_widths_of_any_number_of_singles_are_students(n: int) -> None:
    """Tabulated quantiles and computed ones."""
    values = np.linspace(0.0, 3.0, n) ** 2
    expected = stats.t.ppf(0.975, n - 1) * values.std(ddof=1) / math.sqrt(n)
    assert half_width(values, n) == pytest.approx(expected, rel=1e-9)


def test_half_width_of_equal_batches_is_that_of_their_means() -> None:
    values = np.array([1.0, 3.0, 2.0, 2.0, 7.0, 9.0])
    means = np.array([2.0, 2.0, 8.0])
    expected = stats.t.ppf(0.975, 2) * means.std(ddof=1) / math.sqrt(3)
    assert half_width(values, 3) == pytest.approx(expected, rel=1e-9)


def test_batch_means_cover_a_correlated_mean_where_singles_do_not() -> None:
    """AR(1) with coefficient 0.8, 2000 values, 400 replications: nominal coverage is 95 %; 20 batches of 100 reach at least 91 %."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(400, 2100))
    series = np.zeros_like(noise)
    for t in range(1, 2100):
        series[:, t] = 0.8 * series[:, t - 1] + noise[:, t]
    covered = {k: np.mean([abs(row.mean()) <= half_width(row, k) for row in series[:, 100:]]) for k in (20, 2000)}
    assert covered[20] >= 0.91
    assert covered[2000] < 0.7


def test_ratio_of_proportional_pairs_has_no_width() -> None:
    below = np.array([1.0, 2.0, 4.0])
    assert ratio(2 * below, below, 20) == (2.0, 2.0, 2.0)
    assert all(math.isnan(value) for value in ratio(np.empty(0), np.empty(0), 20))


def test_ratio_by_hand() -> None:
    above, below = np.array([4.0, 6.0]), np.array([1.0, 3.0])
    residual = above - 2.5 * below  # 1.5, -1.5
    half = stats.t.ppf(0.975, 1) * residual.std(ddof=1) / math.sqrt(2) / 2.0
    assert ratio(above, below, 20) == pytest.approx((2.5, 2.5 - half, 2.5 + half))


# ---- tables


def test_summary_by_hand() -> None:
    base = case("base", [4.0, 6.0, 8.0])
    quality = {"image": np.array([0, 1]), "cloud_nll": np.array([2.0, 4.0])}
    ciar = case("ciar threshold=0.5", [2.0, 3.0, 4.0], quality=quality, utilisation=0.25, gpu_usd_per_hour=[7.2])
    table = summary(base, ciar)
    row = table.iloc[1]
    assert list(table["method"]) == ["base", "ciar threshold=0.5"]
    assert (row["images"], row["latency_mean_s"], row["latency_p50_s"], row["device_compute_s"]) == (3, 3.0, 3.0, 3.0)
    half = stats.t.ppf(0.975, 2) / math.sqrt(3)
    assert (row["latency_mean_lo_s"], row["latency_mean_hi_s"]) == pytest.approx((3 - half, 3 + half))
    assert (row["speedup"], row["speedup_lo"], row["speedup_hi"]) == pytest.approx((2.0, 2.0, 2.0))
    assert row["cost_usd"] == pytest.approx(0.5 * 7.2 / 3600)
    assert row["cloud_utilisation"] == 0.25
    assert row["under_way_mean"] == pytest.approx(9.0 / 24.0)  # three requests, from 0 s to 24 s
    assert (row["distinct_images"], row["cloud_nll"]) == (2, 3.0)  # over two images, although one has two requests
    assert row["cloud_nll_hi"] == pytest.approx(3.0 + stats.t.ppf(0.975, 1) * 1.0)
    assert math.isnan(row["base_greedy_pct"])
    assert math.isnan(table.iloc[0]["cost_usd"])  # no price


def test_no_samples_give_nan_and_one_gives_no_interval() -> None:
    table = summary(case("base", []), case("ciar", [3.0]))
    empty, one = table.iloc[0], table.iloc[1]
    assert empty["images"] == empty["distinct_images"] == 0
    assert empty["refused"] == empty["unfinished"] == 0
    counts = ["images", "distinct_images", "refused", "unfinished"]
    assert empty.drop(["case", "method", "method_name", *counts]).isna().all()
    assert one["latency_mean_s"] == one["latency_p99_s"] == 3.0
    assert math.isnan(one["latency_mean_lo_s"])
    assert math.isnan(one["speedup"])


def test_speedup_is_taken_under_the_same_conditions_and_paired_by_request() -> None:
    wifi, lte = {"network.preset": "wifi"}, {"network.preset": "lte"}
    table = summary(
        case("base", [4.0, 4.0], wifi),
        case("base", [9.0, 9.0], lte),
        case("ciar", [3.0, 3.0], {**lte, "methods.ciar.threshold": 0.3}),
        case("ciar", [2.0], wifi, columns={"request": np.array([1])}),
        case("ciar", [2.0], {"network.preset": "3g"}),
    )
    assert list(table["speedup"])[:4] == [1.0, 1.0, 3.0, 2.0]
    assert math.isnan(table["speedup"][4])
    assert list(table.columns[:5]) == ["case", "method", "method_name", "network.preset", "methods.ciar.threshold"]
    assert table["methods.ciar.threshold"].isna().sum() == 4


def test_base_is_known_by_its_name_not_by_its_label() -> None:
    table = summary(case("base of the thesis [1]", [4.0], name="ciar"), case("cloud only", [8.0], name="base"))
    assert list(table["method_name"]) == ["ciar", "base"]
    assert list(table["speedup"]) == [2.0, 1.0]


def test_differences_are_paired_by_request_and_by_prompt() -> None:
    def nll(zero: float, one: float) -> dict[str, np.ndarray]:
        of_images = {"cloud_nll": np.array([zero, one]), "align_photos": np.array([zero, one]) / 20}
        return {"image": np.array([0, 1]), **of_images}

    table = summary(
        case("base", [4.0, 40.0], quality=nll(1.0, 9.0)),
        case("ciar", [1.0, 11.0], quality=nll(1.5, 10.5)),
        case("code", [2.0, 14.0], quality=nll(1.0, 9.0)),
        case("ciar", [2.0], {"network.preset": "lte"}, quality=nll(1.0, 9.0)),
    )
    code = table.iloc[2]
    assert list(table["latency_minus_fastest_s"]) == [16.0, 0.0, 2.0, 0.0]
    t = stats.t.ppf(0.975, 1)  # for two pairs the standard error is half their distance
    assert (code["latency_minus_fastest_lo_s"], code["latency_minus_fastest_hi_s"]) == pytest.approx((2 - t, 2 + t))
    assert list(table["cloud_nll_minus_base"][:3]) == [0.0, 1.0, 0.0]
    assert (table["cloud_nll_minus_base_lo"][1], table["cloud_nll_minus_base_hi"][1]) == pytest.approx(
        (1 - t / 2, 1 + t / 2)
    )
    assert math.isnan(table["cloud_nll_minus_base"][3])  # no base there
    for end in ("", "_lo", "_hi"):
        nats, shares = table[f"cloud_nll_minus_base{end}"], table[f"align_minus_base{end}"]
        assert list(shares[:3]) == pytest.approx(list(nats[:3] / 20))
        assert math.isnan(shares[3])


def test_a_sequential_workload_has_no_utilisation() -> None:
    assert math.isnan(summary(case("base", [1.0, 2.0], sequential=True))["cloud_utilisation"][0])


def test_order_of_rows_does_not_change_the_numbers() -> None:
    straight = case("base", [1.0, 5.0, 2.0, 8.0])
    order = np.array([2, 0, 3, 1])
    shuffled = CaseRecords("base", "base", {}, {name: values[order] for name, values in straight.columns.items()})
    pd.testing.assert_frame_equal(summary(straight), summary(shuffled))


def test_requests_table_joins_quality_by_prompt() -> None:
    quality = {"image": np.array([1, 0]), "cloud_nll": np.array([5.0, 4.0]), "align_scenes": np.array([1.0, 0.5])}
    table = requests_table([case("base", [1.0, 1.0, 1.0], {"cloud.replicas": 4}, quality=quality)])
    assert list(table["cloud_nll"]) == [4.0, 5.0, 4.0]
    assert list(table["align_scenes"]) == [0.5, 1.0, 0.5]
    assert table["cloud.replicas"].dtype == np.int64
    assert list(table.columns[:4]) == ["case", "method", "method_name", "cloud.replicas"]


def test_quality_of_a_set_is_asked_for_the_images_that_were_answered() -> None:
    asked: list[list[int]] = []

    def of_set(prompts: np.ndarray) -> dict[str, tuple[float, float, float]]:
        asked.append(prompts.tolist())
        return {"fd_scenes": (2.0, 1.0, 4.0), "fid": (10.0 * len(prompts), 0.0, 99.0)}

    table = summary(case("base", [1.0, 1.0, 1.0], of_set=of_set), case("code", [1.0]))
    assert asked[-1] == [0, 1]
    assert table[["fd_scenes", "fd_scenes_lo", "fd_scenes_hi", "fid"]].iloc[0].tolist() == [2.0, 1.0, 4.0, 20.0]
    assert table[["f1_scenes", "f1_scenes_lo"]].isna().all(axis=None)
    assert table[["fd_scenes", "fid_hi"]].iloc[1].isna().all()


def test_parts_that_miss_the_latency_are_refused() -> None:
    with pytest.raises(ValueError, match=r"case 0 \(base\): the parts miss latency_s by up to 1 s"):
        requests_table([case("base", [2.0], columns={"wait_s": np.ones(1)})])
    with pytest.raises(ValueError, match="no columns wait_s"):
        requests_table(
            [CaseRecords("base", "base", {}, {name: np.zeros(0) for name in REQUEST_COLUMNS if name != "wait_s"})]
        )


def test_every_summary_column_is_defined() -> None:
    named = {name for names in COLUMNS for name in names.split(", ")}
    for column in summary(case("base", [1.0])):
        quality = column.rpartition("_")[0] in (*QUALITY_COLUMNS, JUDGED[0].align)
        assert column in named or (quality and "<quality>_lo" in named), column
    assert set(PARTS) <= named
    photographs = {"align_photos": np.array([0.5]), "image": np.array([0])}
    table = summary(case("base", [1.0], quality=photographs))
    assert {"align_photos", "align_photos_lo", "fd_photos_hi", "f1_photos"} <= set(table)
    assert not [name for name in table if "scenes" in name]
    told = definitions(table.columns)
    assert "fd_photos_lo, fd_photos_hi, f1_photos_lo, f1_photos_hi" in told
    assert not [name for name in told if "scenes" in name]
    plain = [name for name in COLUMNS if "photos" not in name and name != "statistical"]  # this run has neither
    assert plain == list(definitions(summary(case("base", [1.0])).columns))


# ---- bytes


def test_parquet_reads_back_and_is_the_same_twice() -> None:
    cases = [case("base", [0.1, 0.2], {"network.preset": "wifi", "network.rtt_ms": 20}), case("ciar", [0.3], {})]
    files = [io.BytesIO(), io.BytesIO()]
    for file in files:
        write_parquet(file, request_blocks(cases, ROWS))
    assert files[0].getvalue() == files[1].getvalue()
    back = pq.read_table(files[0]).to_pandas()
    assert list(back["latency_s"]) == [0.1, 0.2, 0.3]
    assert back["network.preset"][2] is None or pd.isna(back["network.preset"][2])
    assert back["network.rtt_ms"].isna()[2]


@given(st.lists(st.integers(0, 7), min_size=1, max_size=6), st.integers(1, 9))
def test_blocks_of_any_size_are_the_same_table(sizes: list[int], rows: int) -> None:
    """Cases without requests, cases that end in the middle of a block, blocks with several cases."""
    cases = [
        case("base", [1.0 + place for place in range(n)], {"cloud.replicas": number}, samples=_samples(n))
        for number, n in enumerate(sizes)
    ]
    pd.testing.assert_frame_equal(requests_table(cases, rows), requests_table(cases), check_dtype=False)
    for blocks in (request_blocks, queue_blocks):
        found = list(blocks(cases, rows))
        assert [len(block["case"]) for block in found[:-1]] == [rows] * (len(found) - 1)
        assert 0 < len(found[-1]["case"]) <= rows or not sum(sizes)
        owners = np.concatenate([block["case"] for block in found])
        assert owners.tolist() == np.repeat(np.arange(len(sizes)), sizes).tolist()


def _samples(n: int) -> dict[str, np.ndarray]:
    return {name: np.arange(n) for name in SAMPLED}


def test_csv_floats_read_back_exactly() -> None:
    numbers = [0.1, 1 / 3, 1e-300, 2.0, math.nan, math.inf]
    names = pd.Series(["a", None, "c,d", "e", "f", "g"], dtype=object)
    text = csv_bytes(pd.DataFrame({"x": numbers, "name": names})).decode()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [float(row["x"]) for row in rows[:4]] == numbers[:4]
    assert [rows[4]["x"], rows[5]["x"], rows[1]["name"], rows[2]["name"]] == ["NaN", "inf", "", "c,d"]


# ---- the run folder


def test_no_interval_reaches_beyond_what_a_quantity_can_be() -> None:
    quality = {"image": np.arange(2)}
    quality |= {"cloud_nll": np.array([0.1, 9.0]), "cloud_greedy_pct": np.array([8.0, 13.0])}
    quality |= {"base_greedy_pct": np.array([1.0, 99.0]), "align_scenes": np.array([0.9, 1.0])}
    table = summary(case("base", [30.0, 1.0], quality=quality), case("ciar", [1.0, 40.0], quality=quality))
    for _, row in table.iterrows():
        assert row["latency_mean_lo_s"] == 0.0 < row["latency_mean_hi_s"]
        assert row["speedup_lo"] >= 0.0
        assert row["cloud_nll_lo"] == 0.0
        assert row["cloud_greedy_pct_lo"] == 0.0 < row["cloud_greedy_pct_hi"] < 100.0
        assert row[["base_greedy_pct_lo", "base_greedy_pct_hi"]].isna().all()  # an interval from 0 to 100 is omitted
        assert 0.0 < row["align_scenes_lo"] < row["align_scenes_hi"] == 1.0


@given(
    st.lists(st.tuples(st.floats(1e-3, 1e3), st.floats(0, 100), st.floats(0, 1)), min_size=1, max_size=6),
)
def test_intervals_hold_their_value_and_stay_in_range(rows: list[tuple[float, float, float]]) -> None:
    latency, percent, share = (np.array(column) for column in zip(*rows, strict=True))
    for values, highest in ((latency, math.inf), (percent, 100.0), (share, 1.0)):
        half = half_width(values, len(values))
        value, low, high = bounded((float(values.mean()), values.mean() - half, values.mean() + half), 0.0, highest)
        assert value == values.mean()
        assert math.isnan(low) == math.isnan(high)
        if not math.isnan(low):
            assert 0.0 <= low <= value * (1 + 1e-12) + 1e-12
            assert value * (1 - 1e-12) - 1e-12 <= high <= highest


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it is empty"),
        ("a,b\n1,2,3\n4,5,6\n", "row 1 has 3 values, and the header 2 names"),  # which pandas shifts by a column
        ("a,b\n1,2\n3\n", "row 2 has 1 values, and the header 2 names"),  # which pandas fills
        ("a,b,a\n1,2,3\n", "column 'a' occurs twice"),
        ('a,b\n1,"2\n', "unexpected end of data"),
    ],
)
def test_a_table_whose_lines_do_not_fit_its_header_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        csv_text(text.encode())


def test_a_table_is_read_as_it_was_written() -> None:
    table = pd.DataFrame({"label": ["a,b", 'say "x"', "NA", "line\nbreak"], "s": [0.1, 1e-300, np.nan, np.inf]})
    read = csv_text(csv_bytes(table))
    assert read["label"].tolist() == table["label"].tolist()
    assert [float(cell) for cell in read["s"]] == pytest.approx(table["s"].tolist(), nan_ok=True, abs=0.0)


def test_labels_are_no_markup() -> None:
    lines = summary_lines(summary(case("ciar [red]x[/red] [/]", [1.0], {"network.preset": "[bold]"})))
    assert "ciar [red]x[/red] [/]" in lines
    assert "[bold]" in lines


def test_a_table_is_written_under_any_name(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"o\xfc.parquet")
    write_parquet(path, [{"x": np.arange(2)}])
    assert pd.read_parquet(io.BytesIO(path.read_bytes()))["x"].tolist() == [0, 1]
    assert json.loads(json_bytes({"path": str(path)}))["path"] == str(path)
