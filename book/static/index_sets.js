"use strict";
// "Which elements share statistics?": redraws the figure that the build wrote (book/tools/index_sets.py).
// The sets follow from the axes in the catalog's rows; the arithmetic is that of normtutor.functional.

(() => {
  const average = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

  // x̂, μ and σ² of one set. The mean is taken off twice, rounded first, so that a large offset costs no digits
  // (normtutor.functional.standardize says more).
  function normalize(values, centred, eps) {
    let centre = values, mean = 0;
    if (centred) {
      const pivot = average(values);
      const shifted = values.map((value) => value - pivot);
      const shift = average(shifted);
      centre = shifted.map((value) => value - shift);
      mean = pivot + shift;
    }
    const variance = average(centre.map((value) => value * value));
    return { mean, variance, hat: centre.map((value) => value / Math.sqrt(variance + eps)) };
  }

  const sign = (text) => text.replaceAll("-", "−");
  const fixed = (value) => sign(value.toFixed(2).replace("-0.00", "0.00"));

  function number(value) {
    const size = Math.abs(value);
    if (!size || (size >= 1e-3 && size < 1e5) || !isFinite(value)) return sign(String(Number(value.toPrecision(4))));
    const [mantissa, exponent] = value.toExponential(3).split("e");
    return sign(`${Number(mantissa)}e${Number(exponent)}`);
  }

  function start(figure) {
    const { shape, techniques } = JSON.parse(figure.querySelector("script").textContent);
    const [N, C, H, W] = shape;
    const [cells, results] = [...figure.querySelectorAll(".is-tensor")].map((tensor) => [
      ...tensor.querySelectorAll("[data-value]"),
    ]);
    const part = (name) => figure.querySelector(`[data-is="${name}"]`);
    const field = (name) => figure.querySelector(`[name="${name}"]`);
    const chosen = (name) => figure.querySelector(`[name="${name}"]:checked`).value;

    // An element's index by its place on the page: rows of a plane come before the next channel.
    const index = [];
    for (let n = 0; n < N; n++)
      for (let h = 0; h < H; h++) for (let c = 0; c < C; c++) for (let w = 0; w < W; w++) index.push([n, c, h, w]);
    const example = cells.map((cell) => Number(cell.dataset.value));
    let x = [...example];
    let me = cells.findIndex((cell) => cell.classList.contains("me"));
    let eps = field("eps").valueAsNumber;

    // What the elements of one set have in common: the indices that the axes leave fixed.
    const key = (axes, [n, c, h, w], groups) =>
      [
        axes.includes("N") ? "" : n,
        axes.includes("C/G") ? Math.floor(c / (C / groups)) : axes.includes("C") ? "" : c,
        axes.includes("H") ? "" : h,
        axes.includes("W") ? "" : w,
      ].join();

    function partition(axes, groups) {
      const sets = new Map();
      index.forEach((i, place) => {
        const name = key(axes, i, groups);
        sets.set(name, [...(sets.get(name) ?? []), place]);
      });
      return [...sets.values()];
    }

    function sentence(row, groups, sets, n) {
      const grouped = row.axes.includes("C/G");
      const fixedAxes = [];
      if (!row.axes.includes("N")) fixedAxes.push("sample");
      if (grouped) fixedAxes.push("group");
      else if (!row.axes.includes("C")) fixedAxes.push("channel");
      const shared = row.centred ? "μ and σ²" : "one mean of x²";
      const twin =
        grouped &&
        techniques.find((other) => other !== row && other.centred && `${partition(other.axes)}` === `${sets}`);
      return (
        `${row.title}${grouped ? `, G = ${groups}` : ""}: ${n} of ${x.length} elements share ${shared}: ` +
        `same ${fixedAxes.join(" and ")}.${twin ? ` The sets of ${twin.title}.` : ""}`
      );
    }

    function write(cell, text, value) {
      cell.textContent = text;
      cell.dataset.value = value;
      cell.style.setProperty("--length", text.length); // long numbers are written smaller
    }

    function say(name, text) {
      if (part(name).textContent !== text) part(name).textContent = text;
    }

    function draw() {
      const row = techniques.find(({ name }) => name === chosen("technique"));
      const groups = Number(chosen("groups"));
      const sets = partition(row.axes, groups);
      const mine = sets.find((set) => set.includes(me));
      figure.querySelector(".is-groups").disabled = !row.axes.includes("C/G");
      figure.style.setProperty("--set", row.colour);
      figure.style.setProperty("--ink", row.ink);
      for (const set of sets) {
        const { mean, variance, hat } = normalize(set.map((place) => x[place]), row.centred, eps);
        set.forEach((place, k) => {
          const cell = cells[place];
          const [n, c, h, w] = index[place];
          write(cell, sign(String(x[place])), x[place]);
          write(results[place], fixed(hat[k]), hat[k]);
          for (const one of [cell, results[place]]) {
            one.classList.toggle("in", set === mine);
            one.classList.toggle("me", place === me);
          }
          cell.tabIndex = place === me ? 0 : -1;
          cell.ariaSelected = String(place === me);
          cell.ariaLabel = `${cell.textContent}: n ${n}, c ${c}, h ${h}, w ${w}${set === mine ? ", in the set" : ""}`;
          if (place !== me) return;
          say("name", `x[${[n, c, h, w].join(", ")}]`);
          say("m", String(set.length));
          say("mu", row.centred ? number(mean) : "–");
          say("spread", row.centred ? "σ²" : "mean of x²");
          say("var", number(variance));
          say("x", number(x[me]));
          say("mean", mean < 0 ? `(${number(mean)})` : number(mean));
          say("under", number(variance));
          say("eps", number(eps));
          say("xhat", number(hat[k]));
          part("minus").toggleAttribute("hidden", !row.centred);
          part("mu").dataset.value = mean;
          part("var").dataset.value = variance;
        });
      }
      const said = sentence(row, groups, sets, mine.length);
      const live = figure.querySelector(".is-said");
      if (live.textContent !== said) live.textContent = said;
    }

    function select(place, focus = true) {
      me = place;
      field("value").value = x[me];
      field("value").ariaInvalid = "false";
      draw();
      if (focus) cells[me].focus();
    }

    const across = C * W;
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -across, ArrowDown: across };
    const grid = cells[0].closest("[role=grid]");
    grid.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (/^[-\d.]$/.test(event.key) || event.key === "Enter" || event.key === "F2") {
        field("value").focus(); // a typed digit arrives there and replaces what is selected
        field("value").select();
        if (event.key.length > 1) event.preventDefault();
        return;
      }
      const column = me % across;
      let to = me + (steps[event.key] ?? 0);
      if (event.key === "Home") to = me - column;
      else if (event.key === "End") to = me - column + across - 1;
      else if (!(event.key in steps)) return;
      event.preventDefault(); // the page stays where it is
      const stays = event.key === "ArrowLeft" ? column > 0 : event.key === "ArrowRight" ? column < across - 1 : true;
      if (stays && to >= 0 && to < cells.length) select(to);
    });
    for (const list of [cells, results])
      list.forEach((cell, place) => cell.addEventListener("click", () => select(place, list === cells)));

    figure.addEventListener("change", (event) => event.target.type === "radio" && draw());
    figure.addEventListener("submit", (event) => event.preventDefault());
    figure.addEventListener("input", ({ target }) => {
      if (target.type !== "number") return;
      const value = target.valueAsNumber;
      const valid = Number.isFinite(value) && (target.name !== "eps" || value >= 0);
      target.ariaInvalid = String(!valid);
      if (!valid) return; // half a number: the last whole one stays
      if (target.name === "eps") eps = value;
      else x[me] = value;
      draw();
    });
    field("value").addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== "Escape") return;
      event.preventDefault();
      select(me); // back to the element
    });

    const changes = {
      shift: (value) => value + 1000,
      scale: (value) => value * 10,
      equal: () => x[me],
      reset: (_, place) => example[place],
    };
    figure.addEventListener("click", ({ target }) => {
      if (target.type !== "button") return;
      x = x.map(changes[target.value]);
      select(me, false);
    });
    draw();
  }

  document.querySelectorAll("figure.index-sets").forEach(start);
})();
