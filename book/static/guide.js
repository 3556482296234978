"use strict";
// "Which normalization should I use?": the rules of normtutor.guide, evaluated as its `recommend` does.
// Reasons and sources are those of the page's table; the address keeps the situation, so it can be shared.

(() => {
  const guide = document.querySelector(".guide");
  if (!guide) return;
  const { fields, votes, enough, techniques, rules, colours } = JSON.parse(guide.querySelector("script").textContent);
  const form = guide.querySelector("form");
  const names = Object.keys(techniques);
  const short = (name) => techniques[name].replace(" Normalization", "");

  // true, false, or null where the question was not answered
  function met(condition, value) {
    if (value === undefined) return null;
    if (typeof condition === "boolean") return value === condition;
    if (Array.isArray(condition)) return condition.includes(value);
    return (condition.min ?? value) <= value && value <= (condition.max ?? value);
  }

  function holds(rule, situation) {
    if (Object.entries(rule.unless).some(([name, wanted]) => met(wanted, situation[name]))) return false;
    const answers = Object.entries(rule.when).map(([name, wanted]) => met(wanted, situation[name]));
    return answers.includes(false) ? false : answers.includes(null) ? null : true;
  }

  function recommend(situation) {
    const held = rules.filter((rule) => holds(rule, situation));
    const advice = names.map((technique) => {
      const mine = held.filter((rule) => technique in rule.votes);
      const worth = (rule) => votes[rule.votes[technique]];
      return {
        technique,
        score: mine.reduce((sum, rule) => sum + worth(rule), 0),
        banned: mine.some((rule) => rule.votes[technique] === "avoid"),
        reasons: mine,
        for: mine.filter((rule) => worth(rule) > 0).map((rule) => rule.name),
        against: mine.filter((rule) => worth(rule) < 0).map((rule) => rule.name),
      };
    });
    const best = Math.max(...advice.filter((one) => !one.banned).map((one) => one.score), -Infinity);
    for (const one of advice) {
      if (one.banned) one.verdict = "avoid";
      else if (one.score > 0) one.verdict = one.score === best && one.score >= enough ? "first choice" : "possible";
      else one.verdict = one.score < 0 ? "rather not" : "no reason either way";
    }
    advice.sort((a, b) => a.banned - b.banned || b.score - a.score);
    const undecided = rules.filter((rule) => holds(rule, situation) === null);
    // How many rules that hang on a question vote "first": of those about what was told, and of all.
    const matters = ({ name }) => {
      const deciding = undecided.filter(({ when, votes }) => name in when && Object.values(votes).includes("first"));
      const near = deciding.filter(({ when }) => Object.keys(situation).some((told) => told in when));
      return [near.length, deciding.length];
    };
    const open = fields
      .filter(({ name }) => !(name in situation) && undecided.some(({ when }) => name in when))
      .map((field) => ({ ...field, matters: matters(field) }))
      .sort(({ matters: a }, { matters: b }) => b[0] - a[0] || b[1] - a[1]);
    const unread = fields.filter(
      ({ name, options }) =>
        name in situation &&
        options.length &&
        !rules.some(({ when }) => Array.isArray(when[name]) && when[name].includes(situation[name])),
    );
    return {
      advice,
      warnings: [
        ...held.filter((rule) => rule.warning).map((rule) => rule.warning),
        ...unread.map(
          ({ name, question }) => `No rule depends on the answer “${situation[name].replaceAll("_", " ")}” to “${question}”.`,
        ),
      ],
      open,
    };
  }

  // What was answered, as values of the package: words, whole numbers from 1, true and false.
  function told() {
    const situation = {};
    for (const { name, options, number } of fields) {
      const control = form.elements[name];
      const valid = control.checkValidity();
      control.ariaInvalid = String(!valid);
      if (number) {
        const error = document.getElementById(control.getAttribute("aria-describedby"));
        const text = valid ? "" : "A whole number of at least 1; not counted.";
        if (error.textContent !== text) error.textContent = text;
      }
      if (control.value === "" || !valid) continue;
      situation[name] = number ? Number(control.value) : options.length ? control.value : control.value === "yes";
    }
    return situation;
  }

  function element(tag, text, attributes = {}, children = []) {
    const made = document.createElement(tag);
    if (text) made.textContent = text;
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  const row = (rule) => document.getElementById(`rule-${rule.name.replaceAll("_", "-")}`);

  function reason(rule, technique) {
    const good = votes[rule.votes[technique]] > 0;
    const copies = [...row(rule).querySelectorAll(".guide-reason, .guide-sources")].map((one) => one.cloneNode(true));
    const sign = element("span", good ? "+" : "−", { class: "guide-sign", role: "img" });
    sign.ariaLabel = good ? "for:" : "against:";
    return element("li", "", { "data-rule": rule.name }, [sign, element("span", "", {}, copies.flatMap((c) => [c, " "]))]);
  }

  function show(one) {
    const score = `${one.score > 0 ? "+" : one.score < 0 ? "−" : ""}${Math.abs(one.score)}`;
    const attributes = { "data-technique": one.technique, "data-score": one.score, "data-verdict": one.verdict };
    if (one.verdict === "first choice") attributes.open = "";
    const box = element("details", "", attributes, [
      element("summary", "", {}, [
        element("strong", techniques[one.technique]),
        element("span", `${one.verdict} (${score})`, { class: "guide-verdict" }),
      ]),
      element("ul", "", {}, one.reasons.map((rule) => reason(rule, one.technique))),
    ]);
    box.style.setProperty("--set", colours[one.technique]);
    return box;
  }

  function list(title, items, attributes = {}) {
    return items.length ? [element("h2", title), element("ul", "", attributes, items)] : [];
  }

  function question({ name, question: text }) {
    const ask = element("button", text, { type: "button", "data-field": name });
    ask.addEventListener("click", () => form.elements[name].focus());
    return element("li", "", {}, [ask]);
  }

  // What Recommendation.headline says: the first choices, or the question to answer next.
  function headline(advice, open) {
    const having = (verdict) =>
      advice.filter((one) => one.verdict === verdict).map((one) => short(one.technique)).join(" or ");
    if (having("first choice")) return `First choice: ${having("first choice")}.`;
    if (open.length) return `No clear first choice yet. ${open[0].question}`;
    return `No clear first choice.${having("possible") ? ` Possible: ${having("possible")}.` : ""}`;
  }

  function answer() {
    const situation = told();
    const told_one = Object.keys(situation).length > 0;
    const { advice, warnings, open } = recommend(situation);
    const spoken = advice.filter((one) => one.reasons.length);
    const silent = advice.filter((one) => !one.reasons.length).map((one) => short(one.technique));
    const summary = told_one ? headline(advice, open) : "Answer at least one question.";
    const said = guide.querySelector(".guide-summary");
    if (said.textContent !== summary) said.textContent = summary;
    const closing = silent.length ? [element("p", `No rule speaks of ${silent.join(", ")}.`)] : [];
    guide.querySelector(".guide-advice").replaceChildren(
      ...(told_one
        ? [
            ...spoken.map(show),
            ...closing,
            ...list("Mind", warnings.map((text) => element("li", text, { "data-warning": "" }))),
            ...list("Also worth answering", open.map(question), { class: "guide-questions" }),
          ]
        : []),
    );
    for (const rule of rules) row(rule).classList.toggle("guide-holds", told_one && holds(rule, situation) === true);
    return situation;
  }

  function fromAddress() {
    const given = new URLSearchParams(location.hash.slice(1));
    if (!fields.some(({ name }) => given.has(name))) return; // no situation, but a heading or nothing
    for (const { name, options, number } of fields) {
      const value = given.get(name) ?? "";
      form.elements[name].value = number || options.length ? value : { True: "yes", False: "no" }[value] ?? value;
    }
    answer();
  }

  form.addEventListener("input", () => {
    const text = new URLSearchParams(
      Object.entries(answer()).map(([name, value]) => [name, value === true ? "yes" : value === false ? "no" : value]),
    );
    history.replaceState(null, "", text.size ? `#${text}` : location.pathname);
  });
  form.addEventListener("reset", () => setTimeout(() => form.dispatchEvent(new Event("input"))));
  form.addEventListener("submit", (event) => event.preventDefault());
  window.addEventListener("hashchange", fromAddress);
  fromAddress();
})();
