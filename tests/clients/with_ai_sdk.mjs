// npm: ai @ai-sdk/openai-compatible zod
// Checks the Vercel AI SDK, with its provider for servers like this one.

import assert from "node:assert/strict";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, Output, streamText, tool as asTool } from "ai";
import { z } from "zod";
import { api, limit, model as name, question, run } from "./report.mjs";

const provider = createOpenAICompatible({
  name: "octavo", baseURL: api, apiKey: "none", includeUsage: true, supportsStructuredOutputs: true,
});
const model = provider.chatModel(name);
const city = z.object({ city: z.string().max(20) });

async function plain() {
  const answer = await generateText({ model, prompt: question, maxOutputTokens: limit });
  assert.ok(answer.text);
  assert.ok(answer.usage.outputTokens <= limit);
}

async function streamed() {
  const answer = streamText({ model, prompt: question, maxOutputTokens: limit });
  let told = "";
  for await (const part of answer.textStream) told += part;
  assert.ok(told);
  assert.equal(told, await answer.text);
  assert.ok((await answer.usage).outputTokens <= limit);
}

async function completion() {
  const answer = await generateText({
    model: provider.completionModel(name), prompt: "An octavo is", maxOutputTokens: limit,
  });
  assert.ok(answer.text);
}

async function tool() {
  const tools = { get_weather: asTool({ description: "The weather in a city.", inputSchema: city }) };
  for (const ask of [generateText, streamText]) {
    const answer = ask({ model, prompt: question, tools, toolChoice: "required", maxOutputTokens: 64 });
    const [call] = await (await answer).toolCalls;
    city.parse(call.input);
  }
}

async function structured() {
  const answer = await generateText({
    model, prompt: question, output: Output.object({ schema: city }), maxOutputTokens: 64,
  });
  city.parse(answer.output);
}

await run(plain, streamed, completion, tool, structured);
