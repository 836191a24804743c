// One pane: a model, and its answer to a prompt: text, a conversation, or the probabilities of labels.

import { bar, count, element, percent } from "../charts.js";
import { getJson, Problem, streamEvents } from "./api.js";
import { drawChooser } from "./models.js";
import { generatedText } from "./tokens.js";

const ALTERNATIVES = 5;

// refresh() asks for the list of models; onChoose() is called after another model has been chosen.
export function createPane({ state, settings, selected, refresh, onChoose, buttons }) {
  const title = element("h2"), status = element("p", { class: "summary", role: "status" });
  const notice = element("p", { class: "notice", role: "alert", hidden: true }), content = element("div", { class: "content" });
  const chooser = drawChooser(state, selected, (news) => {
    tell(news);
    onChoose();
  }, ...buttons);
  const restart = element("button", { type: "button", onclick: () => { controller.abort(); clear(); node.hidden = true; } }, "New conversation");
  const node = element("article", { class: "answer", hidden: true }, title, content, status, restart);
  chooser.node.append(notice);
  let turns = [], writer = "", controller = new AbortController();

  function tell(message) {
    notice.textContent = message;
    notice.hidden = !message;
  }

  // What can go wrong with a request is told; a bug is not caught.
  async function attempt(work) {
    controller.abort();
    const { signal } = controller = new AbortController();
    tell("");
    node.hidden = false;
    state.set({ running: state.running + 1 });
    status.textContent = "Waiting for the model …";
    try {
      status.textContent = await work(signal);
    } catch (failure) {
      if (signal !== controller.signal) return; // another request has taken the place of this one
      status.textContent = "";
      if (signal.aborted) status.textContent = "Stopped.";
      else if (failure instanceof Problem) {
        tell(failure.message);
        if ([404, 409].includes(failure.status)) refresh();
      } else throw failure;
    } finally {
      state.set({ running: state.running - 1 });
    }
  }

  function clear() {
    turns = [];
    content.replaceChildren();
  }

  function send(prompt) {
    const { id, kind, multi_turn, step } = chooser.model, chat = kind === "instructions";
    if (!multi_turn || writer !== id) clear();
    writer = id;
    restart.hidden = !multi_turn;
    title.textContent = step ? `${id.replace(/@\d+$/, "")} at step ${count(step)}` : id;
    if (kind === "classifier") return classify(id, prompt);
    const turn = { model: id, chat, question: prompt, prompt: null, text: generatedText((...choice) => branch(turn, ...choice)) };
    const messages = [...turns.flatMap(({ question, text }) => [["user", question], ["assistant", text.text]]), ["user", prompt]]
      .map(([role, text]) => ({ role, content: text }));
    turns.push(turn);
    turn.node = chat
      ? element("div", { class: "turn" }, element("p", { class: "question" }, prompt), element("div", { class: "passage" }, turn.text.node))
      : element("div", { class: "passage" }, element("span", { class: "given" }, prompt), turn.text.node);
    content.append(turn.node);
    return chat ? generate(turn, "/v1/chat/completions", { messages, logprobs: true, top_logprobs: ALTERNATIVES })
      : generate(turn, "/v1/completions", { prompt, logprobs: ALTERNATIVES });
  }

  // Continue with another token in the place of one, by the model that wrote the text. What came after it is dropped.
  function branch(turn, index, token) {
    turns.splice(turns.indexOf(turn) + 1).forEach(({ node: later }) => later.remove());
    turn.text.replace(index, token);
    const prompt = [...turn.prompt, ...turn.text.tokens.map(({ id }) => id)];
    generate(turn, "/v1/completions", { prompt, logprobs: ALTERNATIVES });
  }

  function generate(turn, path, body) {
    return attempt(async (signal) => {
      let tokens = 0, start = 0, finish = "";
      for await (const { choices: [choice] } of streamEvents(path, { ...settings, ...body, model: turn.model, return_token_ids: true }, signal)) {
        if (!start) status.textContent = "Writing …";
        start ||= performance.now();
        turn.prompt ??= choice.prompt_token_ids;
        turn.text.append(choice);
        tokens += choice.token_ids.length;
        finish = choice.finish_reason;
      }
      const speed = (tokens - 1) / ((performance.now() - start) / 1000);
      return `${count(tokens)} tokens, seed ${settings.seed}` + (speed > 0 && Number.isFinite(speed) ? `, ${count(Math.round(speed))} tokens/s` : "") +
        (finish === "stop" ? "; the model ended the text here." : ".");
    });
  }

  function classify(model, input) {
    return attempt(async (signal) => {
      const { labels, data: [{ label, probs }] } = await getJson("/v1/classify", { model, input }, signal);
      const rows = labels.map((name, index) => [name, probs[index]]).sort((a, b) => b[1] - a[1]);
      content.replaceChildren(
        element("p", { class: "passage" }, input), element("h3", {}, label),
        element("table", { class: "bars labels" }, element("tbody", {}, ...rows.map(([name, p]) =>
          element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, bar(p)), element("td", {}, percent(p)))))));
      return "";
    });
  }

  // The tab is opened at once: a browser blocks one that is opened later than the click.
  async function explain(prompt) {
    const tab = window.open("", "_blank");
    if (!tab) return tell("The browser has blocked the new tab: allow this page to open one.");
    tab.document.title = "Explain";
    tab.document.body.textContent = "The page is being made: this takes some seconds.";
    try {
      const { url } = await getJson("/v1/explain", { model: chooser.model.id, prompt });
      tab.opener = null;
      tab.location.replace(url);
    } catch (failure) {
      tab.close();
      if (!(failure instanceof Problem)) throw failure;
      tell(failure.message);
    }
  }

  return { chooser, node, send, explain, tell, stop: () => controller.abort() };
}
