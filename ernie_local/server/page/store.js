// Keeps chats in the browser's own database, and nowhere else; without one, until the page is closed.

const NAME = "ernie-local";
const CHATS = "chats";
const HEADS = "heads"; // what the list shows: chats with images are large
const inMemory = new Map();
const channel = "BroadcastChannel" in self ? new BroadcastChannel(NAME) : null;

/** Calls act(id) when another window has saved or deleted a chat. */
export function onChange(act) {
  if (channel) channel.onmessage = (event) => act(event.data);
}

function opened() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, 2);
    request.onupgradeneeded = () => {
      const { result, transaction } = request;
      if (!result.objectStoreNames.contains(CHATS)) result.createObjectStore(CHATS, { keyPath: "id" });
      const heads = result.createObjectStore(HEADS, { keyPath: "id" });
      transaction.objectStore(CHATS).openCursor().onsuccess = ({ target: { result: cursor } }) => {
        if (!cursor) return;
        heads.put(headOf(cursor.value));
        cursor.continue();
      };
    };
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
    request.onblocked = () => reject(new Error("another window has an older version of this page open"));
  });
}

let whyNot = "";
const database = (async () => opened())().catch((error) => {
  whyNot = error?.message || "this browser keeps no data of this page";
  return null;
});

/** Why chats are lost with the page; "" where they are kept. */
export async function whyNothingIsKept() {
  await database;
  return whyNot;
}

/** Runs use(chats, heads) in one transaction, and gives the result of the request that it returns. */
async function run(mode, use) {
  const opened = await database;
  const transaction = opened.transaction([CHATS, HEADS], mode);
  return new Promise((resolve, reject) => {
    let request;
    transaction.oncomplete = () => resolve(request?.result);
    transaction.onabort = transaction.onerror = () => reject(transaction.error ?? new Error("the browser has refused it"));
    request = use(transaction.objectStore(CHATS), transaction.objectStore(HEADS));
  });
}

/** id, title and time of all chats, the newest first. */
export async function chatHeads() {
  const kept = (await database) ? await run("readonly", (_, heads) => heads.getAll()) : [];
  const ids = new Set(kept.map((head) => head.id));
  const heads = [...kept, ...[...inMemory.values()].filter((chat) => !ids.has(chat.id)).map(headOf)];
  return heads.sort((one, other) => other.changed - one.changed);
}

export async function readChat(id) {
  if (inMemory.has(id)) return inMemory.get(id);
  return (await database) ? run("readonly", (chats) => chats.get(id)) : undefined;
}

/** Saves a chat; under a new id where another window has changed it meanwhile, and gives true then. */
export async function saveChat(chat) {
  chat.changed = Date.now();
  if (!(await database)) {
    inMemory.set(chat.id, chat);
    return false;
  }
  let isCopy = false;
  let failure = null;
  try {
    await run("readwrite", (chats, heads) => {
      const found = chats.get(chat.id);
      found.onsuccess = () => {
        if (found.result && (found.result.version ?? 0) !== (chat.version ?? 0)) {
          chat.id = newId();
          isCopy = true;
        }
        try {
          chats.put({ ...chat, version: (chat.version ?? 0) + 1 });
          heads.put(headOf(chat));
        } catch (error) {
          failure = error;
          chats.transaction.abort();
        }
      };
    });
  } catch (error) {
    inMemory.set(chat.id, chat); // it is there as long as the page is
    throw failure ?? error;
  }
  chat.version = (chat.version ?? 0) + 1;
  inMemory.delete(chat.id);
  channel?.postMessage(chat.id);
  return isCopy;
}

export async function removeChat(id) {
  inMemory.delete(id);
  if (!(await database)) return;
  await run("readwrite", (chats, heads) => {
    heads.delete(id);
    return chats.delete(id);
  });
  channel?.postMessage(id);
}

function newId() {
  return crypto.randomUUID ? crypto.randomUUID() : String(Math.random());
}

export function newChat() {
  return { id: newId(), version: 0, changed: Date.now(), messages: [] };
}

const headOf = (chat) => ({ id: chat.id, changed: chat.changed, title: titleOf(chat) });

/** What the list shows of a chat. */
export function titleOf(chat) {
  const first = chat.messages.find((message) => message.role === "user");
  if (!first) return "New chat";
  const text = first.text.trim().replace(/\s+/g, " ") || first.images.map((image) => image.name).join(", ");
  return [...text].slice(0, 80).join("") || "Question";
}
