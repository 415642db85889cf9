// Keeps chats in the browser's own database, and nowhere else.

const NAME = "ernie-local";
const CHATS = "chats";

function opened() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(CHATS, { keyPath: "id" });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

const database = opened();

async function run(mode, use) {
  const store = (await database).transaction(CHATS, mode).objectStore(CHATS);
  return new Promise((resolve, reject) => {
    const request = use(store);
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

/** All chats, the newest first. */
export async function allChats() {
  const chats = await run("readonly", (store) => store.getAll());
  return chats.sort((one, other) => other.changed - one.changed);
}

export function saveChat(chat) {
  chat.changed = Date.now();
  return run("readwrite", (store) => store.put(chat));
}

export function removeChat(id) {
  return run("readwrite", (store) => store.delete(id));
}

export function newChat() {
  return { id: crypto.randomUUID ? crypto.randomUUID() : String(Math.random()), changed: Date.now(), messages: [] };
}

/** What the list shows of a chat. */
export function titleOf(chat) {
  const first = chat.messages.find((message) => message.role === "user");
  if (!first) return "New chat";
  return first.text.trim().slice(0, 60) || first.images.map((image) => image.name).join(", ").slice(0, 60) || "Question";
}
