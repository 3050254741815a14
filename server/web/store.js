// Keeps conversations and settings in localStorage, under one key each, so that tabs do not collide.

const PREFIX = `octavo:${new URL("../", import.meta.url).pathname}:`; // two servers may share an origin
const SETTINGS = `${PREFIX}settings`;
const CONVERSATION = `${PREFIX}conversation:`;

/** A conversation is { id, created, messages }; a message is { role, content } and what answer.js adds. */
export function newConversation() {
  return { id: randomId(), created: Date.now(), messages: [] };
}

/** Returns the conversations, the newest first. */
export function conversations() {
  const keys = Object.keys(localStorage).filter((key) => key.startsWith(CONVERSATION));
  return keys
    .map((key) => parsed(localStorage.getItem(key)))
    .filter((found) => Array.isArray(found?.messages))
    .sort((a, b) => b.created - a.created);
}

/** Saves a conversation. Throws QuotaExceededError when the browser's storage is full. */
export function save(conversation) {
  localStorage.setItem(CONVERSATION + conversation.id, JSON.stringify(conversation));
}

export function has(id) {
  return localStorage.getItem(CONVERSATION + id) !== null;
}

export function remove(id) {
  localStorage.removeItem(CONVERSATION + id);
}

/** Returns its name in lists, which is the beginning of its first message. */
export function title(conversation) {
  const first = conversation.messages.find((message) => message.role === "user")?.content.trim() ?? "";
  return [...first.split("\n", 1)[0]].slice(0, 60).join("") || "New chat";
}

/** Returns the settings that were chosen: { system, model, temperature, ... }. */
export function settings() {
  return parsed(localStorage.getItem(SETTINGS)) ?? {};
}

export function saveSettings(chosen) {
  localStorage.setItem(SETTINGS, JSON.stringify(chosen));
}

/** Makes an id without crypto.randomUUID, which exists on https and localhost only. */
function randomId() {
  return [...crypto.getRandomValues(new Uint8Array(12))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null; // another program wrote it, or it was cut off
  }
}
