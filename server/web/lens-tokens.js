// Shows tokens in the colours of their experts. Arrow keys go from token to token.

import { element } from "./dom.js";

const COLOURS = 8; // further experts have the same colours again, and their number beside each token
const STEPS = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };

export class TokenView {
  #nodes = []; // of all tokens, by position
  #shown = []; // what each node shows, so that only what has changed is drawn
  #layer = null;

  /** `pick` is called with a position that the reader points at. */
  constructor(exchange, pick) {
    this.exchange = exchange;
    this.question = group("Tokens of the question", pick);
    this.answer = group("Tokens of the answer", pick);
    const headings = ["Question, as the model reads it", "Answer"].map((text) => element("h3", {}, text));
    this.node = element("div", {}, headings[0], this.question, headings[1], this.answer);
  }

  /** Shows what is new, in the colours of a layer; null means all layers together. */
  update(layer = this.#layer) {
    this.#layer = layer;
    const before = this.#nodes.length;
    this.exchange.tokens().forEach((token, position) => {
      this.#nodes[position] ??= this.#made(token, position);
      this.#colour(position, token.text, this.exchange.first(position, layer));
    });
    if (this.#nodes.length > before) this.answer.scrollTop = this.answer.scrollHeight;
  }

  #colour(position, text, expert) {
    const key = `${expert} ${text}`;
    if (this.#shown[position] === key) return;
    this.#shown[position] = key;
    colour(this.#nodes[position], text, expert, this.exchange.shape.experts);
  }

  #made({ written }, position) {
    const box = written ? this.answer : this.question;
    const node = element("span", { role: "option", tabIndex: box.childElementCount ? -1 : 0 });
    node.dataset.position = String(position);
    box.append(node);
    return node;
  }
}

/** Returns the class that has an expert's colour. */
export function colourOf(expert) {
  return `e${expert % COLOURS}`;
}

function colour(node, text, expert, experts) {
  const known = expert !== null;
  const shown = text === null ? "▯" : text.replaceAll("\n", "↵\n");
  node.className = known ? `token ${colourOf(expert)}` : "token";
  node.dataset.expert = known ? String(expert) : "";
  node.ariaLabel = `${text ?? "a token of the reasoning"}, ${known ? `expert ${expert}` : "without experts"}`;
  node.replaceChildren(shown, ...(known && experts > COLOURS ? [element("sub", {}, String(expert))] : []));
}

function group(label, pick) {
  const box = element("div", { className: "tokens", role: "listbox", ariaLabel: label });
  const choose = (event) => {
    const token = event.target.closest(".token");
    if (token) pick(Number(token.dataset.position));
  };
  for (const kind of ["pointerover", "click", "focusin"]) box.addEventListener(kind, choose);
  box.addEventListener("keydown", (event) => walk(event, box));
  return box;
}

/** Moves the focus to another token; Tab reaches only one of them. */
function walk(event, box) {
  const from = event.target.closest(".token");
  const to = target(event.key, [...box.children], from);
  if (!to) return;
  event.preventDefault();
  from.tabIndex = -1;
  to.tabIndex = 0;
  to.focus();
}

function target(key, all, from) {
  if (key === "Home") return all[0];
  if (key === "End") return all.at(-1);
  return key in STEPS ? all[all.indexOf(from) + STEPS[key]] : undefined;
}

/** Returns a table of all experts of one position, with their weights. */
export function experts(exchange, position) {
  const { text, written } = exchange.tokens()[position];
  const name = text === null ? "a token of the reasoning" : `“${text.replaceAll("\n", "↵")}”`;
  const caption = element("caption", {}, `Token ${position}, ${name}, of the ${written ? "answer" : "question"}`);
  if (position >= exchange.positions) {
    return element("p", {}, `${caption.textContent}: it was written last, and no expert has read it.`);
  }
  const rows = exchange.shape.layers.map((layer, n) => {
    const cells = exchange.chosen(position, n).map(([expert, weight]) => {
      const swatch = element("span", { className: `swatch ${colourOf(expert)}` }, String(expert));
      return element("td", {}, swatch, ` ${weight.toFixed(2)}`);
    });
    return element("tr", {}, element("th", { scope: "row" }, `layer ${layer}`), ...cells);
  });
  return element("table", {}, caption, element("tbody", {}, ...rows));
}
