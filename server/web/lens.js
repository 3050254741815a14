// Shows which experts serve each token, beside the chat. It asks the server for that only while it is open.

import { expertUse, spelled } from "./api.js";
import { byId, element } from "./dom.js";
import { Exchange, readable } from "./lens-data.js";
import { against, bound, repeated } from "./lens-figures.js";
import { Heatmap, useCells } from "./lens-map.js";
import { colourOf, experts, TokenView } from "./lens-tokens.js";

const INVITATION =
  "Ask something, or let an answer be regenerated: the lens shows which experts serve each token of it.";
const ASKED = { return_routed_experts: true, logprobs: true };
const LARGEST_SEED = 2 ** 31;

let shape = null; // of the model's experts; null until it is known, or if there is nothing to see
let shown = null; // { exchange, tokens, map } of the last answer that was watched
let frame = 0;

export function initLens() {
  byId("open-lens").addEventListener("click", () => setOpen(!isOpen()));
  byId("lens-layer").addEventListener("input", relayer);
}

/** Forgets the answer that is shown. */
export function clearLens() {
  shown = null;
  byId("lens-view").hidden = true;
  if (shape) say(INVITATION);
}

/** Learns what the model has to show, if the lens is open. */
export async function refreshLens() {
  if (!isOpen()) return;
  try {
    const { experts: found, note } = await expertUse();
    shape = note ? null : found;
    if (shape) prepare();
    say(note ?? (shown ? "" : INVITATION));
  } catch (error) {
    say(error.message);
  }
}

/** Returns the body with which to ask, take(chunk) and end(message). Without a lens to fill, they change nothing. */
export function watched(body) {
  if (!isOpen() || !shape) return { body, take() {}, end() {} };
  const whole = { ...body, ...ASKED, seed: body.seed ?? Math.floor(Math.random() * LARGEST_SEED) };
  const exchange = new Exchange(shape);
  begin(exchange);
  tell(exchange, whole);
  return {
    body: whole,
    take: (chunk) => (exchange.take(chunk), changed()),
    end: ({ error }) => error && say(error.message),
  };
}

/** Asks for the texts of the question's tokens. */
async function tell(exchange, { model, messages }) {
  try {
    exchange.prompt = readable(await spelled(model, messages));
    changed();
  } catch (error) {
    say(error.message);
  }
}

// --- the pane -------------------------------------------------------------------------------------------------------

const isOpen = () => !byId("lens").hidden;

function setOpen(open) {
  byId("lens").hidden = !open;
  byId("open-lens").ariaPressed = String(open);
  return refreshLens();
}

function say(text) {
  byId("lens-note").textContent = text;
}

/** Sets the controls for the model's layers and experts. */
function prepare() {
  byId("lens-layer").max = String(shape.layers.length);
  const numbers = Array.from({ length: shape.experts }, (_, expert) => expert);
  const swatch = (expert) => element("li", { className: `swatch ${colourOf(expert)}` }, String(expert));
  byId("lens-legend").replaceChildren(...numbers.map(swatch));
  showLayer();
}

function begin(exchange) {
  const pick = (position) => byId("lens-token").replaceChildren(experts(exchange, position));
  shown = { exchange, tokens: new TokenView(exchange, pick), map: new Heatmap(shape, "Use of experts by layer") };
  byId("lens-tokens").replaceChildren(shown.tokens.node);
  byId("lens-map").replaceChildren(shown.map.node);
  byId("lens-token").replaceChildren(element("p", {}, "Point at a token, or go to one with Tab and the arrow keys."));
  byId("lens-view").hidden = false;
  say("");
  changed();
}

/** Draws before the next frame, since chunks may come faster than the screen is drawn. */
function changed() {
  frame ||= requestAnimationFrame(() => {
    frame = 0;
    if (shown) draw();
  });
}

function draw() {
  const { exchange, tokens, map } = shown;
  const cells = against(exchange);
  tokens.update(layer());
  map.show(useCells(exchange, cells));
  byId("lens-counts").textContent = counts(exchange, cells.flat());
}

// --- the layer ------------------------------------------------------------------------------------------------------

/** Returns which of the sparse layers gives the colours; null: all together. */
function layer() {
  const chosen = Number(byId("lens-layer").value);
  return chosen ? chosen - 1 : null;
}

function relayer() {
  showLayer();
  changed();
}

function showLayer() {
  const name = layer() === null ? "all layers, by weight" : `layer ${shape.layers[layer()]}`;
  byId("lens-layer").setAttribute("aria-valuetext", name);
  byId("lens-layer-name").textContent = name;
}

// --- the words ------------------------------------------------------------------------------------------------------

/** Returns how much there is behind the colours, and what chance would give. */
function counts(exchange, cells) {
  const { positions } = exchange;
  const { experts: all, top_k: k } = exchange.shape;
  const coloured = cells.filter(({ beyond }) => beyond).length;
  const share = `${percent(k / all)} or ${((positions * k) / all).toFixed(1)} tokens`;
  return (
    `${positions} tokens, each served by ${k} of ${all} experts in every layer: the fair share of an expert is ${share}. ` +
    `The first expert is that of the token before in ${percent(repeated(exchange))} of all ` +
    `cases; chance gives ${percent(1 / all)}. ${coloured} of ${cells.length} cells are further from the fair share than ` +
    `chance explains (${bound(cells.length).toFixed(1)} standard deviations, if tokens were independent).`
  );
}

const percent = (share) => `${(100 * share).toFixed(1)}%`;
