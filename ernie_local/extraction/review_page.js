"use strict";
const articles = [...document.querySelectorAll("article")];
const [previous, next] = ["previous", "next"].map((id) => document.getElementById(id));
let shown = articles;
let place = 0;

function show(index) {
  place = Math.max(0, Math.min(index, shown.length - 1));
  articles.forEach((one) => one.classList.toggle("current", one === shown[place]));
  document.getElementById("place").textContent = shown.length ? `${place + 1} of ${shown.length}` : "0 of 0";
  document.getElementById("nothing").style.display = shown.length ? "none" : "block";
  previous.disabled = place === 0;
  next.disabled = place >= shown.length - 1;
  scrollTo(0, 0);
}

function choose(filter) {
  shown = articles.filter((one) => !filter || one.dataset.kind === filter);
  for (const button of document.querySelectorAll("#filters button")) {
    button.setAttribute("aria-pressed", String(button.dataset.filter === filter));
  }
  show(0);
}

function light(article, name) {
  for (const one of article.querySelectorAll("[data-field]")) {
    one.classList.toggle("lit", one.dataset.field === name);
  }
}

document.getElementById("filters").addEventListener("click", (event) => {
  if (event.target.dataset.filter !== undefined) choose(event.target.dataset.filter);
});
previous.addEventListener("click", () => show(place - 1));
next.addEventListener("click", () => show(place + 1));
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (["ArrowRight", "j"].includes(event.key)) show(place + 1);
  if (["ArrowLeft", "k"].includes(event.key)) show(place - 1);
});
for (const article of articles) {
  for (const kind of ["mouseover", "focusin", "click"]) {
    article.addEventListener(kind, (event) => {
      const field = event.target.closest("[data-field]");
      light(article, field && field.dataset.field);
    });
  }
  article.addEventListener("mouseleave", () => light(article, null));
}
document.body.classList.add("paged");
show(0);
