// Shows which experts serve each token, beside the chat. It asks the server for that only while it is open.

import { chat, expertUse, spelled } from "./api.js";
import { byId, element } from "./dom.js";
import { Exchange, readable } from "./lens-data.js";
import { against, bound, repeated } from "./lens-figures.js";
import { Heatmap, useCells } from "./lens-map.js";
import { PairView } from "./lens-pair.js";
import { picture } from "./lens-picture.js";
import { colourOf, experts, TokenView } from "./lens-tokens.js";
import { chosenParameters, systemMessages } from "./settings.js";

const INVITATION =
  "Ask something, or let an answer be regenerated: the lens shows which experts serve each token of it.";
const ASKED = { return_routed_experts: true, logprobs: true };
const LARGEST_SEED = 2 ** 31;
const COMPARED = 64; // tokens of each answer, unless the settings say how many
const card = element("div", { id: "lens-token" }); // about the token that the reader points at; it stands by its tokens

let shape = null; // of the model's experts; null until it is known, or if there is nothing to see
let control = false; // whether requests may switch experts off
let shown = null; // { exchange, body, tokens, map } of the last answer that was watched
let off = new Set(); // "layer,expert" of the experts to answer without
let pair = null; // the PairView
let asking = null; // the AbortController of what is being compared
let frame = 0;

export function initLens() {
  byId("open-lens").addEventListener("click", () => setOpen(!isOpen()));
  byId("lens-layer").addEventListener("input", relayer);
  byId("lens-again").addEventListener("click", answerAgain);
  byId("lens-save").addEventListener("click", save);
  byId("lens-compare").addEventListener("submit", (event) => (event.preventDefault(), compare()));
  addEventListener("keydown", (event) => event.key === "Escape" && asking?.abort());
}

/** Forgets the answer that is shown. */
export function clearLens() {
  asking?.abort();
  shown = pair = null;
  byId("lens-last").hidden = byId("lens-save").hidden = true;
  byId("lens-pair").replaceChildren();
  if (shape) say(INVITATION);
}

/** Learns what the model has to show, if the lens is open. */
export async function refreshLens() {
  if (!isOpen()) return;
  try {
    const { experts: found, note, control: allowed } = await expertUse();
    shape = note ? null : found;
    control = allowed;
    byId("lens-view").hidden = !shape;
    if (shape) prepare();
    say(note ?? (shown ? "" : INVITATION));
  } catch (error) {
    say(error.message);
  }
}

/** Returns the body with which to ask, take(chunk) and end(message). Without a lens to fill, they change nothing. */
export function watched(body) {
  if (!isOpen() || !shape) return { body, take() {}, end() {} };
  const whole = { ...body, ...ASKED, seed: body.seed ?? randomSeed() };
  const exchange = new Exchange(shape);
  begin(exchange, whole);
  tell(exchange, whole);
  return {
    body: whole,
    take: (chunk) => (exchange.take(chunk), changed()),
    end: ({ error }) => error && say(error.message),
  };
}

const randomSeed = () => Math.floor(Math.random() * LARGEST_SEED);

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

function begin(exchange, body) {
  clearLens();
  off = new Set();
  const tokens = new TokenView(exchange, (position) => detail("lens-tokens", exchange, position));
  shown = { exchange, body, tokens, map: new Heatmap(shape, "Use of experts by layer", control ? toggle : null) };
  card.replaceChildren(element("p", {}, "Point at a token, or go to one with Tab and the arrow keys."));
  byId("lens-tokens").replaceChildren(tokens.node, card);
  byId("lens-map").replaceChildren(shown.map.node);
  byId("lens-last").hidden = byId("lens-save").hidden = false;
  byId("lens-switches").hidden = !control;
  say("");
  showSwitches();
  changed();
}

function detail(place, exchange, position) {
  card.replaceChildren(experts(exchange, position));
  if (card.parentElement !== byId(place)) byId(place).append(card);
}

/** Draws before the next frame, since chunks may come faster than the screen is drawn. */
function changed() {
  frame ||= requestAnimationFrame(() => {
    frame = 0;
    if (shown) draw();
    pair?.update(layer());
  });
}

function draw() {
  const { exchange, tokens, map } = shown;
  const cells = against(exchange);
  tokens.update(layer());
  map.show(useCells(exchange, cells));
  byId("lens-counts").textContent = counts(exchange, cells.flat());
}

// --- two answers ----------------------------------------------------------------------------------------------------

/** Switches an expert off, or on again; returns whether it is off. */
function toggle(layer, expert) {
  const name = `${layer},${expert}`;
  if (!off.delete(name)) off.add(name);
  showSwitches();
  return off.has(name);
}

function showSwitches() {
  byId("lens-again").disabled = off.size === 0;
  byId("lens-again").textContent = off.size ? `Answer again without ${off.size} of them` : "Answer again";
}

/** Asks the same with the same seed, but without the experts that are switched off. */
function answerAgain() {
  const mask = [...off].map((name) => name.split(",").map(Number));
  const gone = mask.map(([layer, expert]) => `${expert} of layer ${layer}`).join(", ");
  const names = ["With all experts", `Without expert ${gone}`];
  return showPair(names, [shown.exchange, new Exchange(shape)], [null, { ...shown.body, expert_mask: mask }]);
}

/** Asks two questions, each in a conversation of its own. */
function compare() {
  const questions = [byId("lens-first").value, byId("lens-second").value];
  if (!questions.every((text) => text.trim())) return say("Write two questions to compare.");
  const settings = { model: byId("model").value, max_tokens: COMPARED, seed: randomSeed(), ...chosenParameters() };
  const bodies = questions.map((content) => {
    return { ...settings, ...ASKED, messages: [...systemMessages(), { role: "user", content }] };
  });
  return showPair(["First", "Second"], [new Exchange(shape), new Exchange(shape)], bodies);
}

/** Shows two exchanges, and fills those that have a body to be asked with. */
async function showPair(names, exchanges, bodies) {
  asking?.abort();
  const { signal } = (asking = new AbortController());
  pair = new PairView(names, exchanges, (...of) => detail("lens-pair", ...of));
  byId("lens-pair").replaceChildren(pair.node);
  byId("lens-save").hidden = false;
  say("");
  changed();
  try {
    await Promise.all(bodies.map((body, n) => body && fill(exchanges[n], body, signal)));
  } catch (error) {
    if (!signal.aborted) say(error.message);
  }
}

async function fill(exchange, body, signal) {
  tell(exchange, body);
  for await (const chunk of chat(body, signal)) {
    exchange.take(chunk);
    changed();
  }
}

function save() {
  const href = URL.createObjectURL(new Blob([picture(byId("lens-view"))], { type: "image/svg+xml" }));
  element("a", { href, download: "lens.svg" }).click();
  setTimeout(() => URL.revokeObjectURL(href), 1000);
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
