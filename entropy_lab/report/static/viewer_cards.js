// The responses of a prompt group side by side, token by token. Long ones are built chunk by
// chunk as they come into view.

const CHUNK = 400;

class Cards {
  // pointed(card, token): shown by the mouse; chosen(card, token): focused or clicked.
  constructor(node, store, pointed, chosen) {
    Object.assign(this, { node, store, chosen, cards: [], paintOf: () => {} });
    this.watcher = new IntersectionObserver((seen) => this.arrived(seen), { rootMargin: "400px" });
    node.addEventListener("mouseover", (event) => this.on(event, pointed));
    node.addEventListener("focusin", (event) => this.on(event, (c, t) => this.focused(c, t)));
    node.addEventListener("click", (event) => this.clicked(event));
    node.addEventListener("keydown", (event) => this.key(event));
  }

  // responses: their places; tokens: the numbers of their step.
  show(responses, tokens, firstOfStep) {
    this.watcher.disconnect();
    this.tokens = tokens;
    this.cards = responses.map((response, i) => this.card(response, i, tokens, firstOfStep));
    this.node.replaceChildren(...this.cards.map((card) => card.node));
    this.cards.forEach((card) => card.chunks.forEach((chunk) => this.watcher.observe(chunk)));
  }

  card(response, index, tokens, firstOfStep) {
    const all = this.store.responses;
    const node = made("section", "tv-card");
    const title = made("h4", "", "Response " + (index + 1));
    title.id = "tv-card-" + index;
    node.setAttribute("aria-labelledby", title.id);
    const facts = made("p", "tv-facts", this.facts(all, response));
    const box = made("div", "tv-tokens");
    box.setAttribute("role", "listbox");
    box.setAttribute("aria-label", "Tokens of response " + (index + 1));
    box.setAttribute("aria-orientation", "horizontal");
    const start = tokens.starts[response - firstOfStep];
    const n = tokens.starts[response - firstOfStep + 1] - start;
    const chunks = [];
    for (let at = 0; at < n; at += CHUNK) {
      const chunk = made("span", "tv-chunk waiting");
      chunk.setAttribute("role", "presentation");
      Object.assign(chunk.dataset, { card: index, from: at });
      chunk.style.minHeight = Math.ceil(Math.min(CHUNK, n - at) / 12) + "em";
      chunks.push(chunk);
    }
    box.append(...chunks);
    node.append(title, facts, box);
    const card = { node, box, response, start, n, chunks, at: 0 };
    if (chunks.length) this.fill(card, 0);
    if (!n) box.append(made("span", "tv-none", "no tokens"));
    return card;
  }

  facts(all, i) {
    const parts = [];
    if (all.reward[i] !== null) parts.push("reward " + shortNumber(all.reward[i]));
    if (all.advantage[i] !== null) parts.push("advantage " + signedNumber(all.advantage[i]));
    parts.push(all.n[i].toLocaleString("en") + (all.n[i] === 1 ? " token" : " tokens"));
    if (all.truncated[i]) parts.push("truncated");
    return parts.join(" · ");
  }

  arrived(seen) {
    for (const { target, isIntersecting } of seen) {
      if (isIntersecting && target.classList.contains("waiting")) {
        this.fill(this.cards[target.dataset.card], Number(target.dataset.from) / CHUNK);
      }
    }
  }

  fill(card, which) {
    const chunk = card.chunks[which];
    chunk.classList.remove("waiting");
    chunk.style.minHeight = "";
    const spans = [];
    const end = Math.min(card.n, (which + 1) * CHUNK);
    for (let i = which * CHUNK; i < end; i++) {
      const text = this.store.text(this.tokens.place[card.start + i]);
      const span = made("span", "tv-token", tokenText(text));
      span.dataset.token = i;
      span.setAttribute("role", "option");
      span.setAttribute("aria-selected", "false");
      span.tabIndex = i === card.at ? 0 : -1;
      this.paintOf(span, card.start + i);
      spans.push(span);
    }
    chunk.replaceChildren(...spans);
  }

  repaint(paintOf) {
    this.paintOf = paintOf;
    for (const card of this.cards) {
      for (const span of card.box.querySelectorAll("[data-token]")) {
        paintOf(span, card.start + Number(span.dataset.token));
      }
    }
  }

  spanOf(card, token) {
    const which = Math.floor(token / CHUNK);
    if (card.chunks[which].classList.contains("waiting")) this.fill(card, which);
    return card.chunks[which].children[token - which * CHUNK];
  }

  on(event, act) {
    const span = event.target.closest("[data-token]");
    if (span) act(this.cards[span.parentNode.dataset.card], Number(span.dataset.token));
  }

  clicked(event) {
    this.on(event, (card, token) => this.focus(card, token));
  }

  focus(card, token) {
    if (card && token >= 0 && token < card.n) this.spanOf(card, token).focus();
  }

  focused(card, token) {
    this.mark(card, card.at, false);
    card.at = token;
    this.mark(card, token, true);
    this.chosen(card, token);
  }

  mark(card, token, selected) {
    const span = this.spanOf(card, token);
    span.tabIndex = selected ? 0 : -1;
    span.setAttribute("aria-selected", String(selected));
  }

  key(event) {
    const span = event.target.closest("[data-token]");
    if (!span) return;
    const card = this.cards[span.parentNode.dataset.card];
    const moves = { ArrowRight: card.at + 1, ArrowLeft: card.at - 1, ArrowDown: card.at + 10,
      ArrowUp: card.at - 10, Home: 0, End: card.n - 1 };
    if (!(event.key in moves) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    this.focus(card, Math.min(card.n - 1, Math.max(0, moves[event.key])));
  }
}
