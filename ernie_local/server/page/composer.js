// The question that is being written: its text, options, and files that are dropped or pasted.

import { allRead, attach, attachments, isReading, isVideo, setAttachments } from "./attachments.js";
import { bytes, count, find } from "./dom.js";
import { lastState } from "./server.js";

const EXAMPLE_SCHEMA = {
  type: "object",
  properties: {
    vendor: { type: "string" },
    date: { type: "string" },
    total: { type: "number" },
  },
  required: ["vendor", "date", "total"],
};
const CHOICES = ["thinking", "form", "max-tokens", "schema", "tools"];
const question = find("#question");
const problem = find("#problem");

export function showProblem(text) {
  problem.textContent = text;
}

/** What is written and not yet asked. */
export const draft = () => ({ text: question.value, images: attachments() });

export function setDraft({ text = "", images = [] } = {}) {
  question.value = text;
  grow();
  setAttachments(images);
}

function grow() {
  question.style.height = "auto";
  question.style.height = `${question.scrollHeight + 2}px`;
}

export function focusQuestion() {
  question.focus();
}

/** Shows that an answer is being written, or that a question is wanted. */
export function setBusy(isBusy) {
  const hadFocus = document.activeElement === find("#stop") || document.activeElement === find("#send");
  find("#send").hidden = isBusy;
  find("#stop").hidden = !isBusy;
  if (hadFocus) find(isBusy ? "#stop" : "#send").focus();
}

export function setEditing(isEditing) {
  find("#editing").hidden = !isEditing;
}

function jsonOf(selector, what, isGood) {
  const text = find(selector).value.trim();
  const told = find(`${selector}-problem`);
  told.textContent = "";
  if (!text) return null;
  try {
    const value = JSON.parse(text);
    if (isGood(value)) return value;
    told.textContent = `This is not ${what}.`;
  } catch (error) {
    told.textContent = `This is not JSON: ${error.message}.`;
  }
  throw new Error(`${what[0].toUpperCase()}${what.slice(1)} is needed under Options.`);
}

const readSchema = () => jsonOf("#schema", "a JSON schema, such as {\"type\": \"object\"}", (value) => value && typeof value === "object" && !Array.isArray(value));
const readTools = () => jsonOf("#tools", "a JSON list of tools", Array.isArray);

/** The body of a request for these messages; an Error says what cannot be asked. */
export function requestFor(messages) {
  const body = { messages: messages.filter((one) => one.role !== "assistant" || one.text || one.calls?.length).map(asSent) };
  const size = messages.flatMap((one) => one.images ?? []).reduce((sum, file) => sum + file.url.length, 0);
  const most = lastState()?.limits.request_bytes ?? Infinity;
  if (size > most) throw new Error(`The images and videos of this chat have ${bytes(size)} as they are sent, and this server reads at most ${bytes(most)} of a request.`);
  if (find("#thinking").value) body.reasoning_effort = find("#thinking").value;
  if (!find("#max-tokens").checkValidity()) throw new Error("Most tokens, under Options, is a whole number from 1 on.");
  if (find("#max-tokens").value) body.max_completion_tokens = Number(find("#max-tokens").value);
  const schema = find("#form").value === "schema" && readSchema();
  if (schema) body.response_format = { type: "json_schema", json_schema: { name: "answer", schema } };
  const tools = readTools();
  if (tools?.length) body.tools = tools;
  return body;
}

function asSent(message) {
  if (message.role === "tool") return { role: "tool", tool_call_id: message.callId, content: message.text };
  if (message.role === "assistant") {
    const calls = (message.calls ?? []).map(({ id, name, arguments: text }) => ({ id, type: "function", function: { name, arguments: text } }));
    return { role: "assistant", content: message.text, ...(calls.length ? { tool_calls: calls } : {}) };
  }
  const parts = message.images.map((file) => {
    if (isVideo(file)) return { type: "video_url", video_url: { url: file.url } };
    if (file.kind.startsWith("image/")) return { type: "image_url", image_url: { url: file.url } };
    return { type: "file", file: { filename: file.name, file_data: file.url } };
  });
  return { role: "user", content: message.text ? [...parts, { type: "text", text: message.text }] : parts };
}

async function take(files) {
  showProblem("");
  const problems = await attach(files);
  showProblem(problems.join("\n"));
}

/** How many tokens the images of the question take, and which options are not as usual. */
function showChosen() {
  const tokens = attachments().flatMap((file) => file.pages).reduce((sum, page) => sum + page.tokens, 0);
  const context = lastState()?.context_size;
  const parts = [];
  if (tokens) parts.push(`${count(tokens)}${context ? ` of ${count(context)}` : ""} tokens for what is attached`);
  if (find("#form").value) parts.push("JSON");
  if (find("#thinking").value) parts.push(`thinking ${find("#thinking").selectedOptions[0].text}`);
  if (find("#max-tokens").value) parts.push(`at most ${count(Number(find("#max-tokens").value))} tokens`);
  if (find("#tools").value.trim()) parts.push("tools");
  find("#chosen").textContent = parts.join(" · ");
  find("#chosen").classList.toggle("problem", Boolean(context) && tokens >= context);
}

function keepChoices() {
  try {
    localStorage.setItem("choices", JSON.stringify(CHOICES.map((name) => find(`#${name}`).value)));
  } catch {
    // They hold as long as the page does.
  }
}

function restoreChoices() {
  try {
    const values = JSON.parse(localStorage.getItem("choices")) ?? [];
    values.forEach((value, index) => (find(`#${CHOICES[index]}`).value = value));
  } catch {
    // A browser that keeps nothing, or what another version kept.
  }
  if (!find("#schema").value) find("#schema").value = JSON.stringify(EXAMPLE_SCHEMA, null, 1);
  find("#schema-row").hidden = !find("#form").value;
}

function listenForFiles() {
  const hasFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  document.addEventListener("dragover", (event) => {
    if (!hasFiles(event)) return; // texts may be dragged into the question
    event.preventDefault();
    document.body.classList.add("dropping");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("dropping");
  });
  document.addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    document.body.classList.remove("dropping");
    take(event.dataTransfer.files);
  });
  document.addEventListener("paste", (event) => {
    // Spreadsheets add an image of the text that they copy.
    const { files } = event.clipboardData;
    if (!files.length || event.clipboardData.types.includes("text/plain")) return;
    event.preventDefault();
    take(files);
  });
  find("#files").addEventListener("change", (event) => {
    const files = [...event.target.files];
    event.target.value = "";
    take(files);
  });
}

/** ask: is called when all files of a question have been read; cancelEdit: when it is not to be changed. */
export function beginComposer({ ask, stop, cancelEdit }) {
  let isAsking = false;
  const askOnce = async () => {
    if (isAsking) return;
    isAsking = true;
    if (isReading()) await allRead();
    isAsking = false;
    ask();
  };
  find("#composer").addEventListener("submit", (event) => {
    event.preventDefault();
    askOnce();
  });
  question.addEventListener("keydown", (event) => {
    // 229: Safari ends a composition before its Enter.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
    event.preventDefault();
    askOnce();
  });
  question.addEventListener("input", grow);
  find("#stop").onclick = stop;
  find("#cancel-edit").onclick = cancelEdit;
  find("#show-options").onclick = (event) => {
    const options = find("#options");
    options.hidden = !options.hidden;
    event.currentTarget.setAttribute("aria-expanded", String(!options.hidden));
  };
  find("#form").addEventListener("change", () => (find("#schema-row").hidden = !find("#form").value));
  find("#options").addEventListener("change", () => {
    for (const read of [readSchema, readTools]) {
      try {
        read();
      } catch {
        // The field says what is wrong.
      }
    }
    showChosen();
    keepChoices();
  });
  find("#attached").addEventListener("change", showChosen);
  restoreChoices();
  showChosen();
  listenForFiles();
}
