// Joins the parts of the page: the list of chats, the question, and the answers that are being written.

import { onKeyNeeded } from "./api.js";
import { beginComposer, draft, focusQuestion, requestFor, setBusy, setDraft, setEditing, showProblem } from "./composer.js";
import { announce, askInDialog, button, element, find } from "./dom.js";
import { endRunning, showMessages } from "./messages.js";
import { AnswerRun } from "./run.js";
import { watchServer } from "./server.js";
import { chatHeads, newChat, onChange, readChat, removeChat, saveChat, whyNothingIsKept } from "./store.js";

const isPhone = () => matchMedia("(max-width: 46rem)").matches;
const runs = new Map(); // the answers that are being written, by chat
const drafts = new Map(); // what was written and not asked, by the id of the chat
let chat = newChat();
let shownChats = ""; // the list as it is shown
let opening = 0; // counts what is opened, so that a chat that is read slowly does not come over a later one
let editing = null; // the index of the question that is being changed

// Chats

async function showChats() {
  const heads = await chatHeads();
  const running = [...runs.keys()].map((one) => one.id);
  const looks = JSON.stringify([heads.map((head) => [head.id, head.title]), chat.id, running]);
  if (looks !== shownChats) {
    shownChats = looks;
    const focused = document.activeElement.closest?.("#chat-list li")?.dataset.id;
    find("#chat-list").replaceChildren(...heads.map((head) => chatItem(head, running.includes(head.id))));
    if (focused) find(`#chat-list [data-id="${focused}"] button`)?.focus();
  }
  const whyNot = await whyNothingIsKept();
  find("#kept").textContent = whyNot
    ? `Chats are lost with this page: the browser keeps no data (${whyNot}).`
    : "Chats are kept in this browser, and nowhere else.";
}

function chatItem(head, isRunning) {
  const item = element("li", isRunning ? "busy" : "");
  item.dataset.id = head.id;
  const open = button(head.title, () => openById(head.id), { className: "open" });
  open.dir = "auto";
  open.title = new Date(head.changed).toLocaleString();
  if (head.id === chat.id) open.setAttribute("aria-current", "true");
  item.append(
    open,
    button("", () => exportChat(head), { icon: "save", label: `Export ${head.title} as JSON` }),
    button("", () => deleteChat(head), { icon: "delete", label: `Delete ${head.title}` }),
  );
  return item;
}

/** Which chat this window shows, for when it is loaded again. */
function remember(id) {
  try {
    sessionStorage.setItem("chat", id);
  } catch {
    // A browser that keeps nothing.
  }
}

function remembered() {
  try {
    return sessionStorage.getItem("chat");
  } catch {
    return null;
  }
}

async function openById(id) {
  const mine = ++opening;
  const running = [...runs.keys()].find((one) => one.id === id);
  const found = running ?? (await readChat(id));
  if (found && mine === opening) openChat(found);
}

function openChat(one) {
  opening += 1;
  drafts.set(chat.id, draft());
  chat = one;
  remember(chat.id);
  editing = null;
  setEditing(false);
  setDraft(drafts.get(chat.id));
  showProblem("");
  showConversation();
  showChats();
  toggleChats(false);
  if (!isPhone()) focusQuestion(); // the keyboard of a phone would cover the chat
}

function showConversation() {
  const run = runs.get(chat);
  const views = showMessages(chat.messages, run?.message, actions);
  if (run) run.view = views.get(run.message);
  setBusy(Boolean(run));
}

async function deleteChat(head) {
  find("#delete-name").textContent = head.title;
  if (!(await askInDialog(find("#delete-dialog")))) return;
  const running = [...runs.entries()].find(([one]) => one.id === head.id);
  running?.[1].forget();
  await removeChat(head.id);
  if (head.id === chat.id) openChat(newChat());
  else await showChats();
  announce("The chat is deleted.");
}

async function exportChat(head) {
  const exported = [...runs.keys()].find((one) => one.id === head.id) ?? (await readChat(head.id));
  const link = element("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(exported, null, 1)], { type: "application/json" }));
  const name = head.title.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 40);
  link.download = `${name || "chat"}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

function toggleChats(isShown) {
  find("#chats").classList.toggle("shown", isShown);
  find("#show-chats").setAttribute("aria-expanded", String(isShown));
}

async function keep(one) {
  try {
    if (await saveChat(one)) showProblem("Another window has changed this chat. What you see here is kept as a copy.");
  } catch (error) {
    const isFull = error.name === "QuotaExceededError";
    showProblem(`This chat is lost with the page: ${isFull ? "the browser has no more room for it. Export it, or delete other chats" : error.message || error.name}.`);
  }
  await showChats();
}

onChange(async (id) => {
  if (id === chat.id && !runs.has(chat) && editing === null) {
    const changed = await readChat(id);
    if (changed) {
      chat = changed;
      showConversation();
    }
  }
  showChats();
});

// Asking

const actions = {
  edit(index) {
    editing = index;
    const { text, images } = chat.messages[index];
    setDraft({ text, images: [...images] });
    setEditing(true);
    showProblem("");
    focusQuestion();
  },
  again() {
    answer(chat.messages.at(-1)?.role === "assistant" ? chat.messages.slice(0, -1) : chat.messages);
  },
  results(texts) {
    const results = chat.messages.at(-1).calls.map((call, index) => ({ role: "tool", callId: call.id, name: call.name, text: texts[index] }));
    answer([...chat.messages, ...results]);
  },
};

function ask() {
  const { text, images } = draft();
  if (runs.has(chat) || (!text.trim() && !images.length)) return;
  const before = editing === null ? chat.messages : chat.messages.slice(0, editing);
  if (!answer([...before, { role: "user", text, images }])) return;
  setDraft();
}

function cancelEdit() {
  editing = null;
  setEditing(false);
  setDraft();
  focusQuestion();
}

/** Has the model answer these messages, which become those of the chat; false where they cannot be asked. */
function answer(messages) {
  let body;
  try {
    body = requestFor(messages);
  } catch (error) {
    showProblem(error.message);
    return false;
  }
  showProblem("");
  editing = null;
  setEditing(false);
  const asked = chat;
  const run = new AnswerRun(body, () => keep(asked));
  asked.messages = [...messages, run.message];
  runs.set(asked, run);
  remember(asked.id);
  showConversation();
  keep(asked);
  run.go().then(async () => {
    runs.delete(asked);
    if (run.isForgotten) return;
    if (asked === chat) {
      setBusy(false);
      endRunning(run.message, actions);
    }
    await keep(asked);
    if (asked === chat && document.activeElement === document.body && !isPhone()) focusQuestion();
  });
  return true;
}

// The rest of the page

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  find("#theme").value = theme;
}

function beginTheme() {
  let theme = "auto";
  try {
    theme = localStorage.getItem("theme") ?? theme;
  } catch {
    // A browser that keeps nothing.
  }
  setTheme(theme);
  find("#theme").onchange = (event) => {
    setTheme(event.target.value);
    try {
      localStorage.setItem("theme", event.target.value);
    } catch {
      // It holds as long as the page does.
    }
  };
}

async function askForKey(isWrong) {
  const dialog = find("#key-dialog");
  find("#key").value = "";
  find("#key-problem").hidden = !isWrong;
  find("#key-cancel").onclick = () => dialog.close("");
  return (await askInDialog(dialog)) && find("#key").value;
}

document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || event.isComposing || find("dialog[open]")) return;
  if (find("#chats").classList.contains("shown")) {
    toggleChats(false);
    find("#show-chats").focus();
  } else if (editing !== null) cancelEdit();
  else runs.get(chat)?.stop();
});
find("#new-chat").onclick = () => (chat.messages.length ? openChat(newChat()) : (toggleChats(false), focusQuestion()));
find("#show-chats").onclick = () => {
  toggleChats(true);
  find("#close-chats").focus();
};
find("#close-chats").onclick = () => {
  toggleChats(false);
  find("#show-chats").focus();
};

beginTheme();
onKeyNeeded(askForKey);
beginComposer({ ask, stop: () => runs.get(chat)?.stop(), cancelEdit });
watchServer();
showConversation();
showChats();
if (!isPhone()) focusQuestion();
const last = remembered();
if (last) openById(last);
