"use strict";
// Turns each view's row of pictures into two layers with a divider. Without this script the rows stay as they are.
document.documentElement.classList.add("js");
const figures = [...document.querySelectorAll(".view")];
const left = document.getElementById("left"), right = document.getElementById("right");
const group = document.getElementById("group");

function layers(view) { return [...view.querySelectorAll(".stage figure")]; }

// Layers that no shown view has cannot be chosen.
function offer() {
  const shown = figures.filter((view) => !group || view.dataset.group === group.value);
  const there = new Set(shown.flatMap((view) => layers(view).map((layer) => layer.dataset.layer)));
  for (const control of [left, right]) {
    for (const option of control.options) option.disabled = !there.has(option.value);
    if (control.selectedOptions[0].disabled) control.value = [...control.options].find((o) => !o.disabled).value;
  }
}

function choose() {
  offer();
  for (const view of figures) {
    for (const layer of layers(view)) {
      layer.classList.toggle("left", layer.dataset.layer === left.value);
      layer.classList.toggle("right", layer.dataset.layer === right.value);
    }
    if (group) view.hidden = view.dataset.group !== group.value;
  }
}

function place(view, percent) {
  const x = Math.min(100, Math.max(0, percent));
  view.querySelector(".stage").style.setProperty("--x", x + "%");
  view.querySelector(".stage-range").value = x;
}

for (const view of figures) {
  const stage = view.querySelector(".stage"), range = view.querySelector(".stage-range");
  stage.style.aspectRatio = stage.dataset.width + " / " + stage.dataset.height;
  range.addEventListener("input", () => place(view, range.value));
  const follow = (event) => {
    const box = stage.getBoundingClientRect();
    place(view, 100 * (event.clientX - box.left) / box.width);
  };
  stage.addEventListener("pointerdown", (event) => { stage.setPointerCapture(event.pointerId); follow(event); });
  stage.addEventListener("pointermove", (event) => { if (event.pointerType === "mouse" || event.buttons) follow(event); });
  const button = view.querySelector("button");
  button.addEventListener("click", () => {
    const large = view.classList.toggle("large");
    button.textContent = large ? "smaller" : "larger";
    button.setAttribute("aria-pressed", large);
  });
}
if (left && right && figures.length) {
  for (const control of [left, right, group]) if (control) control.addEventListener("change", choose);
  document.getElementById("swap").addEventListener("click", () => {
    [left.value, right.value] = [right.value, left.value];
    choose();
  });
  choose();
}

// Headings of tables of class "sort" become buttons: numbers the largest first, texts by the alphabet, then reversed.
for (const table of document.querySelectorAll("table.sort")) {
  const headings = [...table.querySelectorAll("thead th")], body = table.tBodies[0];
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const key = (row) => row.cells[column].textContent, number = (row) => parseFloat(key(row));
      const words = [...body.rows].every((row) => isNaN(number(row)));
      const before = heading.getAttribute("aria-sort"), down = words ? before === "ascending" : before !== "descending";
      const compare = words ? (a, b) => key(a).localeCompare(key(b))
        : (a, b) => (isNaN(number(a)) ? -Infinity : number(a)) - (isNaN(number(b)) ? -Infinity : number(b)) || 0;
      for (const other of headings) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      body.append(...[...body.rows].sort((a, b) => down ? compare(b, a) : compare(a, b)));
    });
  });
}
