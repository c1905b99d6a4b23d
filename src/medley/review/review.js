"use strict";
const items = [...document.querySelectorAll(".item")];
const columns = JSON.parse(document.body.dataset.columns);
const place = "medley-review-" + document.body.dataset.sheet;
let unsaved = false;

const chosen = (item) => item.querySelector("input[type=radio]:checked")?.value ?? "";
const note = (item) => item.querySelector("[data-note]");
const currentItem = () => document.activeElement.closest(".item") ?? document.querySelector(".item.now");

function show() {
  const decided = items.filter((item) => chosen(item)).length;
  for (const item of items) item.querySelector(".done").hidden = !chosen(item);
  document.getElementById("progress").textContent =
    `${decided} of ${items.length} decided` + (unsaved ? ", not saved" : "");
}

function remember() {
  unsaved = true;
  const state = Object.fromEntries(items.map((item) => [item.dataset.item, [chosen(item), note(item).value]]));
  try { localStorage.setItem(place, JSON.stringify(state)); } catch { /* a browser may forbid it; saving still works */ }
  show();
}

function recall() {
  let state = {};
  try { state = JSON.parse(localStorage.getItem(place) ?? "{}"); } catch { return; }
  for (const item of items) {
    const [verdict, text] = state[item.dataset.item] ?? ["", ""];
    for (const input of item.querySelectorAll("input[type=radio]")) input.checked = input.value === verdict;
    note(item).value = text;
  }
}

function mark(item) {
  for (const other of items) other.classList.toggle("now", other === item);
}

function go(item) {
  if (!item) return;
  item.focus({ preventScroll: true });
  item.scrollIntoView({ block: "start" });
}

function choose(item, verdict) {
  const inputs = [...item.querySelectorAll("input[type=radio]")];
  if (verdict && !inputs.some((input) => input.value === verdict)) return false;
  for (const input of inputs) input.checked = input.value === verdict;
  remember();
  return true;
}

// the same as `safe` in table.py: no spreadsheet may take a text for a formula
const formula = /^(?=[\t\r\n])|(^|[;\t\r\n])(?=[^\S\t\r\n]*[=+\-@＝＋－＠'])/g;
const safe = (text) => text.replace(formula, (found) => found + "'");
const quoted = (text) => (/[",\r\n]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text);

function table() {
  const rows = items.map((item) => columns.map((name) => {
    if (name === "id") return item.dataset.item;
    if (name === "verdict") return chosen(item);
    if (name === "note") return safe(note(item).value);
    const text = item.querySelector(`[data-column="${name}"]`)?.textContent ?? "";
    return name === "score" ? text : safe(text);
  }));
  return "\ufeff" + [columns, ...rows].map((row) => row.map(quoted).join(",") + "\r\n").join("");
}

function save() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([table()], { type: "text/csv" }));
  link.download = document.body.dataset.file;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  unsaved = false;
  show();
}

document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input[type=text]");
  if (typing || event.ctrlKey || event.altKey || event.metaKey || !document.getElementById("shortcuts").checked) return;
  const verdict = { 0: "", 1: "keep", 2: "drop", 3: "promote", 4: "drop pair" }[event.key];
  const current = currentItem();
  const index = items.indexOf(current);
  if (verdict !== undefined && current) {
    if (choose(current, verdict)) go(verdict ? items[index + 1] : current);
  } else if (event.key === "n") {
    go(items[index + 1]);
  } else if (event.key === "b") {
    go(items[index - 1]);
  } else {
    return;
  }
  event.preventDefault();
});
document.addEventListener("focusin", (event) => {
  const item = event.target.closest(".item");
  if (item) mark(item);
});
document.getElementById("items").addEventListener("change", remember);
document.getElementById("items").addEventListener("input", remember);
document.getElementById("save").addEventListener("click", save);
window.addEventListener("beforeunload", (event) => { if (unsaved) event.preventDefault(); });
recall();
show();
