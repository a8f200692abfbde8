// Keys, choices and copying. Every page works without this file, by links and forms.
"use strict";

const typing = (event) => event.target.matches("input, select, textarea") || event.ctrlKey || event.metaKey || event.altKey;
const rows = () => [...document.querySelectorAll("tr[data-row]")];

function move(step) {
  const all = rows();
  if (!all.length) return;
  const at = all.findIndex((row) => row.classList.contains("current"));
  const next = all[Math.min(all.length - 1, Math.max(0, at + step))] || all[0];
  all.forEach((row) => row.classList.toggle("current", row === next));
  next.querySelector("a")?.focus();
  next.scrollIntoView({ block: "nearest" });
}

const current = () => document.querySelector("tr.current");
const keys = {
  j: () => move(1),
  k: () => move(-1),
  o: () => current()?.querySelector("a")?.click(),
  x: () => current()?.querySelector("input[type=checkbox]")?.click(),
  "?": () => document.getElementById("help")?.showModal(),
};

document.addEventListener("keydown", (event) => {
  if (typing(event) || document.querySelector("dialog[open]")) return;
  const marked = [...document.querySelectorAll("[data-key]")].find((one) => one.dataset.key === event.key && !one.disabled);
  if (marked) {
    event.preventDefault();
    if (marked.matches("input")) marked.focus();
    else marked.click();
  } else if (keys[event.key]) {
    event.preventDefault();
    keys[event.key]();
  }
});

function count(name) {
  const chosen = document.querySelectorAll(`input[name=${name}]:checked`).length;
  document.querySelectorAll(`[data-count=${name}]`).forEach((one) => (one.textContent = chosen));
}

document.addEventListener("change", (event) => {
  const { all } = event.target.dataset;
  if (all) document.querySelectorAll(`input[name=${all}]:not(:disabled)`).forEach((one) => (one.checked = event.target.checked));
  if (all || event.target.name === "case") count(all || "case");
  if (event.target.matches("#filters select")) event.target.form.requestSubmit();
});

document.addEventListener("click", async (event) => {
  const link = event.target.closest("[data-copy]");
  if (!link || !navigator.clipboard) return;
  event.preventDefault();
  await navigator.clipboard.writeText(await (await fetch(link.href)).text());
  link.textContent = "Copied";
});

// A form is sent once, even by two quick keys.
document.addEventListener("submit", (event) => {
  if (event.target.dataset.sent) event.preventDefault();
  else if (event.target.method === "post") event.target.dataset.sent = "1";
});
window.addEventListener("pageshow", () => document.querySelectorAll("[data-sent]").forEach((form) => delete form.dataset.sent));

document.addEventListener("htmx:configRequest", (event) => {
  event.detail.headers["X-Form-Key"] = document.body.dataset.formKey;
});

document.addEventListener("change", async (event) => {
  const { into } = event.target.dataset;
  if (into && event.target.files?.[0]) document.getElementById(into).value = await event.target.files[0].text();
});

// Commands get a button that copies them; without it they are selected by a click.
function addCopying(part) {
  if (!navigator.clipboard) return;
  part.querySelectorAll("code.command").forEach((code) => {
    const button = Object.assign(document.createElement("button"), { type: "button", className: "copy", textContent: "Copy" });
    button.setAttribute("aria-label", `Copy: ${code.textContent}`);
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    });
    code.after(button);
  });
}
addCopying(document);
document.addEventListener("htmx:afterSwap", (event) => addCopying(event.target));
