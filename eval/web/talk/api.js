// Requests to the server: JSON, streams of events, files; its errors; its token, which is asked for after a 401.

const TOKEN = "token"; // in sessionStorage, which ends with the tab
let asking = null; // for the token, once for all requests that wait for it

// What the user is told; `status` is HTTP's, 0 if the server does not answer.
export class Problem extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

const gone = () => new Problem("The server does not answer: it has ended, or the connection to it is lost.");
const refusal = ({ message, code }) => new Problem(`The server answers: ${message}.`, code);
const cut = () => new Problem("The connection was lost in the middle of the text.");

async function send(path, { body, signal } = {}) {
  for (;;) {
    const token = sessionStorage.getItem(TOKEN);
    const response = await fetch(path, {
      signal,
      method: body ? "POST" : "GET",
      body: body && JSON.stringify(body),
      headers: token ? { authorization: `Bearer ${token}` } : {},
    }).catch((failure) => { throw signal?.aborted ? failure : gone(); });
    if (response.ok) return response;
    if (response.status === 401) {
      if (token === sessionStorage.getItem(TOKEN)) await (asking ??= askForToken(token !== null).finally(() => { asking = null; }));
      continue;
    }
    const { error } = await response.json().catch(() => ({}));
    throw refusal(error ?? { message: response.statusText, code: response.status });
  }
}

function askForToken(again) {
  const dialog = document.getElementById("login"), input = document.getElementById("token");
  document.getElementById("wrong").hidden = !again;
  input.value = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      sessionStorage.setItem(TOKEN, input.value);
      resolve();
    }, { once: true });
  });
}

export async function getJson(path, body, signal) {
  return (await send(path, { body, signal })).json();
}

export async function getBlob(path) {
  return (await send(path)).blob();
}

// The events of a stream (https://html.spec.whatwg.org/multipage/server-sent-events.html), whose data is JSON.
export async function* streamEvents(path, body, signal) {
  const response = await send(path, { body: { ...body, stream: true }, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ;) {
    const { value, done } = await reader.read().catch((failure) => { throw signal.aborted ? failure : cut(); });
    if (done) throw cut();
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const content = JSON.parse(data);
      if (content.error) throw refusal(content.error);
      yield content;
    }
  }
}
