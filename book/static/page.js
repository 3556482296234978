"use strict";
// What scrolls by itself (code, wide formulas, wide tables) must be reached from the keyboard too.
// Only what is wider than its place becomes a tab stop, and that changes with the window's width.
{
  const names = { PRE: "Code", DIV: "Table" };
  const mark = (box) => {
    if (box.scrollWidth > box.clientWidth + 1 || box.scrollHeight > box.clientHeight + 1) {
      box.tabIndex = 0;
      box.setAttribute("role", "group");
      box.setAttribute("aria-label", box.classList.contains("math") ? "Formula" : names[box.tagName]);
    } else if (box.getAttribute("role") === "group") {
      for (const name of ["tabindex", "role", "aria-label"]) box.removeAttribute(name);
    }
  };
  const watcher = new ResizeObserver((entries) => entries.forEach((entry) => mark(entry.target)));
  const boxes = "article pre, article div.math, article .pst-scrollable-table-container";
  document.querySelectorAll(boxes).forEach((box) => watcher.observe(box));
}

// Paper has no folds: print them open, and close them again afterwards.
{
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("article details:not([open])")];
    opened.forEach((fold) => (fold.open = true));
  });
  addEventListener("afterprint", () => opened.forEach((fold) => (fold.open = false)));
}
