// Shows maps of layers and experts: tables whose cells are coloured only where chance alone would not explain them.

import { element } from "./dom.js";

const STRONG = 2; // times the fair share, or a half of it

/** A Heatmap is a table with a row for each layer; `toggle(layer, expert)`, if given, makes its cells switches. */
export class Heatmap {
  #cells;

  constructor(shape, label, toggle = null) {
    this.shape = shape;
    const experts = Array.from({ length: shape.experts }, (_, expert) => expert);
    const heads = experts.map((expert) => element("th", { scope: "col" }, String(expert)));
    this.#cells = shape.layers.map((layer) => experts.map((expert) => made(layer, expert, toggle)));
    const rows = this.#cells.map((row, n) =>
      element("tr", {}, element("th", { scope: "row" }, String(shape.layers[n])), ...row),
    );
    const corner = element("th", { scope: "col" }, "layer");
    const head = element("thead", {}, element("tr", {}, corner, ...heads));
    const table = element("table", { className: "map", ariaLabel: label }, head, element("tbody", {}, ...rows));
    this.node = element("div", { className: "scrolls", tabIndex: 0, role: "group", ariaLabel: label }, table);
  }

  /** Shows cells of { text, title, beyond, strong }. */
  show(cells) {
    cells.forEach((row, layer) => row.forEach((cell, expert) => fill(this.#cells[layer][expert], cell)));
  }
}

function made(layer, expert, toggle) {
  if (!toggle) return element("td");
  const node = element("button", { type: "button", ariaPressed: "false" });
  node.addEventListener("click", () => (node.ariaPressed = String(toggle(layer, expert))));
  node.setAttribute("aria-description", `Switches expert ${expert} of layer ${layer} off`);
  return element("td", {}, node);
}

function fill(cell, { text, title, beyond, strong }) {
  const target = cell.firstElementChild ?? cell;
  target.textContent = text;
  cell.title = title;
  const kind = ["below", "", "above"][beyond + 1];
  cell.className = kind && strong ? `${kind} strong` : kind;
}

/** Returns the cells of a map that compares an exchange with the fair share. */
export function useCells(exchange, cells) {
  const { layers, experts, top_k: k } = exchange.shape;
  const fair = ((exchange.positions * k) / experts).toFixed(1);
  return cells.map((row, n) =>
    row.map(({ count, ratio, beyond }, expert) => ({
      text: exchange.positions ? ratio.toFixed(1) : "–",
      title: `Layer ${layers[n]}, expert ${expert}: ${count} of ${exchange.positions} tokens; the fair share is ${fair}.`,
      beyond,
      strong: ratio >= STRONG || ratio <= 1 / STRONG,
    })),
  );
}
