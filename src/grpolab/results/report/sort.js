"use strict";
for (const button of document.querySelectorAll("table.sortable th button")) {
  button.addEventListener("click", () => {
    const head = button.parentElement;
    const table = head.closest("table");
    const column = head.cellIndex;
    const descending = head.getAttribute("aria-sort") === "ascending";
    const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
    const compare = (a, b) => {
      const [x, y] = [key(a), key(b)];
      const [m, n] = [Number(x), Number(y)];
      const numeric = x !== "" && y !== "" && !Number.isNaN(m) && !Number.isNaN(n);
      if ((x === "") !== (y === "")) return x === "" ? 1 : -1; // what is missing stays last
      return (descending ? -1 : 1) * (numeric ? m - n : x.localeCompare(y));
    };
    const body = table.tBodies[0];
    body.append(...[...body.rows].sort(compare));
    for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", descending ? "descending" : "ascending");
  });
}
