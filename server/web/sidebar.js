// Shows the side list of all conversations that this browser keeps; on a narrow screen it slides in.

import { button, byId, element } from "./dom.js";
import { conversations, title } from "./store.js";

/** `actions` has open(id), remove(id), create() and clear(). */
export function initSidebar({ create, clear }) {
  byId("new-chat").addEventListener("click", () => (setOpen(false), create()));
  byId("clear-all").addEventListener("click", () => {
    if (confirm("Delete all conversations from this browser?")) clear();
  });
  byId("menu").addEventListener("click", () => setOpen(!isOpen()));
  byId("sidebar").addEventListener("keydown", (event) => event.key === "Escape" && close(event));
  document.querySelector("main").addEventListener("click", (event) => {
    if (isOpen() && !event.target.closest("#menu")) setOpen(false);
  });
}

export function showSidebar(current, { open, remove }) {
  const kept = conversations();
  byId("clear-all").hidden = kept.length === 0;
  byId("conversations").replaceChildren(
    ...kept.map((conversation) => {
      const name = title(conversation);
      const choose = button(name, "quiet choose", () => (setOpen(false), open(conversation.id)));
      if (conversation.id === current.id) choose.setAttribute("aria-current", "true");
      const away = button("×", "quiet icon", () => remove(conversation.id));
      away.setAttribute("aria-label", `Delete “${name}”`);
      return element("li", {}, choose, away);
    }),
  );
}

const isOpen = () => byId("menu").getAttribute("aria-expanded") === "true";

function setOpen(open) {
  byId("menu").setAttribute("aria-expanded", String(open));
  if (open) byId("new-chat").focus();
}

function close(event) {
  if (!isOpen()) return;
  event.stopPropagation();
  setOpen(false);
  byId("menu").focus();
}
