// Makes elements from text nodes and attributes only: nothing that a model writes is ever parsed as HTML.

/** Makes an element: element("a", { className: "x", href }, "text", child) has properties, then children. */
export function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

/** Makes a button that never submits a form. */
export function button(label, className, onclick) {
  return element("button", { type: "button", className, onclick }, label);
}

export function byId(id) {
  return document.getElementById(id);
}

/** Copies a text; navigator.clipboard exists on https and localhost only. Returns whether it worked. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const field = element("textarea", { className: "hidden", value: text });
    const focused = document.activeElement;
    document.body.append(field);
    field.select();
    const copied = document.execCommand("copy");
    field.remove();
    focused?.focus();
    return copied;
  }
}

/** Makes a button that copies what `text()` returns, and says so for a moment. */
export function copyButton(text, label = "Copy") {
  const node = button(label, "quiet", async () => {
    node.textContent = (await copy(text())) ? "Copied" : "Not copied";
    setTimeout(() => (node.textContent = label), 1500);
  });
  return node;
}
