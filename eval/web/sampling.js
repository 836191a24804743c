// The distribution that a token is drawn from, as eval/generation/sampling.py computes it (choose_tokens and
// restrict_logits, in this order: temperature, top-k, top-p, min-p).

export function softmax(logits) {
  const top = largest(logits);
  const exponentials = Float64Array.from(logits, (logit) => Math.exp(logit - top));
  const total = exponentials.reduce((sum, value) => sum + value, 0);
  return exponentials.map((value) => value / total);
}

// Probabilities of all tokens. temperature 0: the most likely token; topK 0, topP 1 and minP 0: no cut.
export function distribution(logits, { temperature = 1, topK = 0, topP = 1, minP = 0 } = {}) {
  if (temperature === 0) {
    const best = argmax(logits);
    return Float64Array.from(logits, (_, token) => (token === best ? 1 : 0));
  }
  const top = largest(logits);
  const cut = Float64Array.from(logits, (logit) => (logit - top) / temperature);
  if (topK > 0 && topK < cut.length) {
    const lowest = Float64Array.from(cut).sort()[cut.length - topK];
    drop(cut, (logit) => logit < lowest);
  }
  if (topP < 1) {
    const probabilities = softmax(cut);
    let before = 0; // the probability of all more likely tokens together
    for (const token of byLikelihood(cut)) {
      if (before >= topP && before > 0) cut[token] = -Infinity;
      before += probabilities[token];
    }
  }
  if (minP > 0) {
    const lowest = largest(cut) + Math.log(minP);
    drop(cut, (logit) => logit < lowest);
  }
  return softmax(cut);
}

// The tokens, the most likely first, equal ones in the order of their ids.
export function byLikelihood(logits) {
  return Array.from(logits.keys()).sort((a, b) => logits[b] - logits[a] || a - b);
}

export function argmax(values) {
  return values.indexOf(largest(values));
}

export function entropyInBits(probabilities) {
  return probabilities.reduce((sum, p) => (p > 0 ? sum - p * Math.log2(p) : sum), 0);
}

function largest(values) {
  return values.reduce((a, b) => Math.max(a, b));
}

function drop(logits, condition) {
  logits.forEach((logit, token) => { if (condition(logit)) logits[token] = -Infinity; });
}
