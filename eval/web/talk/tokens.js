// Generated text: a span for each token, shaded by its probability, with its alternatives on hover, focus or tap.

import { bar, element, percent, signed, tokenLabel } from "../charts.js";

const BITS = 10; // of surprise, from where the shade is full: a probability of 0.1%
const shade = (p) => signed(0.6 * Math.min(-Math.log2(p) / BITS, 1));

// The token of a piece of a stream: { id, text, label, p, alternatives: [{ id, label, p }] }; null at the end of the text.
function readToken({ text, delta, token_ids: [id], logprobs }) {
  if (id === undefined) return null;
  const label = (token) => token.replace(/^bytes:/, ""); // a part of a character
  const read = (each) => ({ id: each.token_id, label: label(each.token), p: Math.exp(each.logprob) });
  if (logprobs.content) { // of a chat
    const [token] = logprobs.content, tops = token.top_logprobs.map(read);
    return { ...read(token), id, text: delta.content, alternatives: tops.some((top) => top.id === id) ? tops : [...tops, read(token)] };
  }
  // the ids are in falling order of probability; the keys of a JavaScript object that look like integers come first
  const tops = Object.entries(logprobs.top_logprobs[0]).sort((a, b) => b[1] - a[1]);
  const alternatives = tops.map(([token, logprob], index) =>
    read({ token, logprob, token_id: logprobs.top_token_ids[0][index] }));
  return { ...read({ token: logprobs.tokens[0], logprob: logprobs.token_logprobs[0] }), id, text, alternatives };
}

// onChoose(index, alternative) is called when another token is chosen in the place of the one at this index.
export function generatedText(onChoose) {
  const tokens = [], spans = [];
  let shown = -1, pinned = false; // the token whose alternatives are shown, whatever the mouse is over
  const list = element("span", { role: "listbox", "aria-label": "Generated text: arrow keys move along it, Enter opens alternatives" });
  const card = element("div", { class: "alternatives", role: "group", "aria-label": "Alternatives", tabindex: -1, hidden: true });
  const node = element("div", {
    class: "generated",
    onfocusin: ({ target }) => spans.includes(target) && show(spans.indexOf(target)),
    onfocusout: ({ relatedTarget }) => node.contains(relatedTarget) || hide(),
    onpointerover: ({ target, pointerType }) => pointerType === "mouse" && !pinned && spans.includes(target) && show(spans.indexOf(target)),
    onpointerleave: () => pinned || node.contains(document.activeElement) || hide(),
    onclick: ({ target }) => {
      if (!spans.includes(target)) return;
      const again = pinned && shown === spans.indexOf(target);
      target.focus();
      pinned = !again;
      if (again) hide();
    },
    onkeydown: (event) => {
      const inCard = card.contains(event.target), buttons = [...card.querySelectorAll("button")];
      const row = inCard ? buttons : spans, at = row.indexOf(event.target);
      const [back, on] = inCard ? ["ArrowUp", "ArrowDown"] : ["ArrowLeft", "ArrowRight"];
      const to = { [back]: row[at - 1], [on]: row[at + 1], Home: row[0], End: row.at(-1) }[event.key]
        ?? (!inCard && ["Enter", " ", "ArrowDown"].includes(event.key) && !event.ctrlKey ? buttons[0] : null);
      if (to) {
        event.preventDefault();
        if (!inCard) show(at);
        to.focus();
      } else if (event.key === "Escape" && !card.hidden) {
        event.stopPropagation(); // which would stop the generation
        if (inCard) spans[shown].focus();
        hide();
      }
    },
  }, list, card);

  function show(index) {
    if (index === shown && !card.hidden) return;
    shown = index;
    const { id, label, p, alternatives } = tokens[index];
    const longest = Math.max(...alternatives.map((each) => each.p));
    card.replaceChildren(
      element("p", {}, tokenLabel(label), ` ${percent(p)}`, element("small", {}, `token ${id}`)),
      element("table", { class: "bars" }, element("tbody", {}, ...alternatives.map((other) => {
        const button = element("button", {
          type: "button", "aria-pressed": `${other.id === id}`, title: "Continue from this token", onclick: () => onChoose(index, other),
        }, tokenLabel(other.label));
        return element("tr", {}, element("th", { scope: "row" }, button), element("td", {}, bar(other.p / longest)),
          element("td", {}, percent(other.p)));
      }))));
    card.hidden = false;
    const within = node.offsetParent.getBoundingClientRect(), place = spans[index].getClientRects()[0] ?? within;
    const left = Math.min(place.left - within.left, within.width - card.offsetWidth);
    card.style.left = `${Math.max(left, 0)}px`;
    card.style.top = `${place.bottom - within.top - 1}px`;
    spans.forEach((span, other) => {
      span.tabIndex = other === index ? 0 : -1;
      span.setAttribute("aria-selected", `${other === index}`);
    });
  }

  function hide() {
    card.hidden = true;
    pinned = false;
    spans[shown]?.setAttribute("aria-selected", "false");
  }

  return {
    node, tokens,
    get text() { return list.textContent; },
    // Append the next piece of a stream.
    append(choice) {
      const token = readToken(choice);
      if (token) append(token);
      else list.append(choice.text ?? choice.delta.content); // what was held back as a part of a character
    },
    // Put an alternative in the place of a token, and drop what follows.
    replace(index, { id, label, p }) {
      const { alternatives } = tokens[index];
      hide();
      tokens.length = spans.length = index;
      list.replaceChildren(...spans);
      append({ id, label, p, alternatives, text: label });
      spans[index].classList.add("chosen");
    },
  };

  function append(token) {
    const { text, label, p } = token;
    const kind = text ? (/^\s*\n/.test(text) ? "break" : null) : "part";
    const span = element("span", {
      role: "option", tabindex: tokens.length ? -1 : 0, class: kind, style: `background: ${shade(p)}`,
      "aria-label": `${label.trim() || "white space"}, ${percent(p)}`,
    }, text);
    tokens.push(token);
    spans.push(span);
    list.append(span);
  }
}

export function legend() {
  const ticks = [1, 0.1, 0.01, 0.001].map((p) => element("span", { style: `background: ${shade(p)}` }, `${100 * p}%`));
  return element("p", { class: "shades" }, "How likely the model found each token: ", ...ticks,
    element("span", {}, "Point at a token, or tap it, for its alternatives; choose one to continue from there."));
}
