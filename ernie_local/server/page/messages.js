// Shows a conversation: questions with their images, thoughts folded, answers in Markdown or as a table.

import { rendered } from "./api.js";
import { figureOf } from "./attachments.js";

const MARKDOWN_PAUSE = 200; // milliseconds between two renderings of an answer that grows
const section = document.querySelector("#messages");
const known = new Map(); // HTML of texts that were rendered before

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

/** Shows all messages. actions: edit(index) and again(index). */
export function showMessages(messages, actions) {
  section.replaceChildren();
  messages.forEach((message, index) => {
    const view = message.role === "user" ? questionView(message) : new AnswerView(message);
    const shown = view.article ?? view; // of an answer, or of a question
    const buttons = element("p", "buttons");
    const action = element("button", "", message.role === "user" ? "Edit" : "Ask again");
    action.type = "button";
    action.onclick = () => (message.role === "user" ? actions.edit(index) : actions.again(index));
    buttons.append(action);
    shown.append(buttons);
    section.append(shown);
  });
  scrollDown();
}

/** Appends the view of an answer that is being written. */
export function beginAnswer(message) {
  const view = new AnswerView(message);
  view.article.setAttribute("aria-busy", "true");
  section.append(view.article);
  scrollDown();
  return view;
}

export function appendQuestion(message) {
  section.append(questionView(message));
  scrollDown();
}

function scrollDown() {
  section.scrollTop = section.scrollHeight;
}

function questionView(message) {
  const article = element("article", "user");
  article.append(element("h2", "who", "You"));
  if (message.images.length) {
    const list = element("ul", "images");
    list.append(...message.images.map(figureOf));
    article.append(list);
  }
  article.append(element("p", "text", message.text));
  return article;
}

class AnswerView {
  constructor(message) {
    this.message = message;
    this.article = element("article", "assistant");
    this.article.append(element("h2", "who", "Answer"));
    this.thought = element("details", "thought");
    this.thought.append(element("summary", "", "Thought"), element("p", "text"));
    this.body = element("div", "body");
    this.figures = element("p", "quiet figures");
    this.article.append(this.thought, this.body, this.figures);
    this.waits = false;
    this.update();
  }

  /** Shows what the message has by now. */
  update() {
    const { text, reasoning, figures, problem } = this.message;
    this.thought.hidden = !reasoning;
    this.thought.lastChild.textContent = reasoning;
    this.figures.textContent = [figures, problem].filter(Boolean).join(" · ");
    this.figures.classList.toggle("problem", Boolean(problem));
    const table = this.message.isJson ? jsonTable(text) : null;
    if (table) this.body.replaceChildren(table);
    else if (!this.waits) this.renderSoon(text);
    const isAtEnd = section.scrollHeight - section.scrollTop - section.clientHeight < 120;
    if (isAtEnd) scrollDown();
  }

  async renderSoon(text) {
    if (!text) return;
    if (known.has(text)) {
      this.body.innerHTML = known.get(text);
      return;
    }
    this.waits = true;
    try {
      const html = await rendered(text);
      if (!this.article.hasAttribute("aria-busy")) known.set(text, html);
      this.body.innerHTML = html;
    } catch {
      this.body.textContent = text;
    }
    setTimeout(() => {
      this.waits = false;
      if (this.message.text !== text) this.update();
    }, MARKDOWN_PAUSE);
  }

  /** Shows all of the answer, which grows no more. */
  async end() {
    this.article.removeAttribute("aria-busy");
    this.update();
    await this.renderSoon(this.message.isJson ? "" : this.message.text);
  }
}

/** A JSON value as a table, null while it is not whole. */
function jsonTable(text) {
  let value;
  try {
    value = JSON.parse(text);
  } catch {
    return null;
  }
  return valueView(value);
}

function valueView(value) {
  if (value === null || typeof value !== "object") return element("span", "", value === null ? "—" : String(value));
  const isList = Array.isArray(value);
  const isTable = isList && value.length > 0 && value.every((one) => one && typeof one === "object" && !Array.isArray(one));
  const table = element("table");
  if (isTable) {
    const columns = [...new Set(value.flatMap((row) => Object.keys(row)))];
    const head = element("tr");
    head.append(...columns.map((name) => scoped(element("th", "", name), "col")));
    table.append(head, ...value.map((row) => rowOf(columns.map((name) => valueView(row[name] ?? null)))));
  } else {
    const entries = isList ? value.map((one, index) => [index + 1, one]) : Object.entries(value);
    for (const [name, one] of entries) {
      const row = rowOf([valueView(one)]);
      row.prepend(scoped(element("th", "", name), "row"));
      table.append(row);
    }
  }
  return table;
}

function scoped(cell, scope) {
  cell.scope = scope;
  return cell;
}

function rowOf(views) {
  const row = element("tr");
  row.append(
    ...views.map((view) => {
      const cell = element("td");
      cell.append(view);
      return cell;
    }),
  );
  return row;
}
