// Shows two answers side by side, and a map of where their use of experts differs.

import { element } from "./dom.js";
import { between, bound } from "./lens-figures.js";
import { Heatmap } from "./lens-map.js";
import { TokenView } from "./lens-tokens.js";

const STRONG = 2; // times the difference that chance explains

export class PairView {
  /** `names` and `exchanges` are two each; `pick` is called with an exchange and a position. */
  constructor(names, exchanges, pick) {
    this.exchanges = exchanges;
    this.views = exchanges.map((exchange) => new TokenView(exchange, (position) => pick(exchange, position)));
    this.map = new Heatmap(exchanges[0].shape, "Difference of the use of experts by layer");
    this.words = element("p", { className: "hint" });
    const sides = this.views.map(({ node }, n) => element("div", {}, element("h3", {}, names[n]), node));
    const heading = element("h3", {}, "Difference in percentage points of all tokens, first less second");
    this.node = element("div", {}, element("div", { className: "pair" }, ...sides), heading, this.map.node, this.words);
  }

  update(layer) {
    this.views.forEach((view) => view.update(layer));
    const cells = between(...this.exchanges);
    this.map.show(cells.map((row, n) => row.map((cell, expert) => this.#shown(cell, n, expert))));
    this.words.textContent = this.#counts(cells.flat());
  }

  #shown({ difference, far, beyond }, n, expert) {
    const [a, b] = this.exchanges.map(({ counts, positions }) => `${counts[n][expert]} of ${positions} tokens`);
    const layer = this.exchanges[0].shape.layers[n];
    return {
      text: (100 * difference).toFixed(0),
      title: `Layer ${layer}, expert ${expert}: ${a} against ${b}; chance explains ${(100 * far).toFixed(0)} points.`,
      beyond,
      strong: Math.abs(difference) >= STRONG * far,
    };
  }

  #counts(cells) {
    const [a, b] = this.exchanges.map(({ positions }) => positions);
    const differing = cells.filter(({ beyond }) => beyond).length;
    return (
      `${a} tokens against ${b}. ${differing} of ${cells.length} cells differ by more than chance explains ` +
      `(${bound(cells.length).toFixed(1)} standard deviations, if tokens were independent).`
    );
  }
}
