"use strict";
// The table: sorting, filters, percentages against a baseline. The plots: the filter of methods also applies to them, a click enlarges one.
const table = document.getElementById("cases");
const body = table.tBodies[0];
const heads = [...table.tHead.rows[0].cells];
const rows = [...body.rows];
const form = document.getElementById("controls");
const meaning = document.getElementById("meaning");
const count = document.getElementById("count");
let sorted = null; // {column, up}

const value = (row, column) => row.cells[column].dataset.v;

function sort() {
  if (!sorted) return;
  const { column, up } = sorted;
  const numeric = heads[column].dataset.kind === "number";
  const within = form.elements.within?.checked;
  const order = (a, b) => {
    if (within && a.dataset.place !== b.dataset.place) return a.dataset.place - b.dataset.place;
    const x = value(a, column), y = value(b, column);
    if (x === "" || y === "") return (x === "") - (y === ""); // empty cells last, in both directions
    return (up ? 1 : -1) * (numeric ? x - y : x.localeCompare(y));
  };
  body.append(...rows.sort(order));
}

function filter() {
  const text = form.elements.text.value.trim().toLowerCase();
  const condition = form.elements.condition?.value ?? "";
  const shown = new Set([...form.querySelectorAll("[name=method]:checked")].map(box => box.value));
  const all = !form.querySelector("[name=method]");
  for (const part of document.querySelectorAll(".plot [data-method]")) part.classList.toggle("off", !all && !shown.has(part.dataset.method));
  for (const row of rows) {
    const { label, method, condition: own } = row.dataset;
    const matches = `${label} ${own}`.toLowerCase().includes(text);
    row.hidden = !(matches && (!condition || own === condition) && (all || shown.has(method)));
  }
  const left = rows.filter(row => !row.hidden).length;
  count.textContent = left === rows.length ? "" : `${left} of ${rows.length} cases are shown.`;
}

function change(percent) {
  const size = Math.abs(percent);
  let digits = size < 10 ? 1 : 0;
  while (percent < 0 && digits < 3 && Number(size.toFixed(digits)) >= 100) digits++; // -100 % would mean a value of 0
  const text = size.toFixed(digits);
  return `${Number(text) === 0 ? "" : percent < 0 ? "\u2212" : "+"}${text} %`;
}

function compare() {
  // "label:L" compares with method L under the same condition, "run:R" with the same method and condition in run R.
  const [kind, ...rest] = form.elements.baseline.value.split(":");
  const name = rest.join(":");
  const key = row => kind === "run" ? `${row.dataset.label}\u0000${row.dataset.rest}` : row.dataset.condition;
  const baselines = new Map();
  for (const row of rows) if (kind && row.dataset[kind] === name && !baselines.has(key(row))) baselines.set(key(row), row);
  for (const old of body.querySelectorAll(".rel")) old.remove();
  heads.forEach((head, column) => {
    if (!("relative" in head.dataset)) return;
    for (const row of rows) {
      const base = baselines.get(key(row));
      if (!base || base === row || value(row, column) === "" || !(value(base, column) > 0)) continue;
      const percent = 100 * (value(row, column) / value(base, column) - 1);
      if (!Number.isFinite(percent)) continue;
      const mark = document.createElement("i");
      mark.className = "rel";
      mark.textContent = change(percent);
      row.cells[column].append(mark);
    }
  });
}

heads.forEach((head, column) => {
  const explain = () => { meaning.textContent = head.dataset.meaning; };
  head.addEventListener("pointerenter", explain);
  head.addEventListener("focusin", explain);
  head.querySelector("button").addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    sorted = { column, up };
    explain();
    sort();
  });
});
form.addEventListener("submit", event => event.preventDefault());
form.addEventListener("input", event => {
  if (event.target.name === "baseline") compare();
  else if (event.target.name === "within") sort();
  else filter();
});
compare();

for (const button of document.querySelectorAll(".zoom")) {
  const plot = button.closest("section").querySelector(".plot");
  const zoom = () => button.setAttribute("aria-pressed", String(plot.classList.toggle("zoomed")));
  button.addEventListener("click", zoom);
  plot.addEventListener("click", zoom);
}
