// Turns blocks of Markdown, the subset that models write, into DOM nodes. HTML in it is text like any other.
//
//   blocks(text)    -> the sources of the top-level blocks, in order
//   render(source)  -> the nodes of such a block (or of any text)
//
// A growing text changes only its last blocks, so that only those have to be rendered again.

import { copyButton, element } from "./dom.js";
import { inline } from "./inline.js";

const DEEPEST = 8; // levels of quotes and lists within each other; what is deeper is a paragraph

const FENCE = /^ {0,3}(`{3,}|~{3,}) *([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?: +(.*))?$/;
const RULE = /^ {0,3}([-*_])(?: *\1){2,} *$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])( +|$)/;
const DELIMITERS = /^ *\|?(?: *:?-+:? *\|)* *:?-+:? *\|? *$/;

export function blocks(text) {
  return [...split(text.replaceAll("\r\n", "\n").split("\n"))].map((block) => block.lines.join("\n"));
}

export function render(source) {
  return nodes(source.split("\n"), 0);
}

function nodes(lines, depth) {
  return [...split(lines)].map((block) => BUILD[block.kind](block.lines, depth));
}

/** Cuts lines into blocks: { kind, lines }. */
function* split(lines) {
  let at = 0;
  while (at < lines.length) {
    if (lines[at].trim() === "") {
      at += 1;
      continue;
    }
    const kind = kindOf(lines, at);
    const end = END[kind](lines, at);
    yield { kind, lines: lines.slice(at, end) };
    at = end;
  }
}

function kindOf(lines, at) {
  const line = lines[at];
  if (FENCE.test(line)) return "code";
  if (HEADING.test(line)) return "heading";
  if (RULE.test(line)) return "rule";
  if (QUOTE.test(line)) return "quote";
  if (ITEM.test(line)) return "list";
  if (line.includes("|") && lines[at + 1]?.includes("-") && DELIMITERS.test(lines[at + 1])) return "table";
  return "paragraph";
}

/** Returns the index behind the last line of the block that begins at a line. */
const END = {
  code(lines, at) {
    const fence = lines[at].match(FENCE)[1];
    return Math.min(after(lines, at + 1, (line) => !closesFence(line, fence)) + 1, lines.length);
  },
  heading: (lines, at) => at + 1,
  rule: (lines, at) => at + 1,
  quote: (lines, at) => after(lines, at, (line) => QUOTE.test(line)),
  table: (lines, at) => after(lines, at + 2, (line) => line.includes("|")),
  list(lines, at) {
    const ordered = isOrdered(lines[at]);
    let end = at;
    while (end < lines.length) {
      const next = after(lines, end, (line) => line.trim() === ""); // the first line that is not empty
      const line = lines[next] ?? "";
      const item = ITEM.test(line) && !RULE.test(line);
      const goesOn = item ? isNested(lines[at], line) || isOrdered(line) === ordered : isNested(lines[at], line);
      const lazy = next === end && end > at && line !== "" && kindOf(lines, next) === "paragraph";
      if (!goesOn && !lazy) break;
      end = next + 1;
    }
    return Math.max(end, at + 1);
  },
  paragraph: (lines, at) => {
    let end = at + 1;
    while (end < lines.length && lines[end].trim() !== "" && kindOf(lines, end) === "paragraph") end += 1;
    return end;
  },
};

const BUILD = {
  code(lines) {
    const [, fence, info] = lines[0].match(FENCE);
    const closed = lines.length > 1 && closesFence(lines.at(-1), fence); // it may still be streaming
    const inner = lines.slice(1, closed ? -1 : undefined);
    const code = element("code", {}, inner.map((line) => dedented(line, indentation(lines[0]))).join("\n"));
    const language = element("span", {}, info.trim().split(" ", 1)[0] || "text");
    const bar = element("figcaption", {}, language, copyButton(() => code.textContent));
    return element("figure", { className: "code" }, bar, element("pre", { tabIndex: 0 }, code));
  },
  heading(lines) {
    const [, marks, text = ""] = lines[0].match(HEADING);
    return element(`h${marks.length}`, {}, ...inline(text.trim().replace(/(^| )#+$/, "")));
  },
  rule: () => element("hr"),
  quote(lines, depth) {
    const inner = lines.map((line) => line.replace(QUOTE, ""));
    return depth < DEEPEST ? element("blockquote", {}, ...nodes(inner, depth + 1)) : BUILD.paragraph(inner);
  },
  list(lines, depth) {
    if (depth >= DEEPEST) return BUILD.paragraph(lines);
    const ordered = isOrdered(lines[0]);
    const list = element(ordered ? "ol" : "ul");
    if (ordered) list.start = parseInt(lines[0].match(ITEM)[2], 10);
    list.append(...items(lines).map((item) => element("li", {}, ...itemNodes(item, depth + 1))));
    return list;
  },
  table(lines) {
    const aligns = cells(lines[1]).map((cell) => cell.match(/^:-+:$/) ? "center" : cell.endsWith(":") ? "right" : "");
    const row = (tag, line) => {
      const made = aligns.map((align, at) => element(tag, { className: align }, ...inline(cells(line)[at] ?? "")));
      return element("tr", {}, ...made);
    };
    const head = element("thead", {}, row("th", lines[0]));
    const body = element("tbody", {}, ...lines.slice(2).map((line) => row("td", line)));
    return element("div", { className: "table", tabIndex: 0 }, element("table", {}, head, body));
  },
  paragraph: (lines) => element("p", {}, ...inline(lines.map((line) => line.trim()).join("\n"))),
};

/** Returns the lines of each item, without its marker and indentation. */
function items(lines) {
  const found = [];
  let width = 0; // characters of the marker and the spaces around it
  for (const line of lines) {
    const match = isNested(lines[0], line) ? null : line.match(ITEM);
    if (match) {
      width = match[1].length + match[2].length + Math.min(match[3].length || 1, 4);
      found.push([line.slice(width)]);
    } else {
      found.at(-1).push(dedented(line, width));
    }
  }
  return found;
}

/** Puts no paragraph around the text of an item in a tight list. */
function itemNodes(lines, depth) {
  const made = nodes(lines, depth);
  const loose = made.filter((node) => node.tagName === "P").length > 1;
  return loose ? made : made.flatMap((node) => (node.tagName === "P" ? [...node.childNodes] : [node]));
}

function cells(line) {
  const inner = line.trim().replace(/^\|/, "").replace(/\|$/, "");
  return inner.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

const isOrdered = (line) => /^\s*\d/.test(line);

/** Returns whether the line closes the fence: it has the same kind and is at least as long. */
const closesFence = (line, fence) => line.includes(fence) && !line.replaceAll(fence[0], "").trim();

const dedented = (line, width) => line.slice(Math.min(width, indentation(line)));

const indentation = (line) => line.length - line.trimStart().length;

/** Returns whether a line belongs into the list item that another line begins. */
const isNested = (first, line) => line.trim() !== "" && indentation(line) > indentation(first) + 1;

/** Returns the first index from `at` on whose line fails the test, or the number of lines. */
function after(lines, at, test) {
  while (at < lines.length && test(lines[at])) at += 1;
  return Math.min(at, lines.length);
}
