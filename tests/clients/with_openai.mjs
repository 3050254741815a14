// npm: openai zod
// Checks OpenAI's own package for JavaScript.

import assert from "node:assert/strict";
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";
import { api, limit, model, question, run } from "./report.mjs";

const client = new OpenAI({ baseURL: api, apiKey: "none" });
const messages = [{ role: "user", content: question }];
const city = z.object({ city: z.string().max(20) });
const weather = { type: "function", function: { name: "get_weather", parameters: z.toJSONSchema(city) } };

async function plain() {
  const answer = await client.chat.completions.create({ model, messages, max_tokens: limit });
  assert.ok(answer.choices[0].message.content);
  assert.ok(answer.usage.completion_tokens <= limit);
}

async function streamed() {
  const stream = client.chat.completions.stream({
    model, messages, max_tokens: limit, stream_options: { include_usage: true },
  });
  let told = "";
  stream.on("content", (delta) => { told += delta; });
  const whole = await stream.finalChatCompletion();
  assert.equal(told, whole.choices[0].message.content);
  assert.ok(whole.usage.completion_tokens <= limit);
}

async function ended() {
  const stream_options = { include_usage: true };
  const stream = await client.chat.completions.create({ model, messages, max_tokens: limit, stream: true, stream_options });
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  const last = chunks.at(-2);
  assert.deepEqual(last.choices[0].delta, {});
  assert.ok(["stop", "length"].includes(last.choices[0].finish_reason));
  assert.deepEqual(chunks.at(-1).choices, []);
  const texts = await client.completions.create({
    model, prompt: question, max_tokens: limit, stream: true, stream_options,
  });
  for await (const chunk of texts) assert.equal(chunk.usage === null, chunk.choices.length > 0);
}

async function aborted() {
  const stream = await client.chat.completions.create({ model, messages, stream: true });
  for await (const chunk of stream) {
    assert.equal(chunk.object, "chat.completion.chunk");
    break; // closes the connection
  }
}

async function errors() {
  await assert.rejects(client.chat.completions.create({ model: "another", messages }), OpenAI.NotFoundError);
  await assert.rejects(client.chat.completions.create({ model, messages, top_p: 2 }), OpenAI.BadRequestError);
  const code = "decimal_above_max_value";
  await assert.rejects(client.chat.completions.create({ model, messages, temperature: 3 }), { code, param: "temperature" });
}

async function tool() {
  const answer = await client.chat.completions.create({
    model, messages, tools: [weather], tool_choice: "required", max_tokens: 64,
  });
  const [call] = answer.choices[0].message.tool_calls;
  city.parse(JSON.parse(call.function.arguments));
}

async function toolStreamed() {
  const stream = client.chat.completions.stream({
    model, messages, tools: [weather], tool_choice: "required", max_tokens: 64,
  });
  const whole = await stream.finalChatCompletion();
  city.parse(JSON.parse(whole.choices[0].message.tool_calls[0].function.arguments));
}

async function structured() {
  const answer = await client.chat.completions.parse({
    model, messages, response_format: zodResponseFormat(city, "place"), max_tokens: 64,
  });
  assert.equal(typeof answer.choices[0].message.parsed.city, "string");
}

await run(plain, streamed, ended, aborted, errors, tool, toolStreamed, structured);
