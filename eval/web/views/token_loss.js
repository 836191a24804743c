// A held-out passage coloured by the loss of each token, and the loss by position in the window.

import { row } from "../arrays.js";
import { arrowKeys, bar, choices, clamp, count, element, facts, percent, scale, signed, tokenLabel } from "../charts.js";

const GAIN = 6; // nats of difference to the unigram that have the full colour

export function render(section, page, state) {
  const uniform = Math.log(page.model.vocab_size); // the loss of a uniform guess
  Object.assign(state, { lossToken: 0, compared: false });
  let spans = [], hovered = null;
  const numbers = element("dl"), detail = element("p", { class: "detail", "aria-live": "polite" }), ends = element("div");
  const passage = element("div", {
    class: "passage", role: "listbox", "aria-label": "The passage: arrow keys move from token to token",
    onkeydown: arrowKeys((down, right) => {
      hovered = null; // the mouse may rest on another token
      state.set({ lossToken: clamp(state.lossToken + down + right, 1, spans.length - 1) });
      spans[state.lossToken].focus();
    }),
    onclick: ({ target }) => place(target) && state.set({ lossToken: place(target) }),
    onpointerover: ({ target, pointerType }) => { hovered = pointerType === "mouse" && place(target); drawDetail(); },
    onpointerleave: () => { hovered = null; drawDetail(); },
  });
  const place = (target) => Math.max(spans.indexOf(target.closest("span")), 0);
  const rows = element("tbody"), caption = element("caption");
  section.append(
    numbers,
    choices("Colour", ["the loss", "the loss compared with the unigram's"], 0, (index) => state.set({ compared: index === 1 })),
    ends, passage, detail,
    element("h3", {}, "The loss by position"),
    element("table", { class: "positions" }, caption,
      element("thead", {}, element("tr", {}, ...["tokens read", "", "loss", "unigram"].map((name) => element("th", { scope: "col" }, name)))), rows));

  let drawDetail = () => {};
  page.watch("token_loss", ["compared"], (data) => {
    const ids = row(data.passage.ids), losses = row(data.passage.loss), unigram = row(data.passage.unigram);
    spans = Array.from(ids, (id, index) => {
      const [loss, other] = [losses[index - 1], unigram[index - 1]];
      const text = page.vocabulary[id], shown = text.trim() ? text : [text.startsWith("\n") ? "↵" : "", text];
      const t = !index ? 0 : state.compared ? (loss - other) / GAIN : loss / uniform;
      return element("span", index ? {
        role: "option", tabindex: -1, style: `background: ${signed(0.7 * clamp(t, -1, 1))}`,
        "aria-label": `${text.trim() || "white space"}, loss ${loss.toFixed(2)}`,
      } : { role: "presentation" }, ...shown);
    });
    passage.replaceChildren(...spans);
    ends.replaceChildren(state.compared ? scale("loss minus the unigram's, in nats", -GAIN, GAIN)
      : scale(`loss in nats; ${uniform.toFixed(2)} is that of a uniform guess`, 0, uniform));
    if (!state.lossToken) { // at first the one at which the context helps most
      const gains = losses.map((loss, index) => unigram[index] - loss);
      state.lossToken = 1 + gains.indexOf(Math.max(...gains));
    }
    const better = losses.filter((loss, index) => loss < unigram[index]).length;
    const means = [["mean loss", `${data.loss.toFixed(3)} nats`], ["perplexity", count(Math.round(Math.exp(data.loss)))],
      ["the unigram's loss", `${data.unigram.toFixed(3)} nats`], ["context beats the unigram", `at ${better} of these ${losses.length} tokens`]];
    numbers.replaceChildren(...facts(means));
  });

  page.watch("token_loss", ["compared", "lossToken"], (data) => {
    for (const [index, span] of spans.entries()) {
      if (!index) continue;
      span.tabIndex = index === state.lossToken ? 0 : -1;
      span.setAttribute("aria-selected", `${index === state.lossToken}`);
    }
    drawDetail = () => {
      const index = hovered || state.lossToken, loss = row(data.passage.loss)[index - 1], other = row(data.passage.unigram)[index - 1];
      const [better, worse] = [Math.exp(other - loss), Math.exp(loss - other)].map((ratio) => ratio.toPrecision(2)).map(Number).map(count);
      detail.replaceChildren(tokenLabel(page.vocabulary[row(data.passage.ids)[index]]),
        ` loss ${loss.toFixed(2)} nats: the model gave it ${percent(Math.exp(-loss))}, the unigram ${percent(Math.exp(-other))} ` +
        `(${other.toFixed(2)} nats): ` + (loss < other ? `${better} times as likely with the context.` : `${worse} times as likely without the context.`));
    };
    drawDetail();
  });

  page.watch("token_loss", [], (data) => {
    const longest = Math.max(...data.positions.flatMap(({ loss, error, unigram }) => [loss + error, unigram]));
    const width = (loss) => `${(100 * loss) / longest}%`;
    caption.textContent = `Mean over ${count(data.tokens)} held-out tokens, in windows of ${count(page.model.block_size)}; the thin bar is ` +
      `± one standard error, the outline the unigram, whose frequencies were counted on ${count(data.counted)} held-out tokens.`;
    rows.replaceChildren(...data.positions.map(({ first, last, loss, error, unigram }) => element("tr", {},
      element("th", { scope: "row" }, first === last ? `${first}` : `${count(first)} to ${count(last)}`),
      element("td", {}, bar(loss / longest,
        element("div", { class: "outline", style: `width: ${width(unigram)}` }),
        element("div", { class: "error", style: `inset-inline-start: ${width(loss - error)}; width: ${width(2 * error)}` }))),
      element("td", {}, loss.toFixed(2)), element("td", {}, unigram.toFixed(2)))));
  });
}
