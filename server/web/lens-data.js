// Holds which experts served the tokens of one question and its answer, as the server tells it.

/** An Exchange grows with the chunks of a stream. Positions count the tokens of the question, then of the answer. */
export class Exchange {
  prompt = null; // the texts of the question's tokens; null until they are known
  positions = 0; // of which the experts are known; nothing was computed from the last token of an answer
  #answer = [];
  #ids = [];
  #weights = [];
  #reasons = false;
  #stopped = false;

  /** `shape` has the layers that are sparse, and the numbers `experts` and `top_k` of each. */
  constructor(shape) {
    this.shape = shape;
    this.counts = shape.layers.map(() => new Array(shape.experts).fill(0)); // tokens, by layer and expert
    this.repeats = shape.layers.map(() => 0); // tokens whose first expert is that of the token before
  }

  /** Takes a chunk of a chat completion that was asked for log-probabilities and experts. */
  take(chunk) {
    const choice = chunk.choices[0];
    if (!choice) return;
    this.#reasons ||= Boolean(choice.delta?.reasoning_content);
    this.#stopped ||= choice.finish_reason === "stop";
    this.#answer.push(...(choice.logprobs?.content ?? []).map(({ token }) => token));
    if (choice.routed_experts) this.#add(choice.routed_experts, choice.routed_experts_weights);
  }

  /** Returns { text, written } of each token; the text is null where the server does not tell it, in reasoning. */
  tokens() {
    if (this.prompt === null) return [];
    const told = this.prompt.length + this.#answer.length + (this.#stopped ? 1 : 0);
    const hidden = this.#reasons ? Math.max(0, this.positions + 1 - told) : 0;
    const written = [...new Array(hidden).fill(null), ...this.#answer];
    return [
      ...this.prompt.map((text) => ({ text, written: false })),
      ...written.map((text) => ({ text, written: true })),
    ];
  }

  /** Returns [expert, weight] of all experts of a position in a layer, the largest weight first. */
  chosen(position, layer) {
    const { layers, top_k: k } = this.shape;
    const begin = (position * layers.length + layer) * k;
    return Array.from({ length: k }, (_, n) => [this.#ids[begin + n], this.#weights[begin + n]]);
  }

  /** Returns the first expert of a position in a layer; without one, that with the largest weight over all layers. */
  first(position, layer) {
    if (position >= this.positions) return null;
    return layer === null ? this.#strongest(position) : this.chosen(position, layer)[0][0];
  }

  #strongest(position) {
    const sums = new Array(this.shape.experts).fill(0);
    this.shape.layers.forEach((_, layer) => {
      for (const [expert, weight] of this.chosen(position, layer)) sums[expert] += weight;
    });
    return sums.indexOf(Math.max(...sums));
  }

  #add(ids, weights) {
    this.#ids.push(...numbers(ids, (view, at) => view.getInt32(at, true)));
    this.#weights.push(...numbers(weights, (view, at) => view.getFloat32(at, true)));
    const known = this.#ids.length / (this.shape.layers.length * this.shape.top_k);
    for (; this.positions < known; this.positions += 1) this.#count(this.positions);
  }

  #count(position) {
    this.shape.layers.forEach((_, layer) => {
      const chosen = this.chosen(position, layer);
      for (const [expert] of chosen) this.counts[layer][expert] += 1;
      if (position && this.chosen(position - 1, layer)[0][0] === chosen[0][0]) this.repeats[layer] += 1;
    });
  }
}

/** Returns the numbers of four bytes each that a base64 text holds. */
function* numbers(text, read) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  for (let at = 0; at < bytes.length; at += 4) yield read(view, at);
}

// --- the texts of tokens --------------------------------------------------------------------------------------------

/** Returns texts for tokens as vocabularies spell them: spaces as ▁ (SentencePiece) or all bytes as letters (GPT-2). */
export function readable(spelled) {
  const pieces = spelled.some((token) => token.includes("▁") || /^<0x[0-9A-F]{2}>$/.test(token));
  return spelled.map((token) => (pieces ? token.replaceAll("▁", " ") : fromBytes(token)));
}

/** Returns the text whose bytes the letters stand for; the spelling itself where they are no text. */
function fromBytes(token) {
  const bytes = [...token].map((letter) => BYTES.get(letter));
  if (bytes.includes(undefined)) return token;
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(Uint8Array.from(bytes));
  } catch {
    return bytes.map((byte) => `\\x${byte.toString(16).padStart(2, "0")}`).join("");
  }
}

/** Maps letters to bytes as GPT-2's tokenizer does: printable bytes are themselves, others follow from U+0100 on. */
function byteAlphabet() {
  const isPrintable = (byte) => (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte !== 0xad);
  let next = 0x100;
  const letter = (byte) => String.fromCodePoint(isPrintable(byte) ? byte : next++);
  return new Map(Array.from({ length: 256 }, (_, byte) => [letter(byte), byte]));
}

const BYTES = byteAlphabet();
