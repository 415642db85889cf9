// One answer that is being written: asks the server, and puts what comes into a message.

import { streamAnswer } from "./api.js";
import { figuresOf } from "./messages.js";

const KEEP_PAUSE = 2000; // milliseconds after which the pieces so far are kept: the page may be closed

export class AnswerRun {
  /** keep: saves the chat that has `message`, whose problem is true of what is kept until it has ended.
   * view: of the message, where it is shown now. */
  constructor(body, keep) {
    this.body = body;
    this.keep = keep;
    this.message = { role: "assistant", text: "", reasoning: "", isJson: Boolean(body.response_format), problem: "Stopped when the page was closed." };
    this.view = null;
    this.isForgotten = false;
    this.abort = new AbortController();
    this.first = null; // when the first piece came
    this.kept = performance.now();
  }

  stop() {
    this.abort.abort();
  }

  /** Stops, and keeps nothing of it. */
  forget() {
    this.isForgotten = true;
    this.stop();
  }

  /** Runs to the end; what goes wrong becomes the problem of the message. */
  async go() {
    const { message } = this;
    const started = performance.now();
    let problem;
    try {
      const wait = (text) => this.update(() => (message.waits = text));
      await streamAnswer(this.body, this.abort.signal, (object) => this.update(() => this.take(object, started)), wait);
      problem = message.isCut ? "The limit of tokens has ended the answer here." : null;
      if (!problem && !message.text && !message.calls) problem = "The model gave no answer.";
    } catch (error) {
      message.isStopped = error.name === "AbortError";
      problem = message.isStopped ? "Stopped." : error.message;
    }
    delete message.waits;
    if (problem) message.problem = problem;
    else delete message.problem;
    this.view?.end();
  }

  update(act) {
    act();
    this.view?.update();
    if (performance.now() - this.kept > KEEP_PAUSE && !this.isForgotten) {
      this.kept = performance.now();
      this.keep();
    }
  }

  take(object, started) {
    const { message } = this;
    const choice = object.choices[0];
    const delta = choice?.delta ?? {};
    if (delta.content || delta.reasoning_content) this.first ??= performance.now();
    message.text += delta.content ?? "";
    message.reasoning += delta.reasoning_content ?? "";
    if (delta.boxes) message.boxes = delta.boxes;
    for (const call of delta.tool_calls ?? []) this.takeCall(call);
    if (choice?.finish_reason === "length") message.isCut = true;
    if (object.usage) message.figures = figuresOf(object.usage, started, this.first);
  }

  takeCall({ index, id, function: called }) {
    const calls = (this.message.calls ??= []);
    calls[index] ??= { id, name: "", arguments: "" };
    calls[index].name += called.name ?? "";
    calls[index].arguments += called.arguments ?? "";
  }
}
