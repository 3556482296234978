"use strict";
// Quizzes and folds. Everything is readable without this script: answers and hints stand in <details>.
(() => {
  for (const quiz of document.querySelectorAll("fieldset.quiz")) {
    const answer = quiz.querySelector(".quiz-answer");
    const fold = quiz.querySelector(".quiz-reasons");
    const choices = [...quiz.querySelectorAll(".quiz-choice")];
    const reasons = [...fold.querySelectorAll("li")];
    fold.hidden = true;
    choices.forEach((choice, number) => {
      const button = choice.querySelector("input");
      button.disabled = false;
      // Browsers restore a choice on reload, but not the answer to it.
      button.checked = false;
      button.addEventListener("change", () => {
        for (const other of choices) {
          other.classList.remove("right", "wrong");
        }
        const verdict = reasons[number].className;
        choice.classList.add(verdict);
        // Copied, rendered formulas included: the fold stays as it is, for printing.
        const said = reasons[number].querySelector(".quiz-reason").cloneNode(true);
        answer.className = "quiz-answer " + verdict;
        answer.replaceChildren(said);
      });
    });
  }

  // A link to a fold, or into one, opens it and those around it.
  const unfold = () => {
    const id = decodeURIComponent(location.hash.slice(1));
    const target = id && document.getElementById(id);
    if (!target) {
      return;
    }
    let opened = false;
    for (let fold = target.closest("details"); fold; fold = fold.parentElement.closest("details")) {
      opened ||= !fold.open;
      fold.open = true;
    }
    if (opened) {
      target.scrollIntoView({ behavior: "instant" });
    }
  };
  window.addEventListener("hashchange", unfold);
  unfold();
})();
