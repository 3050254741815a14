// Renders openapi.json: what each operation takes and answers, and a form to try it.

import { button, byId, element } from "./dom.js";
import { Schemas } from "./schema.js";

const BASE = new URL("../", import.meta.url); // the page may be served under a prefix
const KEY = "octavo:key"; // the chat page keeps the key under this name, until the tab is closed

start();

async function start() {
  const key = byId("key");
  key.value = sessionStorage.getItem(KEY) ?? "";
  key.addEventListener("change", () => sessionStorage.setItem(KEY, key.value));
  try {
    const response = await fetch(new URL("openapi.json", BASE));
    if (!response.ok) throw new Error(`the server answered ${response.status}`);
    show(await response.json());
  } catch (error) {
    byId("introduction").textContent = `The description cannot be read: ${error.message}.`;
  }
}

function show(document) {
  const schemas = new Schemas(document);
  byId("introduction").textContent = document.info.description;
  const tags = new Map();
  for (const [path, methods] of Object.entries(document.paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      const [tag] = operation.tags;
      if (!tags.has(tag)) tags.set(tag, [element("h2", {}, tag)]);
      tags.get(tag).push(section(path, method, operation, schemas));
    }
  }
  byId("operations").append(...[...tags.values()].flat());
}

function section(path, method, operation, schemas) {
  const name = element("code", {}, element("span", { className: "method" }, method.toUpperCase()), ` ${path}`);
  const summary = element("summary", {}, name, element("span", { className: "says" }, ` ${operation.summary}`));
  const inside = element("div", { className: "inside" });
  if (operation.description !== operation.summary) inside.append(element("p", {}, operation.description));
  const schema = operation.requestBody?.content["application/json"].schema;
  if (schema) inside.append(element("h3", {}, "Parameters"), table(schemas.rows(schema)));
  inside.append(element("h3", {}, "Answers"), table(answers(operation, schemas)));
  inside.append(element("h3", {}, "Try it"), ...trial(path, method, operation));
  return element("details", { id: operation.operationId }, summary, inside);
}

function table(rows) {
  const lines = rows.map(({ name, type, required, description }) =>
    element(
      "tr",
      {},
      element("td", {}, element("code", {}, name)),
      element("td", {}, type + (required ? ", required" : "")),
      element("td", {}, description),
    ),
  );
  return element("div", { className: "scrolls" }, element("table", {}, element("tbody", {}, ...lines)));
}

/** Returns a row for each status and, under 200, rows for the fields of its object. */
function answers(operation, schemas) {
  return Object.entries(operation.responses).flatMap(([status, { description, content }]) => {
    const types = Object.keys(content).join(" or ");
    const stream = content["text/event-stream"]?.schema.description ?? "";
    const row = { name: status, type: types, required: false, description: stream || description };
    const schema = status === "200" ? content["application/json"]?.schema : undefined;
    return schema ? [row, ...schemas.rows(schema, "", 2).map((field) => ({ ...field, required: false }))] : [row];
  });
}

function trial(path, method, operation) {
  const inputs = (operation.parameters ?? []).map((parameter) => ({
    name: parameter.name,
    input: element("input", { required: true, placeholder: parameter.description, ariaLabel: parameter.name }),
  }));
  const example = operation.requestBody?.content["application/json"].example;
  const body = operation.requestBody && element("textarea", { spellcheck: false, ariaLabel: "Body, as JSON" });
  if (body) body.value = JSON.stringify(example ?? {}, null, 2);
  const stream = element("input", { type: "checkbox" });
  const streams = Boolean(operation.responses["200"].content["text/event-stream"]);
  const send = element("button", { type: "submit", className: "primary" }, "Send");
  const stop = button("Stop", "", () => controller.abort());
  const output = element("pre", { hidden: true, tabIndex: 0, ariaLabel: "Answer" });
  stop.disabled = true;
  let controller = new AbortController();
  const form = element("form", {}, ...inputs.map(({ input }) => input), ...(body ? [body] : []));
  const row = element("div", { className: "row" }, send, stop);
  if (streams) row.append(element("label", {}, stream, " as a stream"));
  form.append(row);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    controller = new AbortController();
    send.disabled = true;
    stop.disabled = false;
    const filled = inputs.reduce((at, { name, input }) => at.replace(`{${name}}`, encodeURI(input.value)), path);
    await run(output, filled, method, bodyOf(body, stream), controller.signal);
    send.disabled = false;
    stop.disabled = true;
  });
  return [form, output];
}

/** Returns the body as it was written, unless a stream is asked for. */
function bodyOf(field, stream) {
  if (!field) return undefined;
  try {
    return stream.checked ? JSON.stringify({ ...JSON.parse(field.value), stream: true }) : field.value;
  } catch {
    return field.value; // the server says what is wrong with it
  }
}

/** Shows the status and then the answer, as it arrives. */
async function run(output, path, method, body, signal) {
  output.hidden = false;
  output.textContent = "…";
  const key = sessionStorage.getItem(KEY);
  const headers = {
    ...(body === undefined ? {} : { "Content-Type": "application/json" }),
    ...(key ? { Authorization: "Bearer " + String.fromCharCode(...new TextEncoder().encode(key)) } : {}),
  };
  try {
    const response = await fetch(new URL(path.slice(1), BASE), { method: method.toUpperCase(), headers, body, signal });
    output.textContent = `${response.status} ${response.statusText}\n\n`;
    const whole = response.headers.get("content-type").startsWith("application/json");
    if (whole) output.append(JSON.stringify(await response.json(), null, 2));
    else await tell(output, response.body);
  } catch (error) {
    output.append(error.name === "AbortError" ? "\n(stopped)" : `The server cannot be reached: ${error.message}`);
  }
}

async function tell(output, stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    output.append(part.value);
    output.scrollTop = output.scrollHeight;
  }
}
