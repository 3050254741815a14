// Asks for one answer: waits while the server is loading, puts the chunks into a message and measures them.

import { chat, health } from "./api.js";

const PAUSE = 1000; // milliseconds between two looks at /health

/**
 * Fills `message` (its reasoning, content, finish, stats and error) until the answer ends, in whatever way; never throws.
 * `show` has changed(chunk), called after each chunk and without one at the end, and waiting(reason), called while the server is not ready.
 */
export async function answer(body, message, signal, show) {
  const meter = new Meter();
  try {
    for await (const chunk of whenReady(body, signal, show, meter)) {
      take(chunk, message, meter);
      show.changed(chunk);
    }
  } catch (error) {
    if (signal.aborted) message.finish = "stopped";
    else message.error = { message: error.message, status: error.status ?? 0 };
  }
  message.stats = meter.stats();
  show.changed();
}

/** Sends a request again that was refused because the server was loading, once it has loaded. */
async function* whenReady(body, signal, show, meter) {
  for (;;) {
    try {
      meter.begin();
      yield* chat(body, signal);
      return;
    } catch (error) {
      if (error.status !== 503) throw error;
      show.waiting(error.message);
    }
    await untilReady(signal, show);
  }
}

async function untilReady(signal, show) {
  for (;;) {
    await pause(PAUSE, signal);
    try {
      return await health(signal);
    } catch (error) {
      if (signal.aborted) throw error;
      show.waiting(error.message);
    }
  }
}

function take(chunk, message, meter) {
  const choice = chunk.choices[0];
  const { content = "", reasoning_content: reasoning = "" } = choice?.delta ?? {};
  if (content || reasoning) meter.piece();
  if (reasoning) message.reasoning = (message.reasoning ?? "") + reasoning;
  message.content += content;
  if (choice?.finish_reason) message.finish = choice.finish_reason;
  if (chunk.usage) meter.usage = chunk.usage;
}

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
  });
}

/** Measures times as the reader sees them, and tokens as the server counts them or, if it does not say, by chunks. */
class Meter {
  usage = null;
  #begun = 0;
  #first = null;
  #last = null;
  #pieces = 0;

  begin() {
    this.#begun = performance.now();
  }

  piece() {
    this.#last = performance.now();
    this.#first ??= this.#last;
    this.#pieces += 1;
  }

  /** Returns seconds to the first token, tokens, and tokens per second after the first; null if there are none. */
  stats() {
    if (this.#first === null) return null;
    const tokens = this.usage?.completion_tokens ?? this.#pieces;
    const seconds = (this.#last - this.#first) / 1000;
    return {
      ttft: (this.#first - this.#begun) / 1000,
      tokens,
      rate: tokens > 1 && seconds > 0 ? (tokens - 1) / seconds : null,
      exact: this.usage !== null,
    };
  }
}
