"use strict";
// Ranks candidates by dragging and by keys. The number fields hold the state, so the form works without this file.

const list = document.querySelector(".ranking");
const items = () => [...list.children];
const field = (item) => item.querySelector("input");
const place = (item) => (field(item).value ? Number(field(item).value) : Infinity);
let dragged = null;

for (const hint of document.querySelectorAll(".needs-script")) hint.hidden = false;

// Makes the places 1, 2, 3, ... without gaps, ties kept, and puts the list in that order.
function settle() {
  const places = [...new Set(items().map(place).filter(Number.isFinite))].sort((a, b) => a - b);
  for (const item of items()) if (Number.isFinite(place(item))) field(item).value = places.indexOf(place(item)) + 1;
  list.append(...items().sort((a, b) => place(a) - place(b)));
  show();
}

function show() {
  const counts = new Map();
  for (const item of items()) counts.set(place(item), (counts.get(place(item)) ?? 0) + 1);
  for (const item of items()) item.classList.toggle("tied", Number.isFinite(place(item)) && counts.get(place(item)) > 1);
}

// Every candidate gets a place before one is moved, those without one behind the others.
function fill() {
  let last = Math.max(0, ...items().map(place).filter(Number.isFinite));
  for (const item of items()) if (!field(item).disabled && !field(item).value) field(item).value = ++last;
}

function move(item, target, where) {
  fill();
  const step = { before: -0.5, after: 0.5, tie: 0 }[where];
  field(item).step = "any";
  field(item).value = place(target) + step;
  settle();
  field(item).step = "1";
}

list.addEventListener("keydown", (event) => {
  const item = event.target;
  if (!item.matches(".candidate") || event.ctrlKey || event.metaKey || event.altKey) return;
  const next = item.nextElementSibling, previous = item.previousElementSibling;
  if (/^[1-9]$/.test(event.key) && !field(item).disabled) {
    field(item).value = event.key;
    show();
    (next ?? item).focus();
  } else if (event.key === "Backspace" || event.key === "Delete") { field(item).value = ""; show(); }
  else if (event.key === "ArrowDown") next?.focus();
  else if (event.key === "ArrowUp") previous?.focus();
  else return;
  event.preventDefault();
});
list.addEventListener("change", show);

// Pointer events, so that a finger can drag as well as a mouse; the field and the text stay usable.
for (const item of items()) {
  if (field(item).disabled) continue;
  const grip = document.createElement("span");
  grip.className = "grip";
  grip.textContent = "⠿";
  grip.setAttribute("aria-hidden", "true");
  grip.title = "Drag";
  item.prepend(grip);
  grip.addEventListener("pointerdown", (event) => {
    dragged = item;
    grip.setPointerCapture(event.pointerId);
    item.classList.add("dragged");
    event.preventDefault();
  });
  grip.addEventListener("pointermove", (event) => { if (dragged === item) mark(over(event)); });
  grip.addEventListener("pointerup", (event) => {
    const found = over(event);
    mark(null);
    item.classList.remove("dragged");
    dragged = null;
    if (found) move(item, found.target, found.where);
  });
  grip.addEventListener("pointercancel", () => { mark(null); item.classList.remove("dragged"); dragged = null; });
}

// The candidate under the pointer: its upper quarter means before it, its lower quarter after it, its middle a tie.
function over(event) {
  const target = document.elementFromPoint(event.clientX, event.clientY)?.closest(".candidate");
  if (!target || target === dragged || field(target).disabled) return null;
  const box = target.getBoundingClientRect(), share = (event.clientY - box.top) / box.height;
  return { target, where: share < 0.28 ? "before" : share > 0.72 ? "after" : "tie" };
}

function mark(found) {
  for (const item of items()) item.classList.remove("drop-before", "drop-after", "drop-tie");
  found?.target.classList.add("drop-" + found.where);
}
settle();
