// Makes every call of the page to the server's API. Failures are ApiErrors with the server's own sentence.

import { events } from "./sse.js";

const BASE = new URL("../", import.meta.url); // the page may be served under a prefix
const KEY = "octavo:key";

export class ApiError extends Error {
  /** `status` is 0 if there was no answer at all, or if a stream failed after it had begun. */
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

/** Keeps the key until the tab is closed. */
export function setKey(key) {
  sessionStorage.setItem(KEY, key);
}

export function hasKey() {
  return Boolean(sessionStorage.getItem(KEY));
}

/** Returns the names of the models that are served. */
export async function models() {
  const response = await call("v1/models");
  return (await response.json()).data.map((model) => model.id);
}

/** Returns what the server tells of its experts: { experts, note, ... }; a dense model has null for `experts`. */
export async function expertUse() {
  return (await call("v1/experts")).json();
}

/** Returns the tokens of a conversation as the vocabulary spells them. */
export async function spelled(model, messages) {
  const response = await post("tokenize", { model, messages, return_token_strs: true });
  return (await response.json()).token_strs;
}

/** Returns when the server takes requests; otherwise throws ApiError, whose message says how far it has come. */
export async function health(signal) {
  await call("health", { signal });
}

/** Yields the chunks of a streamed chat completion. Throws ApiError, and AbortError when the signal is given. */
export async function* chat(body, signal) {
  const options = { stream: true, stream_options: { include_usage: true } };
  const response = await post("v1/chat/completions", { ...body, ...options }, signal);
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(chunk.error.message);
    yield chunk;
  }
  throw new ApiError("The connection ended before the answer did.");
}

function post(path, body, signal) {
  const headers = { "Content-Type": "application/json" };
  return call(path, { method: "POST", headers, body: JSON.stringify(body), signal });
}

async function call(path, options = {}) {
  const response = await send(path, options);
  if (!response.ok) throw new ApiError(await reason(response), response.status);
  return response;
}

async function send(path, options) {
  try {
    return await fetch(new URL(path, BASE), { ...options, headers: { ...options.headers, ...authorization() } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server cannot be reached.");
  }
}

/** Encodes a key as UTF-8, since headers hold bytes. */
function authorization() {
  const key = sessionStorage.getItem(KEY);
  return key ? { Authorization: "Bearer " + String.fromCharCode(...new TextEncoder().encode(key)) } : {};
}

async function reason(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `The server answered ${response.status} ${response.statusText}`.trim() + ".";
  }
}
