"use strict";
const BLINK_MS = 700;
const FLAGS = ["fail", "look", "pass", ""];

// One bar of controls and the views below it.
function operate(sheet) {
  const one = (selector) => sheet.querySelector(selector);
  const [left, right, all, outlined, sort, search] =
    ["select.left", "select.right", ".all", ".outlined", ".sort", ".search"].map(one);
  const list = one(".views"), views = [...list.children];
  const modes = [...sheet.querySelectorAll(".mode")], filters = [...sheet.querySelectorAll(".filter")];
  const values = new Map(views.map((view) => [view, JSON.parse(view.dataset.values)]));
  let mode = "wipe", timer = null;

  function draw(view) {
    const share = Number(view.querySelector(".share")?.value);
    if (Number.isNaN(share)) return;
    for (const image of view.querySelectorAll("img")) {
      const isLeft = image.dataset.name === left.value, isRight = image.dataset.name === right.value;
      image.hidden = !isLeft && !isRight;
      image.style.clipPath = image.style.opacity = image.style.zIndex = "";
      if (isLeft && isRight) continue;
      if (mode === "wipe") image.style.clipPath = isLeft ? `inset(0 ${100 - share}% 0 0)` : `inset(0 0 0 ${share}%)`;
      else if (isLeft) [image.style.opacity, image.style.zIndex] = [share / 100, 1];
    }
    const svg = view.querySelector(".outlines");
    if (svg) svg.style.zIndex = 2;
    const [first, second, edge] = [".name.left", ".name.right", ".edge"].map((part) => view.querySelector(part));
    first.textContent = left.value;
    second.textContent = right.value;
    first.hidden = share === 0;
    second.hidden = share === 100;
    edge.style.left = `${share}%`;
    edge.hidden = mode !== "wipe";
    for (const part of [first, second, edge, view.querySelector(".share")]) part.style.zIndex = 3;
  }

  function share(number) {
    all.value = number;
    for (const view of views) {
      const own = view.querySelector(".share");
      if (own) own.value = number;
      draw(view);
    }
  }

  function compareBy(chosen) {
    clearInterval(timer);
    timer = null;
    mode = chosen;
    for (const button of modes) button.setAttribute("aria-pressed", String(button.dataset.mode === mode));
    if (mode === "blink") {
      const turn = () => share(Number(all.value) < 50 ? 100 : 0);
      timer = setInterval(turn, BLINK_MS);
      turn();
    } else share(50);
  }

  // Views without the value come last; other values than positions begin with the largest, which mostly is the worst.
  function order() {
    const key = sort.value, sign = key.startsWith("position") ? 1 : -1;
    const rank = (view) => {
      if (key === "number") return 0;
      if (key === "flag") return FLAGS.indexOf(view.dataset.flag);
      const value = values.get(view)[key];
      return value === undefined ? Infinity : sign * value;
    };
    const ranked = views.map((view) => [rank(view), Number(view.dataset.number), view]);
    ranked.sort(([a, i], [b, j]) => (a === b ? i - j : a - b));
    list.append(...ranked.map(([, , view]) => view));
  }

  function select() {
    const hidden = new Set(filters.filter((f) => f.getAttribute("aria-pressed") === "false").map((f) => f.dataset.flag));
    const words = (search?.value ?? "").toLowerCase();
    let number = 0;
    for (const view of views) {
      const text = `${view.dataset.title} ${view.querySelector("p").textContent}`.toLowerCase();
      view.hidden = hidden.has(view.dataset.flag) || !text.includes(words);
      number += !view.hidden;
    }
    one(".shown").textContent = number === views.length ? `${number} shown` : `${number} of ${views.length} shown`;
  }

  for (const control of [left, right]) control.addEventListener("change", () => views.forEach(draw));
  for (const button of modes) button.addEventListener("click", () => compareBy(button.dataset.mode));
  for (const button of filters) {
    button.addEventListener("click", () => {
      button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") === "false"));
      select();
    });
  }
  all.addEventListener("input", () => {
    if (mode === "blink") compareBy("fade");
    share(Number(all.value));
  });
  for (const view of views) {
    view.querySelector(".share")?.addEventListener("input", () => draw(view));
    view.querySelector(".enlarge")?.addEventListener("click", (event) => {
      event.currentTarget.setAttribute("aria-pressed", String(view.classList.toggle("large")));
    });
  }
  outlined?.addEventListener("change", () => {
    for (const svg of sheet.querySelectorAll(".outlines")) svg.style.display = outlined.checked ? "" : "none";
  });
  sort?.addEventListener("change", order);
  search?.addEventListener("input", select);
  views.forEach(draw);
  select();
}

document.querySelectorAll(".sheet").forEach(operate);
