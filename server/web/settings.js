// Shows the settings dialog, with the system prompt and the sampling parameters. It saves them as they are typed.

import { byId, element } from "./dom.js";
import { saveSettings, settings } from "./store.js";

// The server has the bounds, and names a parameter that is beyond them. Steps are for the arrow keys only.
const PARAMETERS = [
  { name: "temperature", hint: "0 is always the likeliest token", step: 0.1 },
  { name: "top_p", hint: "the likeliest, up to this share, 0 to 1", step: 0.05 },
  { name: "top_k", hint: "so many of the likeliest, 0 for all", step: 1 },
  { name: "min_p", hint: "share of the likeliest one's, 0 to 1", step: 0.05 },
  { name: "max_tokens", hint: "the longest answer, in tokens", step: 16 },
  { name: "seed", hint: "the same one, the same answer", step: 1 },
];
const STOP = { name: "stop", hint: "what ends the answer, one a line, four at most" };

export function initSettings() {
  byId("parameters").append(...PARAMETERS.map(numberField), stopField());
  byId("open-settings").addEventListener("click", () => byId("settings").showModal());
  byId("reset-settings").addEventListener("click", () => {
    saveSettings({ model: settings().model });
    showValues();
  });
  byId("settings").addEventListener("input", (event) => remember(event.target.name, event.target.value));
  showValues();
}

export function remember(name, value) {
  saveSettings({ ...settings(), [name]: value });
}

/** Returns what the settings add to a request: only what was filled in. */
export function chosenParameters() {
  const chosen = settings();
  const numbers = PARAMETERS.filter(({ name }) => chosen[name]).map(({ name }) => [name, Number(chosen[name])]);
  const stops = (chosen.stop ?? "").split("\n").filter((line) => line !== "");
  return { ...Object.fromEntries(numbers), ...(stops.length ? { stop: stops } : {}) };
}

/** Returns a list with the system message, or an empty one. */
export function systemMessages() {
  const content = settings().system?.trim();
  return content ? [{ role: "system", content }] : [];
}

function showValues() {
  const chosen = settings();
  for (const { name } of [{ name: "system" }, ...PARAMETERS, STOP]) byId(`set-${name}`).value = chosen[name] ?? "";
}

function numberField({ name, hint, step }) {
  return field(name, hint, element("input", { name, step, type: "number", placeholder: "default" }));
}

function stopField() {
  return field(STOP.name, STOP.hint, element("textarea", { name: STOP.name, rows: 2, placeholder: "None" }));
}

function field(name, hint, control) {
  control.id = `set-${name}`;
  control.setAttribute("aria-describedby", `${name}-hint`);
  const label = element("label", { htmlFor: control.id }, element("code", {}, name));
  const note = element("p", { id: `${name}-hint`, className: "hint" }, hint);
  return element("div", { className: "field" }, label, control, note);
}
