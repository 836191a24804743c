// A table of coloured cells, one of which is chosen by a click, a tap or the arrow keys, and the legend of its colours.

import { arrowKeys, clamp, element, inkOn, magnitude, scrollToMiddle } from "./charts.js";

// Small shares stay visible: the colour follows the square root of a probability.
export const colour = (p) => magnitude(Math.sqrt(p));
export const ink = (p) => inkOn(Math.sqrt(p));

// `columns` and `rows` are the headers' contents. choose(i, j) is called for the cell in row i and column j, and
// hover([i, j]) while the mouse is over it, hover(null) when the mouse has left. Tab reaches the selected cell alone.
export function heatmap({ label, corner = "", columns, rows, choose, hover = () => {} }) {
  const header = (content, scope) => element("th", { scope }, content);
  const cells = rows.map(() => columns.map(() => element("td", { tabindex: -1 })));
  const place = ({ target }) => {
    const cell = target.closest("td");
    return cell && [cell.parentNode.sectionRowIndex, cell.cellIndex - 1];
  };
  const move = (down, right) => {
    const i = clamp(at[0] + down, 0, rows.length - 1), j = clamp(at[1] + right, 0, columns.length - 1);
    hover(null); // keys win over a mouse that lies still
    choose(i, j);
    cells[i][j].focus();
  };
  const table = element("table", {
    class: "heatmap", role: "grid", style: `--columns: ${columns.length}`, "aria-label": label, onkeydown: arrowKeys(move), onpointerleave: () => hover(null),
    onclick: (event) => place(event) && choose(...place(event)),
    onpointerover: (event) => hover(event.pointerType === "mouse" ? place(event) : null),
  },
  element("thead", {}, element("tr", {}, header(corner, "col"), ...columns.map((content) => header(content, "col")))),
  element("tbody", {}, ...rows.map((content, i) => element("tr", {}, header(content, "row"), ...cells[i]))));

  const node = element("div", { class: "scroll" }, table);
  let at = [0, 0]; // the selected cell
  const select = (i, j) => {
    const before = cells[at[0]][at[1]], selected = cells[i][j];
    before.tabIndex = -1;
    before.removeAttribute("aria-selected");
    before.parentNode.classList.remove("selected");
    at = [i, j];
    selected.tabIndex = 0;
    selected.setAttribute("aria-selected", "true");
    selected.parentNode.classList.add("selected");
    scrollToMiddle(node, selected);
  };
  return { node, cells, select };
}

export function legend(label) {
  const stops = Array.from({ length: 11 }, (_, index) => magnitude(index / 10)).join(", ");
  const ticks = [0, 0.04, 0.25, 1].map((p) =>
    element("span", { style: `inset-inline-start: ${100 * Math.sqrt(p)}%` }, `${100 * p}%`));
  return element("div", { class: "legend", role: "img", "aria-label": `${label}: from dark blue, 0%, to yellow, 100%` },
    label, element("div", { style: `background: linear-gradient(to right, ${stops})` }, ...ticks));
}
