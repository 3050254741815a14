// Sets light or dark: the system's choice until the reader makes one. It is no module, to run before the first paint.

"use strict";

{
  const KEY = "octavo:theme";
  const root = document.documentElement;

  const stored = () => {
    try {
      return localStorage.getItem(KEY);
    } catch {
      return null; // storage is forbidden, so the choice lasts as long as the page
    }
  };

  const current = () => root.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");

  const toggle = () => {
    root.dataset.theme = current() === "dark" ? "light" : "dark";
    try {
      localStorage.setItem(KEY, root.dataset.theme);
    } catch {
      return;
    }
  };

  const theme = stored();
  if (theme === "dark" || theme === "light") root.dataset.theme = theme;
  addEventListener("DOMContentLoaded", () => document.getElementById("theme").addEventListener("click", toggle));
}
