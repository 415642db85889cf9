// Talks to the server: the model's state, looks at files, Markdown as HTML, answers piece by piece.

const KEY = "ernie-local-key";
let askForKey = async () => null;

/** ask: shows a dialog, and gives the key that was typed. */
export function onKeyNeeded(ask) {
  askForKey = ask;
}

async function request(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  const response = await fetch(path, { ...options, headers });
  if (response.status !== 401) return response;
  const typed = await askForKey();
  if (!typed) return response;
  sessionStorage.setItem(KEY, typed);
  return request(path, options);
}

async function checked(response) {
  if (response.ok) return response;
  const text = await response.text();
  let message = text;
  try {
    message = JSON.parse(text).error.message;
  } catch {
    // Not an error object: a proxy may have answered.
  }
  throw new Error(message || `the server answers with status ${response.status}`);
}

export async function serverState() {
  return (await checked(await request("page/state"))).json();
}

/** How the model will see a file: for each page its size, tokens, notes and a small image. */
export async function lookAt(file) {
  const headers = { "Content-Type": "application/octet-stream" };
  const response = await request("page/look", { method: "POST", headers, body: file });
  return (await checked(response)).json();
}

/** Markdown as HTML that the server has made safe. */
export async function rendered(text) {
  const response = await request("page/markdown", { method: "POST", body: text });
  return (await checked(response)).text();
}

/** Calls `take` with each object of the stream; ends with it, or when `signal` is aborted. */
export async function streamAnswer(body, signal, take) {
  const response = await checked(
    await request("v1/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
      signal,
    }),
  );
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let unread = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    unread += value;
    const events = unread.split("\n\n");
    unread = events.pop();
    for (const event of events) {
      if (!event.startsWith("data: ") || event === "data: [DONE]") continue;
      const object = JSON.parse(event.slice(6));
      if (object.error) throw new Error(object.error.message);
      take(object);
    }
  }
}
