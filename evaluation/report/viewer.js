"use strict";
// Turns each view's row of pictures into two layers with a divider. Without this script the rows stay as they are.
document.documentElement.classList.add("js");
const figures = [...document.querySelectorAll(".view")];
const left = document.getElementById("left"), right = document.getElementById("right");
const group = document.getElementById("group");

function layers(view) { return [...view.querySelectorAll(".stage figure")]; }

function choose() {
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
if (left && right) {
  for (const control of [left, right, group]) if (control) control.addEventListener("change", choose);
  document.getElementById("swap").addEventListener("click", () => {
    [left.value, right.value] = [right.value, left.value];
    choose();
  });
  choose();
}
