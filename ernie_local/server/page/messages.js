// Shows a conversation: questions with their images, thoughts folded, answers in Markdown or as a table.

import { rendered } from "./api.js";
import { fileView } from "./attachments.js";
import { boxesView, pagesOf } from "./boxes.js";
import { announce, button, count, counted, element, find } from "./dom.js";
import { jsonView } from "./values.js";

const LEAST_PAUSE = 200; // milliseconds between two renderings of an answer that grows
const PAUSE_SHARE = 4; // of what a rendering took: a long answer is not to slow down the model
const NEAR_END = 80; // pixels
const section = find("#messages");
const known = new Map(); // HTML of answers that were rendered before
let sticks = true; // to the end, while an answer grows

section.addEventListener("scroll", () => {
  sticks = section.scrollHeight - section.scrollTop - section.clientHeight < NEAR_END;
  find("#latest").hidden = sticks;
});
// Images come after the text, and the question that is being written takes room.
section.addEventListener("load", () => sticks && scrollToEnd(), true);
new ResizeObserver(() => {
  document.body.style.setProperty("--composer", `${find("#composer").offsetHeight}px`);
  if (sticks) scrollToEnd();
}).observe(section);
find("#latest").onclick = () => scrollToEnd();

function scrollToEnd() {
  section.scrollTop = section.scrollHeight;
  sticks = true;
  find("#latest").hidden = true;
}

/** Shows all messages; gives the view of each answer. actions: edit(index), again(), results(texts). */
export function showMessages(messages, running, actions) {
  const views = new Map();
  const shown = messages.map((message, index) => {
    const pages = () => pagesOf(messages.slice(0, index));
    if (message.role !== "assistant") return questionView(message, index, actions);
    const view = new AnswerView(message, pages, message === running);
    views.set(message, view);
    return view.article;
  });
  section.replaceChildren(...(shown.length ? shown : [emptyView()]));
  section.classList.toggle("running", Boolean(running));
  if (shown.length && !running) addActions(messages.at(-1), actions);
  scrollToEnd();
  return views;
}

/** Shows what can be done now that the last answer grows no more. */
export function endRunning(last, actions) {
  section.classList.remove("running");
  addActions(last, actions);
  if (sticks) scrollToEnd();
}

function emptyView() {
  const view = element("div", "empty");
  const picture = button("", () => find("#files").click(), { icon: "image", label: "Add images, PDFs or videos", className: "for-images" });
  view.append(picture, element("h2", "for-images", "Ask about an image, or anything else"), element("h2", "for-text", "Ask anything"));
  view.append(element("p", "quiet for-images", "Drop images, PDFs or videos anywhere on this page, paste them, or pick files. They go to your server only, which keeps nothing of them."));
  return view;
}

function addActions(last, actions) {
  const article = section.lastChild;
  const buttons = article.querySelector(".buttons");
  if (last.role === "assistant" && last.calls?.length) article.insertBefore(resultsView(last.calls, actions), buttons);
  buttons.append(button(last.role === "assistant" ? "Ask again" : "Ask", actions.again));
}

function questionView(message, index, actions) {
  const isTool = message.role === "tool";
  const article = element("article", isTool ? "tool" : "user");
  article.append(element("h2", isTool ? "who" : "who hidden", isTool ? `Result of ${message.name}` : "You"));
  if (message.images?.length) {
    const list = element("ul", "images");
    list.append(...message.images.map(fileView));
    article.append(list);
  }
  const text = element("p", "text", message.text);
  text.dir = "auto";
  if (message.text) article.append(text);
  const buttons = element("p", "buttons");
  if (!isTool) buttons.append(button("Edit", () => actions.edit(index), { label: "Edit this question" }));
  article.append(buttons);
  return article;
}

function resultsView(calls, actions) {
  const form = element("form", "results");
  const inputs = calls.map((call, index) => {
    const label = element("label", "", `Result of ${call.name}`);
    const input = element("textarea");
    input.rows = 2;
    input.id = `result-${index}`;
    label.htmlFor = input.id;
    form.append(label, input);
    return input;
  });
  const send = element("button", "main", "Send the result");
  form.append(send);
  form.onsubmit = (event) => {
    event.preventDefault();
    actions.results(inputs.map((input) => input.value));
  };
  return form;
}

export class AnswerView {
  /** pages: gives the pages that the boxes of the answer lie in. */
  constructor(message, pages, isRunning) {
    this.message = message;
    this.pages = pages;
    this.article = element("article", "assistant");
    this.article.append(element("h2", "who hidden", "Answer"));
    this.thought = element("details", "thought");
    this.thought.append(element("summary", "", "Thought"), element("p", "text"));
    this.body = element("div", "body");
    this.extras = element("div");
    this.wait = element("p", "wait");
    this.problem = element("p", "problem");
    this.figures = element("p", "quiet figures");
    this.buttons = element("p", "buttons");
    this.article.append(this.thought, this.body, this.extras, this.wait, this.problem, this.figures, this.buttons);
    this.isRunning = isRunning;
    this.isRendering = false;
    this.shownText = null;
    this.article.setAttribute("aria-busy", "true"); // until all of it is shown
    if (!isRunning) this.finish();
    this.update();
  }

  /** Shows what the message has by now. */
  update() {
    const { text, reasoning, figures, problem, waits } = this.message;
    this.thought.hidden = !reasoning;
    this.thought.lastChild.textContent = reasoning;
    this.thought.firstChild.textContent = this.isRunning && reasoning && !text ? "Thinking…" : "Thought";
    this.problem.textContent = this.isRunning ? "" : (problem ?? "");
    this.problem.classList.toggle("calm", Boolean(this.message.isStopped));
    this.figures.textContent = figures ?? "";
    this.wait.hidden = !this.isRunning || Boolean(text);
    this.wait.textContent = waits || "";
    if (text !== this.shownText && !this.isRendering) this.render(text);
    if (sticks) scrollToEnd();
  }

  /** Shows all of an answer that grows no more. */
  end() {
    this.isRunning = false;
    this.shownText = null; // boxes are drawn on what is whole
    this.finish();
    this.update();
    announce(this.message.problem || "The answer is complete.");
  }

  finish() {
    const { text, calls } = this.message;
    if (text) this.buttons.append(button("Copy", (event) => copy(text, event.currentTarget)));
    this.extras.replaceChildren(...(calls ?? []).map(callView));
  }

  async render(text) {
    this.isRendering = true;
    const started = performance.now();
    if (this.message.isJson) this.renderJson(text);
    else await this.renderMarkdown(text);
    this.shownText = text;
    this.addBoxes();
    if (!this.isRunning && text === this.message.text) this.article.removeAttribute("aria-busy");
    if (sticks) scrollToEnd();
    const took = performance.now() - started;
    const goOn = () => {
      this.isRendering = false;
      if (this.message.text !== this.shownText) this.update();
    };
    if (this.isRunning) setTimeout(goOn, Math.max(LEAST_PAUSE, took * PAUSE_SHARE));
    else goOn();
  }

  renderJson(text) {
    const table = jsonView(text);
    const raw = element("pre", "", text);
    if (!table) {
      this.body.replaceChildren(raw);
      return;
    }
    const source = element("details");
    source.append(element("summary", "", "JSON"), raw);
    const scroller = element("div", "scroller");
    scroller.append(table);
    this.body.replaceChildren(scroller, source);
  }

  async renderMarkdown(text) {
    try {
      const html = known.get(text) ?? (text && (await rendered(text)));
      if (!this.isRunning) known.set(text, html);
      showHtml(this.body, html);
    } catch {
      this.body.replaceChildren(element("p", "text", text));
    }
  }

  addBoxes() {
    const { boxes, text } = this.message;
    if (this.isRunning || !boxes?.length || this.shownText !== text) return;
    this.extras.querySelector(".boxes")?.remove();
    this.extras.append(boxesView(boxes, this.pages(), this.body));
  }
}

/** Shows HTML that the server has made safe; what is there already stays, with what is selected in it. */
function showHtml(body, html) {
  const made = element("template");
  made.innerHTML = html;
  for (const one of made.content.querySelectorAll("a")) one.target = "_blank";
  for (const one of made.content.querySelectorAll("pre, table")) one.tabIndex = 0; // what scrolls is to be reached by keys
  for (const one of made.content.querySelectorAll("p, ul, ol, li, h1, h2, h3, h4, h5, h6, blockquote, th, td")) one.dir = "auto";
  const fresh = [...made.content.childNodes];
  const shown = [...body.childNodes];
  let same = 0;
  while (same < Math.min(fresh.length, shown.length) && fresh[same].isEqualNode(shown[same])) same += 1;
  for (const one of shown.slice(same)) one.remove();
  body.append(...fresh.slice(same));
}

function callView(call) {
  const view = element("section", "call");
  view.setAttribute("aria-label", `Call of ${call.name}`);
  const title = element("p", "", "Calls ");
  title.append(element("b", "", call.name));
  view.append(title, jsonView(call.arguments) ?? element("pre", "", call.arguments));
  return view;
}

async function copy(text, pressed) {
  let told = "Copied";
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    told = "The browser does not allow it";
  }
  pressed.textContent = told;
  announce(told);
  setTimeout(() => (pressed.textContent = "Copy"), 2000);
}

/** What the last piece of a stream tells of an answer, in words. */
export function figuresOf(usage, started, first) {
  const seconds = (milliseconds) => (milliseconds / 1000).toFixed(1);
  const { cached_tokens: cached = 0, image_tokens: images = 0, video_tokens: videos = 0 } = usage.prompt_tokens_details ?? {};
  const seen = [images && `${count(images)} of images`, videos && `${count(videos)} of videos`].filter(Boolean);
  const ofImages = seen.length ? ` (${seen.join(", ")})` : "";
  const before = cached ? `, ${count(cached)} of them known before` : "";
  const parts = [`${counted(usage.prompt_tokens, "token")} read${ofImages}${before}`];
  if (first !== null) {
    const rate = (1000 * (usage.completion_tokens - 1)) / (performance.now() - first);
    parts.push(`first word after ${seconds(first - started)} s`);
    const speed = Number.isFinite(rate) && rate > 0 ? `, ${rate.toFixed(1)} a second` : "";
    parts.push(`${counted(usage.completion_tokens, "token")} written${speed}`);
  }
  return parts.join(" · ");
}
