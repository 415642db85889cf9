// Joins the parts of the page: chats, the question, the answer that is being written.

import { onKeyNeeded, serverState, streamAnswer } from "./api.js";
import { attach, attachments, setAttachments } from "./attachments.js";
import { appendQuestion, beginAnswer, showMessages } from "./messages.js";
import { allChats, newChat, removeChat, saveChat, titleOf } from "./store.js";

const STATE_PAUSE = 3000; // milliseconds
const find = (selector) => document.querySelector(selector);
const question = find("#question");
const problem = find("#problem");

let chat = newChat();
let running = null; // the AbortController of the answer that is being written

// Chats

async function showChats() {
  const chats = await allChats();
  find("#chat-list").replaceChildren(
    ...chats.map((one) => {
      const item = document.createElement("li");
      const open = button(titleOf(one), () => openChat(one));
      if (one.id === chat.id) open.setAttribute("aria-current", "true");
      const title = titleOf(one);
      item.append(
        open,
        button("Export", () => exportChat(one), `Export ${title}`),
        button("Delete", () => deleteChat(one), `Delete ${title}`),
      );
      return item;
    }),
  );
}

function button(text, act, label) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = text;
  if (label) made.setAttribute("aria-label", label);
  made.onclick = act;
  return made;
}

function openChat(one) {
  if (running) return;
  chat = one;
  setAttachments([]);
  problem.textContent = "";
  showMessages(chat.messages, actions);
  showChats();
  toggleChats(false);
  question.focus();
}

async function deleteChat(one) {
  if (running && one.id === chat.id) return;
  await removeChat(one.id);
  if (one.id === chat.id) openChat(newChat());
  else showChats();
}

function exportChat(one) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(one, null, 1)], { type: "application/json" }));
  link.download = "chat.json";
  link.click();
  URL.revokeObjectURL(link.href);
}

function toggleChats(isShown) {
  find("#chats").classList.toggle("shown", isShown);
  find("#show-chats").setAttribute("aria-expanded", String(isShown));
}

// Asking

const actions = {
  edit(index) {
    if (running) return;
    const message = chat.messages[index];
    chat.messages = chat.messages.slice(0, index);
    question.value = message.text;
    setAttachments([...message.images]);
    showMessages(chat.messages, actions);
    question.focus();
  },
  again(index) {
    if (running) return;
    chat.messages = chat.messages.slice(0, index);
    showMessages(chat.messages, actions);
    answer();
  },
};

function ask() {
  const text = question.value;
  if (running || (!text.trim() && !attachments().length)) return;
  const message = { role: "user", text, images: attachments() };
  chat.messages.push(message);
  appendQuestion(message);
  question.value = "";
  setAttachments([]);
  answer();
}

function asRequest() {
  const messages = chat.messages.map((message) => {
    if (message.role === "assistant") return { role: "assistant", content: message.text };
    const parts = message.images.map((image) =>
      image.kind === "application/pdf"
        ? { type: "file", file: { filename: image.name, file_data: image.url } }
        : { type: "image_url", image_url: { url: image.url } },
    );
    return { role: "user", content: [...parts, { type: "text", text: message.text }] };
  });
  const body = { messages };
  if (find("#thinking").value) body.reasoning_effort = find("#thinking").value;
  if (find("#max-tokens").value) body.max_completion_tokens = Number(find("#max-tokens").value);
  if (find("#form").value === "schema") {
    body.response_format = { type: "json_schema", json_schema: { name: "answer", schema: JSON.parse(find("#schema").value) } };
  }
  return body;
}

async function answer() {
  problem.textContent = "";
  let body;
  try {
    body = asRequest();
  } catch (error) {
    problem.textContent = `The schema is not JSON: ${error.message}`;
    return;
  }
  running = new AbortController();
  setBusy(true);
  const message = { role: "assistant", text: "", reasoning: "", figures: "", isJson: Boolean(body.response_format) };
  const view = beginAnswer(message);
  const started = performance.now();
  let first = null;
  try {
    await streamAnswer(body, running.signal, (object) => {
      const delta = object.choices[0]?.delta ?? {};
      if (delta.content || delta.reasoning_content) first ??= performance.now();
      message.text += delta.content ?? "";
      message.reasoning += delta.reasoning_content ?? "";
      if (object.choices[0]?.finish_reason === "length") message.problem = "cut off by the limit of tokens";
      if (object.usage) message.figures = figuresOf(object.usage, started, first);
      view.update();
    });
  } catch (error) {
    if (error.name === "AbortError") message.problem = "stopped";
    else message.problem = error.message;
  }
  running = null;
  setBusy(false);
  await view.end();
  if (message.text || message.reasoning) chat.messages.push(message);
  else problem.textContent = message.problem ?? "the model gave no answer";
  await saveChat(chat);
  showMessages(chat.messages, actions);
  await showChats();
  question.focus();
}

function figuresOf(usage, started, first) {
  const now = performance.now();
  const seconds = (milliseconds) => (milliseconds / 1000).toFixed(1);
  const cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
  const images = usage.prompt_tokens_details?.image_tokens ?? 0;
  const parts = [`${usage.prompt_tokens} tokens read${cached ? `, ${cached} known before` : ""}${images ? `, ${images} of images` : ""}`];
  if (first !== null) {
    const rate = usage.completion_tokens / Math.max(0.001, (now - first) / 1000);
    parts.push(`first word after ${seconds(first - started)} s`, `${usage.completion_tokens} tokens, ${rate.toFixed(1)} a second`);
  }
  return parts.join(" · ");
}

function setBusy(isBusy) {
  find("#send").hidden = isBusy;
  find("#stop").hidden = !isBusy;
}

// Files

async function take(files) {
  const kinds = [...files].filter((file) => file.type.startsWith("image/") || file.type === "application/pdf");
  const left = files.length - kinds.length;
  const problems = await attach(kinds);
  if (left) problems.push(`${left} files are neither images nor PDFs`);
  problem.textContent = problems.join("; ");
}

document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dropping");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  take(event.dataTransfer.files);
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) {
    event.preventDefault();
    take(event.clipboardData.files);
  }
});
find("#files").addEventListener("change", (event) => {
  take(event.target.files);
  event.target.value = "";
});

// The rest of the page

find("#composer").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
question.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    ask();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
});
find("#stop").onclick = () => running?.abort();
find("#new-chat").onclick = () => openChat(newChat());
find("#show-chats").onclick = () => toggleChats(!find("#chats").classList.contains("shown"));
find("#form").onchange = (event) => {
  find("#schema-row").hidden = event.target.value !== "schema";
};
find("#theme").value = localStorage.getItem("theme") ?? "auto";
find("#theme").onchange = (event) => {
  localStorage.setItem("theme", event.target.value);
  document.documentElement.dataset.theme = event.target.value;
};
document.documentElement.dataset.theme = find("#theme").value;

onKeyNeeded(
  () =>
    new Promise((resolve) => {
      const dialog = find("#key-dialog");
      dialog.onclose = () => resolve(find("#key").value);
      dialog.showModal();
    }),
);

async function showState() {
  try {
    const state = await serverState();
    find("#model").textContent = state.model;
    find("#server-state").textContent = state.line;
  } catch {
    find("#server-state").textContent = "the server does not answer";
  }
  setTimeout(showState, STATE_PAUSE);
}

showState();
showChats();
