// Keyboard shortcuts and toggles. Every page works without this file.
"use strict";

(() => {
  const rows = [...document.querySelectorAll("[data-row]")];
  let current = -1;

  const go = (link) => { if (link) link.click(); };

  function select(next) {
    if (!rows.length) return;
    if (current >= 0) rows[current].classList.remove("current");
    current = Math.min(Math.max(next, 0), rows.length - 1);
    const row = rows[current];
    row.classList.add("current");
    const link = row.matches("a") ? row : row.querySelector("[data-open]");
    if (link) link.focus({ preventScroll: true });
    row.scrollIntoView({ block: "nearest", behavior: "auto" });
  }

  // Tab moves the current row too.
  document.addEventListener("focusin", (event) => {
    const at = rows.findIndex((row) => row.contains(event.target));
    if (at >= 0 && at !== current) {
      if (current >= 0) rows[current].classList.remove("current");
      current = at;
      rows[at].classList.add("current");
    }
  });

  // Toggles of the groups on the full image.
  const fullImage = document.querySelector(".image.whole");
  const toggles = [...document.querySelectorAll("[data-toggle]")];
  for (const button of toggles) {
    button.hidden = false;
    button.addEventListener("click", () => {
      const on = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(on));
      for (const group of fullImage.querySelectorAll(`[data-group="${button.dataset.toggle}"]`)) group.classList.toggle("off", !on);
    });
  }

  // A conflict in the list highlights its regions.
  const images = [...document.querySelectorAll(".image")];
  function point(number) {
    for (const image of images) {
      const shapes = [...image.querySelectorAll(".shape")];
      const matching = shapes.filter((shape) => number && (shape.dataset.conflicts || "").split(" ").includes(number));
      image.classList.toggle("pointing", matching.length > 0);
      for (const shape of shapes) shape.classList.toggle("pointed", matching.includes(shape));
    }
  }
  for (const line of document.querySelectorAll("[data-conflict]")) {
    line.addEventListener("mouseenter", () => point(line.dataset.conflict));
    line.addEventListener("focus", () => point(line.dataset.conflict));
    line.addEventListener("mouseleave", () => point(""));
    line.addEventListener("blur", () => point(""));
  }

  const pages = { o: 0, d: 1, g: 2, l: 3, a: 4, w: 5 };
  const keys = document.getElementById("keys");
  for (const button of document.querySelectorAll("[data-keys]")) {
    button.hidden = false;
    button.addEventListener("click", () => keys.showModal());
  }
  let prefix = false;

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest("input, select, textarea, dialog")) return;
    const key = event.key;
    if (prefix) {
      prefix = false;
      if (key in pages) { go(document.querySelectorAll(".bar nav a")[pages[key]]); event.preventDefault(); }
      return;
    }
    const inRow = (selector) => (current >= 0 && rows[current].querySelector(selector)) || document.querySelector(`main > .heading ${selector}`);
    const next = document.querySelector("[data-next]"), previous = document.querySelector("[data-previous]");
    if (key === "?") keys.showModal();
    else if (key === "g") prefix = true;
    else if (key === "j") next && !rows.length ? go(next) : select(current + 1);
    else if (key === "k") previous && !rows.length ? go(previous) : select(current - 1);
    else if (key === "o") go(inRow("[data-studio]"));
    else if (key === "u") go(document.querySelector("[data-up]"));
    else if (/^[1-9]$/.test(key) && toggles[Number(key) - 1]) toggles[Number(key) - 1].click();
    else if (key === "Enter" && event.target === document.body && current >= 0) go(rows[current].querySelector("[data-open]"));
    else return;
    event.preventDefault();
  });
})();
