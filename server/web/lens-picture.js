// Draws what the lens shows as an SVG file: headings, tokens, maps and words, from top to bottom.

const NAMESPACE = "http://www.w3.org/2000/svg";
const PARTS = "h3, .tokens, .map, .hint, #lens-legend";
const COLUMNS = 100; // characters of a line
const CHARACTER = 8; // pixels, to which each text is fitted, whatever font the viewer has
const LINE = 22;
const MARGIN = 24;
const CELL = 42;
const ZERO = 0x2080; // a small zero; the other digits follow it

/** Returns the text of an SVG file that shows the visible parts within a node. */
export function picture(root) {
  const canvas = new Canvas(getComputedStyle(document.body));
  for (const node of root.querySelectorAll(PARTS)) {
    if (node.getClientRects().length) draw(canvas, node);
  }
  return canvas.text();
}

function draw(canvas, node) {
  if (node.matches(".map")) drawMap(canvas, node);
  else if (node.matches(".tokens, #lens-legend")) drawTokens(canvas, node);
  else drawWords(canvas, node.textContent);
}

function drawTokens(canvas, box) {
  let column = 0;
  for (const node of box.children) {
    const text = [...written(node).replaceAll("\n", "")];
    if (column + text.length > COLUMNS) column = canvas.next();
    canvas.box(MARGIN + column * CHARACTER, text, text.length * CHARACTER, getComputedStyle(node));
    column += text.length;
    if (node.textContent.includes("\n")) column = canvas.next();
  }
  canvas.next();
}

/** Returns the text of a token, and the number of its expert in small digits, where the lens shows it. */
function written(node) {
  const small = (digit) => String.fromCodePoint(ZERO + Number(digit));
  const [text, number] = node.childNodes;
  return text.textContent + [...(number?.textContent ?? "")].map(small).join("");
}

function drawMap(canvas, table) {
  for (const row of table.rows) {
    [...row.cells].forEach((cell, n) => canvas.box(MARGIN + n * CELL, [...cell.textContent], CELL, getComputedStyle(cell)));
    canvas.next();
  }
}

function drawWords(canvas, words) {
  let line = "";
  for (const word of words.split(" ")) {
    if (line.length + word.length >= COLUMNS) line = (canvas.words(line), "");
    line += `${word} `;
  }
  canvas.words(line);
}

/** A Canvas grows downwards, line by line. */
class Canvas {
  #y = MARGIN;
  #svg = made("svg", {});
  #style;

  constructor(style) {
    this.#style = style;
    this.#svg.append(made("rect", { width: "100%", height: "100%", fill: style.backgroundColor }));
  }

  /** Goes to the next line; returns its first column. */
  next() {
    this.#y += LINE;
    return 0;
  }

  words(text) {
    this.#text(MARGIN, [...text.trim()], this.#style.color);
    this.next();
  }

  /** Draws a text on a ground of its own. */
  box(x, letters, width, { backgroundColor, color }) {
    this.#svg.append(made("rect", { x, y: this.#y, width, height: LINE - 2, fill: backgroundColor }));
    this.#text(x, letters, color);
  }

  text() {
    const [width, height] = [2 * MARGIN + COLUMNS * CHARACTER, this.#y + MARGIN];
    set(this.#svg, { width, height, viewBox: `0 0 ${width} ${height}`, "font-family": "monospace", "font-size": 13 });
    return new XMLSerializer().serializeToString(this.#svg);
  }

  #text(x, letters, fill) {
    if (!letters.length) return;
    const fitted = { textLength: letters.length * CHARACTER, lengthAdjust: "spacingAndGlyphs" };
    const node = made("text", { x, y: this.#y + LINE - 7, fill, "xml:space": "preserve", ...fitted });
    node.textContent = letters.join("").replaceAll(/[\0-\x1f\ufffe\uffff]|\p{Cs}/gu, "▯"); // no XML has these
    this.#svg.append(node);
  }
}

function made(tag, attributes) {
  return set(document.createElementNS(NAMESPACE, tag), attributes);
}

function set(node, attributes) {
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}
