/* Tables of the ledger: a press on a column's name sorts by it, a second press turns the order. */
document.addEventListener("DOMContentLoaded", () => {
  const order = new Intl.Collator(undefined, { numeric: true });
  const compare = (a, b) => {
    const [x, y] = [parseFloat(a), parseFloat(b)];
    return Number.isNaN(x) || Number.isNaN(y) ? order.compare(a, b) : x - y || order.compare(a, b);
  };
  for (const table of document.querySelectorAll("table.eq-table")) {
    const body = table.tBodies[0];
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const key = (row) => row.cells[column].textContent.trim();
        const rows = [...body.rows].sort((a, b) => compare(key(a), key(b)));
        body.append(...(down ? rows.reverse() : rows));
      });
    });
  }
});
