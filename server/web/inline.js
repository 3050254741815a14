// Turns Markdown within a line into DOM nodes. It scans once from left to right; what is no markup stays as it is.

import { element } from "./dom.js";

const SCHEMES = new Set(["http:", "https:", "mailto:"]);
const DEEPEST = 8; // levels of emphasis and links within each other
const SPANS = [
  ["**", "strong"],
  ["__", "strong"],
  ["~~", "del"],
  ["*", "em"],
  ["_", "em"],
];
const PLAIN = /[^\\`[\]!*_~<\nh]+|./suy; // `h` may begin a bare link
const LABEL = /(!?)\[((?:[^[\]\\\n]|\\.|\[[^[\]\n]*\])*)\]/;
const ADDRESS = /<?([^\s<>()]*(?:\([^\s<>()]*\)[^\s<>()]*)*)>?/; // parentheses must come in pairs
const TITLE = /(?:\s+"[^"\n]*")?/;
const LINK = new RegExp(`${LABEL.source}\\(\\s*${ADDRESS.source}${TITLE.source}\\s*\\)`, "suy");
const ANGLE = /<((?:https?:\/\/|mailto:)[^\s<>]+)>/suy;
const BARE = /https?:\/\/[^\s<>"'`]*[^\s<>"'`.,;:!?)\]*_~]/suy;

export function inline(text, depth = 0) {
  const out = new Nodes();
  const missing = new Set(); // closing marks that the rest of the text does not have
  let at = 0;
  while (at < text.length) {
    const step = escape(text, at) ?? code(text, at, missing) ?? link(text, at, depth) ?? span(text, at, depth, missing);
    const [made, end] = step ?? plain(text, at);
    out.add(made);
    at = end;
  }
  return out.nodes;
}

/** Makes a link, or null if the address is not allowed: javascript:, data: and relative ones are not followed. */
export function safeLink(address, ...children) {
  const url = URL.canParse(address) ? new URL(address) : null;
  if (!SCHEMES.has(url?.protocol)) return null;
  return element("a", { href: url.href, target: "_blank", rel: "noopener noreferrer nofollow" }, ...children);
}

// Each of these takes the text and a position; each returns [nodes or text, the position behind it], or null.

function escape(text, at) {
  if (text[at] === "\n") return [element("br"), at + 1];
  return text[at] === "\\" && /[!-/:-@[-`{-~]/.test(text[at + 1] ?? "") ? [text[at + 1], at + 2] : null;
}

function code(text, at, missing) {
  if (text[at] !== "`") return null;
  const ticks = matchAt(/`+/y, text, at)[0];
  const end = missing.has(ticks) ? -1 : closingTicks(text, at + ticks.length, ticks);
  if (end < 0) {
    missing.add(ticks);
    return [ticks, at + ticks.length];
  }
  const inner = text.slice(at + ticks.length, end).replaceAll("\n", " ");
  const trimmed = /^ .*[^ ].* $/.test(inner) ? inner.slice(1, -1) : inner; // `` ` `` is a backtick
  return [element("code", {}, trimmed), end + ticks.length];
}

function closingTicks(text, from, ticks) {
  for (let at = text.indexOf(ticks, from); at >= 0; at = text.indexOf(ticks, at)) {
    const run = matchAt(/`+/y, text, at)[0].length;
    if (run === ticks.length) return at;
    at += run;
  }
  return -1;
}

function link(text, at, depth) {
  const bare = matchAt(ANGLE, text, at) ?? (/\w/.test(text[at - 1] ?? "") ? null : matchAt(BARE, text, at));
  if (bare) {
    const address = bare[1] ?? bare[0];
    const made = safeLink(address, address.replace(/^mailto:/, ""));
    return made && [made, at + bare[0].length];
  }
  const match = depth < DEEPEST && (text[at] === "[" || text[at] === "!") ? matchAt(LINK, text, at) : null;
  if (!match) return null;
  const [whole, image, label, address] = match;
  // No image is loaded: it would tell its host who reads this.
  const made = safeLink(address, ...(image ? [label || address] : inline(label, depth + 1)));
  made?.querySelectorAll("a").forEach((inner) => inner.replaceWith(...inner.childNodes)); // links never nest
  return made && [made, at + whole.length];
}

function span(text, at, depth, missing) {
  if (depth >= DEEPEST) return null;
  for (const [mark, tag] of SPANS) {
    if (!text.startsWith(mark, at) || missing.has(mark) || !opens(text, at, mark)) continue;
    const end = closing(text, at + mark.length, mark);
    if (end > 0) return [element(tag, {}, ...inline(text.slice(at + mark.length, end), depth + 1)), end + mark.length];
    missing.add(mark);
  }
  return null;
}

/** Tells emphasis from snake_case and 2 * 3 * 4. */
function opens(text, at, mark) {
  const before = text[at - 1] ?? " ";
  const next = text[at + mark.length] ?? " ";
  return !/\s/.test(next) && next !== mark[0] ? !(mark[0] === "_" && /\w/.test(before)) : mark === "**" && next === "*";
}

/** Returns where the mark is closed, or -1. What is escaped or code closes nothing. */
function closing(text, from, mark) {
  const runs = /\\.|`+|\*+|_+|~+/gsu;
  runs.lastIndex = from;
  for (let found; (found = runs.exec(text)); ) {
    const [run] = found;
    if (run[0] === "`") {
      const end = closingTicks(text, runs.lastIndex, run);
      if (end >= 0) runs.lastIndex = end + run.length;
    } else if (run[0] === mark[0] && found.index > from && closes(text, found.index, run, mark)) {
      return runs.lastIndex - mark.length;
    }
  }
  return -1;
}

function closes(text, at, run, mark) {
  const fits = mark.length === 1 ? run.length !== 2 : run.length >= 2;
  return fits && !/\s/.test(text[at - 1]) && !(mark[0] === "_" && /\w/.test(text[at + run.length] ?? ""));
}

function plain(text, at) {
  const taken = matchAt(PLAIN, text, at)[0];
  return [taken, at + taken.length];
}

function matchAt(expression, text, at) {
  expression.lastIndex = at;
  return expression.exec(text);
}

/** Collects nodes, and joins texts that follow each other. */
class Nodes {
  nodes = [];

  add(made) {
    const last = this.nodes.at(-1);
    if (typeof made === "string" && typeof last === "string") this.nodes[this.nodes.length - 1] = last + made;
    else this.nodes.push(made);
  }
}
