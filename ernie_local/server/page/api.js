// Talks to the server: its state, looks at files, Markdown as HTML, answers piece by piece.

const KEY = "ernie-local-key";
let askForKey = async () => null;
let asking = null; // the dialog that is open: all requests that need a key wait for one
let key = null;

try {
  key = sessionStorage.getItem(KEY);
} catch {
  // A browser that keeps nothing; the key is asked for again after each reload.
}

/** ask(isWrong): shows a dialog, and gives the key that was typed, or "". */
export function onKeyNeeded(ask) {
  askForKey = ask;
}

/** What a server has refused; status 0: it does not answer. */
export class Refusal extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

async function request(path, options = {}, asksForKey = true) {
  const sent = key;
  const headers = { ...options.headers, ...(sent ? { Authorization: `Bearer ${sent}` } : {}) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal(navigator.onLine ? "The server does not answer. Is it still running?" : "This device is offline.");
  }
  if (response.status !== 401 || !asksForKey) return response;
  if (sent === key) {
    asking ??= askForKey(Boolean(sent)).finally(() => (asking = null));
    const typed = await asking;
    if (!typed) return response;
    key = typed;
    try {
      sessionStorage.setItem(KEY, typed);
    } catch {
      // It stays in `key`.
    }
  }
  return request(path, options);
}

async function checked(response) {
  if (response.ok) return response;
  const text = await response.text();
  let message = "";
  try {
    message = JSON.parse(text).error.message;
  } catch {
    // Not an error object: a proxy may have answered.
  }
  throw new Refusal(message || `The server answers with status ${response.status}.`, response.status);
}

const posted = (body) => ({ method: "POST", headers: { "Content-Type": "application/octet-stream" }, body });

export async function serverState() {
  return (await checked(await request("page/state", {}, false))).json();
}

/** How the model will see a file: for each page its size, tokens, notes and a small image. */
export async function lookAt(file) {
  return (await patiently("page/look", posted(file))).json();
}

/** What the model sees of a page, from 1, as a JPEG. */
export async function viewOf(file, page) {
  return (await checked(await request(`page/view/${page}`, posted(file)))).blob();
}

/** Markdown as HTML that the server has made safe. */
export async function rendered(text) {
  return (await checked(await request("page/markdown", { method: "POST", body: text }, false))).text();
}

/** Asks, and asks again while the server is busy or loading and says when; wait(message) is told of it. */
async function patiently(path, options, wait = () => {}) {
  for (;;) {
    const response = await request(path, options);
    const seconds = Number(response.headers.get("Retry-After"));
    if (response.status !== 503 || !seconds) return checked(response);
    const refusal = await checked(response).catch((error) => error);
    wait(`${refusal.message}. Asking again every ${seconds} seconds.`);
    await pause(seconds * 1000, options.signal);
  }
}

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}

/** Calls `take` with each object of the stream; Refusal where it ends too early. */
export async function streamAnswer(body, signal, take, wait) {
  const asked = JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } });
  const headers = { "Content-Type": "application/json" };
  const response = await patiently("v1/chat/completions", { method: "POST", headers, body: asked, signal }, wait);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let unread = "";
  for (;;) {
    let step;
    try {
      step = await reader.read();
    } catch (error) {
      if (signal.aborted) throw error;
      step = { done: true };
    }
    if (step.done) throw new Refusal("The connection to the server ended in the middle of the answer.");
    unread += step.value;
    const events = unread.split("\n\n");
    unread = events.pop();
    for (const event of events) {
      if (event === "data: [DONE]") return;
      if (!event.startsWith("data: ")) continue;
      const object = JSON.parse(event.slice(6));
      if (object.error) throw new Refusal(object.error.message, 500);
      take(object);
    }
  }
}
