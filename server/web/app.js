// Puts the parts of the page together. The state is one conversation, and the answer that is being written, if any.

import { answer } from "./answer.js";
import { hasKey, health, models, setKey } from "./api.js";
import { button, byId, element } from "./dom.js";
import { clearLens, initLens, refreshLens, watched } from "./lens.js";
import { chosenParameters, initSettings, remember, systemMessages } from "./settings.js";
import { initSidebar, showSidebar } from "./sidebar.js";
import * as store from "./store.js";
import { isSend, setBusy, showThread } from "./thread.js";

const EXAMPLES = [
  "Explain in three sentences how a mixture of experts works.",
  "Write a Python function that merges two sorted lists.",
  "Suggest five names for a small printing press.",
];
const SAVE_EVERY = 1000; // milliseconds, while an answer is written
const RETRY = 1000; // milliseconds between two attempts to reach a server that is not ready

let conversation = store.conversations()[0] ?? store.newConversation();
let writing = null; // the AbortController of the answer that is being written

// --- asking -------------------------------------------------------------------------------------------------------

function send(text) {
  conversation.messages.push({ role: "user", content: text });
  return ask();
}

/** Drops what follows a message, and continues with another text from there. */
function edit(index, text) {
  conversation.messages.length = index;
  return send(text);
}

function regenerate(index) {
  conversation.messages.length = index;
  return ask();
}

/** Lets the model answer the last message. */
async function ask() {
  const asked = conversation; // another may be opened meanwhile
  const { signal } = (writing = new AbortController());
  const messages = [...systemMessages(), ...asked.messages.filter(saysSomething).map(asSent)];
  const { body, take, end } = watched({ model: byId("model").value, messages, ...chosenParameters() });
  const message = { role: "assistant", content: "" };
  asked.messages.push(message);
  const view = show();
  view.begin();
  focusPrompt();
  const saving = setInterval(() => keepAgain(asked), SAVE_EVERY);
  await answer(body, message, signal, {
    changed: (chunk) => (view.changed(), chunk && take(chunk)),
    waiting: (reason) => view.waiting(reason),
  });
  end(message);
  clearInterval(saving);
  view.end();
  keepAgain(asked);
  if (message.error?.status === 401) askForKey();
  if (signal !== writing?.signal) return; // another conversation is shown by now
  writing = null;
  showControls();
}

function stop() {
  writing?.abort();
}

const saysSomething = (message) => message.role === "user" || message.content !== "";
const asSent = ({ role, content }) => ({ role, content });

// --- showing ------------------------------------------------------------------------------------------------------

/** Shows everything from the state; returns the view of the last message. */
function show() {
  keep(conversation);
  showSidebar(conversation, { open, remove });
  const view = showThread(conversation, { edit, regenerate });
  showControls();
  return view;
}

function showControls() {
  setBusy(writing !== null);
  byId("send").hidden = writing !== null;
  byId("stop").hidden = writing === null;
}

function notice(text) {
  byId("notice").textContent = text;
}

// --- the conversations ----------------------------------------------------------------------------------------------

/** Keeps a conversation, unless it is empty. */
function keep(kept) {
  if (!kept.messages.length) return;
  try {
    store.save(kept);
  } catch {
    notice("The browser cannot store this conversation: its storage is full or forbidden. Delete some others.");
  }
}

/** Saves the conversation, unless it was deleted meanwhile. */
function keepAgain(kept) {
  if (store.has(kept.id)) keep(kept);
}

function turnTo(next) {
  stop();
  writing = null;
  conversation = next;
  clearLens();
  show();
  focusPrompt();
}

function open(id) {
  if (id === conversation.id) return focusPrompt();
  turnTo(store.conversations().find((kept) => kept.id === id) ?? store.newConversation());
}

function remove(id) {
  store.remove(id);
  if (id === conversation.id) turnTo(store.newConversation());
  else show();
}

function clear() {
  store.conversations().forEach(({ id }) => store.remove(id));
  turnTo(store.newConversation());
}

// --- the server -----------------------------------------------------------------------------------------------------

/** Fills the list of models; asks for a key where one is needed, and again and again until the server is ready. */
async function connect() {
  try {
    showModels(await models());
    byId("key-form").hidden = true;
    await health();
    notice("");
    await refreshLens();
  } catch (error) {
    if (error.status === 401) return askForKey(error.message);
    notice(error.message);
    setTimeout(connect, RETRY);
  }
}

/** Asks for a key, and says what was wrong with the last one, if there was one. */
function askForKey(reason = "") {
  notice(hasKey() ? reason : "");
  byId("key-form").hidden = false;
  byId("key").focus();
}

function showModels(names) {
  const chosen = store.settings().model;
  byId("model").replaceChildren(...names.map((name) => element("option", { value: name }, name)));
  byId("model").value = names.includes(chosen) ? chosen : names[0];
}

// --- the controls ---------------------------------------------------------------------------------------------------

/** Returns whether a message can be sent: no answer is being written, and the server has told what it serves. */
const mayAsk = () => writing === null && byId("model").value !== "";

function submitPrompt() {
  const field = byId("prompt");
  if (!mayAsk() || !field.value.trim()) return;
  send(field.value);
  field.value = "";
  fit(field);
}

/** Sets the focus, except on a phone, where it would bring up a keyboard over the answer. */
function focusPrompt() {
  if (matchMedia("(pointer: fine)").matches) byId("prompt").focus();
}

/** Makes the field as high as its text; the style sheet has the limit. */
function fit(field) {
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight + 2}px`;
}

function example(text) {
  return element("li", {}, button(text, "example", () => mayAsk() && send(text)));
}

function onSubmit(form, action) {
  byId(form).addEventListener("submit", (event) => (event.preventDefault(), action()));
}

/** Asks again for what was refused for want of a key. */
async function useKey() {
  setKey(byId("key").value.trim());
  byId("key").value = "";
  focusPrompt();
  await connect();
  const { messages } = conversation;
  if (mayAsk() && messages.at(-1)?.error?.status === 401) regenerate(messages.length - 1);
}

onSubmit("composer", submitPrompt);
onSubmit("key-form", useKey);
byId("prompt").addEventListener("input", (event) => fit(event.target));
byId("prompt").addEventListener("keydown", (event) => {
  if (isSend(event)) (event.preventDefault(), submitPrompt());
});
byId("stop").addEventListener("click", stop);
byId("model").addEventListener("change", (event) => remember("model", event.target.value));
byId("examples").append(...EXAMPLES.map(example));
addEventListener("keydown", (event) => event.key === "Escape" && !byId("settings").open && stop());
addEventListener("pagehide", () => keepAgain(conversation));
initSettings();
initLens();
initSidebar({ create: () => turnTo(store.newConversation()), clear });
show();
connect();
