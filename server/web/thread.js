// Shows the messages of a conversation, and the last of them while it grows.

import { button, byId, copyButton, element } from "./dom.js";
import { blocks, render } from "./markdown.js";

const NEAR = 80; // pixels; a reader who is so near to the end wants to follow it
const NOTES = { length: "cut off at the token limit", stopped: "stopped" };

/** Shows a conversation from scratch; returns its last view. `actions` has edit(index, text) and regenerate(index). */
export function showThread(conversation, actions) {
  const views = conversation.messages.map((message, index) =>
    message.role === "user" ? new UserView(message, index, actions) : new AnswerView(message, index, actions),
  );
  byId("thread").replaceChildren(...views.map((view) => view.node));
  byId("empty").hidden = views.length > 0;
  toEnd();
  return views.at(-1);
}

/** Makes screen readers wait while an answer grows, and disables all actions. */
export function setBusy(busy) {
  byId("thread").setAttribute("aria-busy", String(busy));
  for (const control of byId("thread").querySelectorAll("[data-action]")) control.disabled = busy;
}

function toEnd() {
  const scroller = byId("scroller");
  scroller.scrollTop = scroller.scrollHeight;
}

/** Does something that changes the height; a reader at the end stays there, and one who scrolled up is left alone. */
function following(change) {
  const { scrollTop, scrollHeight, clientHeight } = byId("scroller");
  change();
  if (scrollHeight - scrollTop - clientHeight < NEAR) toEnd();
}

function action(label, onclick) {
  const node = button(label, "quiet", onclick);
  node.dataset.action = label;
  return node;
}

class UserView {
  constructor(message, index, { edit }) {
    this.message = message;
    this.submit = (text) => edit(index, text);
    this.node = element("li", { className: "user" });
    this.read();
  }

  read() {
    const text = element("div", { className: "text" }, this.message.content);
    const edit = action("Edit", () => this.edit());
    const bar = element("div", { className: "actions" }, copyButton(() => this.message.content), edit);
    this.node.replaceChildren(element("h2", { className: "hidden" }, "You"), text, bar);
  }

  edit() {
    const field = element("textarea", { value: this.message.content, rows: 3, ariaLabel: "Edit the message" });
    const leave = () => (this.read(), this.node.querySelector("[data-action]").focus());
    const submit = () => field.value.trim() && this.submit(field.value);
    field.addEventListener("keydown", (event) => {
      if (event.key === "Escape") leave();
      else if (isSend(event)) submit();
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
    const send = action("Send again", submit);
    const bar = element("div", { className: "actions" }, button("Cancel", "quiet", leave), send);
    this.node.replaceChildren(field, bar);
    field.focus();
  }
}

/** Shows the model's message. Only its last blocks change while it grows, so that a selection further up survives. */
class AnswerView {
  #sources = [];
  #frame = 0;
  #written = true; // false while it grows

  constructor(message, index, { regenerate }) {
    this.message = message;
    this.regenerate = action("Regenerate", () => regenerate(index));
    this.thought = element("div", { className: "thought" });
    this.reasoning = element("details", { className: "reasoning" }, element("summary", {}, "Reasoning"), this.thought);
    this.text = element("div", { className: "text" });
    this.note = element("p", { className: "note" });
    this.stats = element("span", { className: "stats" });
    const bar = [copyButton(() => this.message.content), this.regenerate, this.stats];
    this.actions = element("div", { className: "actions" }, ...bar);
    const name = element("h2", { className: "hidden" }, "Answer");
    this.node = element("li", { className: "assistant" }, name, this.reasoning, this.text, this.note, this.actions);
    this.update();
  }

  begin() {
    this.#written = false;
    this.update();
  }

  end() {
    this.#written = true;
    following(() => this.update());
  }

  /** Draws before the next frame, since chunks may come faster than the screen is drawn. */
  changed() {
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      following(() => this.update());
    });
  }

  waiting(reason) {
    this.note.className = "note waiting";
    this.note.textContent = reason;
  }

  update() {
    this.reasoning.hidden = !this.message.reasoning;
    this.thought.textContent = this.message.reasoning ?? "";
    const sources = blocks(this.message.content);
    let same = 0;
    while (same < sources.length && sources[same] === this.#sources[same]) same += 1;
    [...this.text.children].slice(same).forEach((node) => node.remove());
    this.text.append(...sources.slice(same).flatMap(render));
    this.#sources = sources;
    this.#showEnding();
  }

  #showEnding() {
    const { error, finish, stats, content } = this.message;
    const [kind, text] = error ? ["error", error.message] : content ? ["", ""] : this.#silence();
    this.note.className = `note ${kind}`;
    this.note.textContent = text;
    this.stats.textContent = [...measured(stats), ...(NOTES[finish] ? [NOTES[finish]] : [])].join(" · ");
    this.actions.hidden = !this.#written;
  }

  /** Returns the note, its kind and its words, that takes the place of a text that is not there. */
  #silence() {
    if (!this.#written) return ["expected", "…"];
    return this.message.finish === "stop" ? ["", "The model ended its answer before it said anything."] : ["", ""];
  }
}

function measured(stats) {
  if (!stats) return [];
  const about = stats.exact ? "" : "≈ ";
  const rate = stats.rate === null ? [] : [`${about}${stats.rate.toFixed(1)} tokens/s`];
  return [`${about}${stats.tokens} tokens`, ...rate, `first token after ${stats.ttft.toFixed(2)} s`];
}

/** Returns whether a key sends: Enter does, but not with Shift, nor when it ends the composition of a character. */
export function isSend(event) {
  return event.key === "Enter" && !event.shiftKey && !event.isComposing;
}
