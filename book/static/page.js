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
    fade(box);
  };
  // A table or formula that is cut off looks complete: it fades out until its end is in sight.
  const fade = (box) => {
    const hidden = box.scrollWidth - box.clientWidth - box.scrollLeft;
    box.classList.toggle("has-more", box.tagName === "DIV" && hidden > 2);
  };
  const watcher = new ResizeObserver((entries) => entries.forEach((entry) => mark(entry.target)));
  const boxes = "article pre, article div.math, article .pst-scrollable-table-container";
  document.querySelectorAll(boxes).forEach((box) => {
    watcher.observe(box);
    box.addEventListener("scroll", () => fade(box), { passive: true });
  });
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

// Sphinx's search would quote the header and the hidden contents for printing: show it the article alone.
// It asks for role="main", which the theme gives to all of that; its script comes after this one.
// A term of the glossary comes with what it means; the numbers of the interactive figure stay away.
document.addEventListener("DOMContentLoaded", () => {
  if (typeof Search === "undefined" || !Search.htmlToText) return;
  const quote = Search.htmlToText;
  Search.htmlToText = (html, anchor) => {
    const article = new DOMParser().parseFromString(html, "text/html").querySelector("article.bd-article");
    if (!article) return quote(html, anchor);
    article.querySelector("figure.index-sets")?.remove();
    const term = anchor && article.querySelector(`dl.glossary ${anchor}`);
    if (term) return `${term.textContent.replace("#", "")}: ${term.nextElementSibling.textContent.trim()}`;
    return quote(`<div role="main">${article.innerHTML}</div>`, anchor);
  };
});
