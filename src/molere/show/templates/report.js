"use strict";
// Tables that say data-sort: each heading sorts its column, and a box above keeps the rows that hold what is typed.
for (const table of document.querySelectorAll("table[data-sort]")) {
  const body = table.tBodies[0], rows = [...body.rows], heads = [...table.tHead.rows[0].cells];
  const value = (row, i) => {
    const cell = row.cells[i], text = cell.textContent.trim();
    const key = cell.dataset.k ?? text.replace("\u2212", "-");
    const number = key === "" ? NaN : Number(key);
    return Number.isNaN(number) ? text.toLowerCase() : number;
  };
  const order = (a, b) => typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1;
  heads.forEach((head, i) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const now = head.getAttribute("aria-sort"), up = now ? now === "descending" : i === 0;
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const empty = v => v === "" || v === "\u2013";
      rows.map(row => [value(row, i), row])
        .sort(([a], [b]) => empty(a) - empty(b) || (up ? order(a, b) : order(b, a)))
        .forEach(([, row]) => body.append(row));
    });
  });
  if (rows.length < 10) continue;
  const bar = document.createElement("div"), label = document.createElement("label");
  const input = document.createElement("input"), count = document.createElement("output");
  bar.className = "filter";
  input.type = "search";
  count.setAttribute("role", "status");
  label.append("Filter rows of \u201c" + table.caption.textContent + "\u201d: ", input);
  bar.append(label, count);
  table.parentElement.before(bar);
  input.addEventListener("input", () => {
    const wanted = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    rows.forEach(row => { row.hidden = !wanted.every(word => row.textContent.toLowerCase().includes(word)); });
    count.textContent = rows.filter(row => !row.hidden).length + " of " + rows.length + " rows";
  });
}
