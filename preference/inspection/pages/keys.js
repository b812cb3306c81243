"use strict";
// Single keys press what carries them (data-key), forms of filters send themselves, results that were not ready are fetched.
// Every page works without this file.

const help = document.getElementById("help");
const keysOn = document.getElementById("keys-on");
const isTyping = (target) => target.matches("textarea, select, input:not([type=checkbox])") || target.isContentEditable;
const draft = "comment on " + new URLSearchParams(location.search).get("id");
let sent = false;

if (keysOn) {
  keysOn.checked = localStorage.getItem("keys") !== "off";
  keysOn.addEventListener("change", () => localStorage.setItem("keys", keysOn.checked ? "on" : "off"));
  document.getElementById("open-help").addEventListener("click", (event) => {
    event.preventDefault();
    help.showModal();
  });
}

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && isTyping(event.target)) { event.target.blur(); return; }
  if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || event.isComposing || event.repeat) return;
  if (isTyping(event.target) || document.querySelector("dialog[open]")) return;
  if (keysOn && !keysOn.checked && event.key !== "?") return;
  if (event.key === "Enter" && event.target.matches("a, button, summary, [tabindex='0']")) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const target = [...document.querySelectorAll("[data-key]")].find((node) => node.dataset.key.split(" ").includes(key));
  if (!target) return;
  event.preventDefault();
  if (isTyping(target)) { target.focus(); target.scrollIntoView({ block: "nearest" }); return; }
  if (target.matches("summary")) {
    const editors = document.querySelectorAll("details.edit");
    const open = !target.parentElement.open;
    for (const editor of editors) editor.open = open;
    if (open) target.parentElement.querySelector("textarea").focus();
    return;
  }
  target.click();
});

// One press, one label: until the next page is there, nothing is sent again.
document.getElementById("label-form")?.addEventListener("submit", (event) => {
  if (sent) event.preventDefault();
  sent = true;
  if (event.submitter?.formAction.includes("/comment?")) sessionStorage.removeItem(draft); // a label may be undone
});
window.addEventListener("pageshow", () => { sent = false; });

for (const select of document.querySelectorAll("[data-submit]")) select.addEventListener("change", () => select.form.requestSubmit());

// A comment's field grows with its text, and what was typed is still there after a look elsewhere or an undo.
for (const field of document.querySelectorAll(".label-bar textarea")) {
  const grow = () => { field.rows = Math.min(6, field.value.split("\n").length); };
  field.value = sessionStorage.getItem(draft) ?? field.value;
  field.addEventListener("input", () => { grow(); sessionStorage.setItem(draft, field.value); });
  grow();
}

const pending = document.getElementById("pending");
async function wait() {
  const answer = await fetch(pending.dataset.address);
  if (answer.status === 202) return wait();
  if (answer.ok) pending.outerHTML = await answer.text(); // our own escaped page part; the policy lets no script in it run
}
if (pending) wait().catch(() => {});
